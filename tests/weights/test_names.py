"""Tables of names against live models of torchvision and Keras with random weights, and against real weights.

Outputs agree within 1e-4 of the largest; what is of another family is taken for none of these.
"""

import functools
import os
import re
from pathlib import Path

import jax
import numpy as np
import parity
import peers
import pytest
from jax import lax

from transferlab.weights.names import numbered

pytestmark = pytest.mark.usefixtures('quick_compilation')
RANDOM = np.random.default_rng(0)


def _images(*shape):
  return RANDOM.normal(size=shape).astype(np.float32)


# ------------------------------------------------------------------------------------------------ PyTorch's models
@pytest.mark.parametrize(
  ('depth', 'batch_norm', 'side'),
  [(11, False, 64), (13, True, 32), (16, False, 224), (16, True, 96), (19, False, 40), (19, True, 33)],
)
def test_vgg_gives_what_torchvision_gives(depth, batch_norm, side):
  model = peers.torch_vgg(depth, batch_norm, 4, [12, 10], 5)
  x = _images(1, side, side, 3)
  options = dict(depth=depth, batch_norm=batch_norm, width=4, pool='flatten', features=[12, 10])
  _, ours = parity.network(peers.torch_arrays(model), x.shape[1:], expect=('vgg', 'torchvision'), options=options)
  outputs = ours(x)
  parity.close(outputs['block5'], peers.torch_run(model.features, x))
  parity.close(outputs['head'], peers.torch_run(model, x))


def test_vgg_without_its_classifier_gives_the_features_that_torchvision_gives():
  model = peers.torch_vgg(13, False, 4, [], 5)
  arrays = {name: value for name, value in peers.torch_arrays(model).items() if name.startswith('features')}
  x = _images(2, 64, 48, 3)
  options = dict(depth=13, batch_norm=False, width=4, pool='average', features=[])
  _, ours = parity.network(arrays, x.shape[1:], expect=('vgg', 'torchvision'), options=options)
  parity.close(ours(x)['pool'], peers.torch_run(model.features, x).mean((1, 2)))


def test_the_first_blocks_of_a_vgg_are_a_vgg_of_fewer_blocks():
  model = peers.torch_vgg(16, False, 4, [], 5)
  arrays = {
    name: value
    for name, value in peers.torch_arrays(model).items()
    if re.match(r'features\.\d\.|features\.1[0-4]', name)
  }
  x = _images(1, 32, 32, 3)
  options = dict(depth=16, batch_norm=False, width=4, pool='average', features=[], blocks=3)
  _, ours = parity.network(arrays, x.shape[1:], expect=('vgg', 'torchvision'), options=options)
  parity.close(ours(x)['block3'], peers.torch_run(model.features[:17], x))


@pytest.mark.parametrize('side', [64, 51, 36])
def test_squeezenet_gives_what_torchvision_gives_where_windows_do_not_fill_the_border_too(side):
  model = peers.torch_random(peers.torchvision().squeezenet1_1(num_classes=7))
  x = _images(2, side, side, 3)
  options = dict(ceil_mode=True, head_type='convolution')
  _, ours = parity.network(
    peers.torch_arrays(model), x.shape[1:], expect=('squeezenet', 'torchvision'), options=options
  )
  outputs = ours(x)
  parity.close(outputs['fire3'], peers.torch_run(model.features[:6], x))
  parity.close(outputs['fire9'], peers.torch_run(model.features, x))
  parity.close(outputs['head'], peers.torch_run(model, x))


@pytest.mark.parametrize(
  ('name', 'shortcut', 'head'), [('akamaster', 'shortcut', 'linear'), ('chenyaofo', 'downsample', 'fc')]
)
@pytest.mark.parametrize(('depth', 'option'), [(8, 'A'), (20, 'B')])
def test_a_cifar_resnet_gives_what_its_pytorch_model_gives(name, shortcut, head, depth, option):
  model = peers.torch_resnet(depth, 4, option, shortcut, head)
  x = _images(2, 16, 15, 3)
  options = dict(depth=depth, width=4, shortcut=option)
  _, ours = parity.network(peers.torch_arrays(model), x.shape[1:], expect=('resnet', name), options=options)
  parity.close(ours(x)['head'], peers.torch_run(model, x))


OTHERS = 'alexnet squeezenet1_0 resnext50_32x4d mobilenet_v3_small densenet121 googlenet mnasnet0_5 efficientnet_b0'
OTHERS += ' shufflenet_v2_x0_5 swin_t maxvit_t'


@pytest.mark.parametrize('name', OTHERS.split())
def test_other_families_of_torchvision_are_taken_for_none_of_these(name):
  torch, models = pytest.importorskip('torch'), peers.torchvision()
  options = {'init_weights': False} if name == 'googlenet' else {}
  with torch.device('meta'):
    state = getattr(models, name)(**options).state_dict()
  assert parity.recognised(state) == (None, None)


# -------------------------------------------------------------------------------------------------- Keras' models
@pytest.mark.parametrize(
  ('shape', 'alpha', 'depthwise'),
  [pytest.param((64, 64, 3), 0.25, 'kernel', marks=pytest.mark.long), ((75, 61, 3), 0.35, 'depthwise_kernel')],
)
def test_mobilenet_gives_what_keras_gives_at_odd_sides_too(shape, alpha, depthwise):
  model = peers.keras().applications.MobileNet(shape, alpha, weights=None, classes=7, classifier_activation=None)
  arrays = {
    re.sub(r'(?<=conv_dw_)(\d+)/kernel', rf'\1/{depthwise}', name): value
    for name, value in peers.keras_random(model).items()
  }
  x = _images(2, *shape)
  name = {'kernel': 'keras', 'depthwise_kernel': 'keras2'}[depthwise]
  _, ours = parity.network(arrays, shape, expect=('mobilenet', name), options={'width': alpha})
  early, late, logits = peers.keras_run(model, x, 'conv_pw_2_relu', 'conv_pw_13_relu')
  outputs = ours(x)
  parity.close(outputs['block2'], early)
  parity.close(outputs['block13'], late)
  parity.close(outputs['head'], logits)


def test_mobilenet_under_the_numbers_that_keras_gives_to_layers_without_names():
  model = peers.keras().applications.MobileNet((32, 32, 3), 0.25, weights=None, classes=7, classifier_activation=None)
  arrays = peers.keras_random(model)
  order = [layer for layer in model.layers if layer.weights]
  kinds = {'Conv2D': 'conv2d', 'BatchNormalization': 'batch_normalization', 'DepthwiseConv2D': 'depthwise_conv2d'}
  names = dict(zip((layer.name for layer in order), numbered(kinds[type(layer).__name__] for layer in order)))
  renamed = {
    f'{names[layer]}/{leaf}': arrays[f'{layer}/{leaf}'] for layer, leaf in (path.split('/') for path in arrays)
  }
  x = _images(2, 32, 32, 3)
  _, ours = parity.network(renamed, x.shape[1:], expect=('mobilenet', 'keras_numbered'), options={'width': 0.25})
  parity.close(ours(x)['head'], peers.keras_run(model, x, 'conv_pw_13_relu')[-1])


@pytest.mark.parametrize(
  ('depth', 'side', 'features'), [pytest.param(16, 224, [6, 4], marks=pytest.mark.long), (19, 64, [])]
)
def test_vgg_gives_for_red_green_blue_what_keras_gives_for_blue_green_red(depth, side, features):
  _check_keras_vgg(depth, side, features, 'keras', slice(None, None, -1))


@pytest.mark.parametrize(('depth', 'side', 'features'), [(19, 224, [6, 4]), (16, 64, [])])
def test_vgg_under_the_numbers_that_keras_gives_takes_channels_as_they_come(depth, side, features):
  _check_keras_vgg(depth, side, features, 'keras_numbered', slice(None))


def _check_keras_vgg(depth, side, features, name, channels):
  """`channels`: which of our images' channels Keras is given, in its order."""
  model = peers.keras_vgg(depth, 2, side, features, named=name == 'keras')
  arrays = peers.keras_random(model)
  x = _images(1, side, side, 3)
  options = dict(depth=depth, batch_norm=False, width=2, pool='flatten' if features else 'average', features=features)
  _, ours = parity.network(arrays, x.shape[1:], expect=('vgg', name), options=options)
  maps, last = peers.keras_run(model, np.ascontiguousarray(x[..., channels]), 'block5_pool')
  outputs = ours(x)
  parity.close(outputs['block5'], maps)
  if features:
    parity.close(outputs['head'], last)
  else:
    parity.close(outputs['pool'], last.mean((1, 2)))


@pytest.mark.long
def test_squeezenet_gives_for_red_green_blue_what_keras_gives_for_blue_green_red():
  model = peers.keras_squeezenet(63, 5)
  arrays = peers.slashed(peers.keras_random(model))
  x = _images(2, 63, 63, 3)
  options = dict(ceil_mode=False, head_type='convolution')
  _, ours = parity.network(arrays, x.shape[1:], expect=('squeezenet', 'keras'), options=options)
  parity.close(ours(x)['head'], peers.keras_run(model, np.ascontiguousarray(x[..., ::-1])))


# --------------------------------------------------------------------------------------------------- real weights
@functools.cache
def _data():
  if 'TRANSFERLAB_TEST_DATA' not in os.environ:
    pytest.skip('TRANSFERLAB_TEST_DATA is unset')
  return Path(os.environ['TRANSFERLAB_TEST_DATA']) / 'weights'


def _standardised(image, inputs):
  return (image.astype(np.float32) - np.float32(inputs.shift)) / np.float32(inputs.scale)


def test_the_squeezenet_of_imagenet_sees_blue_green_red_and_gives_512_features():
  h5py = pytest.importorskip('h5py')
  arrays = {}
  with h5py.File(_data() / 'squeezenet_v1_1_notop.h5') as file:
    for layer in map(bytes.decode, file.attrs['layer_names']):
      for weight in map(bytes.decode, file[layer].attrs['weight_names']):
        arrays[f'{layer}/{weight.rpartition("/")[2].removesuffix(":0")}'] = file[layer][weight][()]
  assert (len(arrays), sum(value.size for value in arrays.values())) == (50, 722_496)
  origin, ours = parity.network(arrays, (224, 224, 3), expect=('squeezenet', 'keras'), options={'ceil_mode': False})
  with np.load(_data() / 'mobilenet_v1_025_224_reference.npz') as reference:
    image = reference['image'][:2]
  outputs = ours(_standardised(image, origin.inputs))
  # What the file was trained on: blue, green, red less 104, 117, 123; its kernel as it is.
  given, numbers = np.float32(image[..., ::-1]) - np.float32([104, 117, 123]), ('NHWC', 'HWIO', 'NHWC')
  maps = lax.conv_general_dilated(given, arrays['conv1/kernel'], (2, 2), 'VALID', dimension_numbers=numbers)
  maps = jax.nn.relu(maps + arrays['conv1/bias'])
  parity.close(outputs['stem'], lax.reduce_window(maps, -np.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), 'VALID'))
  assert outputs['pool'].shape == (2, 512)
  assert np.isfinite(outputs['pool']).all()
