"""The VGG family (Simonyan and Zisserman 2014, table 1): block1, …, block5, pool, dense1, dense2, …, head."""

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from flax import nnx
from jaxtyping import Array, Float

from transferlab.config import Positive, Share
from transferlab.networks import layers
from transferlab.networks.mlp import Dense
from transferlab.networks.network import Network, flat_features, network

# Convolutions of each block: the paper's configurations A, B, D and E.
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
# Channels of each block, in units of the first one's.
WIDTHS = (1, 2, 4, 8, 8)
# Side of the map that the dense layers see.
GRID = 7
# The original was trained from a smaller one's weights; this is torchvision's (He et al. 2015, by fan-out).
KAIMING = nnx.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class Block(nnx.Module):
  """3×3 convolutions, each with optional BatchNorm and ReLU; then 2×2 max pooling."""

  def __init__(self, inputs: int, outputs: int, convolutions: int, batch_norm: bool, rngs: nnx.Rngs):
    self.numbers, self.batch_norm = tuple(range(1, convolutions + 1)), batch_norm
    for number in self.numbers:
      setattr(self, f'conv{number}', layers.Conv(inputs, outputs, padding=1, rngs=rngs, kernel_init=KAIMING))
      if batch_norm:
        setattr(self, f'norm{number}', layers.BatchNorm(outputs))
      inputs = outputs

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    for number in self.numbers:
      x = getattr(self, f'conv{number}')(x)
      x = nnx.relu(getattr(self, f'norm{number}')(x) if self.batch_norm else x)
    return layers.max_pool(x)


def flat_grid(x: Float[Array, 'batch height width channels']) -> Float[Array, 'batch features']:
  """A map of 7×7 places, averaged to that where it has others, as one vector: height, width, channels."""
  return flat_features(layers.adaptive_average_pool(x, GRID, GRID))


def mean(x: Float[Array, 'batch height width channels']) -> Float[Array, 'batch channels']:
  """The global mean of each channel."""
  return x.mean(axis=(1, 2))


def dense_layers(inputs: int, features: Sequence[int], dropout: float, rngs: nnx.Rngs) -> dict[str, Dense]:
  """Stages dense1, dense2, …."""
  pairs = itertools.pairwise([inputs, *features])
  return {f'dense{number}': Dense(*pair, dropout, rngs) for number, pair in enumerate(pairs, 1)}


def vgg(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  depth: Literal[11, 13, 16, 19] = 16,
  batch_norm: bool = False,
  width: Positive = 64,
  blocks: Annotated[int, pydantic.Field(ge=1, le=5)] = 5,
  pool: Literal['flatten', 'average'] = 'flatten',
  features: list[Positive] = [4096, 4096],  # noqa: B006 (never changed)
  dropout: Share = 0.5,
) -> Network:
  """A VGG network, each block of which ends with its pooling.

  Args:
    depth: 11, 13, 16 or 19 layers with weights.
    batch_norm: BatchNorm after each convolution.
    width: channels of the first block; the next three double it, the fifth keeps.
    blocks: how many of the five blocks there are: fewer are the first part of the network (partial depth).
    pool: 'flatten': all places of the map (averaged to 7×7, which 224 pixels give); 'average': their mean.
    features: width of each dense layer with ReLU between pool and head; [] for none.
    dropout: share of each dense layer's features that is dropped in training.

  Raises:
    UserError: inputs that are no images, or smaller than 2^blocks pixels.
  """
  layers.check_images('vgg', input_shape, lambda pixels: pixels // 2**blocks)

  def create(rngs: nnx.Rngs) -> dict:
    stages: dict = {}
    inputs = input_shape[-1]
    for number, convolutions in enumerate(CONVOLUTIONS[depth][:blocks], 1):
      block = Block(inputs, inputs := width * WIDTHS[number - 1], convolutions, batch_norm, rngs)
      stages[f'block{number}'] = block
    stages['pool'] = flat_grid if pool == 'flatten' else mean
    inputs *= GRID**2 if pool == 'flatten' else 1
    stages |= dense_layers(inputs, features, dropout, rngs)
    return {**stages, 'head': layers.head([inputs, *features][-1], outputs, rngs)}

  return network(create)
