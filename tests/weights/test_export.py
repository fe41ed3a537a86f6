"""The way back: round trips are exact to the bit, torch and Keras load what is written, mistakes are one message."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

import transferlab
from transferlab import paths
from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.networks import network as networks
from transferlab.weights import export, mapping, readers

pytestmark = pytest.mark.usefixtures('quick_compilation')

RECORD = {
  'kind': 'image',
  'shift': [1.0, 2.0, 3.0],
  'scale': [4.0, 5.0, 6.0],
  'columns': [],
  'input_shape': [32, 32, 3],
  'range': [0.0, 255.0],
}
# network, options, and the origins it can be written for.
FAMILIES = {
  'vgg': (dict(depth=11, batch_norm=True, width=2, features=[8, 8]), (32, 32, 3), ['torchvision']),
  'vgg plain': (dict(depth=16, width=2, features=[8, 8]), (32, 32, 3), ['torchvision', 'keras']),
  'mobilenet': (dict(width=0.125), (32, 32, 3), ['keras']),
  'squeezenet': (dict(head_type='convolution', ceil_mode=True), (64, 64, 3), ['torchvision']),
  'squeezenet of Keras': (dict(head_type='convolution'), (64, 64, 3), ['keras']),
  'resnet': (dict(depth=14, width=2, shortcut='B'), (32, 32, 3), ['akamaster', 'chenyaofo']),
  'imagenet_resnet': (dict(depth=18, width=2), (32, 32, 3), ['torchvision']),
  'imagenet_resnet of Keras': (
    dict(width=2, stride_on='1x1', conv_bias=True, epsilon=1.001e-5, momentum=0.99),
    (32, 32, 3),
    ['keras', 'keras2'],
  ),
  'bit': (dict(width=32, blocks=4), (32, 32, 3), ['bit', 'timm']),
  'mobilenet_v2': (dict(width=0.1), (32, 32, 3), ['torchvision', 'timm']),
  'mobilenet_v2 of Keras': (
    dict(width=0.1, padding='same', epsilon=1e-3, momentum=0.999),
    (32, 32, 3),
    ['keras', 'keras2'],
  ),
  'convnext': (dict(depths=[1, 2], widths=[4, 6]), (32, 32, 3), ['torchvision', 'timm']),
}
CASES = [(family, names) for family, (_, _, origins) in FAMILIES.items() for names in ['ours', *origins]]


def _network(family):
  options, shape, _ = FAMILIES[family]
  return family.split()[0], options, networks.build(family.split()[0], options, shape, 5)


def _drawn(network, seed=0):
  """Variables whose activations stay of one size through the depth: rounding is not blown up."""
  random = np.random.default_rng(seed)

  def draw(path, shape):
    name = path.rpartition('/')[2]
    if name == 'kernel':
      return random.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
    return random.uniform(0.5, 1.5, shape) if name in ('var', 'scale') else 0.1 * random.normal(size=shape)

  flat = {kind: paths.flatten(tree) for kind, tree in network.shapes().items()}
  return {
    kind: paths.unflatten({path: jnp.asarray(draw(path, leaf.shape), jnp.float32) for path, leaf in tree.items()})
    for kind, tree in flat.items()
  }


def _same(found, expected):
  for kind in ('params', 'stats'):
    theirs, ours = paths.flatten(found[kind]), paths.flatten(expected[kind])
    assert set(theirs) == set(ours)
    for path, leaf in ours.items():
      assert np.asarray(theirs[path]).tobytes() == np.asarray(leaf).tobytes(), path


@pytest.mark.parametrize(('family', 'names'), CASES)
@pytest.mark.parametrize('suffix', ['.safetensors', '.npz', '.h5'])
def test_a_round_trip_is_exact_to_the_bit_and_keeps_the_preprocessing(family, names, suffix, tmp_path):
  if suffix == '.h5' and not names.startswith('keras'):
    pytest.skip("Keras' format has Keras' names")
  name, options, network = _network(family)
  variables = _drawn(network)
  export.write(tmp_path / f'a{suffix}', variables, name, options, RECORD, names)
  found = mapping.recognise(readers.read(str(tmp_path / f'a{suffix}')))
  assert found.origin.name == ('transferlab' if names == 'ours' else names)
  assert found.outputs == 5 and found.preprocessing == RECORD
  _same(found.mapped.variables, variables)
  assert os.listdir(tmp_path) == [f'a{suffix}']


# ------------------------------------------------------------------------------------------------------ torch, Keras
def _answer(network, variables, x):
  outputs, _ = jax.jit(layers.unlooped(network.apply))(variables, x)
  return np.asarray(outputs['head'])


def _close(found, expected):
  assert found.shape == expected.shape
  assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


TORCH = {
  ('squeezenet', 'torchvision'): lambda: peers.torchvision().squeezenet1_1(num_classes=5),
  ('imagenet_resnet', 'torchvision'): lambda: peers.torch_imagenet_resnet(18, 2, 5),
  ('bit', 'timm'): lambda: peers.timm_bit((3, 1), 32, 5),
  ('mobilenet_v2', 'torchvision'): lambda: peers.torchvision().mobilenet_v2(num_classes=5, width_mult=0.1),
  ('mobilenet_v2', 'timm'): lambda: peers.timm_mobilenet_v2(0.1, 5),
  ('convnext', 'torchvision'): lambda: peers.torch_convnext([1, 2], [4, 6], 5),
}


@pytest.mark.parametrize(('family', 'names'), TORCH)
def test_pytorchs_model_loads_what_was_written_and_answers_alike(family, names, tmp_path):
  """Every name is there but counts of batches, which ours does not keep and evaluation does not need."""
  pytest.importorskip('torch')
  from safetensors.torch import load_file

  name, options, network = _network(family)
  variables = _drawn(network)
  export.write(tmp_path / 'a.safetensors', variables, name, options, RECORD, names)
  theirs, loaded = TORCH[family, names](), load_file(tmp_path / 'a.safetensors')
  counts = {key: value for key, value in theirs.state_dict().items() if key.endswith('num_batches_tracked')}
  theirs.load_state_dict({**counts, **loaded}, strict=True)
  x = np.random.default_rng(1).normal(size=(2, *FAMILIES[family][1])).astype(np.float32)
  _close(_answer(network, variables, x), peers.torch_run(theirs.eval(), x))


def test_timm_loads_the_npz_of_bit_that_was_written_and_answers_alike(tmp_path):
  name, options, network = _network('bit')
  variables, theirs = _drawn(network), peers.timm_bit((3, 1), 32, 5)
  export.write(tmp_path / 'a.npz', variables, name, options, RECORD, 'bit')
  theirs.load_pretrained(str(tmp_path / 'a.npz'))
  x = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
  _close(_answer(network, variables, x), peers.torch_run(theirs, x))


KERAS = {
  'mobilenet': (lambda make: make.MobileNet, dict(alpha=0.25), dict(width=0.25)),
  'mobilenet_v2 of Keras': (lambda make: make.MobileNetV2, dict(alpha=0.1), None),
  'imagenet_resnet of Keras': (lambda make: peers.narrow_keras_resnet(50, 2), {}, None),
}


@pytest.mark.parametrize('family', KERAS)
def test_keras_loads_what_was_written_and_answers_alike(family, tmp_path):
  make, arguments, options = KERAS[family]
  name = family.split()[0]
  options = options or FAMILIES[family][0]
  network = networks.build(name, options, (32, 32, 3), 5)
  variables = _drawn(network)
  export.write(tmp_path / 'a.h5', variables, name, options, RECORD, 'keras')
  given = dict(input_shape=(32, 32, 3), weights=None, classes=5, classifier_activation=None)
  theirs = make(peers.keras().applications)(**arguments, **given)
  theirs.load_weights(tmp_path / 'a.h5')
  x = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
  reversed_first = name == 'imagenet_resnet'  # blue, green, red
  given = x[..., ::-1] if reversed_first else x
  _close(_answer(network, variables, x), np.asarray(jax.jit(lambda x: theirs(x, training=False))(given)))


# ------------------------------------------------------------------------------------------------------ command line
def test_a_run_is_exported_and_is_a_source_again(command, trained, tmp_path):
  done = command(f'--workdir={trained}', f'--export={tmp_path / "a.npz"}')
  assert done.status == 0, done.err
  assert 'a.npz: 4 arrays' in done.out and 'preprocessing: (x - shift) / scale' in done.out
  shown = command(f'--inspect={tmp_path / "a.npz"}').out
  assert 'recognised: mlp(hidden=[16]) as transferlab writes it, 10 outputs' in shown
  data = dict(name='digits', shots=2, validation=2, batch_size=8)
  run = dict(network=dict(name='mlp'), source=dict(weights=str(tmp_path / 'a.npz')), target=dict(data=data))
  run |= dict(transplant=[('.*', 'copy')], phases=[dict(train='head', steps=1, learning_rate=0.0)])
  transferlab.run(run, tmp_path / 'run')
  _same(transferlab.load(tmp_path / 'run').variables, transferlab.load(trained).variables)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('a.bin', 'the suffix says the format; nearest: '),
    ('a.npz,names=torchvision', "unknown names for network 'mlp': 'torchvision'; nearest: ours"),
    ('a.h5', "Keras' format: it has no names for network 'mlp'"),
    ('nowhere/a.npz', 'there is no folder'),
    ('a.npz,name=ours', "unknown key of --export (each once): 'name'; nearest: names"),
    ('a.npz,names=ours,names=ours', "unknown key of --export (each once): 'names'"),
    ('a.npz,which=best', "which is 'selected' or 'last', not 'best'"),
  ],
)
def test_a_mistaken_export_is_one_message(command, trained, tmp_path, spec, message):
  done = command(f'--workdir={trained}', f'--export={tmp_path}/{spec}')
  assert done.status == 2 and message in done.err and done.err.count('error: ') == 1, done.err
  assert not list(tmp_path.rglob('*.*'))


def test_leaves_that_an_origin_has_no_name_for_are_named(tmp_path):
  options = dict(depth=8, width=1, features=4)
  network = networks.build('resnet', options, (8, 8, 3), 2)
  variables = _drawn(network)
  with_own = {**variables, 'params': {**variables['params'], 'extra': {'kernel': np.zeros(2)}}}
  with pytest.raises(UserError, match='akamaster has no name for extra/kernel; names=ours writes every leaf'):
    export.write(tmp_path / 'a.npz', with_own, 'resnet', options, RECORD, 'akamaster')


KERAS_RESNET, KERAS_MOBILENET = (FAMILIES[f'{name} of Keras'][0] for name in ('imagenet_resnet', 'mobilenet_v2'))


@pytest.mark.parametrize(
  ('name', 'options', 'names', 'message'),
  [
    ('squeezenet', dict(ceil_mode=True), 'torchvision', "has head_type='convolution', and this one 'linear'"),
    ('squeezenet', dict(head_type='convolution'), 'torchvision', 'has ceil_mode=True, and this one False'),
    ('squeezenet', dict(head_type='convolution', ceil_mode=True), 'keras', 'has ceil_mode=False, and this one True'),
    ('imagenet_resnet', {**KERAS_RESNET, 'epsilon': 1e-5}, 'torchvision', "has stride_on='3x3', and this one '1x1'"),
    ('imagenet_resnet', {**KERAS_RESNET, 'epsilon': 1e-5}, 'keras', 'has epsilon=1.001e-05, and this one 1e-05'),
    ('imagenet_resnet', {**KERAS_RESNET, 'stride_on': '3x3'}, 'keras', "has stride_on='1x1', and this one '3x3'"),
    ('imagenet_resnet', dict(depth=18, width=2), 'keras', 'keras has no network of these layers'),
    ('mobilenet_v2', dict(width=0.1, padding='same'), 'torchvision', "has padding='both', and this one 'same'"),
    ('mobilenet_v2', dict(width=0.1, epsilon=1e-3), 'timm', 'has epsilon=1e-05, and this one 0.001'),
    ('mobilenet_v2', {**KERAS_MOBILENET, 'padding': 'both'}, 'keras', "has padding='same', and this one 'both'"),
  ],
)
def test_a_network_that_would_answer_otherwise_under_an_origins_names_is_refused(
  tmp_path, name, options, names, message
):
  network = networks.build(name, options, (64, 64, 3), 5)
  with pytest.raises(UserError, match=message):
    export.write(tmp_path / 'a.safetensors', _drawn(network), name, options, RECORD, names)


@pytest.mark.parametrize('name', ['a.npz', 'a.safetensors', 'a.h5'])
def test_a_folder_in_the_way_is_one_message(tmp_path, name):
  (tmp_path / name).mkdir()
  options = dict(width=0.125)
  variables = _drawn(networks.build('mobilenet', options, (32, 32, 3), 5))
  with pytest.raises(UserError, match=name):
    export.write(tmp_path / name, variables, 'mobilenet', options, RECORD, 'keras')
  assert os.listdir(tmp_path) == [name]


def test_numbered_names_are_read_and_not_written():
  assert export.names_for('mobilenet') == ['ours', 'keras', 'keras2']
  assert export.names_for('vgg') == ['ours', 'torchvision', 'keras']


def test_what_is_written_says_what_it_is(tmp_path):
  name, options, network = _network('resnet')
  export.write(tmp_path / 'a.safetensors', _drawn(network), name, options, RECORD)
  said = readers.read(str(tmp_path / 'a.safetensors')).metadata
  assert json.loads(said['network']) == {'name': 'resnet', **options}
  assert json.loads(said['preprocessing']) == RECORD
