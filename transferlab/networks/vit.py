"""Vision transformers (Dosovitskiy et al. 2021): embed, block1, …, blockN, pool, (project,) (normalise,) head.

Tokens stand in the order class token, registers, patches by rows. Their positions are kept apart, those of patches as
a grid [rows, columns, width], so that another resolution resizes the grid and nothing has to be guessed from numbers.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float

from transferlab.config import Positive, Share
from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.networks.network import Network, network
from transferlab.networks.residual import linear_rate
from transferlab.networks.transformer import NORMAL, Activation, Block, FeedForward, layer_norm

# Width, blocks, heads, hidden features: Touvron et al. 2021, table 1, and Dosovitskiy et al. 2021, table 1.
SIZES = {
  'Ti': (192, 12, 3, 768),
  'S': (384, 12, 6, 1536),
  'B': (768, 12, 12, 3072),
  'L': (1024, 24, 16, 4096),
  'H': (1280, 32, 16, 5120),
}
Pool = Literal['class', 'mean', 'mean_norm', 'class_mean', 'attention']
Places = Literal['patches', 'class', 'all']


class Embed(nnx.Module):
  """Patches as tokens, behind the class token and registers, with their positions.

  Args:
    grid: rows and columns of patches.
    placed: which tokens have positions: patches only, the class token too, or all.
    norm: normalisation of the tokens (CLIP).
  """

  def __init__(
    self,
    channels: int,
    grid: tuple[int, int],
    patch: int,
    width: int,
    rngs: nnx.Rngs,
    *,
    class_token: bool,
    registers: int,
    placed: str,
    bias: bool,
    norm: nnx.Module | None,
    dropout: float,
  ):
    draw = lambda *shape: nnx.Param(NORMAL(rngs.params(), shape))
    self.patch = layers.Conv(channels, width, patch, strides=patch, padding=0, use_bias=bias, rngs=rngs)
    self.class_token = nnx.Param(jnp.zeros(width)) if class_token else None
    self.registers = draw(registers, width) if registers else None
    before = {'patches': 0, 'class': int(class_token), 'all': int(class_token) + registers}[placed]
    self.placed, self.prefix_position = before, draw(before, width) if before else None
    self.position = draw(*grid, width)
    self.norm, self.dropout = norm, layers.Dropout(dropout)

  def __call__(self, x: Float[Array, 'batch height width channels']) -> Float[Array, 'batch tokens features']:
    x = self.patch(x) + self.position[...]
    patches = x.reshape(x.shape[0], -1, x.shape[-1])
    prefix = [part[...].reshape(-1, x.shape[-1]) for part in (self.class_token, self.registers) if part is not None]
    if prefix:
      first = jnp.concatenate(prefix)
      if self.prefix_position is not None:
        first = first.at[: self.placed].add(self.prefix_position[...])
      patches = jnp.concatenate([jnp.broadcast_to(first, (len(x), *first.shape)).astype(x.dtype), patches], axis=1)
    x = patches if self.norm is None else self.norm(patches)
    return self.dropout(x)


class AttentionPool(nnx.Module):
  """One query, learnt, attends to all tokens; then a feed-forward layer beside a shortcut (Zhai et al. 2022, MAP)."""

  def __init__(self, width: int, heads: int, hidden: int, rngs: nnx.Rngs, *, activation: str, epsilon: float):
    layer = lambda: nnx.Linear(width, width, kernel_init=NORMAL, rngs=rngs)
    self.heads, self.probe = heads, nnx.Param(NORMAL(rngs.params(), (width,)))
    self.query, self.key, self.value, self.out = (layer() for _ in range(4))
    self.norm, self.mlp = layer_norm(width, rngs, epsilon), FeedForward(width, hidden, rngs, activation=activation)

  def __call__(self, x: Float[Array, 'batch tokens features']) -> Float[Array, 'batch features']:
    split = lambda values: values.reshape(*values.shape[:-1], self.heads, -1)
    query = jnp.broadcast_to(self.query(self.probe[...]), (len(x), 1, x.shape[-1]))
    seen = jax.nn.dot_product_attention(split(query), split(self.key(x)), split(self.value(x)))
    x = self.out(seen.reshape(len(x), -1))
    return x + self.mlp(self.norm(x))


class Pooled(nnx.Module):
  """One vector of all tokens, with the last normalisation; `prefix` is how many tokens stand before the patches."""

  def __init__(self, pool: str, prefix: int, norm: nnx.Module, attention: AttentionPool | None, dropout: float):
    self.pool, self.prefix = pool, prefix
    self.norm, self.attention, self.dropout = norm, attention, layers.Dropout(dropout)

  def __call__(self, value: Float[Array, 'batch tokens features'] | dict) -> Float[Array, 'batch pooled']:
    x = value['x'] if isinstance(value, dict) else value
    if self.pool == 'mean_norm':
      return self.dropout(self.norm(x[:, self.prefix :].mean(axis=1)))
    x = self.norm(x)
    if self.attention is not None:
      return self.dropout(self.attention(x[:, self.prefix :]))
    parts = [x[:, 0]] if 'class' in self.pool else []
    parts += [x[:, self.prefix :].mean(axis=1)] if 'mean' in self.pool else []
    return self.dropout(jnp.concatenate(parts, axis=-1))


def unit_length(x: Float[Array, '... features']) -> Float[Array, '... features']:
  """x / ‖x‖: what CLIP's cosines are taken of (Radford et al. 2021, fig. 3)."""
  return x / jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True).astype(x.dtype)


def vit(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  size: Literal['Ti', 'S', 'B', 'L', 'H'] = 'B',
  patch: Positive = 16,
  width: Positive | None = None,
  depth: Positive | None = None,
  heads: Positive | None = None,
  hidden: Positive | None = None,
  class_token: bool = True,
  registers: Annotated[int, pydantic.Field(ge=0)] = 0,
  placed: Places = 'class',
  pool: Pool = 'class',
  activation: Activation = 'gelu',
  epsilon: Annotated[float, pydantic.Field(gt=0)] = 1e-6,
  patch_bias: bool = True,
  embed_norm: bool = False,
  layer_scale: float | None = None,
  projection: Positive | None = None,
  normalise: bool = False,
  explicit: bool = False,
  embed_dropout: Share = 0.0,
  attention_dropout: Share = 0.0,
  stochastic_depth: Share = 0.0,
  dropout: Share = 0.0,
) -> Network:
  """A vision transformer.

  Args:
    size: width, depth, heads and hidden features, where these are not given.
    patch: side of a patch in pixels.
    class_token: a token that stands for the image; registers: tokens that stand for nothing (Darcet et al. 2024).
    placed: which tokens have positions: patches, the class token as well, or registers too.
    pool: the class token; the mean of patches behind the last normalisation, or before it ('mean_norm'); class token
      and mean side by side; or attention of a learnt query
      to the patches.
    activation: GELU, exact or by tanh, or CLIP's quick_gelu.
    epsilon: of the normalisations.
    patch_bias: a bias of the patches; embed_norm: normalisation of the tokens before the blocks (CLIP has no, and one).
    layer_scale: what factors of each branch begin with; None: no factors.
    projection: features of a layer without bias before the head; None: no such stage (CLIP has one).
    normalise: the head sees features of length 1, so that its logits are cosines times the lengths of its columns.
    explicit: attention weights stand in each block's output under 'attention'.
    embed_dropout: share of tokens' features dropped behind the positions; attention_dropout: of attention weights;
      dropout: of branches' outputs and of what the head sees.
    stochastic_depth: share of examples that skip a branch of the last block in training; it rises linearly from 0.

  Raises:
    UserError: inputs that are no images or that patches do not divide, heads that do not divide the width, or a class
      token that is pooled and not there.
  """
  widths = [mine or usual for mine, usual in zip((width, depth, heads, hidden), SIZES[size])]
  _check(input_shape, patch, widths[0], widths[2], class_token, pool)
  grid = (input_shape[0] // patch, input_shape[1] // patch)
  attention = dict(dropout=attention_dropout, explicit=explicit)

  def create(rngs: nnx.Rngs) -> dict:
    width, depth, heads, hidden = widths
    norm = lambda: layer_norm(width, rngs, epsilon)
    stages: dict = {
      'embed': Embed(
        input_shape[2], grid, patch, width, rngs, class_token=class_token, registers=registers, placed=placed,
        bias=patch_bias, norm=norm() if embed_norm else None, dropout=embed_dropout,
      )
    }  # fmt: skip
    for number in range(1, depth + 1):
      rate = linear_rate(stochastic_depth, number - 1, depth)
      stages[f'block{number}'] = Block(
        f'block{number}', width, heads, hidden, rngs, norm=norm, attention=attention, mlp=dict(activation=activation),
        layer_scale=layer_scale, dropout=dropout, stochastic_depth=rate,
      )  # fmt: skip
    attend = None
    if pool == 'attention':
      attend = AttentionPool(width, heads, hidden, rngs, activation=activation, epsilon=epsilon)
    stages['pool'] = Pooled(pool, int(class_token) + registers, norm(), attend, dropout)
    features = width * (1 + (pool == 'class_mean'))
    if projection is not None:
      stages['project'] = nnx.Linear(features, projection, use_bias=False, kernel_init=NORMAL, rngs=rngs)
    if normalise:
      stages['normalise'] = unit_length
    return {**stages, 'head': layers.head(projection or features, outputs, rngs)}

  return network(create)


def _check(input_shape: tuple[int, ...], patch: int, width: int, heads: int, class_token: bool, pool: str) -> None:
  layers.check_images('vit', input_shape, lambda pixels: pixels // patch)
  if input_shape[0] % patch or input_shape[1] % patch:
    near = '×'.join(str(max(round(side / patch), 1) * patch) for side in input_shape[:2])
    shown = f'{input_shape[0]}×{input_shape[1]}'
    raise UserError(f"network 'vit': patches of {patch} pixels do not divide images of {shown}; nearest: {near}")
  if width % heads:
    nearest = min((n for n in range(1, width + 1) if not width % n), key=lambda n: abs(n - heads))
    raise UserError(f"network 'vit': heads={heads} do not divide the width {width}; nearest: heads={nearest}")
  if 'class' in pool and not class_token:
    raise UserError(f"network 'vit': pool={pool!r} needs class_token=True; nearest: pool='mean'")
