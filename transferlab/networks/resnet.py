"""The CIFAR ResNet family (He et al. 2016, section 4.2): stem, block1, …, block3n, pool, head."""

from typing import Annotated, Literal

import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float

from transferlab.config import Positive, Share
from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.networks.mlp import Dense
from transferlab.networks.network import Network, network

KAIMING = nnx.initializers.variance_scaling(2.0, 'fan_in', 'normal')


class Stem(nnx.Module):
  """3×3 convolution, BatchNorm, ReLU."""

  def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
    self.conv = layers.Conv(inputs, outputs, padding=1, use_bias=False, rngs=rngs, kernel_init=KAIMING)
    self.norm = layers.BatchNorm(outputs)

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch height width outputs']:
    return nnx.relu(self.norm(self.conv(x)))


class BasicBlock(nnx.Module):
  """Two 3×3 convolutions around a shortcut: ReLU(x + F(x)).

  Where the shape changes, shortcut A takes every second pixel and pads the channels with zeros on both sides;
  shortcut B is a 1×1 convolution with BatchNorm.
  """

  def __init__(self, inputs: int, outputs: int, strides: int, shortcut: str, rngs: nnx.Rngs):
    self.conv1 = layers.Conv(
      inputs, outputs, strides=strides, padding=1, use_bias=False, rngs=rngs, kernel_init=KAIMING
    )
    self.norm1 = layers.BatchNorm(outputs)
    self.conv2 = layers.Conv(outputs, outputs, padding=1, use_bias=False, rngs=rngs, kernel_init=KAIMING)
    self.norm2 = layers.BatchNorm(outputs)
    self.strides, self.missing = strides, outputs - inputs
    self.projects = shortcut == 'B' and (strides > 1 or self.missing > 0)
    if self.projects:
      self.project = layers.Conv(
        inputs, outputs, 1, strides=strides, padding=0, use_bias=False, rngs=rngs, kernel_init=KAIMING
      )
      self.project_norm = layers.BatchNorm(outputs)

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    y = nnx.relu(self.norm1(self.conv1(x)))
    y = self.norm2(self.conv2(y))
    return nnx.relu(y + self._shortcut(x))

  def _shortcut(self, x: Array) -> Array:
    if self.projects:
      return self.project_norm(self.project(x))
    before = self.missing // 2
    return jnp.pad(x[:, :: self.strides, :: self.strides], [(0, 0)] * 3 + [(before, self.missing - before)])


class Pool(nnx.Module):
  """Global mean, then dropout: behind the pooling it is cheap."""

  def __init__(self, dropout: float):
    self.dropout = layers.Dropout(dropout)

  def __call__(self, x: Float[Array, 'batch height width features']) -> Float[Array, 'batch features']:
    return self.dropout(x.mean(axis=(1, 2)))


def resnet(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  depth: Annotated[int, pydantic.Field(ge=8, le=1202)] = 20,
  width: Positive = 16,
  shortcut: Literal['A', 'B'] = 'A',
  blocks: Positive | None = None,
  features: Positive | None = None,
  dropout: Share = 0.0,
) -> Network:
  """A CIFAR ResNet of `depth` = 6n + 2 layers; each of its 3n blocks is a stage.

  Args:
    depth: 8, 14, 20, 32, 44, 56, 110, ….
    width: channels of the first n blocks; doubled twice.
    shortcut: A or B, as in the paper.
    blocks: how many of the 3n blocks there are: fewer are the first part of the network (partial depth); None: all.
      A foreign file of fewer blocks is not recognised, as it could be of any depth.
    features: width of a dense stage with ReLU between pool and head; None: no such stage.
    dropout: share of the pooled features that is dropped in training.

  Raises:
    UserError: a depth that is not 6n + 2, more blocks than it has, or inputs that are no images.
  """
  if (depth - 2) % 6:
    near = 6 * round((depth - 2) / 6) + 2
    raise UserError(f"network 'resnet': depth is 6n + 2 (8, 14, 20, 32, 44, 56, 110, …), not {depth}; nearest: {near}")
  size = (depth - 2) // 6
  kept = 3 * size if blocks is None else blocks
  if kept > 3 * size:
    raise UserError(f"network 'resnet': depth {depth} has {3 * size} blocks, not {kept}; nearest: {3 * size}")
  if len(input_shape) != 3:
    raise UserError(f"network 'resnet' takes images [height, width, channels], not inputs {list(input_shape)}")

  def create(rngs: nnx.Rngs) -> dict:
    stages: dict = {'stem': Stem(input_shape[-1], width, rngs)}
    inputs = width
    for number in range(kept):
      group, first = number // size, number % size == 0
      channels = width * 2**group
      strides = 2 if first and group else 1
      stages[f'block{number + 1}'] = BasicBlock(inputs, channels, strides, shortcut, rngs)
      inputs = channels
    stages['pool'] = Pool(dropout)
    if features is not None:
      stages['dense'] = Dense(inputs, features, 0.0, rngs)
    return {**stages, 'head': layers.head(features or inputs, outputs, rngs)}

  return network(create)
