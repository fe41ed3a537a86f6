"""SqueezeNet, version 1.1 (Iandola et al. 2016): stem, fire2, …, fire9, pool, head.

Pooling belongs to the stage before it: to stem, fire3 and fire5.
"""

import functools
from typing import Annotated, Literal

import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float

from transferlab.config import NonNegative, Share
from transferlab.networks import layers
from transferlab.networks.network import Network, network
from transferlab.networks.resnet import KAIMING, Pool

STEM = 64
# Channels of the squeeze convolution, and of each of the two expand convolutions, of fire2 … fire9.
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
POOLED = (3, 5)


def conv(inputs: int, outputs: int, size: int, rngs: nnx.Rngs, *, strides: int = 1, padding: int = 0) -> layers.Conv:
  """A convolution with He et al.'s initialisation (2015) of the kernel, zeros in the bias."""
  return layers.Conv(inputs, outputs, size, strides=strides, padding=padding, rngs=rngs, kernel_init=KAIMING)


class Stem(nnx.Module):
  """3×3 convolution with stride 2, ReLU, 3×3 max pooling with stride 2."""

  def __init__(self, inputs: int, padding: int, ceil_mode: bool, rngs: nnx.Rngs):
    self.conv = conv(inputs, STEM, 3, rngs, strides=2, padding=padding)
    self.ceil_mode = ceil_mode

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    return layers.max_pool(nnx.relu(self.conv(x)), 3, 2, ceil_mode=self.ceil_mode)


class Fire(nnx.Module):
  """1×1 convolution to few channels, then 1×1 and 3×3 convolutions side by side; ReLU after each; maybe pooling."""

  def __init__(self, inputs: int, squeezed: int, expanded: int, pooled: bool, ceil_mode: bool, rngs: nnx.Rngs):
    self.squeeze = conv(inputs, squeezed, 1, rngs)
    self.expand1x1 = conv(squeezed, expanded, 1, rngs)
    self.expand3x3 = conv(squeezed, expanded, 3, rngs, padding=1)
    self.pooled, self.ceil_mode = pooled, ceil_mode

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    x = nnx.relu(self.squeeze(x))
    x = nnx.relu(jnp.concatenate([self.expand1x1(x), self.expand3x3(x)], axis=-1))
    return layers.max_pool(x, 3, 2, ceil_mode=self.ceil_mode) if self.pooled else x


class ClassMaps(nnx.Linear):
  """The published head: dropout, a map of each class by a 1×1 convolution, ReLU, and the mean over the map.

  A 1×1 convolution is a linear layer at every place, so the parameters are those of a linear head.
  """

  def __init__(self, features: int, outputs: int, *, dropout: float, rngs: nnx.Rngs):
    super().__init__(features, outputs, rngs=rngs, kernel_init=nnx.initializers.normal(0.01))
    self.dropout = layers.Dropout(dropout)

  def __call__(  # type: ignore[override]
    self, inputs: Float[Array, 'batch height width features']
  ) -> Float[Array, 'batch outputs']:
    return nnx.relu(super().__call__(self.dropout(inputs))).mean(axis=(1, 2))


def extent(pixels: int, blocks: int, padding: int, ceil_mode: bool) -> int:
  """The side of the map after so many fire modules."""
  pixels = layers.pooled_extent(pixels + 2 * padding, 3, 2)
  for _ in [1, *(number for number in POOLED if number < blocks + 2)]:
    pixels = layers.pooled_extent(pixels, 3, 2, ceil_mode=ceil_mode)
  return pixels


def squeezenet(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  head_type: Literal['linear', 'convolution'] = 'linear',
  ceil_mode: bool = False,
  padding: NonNegative = 0,
  blocks: Annotated[int, pydantic.Field(ge=1, le=8)] = 8,
  dropout: Share = 0.5,
) -> Network:
  """SqueezeNet 1.1.

  Args:
    head_type: 'linear': global mean, then a linear head, as in the other networks; 'convolution': the published one
      (dropout, maps of the classes, ReLU, global mean), whose logits are never negative; it has no stage 'pool'. The
      parameters are the same.
    ceil_mode: pooling gives a border that its windows do not fill a window of its own (torchvision), or leaves it
      out (Keras).
    padding: zeros around the image, for the first convolution; published weights have none.
    blocks: how many of the eight fire modules there are: fewer are the first part of the network (partial depth).
    dropout: share of the features before the head that is dropped in training.

  Raises:
    UserError: inputs that are no images, or so small that nothing is left of them.
  """
  layers.check_images('squeezenet', input_shape, lambda pixels: extent(pixels, blocks, padding, ceil_mode))

  def create(rngs: nnx.Rngs) -> dict:
    stages: dict = {'stem': Stem(input_shape[-1], padding, ceil_mode, rngs)}
    inputs = STEM
    for number, (squeezed, expanded) in enumerate(FIRES[:blocks], 2):
      stages[f'fire{number}'] = Fire(inputs, squeezed, expanded, number in POOLED, ceil_mode, rngs)
      inputs = 2 * expanded
    if head_type == 'convolution':
      return {**stages, 'head': layers.head(inputs, outputs, rngs, functools.partial(ClassMaps, dropout=dropout))}
    return {**stages, 'pool': Pool(dropout), 'head': layers.head(inputs, outputs, rngs)}

  return network(create)
