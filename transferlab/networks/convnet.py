"""A convolutional network of LeNet's size: block1, block2, …, dense, head."""

from flax import nnx
from jaxtyping import Array, Float

from transferlab.config import Positive, Share
from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.networks.mlp import Dense
from transferlab.networks.network import Network, network


class Block(nnx.Module):
  """3×3 convolution, optional BatchNorm, ReLU, 2×2 max pooling."""

  def __init__(self, inputs: int, outputs: int, batch_norm: bool, rngs: nnx.Rngs):
    self.conv = layers.Conv(inputs, outputs, rngs=rngs, kernel_init=nnx.initializers.he_normal())
    self.norm = layers.BatchNorm(outputs) if batch_norm else None

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    x = self.conv(x)
    x = x if self.norm is None else self.norm(x)
    return layers.max_pool(nnx.relu(x))


def convnet(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  width: Positive = 32,
  blocks: Positive = 2,
  features: Positive = 128,
  batch_norm: bool = False,
  dropout: Share = 0.0,
) -> Network:
  """Convolution blocks that double their width and halve the image, then a dense layer and the head.

  Args:
    width: channels of the first block.
    blocks: number of blocks.
    features: width of the dense layer.
    batch_norm: BatchNorm after each convolution.
    dropout: share of the dense layer's features that is dropped in training.

  Raises:
    UserError: the input is no image, or too small for so many halvings.
  """
  if len(input_shape) != 3:
    raise UserError(f"network 'convnet' takes images [height, width, channels], not inputs {list(input_shape)}")
  height, columns, channels = input_shape
  if blocks >= min(height, columns).bit_length():
    raise UserError(
      f"network 'convnet': {blocks} blocks halve a {height}×{columns} image to nothing; "
      f'at most {min(height, columns).bit_length() - 1} fit'
    )

  def create(rngs: nnx.Rngs) -> dict:
    stages: dict = {}
    inputs = channels
    for number in range(1, blocks + 1):
      stages[f'block{number}'] = Block(inputs, width * 2 ** (number - 1), batch_norm, rngs)
      inputs = width * 2 ** (number - 1)
    size = (height // 2**blocks) * (columns // 2**blocks) * inputs
    stages['dense'] = Dense(size, features, dropout, rngs)
    return {**stages, 'head': layers.head(features, outputs, rngs)}

  return network(create)
