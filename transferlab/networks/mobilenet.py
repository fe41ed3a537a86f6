"""MobileNet v1 (Howard et al. 2017, table 1), padded as Keras pads it: stem, block1, …, block13, pool, head."""

from typing import Annotated

import pydantic
from flax import nnx
from jaxtyping import Array, Float

from transferlab.config import Positive, Share
from transferlab.networks import layers
from transferlab.networks.network import Network, network
from transferlab.networks.resnet import KAIMING, Pool
from transferlab.networks.vgg import dense_layers

STEM = 32
# Filters of each block's pointwise convolution, and the stride of its depthwise one, at width 1.
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


def batch_norm(channels: int) -> layers.BatchNorm:
  """With Keras' settings."""
  return layers.BatchNorm(channels, momentum=0.99, epsilon=1e-3)


class Stem(nnx.Module):
  """3×3 convolution with stride 2, BatchNorm, ReLU6."""

  def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
    self.conv = layers.Conv(inputs, outputs, strides=2, use_bias=False, rngs=rngs, kernel_init=KAIMING)
    self.norm = batch_norm(outputs)

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    return nnx.relu6(self.norm(self.conv(x)))


class Block(nnx.Module):
  """A 3×3 convolution within each channel, then a 1×1 convolution across them; BatchNorm and ReLU6 after both."""

  def __init__(self, inputs: int, outputs: int, strides: int, rngs: nnx.Rngs):
    # At stride 2 Keras puts a zero behind, always; 'SAME' puts one before as well where the side is odd.
    padding = 1 if strides == 1 else ((0, 1), (0, 1))
    self.depthwise = layers.DepthwiseConv(inputs, strides=strides, padding=padding, rngs=rngs, kernel_init=KAIMING)
    self.depthwise_norm = batch_norm(inputs)
    self.pointwise = layers.Conv(inputs, outputs, 1, padding=0, use_bias=False, rngs=rngs, kernel_init=KAIMING)
    self.pointwise_norm = batch_norm(outputs)

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    x = nnx.relu6(self.depthwise_norm(self.depthwise(x)))
    return nnx.relu6(self.pointwise_norm(self.pointwise(x)))


def extent(pixels: int, blocks: int) -> int:
  """The side of the map after so many blocks."""
  pixels = -(-pixels // 2)
  for _, strides in BLOCKS[:blocks]:
    pixels //= strides
  return pixels


def mobilenet(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  width: Annotated[float, pydantic.Field(ge=1 / STEM, le=64)] = 1.0,
  blocks: Annotated[int, pydantic.Field(ge=1, le=13)] = 13,
  features: list[Positive] = [],  # noqa: B006 (never changed)
  dropout: Share = 1e-3,
) -> Network:
  """MobileNet v1.

  Args:
    width: the paper's α, by which every number of channels is multiplied (and rounded down).
    blocks: how many of the 13 blocks there are: fewer are the first part of the network (partial depth).
    features: width of each dense layer with ReLU between pool and head; [] for none.
    dropout: share of the pooled features, and of each dense layer's, that is dropped in training.

  Raises:
    UserError: inputs that are no images, or so small that nothing is left of them (below 31 pixels for all blocks).
  """
  layers.check_images('mobilenet', input_shape, lambda pixels: extent(pixels, blocks))

  def create(rngs: nnx.Rngs) -> dict:
    inputs = int(STEM * width)
    stages: dict = {'stem': Stem(input_shape[-1], inputs, rngs)}
    for number, (filters, strides) in enumerate(BLOCKS[:blocks], 1):
      channels = int(filters * width)
      stages[f'block{number}'] = Block(inputs, channels, strides, rngs)
      inputs = channels
    stages['pool'] = Pool(dropout)
    stages |= dense_layers(inputs, features, dropout, rngs)
    return {**stages, 'head': layers.head([inputs, *features][-1], outputs, rngs)}

  return network(create)
