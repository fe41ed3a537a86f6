"""The convolutional network of Kim 2014 for sentences: embed, windows, head."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from transferlab.config import Positive, Share
from transferlab.errors import UserError
from transferlab.networks import layers, sequences
from transferlab.networks.network import Network, network


class Windows(nnx.Module):
  """Filters over windows of several widths, ReLU, the maximum over all windows that hold a real token, dropout.

  Zeros stand before and behind the text, so that the first word is seen at every place of a filter (Kim's code).
  """

  def __init__(self, inputs: int, widths: list[int], filters: int, dropout: float, rngs: nnx.Rngs):
    self.widths, self.dropout = tuple(widths), layers.Dropout(dropout)
    for width in widths:
      setattr(self, f'width{width}', nnx.Linear(width * inputs, filters, rngs=rngs))

  def __call__(self, value: sequences.Sequence_) -> Float[Array, 'batch features']:
    found = [self._pooled(value['x'], value['mask'], width) for width in self.widths]
    return self.dropout(jnp.concatenate(found, axis=-1))

  def _pooled(self, x: Array, mask: Array, width: int) -> Array:
    around, places = width - 1, x.shape[1] + width - 1
    x = jnp.pad(x, [(0, 0), (around, around), (0, 0)])
    mask = jnp.pad(mask, [(0, 0), (around, around)])
    windows = jnp.concatenate([x[:, i : i + places] for i in range(width)], axis=-1)
    real = jnp.stack([mask[:, i : i + places] for i in range(width)]).any(axis=0)
    return sequences.pooled(nnx.relu(getattr(self, f'width{width}')(windows)), real, 'max')


def textcnn(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  vocabulary: Positive,
  embedding: Positive = 128,
  widths: list[Positive] = [3, 4, 5],  # noqa: B006 (never changed)
  filters: Positive = 100,
  dropout: Share = 0.5,
) -> Network:
  """Convolutional neural networks for sentence classification (Kim 2014).

  Args:
    vocabulary: numbers of tokens; filled in from the data.
    embedding: features of each token.
    widths: tokens that filters see.
    filters: of each width.
    dropout: share of the pooled features that is dropped in training.

  Raises:
    UserError: no widths, or one twice.
  """
  if not widths or len(set(widths)) < len(widths):
    raise UserError(f"network 'textcnn': widths={widths} should name at least one, and none twice")

  def create(rngs: nnx.Rngs) -> dict:
    stages: dict = {'embed': sequences.Embed(vocabulary, embedding, rngs)}
    stages['windows'] = Windows(embedding, widths, filters, dropout, rngs)
    return {**stages, 'head': layers.head(len(widths) * filters, outputs, rngs)}

  return dataclasses.replace(network(create), dtype=jnp.int32)
