"""Big Transfer's ResNet-v2 (Kolesnikov et al. 2020): stem, block1, …, pool, head.

BatchNorm has given way to GroupNorm, and every kernel but the head's is standardised before it is used.
"""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from transferlab.config import Positive, Share
from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.networks.imagenet_resnet import EXPANSION, check_blocks, padded_max_pool, places
from transferlab.networks.network import Network, network
from transferlab.networks.vgg import KAIMING

NORM_GROUPS = 32
EPSILON = 1e-10


class StandardConv(layers.Conv):
  """A convolution without bias whose kernel is standardised: each filter has mean 0 and variance 1 (Qiao et al. 2019).

  W' = (W − mean) / √(var + 10⁻¹⁰), over height, width and inputs of each output.
  """

  def __init__(self, inputs: int, outputs: int, size: int, *, strides: int = 1, rngs: nnx.Rngs):
    padding = size // 2
    super().__init__(
      inputs, outputs, size, strides=strides, padding=padding, use_bias=False, rngs=rngs, kernel_init=KAIMING
    )

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    kernel = self.kernel[...]
    mean, var = kernel.mean(axis=(0, 1, 2)), kernel.var(axis=(0, 1, 2))
    return layers.convolve(x, (kernel - mean) * lax.rsqrt(var + EPSILON), self.strides, self.padding)


def group_norm(channels: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
  """GroupNorm over 32 groups (Wu and He 2018)."""
  return nnx.GroupNorm(channels, NORM_GROUPS, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


class Stem(nnx.Module):
  """7×7 convolution with stride 2, then 3×3 max pooling with stride 2 over a border of zeros."""

  def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
    self.conv = StandardConv(inputs, outputs, 7, strides=2, rngs=rngs)

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    return padded_max_pool(self.conv(x))


class Block(nnx.Module):
  """A bottleneck with GroupNorm and ReLU before each convolution: x + F(x) (He et al. 2016b).

  Where the shape changes, the shortcut is a 1×1 convolution of what the first norm gives.
  """

  def __init__(self, inputs: int, channels: int, strides: int, projects: bool, rngs: nnx.Rngs):
    outputs = EXPANSION * channels
    self.norm1, self.conv1 = group_norm(inputs, rngs), StandardConv(inputs, channels, 1, rngs=rngs)
    self.norm2, self.conv2 = group_norm(channels, rngs), StandardConv(channels, channels, 3, strides=strides, rngs=rngs)
    self.norm3, self.conv3 = group_norm(channels, rngs), StandardConv(channels, outputs, 1, rngs=rngs)
    self.projects = projects
    if projects:
      self.project = StandardConv(inputs, outputs, 1, strides=strides, rngs=rngs)

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    first = nnx.relu(self.norm1(x))
    y = nnx.relu(self.norm2(self.conv1(first)))
    y = self.conv3(nnx.relu(self.norm3(self.conv2(y))))
    return y + (self.project(first) if self.projects else x)


class Pool(nnx.Module):
  """GroupNorm, ReLU and global mean, then dropout."""

  def __init__(self, features: int, dropout: float, rngs: nnx.Rngs):
    self.norm, self.dropout = group_norm(features, rngs), layers.Dropout(dropout)

  def __call__(self, x: Float[Array, 'batch height width features']) -> Float[Array, 'batch features']:
    return self.dropout(jnp.mean(nnx.relu(self.norm(x)), axis=(1, 2)))


def bit(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  depth: Literal[50, 101, 152] = 50,
  width: Positive = 64,
  blocks: Positive | None = None,
  dropout: Share = 0.0,
) -> Network:
  """A BiT ResNet-v2, each block of which is a stage.

  Args:
    width: channels of the stem and of the first group, 64 times the paper's width factor: 192 in R50x3; each later
      group doubles them.
    blocks: how many blocks there are: fewer are the first part of the network (partial depth); None: all.
    dropout: share of the pooled features that is dropped in training.

  Raises:
    UserError: a width that 32 groups do not divide, more blocks than there are, or inputs that are no images.
  """
  kept = check_blocks('bit', depth, blocks)
  layers.check_images('bit', input_shape, lambda pixels: pixels)  # every stride rounds up
  if width % NORM_GROUPS:
    near = NORM_GROUPS * max(round(width / NORM_GROUPS), 1)
    raise UserError(f"network 'bit': width is a multiple of {NORM_GROUPS}, not {width}; nearest: {near}")

  def create(rngs: nnx.Rngs) -> dict:
    stages: dict = {'stem': Stem(input_shape[-1], width, rngs)}
    inputs = width
    for number, (group, within) in enumerate(places(depth, kept), 1):
      channels = width * 2**group
      stages[f'block{number}'] = Block(inputs, channels, 2 if group and not within else 1, not within, rngs)
      inputs = EXPANSION * channels
    return {**stages, 'pool': Pool(inputs, dropout, rngs), 'head': layers.head(inputs, outputs, rngs)}

  return network(create)
