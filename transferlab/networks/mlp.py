"""Multilayer perceptrons: layer1, layer2, …, head; before them `embed`, where tables have categories."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from transferlab.config import Positive, Share
from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.networks.network import Network, flat_features, network


class Dense(nnx.Module):
  """Linear, ReLU, dropout; flattens its input, of which a share may be dropped too."""

  def __init__(self, inputs: int, outputs: int, dropout: float, rngs: nnx.Rngs, before: float = 0.0):
    self.before = layers.Dropout(before)
    self.linear = nnx.Linear(inputs, outputs, rngs=rngs, kernel_init=nnx.initializers.he_normal())
    self.dropout = layers.Dropout(dropout)

  def __call__(self, x: Float[Array, 'batch ...']) -> Float[Array, 'batch outputs']:
    return self.dropout(nnx.relu(self.linear(self.before(flat_features(x)))))


class Embed(nnx.Module):
  """Numbers of categories replaced by vectors that are learnt (Guo and Berkhahn 2016); numbers pass as they are.

  The vectors stand behind all numbers.
  """

  def __init__(self, categories: Sequence[Sequence[int]], widths: Sequence[int], rngs: nnx.Rngs):
    self.columns = tuple(column for column, _ in categories)
    for (column, values), width in zip(categories, widths):
      setattr(self, f'column{column}', nnx.Embed(values, width, rngs=rngs))

  def __call__(self, x: Float[Array, 'batch columns']) -> Float[Array, 'batch features']:
    numbers = [place for place in range(x.shape[1]) if place not in self.columns]
    vectors = [getattr(self, f'column{place}')(x[:, place].astype(jnp.int32)) for place in self.columns]
    return jnp.concatenate([x[:, jnp.array(numbers, jnp.int32)], *vectors], axis=1)


def mlp(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  hidden: list[Positive] = [128],  # noqa: B006 (never changed)
  dropout: Share = 0.0,
  input_dropout: Share = 0.0,
  categories: list[list[int]] = [],  # noqa: B006 (never changed)
  embedding: Positive | None = None,
) -> Network:
  """A multilayer perceptron with one stage per hidden layer; without any, a linear model.

  Args:
    hidden: width of each hidden layer.
    dropout: share of each hidden layer's features that is dropped in training.
    input_dropout: the same of what the first layer is given.
    categories: [column, number of values] of columns that hold numbers of categories, for a stage 'embed'; filled in
      from the data where they say categorical='embedding'.
    embedding: features of each category; None: min(50, ⌈n / 2⌉) for n values. A number lets a transplant match the
      categories of tables that have more or fewer of them.

  Raises:
    UserError: categories that the inputs do not have.
  """
  if categories and (len(input_shape) != 1 or any(len(c) != 2 or c[0] >= input_shape[0] for c in categories)):
    raise UserError(f"network 'mlp': categories {categories} for inputs {list(input_shape)}; they are [column, values]")
  if embedding and not categories:
    raise UserError("network 'mlp': embedding is for tables with categories, and data.categorical='embedding'")

  def create(rngs: nnx.Rngs) -> dict:
    stages: dict = {}
    width = math.prod(input_shape)
    if categories:
      widths = [embedding or min(50, -(-values // 2)) for _, values in categories]
      stages['embed'] = Embed(categories, widths, rngs)
      width += sum(widths) - len(widths)
    for number, features in enumerate(hidden, 1):
      stages[f'layer{number}'] = Dense(width, features, dropout, rngs, input_dropout if number == 1 else 0.0)
      width = features
    if not hidden and len(input_shape) > 1:
      stages['flat'] = flat_features
    return {**stages, 'head': layers.head(width, outputs, rngs)}

  return network(create)
