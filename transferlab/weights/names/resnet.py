"""CIFAR ResNets as two PyTorch collections write them: names, and how to tell depth, width and shortcut from them."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from transferlab.weights.names import fits, torch_layer, torch_norm
from transferlab.weights.origin import IMAGENET, Inputs, Origin, Shapes, Table

NOTE = '32 pixels, as they are'
AKAMASTER = Inputs(IMAGENET.shift, IMAGENET.scale, 32, NOTE)
CIFAR10 = Inputs((125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255), 32, NOTE)
CIFAR100 = Inputs((129.285, 124.0575, 112.4295), (68.1615, 65.382, 70.4055), 32, NOTE)


def _table(shortcut: str, head: str, options: Mapping[str, Any]) -> Table:
  """
  Args:
    shortcut: what the projection of a block is called.
    head: what the last layer is called.
  """
  blocks = (options.get('depth', 20) - 2) // 6
  table: Table = {'stem/conv/kernel': ('conv1.weight', 'conv'), **torch_norm('stem/norm', 'bn1')}
  for index in range(3 * blocks):
    group, within = divmod(index, blocks)
    ours, theirs = f'block{index + 1}', f'layer{group + 1}.{within}'
    for number in (1, 2):
      table[f'{ours}/conv{number}/kernel'] = (f'{theirs}.conv{number}.weight', 'conv')
      table |= torch_norm(f'{ours}/norm{number}', f'{theirs}.bn{number}')
    if options.get('shortcut', 'A') == 'B' and group and not within:
      table[f'{ours}/project/kernel'] = (f'{theirs}.{shortcut}.0.weight', 'conv')
      table |= torch_norm(f'{ours}/project_norm', f'{theirs}.{shortcut}.1')
  if options.get('features') is not None:
    table |= torch_layer('dense/linear', 'dense', 'linear')
  return table | torch_layer('head', head, 'linear')


def _options(table: Callable[[Mapping[str, Any]], Table], shortcut: str, shapes: Shapes) -> dict[str, Any] | None:
  stem = shapes.get('conv1.weight', ())
  blocks = len([name for name in shapes if re.fullmatch(r'layer1\.\d+\.conv1\.weight', name)])
  if len(stem) != 4 or not blocks:
    return None
  width, projects = int(stem[0]), f'layer2.0.{shortcut}.0.weight' in shapes
  options: dict[str, Any] = {'depth': 6 * blocks + 2, 'width': width, 'shortcut': 'B' if projects else 'A'}
  options |= {'features': int(shapes['dense.weight'][0])} if 'dense.weight' in shapes else {}
  kernels = {f'block{n + 1}/conv{c}/kernel': (3, width * 2 ** (n // blocks)) for n in range(3 * blocks) for c in (1, 2)}
  return options if fits(shapes, table(options), {'stem/conv/kernel': (3, width), **kernels}) else None


def _origin(name: str, shortcut: str, head: str, inputs: Inputs, classes: Callable[[int], bool]) -> Origin:
  table = functools.partial(_table, shortcut, head)

  def options(shapes: Shapes) -> dict[str, Any] | None:
    outputs = shapes.get(f'{head}.bias', (0,))[0]
    return _options(table, shortcut, shapes) if classes(outputs) else None

  return Origin(name, 'resnet', options, table, inputs)


# chenyaofo's were trained on images less the data set's own mean, which the number of classes tells.
ORIGINS = (
  _origin('akamaster', 'shortcut', 'linear', AKAMASTER, lambda outputs: True),
  _origin('chenyaofo', 'downsample', 'fc', CIFAR100, lambda outputs: outputs == 100),
  _origin('chenyaofo', 'downsample', 'fc', CIFAR10, lambda outputs: outputs != 100),
)
