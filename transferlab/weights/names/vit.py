"""Vision transformers as torchvision, timm and transformers write them; the npz files of JAX are in vit_npz.py."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from transferlab.errors import UserError
from transferlab.weights.names import fits, stated_options, torch_layer, torch_layer_norm
from transferlab.weights.origin import IMAGENET, SYMMETRIC, Inputs, Origin, Shapes, Table

CLIP_IMAGES = Inputs(
  (122.7709, 116.7460, 104.0938), (68.5005, 66.6322, 70.3232), 224, 'shorter side 224, centre 224, bicubic'
)
# Published vision transformers but the largest have heads of so many features, which most files do not say.
HEAD = 64
ASSUMED = f'heads of {HEAD} features each are assumed: the file does not say'
# Published widths whose heads are others.
WIDE = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
DOUBT = 'which images it was trained on is not known, nor what its names leave open of pooling and activation'
# What timm's model_args may change of a model without changing what its weights compute.
TIMM_ARGUMENTS = {
  *('img_size', 'patch_size', 'in_chans', 'num_classes', 'embed_dim', 'depth', 'num_heads', 'mlp_ratio', 'class_token'),
  *('reg_tokens', 'no_embed_class', 'init_values', 'global_pool', 'weight_init', 'drop_rate', 'drop_path_rate'),
  *('proj_drop_rate', 'attn_drop_rate', 'pos_drop_rate', 'dynamic_img_size', 'dynamic_img_pad'),
}
# timm's models of SigLIP that have GELU by tanh; its others have the exact one.
TANH = re.compile(r'vit_(base_patch32|large_patch16_siglip(_gap)?_512|so400m_patch16|giantopt).*')


@dataclasses.dataclass(frozen=True)
class Names:
  """What an origin calls the layers; in a block's names '{}' stands for its number.

  Attributes:
    tokens: (name, what stands before the features' axis) of the class token, registers and positions.
    fused: (weight, bias) of queries, keys and values together; else `apart`, (query, key, value).
    norm: of all tokens; fc_norm: behind the mean.
    pool: what attention pooling's layers begin with.
    pools: the ways of pooling that there are; free: class token and positions of prefixes may be missing.
  """

  patch: str
  tokens: Mapping[str, tuple[str, str]]
  block: str
  norms: tuple[str, str]
  out: str
  mlp: tuple[str, str]
  norm: str
  head: str = ''
  fused: tuple[str, str] | None = None
  apart: tuple[str, str, str] | None = None
  scales: tuple[str, str] | None = None
  embed_norm: str = ''
  fc_norm: str = ''
  pool: str = ''
  project: str = ''
  pools: tuple[str, ...] = ('class',)
  free: bool = False

  def prefixed(self, prefix: str) -> 'Names':
    """With something before all names but the head's and the projection's."""
    put = lambda name: prefix + name if name else name
    tokens = {token: (put(name), axes) for token, (name, axes) in self.tokens.items()}
    changed = {name: put(getattr(self, name)) for name in ('patch', 'block', 'norm', 'embed_norm', 'fc_norm', 'pool')}
    return dataclasses.replace(self, tokens=tokens, **changed)


TORCHVISION = Names(
  patch='conv_proj',
  tokens={'class_token': ('class_token', '1 1'), 'position': ('encoder.pos_embedding', '1')},
  block='encoder.layers.encoder_layer_{}.',
  norms=('ln_1', 'ln_2'),
  fused=('self_attention.in_proj_weight', 'self_attention.in_proj_bias'),
  out='self_attention.out_proj',
  mlp=('mlp.0', 'mlp.3'),
  norm='encoder.ln',
  head='heads.head',
)
# Written by torchvision before 0.13.
LINEAR = dataclasses.replace(TORCHVISION, mlp=('mlp.linear_1', 'mlp.linear_2'))
TIMM = Names(
  patch='patch_embed.proj',
  tokens={'class_token': ('cls_token', '1 1'), 'registers': ('reg_token', '1'), 'position': ('pos_embed', '1')},
  block='blocks.{}.',
  norms=('norm1', 'norm2'),
  fused=('attn.qkv.weight', 'attn.qkv.bias'),
  out='attn.proj',
  mlp=('mlp.fc1', 'mlp.fc2'),
  scales=('ls1.gamma', 'ls2.gamma'),
  norm='norm',
  fc_norm='fc_norm',
  pool='attn_pool.',
  embed_norm='norm_pre',
  head='head',
  pools=('class', 'mean', 'mean_norm', 'attention'),
  free=True,
)
BERT_LIKE = Names(
  patch='embeddings.patch_embeddings.projection',
  tokens={
    'class_token': ('embeddings.cls_token', '1 1'),
    'registers': ('embeddings.register_tokens', '1'),
    'position': ('embeddings.position_embeddings', '1'),
  },
  block='encoder.layer.{}.',
  norms=('layernorm_before', 'layernorm_after'),
  apart=('attention.attention.query', 'attention.attention.key', 'attention.attention.value'),
  out='attention.output.dense',
  mlp=('intermediate.dense', 'output.dense'),
  norm='layernorm',
  head='classifier',
)
DINOV2 = dataclasses.replace(
  BERT_LIKE,
  norms=('norm1', 'norm2'),
  mlp=('mlp.fc1', 'mlp.fc2'),
  scales=('layer_scale1.lambda1', 'layer_scale2.lambda1'),
  pools=('class', 'class_mean'),
)
# DINOv2 has its registers under another prefix, and is nothing else without them.
REGISTERS = DINOV2
DINOV2 = dataclasses.replace(
  DINOV2, tokens={token: entry for token, entry in DINOV2.tokens.items() if token != 'registers'}
)
CLIP = Names(
  patch='embeddings.patch_embedding',
  tokens={'class_token': ('embeddings.class_embedding', ''), 'position': ('embeddings.position_embedding.weight', '')},
  block='encoder.layers.{}.',
  norms=('layer_norm1', 'layer_norm2'),
  apart=('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'),
  out='self_attn.out_proj',
  mlp=('mlp.fc1', 'mlp.fc2'),
  norm='post_layernorm',
  embed_norm='pre_layrnorm',
  project='visual_projection',
)
SIGLIP = dataclasses.replace(CLIP, embed_norm='', project='', pool='head.', pools=('attention',), free=True)


# ------------------------------------------------------------------------------------------------------- tables
def _fused(ours: str, weight: str, bias: str, parts: Mapping[str, str]) -> Table:
  """
  Args:
    parts: {our layer: its part}.
  """
  table: Table = {}
  for layer, part in parts.items():
    table[f'{ours}/{layer}/kernel'] = (weight, f'o i -> i o, part=o:{part}')
    table[f'{ours}/{layer}/bias'] = (bias, f'o -> o, part=o:{part}')
  return table


# Ours and theirs of a dense layer.
_linear = functools.partial(torch_layer, layout='linear')
QKV = {'query': '0/3', 'key': '1/3', 'value': '2/3'}


def placed_before(options: Mapping[str, Any]) -> int:
  """How many tokens before the patches have positions."""
  token, registers = int(options.get('class_token', True)), options.get('registers', 0)
  return {'patches': 0, 'class': token, 'all': token + registers}[options.get('placed', 'class')]


def positions(name: str, axes: str, options: Mapping[str, Any]) -> Table:
  """Positions in one array: those before the patches, then the patches' by rows, which are a square unless a file of
  ours says its images' shape.
  """
  before, axis, shape = placed_before(options), int(bool(axes)), options.get('input_shape')
  rows = f'r={shape[0] // options.get("patch", 16)}' if shape else 'r=root'
  table = {'embed/prefix_position': (name, f'{axes} k d -> k d, part={axis}:0..{before}'.strip())} if before else {}
  return table | {'embed/position': (name, f'{axes} (r c) d -> r c d, part={axis}:{before}.., {rows}'.strip())}


def _tokens(names: Names, options: Mapping[str, Any]) -> Table:
  table: Table = {}
  registers = options.get('registers', 0)
  if options.get('class_token', True):
    name, axes = names.tokens['class_token']
    table['embed/class_token'] = (name, f'{axes} d -> d' if axes else 'same')
  if registers and 'registers' in names.tokens:
    name, axes = names.tokens['registers']
    table['embed/registers'] = (name, f'{axes} r d -> r d')
  return table | positions(*names.tokens['position'], options)


def _block(names: Names, ours: str, theirs: str, options: Mapping[str, Any]) -> Table:
  table: Table = {}
  for number, name in enumerate(names.norms, 1):
    table |= torch_layer_norm(f'{ours}/norm{number}', theirs + name)
  if names.fused is not None:
    table |= _fused(f'{ours}/attention', theirs + names.fused[0], theirs + names.fused[1], QKV)
  for layer, name in zip(QKV, names.apart or ()):
    table |= _linear(f'{ours}/attention/{layer}', theirs + name)
  table |= _linear(f'{ours}/attention/out', theirs + names.out)
  table |= _linear(f'{ours}/mlp/up', theirs + names.mlp[0]) | _linear(f'{ours}/mlp/down', theirs + names.mlp[1])
  if options.get('layer_scale') is not None and names.scales is not None:
    table |= {f'{ours}/scale{n}/factors': (theirs + name, 'same') for n, name in enumerate(names.scales, 1)}
  return table


def _pool(names: Names, options: Mapping[str, Any]) -> Table:
  pool = options.get('pool', 'class')
  table = torch_layer_norm('pool/norm', names.fc_norm if pool == 'mean_norm' else names.norm)
  if pool != 'attention':
    return table
  ours, theirs = 'pool/attention', names.pool
  if names.fused == TIMM.fused:
    table[f'{ours}/probe'] = (f'{theirs}latent', '1 1 d -> d')
    table |= _linear(f'{ours}/query', f'{theirs}q')
    table |= _fused(ours, f'{theirs}kv.weight', f'{theirs}kv.bias', {'key': '0/2', 'value': '1/2'})
    return table | _linear(f'{ours}/out', f'{theirs}proj') | _pool_mlp(ours, theirs, 'norm')
  table[f'{ours}/probe'] = (f'{theirs}probe', '1 1 d -> d')
  table |= _fused(ours, f'{theirs}attention.in_proj_weight', f'{theirs}attention.in_proj_bias', QKV)
  return table | _linear(f'{ours}/out', f'{theirs}attention.out_proj') | _pool_mlp(ours, theirs, 'layernorm')


def _pool_mlp(ours: str, theirs: str, norm: str) -> Table:
  layers = _linear(f'{ours}/mlp/up', f'{theirs}mlp.fc1') | _linear(f'{ours}/mlp/down', f'{theirs}mlp.fc2')
  return layers | torch_layer_norm(f'{ours}/norm', theirs + norm)


def table(names: Names, options: Mapping[str, Any]) -> Table:
  """All leaves of a vision transformer with these options."""
  from transferlab.networks.vit import SIZES

  patch = {'embed/patch/kernel': (f'{names.patch}.weight', 'conv')}
  if options.get('patch_bias', True):
    patch['embed/patch/bias'] = (f'{names.patch}.bias', 'same')
  found: Table = patch | _tokens(names, options)
  if options.get('embed_norm', False):
    found |= torch_layer_norm('embed/norm', names.embed_norm)
  for number in range(options.get('depth') or SIZES[options.get('size', 'B')][1]):
    found |= _block(names, f'block{number + 1}', names.block.format(number), options)
  found |= _pool(names, options)
  if options.get('projection') is not None:
    found['project/kernel'] = (f'{names.project}.weight', 'linear')
  return found | (_linear('head', names.head) if names.head else {})


# ------------------------------------------------------------------------------------------------------ options
def sized(width: int, depth: int, heads: int, hidden: int) -> dict[str, Any]:
  """A published size by its name, others by their numbers."""
  from transferlab.networks.vit import SIZES

  found = next((size for size, numbers in SIZES.items() if numbers == (width, depth, heads, hidden)), None)
  return {'size': found} if found else {'width': width, 'depth': depth, 'heads': heads, 'hidden': hidden}


def _options(names: Names, fixed: Mapping[str, Any], shapes: Shapes) -> dict[str, Any] | None:
  """
  Args:
    fixed: options that the origin decides.
  """
  kernel, up = shapes.get(f'{names.patch}.weight', ()), shapes.get(names.block.format(0) + f'{names.mlp[0]}.weight', ())
  position = shapes.get(names.tokens['position'][0], ())
  if len(kernel) != 4 or kernel[2] != kernel[3] or len(up) != 2 or len(position) < 2:
    return None
  pattern = re.compile(re.escape(names.block).replace(r'\{\}', r'(\d+)') + '.*')
  depth = 1 + max(int(match[1]) for name in shapes if (match := pattern.fullmatch(name)))
  width, patch = int(kernel[0]), int(kernel[2])
  options = {**sized(width, depth, WIDE.get(width) or max(width // HEAD, 1), int(up[0])), **fixed}
  options |= {} if patch == 16 else {'patch': patch}
  prefix = _prefix(names, shapes, position)
  if prefix is None or (prefix.keys() & {'class_token', 'placed'} and not names.free):
    return None
  options |= prefix
  if names.scales is not None and names.block.format(0) + names.scales[0] in shapes:
    options['layer_scale'] = 1.0
  if names.embed_norm and f'{names.embed_norm}.weight' in shapes:
    options |= {'embed_norm': True}
  if f'{names.patch}.bias' not in shapes:
    options['patch_bias'] = False
  if names.project and f'{names.project}.weight' in shapes:
    options['projection'] = int(shapes[f'{names.project}.weight'][0])
  options |= _pooling(names, shapes, width)
  if options.get('pool', 'class') not in names.pools:
    return None
  return options if fits(shapes, table(names, options), {}) else None


def _prefix(names: Names, shapes: Shapes, position: tuple[int, ...]) -> dict[str, Any] | None:
  """Tokens before the patches, and which of them have positions: what is left must be a square, in one way only."""
  has = names.tokens['class_token'][0] in shapes
  options: dict[str, Any] = {} if has else {'class_token': False}
  registers = int(shapes.get(names.tokens.get('registers', ('', ''))[0], (0, 0))[1])
  options |= {'registers': registers} if registers else {}
  square = lambda count: count > 0 and math.isqrt(count) ** 2 == count
  ways = {'patches': 0, 'all': int(has) + registers, 'class': int(has)}  # of equal ones the last, which is usual
  fitting = {before: way for way, before in ways.items() if square(position[-2] - before)}
  if len(fitting) != 1:
    return None
  (placed,) = fitting.values()
  return options | ({} if placed == 'class' else {'placed': placed})


def _pooling(names: Names, shapes: Shapes, width: int) -> dict[str, Any]:
  head = shapes.get(f'{names.head}.weight', ()) if names.head else ()
  if names.pool and any(name.startswith(names.pool) and 'mlp' in name for name in shapes):
    return {'pool': 'attention'}
  if names.fc_norm and f'{names.fc_norm}.weight' in shapes:
    return {'pool': 'mean_norm'}
  if len(head) == 2 and head[1] == 2 * width:
    return {'pool': 'class_mean'}
  return {} if names.tokens['class_token'][0] in shapes else {'pool': 'mean'}


def _stated(kinds: tuple[str, ...], config: Mapping[str, Any]) -> dict[str, Any]:
  """What transformers' config.json says; that of CLIP and SigLIP has a part for images."""
  part = config.get('vision_config')
  return stated_options(part if isinstance(part, Mapping) else config, kinds, STATED)


STATED = {'num_attention_heads': 'heads', 'layer_norm_eps': 'epsilon', 'hidden_act': 'activation'}


def _input_shape(names: Names, options: Mapping[str, Any], shapes: Shapes) -> tuple[int, ...]:
  """Square images, of as many patches as there are positions."""
  kernel, places = shapes[f'{names.patch}.weight'], shapes[names.tokens['position'][0]][-2]
  side = math.isqrt(places - placed_before(options)) * kernel[2]
  return side, side, kernel[1]


def _origin(
  name: str, names: Names, inputs: Inputs | None, fixed: Mapping[str, Any] = {}, doubt: str = '', **more: Any
) -> Origin:
  options, shape = functools.partial(_options, names, fixed), functools.partial(_input_shape, names)
  return Origin(
    name,
    'vit',
    options,
    functools.partial(table, names),
    inputs,
    doubt=doubt,
    input_shape=shape,
    unstated=ASSUMED,
    **more,
  )


def _timm_stated(config: Mapping[str, Any]) -> dict[str, Any]:
  """What timm's config.json says. Raises `UserError` for a model that computes otherwise under the same names."""
  name, given = str(config.get('architecture', '')), config.get('model_args') or {}
  odd = sorted(set(given) - TIMM_ARGUMENTS)
  pool = given.get('global_pool', config.get('global_pool', 'token'))
  if odd or pool not in ('token', 'avg', 'map', ''):
    what = f'model_args has {", ".join(odd)}' if odd else f'global_pool={pool!r}'
    raise UserError(f'config.json: {what}, and the network has no such thing')
  found: dict[str, Any] = {'heads': int(given['num_heads'])} if 'num_heads' in given else {}
  found |= {'activation': 'gelu_tanh'} if 'siglip' in name and TANH.fullmatch(name) else {}
  found |= {'activation': 'quick_gelu'} if 'quickgelu' in name else {}
  return found | ({'epsilon': 1e-5} if 'clip' in name.replace('siglip', '') else {})


def _transformers(
  name: str, names: Names, inputs: Inputs, kinds: tuple[str, ...], fixed: Mapping[str, Any], others: str
) -> list[Origin]:
  """Both with and without the prefix that stands before all names.

  Args:
    kinds: values of 'model_type' in config.json; the first is that prefix, but for CLIP and SigLIP.
  """
  prefix = 'vision_model.' if name in ('clip', 'siglip') else f'{kinds[0]}.'
  return [
    _origin(
      name, names.prefixed(before), inputs, fixed, others=others, stated=functools.partial(_stated, kinds),
      states=('heads', 'epsilon', 'activation'),
    )
    for before in (prefix, '')
  ]  # fmt: skip


TEXT = r'text_model\..*|text_projection\..*|logit_scale|logit_bias|.*position_ids'
ORIGINS = (
  _origin('torchvision', TORCHVISION, IMAGENET),
  _origin('torchvision', LINEAR, IMAGENET),
  _origin('timm', TIMM, None, doubt=DOUBT, stated=_timm_stated),
  *_transformers('transformers', BERT_LIKE, SYMMETRIC, ('vit', 'deit'), {'epsilon': 1e-12}, r'(vit\.)?pooler\..*'),
  *_transformers('dinov2', DINOV2, IMAGENET, ('dinov2',), {}, r'.*mask_token'),
  *_transformers('dinov2_registers', REGISTERS, IMAGENET, ('dinov2_with_registers',), {}, r'.*mask_token'),
  *_transformers(
    'clip', CLIP, CLIP_IMAGES, ('clip_vision_model', 'clip'), {'epsilon': 1e-5, 'activation': 'quick_gelu'}, TEXT
  ),
  *_transformers('siglip', SIGLIP, SYMMETRIC, ('siglip_vision_model', 'siglip'), {'activation': 'gelu_tanh'}, TEXT),
)
