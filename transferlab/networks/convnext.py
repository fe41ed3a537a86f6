"""ConvNeXt (Liu et al. 2022): stem, block1, …, pool, head.

The layer that halves the map between two groups of blocks belongs to the first block of the later group.
"""

import functools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from transferlab.config import Positive, Share
from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.networks.network import Network, network
from transferlab.networks.residual import StochasticDepth, linear_rate
from transferlab.networks.transformer import NORMAL, layer_norm

# The paper's appendix A.1, as is NORMAL.
LAYER_SCALE = 1e-6
# How many times its inputs' channels a block's inverted bottleneck has.
EXPANSION = 4


def conv(inputs: int, outputs: int, size: int, rngs: nnx.Rngs) -> layers.Conv:
  """A convolution over windows that do not overlap."""
  return layers.Conv(inputs, outputs, size, strides=size, padding=0, rngs=rngs, kernel_init=NORMAL)


class Depthwise(layers.DepthwiseConv):
  """7×7 convolution within each channel, with a bias."""

  def __init__(self, channels: int, rngs: nnx.Rngs):
    super().__init__(channels, 7, padding=3, rngs=rngs, kernel_init=NORMAL)
    self.bias = nnx.Param(jnp.zeros(channels))

  def __call__(self, x: Float[Array, 'batch height width channels']) -> Float[Array, 'batch height width channels']:
    return super().__call__(x) + self.bias[...]


class Stem(nnx.Module):
  """4×4 convolution with stride 4, LayerNorm."""

  def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
    self.conv, self.norm = conv(inputs, outputs, 4, rngs), layer_norm(outputs, rngs)

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    return self.norm(self.conv(x))


class Block(nnx.Module):
  """x + γ · F(x): depthwise convolution, LayerNorm, linear layer, GELU, linear layer (figure 4).

  Before it, where the map is halved: LayerNorm and a 2×2 convolution with stride 2.
  """

  def __init__(self, inputs: int, channels: int, halves: bool, stochastic_depth: float, rngs: nnx.Rngs):
    self.halves = halves
    if halves:
      self.downsample_norm, self.downsample = layer_norm(inputs, rngs), conv(inputs, channels, 2, rngs)
    linear = functools.partial(nnx.Linear, kernel_init=NORMAL, rngs=rngs)
    self.depthwise, self.norm = Depthwise(channels, rngs), layer_norm(channels, rngs)
    self.expand, self.project = linear(channels, EXPANSION * channels), linear(EXPANSION * channels, channels)
    self.layer_scale = nnx.Param(jnp.full(channels, LAYER_SCALE))
    self.stochastic_depth = StochasticDepth(stochastic_depth)

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns channels']:
    if self.halves:
      x = self.downsample(self.downsample_norm(x))
    y = self.expand(self.norm(self.depthwise(x)))
    y = self.project(nnx.gelu(y, approximate=False))
    return x + self.stochastic_depth(self.layer_scale[...] * y)


class Pool(nnx.Module):
  """Global mean, LayerNorm, then dropout."""

  def __init__(self, features: int, dropout: float, rngs: nnx.Rngs):
    self.norm, self.dropout = layer_norm(features, rngs), layers.Dropout(dropout)

  def __call__(self, x: Float[Array, 'batch height width features']) -> Float[Array, 'batch features']:
    return self.dropout(self.norm(x.mean(axis=(1, 2))))


def convnext(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  depths: list[Positive] = [3, 3, 9, 3],  # noqa: B006 (never changed)
  widths: list[Positive] = [96, 192, 384, 768],  # noqa: B006 (never changed)
  dropout: Share = 0.0,
  stochastic_depth: Share = 0.1,
) -> Network:
  """A ConvNeXt, each block of which is a stage; tiny unless said otherwise.

  Args:
    depths: blocks of each group; small, base and large have [3, 3, 27, 3]. A shorter list is the first part of the
      network (partial depth).
    widths: channels of each group; small has those of tiny, base [128, 256, 512, 1024], large [192, 384, 768, 1536].
    dropout: share of the pooled features that is dropped in training.
    stochastic_depth: share of examples that skip the last block in training; it rises linearly from 0 at the first.

  Raises:
    UserError: as many depths as widths are not given, inputs that are no images, or so small that nothing is left.
  """
  if not depths or len(depths) != len(widths):
    raise UserError(f"network 'convnext': depths and widths are of the same groups, not {depths} and {widths}")
  layers.check_images('convnext', input_shape, lambda pixels: pixels // 4 // 2 ** (len(depths) - 1))

  def create(rngs: nnx.Rngs) -> dict:
    stages: dict = {'stem': Stem(input_shape[-1], widths[0], rngs)}
    inputs = widths[0]
    for group, (depth, channels) in enumerate(zip(depths, widths)):
      for within in range(depth):
        number = len(stages)
        rate = linear_rate(stochastic_depth, number - 1, sum(depths))
        stages[f'block{number}'] = Block(inputs, channels, bool(group) and not within, rate, rngs)
        inputs = channels
    return {**stages, 'pool': Pool(inputs, dropout, rngs), 'head': layers.head(inputs, outputs, rngs)}

  return network(create)
