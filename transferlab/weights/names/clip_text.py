"""The text towers of CLIP and SigLIP as transformers writes them; their image towers are in vit.py.

CLIP reads a text up to its last token, which answers for it. SigLIP reads every text filled up to the number of
positions, sees all of it at once, and the last place answers.
"""

import functools
from collections.abc import Mapping
from typing import Any

from transferlab.weights.names import depth_of, fits, stated_options, torch_layer, torch_layer_norm
from transferlab.weights.origin import Origin, Shapes, Table

SIZE = 64  # features of a head, but in the largest of SigLIP
HEADS = {1152: 16}
STATED = {'num_attention_heads': 'heads', 'layer_norm_eps': 'epsilon', 'hidden_act': 'activation'}
UNSTATED = f'without its config.json heads of {SIZE} features, and the usual epsilon and activation, are assumed'
IMAGES = r'vision_model\..*|visual_projection\..*|logit_scale|logit_bias'
PREFIX = 'text_model.'
LAYERS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'out'}
FIXED: dict[str, dict[str, Any]] = {
  'clip': {'activation': 'quick_gelu', 'epsilon': 1e-5},
  'siglip': {'activation': 'gelu_tanh', 'epsilon': 1e-6, 'causal': False, 'head_bias': True},
}


def _table(prefix: str, head: str, options: Mapping[str, Any]) -> Table:
  table: Table = {
    'embed/embedding': (f'{prefix}embeddings.token_embedding.weight', 'same'),
    'embed/positions': (f'{prefix}embeddings.position_embedding.weight', 'same'),
  }
  for number in range(options.get('depth', 12)):
    ours, theirs = f'block{number + 1}', f'{prefix}encoder.layers.{number}'
    for part, name in LAYERS.items():
      table |= torch_layer(f'{ours}/attention/{part}', f'{theirs}.self_attn.{name}_proj', 'linear')
    table |= torch_layer(f'{ours}/mlp/up', f'{theirs}.mlp.fc1', 'linear')
    table |= torch_layer(f'{ours}/mlp/down', f'{theirs}.mlp.fc2', 'linear')
    for norm in ('1', '2'):
      table |= torch_layer_norm(f'{ours}/norm{norm}', f'{theirs}.layer_norm{norm}')
  table |= torch_layer_norm('norm/layer', f'{prefix}final_layer_norm')
  table['head/kernel'] = (f'{head}.weight', 'linear')
  return table | ({'head/bias': (f'{head}.bias', 'same')} if options.get('head_bias', False) else {})


def _options(name: str, prefix: str, head: str, shapes: Shapes) -> dict[str, Any] | None:
  words = shapes.get(f'{prefix}embeddings.token_embedding.weight', ())
  places = shapes.get(f'{prefix}embeddings.position_embedding.weight', ())
  up = shapes.get(f'{prefix}encoder.layers.0.mlp.fc1.weight', ())
  if not len(words) == len(places) == len(up) == 2 or (name == 'siglip') != (f'{head}.bias' in shapes):
    return None
  width = int(words[1])
  options = {
    'vocabulary': int(words[0]),
    'width': width,
    'depth': depth_of(shapes, r'.*encoder\.layers\.\d+\.mlp\.fc2\.weight'),
    'heads': HEADS.get(width) or max(width // SIZE, 1),
    'hidden': int(up[0]),
    'positions': int(places[0]),
    **FIXED[name],
  }
  return options if fits(shapes, _table(prefix, head, options), {}) else None


def _stated(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
  """What transformers' config.json says; that of both towers has a part for texts."""
  part = config.get('text_config')
  kinds = (f'{name}_text_model', name)
  return stated_options(part if isinstance(part, Mapping) else config, kinds, STATED)


def _input_shape(options: Mapping[str, Any], shapes: Shapes) -> tuple[int, ...]:
  return (options['positions'],)


def _origin(name: str, prefix: str, head: str) -> Origin:
  return Origin(
    name, 'decoder', functools.partial(_options, name, prefix, head), functools.partial(_table, prefix, head), None,
    valueless=r'.*position_ids', others=IMAGES, stated=functools.partial(_stated, name),
    states=('heads', 'epsilon', 'activation'), input_shape=_input_shape, unstated=UNSTATED,
  )  # fmt: skip


ORIGINS = (
  _origin('clip', PREFIX, 'text_projection'),
  _origin('clip', '', 'text_projection'),
  _origin('siglip', PREFIX, f'{PREFIX}head'),
  _origin('siglip', '', 'head'),
)
