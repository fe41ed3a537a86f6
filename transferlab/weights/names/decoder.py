"""GPT-2 and LLaMA as transformers writes them: names, and how to tell sizes, and what a model is for, from them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from transferlab.errors import UserError
from transferlab.weights.names import depth_of, fits, stated_options, torch_layer, torch_layer_norm
from transferlab.weights.origin import Origin, Shapes, Table

SIZE = 64  # features of a head, in GPT-2
UNSTATED = f'without its config.json: heads of {SIZE} features, and the usual epsilon and activation, are assumed'
UNSTATED_LLAMA = f'{UNSTATED}, and the base 10,000 of rotary positions'
LENGTH = 128  # of texts for which a network with rotary positions is built
LLAMA = {'norm': 'rms', 'activation': 'silu', 'gated': True, 'biases': False, 'rotary': 1e4, 'positions': None}
# transformers' config.json: its key, and our option.
STATED_GPT2 = {'n_head': 'heads', 'layer_norm_epsilon': 'epsilon', 'activation_function': 'activation'}
STATED_LLAMA = {'num_attention_heads': 'heads', 'rms_norm_eps': 'epsilon', 'hidden_act': 'activation'}


def _gpt2(prefix: str, options: Mapping[str, Any]) -> Table:
  """Kernels stand as [inputs, outputs]; those of query, key and value side by side."""
  table: Table = {
    'embed/embedding': (f'{prefix}wte.weight', 'same'),
    'embed/positions': (f'{prefix}wpe.weight', 'same'),
  }
  for number in range(options.get('depth', 12)):
    ours, theirs = f'block{number + 1}', f'{prefix}h.{number}'
    for index, part in enumerate(('query', 'key', 'value')):
      table[f'{ours}/attention/{part}/kernel'] = (f'{theirs}.attn.c_attn.weight', f'i o -> i o, part=o:{index}/3')
      table[f'{ours}/attention/{part}/bias'] = (f'{theirs}.attn.c_attn.bias', f'o -> o, part=o:{index}/3')
    for path, name in (('attention/out', 'attn.c_proj'), ('mlp/up', 'mlp.c_fc'), ('mlp/down', 'mlp.c_proj')):
      table |= torch_layer(f'{ours}/{path}', f'{theirs}.{name}', 'same')
    table |= torch_layer_norm(f'{ours}/norm1', f'{theirs}.ln_1') | torch_layer_norm(f'{ours}/norm2', f'{theirs}.ln_2')
  return table | torch_layer_norm('norm/layer', f'{prefix}ln_f') | _head(options)


def _head(options: Mapping[str, Any]) -> Table:
  """None, where it is tied to the embedding."""
  if options.get('pool', 'last') != 'none':
    return {'head/kernel': ('score.weight', 'linear')}
  return {} if options.get('tied', True) else {'head/kernel': ('lm_head.weight', 'linear')}


def _llama(prefix: str, options: Mapping[str, Any]) -> Table:
  table: Table = {'embed/embedding': (f'{prefix}embed_tokens.weight', 'same')}
  for number in range(options.get('depth', 12)):
    ours, theirs = f'block{number + 1}', f'{prefix}layers.{number}'
    for part, name in (('query', 'q'), ('key', 'k'), ('value', 'v'), ('out', 'o')):
      table[f'{ours}/attention/{part}/kernel'] = (f'{theirs}.self_attn.{name}_proj.weight', 'linear')
    for part in ('gate', 'up', 'down'):
      table[f'{ours}/mlp/{part}/kernel'] = (f'{theirs}.mlp.{part}_proj.weight', 'linear')
    table[f'{ours}/norm1/scale'] = (f'{theirs}.input_layernorm.weight', 'same')
    table[f'{ours}/norm2/scale'] = (f'{theirs}.post_attention_layernorm.weight', 'same')
  return {**table, 'norm/layer/scale': (f'{prefix}norm.weight', 'same'), **_head(options)}


def _gpt2_options(table: Callable[[Mapping[str, Any]], Table], shapes: Shapes) -> dict[str, Any] | None:
  found = _sizes(table, shapes, r'.*h\.\d+\.mlp\.c_proj\.weight')
  names = {path: name for path, (name, _) in table({'depth': 1}).items()}
  places, up = (shapes.get(names[path], ()) for path in ('embed/positions', 'block1/mlp/up/kernel'))
  if found is None or not len(places) == len(up) == 2:
    return None
  usual = {'positions': int(places[0]), 'hidden': int(up[1]), 'activation': 'gelu_tanh', 'epsilon': 1e-5}
  options = {**found, **usual, **({'tied': True} if found['pool'] == 'none' else {})}
  return options if fits(shapes, table(options), {}) else None


def _llama_options(table: Callable[[Mapping[str, Any]], Table], shapes: Shapes) -> dict[str, Any] | None:
  found = _sizes(table, shapes, r'.*layers\.\d+\.mlp\.down_proj\.weight')
  names = {path: name for path, (name, _) in table({'depth': 1}).items()}
  up, key = (shapes.get(names[f'block1/{path}/kernel'], ()) for path in ('mlp/up', 'attention/key'))
  if found is None or not len(up) == len(key) == 2:
    return None
  options = {**found, **LLAMA, 'hidden': int(up[0]), 'epsilon': 1e-6}
  options |= {'tied': 'lm_head.weight' not in shapes} if found['pool'] == 'none' else {}
  # Of every head of keys as many features as heads of queries have; how many, the config.json says.
  options['groups'] = max(int(key[0]) * options['heads'] // options['width'], 1)
  return options if fits(shapes, table(options), {}) else None


def _sizes(table: Callable[[Mapping[str, Any]], Table], shapes: Shapes, blocks: str) -> dict[str, Any] | None:
  """Sizes that both families show, and whether it is a classifier or a language model."""
  words = shapes.get(table({'depth': 1})['embed/embedding'][0], ())
  if len(words) != 2:
    return None
  return {
    'vocabulary': int(words[0]),
    'width': int(words[1]),
    'depth': depth_of(shapes, blocks),
    'heads': max(int(words[1]) // SIZE, 1),
    'pool': 'last' if 'score.weight' in shapes else 'none',
  }


def _stated_gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
  found = stated_options(config, ('gpt2',), STATED_GPT2)
  if config.get('scale_attn_by_inverse_layer_idx') or not config.get('scale_attn_weights', True):
    raise UserError('config.json: attention is scaled by 1 / √(features of a head) only, and not as it says')
  if config.get('tie_word_embeddings') is False:
    raise UserError('config.json: tie_word_embeddings=False, and the head of GPT-2 has the embedding for weights')
  return found


def _stated_llama(config: Mapping[str, Any]) -> dict[str, Any]:
  """Raises `UserError` for rotary positions that are scaled in ways ours are not, or heads of another size."""
  found = stated_options(config, ('llama', 'mistral'), STATED_LLAMA)
  rope = config.get('rope_parameters') or config.get('rope_scaling')
  rope = rope if isinstance(rope, Mapping) else {}
  found |= _scaled(rope)
  heads, width, size = (config.get(key) for key in ('num_attention_heads', 'hidden_size', 'head_dim'))
  if size and heads and width and size * heads != width:
    raise UserError(f'config.json: head_dim={size}, and {heads} heads of this network have {width // heads} features')
  if config.get('tie_word_embeddings') is False:
    found['tied'] = False  # or the head is missing
  if heads:
    found['groups'] = config.get('num_key_value_heads') or heads
  return found | {'rotary': float(rope.get('rope_theta', config.get('rope_theta', 1e4)))}


def _scaled(rope: Mapping[str, Any]) -> dict[str, Any]:
  """Options of rotary positions for longer texts. Raises `UserError` for other ways than linear and Llama 3's."""
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind not in ('default', 'linear', 'llama3'):
    raise UserError(f'config.json: rotary positions of rope_type={kind!r}, and the network has default, linear, llama3')
  if kind == 'default':
    return {}
  bands = ('low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')
  wanted = ('factor', *(bands if kind == 'llama3' else ()))
  if missing := [key for key in wanted if not isinstance(rope.get(key), int | float)]:
    raise UserError(f'config.json: rotary positions of rope_type={kind!r} without numbers {", ".join(missing)}')
  found: dict[str, Any] = {'rotary_factor': float(rope['factor'])}
  return found | ({'rotary_bands': [float(rope[key]) for key in bands]} if kind == 'llama3' else {})


def _input_shape(options: Mapping[str, Any], shapes: Shapes) -> tuple[int, ...]:
  return (options['positions'] or LENGTH,)


def _origins(*, headed: bool) -> list[Origin]:
  """GPT-2 and LLaMA, as they stand within a model with a head, or by themselves."""
  gpt2 = functools.partial(_gpt2, 'transformer.' if headed else '')
  llama = functools.partial(_llama, 'model.' if headed else '')
  return [
    Origin(
      'transformers', 'decoder', functools.partial(_gpt2_options, gpt2), gpt2, None, stated=_stated_gpt2,
      states=('heads', 'epsilon', 'activation'),
      # Files that were not saved by safetensors hold the embedding again, as the head.
      valueless=r'.*h\.\d+\.attn\.(masked_)?bias|lm_head\.weight', input_shape=_input_shape, unstated=UNSTATED,
      exported=headed,
    ),
    Origin(
      'transformers', 'decoder', functools.partial(_llama_options, llama), llama, None, stated=_stated_llama,
      states=('heads', 'epsilon', 'activation', 'rotary', 'rotary_factor', 'rotary_bands'),
      valueless=r'.*rotary_emb\.inv_freq', input_shape=_input_shape, unstated=UNSTATED_LLAMA, exported=headed,
    ),
  ]  # fmt: skip


ORIGINS = (*_origins(headed=True), *_origins(headed=False))
