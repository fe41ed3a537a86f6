"""Layers on sequences with padding: embeddings of tokens, recurrences, pooling over places that are real.

Between stages stands a dict: 'x' [batch, places, features], exactly 0 where there is padding, and 'mask' [batch,
places]. Nothing that is computed from one example depends on how far it was padded.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from transferlab.networks import layers

Sequence_ = dict[str, Any]
State = dict[str, Array]
Combine = Callable[[State, Array, Array], State]
Pool = Literal['last', 'mean', 'max', 'concat']


class Embed(nnx.Module):
  """Numbers of tokens [batch, places], −1 for padding, as vectors that are learnt.

  Args:
    dropout: share of the vocabulary that is dropped in an example in training, wherever it occurs (Gal and Ghahramani
      2016, section 4.2).
  """

  def __init__(self, vocabulary: int, features: int, rngs: nnx.Rngs, dropout: float = 0.0, scale: float = 0.1):
    self.embedding = nnx.Param(jax.random.uniform(rngs.params(), (vocabulary, features), minval=-scale, maxval=scale))
    self.words = layers.Dropout(dropout)

  def __call__(self, tokens: Int[Array, 'batch places'] | Mapping[str, Any]) -> Sequence_:
    given = dict(tokens) if isinstance(tokens, Mapping) else {'x': tokens}
    tokens = given['x']
    mask, numbers = tokens >= 0, jnp.maximum(tokens, 0)
    x = self.embedding[...][numbers]
    kept = self.words(jnp.ones((len(tokens), self.embedding.shape[0]), x.dtype)) if self.words.rate else None
    if kept is not None:
      x = x * jnp.take_along_axis(kept, numbers, axis=1)[..., None]
    return {**given, 'x': jnp.where(mask[..., None], x, 0), 'mask': mask}


class LockedDropout(nnx.Module):
  """Dropout whose mask is the same at every place of an example (Gal and Ghahramani 2016)."""

  def __init__(self, rate: float):
    self.dropout = layers.Dropout(rate)

  def __call__(self, x: Float[Array, 'batch places features']) -> Float[Array, 'batch places features']:
    if not self.dropout.rate:
      return x
    return x * self.dropout(jnp.ones((x.shape[0], x.shape[2]), x.dtype))[:, None]


def pooled(
  x: Float[Array, 'batch places features'], mask: Bool[Array, 'batch places'], pool: Pool
) -> Float[Array, 'batch pooled']:
  """One vector for each example, over its real places; 0 where it has none.

  Args:
    pool: the last place, the mean, the maximum; or 'concat', the three in this order (Howard and Ruder 2018, eq. 2 ff.:
      h_c = [h_T, maxpool(H), meanpool(H)], there with the maximum second).
  """
  if pool == 'concat':
    return jnp.concatenate([pooled(x, mask, each) for each in ('last', 'max', 'mean')], axis=-1)
  count = mask.sum(axis=1)
  if pool == 'mean':
    return jnp.where(mask[..., None], x, 0).sum(axis=1) / jnp.maximum(count, 1)[:, None]
  if pool == 'max':
    return jnp.where(count[:, None] > 0, jnp.where(mask[..., None], x, -jnp.inf).max(axis=1), 0)
  # The last real place, wherever the padding stands.
  last = x.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
  return jnp.where(count[:, None] > 0, jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0], 0)


def averaged(features: Float[Array, 'batch ... features'], value: Any) -> Float[Array, 'batch features']:
  """The mean over places, of those that are real where `value`, the stage's, has a 'mask' [batch, places]."""
  if isinstance(value, Mapping) and 'mask' in value and features.ndim == 3:
    return pooled(features, value['mask'], 'mean')
  return features.mean(axis=tuple(range(1, features.ndim - 1)))


# --------------------------------------------------------------------------------------------------- recurrences
class LSTM(nnx.Module):
  """Long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    i, f, g, o = x W + b + h U;  c' = σ(f) c + σ(i) tanh(g);  h' = σ(o) tanh(c')

  Gates stand in this order, which is PyTorch's and Keras's; PyTorch's two biases add up to this one.
  """

  states = ('h', 'c')

  def __init__(self, inputs: int, features: int, rngs: nnx.Rngs):
    self.features = features
    self.kernel = nnx.Param(nnx.initializers.glorot_uniform()(rngs.params(), (inputs, 4 * features)))
    self.recurrent = nnx.Param(_orthogonal(rngs, features, 4))
    # A forget gate that starts open (Jozefowicz et al. 2015, section 2.2).
    self.bias = nnx.Param(jnp.zeros(4 * features).at[features : 2 * features].set(1.0))
    self.recurrent_bias = None

  @staticmethod
  def combine(state: State, given: Array, own: Array) -> State:
    """The next state from x W + b and h U, [batch, 4 · features]."""
    i, f, g, o = jnp.split(given + own, 4, axis=-1)
    c = jax.nn.sigmoid(f) * state['c'] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return {'h': jax.nn.sigmoid(o) * jnp.tanh(c), 'c': c}


class GRU(nnx.Module):
  """Gated recurrent unit (Cho et al. 2014) with the reset gate behind the product, as cuDNN, PyTorch and Keras have it.

    r, z = σ(x W + b + h U + d);  n = tanh(x W + b + r (h U + d));  h' = (1 − z) n + z h

  Gates stand in the order r, z, n, which is PyTorch's; Keras has z, r, n.
  """

  states = ('h',)

  def __init__(self, inputs: int, features: int, rngs: nnx.Rngs):
    self.features = features
    self.kernel = nnx.Param(nnx.initializers.glorot_uniform()(rngs.params(), (inputs, 3 * features)))
    self.recurrent = nnx.Param(_orthogonal(rngs, features, 3))
    self.bias = nnx.Param(jnp.zeros(3 * features))
    self.recurrent_bias: nnx.Param | None = nnx.Param(jnp.zeros(3 * features))

  @staticmethod
  def combine(state: State, given: Array, own: Array) -> State:
    """The next state from x W + b and h U + d, [batch, 3 · features]."""
    given_r, given_z, given_n = jnp.split(given, 3, axis=-1)
    own_r, own_z, own_n = jnp.split(own, 3, axis=-1)
    r, z = jax.nn.sigmoid(given_r + own_r), jax.nn.sigmoid(given_z + own_z)
    return {'h': (1 - z) * jnp.tanh(given_n + r * own_n) + z * state['h']}


def _orthogonal(rngs: nnx.Rngs, features: int, gates: int) -> Array:
  made = [nnx.initializers.orthogonal()(rngs.params(), (features, features)) for _ in range(gates)]
  return jnp.concatenate(made, axis=1)


CELLS: dict[str, Any] = {'lstm': LSTM, 'gru': GRU}


def run(
  cell: LSTM | GRU,
  x: Float[Array, 'batch places inputs'],
  mask: Bool[Array, 'batch places'],
  state: State | None = None,
  *,
  reverse: bool = False,
) -> tuple[Float[Array, 'batch places features'], State]:
  """The recurrence over all places, and the state behind the last; padding leaves the state as it is.

  Args:
    state: to start from; None: zeros.
    reverse: from the last place to the first.
  """
  start = {name: jnp.zeros((x.shape[0], cell.features), x.dtype) for name in cell.states} if state is None else state
  given = jnp.moveaxis(x @ cell.kernel[...] + cell.bias[...], 1, 0)
  bias = 0.0 if cell.recurrent_bias is None else cell.recurrent_bias[...]
  added = jnp.broadcast_to(jnp.asarray(bias, given.dtype), given.shape)
  outputs, end = _scan(cell.combine, reverse, given, added, cell.recurrent[...], dict(start), mask.T)
  return jnp.moveaxis(jnp.where(mask.T[..., None], outputs, 0), 0, 1), end


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(
  combine: Combine, reverse: bool, given: Array, added: Array, recurrent: Array, start: State, mask: Array
) -> tuple[Array, State]:
  """([places, batch, features] h behind every place, the state at the end).

  Args:
    given, added: [places, batch, gates], what the input gives each place, and what is added to h U.
    mask: [places, batch].
  """

  def step(state: State, at: tuple[Array, Array, Array]) -> tuple[State, Array]:
    given, added, real = at
    moved = combine(state, given, state['h'] @ recurrent + added)
    state = {name: jnp.where(real[:, None], moved[name], state[name]) for name in state}
    return state, state['h']

  end, outputs = jax.lax.scan(step, start, (given, added, mask), reverse=reverse)
  return outputs, end


def _forward(
  combine: Combine, reverse: bool, given: Array, added: Array, recurrent: Array, start: State, mask: Array
) -> tuple[Any, Any]:
  whole = lambda given, added, start: _scan.fun(combine, reverse, given, added, recurrent, start, mask)
  (outputs, end), pull = jax.vjp(whole, given, added, start)
  return (outputs, end), (pull, outputs, start['h'])


def _back(combine: Combine, reverse: bool, kept: Any, slopes: Any) -> tuple[Any, ...]:
  pull, outputs, first = kept
  given, added, start = pull(slopes)
  # The gradient of U in one product over all places; autodiff would add a matrix of its size at each place.
  before = [first[None], outputs[:-1]] if not reverse else [outputs[1:], first[None]]
  recurrent = jnp.einsum('pbf,pbg->fg', jnp.concatenate(before), added)
  return given, added, recurrent, start, None


_scan.defvjp(_forward, _back)


class Recurrent(nnx.Module):
  """A recurrence in one direction, or in both with their outputs side by side; dropout as `LockedDropout`, before it.

  Where the value before it holds 'carry', the state that this stage is to start from stands there under `name`, and the
  state behind the last place takes its place (one direction only).
  """

  def __init__(
    self, cell: str, name: str, inputs: int, features: int, rngs: nnx.Rngs, *, both: bool = False, dropout: float = 0.0
  ):
    self.name, self.dropout = name, LockedDropout(dropout)
    self.forward = CELLS[cell](inputs, features, rngs)
    self.backward = CELLS[cell](inputs, features, rngs) if both else None

  def __call__(self, value: Sequence_) -> Sequence_:
    x, mask = self.dropout(value['x']), value['mask']
    carry = value.get('carry', {})
    outputs, end = run(self.forward, x, mask, carry.get(self.name))
    if self.backward is not None:
      outputs = jnp.concatenate([outputs, run(self.backward, x, mask, reverse=True)[0]], axis=-1)
    return {**value, 'x': outputs, **({'carry': {**carry, self.name: end}} if carry else {})}
