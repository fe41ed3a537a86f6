"""CIFAR ResNets as two PyTorch collections write them: names, and how to tell depth, width and shortcut from them."""

import functools
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from transferlab.weights.names import fits, torch_layer, torch_norm
from transferlab.weights.origin import IMAGENET, Inputs, Origin, Shapes, Table

SIZE = 32
NOTE = '32 pixels, as they are'
AKAMASTER = Inputs(IMAGENET.shift, IMAGENET.scale, SIZE, NOTE)
CIFAR10 = Inputs((125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255), SIZE, NOTE)
CIFAR100 = Inputs((129.285, 124.0575, 112.4295), (68.1615, 65.382, 70.4055), SIZE, NOTE)
DOUBT = 'which images it was trained on is not known'


def _table(shortcut: str, head: str, options: Mapping[str, Any]) -> Table:
  """
  Args:
    shortcut: what the projection of a block is called.
    head: what the last layer is called.
  """
  blocks = (options.get('depth', 20) - 2) // 6
  table: Table = {'stem/conv/kernel': ('conv1.weight', 'conv'), **torch_norm('stem/norm', 'bn1')}
  for index in range(options.get('blocks') or 3 * blocks):
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
  """All blocks must be there: the first ones of a deeper network could be those of any depth."""
  stem = shapes.get('conv1.weight', ())
  blocks = len([name for name in shapes if re.fullmatch(r'layer1\.\d+\.conv1\.weight', name)])
  if len(stem) != 4 or not blocks:
    return None
  width, projects = int(stem[0]), f'layer2.0.{shortcut}.0.weight' in shapes
  options: dict[str, Any] = {'depth': 6 * blocks + 2, 'width': width, 'shortcut': 'B' if projects else 'A'}
  dense = shapes.get('dense.weight', ())
  options |= {'features': int(dense[0])} if dense else {}
  kernels = {f'block{n + 1}/conv{c}/kernel': (3, width * 2 ** (n // blocks)) for n in range(3 * blocks) for c in (1, 2)}
  return options if fits(shapes, table(options), {'stem/conv/kernel': (3, width), **kernels}) else None


def _origins(name: str, shortcut: str, head: str, published: Mapping[int, Inputs]) -> list[Origin]:
  """
  Args:
    published: the images of each published data set, by its number of classes, which tells it.
  """
  table = functools.partial(_table, shortcut, head)

  def options(wanted: Callable[[int], bool], shapes: Shapes) -> dict[str, Any] | None:
    outputs = (*shapes.get(f'{head}.bias', ()), 0)[0]
    return _options(table, shortcut, shapes) if wanted(outputs) else None

  def origin(wanted: Callable[[int], bool], inputs: Inputs | None, doubt: str = '') -> Origin:
    return Origin(name, 'resnet', functools.partial(options, wanted), table, inputs, size=SIZE, doubt=doubt)

  known = [origin(functools.partial(operator.eq, classes), inputs) for classes, inputs in published.items()]
  return [*known, origin(lambda outputs: outputs not in published, None, DOUBT)]


ORIGINS = (
  *_origins('akamaster', 'shortcut', 'linear', {10: AKAMASTER}),
  *_origins('chenyaofo', 'downsample', 'fc', {10: CIFAR10, 100: CIFAR100}),
)
