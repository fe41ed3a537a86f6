"""The ImageNet ResNet family (He et al. 2016, table 1), wide ones too: stem, block1, …, pool, head."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from transferlab.config import Fraction, Positive, Share
from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.networks.network import Network, network
from transferlab.networks.residual import StochasticDepth, linear_rate
from transferlab.networks.resnet import Pool
from transferlab.networks.vgg import KAIMING

# Blocks of each of the four groups.
GROUPS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# From this depth on blocks are bottlenecks, which give four times the channels that they work on.
BOTTLENECK = 50
EXPANSION = 4
Convolutions = Sequence[tuple[int, int, int]]  # (size, outputs, strides)


class Stem(nnx.Module):
  """7×7 convolution with stride 2, BatchNorm, ReLU, 3×3 max pooling with stride 2."""

  def __init__(self, inputs: int, outputs: int, conv: Callable, norm: Callable):
    self.conv, self.norm = conv(inputs, outputs, 7, strides=2, padding=3), norm(outputs)

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    return padded_max_pool(nnx.relu(self.norm(self.conv(x))))


def padded_max_pool(x: Float[Array, 'batch height width channels']) -> Float[Array, 'batch rows columns channels']:
  """3×3 max pooling with stride 2 over a border of zeros, which behind a ReLU is no other than one of −∞."""
  return layers.max_pool(jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), 3, 2)


class Block(nnx.Module):
  """Convolutions with BatchNorm around a shortcut, ReLU between them: ReLU(x + F(x)).

  Where the shape changes, the shortcut is a 1×1 convolution with BatchNorm (the paper's shortcut B).
  """

  def __init__(self, inputs: int, convolutions: Convolutions, conv: Callable, norm: Callable, stochastic_depth: float):
    self.numbers = tuple(range(1, len(convolutions) + 1))
    strides, channels = 1, inputs
    for number, (size, outputs, own) in enumerate(convolutions, 1):
      setattr(self, f'conv{number}', conv(channels, outputs, size, strides=own, padding=size // 2))
      setattr(self, f'norm{number}', norm(outputs))
      strides, channels = strides * own, outputs
    self.projects = strides > 1 or channels != inputs
    if self.projects:
      self.project, self.project_norm = conv(inputs, channels, 1, strides=strides, padding=0), norm(channels)
    self.stochastic_depth = StochasticDepth(stochastic_depth)

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    y = x
    for number in self.numbers:
      y = getattr(self, f'norm{number}')(getattr(self, f'conv{number}')(nnx.relu(y) if number > 1 else y))
    shortcut = self.project_norm(self.project(x)) if self.projects else x
    return nnx.relu(self.stochastic_depth(y) + shortcut)


def places(depth: int, blocks: int | None = None) -> list[tuple[int, int]]:
  """(group, number within it) of each block, from 0; of the first `blocks` of them only."""
  return [(group, within) for group, count in enumerate(GROUPS[depth]) for within in range(count)][:blocks]


def convolutions(depth: int, width: int, widening: int, stride_on: str, group: int, within: int) -> Convolutions:
  """(size, outputs, strides) of each convolution of a block."""
  channels, strides = width * 2**group, 2 if group and not within else 1
  if depth < BOTTLENECK:
    return [(3, channels, strides), (3, channels, 1)]
  first, second = (strides, 1) if stride_on == '1x1' else (1, strides)
  return [(1, channels * widening, first), (3, channels * widening, second), (1, EXPANSION * channels, 1)]


def check_blocks(name: str, depth: int, blocks: int | None) -> int:
  """How many blocks there are. Raises `UserError` where they are more than the depth has."""
  known = sum(GROUPS[depth])
  if blocks is not None and blocks > known:
    raise UserError(f'network {name!r}: depth {depth} has {known} blocks, not {blocks}; nearest: {known}')
  return blocks or known


def imagenet_resnet(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  depth: Literal[18, 34, 50, 101, 152] = 50,
  width: Positive = 64,
  widening: Positive = 1,
  blocks: Positive | None = None,
  stride_on: Literal['3x3', '1x1'] = '3x3',
  conv_bias: bool = False,
  epsilon: Fraction = 1e-5,
  momentum: Fraction = 0.9,
  dropout: Share = 0.0,
  stochastic_depth: Share = 0.0,
) -> Network:
  """An ImageNet ResNet, each block of which is a stage: basic blocks to depth 34, bottlenecks from 50 on.

  Args:
    width: channels of the stem and of the first group; each later group doubles them.
    widening: by what the channels inside of a bottleneck are multiplied: 2 in Wide ResNet-50-2 and 101-2 (Zagoruyko
      and Komodakis 2016).
    blocks: how many blocks there are: fewer are the first part of the network (partial depth); None: all.
    stride_on: which convolution of a bottleneck takes every second pixel: the 3×3 one (torchvision), or the first 1×1
      one (the paper, Keras).
    conv_bias: biases in the convolutions, which BatchNorm makes superfluous; Keras has them.
    epsilon, momentum: of BatchNorm; Keras has 1.001e-5 and 0.99.
    dropout: share of the pooled features that is dropped in training.
    stochastic_depth: share of examples that skip the last block in training; it rises linearly from 0 at the first.

  Raises:
    UserError: an option of bottlenecks without these, more blocks than there are, or inputs that are no images.
  """
  kept = check_blocks('imagenet_resnet', depth, blocks)
  layers.check_images('imagenet_resnet', input_shape, lambda pixels: pixels)  # every stride rounds up
  if depth < BOTTLENECK and (widening != 1 or stride_on != '3x3'):
    option = f'widening={widening}' if widening != 1 else f'stride_on={stride_on!r}'
    raise UserError(f"network 'imagenet_resnet': depth {depth} has no bottlenecks that {option} could be of")

  def create(rngs: nnx.Rngs) -> dict:
    conv = functools.partial(layers.Conv, use_bias=conv_bias, rngs=rngs, kernel_init=KAIMING)
    norm = functools.partial(layers.BatchNorm, momentum=momentum, epsilon=epsilon)
    stages: dict = {'stem': Stem(input_shape[-1], width, conv, norm)}
    inputs = width
    for index, (group, within) in enumerate(places(depth, kept)):
      parts = convolutions(depth, width, widening, stride_on, group, within)
      rate = linear_rate(stochastic_depth, index, len(places(depth)))
      stages[f'block{index + 1}'] = Block(inputs, parts, conv, norm, rate)
      inputs = parts[-1][1]
    return {**stages, 'pool': Pool(dropout), 'head': layers.head(inputs, outputs, rngs)}

  return network(create)
