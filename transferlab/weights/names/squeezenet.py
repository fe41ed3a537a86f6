"""SqueezeNet 1.1 as torchvision and as Keras' files write it: names, layouts, and how to tell them from others."""

from collections.abc import Callable, Mapping
from typing import Any

from transferlab.weights.names import fits, keras_layer, torch_layer
from transferlab.weights.names.vgg import REVERSED
from transferlab.weights.origin import IMAGENET, Inputs, Origin, Shapes, Table

# Place of fire2 … fire9 among torchvision's features, where pooling has a number too.
PLACES = (3, 4, 6, 7, 9, 10, 11, 12)
# Caffe's means as the published file rounds them.
CAFFE_ROUNDED = Inputs((123.0, 117.0, 104.0), (1.0, 1.0, 1.0), 227, 'resized to 227')


def torchvision(options: Mapping[str, Any]) -> Table:
  """`features.0`, `features.3.squeeze`, …, `classifier.1`."""
  table = torch_layer('stem/conv', 'features.0', 'conv')
  for number, place in enumerate(PLACES[: options.get('blocks', 8)], 2):
    for part in ('squeeze', 'expand1x1', 'expand3x3'):
      table |= torch_layer(f'fire{number}/{part}', f'features.{place}.{part}', 'conv')
  return table | torch_layer('head', 'classifier.1', 'o i 1 1 -> i o')


def keras(options: Mapping[str, Any]) -> Table:
  """`conv1`, `fire2/squeeze1x1`, …, `conv10`."""
  table = keras_layer('stem/conv', 'conv1', REVERSED)
  for number in range(2, options.get('blocks', 8) + 2):
    for part, name in (('squeeze', 'squeeze1x1'), ('expand1x1', 'expand1x1'), ('expand3x3', 'expand3x3')):
      table |= keras_layer(f'fire{number}/{part}', f'fire{number}/{name}')
  return table | keras_layer('head', 'conv10', '1 1 i o -> i o')


def _options(shapes: Shapes, table: Callable[[Mapping[str, Any]], Table], ceil_mode: bool) -> dict[str, Any] | None:
  from transferlab.networks.squeezenet import FIRES, STEM

  for blocks in range(len(FIRES), 0, -1):
    options = {'ceil_mode': ceil_mode, **({'blocks': blocks} if blocks < len(FIRES) else {})}
    kernels = {'stem/conv/kernel': (3, STEM)}
    for number, (squeezed, expanded) in enumerate(FIRES[:blocks], 2):
      kernels[f'fire{number}/squeeze/kernel'] = (1, squeezed)
      kernels |= {f'fire{number}/expand{size}x{size}/kernel': (size, expanded) for size in (1, 3)}
    named = table(options)
    if fits(shapes, named, kernels):
      # Without a head the file says nothing about it, and the network's own default stands.
      return {**options, **({'head_type': 'convolution'} if named['head/kernel'][0] in shapes else {})}
  return None


ORIGINS = (
  Origin('torchvision', 'squeezenet', lambda shapes: _options(shapes, torchvision, True), torchvision, IMAGENET),
  Origin('keras', 'squeezenet', lambda shapes: _options(shapes, keras, False), keras, CAFFE_ROUNDED),
)
