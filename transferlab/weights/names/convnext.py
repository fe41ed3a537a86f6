"""ConvNeXt as torchvision and timm write it: names, layouts, and how to tell depths and widths from them."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transferlab.weights.names import fits, torch_layer, torch_layer_norm
from transferlab.weights.origin import IMAGENET, Inputs, Origin, Shapes, Table

TORCHVISION = Inputs(IMAGENET.shift, IMAGENET.scale, 224, 'shorter side 230 to 236, centre 224, bilinear')
TIMM = Inputs(IMAGENET.shift, IMAGENET.scale, 224, 'shorter side 256, centre 224, bicubic')
# Our layers, with the layout of each kernel; and what the two call them.
LAYERS = {'depthwise': 'conv', 'norm': 'same', 'expand': 'linear', 'project': 'linear'}
TORCHVISION_LAYERS = {'depthwise': 'block.0', 'norm': 'block.2', 'expand': 'block.3', 'project': 'block.5'}
TIMM_LAYERS = {'depthwise': 'conv_dw', 'norm': 'norm', 'expand': 'mlp.fc1', 'project': 'mlp.fc2'}
TableOf = Callable[[Mapping[str, Any]], Table]


def _blocks(options: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
  """(our stage, group, number within it) of each block."""
  depths = options.get('depths', [3, 3, 9, 3])
  places = [(group, within) for group, depth in enumerate(depths) for within in range(depth)]
  return ((f'block{number}', *place) for number, place in enumerate(places, 1))


def _block(ours: str, theirs: str, names: Mapping[str, str]) -> Table:
  table: Table = {}
  for layer, layout in LAYERS.items():
    path, name = f'{ours}/{layer}', f'{theirs}.{names[layer]}'
    table |= torch_layer_norm(path, name) if layer == 'norm' else torch_layer(path, name, layout)
  return table


def _downsample(ours: str, theirs: str) -> Table:
  return torch_layer_norm(f'{ours}/downsample_norm', f'{theirs}.0') | torch_layer(
    f'{ours}/downsample', f'{theirs}.1', 'conv'
  )


def torchvision(options: Mapping[str, Any]) -> Table:
  """`features.0.0`, `features.1.0.block.0`, …, `classifier.2`; what halves the maps has numbers too."""
  table = torch_layer('stem/conv', 'features.0.0', 'conv') | torch_layer_norm('stem/norm', 'features.0.1')
  for ours, group, within in _blocks(options):
    theirs = f'features.{2 * group + 1}.{within}'
    table |= _downsample(ours, f'features.{2 * group}') if group and not within else {}
    table |= _block(ours, theirs, TORCHVISION_LAYERS)
    table[f'{ours}/layer_scale'] = (f'{theirs}.layer_scale', 'c 1 1 -> c')
  return table | torch_layer_norm('pool/norm', 'classifier.0') | torch_layer('head', 'classifier.2', 'linear')


def timm(options: Mapping[str, Any]) -> Table:
  """`stem.0`, `stages.0.blocks.0.conv_dw`, …, `stages.1.downsample.0`, …, `head.norm`, `head.fc`."""
  table = torch_layer('stem/conv', 'stem.0', 'conv') | torch_layer_norm('stem/norm', 'stem.1')
  for ours, group, within in _blocks(options):
    theirs = f'stages.{group}.blocks.{within}'
    table |= _downsample(ours, f'stages.{group}.downsample') if group and not within else {}
    table |= _block(ours, theirs, TIMM_LAYERS)
    table[f'{ours}/layer_scale'] = (f'{theirs}.gamma', 'same')
  return table | torch_layer_norm('pool/norm', 'head.norm') | torch_layer('head', 'head.fc', 'linear')


def _options(table: TableOf, scale: str, shapes: Shapes) -> dict[str, Any] | None:
  """
  Args:
    scale: `scale.format(group, 2 * group + 1, number)` is the name of a block's layer scale.
  """
  depths, widths = [], []
  for group in itertools.count():
    names = (scale.format(group, 2 * group + 1, number) for number in itertools.count())
    found = list(itertools.takewhile(shapes.__contains__, names))
    if not found:
      break
    depths.append(len(found))
    widths.append((*map(int, shapes[found[0]]), 0)[0])
  if not depths:
    return None
  kernels = {'stem/conv/kernel': (4, widths[0])}
  for ours, group, within in _blocks({'depths': depths}):
    kernels[f'{ours}/depthwise/kernel'] = (7, widths[group])
    kernels |= {f'{ours}/downsample/kernel': (2, widths[group])} if group and not within else {}
  options = {'depths': depths, 'widths': widths}
  return options if fits(shapes, table(options), kernels) else None


ORIGINS = (
  Origin(
    'torchvision',
    'convnext',
    functools.partial(_options, torchvision, 'features.{1}.{2}.layer_scale'),
    torchvision,
    TORCHVISION,
  ),
  Origin('timm', 'convnext', functools.partial(_options, timm, 'stages.{0}.blocks.{2}.gamma'), timm, TIMM),
)
