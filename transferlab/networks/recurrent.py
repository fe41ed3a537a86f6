"""Recurrent networks on texts: embed, lstm1 (or gru1), lstm2, …, pool, head; language models have no pool."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from transferlab.config import Positive, Share
from transferlab.errors import UserError
from transferlab.networks import layers, sequences
from transferlab.networks.network import Network, network


class Pooled(nnx.Module):
  """One vector for each example (sequences.pooled), then dropout."""

  def __init__(self, pool: sequences.Pool, dropout: float):
    self.pool, self.dropout = pool, layers.Dropout(dropout)

  def __call__(self, value: sequences.Sequence_) -> Float[Array, 'batch features']:
    return self.dropout(sequences.pooled(value['x'], value['mask'], self.pool))


class Ends(nnx.Module):
  """Of both directions the outputs where each has seen the whole text: the last place, and the first."""

  def __init__(self, features: int, dropout: float):
    self.features, self.dropout = features, layers.Dropout(dropout)

  def __call__(self, value: sequences.Sequence_) -> Float[Array, 'batch features']:
    x, mask = value['x'], value['mask']
    last = sequences.pooled(x[..., : self.features], mask, 'last')
    first = sequences.pooled(x[:, ::-1, self.features :], mask[:, ::-1], 'last')
    return self.dropout(jnp.concatenate([last, first], axis=-1))


class EveryPlace(nnx.Module):
  """The head of a language model: at every place a logit for each token, with dropout as `LockedDropout` before it.

  Args:
    embedding: whose rows are the weights (Press and Wolf 2017); None: weights of its own.
  """

  def __init__(
    self, features: int, outputs: int, dropout: float, rngs: nnx.Rngs, embedding: Any = None, *, bias: bool = True
  ):
    self.dropout = sequences.LockedDropout(dropout)
    self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
    self.embedding = embedding
    self.kernel = None if embedding is not None else nnx.Param(layers.LECUN(rngs.params(), (features, outputs)))

  def __call__(self, value: sequences.Sequence_) -> Float[Array, 'batch places tokens']:
    kernel = self.embedding[...].T if self.kernel is None else self.kernel[...]
    logits = self.dropout(value['x']) @ kernel
    return logits if self.bias is None else logits + self.bias[...]


def lstm(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  vocabulary: Positive,
  embedding: Positive = 128,
  hidden: list[Positive] = [128],  # noqa: B006 (never changed)
  both: bool = False,
  pool: Literal['last', 'mean', 'max', 'concat', 'none'] = 'last',
  tied: bool = False,
  embed_dropout: Share = 0.0,
  input_dropout: Share = 0.0,
  hidden_dropout: Share = 0.0,
  dropout: Share = 0.0,
) -> Network:
  """Long short-term memory, as a classifier or (pool='none') a language model.

  Args:
    vocabulary: numbers of tokens; filled in from the data.
    embedding: features of each token.
    hidden: features of each layer; of each direction, where there are both.
    both: read texts in both directions, side by side.
    pool: what the head sees of a text: its last place (of both directions the far ends), the mean, the maximum, the
      three of them ('concat', with the last place of both directions), or every place by itself ('none').
    tied: a language model's head has the embedding for weights.
    embed_dropout: share of the vocabulary that is dropped in an example.
    input_dropout: of the embedded tokens' features, hidden_dropout: of those between layers, the same at every place.
    dropout: of what the head sees.

  The four dropouts are those of AWD-LSTM (Merity et al. 2018, section 4); weight drop is a phase's transform.

  Raises:
    UserError: no layer; a head tied to an embedding of another width; a language model that reads in both directions.
  """
  return _recurrent('lstm', outputs, vocabulary, embedding, hidden, both, pool, tied, embed_dropout, input_dropout,
                    hidden_dropout, dropout)  # fmt: skip


def gru(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  vocabulary: Positive,
  embedding: Positive = 128,
  hidden: list[Positive] = [128],  # noqa: B006 (never changed)
  both: bool = False,
  pool: Literal['last', 'mean', 'max', 'concat', 'none'] = 'last',
  tied: bool = False,
  embed_dropout: Share = 0.0,
  input_dropout: Share = 0.0,
  hidden_dropout: Share = 0.0,
  dropout: Share = 0.0,
) -> Network:
  """Gated recurrent units; arguments and errors as of `lstm`."""
  return _recurrent('gru', outputs, vocabulary, embedding, hidden, both, pool, tied, embed_dropout, input_dropout,
                    hidden_dropout, dropout)  # fmt: skip


def _recurrent(
  cell: str,
  outputs: int | dict[str, int],
  vocabulary: int,
  embedding: int,
  hidden: list[int],
  both: bool,
  pool: str,
  tied: bool,
  embed_dropout: float,
  input_dropout: float,
  hidden_dropout: float,
  dropout: float,
) -> Network:
  where, places = f'network {cell!r}', pool == 'none'
  if not hidden:
    raise UserError(f'{where}: hidden=[] leaves nothing to read with; nearest: hidden=[128]')
  if tied and (not places or hidden[-1] != embedding):
    raise UserError(
      f"{where}: tied is for a language model (pool='none') whose last layer is as wide as the embedding, {embedding}"
    )
  if places and (both or not isinstance(outputs, int)):
    raise UserError(f"{where}: pool='none' answers at every place, for one task, from what is before it: both=False")

  if tied and outputs != vocabulary:
    what = f'tied answers with one of {vocabulary:,} tokens, and the labels are {outputs} classes'
    raise UserError(f"{where}: {what}; nearest: data.task='next_token'")

  def create(rngs: nnx.Rngs) -> dict:
    embed = sequences.Embed(vocabulary, embedding, rngs, embed_dropout)
    stages: dict[str, Callable] = {'embed': embed}
    width = embedding
    for number, features in enumerate(hidden, 1):
      name, share = f'{cell}{number}', input_dropout if number == 1 else hidden_dropout
      stages[name] = sequences.Recurrent(cell, name, width, features, rngs, both=both, dropout=share)
      width = (1 + both) * features
    if places:
      assert isinstance(outputs, int)
      stages['head'] = EveryPlace(width, outputs, dropout, rngs, embed.embedding if tied else None)
      return stages
    stages['pool'] = Ends(hidden[-1], dropout) if both and pool == 'last' else Pooled(pool, dropout)  # type: ignore[arg-type]
    return {**stages, 'head': layers.head((3 if pool == 'concat' else 1) * width, outputs, rngs)}

  def carry(batch: int) -> dict[str, Any]:
    return {
      f'{cell}{number}': {state: jnp.zeros((batch, features)) for state in sequences.CELLS[cell].states}
      for number, features in enumerate(hidden, 1)
    }

  return dataclasses.replace(network(create), dtype=jnp.int32, carry=None if both else carry)
