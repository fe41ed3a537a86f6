"""MobileNet v1 as Keras writes it: names, layouts, and how to tell the width from them."""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from transferlab.weights.names import UNNAMED, fits, keras_layer, keras_norm, numbered
from transferlab.weights.origin import SYMMETRIC, Origin, Shapes, Table

DEPTHWISE = 'h w c 1 -> h w 1 c'
# Keras' head is a 1×1 convolution behind the pooling.
POINTWISE = '1 1 i o -> i o'


def _table(names: Callable[[int, int], list[str]], kernel: str, options: Mapping[str, Any]) -> Table:
  """
  Args:
    names: `names(blocks, layers)` gives the names of all layers, in the order of depth.
    kernel: what the kernel of a depthwise convolution is called.
  """
  blocks, layers = options.get('blocks', 13), len(options.get('features', []))
  left = iter(names(blocks, layers))
  table: Table = {'stem/conv/kernel': (f'{next(left)}/kernel', 'same'), **keras_norm('stem/norm', next(left))}
  for block in range(1, blocks + 1):
    table[f'block{block}/depthwise/kernel'] = (f'{next(left)}/{kernel}', DEPTHWISE)
    table |= keras_norm(f'block{block}/depthwise_norm', next(left))
    table[f'block{block}/pointwise/kernel'] = (f'{next(left)}/kernel', 'same')
    table |= keras_norm(f'block{block}/pointwise_norm', next(left))
  for number in range(1, layers + 1):
    table |= keras_layer(f'dense{number}/linear', next(left))
  return table | keras_layer('head', next(left), POINTWISE)


def _named(blocks: int, layers: int) -> list[str]:
  """As keras.applications has them; dense layers before the head, which it has not, as in its VGGs."""
  names = ['conv1', 'conv1_bn']
  for block in range(1, blocks + 1):
    names += [f'conv_{kind}_{block}{norm}' for kind in ('dw', 'pw') for norm in ('', '_bn')]
  return [*names, *(f'fc{number}' for number in range(1, layers + 1)), 'conv_preds']


def _numbered(blocks: int, layers: int) -> list[str]:
  block = ['depthwise_conv2d', 'batch_normalization', 'conv2d', 'batch_normalization']
  return numbered(['conv2d', 'batch_normalization', *block * blocks, *['dense'] * layers, 'conv2d'])


def _options(table: Callable[[Mapping[str, Any]], Table], shapes: Shapes) -> dict[str, Any] | None:
  from transferlab.networks.mobilenet import BLOCKS, STEM

  many = table({'features': [1] * 9})
  layers = itertools.takewhile(shapes.__contains__, (many[f'dense{n}/linear/kernel'][0] for n in range(1, 10)))
  features = [int(size) for name in layers for size in shapes[name][-1:]]
  for blocks in range(len(BLOCKS), 0, -1):
    options: dict[str, Any] = {'blocks': blocks} if blocks < len(BLOCKS) else {}
    options |= {'features': features} if features else {}
    shape = shapes.get(table(options)[f'block{blocks}/pointwise/kernel'][0], ())
    if len(shape) != 4:
      continue
    width = _width(shape[-1], BLOCKS[blocks - 1][0])
    kernels = {f'block{n}/pointwise/kernel': (1, int(f * width)) for n, (f, _) in enumerate(BLOCKS[:blocks], 1)}
    if fits(shapes, table(options), {'stem/conv/kernel': (3, int(STEM * width)), **kernels}):
      return {'width': width, **options}
  return None


def _width(channels: int, filters: int) -> float:
  """The roundest multiplier that makes so many channels of so many filters."""
  exact = channels / filters
  return next((width for width in (round(exact, 2), round(exact, 3)) if int(filters * width) == channels), exact)


def _origin(name: str, names: Callable[[int, int], list[str]], kernel: str) -> Origin:
  table = functools.partial(_table, names, kernel)
  options = functools.partial(_options, table)
  if names is _numbered:
    return Origin(name, 'mobilenet', options, table, None, doubt=UNNAMED, exported=False)
  return Origin(name, 'mobilenet', options, table, SYMMETRIC)


# Keras 3 calls every kernel 'kernel'; Keras 2, which wrote the published files, did not.
ORIGINS = (
  _origin('keras', _named, 'kernel'),
  _origin('keras2', _named, 'depthwise_kernel'),
  _origin('keras_numbered', _numbered, 'kernel'),
  _origin('keras2_numbered', _numbered, 'depthwise_kernel'),
)
