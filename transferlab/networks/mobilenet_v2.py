"""MobileNet v2 (Sandler et al. 2018, table 2): stem, block1, …, block17, last, pool, head."""

import functools
from collections.abc import Callable
from typing import Annotated, Literal

import pydantic
from flax import nnx
from jaxtyping import Array, Float

from transferlab.config import Fraction, Share
from transferlab.networks import layers
from transferlab.networks.network import Network, network
from transferlab.networks.resnet import Pool
from transferlab.networks.vgg import KAIMING

STEM, LAST = 32, 1280
# Outputs of each block at width 1, and the stride of its depthwise convolution.
BLOCKS = (
  *((16, 1), (24, 2), (24, 1), (32, 2), *[(32, 1)] * 2, (64, 2), *[(64, 1)] * 3),
  *(*[(96, 1)] * 3, (160, 2), *[(160, 1)] * 2, (320, 1)),
)
# How many times its inputs' channels a block works on; the first one works on its inputs.
EXPANSION = 6


def rounded(channels: float) -> int:
  """The nearest multiple of 8 that is at least 8, and not below 90 % of the number."""
  near = max(8, int(channels + 4) // 8 * 8)
  return near + 8 if near < 0.9 * channels else near


def last_channels(width: float) -> int:
  """Outputs of the last convolution, which has never fewer than at width 1."""
  return rounded(LAST * max(width, 1.0))


class Stem(nnx.Module):
  """Convolution, BatchNorm, ReLU6; 3×3 with stride 2 at the front, 1×1 at the end."""

  def __init__(self, inputs: int, outputs: int, size: int, conv: Callable, norm: Callable):
    self.conv, self.norm = conv(inputs, outputs, size, strides=1 if size == 1 else 2), norm(outputs)

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    return nnx.relu6(self.norm(self.conv(x)))


class Block(nnx.Module):
  """An inverted residual: 1×1 convolution to many channels, 3×3 convolution within each, 1×1 convolution to few.

  BatchNorm after each, ReLU6 after all but the last; x is added where the shape stays.
  """

  def __init__(
    self, inputs: int, outputs: int, strides: int, expansion: int, make: tuple[Callable, Callable, Callable]
  ):
    conv, depthwise, norm = make
    channels = inputs * expansion
    self.expands, self.adds = expansion > 1, strides == 1 and inputs == outputs
    if self.expands:
      self.expand, self.expand_norm = conv(inputs, channels, 1), norm(channels)
    self.depthwise, self.depthwise_norm = depthwise(channels, strides=strides), norm(channels)
    self.project, self.project_norm = conv(channels, outputs, 1), norm(outputs)

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    y = nnx.relu6(self.expand_norm(self.expand(x))) if self.expands else x
    y = nnx.relu6(self.depthwise_norm(self.depthwise(y)))
    y = self.project_norm(self.project(y))
    return x + y if self.adds else y


def _makers(rngs: nnx.Rngs, padding: str, epsilon: float, momentum: float) -> tuple[Callable, Callable, Callable]:
  """Functions that make a convolution, one within each channel, and BatchNorm."""

  def conv(inputs: int, outputs: int, size: int, strides: int = 1) -> layers.Conv:
    zeros: layers.Padding = size // 2 if padding == 'both' else 'SAME'
    return layers.Conv(
      inputs, outputs, size, strides=strides, padding=zeros, use_bias=False, rngs=rngs, kernel_init=KAIMING
    )

  depthwise = functools.partial(
    layers.DepthwiseConv, padding=1 if padding == 'both' else 'SAME', rngs=rngs, kernel_init=KAIMING
  )
  return conv, depthwise, functools.partial(layers.BatchNorm, momentum=momentum, epsilon=epsilon)


def mobilenet_v2(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  width: Annotated[float, pydantic.Field(gt=0, le=64)] = 1.0,
  blocks: Annotated[int, pydantic.Field(ge=1, le=17)] = 17,
  padding: Literal['both', 'same'] = 'both',
  epsilon: Fraction = 1e-5,
  momentum: Fraction = 0.9,
  dropout: Share = 0.2,
) -> Network:
  """MobileNet v2.

  Args:
    width: by which every number of channels is multiplied, rounded to a multiple of 8.
    blocks: how many of the 17 blocks there are: fewer are the first part of the network (partial depth), without the
      stage 'last'.
    padding: zeros around a map that a 3×3 convolution takes every second pixel of: 'both': one on each side
      (torchvision); 'same': none in front where its side is even (Keras).
    epsilon, momentum: of BatchNorm; Keras has 1e-3 and 0.999.
    dropout: share of the pooled features that is dropped in training.

  Raises:
    UserError: inputs that are no images.
  """
  layers.check_images('mobilenet_v2', input_shape, lambda pixels: pixels)  # every stride rounds up

  def create(rngs: nnx.Rngs) -> dict:
    conv, depthwise, norm = _makers(rngs, padding, epsilon, momentum)
    inputs = rounded(STEM * width)
    stages: dict = {'stem': Stem(input_shape[-1], inputs, 3, conv, norm)}
    for number, (filters, strides) in enumerate(BLOCKS[:blocks], 1):
      channels = rounded(filters * width)
      expansion = EXPANSION if number > 1 else 1
      stages[f'block{number}'] = Block(inputs, channels, strides, expansion, (conv, depthwise, norm))
      inputs = channels
    if blocks == len(BLOCKS):
      stages['last'] = Stem(inputs, inputs := last_channels(width), 1, conv, norm)
    return {**stages, 'pool': Pool(dropout), 'head': layers.head(inputs, outputs, rngs)}

  return network(create)
