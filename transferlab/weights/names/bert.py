"""BERT, DistilBERT and RoBERTa as transformers writes them: names, and how to tell sizes from them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from transferlab.errors import UserError
from transferlab.weights.names import depth_of, fits, stated_options, torch_layer
from transferlab.weights.origin import Origin, Shapes, Table

SIZE = 64  # features of a head, in all published sizes but the smallest
UNSTATED = f'without its config.json: heads of {SIZE} features, and the usual epsilon and activation, are assumed'
# transformers' config.json: its key, and our option.
STATED = {'num_attention_heads': 'heads', 'layer_norm_eps': 'epsilon', 'hidden_act': 'activation'}
# Tasks that pretrained weights were made for, and counts that are no weights.
OTHERS = r'cls\..*|lm_head\..*|qa_outputs\..*|vocab_(transform|layer_norm|projector)\..*'
# The head of a classifier of each token (…ForTokenClassification), which stands behind no pooling.
TOKENS = r'classifier\.(weight|bias)'
VALUELESS = r'.*embeddings\.(position_ids|token_type_ids)'


def _norm(ours: str, theirs: str, old: bool) -> Table:
  """A layer normalisation; `old`: as files of 2018 and 2019 have it."""
  scale, bias = ('gamma', 'beta') if old else ('weight', 'bias')
  return {f'{ours}/scale': (f'{theirs}.{scale}', 'same'), f'{ours}/bias': (f'{theirs}.{bias}', 'same')}


def _embed(prefix: str, options: Mapping[str, Any], old: bool) -> Table:
  names = {'embedding': 'word', 'positions': 'position', 'kinds': 'token_type'}
  if not options.get('kinds', 2):
    del names['kinds']
  table = {f'embed/{ours}': (f'{prefix}embeddings.{name}_embeddings.weight', 'same') for ours, name in names.items()}
  return table | _norm('embed/norm', f'{prefix}embeddings.LayerNorm', old)


def _bert(prefix: str, dense: str, head: str, old: bool, options: Mapping[str, Any]) -> Table:
  """
  Args:
    dense, head: what the dense layer behind the pooling, and the last layer, are called.
  """
  table = _embed(prefix, options, old)
  for number in range(options.get('depth', 12)):
    ours, theirs = f'block{number + 1}', f'{prefix}encoder.layer.{number}'
    for part in ('query', 'key', 'value'):
      table |= torch_layer(f'{ours}/attention/{part}', f'{theirs}.attention.self.{part}', 'linear')
    table |= torch_layer(f'{ours}/attention/out', f'{theirs}.attention.output.dense', 'linear')
    table |= _norm(f'{ours}/norm1', f'{theirs}.attention.output.LayerNorm', old)
    table |= torch_layer(f'{ours}/mlp/up', f'{theirs}.intermediate.dense', 'linear')
    table |= torch_layer(f'{ours}/mlp/down', f'{theirs}.output.dense', 'linear')
    table |= _norm(f'{ours}/norm2', f'{theirs}.output.LayerNorm', old)
  return table | _top(dense, head, options)


def _top(dense: str, head: str, options: Mapping[str, Any]) -> Table:
  table = torch_layer('head', head, 'linear')
  return table if options.get('pooler', 'tanh') == 'none' else torch_layer('pool/dense', dense, 'linear') | table


def _distilbert(prefix: str, options: Mapping[str, Any]) -> Table:
  table = _embed(prefix, {**options, 'kinds': 0}, False)
  for number in range(options.get('depth', 12)):
    ours, theirs = f'block{number + 1}', f'{prefix}transformer.layer.{number}'
    for part, name in (('query', 'q_lin'), ('key', 'k_lin'), ('value', 'v_lin'), ('out', 'out_lin')):
      table |= torch_layer(f'{ours}/attention/{part}', f'{theirs}.attention.{name}', 'linear')
    table |= _norm(f'{ours}/norm1', f'{theirs}.sa_layer_norm', False)
    table |= torch_layer(f'{ours}/mlp/up', f'{theirs}.ffn.lin1', 'linear')
    table |= torch_layer(f'{ours}/mlp/down', f'{theirs}.ffn.lin2', 'linear')
    table |= _norm(f'{ours}/norm2', f'{theirs}.output_layer_norm', False)
  return table | _top('pre_classifier', 'classifier', options)


def _options(
  table: Callable[[Mapping[str, Any]], Table], usual: Mapping[str, Any], blocks: str, shapes: Shapes
) -> dict[str, Any] | None:
  """
  Args:
    usual: the family's options, which names and shapes do not show.
    blocks: a pattern of one name of each block.
  """
  names = {path: name for path, (name, _) in table({'depth': 1}).items()}
  words, places, up = (shapes.get(names[p], ()) for p in ('embed/embedding', 'embed/positions', 'block1/mlp/up/kernel'))
  if not len(words) == len(places) == len(up) == 2:
    return None
  kinds = (*shapes.get(names.get('embed/kinds', ''), ()), 0)[0]
  options = {
    'vocabulary': int(words[0]),
    'width': int(words[1]),
    'depth': depth_of(shapes, blocks),
    'heads': max(int(words[1]) // SIZE, 1),
    'hidden': int(up[0]),
    'positions': int(places[0]),
    'kinds': int(kinds),
    **usual,
  }
  if names['pool/dense/kernel'] not in shapes:
    if names['head/kernel'] == 'classifier.weight' and 'classifier.weight' in shapes:
      return None  # a classifier of tokens
    options['pooler'] = 'none'
  return options if fits(shapes, table(options), {}) else None


def _stated(config: Mapping[str, Any]) -> dict[str, Any]:
  kinds = ('bert', 'roberta', 'xlm-roberta', 'camembert')
  found = stated_options(config, kinds, STATED)
  if config.get('is_decoder'):
    raise UserError('config.json: is_decoder=true, and the network looks at places in both directions')
  if config.get('model_type') in kinds[1:]:  # their positions begin behind the number of the padding token
    found['first'] = int(config.get('pad_token_id', 1)) + 1
  return found


def _stated_distilbert(config: Mapping[str, Any]) -> dict[str, Any]:
  return stated_options(config, ('distilbert',), {'n_heads': 'heads', 'activation': 'activation'})


def _origin(
  prefix: str, *, first: int = 0, old: bool = False, dense: str = '', head: str = 'classifier', tokens: bool = False
) -> Origin:
  table = functools.partial(_bert, prefix, dense or f'{prefix}pooler.dense', head, old)
  usual: dict[str, Any] = {'pooler': 'tanh', 'first': first, 'epsilon': 1e-5 if first else 1e-12}
  options = functools.partial(_options, table, usual, r'.*encoder\.layer\.\d+\.output\.dense\.weight')
  # Of one kind of texts and without a prefix is RoBERTa alone.
  chosen = options if prefix else lambda shapes: _of_kind(options(shapes), bool(first))
  others = rf'{OTHERS}|{prefix}pooler\..*' if dense else OTHERS
  others = f'{others}|{TOKENS}' if tokens else others
  return Origin(
    'transformers', 'bert', chosen, table, None, valueless=VALUELESS, others=others, stated=_stated,
    states=('heads', 'epsilon', 'activation'), input_shape=_input_shape, unstated=UNSTATED,
    exported=bool(prefix) and not old and not tokens,
  )  # fmt: skip


def _of_kind(options: dict[str, Any] | None, one: bool) -> dict[str, Any] | None:
  return options if options is not None and (options['kinds'] == 1) == one else None


def _origin_distilbert(prefix: str, tokens: bool = False) -> Origin:
  table = functools.partial(_distilbert, prefix)
  usual = {'pooler': 'relu', 'first': 0, 'epsilon': 1e-12}
  options = functools.partial(_options, table, usual, r'.*transformer\.layer\.\d+\.ffn\.lin2\.weight')
  return Origin(
    'transformers', 'bert', options, table, None, valueless=VALUELESS,
    others=f'{OTHERS}|{TOKENS}' if tokens else OTHERS,
    stated=_stated_distilbert, states=('heads', 'activation'), input_shape=_input_shape, unstated=UNSTATED,
    exported=bool(prefix) and not tokens,
  )  # fmt: skip


def _input_shape(options: Mapping[str, Any], shapes: Shapes) -> tuple[int, ...]:
  return (options['positions'] - options['first'],)


ORIGINS = (
  _origin('bert.'),
  _origin('roberta.', first=2, dense='classifier.dense', head='classifier.out_proj'),
  _origin_distilbert('distilbert.'),
  _origin('bert.', old=True),
  _origin(''),
  _origin('', first=2, dense='classifier.dense', head='classifier.out_proj'),
  _origin('', old=True),
  _origin_distilbert(''),
  _origin('bert.', tokens=True),
  _origin('roberta.', first=2, dense='classifier.dense', head='classifier.out_proj', tokens=True),
  _origin_distilbert('distilbert.', tokens=True),
)
