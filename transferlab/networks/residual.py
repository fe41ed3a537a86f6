"""What stands on the branches of residual blocks: a factor for each feature, and branches left out in training."""

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


class StochasticDepth(layers.Dropout):
  """Zeroes the residual branch of a share `rate` of the examples and scales the others by 1 / (1 − rate).

  Huang et al. 2016, equation 2, scaled in training instead of in evaluation. One decision per example; with one key per
  example it depends on the example's own key only.
  """

  def __call__(self, x: Float[Array, 'batch ...']) -> Float[Array, 'batch ...']:
    if not self.active:
      return x
    return x * super().__call__(jnp.ones((len(x), *[1] * (x.ndim - 1)), x.dtype))


def linear_rate(last: float, block: int, blocks: int) -> float:
  """The rate of stochastic depth at `block`, from 0, of `blocks`: in equal steps from 0 at the first to `last`."""
  return last * block / max(blocks - 1, 1)
