"""Vision transformers in the npz files of vision_transformer (AugReg, Steiner et al. 2022) and big_vision.

Both use GELU by tanh, flax's default, though libraries that read these files often have the exact one.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from transferlab.weights.names import fits, keras_layer
from transferlab.weights.names.vit import placed_before, positions, sized
from transferlab.weights.origin import SYMMETRIC, Origin, Shapes, Table


@dataclasses.dataclass(frozen=True)
class Names:
  """What a program calls the layers: flax numbers them as they come.

  Attributes:
    placed: which tokens have positions.
  """

  position: str
  norms: tuple[str, str]
  attention: str
  mlp: str
  placed: str


AUGREG = Names(
  'Transformer/posembed_input/pos_embedding',
  ('LayerNorm_0', 'LayerNorm_2'),
  'MultiHeadDotProductAttention_1',
  'MlpBlock_3',
  'class',
)
BIG_VISION = Names(
  'pos_embedding', ('LayerNorm_0', 'LayerNorm_1'), 'MultiHeadDotProductAttention_0', 'MlpBlock_0', 'patches'
)
FIRST, POOL = 'Transformer/encoderblock_0/', 'MAPHead_0/'


def _norm(ours: str, theirs: str) -> Table:
  return {f'{ours}/{leaf}': (f'{theirs}/{leaf}', 'same') for leaf in ('scale', 'bias')}


def _attention(ours: str, theirs: str, heads: int) -> Table:
  """Queries, keys and values [in, heads, size], the output [heads, size, out]."""
  table: Table = {}
  for layer in ('query', 'key', 'value'):
    table[f'{ours}/{layer}/kernel'] = (f'{theirs}/{layer}/kernel', f'i h s -> i (h s), h={heads}')
    table[f'{ours}/{layer}/bias'] = (f'{theirs}/{layer}/bias', f'h s -> (h s), h={heads}')
  table[f'{ours}/out/kernel'] = (f'{theirs}/out/kernel', f'h s o -> (h s) o, h={heads}')
  return table | {f'{ours}/out/bias': (f'{theirs}/out/bias', 'same')}


def _mlp(ours: str, theirs: str) -> Table:
  return keras_layer(f'{ours}/up', f'{theirs}/Dense_0') | keras_layer(f'{ours}/down', f'{theirs}/Dense_1')


def table(names: Names, options: Mapping[str, Any]) -> Table:
  """All leaves of a vision transformer with these options."""
  from transferlab.networks.vit import SIZES

  size = SIZES[options.get('size', 'B')]
  depth, heads = options.get('depth') or size[1], options.get('heads') or size[2]
  found = keras_layer('embed/patch', 'embedding')
  if options.get('class_token', True):
    found['embed/class_token'] = ('cls', '1 1 d -> d')
  found |= positions(names.position, '1', options)
  for number in range(depth):
    ours, theirs = f'block{number + 1}', f'Transformer/encoderblock_{number}/'
    for index, norm in enumerate(names.norms, 1):
      found |= _norm(f'{ours}/norm{index}', theirs + norm)
    found |= _attention(f'{ours}/attention', theirs + names.attention, heads)
    found |= _mlp(f'{ours}/mlp', theirs + names.mlp)
  found |= _norm('pool/norm', 'Transformer/encoder_norm')
  if options.get('pool') == 'attention':
    found['pool/attention/probe'] = (f'{POOL}probe', '1 1 d -> d')
    found |= _attention('pool/attention', f'{POOL}MultiHeadDotProductAttention_0', heads)
    found |= _norm('pool/attention/norm', f'{POOL}LayerNorm_0') | _mlp('pool/attention/mlp', f'{POOL}MlpBlock_0')
  return found | keras_layer('head', 'head')


def _options(names: Names, shapes: Shapes) -> dict[str, Any] | None:
  kernel = shapes.get('embedding/kernel', ())
  query = shapes.get(f'{FIRST}{names.attention}/query/kernel', ())
  up = shapes.get(f'{FIRST}{names.mlp}/Dense_0/kernel', ())
  if (len(kernel), len(query), len(up)) != (4, 3, 2) or kernel[0] != kernel[1]:
    return None
  depth = len({match[0] for name in shapes if (match := re.match(r'Transformer/encoderblock_\d+/', name))})
  options = {**sized(int(kernel[3]), depth, int(query[1]), int(up[1])), 'activation': 'gelu_tanh'}
  options |= {} if kernel[0] == 16 else {'patch': int(kernel[0])}
  options |= {} if names.placed == 'class' else {'placed': names.placed}
  if 'cls' not in shapes:
    options |= {'class_token': False, 'pool': 'attention' if f'{POOL}probe' in shapes else 'mean'}
  return options if fits(shapes, table(names, options), {}) else None


def _input_shape(names: Names, options: Mapping[str, Any], shapes: Shapes) -> tuple[int, ...]:
  kernel, places = shapes['embedding/kernel'], shapes[names.position][1]
  side = math.isqrt(places - placed_before(options)) * kernel[0]
  return side, side, kernel[2]


ORIGINS = tuple(
  Origin(
    name,
    'vit',
    functools.partial(_options, names),
    functools.partial(table, names),
    SYMMETRIC,
    input_shape=functools.partial(_input_shape, names),
  )
  for name, names in (('augreg', AUGREG), ('big_vision', BIG_VISION))
)
