"""Every key of every shipped config, mutated: each mutant is valid or refused with one message.

What is checked how. Every mutant of every key and list element is validated; an experiment (in its 'smoke' form) is
expanded into its cells. A mutant that passes also goes through `prepare`, which reads the data, builds the network and
plans the transplant but trains nothing; of an experiment's mutant only the first run that the mutation changed. The
sample for the command line is, for each config and mutation, the refused mutant in the middle of the list.
"""

import copy
import json
import math
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from transferlab import cells, config
from transferlab.data import tokens
from transferlab.errors import UserError
from transferlab.networks import network as networks
from transferlab.preparation import prepare
from transferlab.settings import Run
from transferlab.weights import export

ROOT = Path(__file__).parents[1]
SHIPPED = sorted([*ROOT.glob('configs/*.py'), *ROOT.glob('experiments/*.py')])
WORDS = ('tfds:', 'TRANSFERLAB_DATA', 'folder:data/', 'tsv:data/', 'text:data/', 'weights/')
FETCHED = [file for file in SHIPPED if any(word in file.read_text() for word in WORDS)]
# Data that have to be fetched are read for every mutant, experiments expanded into their cells: those take minutes.
SLOW = {*FETCHED, *ROOT.glob('experiments/*.py')}
QUICK_FIRST = [pytest.param(file, marks=pytest.mark.long) if file in SLOW else file for file in SHIPPED]
REMOVED = object()
WRONG_TYPES = {str: 7, list: {'seven': 7}}  # all else becomes a string
VALUES = {
  'misspelt value': lambda value: value + 'x' if isinstance(value, str) else value,
  'wrong type': lambda value: WRONG_TYPES.get(type(value), 'seven'),
  'negative': lambda value: -abs(value) - 1 if isinstance(value, (int, float)) else -1,
  'huge': lambda value: 1e300 if isinstance(value, float) else 10**12,
  'empty': lambda value: type(value)(),
  'None': lambda value: None,
  'removed': lambda value: REMOVED,
  'NaN': lambda value: math.nan,
}
MUTATIONS = ['misspelt', *VALUES]


DATA = os.environ.get('TRANSFERLAB_TEST_DATA', 'unset')
# What stands here for what configs name.
STAND_INS = {
  'tfds:cifar10': 'tfds:cifar10_jpeg',
  'folder:data/hymenoptera_data': f'folder:{DATA}/images/hymenoptera',
  'folder:data/cats_and_dogs_filtered': f'folder:{DATA}/images/hymenoptera',
  'folder:data/photos': f'folder:{DATA}/images/hymenoptera',
  'npz:data/usps.npz': f'npz:{DATA}/images/usps.npz',
  'tsv:data/movie_reviews.tsv': f'tsv:{DATA}/text/movie_reviews.tsv',
  'tsv:data/trec_{train,test}.tsv': f'tsv:{DATA}/text/trec_{{train,test}}.tsv',
  'text:data/tinyshakespeare.txt': f'text:{DATA}/text/tinyshakespeare.txt',
  'weights/mobilenet_2_5_224_tf.h5': f'{DATA}/weights/mobilenet_v1_025_224.safetensors',
  'weights/resnet20-12fca82f.th': f'{DATA}/weights/cifar10_resnet20.th',
  'weights/squeezenet_v1.1_weights_tf_dim_ordering_tf_kernels_notop.h5': f'{DATA}/weights/squeezenet_v1_1_notop.h5',
}


# Files of networks on images: of which network, and in whose names.
IMAGES = {
  'vgg16-397923af.pth': ('vgg', dict(depth=16, width=4, features=[8, 8]), 'torchvision'),
  'resnet50-11ad3fa6.pth': ('imagenet_resnet', dict(depth=50, width=4), 'torchvision'),
  'vit_b_16-c867db91.pth': ('vit', dict(width=64, depth=1, heads=1, hidden=8, patch=8), 'torchvision'),
  'dinov2-small': (
    'vit', dict(width=64, depth=1, heads=1, hidden=8, patch=14, layer_scale=1.0, pool='class_mean'), 'dinov2',
  ),
}  # fmt: skip


@pytest.fixture(scope='module', autouse=True)
def image_weights(tmp_path_factory):
  """Small networks of zeros in the place of published ones."""
  for name, (network, options, names) in IMAGES.items():
    path = tmp_path_factory.mktemp('weights') / f'{name}.safetensors'
    shapes = networks.build(network, options, (56, 56, 3), 3).shapes()
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    export.write(path, zeros, network, options, {}, names)
    STAND_INS[f'weights/{name}'] = str(path)


# Sizes of networks on texts, and the tokenizer that lies beside their weights.
TEXTS = {
  'bert-base-uncased': ('bert', dict(pooler='tanh', first=0), 'words'),
  'gpt2': ('decoder', dict(pool='none'), 'bytes'),
}


@pytest.fixture(scope='module', autouse=True)
def text_weights(tmp_path_factory):
  """A BERT and a GPT-2 of a few features, of zeros, in the names of transformers, with what lies beside them."""
  for name, (network, options, tokenizer) in TEXTS.items():
    place = tmp_path_factory.mktemp('weights') / name
    place.mkdir()
    made = tokens.fit(['the movie is a film that is not good'], tokens.Tokens(tokenizer=tokenizer))['tokenizer']
    (place / 'tokenizer.json').write_text(made)
    heads = {'num_attention_heads': 2, 'n_head': 2}
    (place / 'config.json').write_text(json.dumps({'model_type': {'decoder': 'gpt2'}.get(network, network), **heads}))
    vocabulary = len(tokens.vocabulary({'tokenizer': made}))
    options |= dict(vocabulary=vocabulary, width=4, depth=1, heads=2, hidden=4, positions=256)
    zeros = jax.tree.map(
      lambda leaf: np.zeros(leaf.shape, np.float32), networks.build(network, options, (8,), vocabulary).shapes()
    )
    zeros['params'].pop('head', None)
    export.write(place / 'model.safetensors', zeros, network, options, {}, 'transformers')
    STAND_INS[f'weights/{name}'] = str(place)


@pytest.fixture(scope='module', autouse=True)
def towers(tmp_path_factory):
  """An image tower and a text tower of a few features in one file, as CLIP has them."""
  place, random = tmp_path_factory.mktemp('weights') / 'clip', np.random.default_rng(0)
  place.mkdir()
  made = tokens.fit(['the photo of an ant'], tokens.Tokens(tokenizer='bytes'))['tokenizer']
  (place / 'tokenizer.json').write_text(made)
  sizes = dict(width=64, depth=1, heads=1, hidden=8, epsilon=1e-5, activation='quick_gelu')
  vocabulary = len(tokens.vocabulary({'tokenizer': made}))
  images = dict(sizes, patch=8, patch_bias=False, embed_norm=True, projection=4)
  texts = dict(sizes, vocabulary=vocabulary, positions=77)
  arrays = {'logit_scale': np.full((), 2.0, np.float32)}
  for network, options, shape in (('vit', images, (32, 32, 3)), ('decoder', texts, (77,))):
    shapes = networks.build(network, options, shape, 4).shapes()
    values = jax.tree.map(lambda leaf: random.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)
    if network == 'vit':
      del values['params']['head']
    export.write(place / 'one.npz', values, network, options, {}, 'clip')
    arrays |= {name: array for name, array in np.load(place / 'one.npz').items() if not name.startswith('__')}
  (place / 'one.npz').unlink()
  safetensors.numpy.save_file(arrays, place / 'model.safetensors')
  STAND_INS['weights/clip-vit-base-patch32'] = str(place)


@pytest.fixture(scope='module', autouse=True)
def treebank(tmp_path_factory):
  """Three files of sentences."""
  place = tmp_path_factory.mktemp('texts')
  for part in ('train', 'valid', 'test'):
    (place / f'ptb.{part}.txt').write_text(' the old <unk> sat on a mat N times \n' * 60)
  STAND_INS['text:data/ptb.{train,valid,test}.txt'] = f'text:{place}/ptb.{{train,valid,test}}.txt'


def read(spec):
  """A shipped config, with what is at hand in place of what has to be fetched, and its docstring."""
  values, docstring = config.read(spec)
  return at_hand(values), docstring


def at_hand(node):
  if isinstance(node, dict):
    return {name: at_hand(value) for name, value in node.items()}
  if isinstance(node, (list, tuple)):
    return type(node)(map(at_hand, node))
  return STAND_INS.get(node, node) if isinstance(node, str) else node


def keys(node, path=()):
  """The path of every dict entry and list element."""
  items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
  for name, value in items:
    yield (*path, name)
    yield from keys(value, (*path, name))


def mutant(values, path, mutation):
  """A copy of the values with one mutation; None where it does not apply."""
  values = copy.deepcopy(values)
  node = values
  for name in path[:-1]:
    node = node[name]
  last = path[-1]
  if mutation == 'misspelt':
    if isinstance(node, list):
      return None
    node[last[:-2] + last[:-3:-1]] = node.pop(last)  # the last two letters change places
    return values
  value = VALUES[mutation](node[last])
  if value is REMOVED:
    del node[last]
  elif value is node[last]:
    return None
  else:
    node[last] = value
  return values


def mutants(values, mutation):
  """(key, mutant) for every key that the mutation applies to."""
  for path in keys(values):
    made = mutant(values, path, mutation)
    if made is not None:
      yield '.'.join(map(str, path)), made


def runs_of(values):
  """The runs that a config describes, validated: its candidates, or those of all cells."""
  if 'axes' not in values:
    return [candidate.settings for candidate in cells.candidates(config.validate(Run, values))]
  expanded = cells.expand(config.validate(cells.Study, values))
  return [candidate.settings for cell in expanded for candidate in cell.candidates]


@pytest.mark.parametrize('file', QUICK_FIRST, ids=lambda file: file.stem)
@pytest.mark.parametrize('mutation', MUTATIONS)
def test_every_mutated_key_is_valid_or_refused_with_a_message(file, mutation, command, write_config, tmp_path):
  if file in FETCHED and 'TRANSFERLAB_TEST_DATA' not in os.environ:
    pytest.skip('TRANSFERLAB_TEST_DATA is unset, and the data would have to be fetched')
  values, _ = read(f'{file}:smoke')
  known = {run.model_dump_json() for run in runs_of(values)}
  refused = []
  for key, mutated in mutants(values, mutation):
    try:
      changed = [run for run in runs_of(mutated) if run.model_dump_json() not in known]
      if changed:
        config.digest(prepare(changed[0]).identity)
    except UserError as error:
      assert str(error).strip(), f'{file.name}: {key}, {mutation}: no message'
      refused.append(mutated)
    except Exception as error:
      pytest.fail(f'{file.name}: {key}, {mutation}: {type(error).__name__}: {error}')
  assert refused
  sample = write_config(tmp_path / file.name, refused[len(refused) // 2])
  done = command(f'--config={sample}', f'--workdir={tmp_path / "run"}', '--dry_run')
  if 'axes' in values and done.status == 0:
    assert 'fails: ' in done.out  # a mistake in one cell is a row of its own
    return
  assert done.status == 2 and done.err.startswith('error: ') and done.err.count('error: ') == 1, done
  assert not (tmp_path / 'run').exists()


def test_every_shipped_config_is_valid_in_full_and_in_short():
  for file in SHIPPED:
    for argument in ('', 'smoke'):
      values, docstring = read(f'{file}:{argument}')
      assert f'--config={file.relative_to(ROOT)}' in docstring
      assert 'Seen' in docstring or file.parent.name == 'experiments'
      # To read all of IMDB takes half a minute: the next test does.
      whole = argument == 'smoke' or 'tfds:imdb' not in file.read_text()
      if whole and (file not in FETCHED or 'TRANSFERLAB_TEST_DATA' in os.environ):
        assert all(prepare(run).loaded.splits for run in runs_of(values)[:1])


ALL_OF_IMDB = [file for file in SHIPPED if 'tfds:imdb' in file.read_text()]


@pytest.mark.long
@pytest.mark.skipif('TRANSFERLAB_TEST_DATA' not in os.environ, reason='TRANSFERLAB_TEST_DATA is unset')
@pytest.mark.parametrize('file', ALL_OF_IMDB, ids=lambda file: file.stem)
def test_configs_on_all_of_imdb_are_valid_in_full(file):
  (run,) = runs_of(read(f'{file}:')[0])[:1]
  assert prepare(run).loaded.splits
