"""What stands on the branches of residual networks: a factor for each feature, and branches left out in training."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from transferlab.networks import layers


class LayerScale(nnx.Module):
  """A learnt factor for each feature (Touvron et al. 2021, eq. 4)."""

  def __init__(self, features: int, value: float):
    self.factors = nnx.Param(jnp.full(features, value))

  def __call__(self, x: Float[Array, '... features']) -> Float[Array, '... features']:
    return x * self.factors[...]


class StochasticDepth(nnx.Module):
  """Leaves a branch out in a share `rate` of the examples, and scales it by 1 / (1 − rate) in the others (Huang et al.
  2016; the paper scales in evaluation instead).
  """

  def __init__(self, rate: float):
    self.dropout = layers.Dropout(rate)

  def __call__(self, x: Float[Array, 'batch ...']) -> Float[Array, 'batch ...']:
    if not self.dropout.active:
      return x
    return x * self.dropout(jnp.ones((x.shape[0], *[1] * (x.ndim - 1)), x.dtype))


def rising(rate: float, blocks: int) -> list[float]:
  """The rate of each block: from 0 for the first linearly to `rate` for the last (Huang et al. 2016, eq. 4)."""
  return [rate * number / max(blocks - 1, 1) for number in range(blocks)]
