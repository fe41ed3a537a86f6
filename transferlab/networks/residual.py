"""What networks of residual blocks share: stochastic depth, and its rates over the depth."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from transferlab.networks import layers


class StochasticDepth(layers.Dropout):
  """Zeroes the residual branch of a share `rate` of the examples and scales the others by 1 / (1 − rate).

  Huang et al. 2016, equation 2, scaled in training instead of in evaluation. One decision per example; with one key per
  example it depends on the example's own key only.
  """

  def __call__(self, x: Float[Array, 'batch ...']) -> Float[Array, 'batch ...']:
    return x * super().__call__(jnp.ones((len(x), *[1] * (x.ndim - 1)), x.dtype))


def linear_rate(last: float, block: int, blocks: int) -> float:
  """The rate of stochastic depth at `block`, from 0, of `blocks`: in equal steps from 0 at the first to `last`."""
  return last * block / max(blocks - 1, 1)
