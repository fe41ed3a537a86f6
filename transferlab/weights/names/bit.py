"""Big Transfer's networks as their authors' .npz files and as timm write them: names, and how to tell depth and width.

timm standardises kernels with 10⁻⁸ where the authors have 10⁻¹⁰: that is far below a kernel's variance.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transferlab.weights.names import fits
from transferlab.weights.origin import SYMMETRIC, Origin, Shapes, Table

# The usual depth first: with few blocks several are the same.
DEPTHS = (50, 101, 152)
TableOf = Callable[[Mapping[str, Any]], Table]


def _blocks(options: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
  """(our stage, group, number within it) of each block."""
  from transferlab.networks.imagenet_resnet import places

  for number, place in enumerate(places(options.get('depth', 50), options.get('blocks')), 1):
    yield (f'block{number}', *place)


def _norm(ours: str, theirs: str, scale: str, bias: str) -> Table:
  return {f'{ours}/scale': (f'{theirs}{scale}', 'same'), f'{ours}/bias': (f'{theirs}{bias}', 'same')}


def published(options: Mapping[str, Any]) -> Table:
  """`resnet/root_block/…`, `resnet/block1/unit01/a/…`, …, `resnet/head/conv2d/…`."""
  kernel, norm = 'standardized_conv2d/kernel', functools.partial(_norm, scale='/gamma', bias='/beta')
  table: Table = {'stem/conv/kernel': (f'resnet/root_block/{kernel}', 'same')}
  for ours, group, within in _blocks(options):
    theirs = f'resnet/block{group + 1}/unit{within + 1:02d}'
    for number, letter in enumerate('abc', 1):
      table[f'{ours}/conv{number}/kernel'] = (f'{theirs}/{letter}/{kernel}', 'same')
      table |= norm(f'{ours}/norm{number}', f'{theirs}/{letter}/group_norm')
    if not within:
      table[f'{ours}/project/kernel'] = (f'{theirs}/a/proj/{kernel}', 'same')
  table |= norm('pool/norm', 'resnet/group_norm')
  head = 'resnet/head/conv2d'
  return table | {'head/kernel': (f'{head}/kernel', '1 1 i o -> i o'), 'head/bias': (f'{head}/bias', 'same')}


def timm(options: Mapping[str, Any]) -> Table:
  """`stem.conv`, `stages.0.blocks.0.conv1`, …, `norm`, `head.fc`."""
  norm = functools.partial(_norm, scale='.weight', bias='.bias')
  table: Table = {'stem/conv/kernel': ('stem.conv.weight', 'conv')}
  for ours, group, within in _blocks(options):
    theirs = f'stages.{group}.blocks.{within}'
    for number in (1, 2, 3):
      table[f'{ours}/conv{number}/kernel'] = (f'{theirs}.conv{number}.weight', 'conv')
      table |= norm(f'{ours}/norm{number}', f'{theirs}.norm{number}')
    if not within:
      table[f'{ours}/project/kernel'] = (f'{theirs}.downsample.conv.weight', 'conv')
  table |= norm('pool/norm', 'norm')
  return table | {'head/kernel': ('head.fc.weight', 'o i 1 1 -> i o'), 'head/bias': ('head.fc.bias', 'same')}


def _options(table: TableOf, shapes: Shapes) -> dict[str, Any] | None:
  """The first options whose table the file fits."""
  from transferlab.networks.bit import NORM_GROUPS

  width = (*shapes.get(table({})['block1/norm1/scale'][0], ()), 0)[0]
  if not width or width % NORM_GROUPS:
    return None
  for depth in DEPTHS:
    names = [name for path, (name, _) in table({'depth': depth}).items() if path.endswith('/conv1/kernel')]
    blocks = sum(name in shapes for name in names)
    options = {'depth': depth, 'width': int(width), **({'blocks': blocks} if 0 < blocks < len(names) else {})}
    kernels = {'stem/conv/kernel': (7, width)}
    for ours, group, _ in _blocks(options):
      inside = width * 2**group
      kernels |= {f'{ours}/conv{n}/kernel': kernel for n, kernel in enumerate([(1, inside), (3, inside)], 1)}
    if fits(shapes, table(options), kernels):
      return options
  return None


ORIGINS = (
  Origin('bit', 'bit', functools.partial(_options, published), published, SYMMETRIC),
  Origin('timm', 'bit', functools.partial(_options, timm), timm, SYMMETRIC),
)
