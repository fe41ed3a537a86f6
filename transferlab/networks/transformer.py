"""What transformers share (Vaswani et al. 2017): attention, feed-forward layers, and the blocks that encoders of texts,
language models and vision transformers are made of.

Between blocks stands an array [batch, places, width], or a dict with it as 'x', exactly 0 where there is padding, and
with 'mask' [batch, places], False there, and 'positions' [batch, places]; attention looks at real places only.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.networks.residual import LayerScale, StochasticDepth

Activation = Literal['gelu', 'gelu_tanh', 'quick_gelu', 'relu', 'silu']
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'gelu': lambda x: nnx.gelu(x, approximate=False),  # Hendrycks and Gimpel 2016, eq. 1
  'gelu_tanh': lambda x: nnx.gelu(x, approximate=True),
  'quick_gelu': lambda x: x * nnx.sigmoid(1.702 * x),
  'relu': nnx.relu,
  'silu': nnx.silu,
}
# Of the weights of transformers (Devlin et al. 2019; Radford et al. 2019).
NORMAL = nnx.initializers.truncated_normal(0.02)
Cache = dict[str, Array]
EMBED = 'embed'  # the stage that makes vectors of tokens, and counts them in generation


def layer_norm(width: int, rngs: nnx.Rngs, epsilon: float = 1e-6) -> nnx.LayerNorm:
  """Layer normalisation (Ba et al. 2016), with the variance from differences to the mean."""
  return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


def turns(
  size: int, base: float, factor: float = 1.0, bands: tuple[float, float, float] | None = None
) -> tuple[float, ...]:
  """By what angle rotary positions turn each pair of features from place to place: base^(−2i/size), i < size/2.

  Args:
    size: features of a head.
    factor: how much longer texts are than in pretraining: angles are divided by it (Chen et al. 2023, eq. 4).
    bands: (low, high, length): only pairs that turn round more slowly than once in length / low places are divided so,
      those that do it within length / high places not at all, and those between in part (Llama 3.1; Grattafiori et al.
      2024).
  """
  angles = base ** (-2 * np.arange(size // 2) / size)
  if bands is None:
    return tuple(map(float, angles / factor))
  low, high, length = bands
  share = np.clip((length * angles / (2 * np.pi) - low) / (high - low), 0, 1)  # that stays as it is
  return tuple(map(float, share * angles + (1 - share) * angles / factor))


def rotated(
  x: Float[Array, 'batch places heads size'], positions: Int[Array, 'batch places'], turns: tuple[float, ...]
) -> Float[Array, 'batch places heads size']:
  """Rotary positions (Su et al. 2021, eq. 34): features i and i + size/2 are turned by position · turns[i].

  Features are paired by halves, as LLaMA's published weights are; the paper pairs neighbours.
  """
  half = x.shape[-1] // 2
  angles = positions[..., None, None] * jnp.asarray(turns, jnp.float32)
  cosine, sine = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
  first, second = x[..., :half], x[..., half:]
  return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


class Attention(nnx.Module):
  """Attention of every place to the places of the same example (Vaswani et al. 2017, eq. 1), in several heads.

  Args:
    groups: how many heads of keys and values the heads share (Ainslie et al. 2023); None: as many as there are heads.
    biases: of query, key and value; `out_bias` of the output.
    causal: places see none behind them.
    rotary: angles by which rotary positions turn pairs of queries' and keys' features (`turns`); None: they do not.
    dropout: share of the attention weights that is dropped in training; they are made explicit for it.
    explicit: give the attention weights as well, which the fused path never writes down.
  """

  def __init__(
    self,
    width: int,
    heads: int,
    rngs: nnx.Rngs,
    *,
    groups: int | None = None,
    biases: bool = True,
    out_bias: bool = True,
    causal: bool = False,
    rotary: tuple[float, ...] | None = None,
    dropout: float = 0.0,
    explicit: bool = False,
  ):
    self.heads, self.groups, self.size = heads, groups or heads, width // heads
    self.causal, self.rotary, self.explicit = causal, rotary, explicit
    layer = lambda inputs, outputs, bias: nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=NORMAL, rngs=rngs)
    self.query = layer(width, self.heads * self.size, biases)
    self.key = layer(width, self.groups * self.size, biases)
    self.value = layer(width, self.groups * self.size, biases)
    self.out = layer(self.heads * self.size, width, out_bias)
    self.dropout = layers.Dropout(dropout)

  def __call__(
    self,
    x: Float[Array, 'batch places width'],
    mask: Bool[Array, 'batch places'] | None = None,
    positions: Int[Array, 'batch places'] | None = None,
    cache: Cache | None = None,
  ) -> tuple[Float[Array, 'batch places width'], Float[Array, 'batch heads places keys'] | None, Cache | None]:
    """(output, attention weights where they are explicit, cache).

    Args:
      positions: of each place in its text; for rotary positions and the cache.
      cache: 'key' and 'value' [batch, length, groups, size] of the places before these, by position; what these give
        is added. Places see none behind them then.
    """
    heads = lambda layer, count: layer(x).reshape(*x.shape[:-1], count, self.size)
    query, key, value = heads(self.query, self.heads), heads(self.key, self.groups), heads(self.value, self.groups)
    if self.rotary is not None:
      assert positions is not None
      query, key = rotated(query, positions, self.rotary), rotated(key, positions, self.rotary)
    seen = None if mask is None else mask[:, None, None, :]
    if cache is not None:
      assert positions is not None
      cache = _remembered(cache, {'key': key, 'value': value}, positions, mask)
      key, value = cache['key'], cache['value']
      seen = (jnp.arange(key.shape[1]) <= positions[..., None])[:, None]
    elif self.causal:
      before = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[None, None]
      seen = before if seen is None else before & seen
    if self.explicit or self.dropout.active:
      weights = self.dropout(_weights(query, key, seen))
      values = jnp.repeat(value, self.heads // self.groups, axis=2)
      out = jnp.einsum('bhqk,bkhs->bqhs', weights, values)
    else:
      weights, out = None, jax.nn.dot_product_attention(query, key, value, mask=seen)
    return self.out(out.reshape(*x.shape[:-1], -1)), weights if self.explicit else None, cache


def _remembered(cache: Cache, new: Cache, positions: Array, mask: Array | None) -> Cache:
  """The cache with what these places give, each at its position; padding has none."""
  length, rows = cache['key'].shape[1], jnp.arange(len(positions))[:, None]
  places = positions if mask is None else jnp.where(mask, positions, length)
  return {name: cache[name].at[rows, places].set(new[name], mode='drop') for name in cache}


def _weights(query: Array, key: Array, seen: Array | None) -> Float[Array, 'batch heads places keys']:
  key = jnp.repeat(key, query.shape[2] // key.shape[2], axis=2)
  logits = jnp.einsum('bqhs,bkhs->bhqk', query, key).astype(jnp.float32) * query.shape[-1] ** -0.5
  if seen is not None:
    logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min)
  return jax.nn.softmax(logits, axis=-1).astype(query.dtype)


class FeedForward(nnx.Module):
  """Two layers with an activation between them at every place.

  Args:
    gated: down(act(x G) · x U), with a third layer (Shazeer 2020, eq. 6), instead of down(act(x U)).
  """

  def __init__(
    self, width: int, hidden: int, rngs: nnx.Rngs, *, activation: str = 'gelu', biases: bool = True, gated: bool = False
  ):
    layer = lambda inputs, outputs: nnx.Linear(inputs, outputs, use_bias=biases, kernel_init=NORMAL, rngs=rngs)
    self.gate = layer(width, hidden) if gated else None
    self.up, self.down, self.activation = layer(width, hidden), layer(hidden, width), activation

  def __call__(self, x: Float[Array, '... width']) -> Float[Array, '... width']:
    act = ACTIVATIONS[self.activation]
    return self.down(act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x))


class Block(nnx.Module):
  """Attention, then a feed-forward layer, each beside a shortcut.

    before:  x + f(norm(x)), as vision transformers and GPT-2 have it;  behind:  norm(x + f(x)), as BERT has it

  Where the value holds 'carry', keys and values of the places before stand there under `name` (generation); explicit
  attention weights [batch, heads, places, keys] stand in the result under 'attention'.

  Args:
    name: the stage's.
    norm: makes a normalisation.
    attention, mlp: further arguments of `Attention` and `FeedForward`.
    layer_scale: what each branch's factors begin with (Touvron et al. 2021, eq. 4); None: no factors.
    dropout: of each branch's output; stochastic_depth: share of examples in which a branch is left out in training.
  """

  def __init__(
    self,
    name: str,
    width: int,
    heads: int,
    hidden: int,
    rngs: nnx.Rngs,
    *,
    norm: Callable[[], nnx.Module],
    behind: bool = False,
    attention: Mapping[str, Any] = {},
    mlp: Mapping[str, Any] = {},
    layer_scale: float | None = None,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
  ):
    self.name, self.behind = name, behind
    self.norm1, self.attention = norm(), Attention(width, heads, rngs, **attention)
    self.norm2, self.mlp = norm(), FeedForward(width, hidden, rngs, **mlp)
    self.scale1, self.scale2 = (None if layer_scale is None else LayerScale(width, layer_scale) for _ in range(2))
    self.dropout, self.depth = layers.Dropout(dropout), StochasticDepth(stochastic_depth)

  def __call__(self, value: Any) -> Any:
    given = value if isinstance(value, Mapping) else {'x': value}
    x, mask, carry = given['x'], given.get('mask'), given.get('carry', {})
    seen, weights, cache = self.attention(
      x if self.behind else self.norm1(x), mask, given.get('positions'), carry.get(self.name)
    )
    x = self._joined(x, seen, self.scale1, self.norm1)
    x = self._joined(x, self.mlp(x if self.behind else self.norm2(x)), self.scale2, self.norm2)
    x = x if mask is None else jnp.where(mask[..., None], x, 0)
    if not isinstance(value, Mapping) and weights is None:
      return x
    more: dict[str, Any] = {} if weights is None else {'attention': weights}
    more |= {'carry': {**carry, self.name: cache}} if carry else {}
    return {**given, 'x': x, **more}

  def _joined(self, x: Array, branch: Array, scale: LayerScale | None, norm: Any) -> Array:
    branch = self.dropout(branch)
    both = x + self.depth(branch if scale is None else scale(branch))
    return norm(both) if self.behind else both


# ------------------------------------------------------------------------------------------------------- on texts
class Embeddings(nnx.Module):
  """Numbers of tokens [batch, places], −1 for padding, as sums of vectors that are learnt: of the token, of its
  position, and of the first kind of texts (BERT's token types, whose second is for pairs of texts).

  Positions count real tokens, so that padding may stand anywhere. Where the value holds 'carry', the number of tokens
  before these stands there under 'embed'.

  Args:
    positions: rows of their table; None: there is none.
    first: the row of the first position (2 in RoBERTa).
    kinds: of texts; 0: no table of them.
    norm: makes a normalisation of the sum; None: none.
  """

  def __init__(
    self,
    vocabulary: int,
    width: int,
    rngs: nnx.Rngs,
    *,
    positions: int | None = None,
    first: int = 0,
    kinds: int = 0,
    norm: Callable[[], nnx.Module] | None = None,
    dropout: float = 0.0,
  ):
    table = lambda rows: nnx.Param(NORMAL(rngs.params(), (rows, width)))
    self.embedding, self.first = table(vocabulary), first
    self.positions = None if positions is None else table(positions)
    self.kinds = table(kinds) if kinds else None
    self.norm = None if norm is None else norm()
    self.dropout = layers.Dropout(dropout)

  def __call__(self, tokens: Int[Array, 'batch places'] | Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = dict(tokens) if isinstance(tokens, Mapping) else {'x': tokens}
    mask, carry = given['x'] >= 0, given.get('carry', {})
    before = carry[EMBED]['before'] if carry else jnp.zeros(len(mask), jnp.int32)
    positions = jnp.maximum(before[:, None] + jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    x = self.embedding[...][jnp.maximum(given['x'], 0)]
    x = x if self.positions is None else x + self.positions[...][self.first + positions]
    x = x if self.kinds is None else x + self.kinds[...][0]
    x = self.dropout(x if self.norm is None else self.norm(x))  # type: ignore[operator]
    counted = {'carry': {**carry, EMBED: {'before': before + mask.sum(axis=1, dtype=jnp.int32)}}} if carry else {}
    return {**given, 'x': jnp.where(mask[..., None], x, 0), 'mask': mask, 'positions': positions, **counted}


def check_texts(
  network: str, input_shape: tuple[int, ...], width: int, heads: int, groups: int | None, positions: int | None
) -> None:
  """That a transformer of these sizes can be built, and has a position for every token of a text.

  Raises:
    UserError: inputs that are no texts, texts that are longer, or heads that do not divide the width.
  """
  where = f'network {network!r}'
  if len(input_shape) != 1:
    raise UserError(f'{where} takes texts [tokens], not inputs {list(input_shape)}')
  if width % heads:
    near = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - heads))
    raise UserError(f'{where}: {heads} heads do not divide a width of {width}; nearest: heads={near}')
  if groups is not None and heads % groups:
    near = min((n for n in range(1, heads + 1) if heads % n == 0), key=lambda n: abs(n - groups))
    raise UserError(f'{where}: {groups} groups do not divide {heads} heads; nearest: groups={near}')
  if positions is not None and input_shape[0] > positions:
    raise UserError(
      f'{where}: texts of {input_shape[0]:,} tokens, and it has {positions:,} positions; nearest: '
      f"data.tokens.length={positions}, or more positions, and ('embed/positions', 'positions:linear') for a source's"
    )
