"""Keras files read without Keras: names, order and values against live models; foreign, damaged and hostile files."""

import functools
import json
import os
import shutil
import sys
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest

from transferlab.errors import UserError
from transferlab.weights import keras_files

os.environ['KERAS_BACKEND'] = 'jax'
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')


@pytest.fixture(scope='module')
def keras():
  return pytest.importorskip('keras')


# ------------------------------------------------------------------------------------------------ live Keras


def _sequential(keras):
  layers = keras.layers
  return keras.Sequential(
    [
      keras.Input((8, 8, 3)),
      layers.Conv2D(4, 3, name='block1_conv1'),
      layers.BatchNormalization(),
      layers.DepthwiseConv2D(3, use_bias=False),
      layers.SeparableConv2D(5, 3),
      layers.LayerNormalization(),
      layers.Flatten(),
      layers.Dense(3, name='predictions'),
    ]
  )


def _functional(keras):
  """Fourteen dense layers, twelve of them unnamed, applied in another order than they were made in."""
  layers = keras.layers
  made = [layers.Dense(3 + number % 2) for number in range(12)]
  inputs = keras.Input((5,))
  x = layers.Dense(4, name='z_first', use_bias=False)(inputs)
  for layer in [*made[6:], *made[:6]]:
    x = layer(x)
  return keras.Model(inputs, layers.Dense(2, name='a_last')(x))


def _nested(keras):
  layers = keras.layers
  convolutions = [layers.Conv2D(2, 1, name='block1_conv2'), layers.Conv2D(2, 3, name='block1_conv1')]
  base = keras.Sequential([keras.Input((8, 8, 3)), *convolutions, layers.GlobalAveragePooling2D()], name='vgg16')
  inputs = keras.Input((8, 8, 3))
  return keras.Model(inputs, layers.Dense(3, name='head')(base(inputs)))


def _normalised(keras):
  layers = keras.layers
  x = inputs = keras.Input((5,))
  for center, scale in ((True, False), (False, True), (False, False), (True, True)):
    x = layers.BatchNormalization(center=center, scale=scale)(layers.Dense(4, use_bias=False)(x))
  x = layers.LayerNormalization(center=False)(x)
  return keras.Model(inputs, x)


@functools.cache
def _live(keras, build):
  """One model for all tests, none of which changes it: building is what takes time."""
  return _randomised(build(keras))


def _randomised(model, seed=0):
  random = np.random.default_rng(seed)
  model.set_weights([random.normal(size=weight.shape).astype(np.float32) for weight in model.get_weights()])
  return model


def _expected(model, prefix=''):
  """By layer and weight, as Keras itself names them, in the model's order."""
  found = {}
  for layer in model.layers:
    if getattr(layer, 'layers', None):
      found |= _expected(layer, f'{prefix}{layer.name}/')
    else:
      found |= {f'{prefix}{layer.name}/{w.name}': v for w, v in zip(layer.weights, layer.get_weights())}
  return found


def _save_legacy_weights(model, path):
  from keras.src.legacy.saving import legacy_h5_format

  with h5py.File(path, 'w') as file:
    legacy_h5_format.save_weights_to_hdf5_group(file, model)


FORMATS = {
  'weights.h5': _save_legacy_weights,
  'model.h5': lambda model, path: model.save(path),
  'a.weights.h5': lambda model, path: model.save_weights(path),
  'model.keras': lambda model, path: model.save(path),
}


def _written(model, folder, name):
  path = folder / name
  FORMATS[name](model, path)
  return path


def _same(contents, expected, names=True):
  assert not names or list(contents) == list(expected)
  assert len(contents) == len(expected)
  for (name, found), value in zip(contents.items(), expected.values()):
    assert (contents.tensors[name].shape, contents.tensors[name].dtype) == (value.shape, value.dtype), name
    np.testing.assert_array_equal(found, value, err_msg=name, strict=True)


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize('build', [_sequential, _functional, _nested, _normalised])
def test_names_order_and_values_are_those_of_the_live_model(keras, tmp_path, monkeypatch, build, name):
  model = _live(keras, build)
  path = _written(model, tmp_path, name)
  expected = _expected(model)
  for module in ('keras', 'tensorflow', 'torch'):
    monkeypatch.setitem(sys.modules, module, None)  # whoever imports it now fails
  contents = keras_files.read(path)
  assert contents.format == 'Keras' and keras_files.is_keras(path)
  _same(contents, expected, names=build is not _normalised or name != 'a.weights.h5')


def test_what_neither_class_nor_configuration_decides_keeps_its_number(keras, tmp_path):
  model = _live(keras, _normalised)
  contents = keras_files.read(_written(model, tmp_path, 'a.weights.h5'))
  batch = [layer.name for layer in model.layers if 'batch' in layer.name]
  names = [name.split('/', 1) for name in contents]
  of = {layer: [weight for own, weight in names if own == layer] for layer in batch}
  three, two, four = ['vars/0', 'vars/1', 'vars/2'], ['moving_mean', 'moving_variance'], ['gamma', 'beta']
  assert list(of.values()) == [three, three, two, four + two]
  assert any('keep a number' in note and f'{batch[0]}/vars/0' in note for note in contents.notes)


def _without_own_names(source, target):
  """As Keras wrote .weights.h5 before it wrote the names of layers into it."""
  shutil.copy(source, target)
  with h5py.File(target, 'r+') as file:
    empty = []

    def strip(name, item):
      item.attrs.pop('name', None)
      if name.endswith('/vars') and not len(item):
        empty.append(name)

    file.visititems(strip)
    for name in empty:
      del file[name]
  return target


def test_files_of_earlier_versions_name_layers_by_class_and_counter_in_the_order_of_the_model(keras, tmp_path):
  model = _live(keras, _functional)
  path = _without_own_names(_written(model, tmp_path, 'a.weights.h5'), tmp_path / 'old.weights.h5')
  contents = keras_files.read(path)
  _same(contents, _expected(model), names=False)
  numbers = ['dense', *(f'dense_{number}' for number in range(1, 14))]
  assert list(dict.fromkeys(name.split('/')[0] for name in contents)) == numbers
  assert 'dense/kernel' in contents and 'dense/bias' not in contents and 'dense_13/bias' in contents


@pytest.mark.parametrize('build', [_sequential, _nested])
def test_layers_of_different_classes_keep_the_order_in_which_they_were_written(keras, tmp_path, build):
  model = _live(keras, build)
  path = _without_own_names(_written(model, tmp_path, 'a.weights.h5'), tmp_path / 'old.weights.h5')
  _same(keras_files.read(path), _expected(model), names=False)


def _rewritten(source, target, compression=zipfile.ZIP_STORED, change=lambda name, data: data):
  with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w', compression) as new:
    for name in old.namelist():
      data = change(name, old.read(name))
      if data is not None:
        new.writestr(name, data)
  return target


@pytest.mark.parametrize('build', [_sequential, _functional, _nested, _normalised])
def test_the_configuration_of_an_archive_names_layers_where_its_weights_do_not(keras, tmp_path, build):
  model = _live(keras, build)
  source = _written(model, tmp_path, 'model.keras')

  def change(name, data):
    if name != 'model.weights.h5':
      return data
    (tmp_path / 'inner.h5').write_bytes(data)
    return _without_own_names(tmp_path / 'inner.h5', tmp_path / 'stripped.h5').read_bytes()

  contents = keras_files.read(_rewritten(source, tmp_path / 'old.keras', change=change))
  _same(contents, _expected(model))


def _by_the_alphabet(source, target):
  """As tools that copy HDF5 files write them, and without the layers' own names."""
  with h5py.File(source) as old, h5py.File(target, 'w') as new:
    old.visititems(lambda name, item: new.__setitem__(name, item[()]) if isinstance(item, h5py.Dataset) else None)
  return target


def test_the_configuration_of_an_archive_decides_the_order_of_its_layers(keras, tmp_path):
  model = _live(keras, _sequential)
  source = _written(model, tmp_path, 'model.keras')

  def change(name, data):
    if name != 'model.weights.h5':
      return data
    (tmp_path / 'inner.h5').write_bytes(data)
    return _by_the_alphabet(tmp_path / 'inner.h5', tmp_path / 'copied.h5').read_bytes()

  contents = keras_files.read(_rewritten(source, tmp_path / 'copied.keras', change=change))
  _same(contents, _expected(model))
  assert not contents.notes


def test_a_compressed_archive_reads_like_any_other(keras, tmp_path):
  model = _live(keras, _sequential)
  path = _rewritten(_written(model, tmp_path, 'model.keras'), tmp_path / 'b.keras', zipfile.ZIP_DEFLATED)
  _same(keras_files.read(path), _expected(model))


def test_nested_layers_are_named_alike_whichever_format_holds_them(keras, tmp_path):
  layers = keras.layers
  x = inputs = keras.Input((6, 1))
  plain = {'kernel_initializer': 'zeros', 'recurrent_initializer': 'zeros'}  # the others take seconds to compile
  lstm = layers.LSTM(3, return_sequences=True, use_bias=False, **plain)
  x = layers.Bidirectional(lstm, name='both')(x)
  x = layers.MultiHeadAttention(2, 3, name='attention', kernel_initializer='zeros')(x, x)
  x = layers.TimeDistributed(layers.Dense(2), name='each')(x)
  x = layers.Embedding(10, 4, name='embedding_table')(layers.GRU(3, name='recurrent', **plain)(x))
  model = _randomised(keras.Model(inputs, x))
  paths = {variable.path: np.asarray(variable) for layer in model.layers for variable in layer.weights}
  for name in FORMATS:
    contents = keras_files.read(_written(model, tmp_path, name))
    assert set(contents) == set(paths), name
    for key, value in contents.items():
      np.testing.assert_array_equal(value, paths[key], err_msg=f'{name}: {key}')


def test_the_layers_of_a_subclassed_model_are_found_under_its_attributes(keras, tmp_path):
  class Blocks(keras.Model):
    def __init__(self):
      super().__init__(name='blocks')
      self.dense_layers = [keras.layers.Dense(3, name=f'inner{number}') for number in range(3)]
      self.head = keras.layers.Dense(2)
      self.scale = self.add_weight(shape=(2,), name='scale')

    def call(self, x):
      for layer in self.dense_layers:
        x = layer(x)
      return self.head(x) * self.scale

  model = Blocks()
  model(np.zeros((1, 4), np.float32))
  _randomised(model)
  contents = keras_files.read(_written(model, tmp_path, 'a.weights.h5'))
  assert set(contents) == {
    *(f'dense_layers/inner{number}/{weight}' for number in range(3) for weight in ('kernel', 'bias')),
    *(f'{model.head.name}/{weight}' for weight in ('kernel', 'bias')),
    'blocks/vars/0',
  }
  np.testing.assert_array_equal(contents['blocks/vars/0'], np.asarray(model.scale))
  np.testing.assert_array_equal(contents['dense_layers/inner2/kernel'], model.dense_layers[2].get_weights()[0])


@pytest.mark.parametrize('name', FORMATS)
def test_half_precision_is_read_bit_for_bit(keras, tmp_path, name):
  layers = keras.layers
  dense = [layers.Dense(3, dtype='bfloat16', name='brain'), layers.Dense(2, dtype='float16', name='half')]
  model = _randomised(keras.Sequential([keras.Input((4,)), *dense]))
  contents = keras_files.read(_written(model, tmp_path, name))
  assert contents.tensors['brain/kernel'].dtype == ml_dtypes.bfloat16
  _same(contents, {f'{layer.name}/{w.name}': np.asarray(w) for layer in model.layers for w in layer.weights})


def test_weights_in_shards_read_like_weights_in_one_file(keras, tmp_path):
  model = _live(keras, _nested)
  model.save_weights(tmp_path / 'big.weights.json', max_shard_size=180 / 1024**3)
  shards = sorted(tmp_path.glob('big_*.weights.h5'))
  assert len(shards) > 1
  contents = keras_files.read(tmp_path / 'big.weights.json')
  _same(contents, _expected(model))
  shards[1].unlink()
  with pytest.raises(UserError, match=rf"big.weights.json names a shard '{shards[1].name}', which is missing"):
    keras_files.read(tmp_path / 'big.weights.json')


def test_an_index_may_not_name_files_elsewhere(tmp_path):
  path = tmp_path / 'a.weights.json'
  path.write_text(json.dumps({'weight_map': {'/layers/dense/vars': '../b.weights.h5'}}))
  with pytest.raises(UserError, match='no file beside it'):
    keras_files.read(path)


@pytest.mark.parametrize('name, optimizer', [('model.h5', 'optimizer_weights'), ('model.keras', 'optimizer')])
def test_the_state_of_the_optimizer_is_another_part(keras, tmp_path, name, optimizer):
  model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dropout(0.5)])
  model.compile('adam', 'mse', metrics=['mae'])
  model.optimizer.build(model.trainable_variables)
  path = _written(model, tmp_path, name)
  contents = keras_files.read(path)
  _same(contents, _expected(model))
  assert contents.part is not None and contents.others == {optimizer: 6}
  state = keras_files.read(path, optimizer)
  assert state.part == optimizer and len(state) == 6 and state.others == {contents.part: 2}
  assert sorted(value.shape for value in state.values()) == [(), (), (3,), (3,), (4, 3), (4, 3)]
  with pytest.raises(UserError, match=f"unknown part of .*{name} 'optimiser'; nearest: {optimizer}"):
    keras_files.read(path, 'optimiser')


@pytest.mark.parametrize('name', ['model.h5', 'a.weights.h5', 'model.keras'])
def test_the_name_of_a_sub_model_that_holds_everything_is_left_out_with_a_note(keras, tmp_path, name):
  layers = keras.layers
  base = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(3)], name='backbone')
  model = _randomised(keras.Sequential([keras.Input((4,)), base, layers.Activation('relu')]))
  contents = keras_files.read(_written(model, tmp_path, name))
  _same(contents, _expected(base))
  assert contents.notes == ('every name began with backbone/, which was left out',)


@pytest.mark.parametrize('name', ['model.h5', 'model.keras'])
def test_metadata_describe_every_layer_with_its_plain_options(keras, tmp_path, name):
  contents = keras_files.read(_written(_live(keras, _nested), tmp_path, name))
  records = {record['name']: record for record in contents.metadata['layers']}
  convolution = records['vgg16/block1_conv1']
  assert convolution['class'] == 'Conv2D' and convolution['config']['kernel_size'] == [3, 3]
  assert 'kernel_initializer' not in convolution['config'] and records['head']['config']['units'] == 3
  assert contents.metadata['image_data_format'] == 'channels_last'
  assert contents.metadata['keras_version'] == keras.__version__
  json.dumps(contents.metadata)


def test_code_in_a_configuration_is_never_run(keras, tmp_path):
  model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Lambda(lambda x: x + 1)])
  source = _written(model, tmp_path, 'model.keras')
  marker = tmp_path / 'ran'

  def change(name, data):
    code = {'class_name': '__lambda__', 'config': {'code': f'open({str(marker)!r}, "w")'}}
    config = json.loads(data) if name == 'config.json' else None
    if config is None:
      return data
    config['config']['layers'][-1]['config']['function'] = code
    config['registered_name'] = config['module'] = 'os'
    return json.dumps(config)

  contents = keras_files.read(_rewritten(source, tmp_path / 'evil.keras', change=change))
  assert [record['class'] for record in contents.metadata['layers']][1:] == ['Dense', 'Lambda']
  dict(contents)
  assert not marker.exists()


# ------------------------------------------------------------------------------------------------ legacy names


def _legacy_file(path, layers, **options):
  """layers: {layer: {weight as listed: array}}."""
  with h5py.File(path, 'w') as file:
    file.attrs['layer_names'] = [name.encode() for name in layers]
    for name, weights in layers.items():
      group = file.require_group(name)
      group.attrs['weight_names'] = [weight.encode() for weight in weights]
      for weight, value in weights.items():
        group.create_dataset(weight, data=value, **options)
  return path


@pytest.mark.parametrize(
  'layer, weights, expected',
  [
    ('conv1', ['conv1_3/kernel:0', 'conv1_3/bias:0'], ['conv1/kernel', 'conv1/bias']),
    ('bn_1', ['bn_1/gamma:0'], ['bn_1/gamma']),
    ('dense_1', ['dense_1_2/kernel:0'], ['dense_1/kernel']),
    ('fire2/squeeze1x1', ['fire2/squeeze1x1_3/kernel:0'], ['fire2/squeeze1x1/kernel']),
    ('conv_dw_1', ['conv_dw_1/depthwise_kernel:0'], ['conv_dw_1/depthwise_kernel']),
    ('block1_conv1', ['block1_conv1_W_1:0', 'block1_conv1_b_1:0'], ['block1_conv1/kernel', 'block1_conv1/bias']),
    ('bn', ['bn_running_mean', 'bn_running_std'], ['bn/moving_mean', 'bn/moving_variance']),
    ('dense', ['sequential/dense/kernel'], ['dense/kernel']),
    ('sequential', ['sequential_1/sequential/dense/kernel'], ['sequential/dense/kernel']),
    ('fc', ['dense_7/kernel:0', 'dense_7/bias:0'], ['fc/kernel', 'fc/bias']),
    (
      'vgg16',
      ['block1_conv1/kernel:0', 'block1_conv2/kernel:0'],
      ['vgg16/block1_conv1/kernel', 'vgg16/block1_conv2/kernel'],
    ),
    (
      'lstm',
      ['lstm_1/lstm_cell/kernel:0', 'lstm_1/lstm_cell/bias:0'],
      ['lstm/lstm_cell/kernel', 'lstm/lstm_cell/bias'],
    ),
    ('a', ['a_1/kernel:0', 'a_2/kernel:0'], ['a/a_1/kernel:0', 'a/a_2/kernel:0']),
  ],
)
def test_what_a_graph_added_to_a_weight_s_name_does_not_leak(tmp_path, layer, weights, expected):
  values = {weight: np.full(3, number, np.float32) for number, weight in enumerate(weights)}
  contents = keras_files.read(_legacy_file(tmp_path / 'a.h5', {'input_1': {}, layer: values}))
  assert list(contents) == expected
  assert [value[0] for value in contents.values()] == list(range(len(weights)))


# ------------------------------------------------------------------------------------------------ Theano


def _by_theano(path, weights, **attributes):
  _legacy_file(path, {'input_1': {}, **weights})
  with h5py.File(path, 'r+') as file:
    file.attrs.update({'backend': b'theano', 'keras_version': b'2.2.4', **attributes})
  return path


def test_kernels_of_theano_are_turned_so_that_a_correlation_gives_what_its_convolution_gave(tmp_path):
  kernel, image = np.random.default_rng(0).normal(size=(3, 2, 4, 5)), np.random.default_rng(1).normal(size=(6, 7, 4))
  path = _by_theano(tmp_path / 'a.h5', {'conv': {'conv_1/kernel:0': kernel, 'conv_1/bias:0': np.arange(5.0)}})
  contents = keras_files.read(path)
  # Convolution by its definition: y[i] = Σ_a k[a] x[i + size - 1 - a].
  theirs, ours = np.zeros((4, 6, 5)), np.zeros((4, 6, 5))
  for row in range(3):
    for column in range(2):
      theirs += image[2 - row :][:4, 1 - column :][:, :6] @ kernel[row, column]
      ours += image[row:][:4, column:][:, :6] @ contents['conv/kernel'][row, column]
  np.testing.assert_allclose(ours, theirs, rtol=1e-12)
  assert contents['conv/kernel'].flags.c_contiguous and contents['conv/bias'].tolist() == [0, 1, 2, 3, 4]
  assert contents.notes == ('written with the Theano backend: its 1 convolution kernels were turned by 180 degrees',)


@pytest.mark.parametrize(
  'weight, shape, axes',
  [
    ('a/kernel:0', (2, 3, 4, 5, 6), (0, 1, 2)),
    ('a/recurrent_kernel:0', (3, 3, 2, 8), (0, 1)),
    ('cell/kernel:0', (3, 3, 2, 8), (0, 1)),
    # Keras turned these itself before Theano turned them again: its _preprocess_conv2d_depthwise_kernel.
    ('a/depthwise_kernel:0', (3, 3, 4, 1), ()),
    ('a/kernel:0', (4, 5), ()),
    ('a/embeddings:0', (4, 5), ()),
  ],
)
def test_of_theano_s_arrays_only_kernels_of_convolutions_are_turned(tmp_path, weight, shape, axes):
  values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  (found,) = keras_files.read(_by_theano(tmp_path / 'a.h5', {'a': {weight: values}})).values()
  np.testing.assert_array_equal(found, np.flip(values, axes))


def test_kernels_whose_names_collide_are_turned_all_the_same(tmp_path):
  values = np.arange(36, dtype=np.float32).reshape(3, 3, 2, 2)
  path = _by_theano(tmp_path / 'a.h5', {'a': {'a_1/kernel:0': values, 'a_2/kernel:0': values}})
  for found in keras_files.read(path).values():
    np.testing.assert_array_equal(found, values[::-1, ::-1])


@pytest.mark.parametrize(
  'weights, attributes, message',
  [
    ({'a/kernel:0': np.zeros((3, 2, 2))}, {}, "holds 'a/kernel', a kernel of three axes, which is turned"),
    ({'a_W:0': np.zeros((8, 3, 3, 3))}, {'keras_version': b'1.2.2'}, 'written by Keras 1 with Theano'),
  ],
)
def test_what_theano_may_or_may_not_have_turned_is_refused(tmp_path, weights, attributes, message):
  with pytest.raises(UserError, match=rf'a\.h5.*{message}'):
    keras_files.read(_by_theano(tmp_path / 'a.h5', {'a': weights}, **attributes))


@pytest.mark.parametrize('separator', ['/', '\\'])
def test_the_older_container_of_layers_is_read(tmp_path, separator):
  path = tmp_path / 'old.weights.h5'
  with h5py.File(path, 'w') as file:
    for number in (0, 2, 10):  # it counted every layer twice
      name = f'dense_{number}' if number else 'dense'
      group = file.create_group(separator.join(['_layer_checkpoint_dependencies', name])).create_group('vars')
      group['0'], group['1'] = np.full((2, 2), float(number)), np.full(2, float(number))
  contents = keras_files.read(path)
  assert list(contents) == [
    f'{name}/{weight}' for name in ('dense', 'dense_2', 'dense_10') for weight in ('kernel', 'bias')
  ]
  assert contents['dense_10/kernel'][0, 0] == 10


def test_an_order_that_the_file_does_not_hold_is_said_to_be_missing(tmp_path):
  path = tmp_path / 'repacked.weights.h5'
  with h5py.File(path, 'w') as file:
    for name in ('conv2d', 'conv2d_10', 'conv2d_2', 'dense'):  # by the alphabet, as other tools copy files
      file[f'layers/{name}/vars/0'] = np.zeros((2, 2))
  contents = keras_files.read(path)
  assert list(contents) == ['conv2d/kernel', 'conv2d_2/kernel', 'conv2d_10/kernel', 'dense/kernel']
  assert any('does not hold the order' in note for note in contents.notes)


def test_layers_without_weights_have_no_say_in_the_order(tmp_path):
  path = tmp_path / 'a.weights.h5'
  with h5py.File(path, 'w') as file:
    for name in ('re_lu_2', 'dense', 're_lu_1', 'conv2d', 're_lu'):
      file.create_group(f'layers/{name}/vars')
      if 're_lu' not in name:
        file[f'layers/{name}/vars/0'] = np.zeros((2, 2))
  contents = keras_files.read(path)
  assert list(contents) == ['dense/kernel', 'conv2d/kernel'] and not contents.notes


def test_variables_are_in_the_order_of_their_numbers(tmp_path):
  path = tmp_path / 'a.weights.h5'
  with h5py.File(path, 'w') as file:
    for number in range(12):
      file[f'layers/own/vars/{number}'] = np.full(2, float(number))
  assert [value[0] for value in keras_files.read(path).values()] == list(range(12))


def test_a_class_of_somebody_s_own_is_not_taken_for_a_known_one(tmp_path):
  path = tmp_path / 'own.weights.h5'
  with h5py.File(path, 'w') as file:
    file['layers/dense/vars/0'] = np.zeros(3)
    file['layers/dense/vars/1'] = np.zeros(3)
    file['layers/dense_1/vars/0'] = np.zeros((2, 2), np.int8)  # quantised: its scale follows
    file['layers/dense_1/vars/1'] = np.zeros(2)
  assert list(keras_files.read(path)) == ['dense/vars/0', 'dense/vars/1', 'dense_1/vars/0', 'dense_1/vars/1']


def test_squeezenet_lists_its_published_weights():
  if 'TRANSFERLAB_TEST_DATA' not in os.environ:
    pytest.skip('TRANSFERLAB_TEST_DATA is not set')
  path = Path(os.environ['TRANSFERLAB_TEST_DATA'], 'weights', 'squeezenet_v1_1_notop.h5')
  contents = keras_files.read(path)
  assert len(contents) == 50 and sum(value.size for value in contents.values()) == 722_496
  fires = [f'fire{number}/{part}' for number in range(2, 10) for part in ('squeeze1x1', 'expand1x1', 'expand3x3')]
  assert list(contents) == [f'{layer}/{weight}' for layer in ['conv1', *fires] for weight in ('kernel', 'bias')]
  with h5py.File(path) as file:
    value = file['fire2/squeeze1x1/fire2/squeeze1x1_3/kernel:0'][:]
  np.testing.assert_array_equal(contents['fire2/squeeze1x1/kernel'], value)


# ------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
  'options', [{}, {'compression': 'gzip'}, {'chunks': (7, 5)}, {'dtype': '>f4'}, {'dtype': 'f2'}]
)
def test_any_storage_of_a_dataset_gives_its_values(tmp_path, options):
  value = np.random.default_rng(0).normal(size=(30, 20)).astype(options.get('dtype', 'f4'))
  contents = keras_files.read(_legacy_file(tmp_path / 'a.h5', {'dense': {'dense/kernel:0': value}}, **options))
  tensor = contents.tensors['dense/kernel']
  assert tensor.dtype == value.dtype.newbyteorder('=') and tensor.shape == (30, 20)
  np.testing.assert_array_equal(tensor.read(), value.astype(tensor.dtype), strict=True)


def test_scalars_and_empty_arrays_are_read(tmp_path):
  values = {
    'x/scalar:0': np.float32(3),
    'x/empty:0': np.zeros((0, 3), np.float32),
    'x/truth:0': np.array([True, False]),
  }
  contents = keras_files.read(_legacy_file(tmp_path / 'a.h5', {'x': values}))
  for (name, found), value in zip(contents.items(), values.values()):
    np.testing.assert_array_equal(found, value, err_msg=name, strict=True)


def _megabytes(path, archive):
  values = [np.full((256, 1024), number, np.float32) for number in range(4)]
  if not archive:
    return _legacy_file(path, {f'dense_{n}': {f'dense_{n}/kernel:0': value} for n, value in enumerate(values)})
  inner = path.with_suffix('.inner')
  with h5py.File(inner, 'w') as file:
    for number, value in enumerate(values):
      file[f'layers/dense_{number}/vars/0'] = value
  with zipfile.ZipFile(path, 'w') as new:
    new.writestr('config.json', '{}')
    new.write(inner, 'model.weights.h5')
  return path


@pytest.mark.parametrize('archive', [False, True])
def test_listing_reads_no_values_and_reading_needs_no_second_copy(tmp_path, archive):
  path = _megabytes(tmp_path / 'a.file', archive)
  keras_files.read(path)['dense_0/kernel']  # what is imported and cached counts for nothing
  tracemalloc.start()
  try:
    contents = keras_files.read(path)
    listed = tracemalloc.get_traced_memory()[1]
    values = [value.nbytes for value in contents.values()]
    tracemalloc.reset_peak()
    held = dict(contents)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert listed < 400_000 and len(held) == 4
  assert peak < sum(values) + values[0]


def test_the_file_is_not_held_open(tmp_path):
  path = _megabytes(tmp_path / 'a.h5', False)
  contents = keras_files.read(path)
  before = contents['dense_1/kernel']
  _legacy_file(path, {'dense_1': {'dense_1/kernel:0': np.zeros((2, 2), np.float32)}})
  assert before[0, 0] == 1
  with pytest.raises(UserError, match=r'a\.h5 has changed'):
    contents['dense_1/kernel']
  path.unlink()
  with pytest.raises(UserError, match=r'a\.h5'):
    contents['dense_1/kernel']


# ------------------------------------------------------------------------------------------------ hostile and damaged


def _soft_link(file, folder):
  file['layers/dense/vars/0'] = h5py.SoftLink('/elsewhere')


def _external_link(file, folder):
  file['layers/dense'] = h5py.ExternalLink(str(folder / 'secret.h5'), '/')


def _external_storage(file, folder):
  (folder / 'secret').write_bytes(b'12345678')
  file.create_dataset('layers/dense/vars/0', (2,), 'f4', external=[(str(folder / 'secret'), 0, 8)])


def _virtual(file, folder):
  layout = h5py.VirtualLayout((2,), 'f4')
  layout[:] = h5py.VirtualSource(str(folder / 'secret.h5'), 'x', (2,))
  file.create_group('layers/dense/vars').create_virtual_dataset('0', layout)


def _cycle(file, folder):
  file['layers/dense/vars/0'] = np.zeros((2, 2))
  file['layers/dense/again'] = file['layers']


def _bomb(file, folder):
  file.create_dataset('layers/dense/vars/0', (1 << 20, 1 << 20), 'f4', chunks=(1024, 1024), compression='gzip')


@pytest.mark.parametrize(
  'attack, message',
  [
    (_soft_link, 'links are not followed'),
    (_external_link, 'links are not followed'),
    (_external_storage, 'other files, which are not read'),
    (_virtual, 'other files, which are not read'),
    (_cycle, 'within itself'),
    (_bomb, 'bytes of the'),
  ],
)
def test_a_file_cannot_make_another_be_read_nor_fill_the_memory(tmp_path, attack, message):
  path = tmp_path / 'evil.weights.h5'
  with h5py.File(path, 'w') as file:
    attack(file, tmp_path)
  with pytest.raises(UserError, match=rf'evil\.weights\.h5.*{message}'):
    keras_files.read(path)


def _damaged(tmp_path):
  """(file, what the message says) of everything that is no whole Keras file."""
  whole = _legacy_file(tmp_path / 'whole.h5', {'a': {'a/kernel:0': np.ones((8, 8))}, 'b': {'b/kernel:0': np.ones(8)}})
  data = whole.read_bytes()
  for length in (0, 4, 100, len(data) // 2, len(data) - 1):
    (tmp_path / f'cut{length}.h5').write_bytes(data[:length])
    yield tmp_path / f'cut{length}.h5', 'damaged, cut short or no Keras file'
  for name, drop in (('layer', 'b'), ('weight', 'b/b/kernel:0')):
    shutil.copy(whole, tmp_path / f'{name}.h5')
    with h5py.File(tmp_path / f'{name}.h5', 'r+') as file:
      del file[drop]
    yield tmp_path / f'{name}.h5', 'damaged: it lists'
  with h5py.File(tmp_path / 'foreign.h5', 'w') as file:
    file['measurements/x'] = np.zeros(3)
  yield tmp_path / 'foreign.h5', 'holds no Keras layers; it holds: measurements'
  yield _legacy_file(tmp_path / 'bare.h5', {'input_1': {}}), 'none that has weights'
  yield tmp_path / 'missing.h5', 'no file'
  archive = _megabytes(tmp_path / 'whole.keras', True)
  for name, change in (
    ('config', lambda name, data: b'{"class_name' if name == 'config.json' else data),
    ('inner', lambda name, data: data[: len(data) // 2] if name.endswith('.h5') else data),
    ('none', lambda name, data: None if name.endswith('.h5') else data),
    ('deep', lambda name, data: b'[' * 100_000 if name == 'config.json' else data),
  ):
    yield _rewritten(archive, tmp_path / f'{name}.keras', change=change), 'no Keras file|holds no weights'
  (tmp_path / 'cut.keras').write_bytes(archive.read_bytes()[:-100])
  yield tmp_path / 'cut.keras', 'no Keras file'
  (tmp_path / 'a.weights.json').write_text('[]')
  yield tmp_path / 'a.weights.json', 'no weight_map'


def test_a_damaged_or_foreign_file_is_one_message_that_names_it(tmp_path):
  for path, message in _damaged(tmp_path):
    with pytest.raises(UserError, match=message) as caught:
      dict(keras_files.read(path))
    assert path.name in str(caught.value) and '\n' not in str(caught.value)


def test_flipped_bytes_give_values_or_one_message(tmp_path):
  whole = _legacy_file(tmp_path / 'whole.h5', {'a': {'a/kernel:0': np.ones((2, 2))}, 'b': {'b/kernel:0': np.ones(2)}})
  data, random = whole.read_bytes(), np.random.default_rng(0)
  path, refused = tmp_path / 'flipped.h5', 0
  for place in random.choice(len(data), 120, replace=False):
    path.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
    try:
      dict(keras_files.read(path))
    except UserError as error:
      refused += 1
      assert 'flipped.h5' in str(error)
  assert 5 < refused < 115


def test_what_is_a_keras_file_is_told_from_its_contents(tmp_path):
  assert keras_files.is_keras(_legacy_file(tmp_path / 'weights.bin', {'a': {'a/kernel:0': np.ones(2)}}))
  assert keras_files.is_keras(_megabytes(tmp_path / 'whole.zip', True))
  np.savez(tmp_path / 'a.npz', x=np.zeros(3))
  (tmp_path / 'a.keras').write_bytes(b'PK\x03\x04 and no more')
  assert not any(keras_files.is_keras(tmp_path / name) for name in ('a.npz', 'a.keras', 'missing.h5', '.'))
