"""MobileNet v2 as torchvision, timm and Keras write it: names, layouts, and how to tell the width from them."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transferlab.weights.names import fits, keras_layer, keras_norm, torch_layer, torch_norm
from transferlab.weights.names.mobilenet import DEPTHWISE
from transferlab.weights.origin import IMAGENET, SYMMETRIC, Inputs, Origin, Shapes, Table

TIMM = Inputs(IMAGENET.shift, IMAGENET.scale, 224, 'shorter side 256, centre 224, bicubic')
# What parameters do not show.
TORCH_CONVENTION = {'padding': 'both', 'epsilon': 1e-5}
KERAS_CONVENTION = {'padding': 'same', 'epsilon': 1e-3, 'momentum': 0.999}
# Blocks of the same width belong to one group in timm's names.
GROUPS = (1, 2, 3, 4, 3, 3, 1)
PARTS = ('expand', 'depthwise', 'project')
TableOf = Callable[[Mapping[str, Any]], Table]


def _parts(options: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
  """(number of the block, layer) of all blocks; the first one does not expand."""
  for number in range(1, options.get('blocks', 17) + 1):
    yield from ((number, part) for part in PARTS[0 if number > 1 else 1 :])


def _torch_pair(ours: str, conv: str, norm: str) -> Table:
  return {f'{ours}/kernel': (f'{conv}.weight', 'conv'), **torch_norm(f'{ours}_norm', norm)}


def _whole(options: Mapping[str, Any]) -> bool:
  return options.get('blocks', 17) == 17


# ------------------------------------------------------------------------------------------------------- tables
def torchvision(options: Mapping[str, Any]) -> Table:
  """`features.0.0`, …, `features.1.conv.0.0`, …, `features.18.0`, `classifier.1`."""
  table: Table = {'stem/conv/kernel': ('features.0.0.weight', 'conv'), **torch_norm('stem/norm', 'features.0.1')}
  for number, part in _parts(options):
    place = PARTS.index(part) - (number == 1)
    theirs = f'features.{number}.conv.{place}'
    # The last one has no activation, and is no sequence of its own.
    names = (theirs, f'features.{number}.conv.{place + 1}') if part == 'project' else (f'{theirs}.0', f'{theirs}.1')
    table |= _torch_pair(f'block{number}/{part}', *names)
  if _whole(options):
    table |= {'last/conv/kernel': ('features.18.0.weight', 'conv'), **torch_norm('last/norm', 'features.18.1')}
  return table | torch_layer('head', 'classifier.1', 'linear')


def timm(options: Mapping[str, Any]) -> Table:
  """`conv_stem`, `bn1`, `blocks.0.0.conv_dw`, …, `conv_head`, `bn2`, `classifier`."""
  table: Table = {'stem/conv/kernel': ('conv_stem.weight', 'conv'), **torch_norm('stem/norm', 'bn1')}
  places = [(group, within) for group, count in enumerate(GROUPS) for within in range(count)]
  for number, part in _parts(options):
    theirs, first = 'blocks.{}.{}'.format(*places[number - 1]), number == 1
    names = {'expand': 'conv_pw', 'depthwise': 'conv_dw', 'project': 'conv_pw' if first else 'conv_pwl'}
    table |= _torch_pair(
      f'block{number}/{part}', f'{theirs}.{names[part]}', f'{theirs}.bn{PARTS.index(part) + (0 if first else 1)}'
    )
  if _whole(options):
    table |= {'last/conv/kernel': ('conv_head.weight', 'conv'), **torch_norm('last/norm', 'bn2')}
  return table | torch_layer('head', 'classifier', 'linear')


def keras(depthwise: str, head: str, options: Mapping[str, Any]) -> Table:
  """`Conv1`, `bn_Conv1`, `expanded_conv_depthwise`, `block_1_expand`, …, `Conv_1`, and the head's name.

  Args:
    depthwise: what the kernel of a depthwise convolution is called.
  """
  table: Table = {'stem/conv/kernel': ('Conv1/kernel', 'same'), **keras_norm('stem/norm', 'bn_Conv1')}
  for number, part in _parts(options):
    ours, theirs = f'block{number}/{part}', f'{"expanded_conv" if number == 1 else f"block_{number - 1}"}_{part}'
    deep = part == 'depthwise'
    table[f'{ours}/kernel'] = (f'{theirs}/{depthwise}', DEPTHWISE) if deep else (f'{theirs}/kernel', 'same')
    table |= keras_norm(f'{ours}_norm', f'{theirs}_BN')
  if _whole(options):
    table |= {'last/conv/kernel': ('Conv_1/kernel', 'same'), **keras_norm('last/norm', 'Conv_1_bn')}
  return table | keras_layer('head', head)


# ------------------------------------------------------------------------------------------------------ options
def _options(table: TableOf, convention: Mapping[str, Any], shapes: Shapes) -> dict[str, Any] | None:
  """The first options whose table the file fits.

  Args:
    convention: what the origin's networks have and parameters do not show.
  """
  from transferlab.networks.mobilenet_v2 import BLOCKS

  named = table({})
  present = [n for n in range(1, len(BLOCKS) + 1) if named[f'block{n}/project/kernel'][0] in shapes]
  options: dict[str, Any] = dict(convention)
  options |= {'blocks': len(present)} if 0 < len(present) < len(BLOCKS) else {}
  if not present or present[-1] != len(present):
    return None
  channels = (*shapes.get(named[f'block{present[-1]}/project_norm/scale'][0], ()), 0)[0]
  for width in _widths(channels, BLOCKS[present[-1] - 1][0]):
    if fits(shapes, table(options), _kernels(width, len(present))):
      return {'width': width, **options}
  return None


def _kernels(width: float, blocks: int) -> dict[str, tuple[int, int]]:
  from transferlab.networks.mobilenet_v2 import BLOCKS, EXPANSION, STEM, last_channels, rounded

  inputs = rounded(STEM * width)
  kernels = {'stem/conv/kernel': (3, inputs)}
  for number, (filters, _) in enumerate(BLOCKS[:blocks], 1):
    inside = inputs * (EXPANSION if number > 1 else 1)
    kernels |= {f'block{number}/expand/kernel': (1, inside)} if number > 1 else {}
    inputs = rounded(filters * width)
    kernels |= {f'block{number}/depthwise/kernel': (3, inside), f'block{number}/project/kernel': (1, inputs)}
  return kernels | ({'last/conv/kernel': (1, last_channels(width))} if blocks == len(BLOCKS) else {})


def _widths(channels: int, filters: int) -> Iterator[float]:
  """Multipliers that may make so many channels of so many filters, the roundest first."""
  from transferlab.networks.mobilenet_v2 import rounded

  seen = set()
  for parts in (4, 20, 100, 1000):
    low, high = (max(channels + margin, 0) / filters * parts for margin in (-8, 8))
    for width in (count / parts for count in range(max(math.floor(low), 1), math.ceil(high) + 1)):
      if width not in seen and rounded(filters * width) == channels:
        seen.add(width)
        yield width


def _keras_origin(name: str, depthwise: str, head: str) -> Origin:
  table = functools.partial(keras, depthwise, head)

  def options(shapes: Shapes) -> dict[str, Any] | None:
    # A file without a head is told by the rest of its names alone.
    return _options(table, KERAS_CONVENTION, shapes) if head == 'predictions' or f'{head}/kernel' in shapes else None

  return Origin(name, 'mobilenet_v2', options, table, SYMMETRIC)


def _torch_origin(name: str, table: TableOf, inputs: Inputs) -> Origin:
  return Origin(name, 'mobilenet_v2', functools.partial(_options, table, TORCH_CONVENTION), table, inputs)


# Keras 3 calls every kernel 'kernel'; Keras 2, which wrote the published files, did not, and had two names of the head.
ORIGINS = (
  _torch_origin('torchvision', torchvision, IMAGENET),
  _torch_origin('timm', timm, TIMM),
  _keras_origin('keras', 'kernel', 'predictions'),
  _keras_origin('keras2', 'depthwise_kernel', 'predictions'),
  _keras_origin('keras2', 'depthwise_kernel', 'Logits'),
)
