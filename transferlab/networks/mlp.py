"""Multilayer perceptrons: layer1, layer2, …, head."""

from flax import nnx
from jaxtyping import Array, Float

from transferlab.config import Positive, Share
from transferlab.networks import layers
from transferlab.networks.network import Network, flat_features, network


class Dense(nnx.Module):
  """Linear, ReLU, dropout; flattens its input."""

  def __init__(self, inputs: int, outputs: int, dropout: float, rngs: nnx.Rngs):
    self.linear = nnx.Linear(inputs, outputs, rngs=rngs, kernel_init=nnx.initializers.he_normal())
    self.dropout = layers.Dropout(dropout)

  def __call__(self, x: Float[Array, 'batch ...']) -> Float[Array, 'batch outputs']:
    return self.dropout(nnx.relu(self.linear(flat_features(x))))


def mlp(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  hidden: list[Positive] = [128],  # noqa: B006 (never changed)
  dropout: Share = 0.0,
) -> Network:
  """A multilayer perceptron with one stage per hidden layer.

  Args:
    hidden: width of each hidden layer.
    dropout: share of each hidden layer's features that is dropped in training.
  """

  def create(rngs: nnx.Rngs) -> dict:
    width, stages = 1, {}
    for extent in input_shape:
      width *= extent
    for number, features in enumerate(hidden, 1):
      stages[f'layer{number}'] = Dense(width, features, dropout, rngs)
      width = features
    return {**stages, 'head': layers.head(width, outputs, rngs)}

  return network(create)
