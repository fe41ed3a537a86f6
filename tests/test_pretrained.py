"""Foreign weights through the whole program: real files give their reference answers, and mistakes one message."""

import os
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import transferlab
from transferlab import config, folder, paths, pretrained
from transferlab.data import preprocessing
from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.networks import network as networks
from transferlab.preparation import prepare, start
from transferlab.settings import Run
from transferlab.weights import mapping, readers

pytestmark = pytest.mark.usefixtures('quick_compilation')

FOLDER = Path(os.environ.get('TRANSFERLAB_TEST_DATA', 'unset')) / 'weights'
real = pytest.mark.skipif(not FOLDER.is_dir(), reason='TRANSFERLAB_TEST_DATA is unset')
RANDOM = np.random.default_rng(0)


def draw(*shape):
  return RANDOM.normal(size=shape).astype(np.float32)


# -------------------------------------------------------------------------------------------------------- real files
@real
@pytest.mark.parametrize('name', ['cifar10_resnet20.th', 'mobilenet_v1_025_224.safetensors'])
def test_published_weights_give_their_reference_logits_and_features(name):
  reference = np.load(FOLDER / f'{name.partition(".")[0]}_reference.npz')
  found = mapping.recognise(readers.read(str(FOLDER / name)))
  record = found.preprocessing
  images = reference['image']
  assert tuple(record['input_shape']) == images.shape[1:]
  network = networks.build(found.origin.network, found.options, images.shape[1:], found.outputs)
  variables = {
    kind: paths.unflatten({path: np.asarray(leaf) for path, leaf in paths.flatten(tree).items()})
    for kind, tree in found.mapped.variables.items()
  }
  outputs, _ = network.apply(variables, preprocessing.apply(images, record['shift'], record['scale']))
  for stage, expected in (('head', reference['logits']), ('pool', reference['features'])):
    assert np.abs(outputs[stage] - expected).max() < 1e-4 * np.abs(expected).max()


@real
def test_squeezenet_without_its_top_is_listed_whole(command):
  done = command(f'--inspect={FOLDER / "squeezenet_v1_1_notop.h5"}')
  assert done.status == 0
  assert '50 arrays, 722,496 values' in done.out
  assert 'recognised: squeezenet(' in done.out and 'without a head' in done.out


@real
def test_a_run_takes_its_options_and_preprocessing_from_the_file_and_says_so(command, write_config, tmp_path):
  values = _resnet_run(weights=str(FOLDER / 'cifar10_resnet20.th'))
  done = command(f'--config={write_config(tmp_path / "c.py", values)}', '--dry_run')
  assert done.status == 0, done.err
  for said in (
    "resnet(depth=20, width=16, shortcut='A') as akamaster writes it",
    'channels:sum',
    'conv1.weight, o i h w -> h w i o',
    "for values in 0 … 16 in place of the source's 0 … 255",
    'their mean for 1 channels',
  ):
    assert said in done.out, said


def _resnet_run(weights, **network):
  return dict(
    network=dict(name='resnet', **network),
    source=dict(weights=weights),
    transplant=[('stem', 'channels:sum'), ('head', 'init'), ('.*', 'copy')],
    target=dict(data=dict(name='digits', shots=2, validation=2, batch_size=8)),
    phases=[dict(train='head', steps=1)],
  )


# ------------------------------------------------------------------------------------------------- a small ResNet file
def _resnet_file(path, depth=8, width=2, classes=10, head='linear', **changes):
  """A CIFAR ResNet in akamaster's names, of random values."""
  arrays = {}

  def norm(name, size):
    for part in ('weight', 'bias', 'running_mean'):
      arrays[f'{name}.{part}'] = draw(size)
    arrays[f'{name}.running_var'] = np.abs(draw(size)) + 1

  arrays['conv1.weight'] = draw(width, 3, 3, 3)
  norm('bn1', width)
  inputs = width
  for group in range(3):
    for block in range((depth - 2) // 6):
      outputs, name = width * 2**group, f'layer{group + 1}.{block}'
      for number, size in ((1, inputs), (2, outputs)):
        arrays[f'{name}.conv{number}.weight'] = draw(outputs, size, 3, 3)
        norm(f'{name}.bn{number}', outputs)
      inputs = outputs
  arrays[f'{head}.weight'], arrays[f'{head}.bias'] = draw(classes, inputs), draw(classes)
  save_file({**arrays, **changes}, path)
  return arrays


@pytest.fixture(scope='module')
def resnet_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'resnet8.safetensors'
  return path, _resnet_file(path)


def _prepared(values):
  return prepare(config.validate(Run, values))


def test_weights_are_copied_where_the_plan_says_and_only_those_are_read(resnet_file, monkeypatch):
  path, arrays = resnet_file
  read = []
  original = mapping.Leaf.__array__
  monkeypatch.setattr(
    mapping.Leaf, '__array__', lambda leaf, *a, **k: (read.append(leaf.name), original(leaf, *a, **k))[1]
  )
  prepared = _prepared(_resnet_run(str(path)))
  assert read == []
  variables = start(prepared, prepared.weights).variables
  np.testing.assert_array_equal(
    variables['params']['block3']['conv2']['kernel'], arrays['layer3.0.conv2.weight'].transpose(2, 3, 1, 0)
  )
  np.testing.assert_array_equal(variables['stats']['stem']['norm']['var'], arrays['bn1.running_var'])
  np.testing.assert_allclose(
    variables['params']['stem']['conv']['kernel'][:, :, 0],
    arrays['conv1.weight'].transpose(2, 3, 1, 0).sum(axis=2),
    rtol=1e-5,
    atol=1e-5,
  )
  assert 'linear.weight' not in read and 'conv1.weight' in read


def test_a_run_from_a_file_finishes_and_loads_without_the_file(tmp_path):
  _resnet_file(tmp_path / 'gone.safetensors')
  transferlab.run(_resnet_run(str(tmp_path / 'gone.safetensors')), tmp_path / 'run')
  (tmp_path / 'gone.safetensors').unlink()
  model = transferlab.load(tmp_path / 'run')
  assert model.predict(np.zeros((3, 8, 8, 1))).shape == (3,)
  saved = folder.read_record(tmp_path / 'run' / 'config.json', 'config')['config']
  assert saved['network'] == dict(name='resnet', depth=8, width=2, sharing=None, dtype='float32', rematerialise=None)


def test_identity_follows_the_bytes_that_are_taken_and_not_the_files_place(tmp_path, resnet_file):
  arrays = resnet_file[1]
  (tmp_path / 'other').mkdir()
  changed = {**arrays, 'linear.weight': draw(10, 8)}
  for place, given in (('a', arrays), ('other/a', arrays), ('b', changed), ('c', {**arrays, 'bn1.bias': draw(2)})):
    save_file(given, tmp_path / f'{place}.safetensors')
  identity = lambda place: _prepared(_resnet_run(str(tmp_path / f'{place}.safetensors'))).identity['data']
  assert identity('a') == identity('other/a') == identity('b')  # the head is not taken
  assert identity('a') != identity('c')


def test_options_of_the_config_win_and_differences_are_said(resnet_file):
  values = _resnet_run(str(resnet_file[0]), shortcut='B')
  values['transplant'] = [('stem', 'channels:sum'), ('head', 'init'), ('.*', 'partial')]
  prepared = _prepared(values)
  assert prepared.run.network.model_extra == dict(depth=8, width=2, shortcut='B')
  assert "network: shortcut='B' as the config has it; the weights were made with 'A'" in prepared.notes


def test_a_run_from_a_run_has_the_network_that_its_weights_are_of(tmp_path, resnet_file):
  first = _resnet_run(str(resnet_file[0]), dropout=0.2)
  transferlab.run(first, tmp_path / 'first')
  second = {**_resnet_run(str(tmp_path / 'first')), 'transplant': None}
  prepared = _prepared(second)
  assert prepared.run.network.model_extra == dict(depth=8, width=2)  # dropout is training's
  assert 'network: depth=8, width=2 as the weights have it' in prepared.notes


def test_weights_of_a_run_that_chose_are_those_it_chose(tmp_path, tiny, command):
  values = tiny(choose={'phases.0.learning_rate': [1e-3, 1e-2]})
  chosen = transferlab.run(values, tmp_path / 'chose')['candidate']
  source = config.validate(Run, {**_resnet_run(str(tmp_path / 'chose'))}).source
  assert f'candidates/{chosen}/checkpoints' in pretrained.read(source).origin
  assert command(f'--inspect={tmp_path / "chose"}').status == 0


def test_a_file_by_another_name_is_the_same_run(tmp_path, resnet_file, command, write_config):
  for name in ('a', 'b'):
    save_file(resnet_file[1], tmp_path / f'{name}.safetensors')
  run = lambda name: command(
    f'--config={write_config(tmp_path / "c.py", _resnet_run(str(tmp_path / f"{name}.safetensors")))}',
    f'--workdir={tmp_path / "run"}',
  )
  assert run('a').status == 0
  again = run('b')
  assert again.status == 0 and 'is finished' in again.out + again.err, again


def test_a_clone_of_a_hub_repository_is_no_run_of_ours(tmp_path, resnet_file):
  (tmp_path / 'config.json').write_text('{"model_type": "resnet"}')
  save_file(resnet_file[1], tmp_path / 'model.safetensors')
  prepared = _prepared(_resnet_run(str(tmp_path)))
  assert any('model.safetensors' in note for note in prepared.notes)


def test_statistics_that_the_source_overrules_are_named(resnet_file):
  values = _resnet_run(str(resnet_file[0]))
  values['target']['data'] = dict(name='digits', shots=2, validation=2, batch_size=8, standardize=True)
  assert any('data.standardize=True is not used' in note for note in _prepared(values).notes)
  values['target']['preprocessing'] = 'refit'
  assert "preprocessing: the target's own, as target.preprocessing='refit' has it" in _prepared(values).notes


def test_a_head_is_kept_or_sliced_to_chosen_classes(resnet_file):
  path, arrays = resnet_file
  values = _resnet_run(str(path))
  values['transplant'] = [('stem', 'channels:sum'), ('head', 'classes:3,1'), ('.*', 'copy')]
  values['target']['data']['classes'] = [0, 1]
  prepared = _prepared(values)
  head = start(prepared, prepared.weights).variables['params']['head']
  np.testing.assert_array_equal(head['kernel'], arrays['linear.weight'].T[:, [3, 1]])
  np.testing.assert_array_equal(head['bias'], arrays['linear.bias'][[3, 1]])


# ---------------------------------------------------------------------------------------------------------- mistakes
def test_weights_of_another_architecture_are_one_message(resnet_file):
  values = {**_resnet_run(str(resnet_file[0])), 'network': dict(name='convnet')}
  values['transplant'] = None
  with pytest.raises(UserError, match=r"resnet\(depth=8, .*config\.network is 'convnet'; nearest: .*name='resnet'"):
    _prepared(values)


def test_rules_with_a_colon_are_no_reason_to_take_another_network(resnet_file):
  with pytest.raises(UserError, match=r"config\.network is 'convnet'; nearest: .*name='resnet'"):
    _prepared({**_resnet_run(str(resnet_file[0])), 'network': dict(name='convnet')})


def test_weights_of_another_depth_name_the_file_and_what_differs(resnet_file):
  message = (
    r'block2/conv1/kernel has shape .*\n  the weights: .*resnet\(depth=8(.|\n)*\n  network: depth=14 as the config has'
  )
  with pytest.raises(UserError, match=message):
    _prepared(_resnet_run(str(resnet_file[0]), depth=14))


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    (dict(weights='{folder}/resnet9.safetensors'), 'nearest.*resnet8.safetensors'),
    (dict(weights='{folder}/nowhere'), 'does not exist'),
    (dict(weights='{file}', part='ema'), "'ema'"),
    (dict(weights='{file}', which='last'), 'config.source.which is for runs'),
    (dict(weights='{file}', names=[('convv1.*', 'stem/conv/kernel', 'conv')]), r'nearest: conv1\.weight'),
  ],
)
def test_a_mistaken_source_is_one_message(resnet_file, source, message):
  fill = lambda value: (
    value.format(folder=resnet_file[0].parent, file=resnet_file[0]) if isinstance(value, str) else value
  )
  values = {**_resnet_run(''), 'source': {key: fill(value) for key, value in source.items()}}
  with pytest.raises(UserError, match=message):
    _prepared(values)


def test_rules_for_files_are_refused_where_there_is_no_file(tmp_path, trained):
  with pytest.raises(UserError, match='part, names, match and texts are for weights, and this source has none'):
    data = dict(name='digits', batch_size=8)
    config.validate(Run, {**_resnet_run(''), 'source': dict(data=data, phases=[dict(steps=1)], match='shapes')})
  with pytest.raises(UserError, match=r'are for files of others, and .* is a run'):
    pretrained.read(
      config.validate(Run, {**_resnet_run(str(trained)), 'source': dict(weights=str(trained), part='a')}).source
    )


# ----------------------------------------------------------------------------------------------- networks of one's own
class Pooled(nnx.Module):
  """Nothing of transferlab's own: a convolution and the mean of its maps."""

  def __init__(self, rngs):
    self.conv = nnx.Conv(1, 6, (3, 3), rngs=rngs)

  def __call__(self, x):
    return nnx.relu(self.conv(x)).mean(axis=(1, 2))


def own_network(input_shape, outputs):
  """A user's own NNX module as a network of two stages."""
  return networks.network(lambda rngs: {'body': Pooled(rngs), 'head': layers.head(6, outputs, rngs)})


def test_a_users_own_module_takes_any_file_by_names(tmp_path):
  kernel, bias = draw(6, 1, 3, 3), draw(6)
  save_file({'features.conv.weight': kernel, 'features.conv.bias': bias}, tmp_path / 'theirs.safetensors')
  values = _resnet_run('')
  values['network'] = dict(name='test_pretrained.own_network')
  values['source'] = dict(
    weights=str(tmp_path / 'theirs.safetensors'),
    names=[('.*weight', 'body/conv/kernel', 'conv'), ('.*(bias)', r'body/conv/\1', 'same')],
  )
  values['transplant'] = None
  prepared = _prepared(values)
  conv = start(prepared, prepared.weights).variables['params']['body']['conv']
  np.testing.assert_array_equal(conv['kernel'], kernel.transpose(2, 3, 1, 0))
  np.testing.assert_array_equal(conv['bias'], bias)
  assert any('the weights bring none' in note for note in prepared.notes)
