"""Weights written for Keras: live models load them, by order and by name, and hold the same bits afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest

from transferlab.errors import UserError
from transferlab.weights import keras_export, keras_files

os.environ['KERAS_BACKEND'] = 'jax'
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')


@pytest.fixture(scope='module')
def keras():
  return pytest.importorskip('keras')


def _separable(keras, names):
  """Convolution, BatchNorm without scale, depthwise and pointwise convolutions: MobileNet in small."""
  layers = keras.layers
  plain = {'use_bias': False, 'padding': 'same'}
  x = inputs = keras.Input((16, 16, 3))
  x = layers.Conv2D(4, 3, strides=2, name=names[0], **plain)(x)
  x = layers.ReLU(6.0)(layers.BatchNormalization(name=names[1])(x))
  x = layers.DepthwiseConv2D(3, name=names[2], **plain)(x)
  x = layers.BatchNormalization(scale=False, name=names[3])(x)
  x = layers.Conv2D(8, 1, name=names[4], **plain)(x)
  x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(x))
  return keras.Model(inputs, layers.Dense(5, name=names[5])(x))


def _vgg(keras, names):
  layers = keras.layers
  blocks = [
    block
    for number, width in enumerate((4, 4, 6, 6))
    for block in (layers.Conv2D(width, 3, activation='relu', padding='same', name=names[number]), layers.MaxPooling2D())
  ]
  dense = [layers.Dense(7, activation='relu', name=names[4]), layers.Dense(5, name=names[5])]
  return keras.Sequential([keras.Input((16, 16, 3)), *blocks, layers.Flatten(), *dense])


def _mobilenet(keras, names):
  return keras.applications.MobileNet(weights=None, alpha=0.25, input_shape=(32, 32, 3), classes=5)


def _randomise(model, seed):
  random = np.random.default_rng(seed)
  model.set_weights([random.normal(size=weight.shape).astype(np.float32) for weight in model.get_weights()])


def _grouped(contents):
  """(layer, [(weight, array)]) of names LAYER/WEIGHT."""
  layers = {}
  for name, value in contents.items():
    layer, weight = name.rsplit('/', 1)
    layers.setdefault(layer, []).append((weight, value))
  return list(layers.items())


def _same(model, weights):
  for variable, found, expected in zip(model.weights, model.get_weights(), weights, strict=True):
    np.testing.assert_array_equal(found, expected, err_msg=variable.path, strict=True)


# Names whose order by the alphabet is not that of the layers, and among which some begin with others.
NAMES = ['z', 'stem', 'a', 'stem_2', 'stem_10', 'head']


@pytest.mark.parametrize('source', ['model.h5', 'model.keras'])
@pytest.mark.parametrize('build', [_separable, _vgg, _mobilenet])
def test_a_live_model_loads_what_was_read_and_written_again(keras, tmp_path, build, source):
  model = build(keras, NAMES)
  _randomise(model, 0)
  weights = model.get_weights()
  model.save(tmp_path / source)
  keras_export.write(tmp_path / 'ours.h5', _grouped(keras_files.read(tmp_path / source)))
  _randomise(model, 1)
  model.load_weights(tmp_path / 'ours.h5')
  _same(model, weights)
  _randomise(model, 2)
  model.load_weights(tmp_path / 'ours.h5', by_name=True)
  _same(model, weights)


def test_by_order_a_model_with_other_names_loads_it_and_by_name_it_stays_as_it_was(keras, tmp_path):
  model, other = _vgg(keras, NAMES), _vgg(keras, [f'other{number}' for number in range(6)])
  _randomise(model, 0)
  _randomise(other, 1)
  before = other.get_weights()
  layers = [(layer.name, [(w.name, v) for w, v in zip(layer.weights, layer.get_weights())]) for layer in model.layers]
  keras_export.write(tmp_path / 'ours.h5', layers)  # layers without weights among them
  other.load_weights(tmp_path / 'ours.h5', by_name=True)
  _same(other, before)
  other.load_weights(tmp_path / 'ours.h5')
  _same(other, model.get_weights())


def test_a_sub_model_is_one_layer(keras, tmp_path):
  def build():
    base = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.BatchNormalization()], name='base')
    inputs = keras.Input((6,))
    return keras.Model(inputs, keras.layers.Dense(2, name='top')(base(inputs)))

  model, other = build(), build()
  _randomise(model, 0)
  _randomise(other, 1)
  model.save(tmp_path / 'model.h5')
  layers = {'base': [], 'top': []}
  for name, value in keras_files.read(tmp_path / 'model.h5').items():
    layer, weight = name.split('/', 1)
    layers[layer].append((weight, value))
  keras_export.write(tmp_path / 'ours.h5', list(layers.items()))
  other.load_weights(tmp_path / 'ours.h5')
  _same(other, model.get_weights())


def test_bfloat16_weights_come_back_bit_for_bit(keras, tmp_path):
  def build():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, dtype='bfloat16', name='brain')])

  model, other = build(), build()
  values = [np.asarray(variable) for variable in model.weights]
  assert values[0].dtype == ml_dtypes.bfloat16 and values[0].any()
  keras_export.write(tmp_path / 'ours.h5', [('brain', [('kernel', values[0]), ('bias', values[1])])])
  other.load_weights(tmp_path / 'ours.h5')
  np.testing.assert_array_equal(np.asarray(other.weights[0]), values[0], strict=True)


def test_what_is_written_is_read_back_with_its_types_and_attributes(tmp_path):
  values = [np.arange(6).astype(dtype).reshape(2, 3)[:, ::-1] for dtype in ('f2', 'f4', 'f8', 'i4', 'i8', 'u1', 'bool')]
  layers = [('fire2/a', list(zip('bcdefgh', values))), ('fire2', [('scalar', np.float32(3))]), ('empty', [])]
  keras_export.write(tmp_path / 'a.h5', layers, {'keras_version': '3.1.0', 'origin': 'here'})
  contents = keras_files.read(tmp_path / 'a.h5')
  assert list(contents) == [*(f'fire2/a/{letter}' for letter in 'bcdefgh'), 'fire2/scalar']
  for found, value in zip(contents.values(), [*values, np.float32(3)]):
    np.testing.assert_array_equal(found, value, strict=True)
  assert contents.metadata == {'keras_version': '3.1.0', 'backend': 'tensorflow', 'origin': 'here'}
  with h5py.File(tmp_path / 'a.h5') as file:
    assert file.attrs['origin'] == 'here' and list(file.attrs['layer_names']) == [b'fire2/a', b'fire2', b'empty']
    assert file['fire2/a'].attrs['weight_names'][0] == b'fire2/a/b:0'


def test_lists_of_names_longer_than_an_attribute_are_cut_and_joined(tmp_path):
  legacy = pytest.importorskip('keras.src.legacy.saving.legacy_h5_format')
  names = [f'{"layer" * 20}_{number}' for number in range(700)]
  value = np.zeros(1, np.float32)
  keras_export.write(tmp_path / 'a.h5', [(name, [('w', value + number)]) for number, name in enumerate(names)])
  with h5py.File(tmp_path / 'a.h5') as file:
    assert 'layer_names' not in file.attrs and 'layer_names1' in file.attrs
    assert legacy.load_attributes_from_hdf5_group(file, 'layer_names') == names
  contents = keras_files.read(tmp_path / 'a.h5')
  assert list(contents) == [f'{name}/w' for name in names] and contents[f'{names[-1]}/w'] == 699
  with h5py.File(tmp_path / 'theirs.h5', 'w') as file:
    legacy.save_attributes_to_hdf5_group(file, 'layer_names', [name.encode() for name in names])
    for name in names:
      legacy.save_attributes_to_hdf5_group(file.create_group(name), 'weight_names', [b'x/w'])
      file[f'{name}/x/w'] = value
  assert list(keras_files.read(tmp_path / 'theirs.h5')) == list(contents)


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path):
  path, value = tmp_path / 'a.h5', np.ones(3, np.float32)
  keras_export.write(path, [('a', [('w', value)])])
  before = path.read_bytes()
  with pytest.raises(TypeError):
    keras_export.write(path, [('a', [('w', value)]), ('b', [('w', np.array([object()]))])])
  assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
  keras_export.write(path, [('a', [('w', 2 * value)])])
  assert keras_files.read(path)['a/w'][0] == 2
  with pytest.raises(UserError, match=r'cannot write .*nowhere/a\.h5: there is no folder'):
    keras_export.write(tmp_path / 'nowhere' / 'a.h5', [('a', [('w', value)])])


@pytest.mark.parametrize(
  'name, reason',
  [
    ('folder.h5', 'Is a directory'),
    ('file/a.h5', 'there is no folder'),
    (f'{"n" * 252}.h5', 'File name too long'),
    (f'{"n" * 300}.h5', 'File name too long'),
  ],
)
def test_a_place_where_no_file_can_be_is_one_message_with_the_path_as_given(tmp_path, name, reason):
  (tmp_path / 'folder.h5').mkdir()
  (tmp_path / 'file').touch()
  with pytest.raises(UserError) as error:
    keras_export.write(tmp_path / name, [('a', [('w', np.ones(3, np.float32))])])
  assert str(error.value).startswith(f'cannot write {tmp_path / name}: {reason}') and '.tmp' not in str(error.value)
  assert sorted(place.name for place in tmp_path.iterdir()) == ['file', 'folder.h5']


@pytest.mark.parametrize('room', [100, 3000, 20_000])
def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path, room):
  # A bound on the size of files fails like a full disk: when HDF5 writes, or only when it closes.
  program = """if True:
    import resource, sys
    from pathlib import Path
    import numpy as np
    from transferlab.errors import UserError
    from transferlab.weights import keras_export
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
    try:
      keras_export.write(Path(sys.argv[1]), [('a', [('w', np.ones(10_000))])])
    except UserError as error:
      print(error)
  """
  command = [sys.executable, '-c', program, str(tmp_path / 'a.h5'), str(room)]
  environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])}
  said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
  assert said.startswith(f'cannot write {tmp_path / "a.h5"}: ') and said.count('\n') == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'layers, message',
  [
    ([('a', []), ('a', [])], "two layers are called 'a'"),
    ([('a', [('w', 1), ('w', 2)])], "two weights of a are called 'w'"),
    ([('a//b', [])], "'a//b' among the layers is no name"),
    ([('a', [('', 1)])], "'' among the weights of a is no name"),
    ([('a' * 70_000, [])], 'too long for Keras'),
  ],
)
def test_names_that_keras_cannot_tell_apart_are_refused(tmp_path, layers, message):
  with pytest.raises(UserError, match=message):
    keras_export.write(tmp_path / 'a.h5', layers)
  assert not list(tmp_path.iterdir())
