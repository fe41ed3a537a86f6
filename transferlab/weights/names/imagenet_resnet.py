"""ImageNet ResNets as torchvision and Keras write them: names, and how to tell depth and widths from them.

timm's ResNets of the same design have torchvision's names.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transferlab.errors import UserError
from transferlab.weights import layouts
from transferlab.weights.names import fits, keras_layer, keras_norm, torch_layer, torch_norm
from transferlab.weights.names.vgg import REVERSED
from transferlab.weights.origin import CAFFE, IMAGENET, Origin, Shapes, Table

# The usual depth first: with few blocks several are the same.
DEPTHS = (50, 101, 152, 34, 18)
# What parameters do not show.
TORCHVISION = {'stride_on': '3x3', 'epsilon': 1e-5}
KERAS = {'stride_on': '1x1', 'epsilon': 1.001e-5, 'momentum': 0.99}
TableOf = Callable[[Mapping[str, Any]], Table]


def _layers(options: Mapping[str, Any]) -> Iterator[tuple[str, int, int, str]]:
  """(our stage, group, number within it, layer) of all blocks, in the order in which Keras has a block's layers."""
  from transferlab.networks.imagenet_resnet import BOTTLENECK, places

  depth = options.get('depth', 50)
  last = 3 if depth >= BOTTLENECK else 2
  for block, (group, within) in enumerate(places(depth, options.get('blocks')), 1):
    projects = not within and (group > 0 or last == 3)
    layers = [f'{kind}{number}' for number in range(1, last) for kind in ('conv', 'norm')]
    layers += ['project', f'conv{last}', 'project_norm', f'norm{last}'] if projects else [f'conv{last}', f'norm{last}']
    yield from ((f'block{block}', group, within, layer) for layer in layers)


def _conv(table: Table, biases: bool) -> Table:
  """A layer's table without the bias, where there are none."""
  return {path: entry for path, entry in table.items() if biases or not path.endswith('/bias')}


# ------------------------------------------------------------------------------------------------------- tables
def torchvision(options: Mapping[str, Any]) -> Table:
  """`conv1`, `bn1`, `layer1.0.conv1`, …, `layer1.0.downsample.0`, …, `fc`."""
  biases = options.get('conv_bias', False)
  names = {'project': 'downsample.0', 'project_norm': 'downsample.1', **{f'norm{n}': f'bn{n}' for n in (1, 2, 3)}}
  table = _conv(torch_layer('stem/conv', 'conv1', 'conv'), biases) | torch_norm('stem/norm', 'bn1')
  for stage, group, within, layer in _layers(options):
    ours, theirs = f'{stage}/{layer}', f'layer{group + 1}.{within}.{names.get(layer, layer)}'
    table |= torch_norm(ours, theirs) if 'norm' in layer else _conv(torch_layer(ours, theirs, 'conv'), biases)
  return table | torch_layer('head', 'fc', 'linear')


def keras(head: str, options: Mapping[str, Any]) -> Table:
  """`conv1_conv`, `conv1_bn`, `conv2_block1_1_conv`, …, `conv2_block1_0_conv`, …, and the head's name."""
  biases = options.get('conv_bias', False)
  table = _conv(keras_layer('stem/conv', 'conv1_conv', REVERSED), biases) | keras_norm('stem/norm', 'conv1_bn')
  for stage, group, within, layer in _layers(options):
    number = '0' if layer.startswith('project') else layer[-1]
    ours, theirs = f'{stage}/{layer}', f'conv{group + 2}_block{within + 1}_{number}'
    norm = 'norm' in layer
    table |= keras_norm(ours, f'{theirs}_bn') if norm else _conv(keras_layer(ours, f'{theirs}_conv'), biases)
  return table | keras_layer('head', head)


# ------------------------------------------------------------------------------------------------------ options
def _options(table: TableOf, convention: Mapping[str, Any], shapes: Shapes) -> dict[str, Any] | None:
  """The first options whose table the file fits.

  Args:
    convention: what the origin's networks have and parameters do not show.
  """
  from transferlab.networks.imagenet_resnet import BOTTLENECK

  first = table({'conv_bias': True, 'blocks': 1})
  width, inside = (_size(shapes, first[f'{path}/kernel'], -1) for path in ('stem/conv', 'block1/conv1'))
  if not width or not inside:
    return None
  for depth in DEPTHS:
    options = {'depth': depth, 'width': width, **_blocks(shapes, table, depth), **convention}
    options |= {'widening': max(inside // width, 1)} if depth >= BOTTLENECK else {'stride_on': '3x3'}
    options |= {'conv_bias': True} if first['stem/conv/bias'][0] in shapes else {}
    if fits(shapes, table(options), _kernels(options)):
      # What a grouped convolution (ResNeXt) takes is a part of the channels.
      grouped = _size(shapes, table(options)['block1/conv2/kernel'], -2) != inside
      return None if grouped else options
  return None


def _size(shapes: Shapes, entry: tuple[str, str], axis: int) -> int:
  """The size of one axis of a kernel in our layout; 0 where there is no such kernel."""
  try:
    return int(layouts.shape(tuple(shapes[entry[0]]), entry[1])[axis])
  except (KeyError, IndexError, UserError):
    return 0


def _blocks(shapes: Shapes, table: TableOf, depth: int) -> dict[str, int]:
  """The option `blocks`, where the file has not all that the depth has."""
  names = [name for path, (name, _) in table({'depth': depth}).items() if path.endswith('/conv1/kernel')]
  count = sum(name in shapes for name in names)
  return {'blocks': count} if 0 < count < len(names) else {}


def _kernels(options: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
  from transferlab.networks.imagenet_resnet import convolutions, places

  kernels = {'stem/conv/kernel': (7, options['width'])}
  settings = (options['depth'], options['width'], options.get('widening', 1), options['stride_on'])
  for block, place in enumerate(places(options['depth'], options.get('blocks')), 1):
    for number, (size, outputs, _) in enumerate(convolutions(*settings, *place), 1):
      kernels[f'block{block}/conv{number}/kernel'] = (size, outputs)
  return kernels


def _keras_options(head: str, shapes: Shapes) -> dict[str, Any] | None:
  """Keras has bottlenecks only. A file without a head is the newer Keras', though the older wrote the same."""
  if head != 'predictions' and f'{head}/kernel' not in shapes:
    return None
  options = _options(functools.partial(keras, head), KERAS, shapes)
  return options if options and 'widening' in options else None


def _keras_origin(name: str, head: str) -> Origin:
  return Origin(name, 'imagenet_resnet', functools.partial(_keras_options, head), functools.partial(keras, head), CAFFE)


def _stated(config: Mapping[str, Any]) -> dict[str, Any]:
  """Raises `UserError` for timm's ResNets of other designs, which have the same names (resnetaa50, resnetblur50)."""
  name, changed = str(config.get('architecture', '')), config.get('model_args')
  if changed or (name and not re.fullmatch(r'(wide_)?resnet\d+(_2)?', name)):
    raise UserError(f'config.json: {name!r} has the names of ResNets of torchvision, and computes otherwise')
  return {}


ORIGINS = (
  Origin(
    'torchvision',
    'imagenet_resnet',
    functools.partial(_options, torchvision, TORCHVISION),
    torchvision,
    IMAGENET,
    stated=_stated,
  ),
  _keras_origin('keras', 'predictions'),
  # What Keras 2 called the head when the published files were written.
  _keras_origin('keras2', 'probs'),
)
