"""RandAugment (Cubuk et al. 2020): a few random operations in sequence on one image, in levels from 0 to 255.

Here: the operations, and drawing which; augmentation.py says when they happen. jax is imported where it is used:
schemas must not load it. Under `vmap` every branch is computed, so branches share what costs: what is drawn of
rotations, shears and translations is one affine map, resampled once; brightness, contrast, colour and sharpness are
one blend with four different images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from transferlab.config import Schema

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int, Key

TOP = 255.0
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, of red, green and blue
OPERATIONS = (
  'identity',
  'autocontrast',
  'equalize',
  'solarize',
  'posterize',
  'brightness',
  'contrast',
  'color',
  'sharpness',
  'rotate',
  'shear_x',
  'shear_y',
  'translate_x',
  'translate_y',
)


class RandAugment(Schema):
  """How many operations, and how strong."""

  layers: Annotated[int, Field(ge=1, le=10)] = Field(default=2, description='Operations in sequence; N in the paper.')
  magnitude: Annotated[float, Field(ge=0, le=10)] = Field(
    default=9.0, description='Strength of all operations, 0 to 10; M in the paper.'
  )


def randaugment(
  x: Float[Array, 'height width channels'],
  key: Key[Array, ''],
  options: RandAugment,
  fill: Float[Array, ' channels'],
) -> Float[Array, 'height width channels']:
  """The image after `options.layers` operations, each drawn uniformly from the 14, with a random sign.

  Args:
    x: one image of 1 or 3 channels, in levels from 0 to 255.
    fill: levels that come in from outside.
  """
  import jax

  which, sign = jax.random.split(key)
  numbers = jax.random.randint(which, (options.layers,), 0, len(OPERATIONS))
  signs = jax.random.rademacher(sign, (options.layers,), 'float32')
  return perform(x, numbers, signs * (options.magnitude / 10), fill)


def perform(
  x: Float[Array, 'height width channels'],
  numbers: Int[Array, ' layers'],
  amounts: Float[Array, ' layers'],
  fill: Float[Array, ' channels'],
) -> Float[Array, 'height width channels']:
  """The image after the given operations; see `color` and `geometry` for what each does at amount a.

  Operations on colours happen in their order. Geometric ones are multiplied, in their order, and resampled once,
  after the others: bilinear, with half-centred pixels. The reference resamples each time, to the nearest pixel.

  Args:
    numbers: indices into `OPERATIONS`.
    amounts: in [-1, 1].
  """
  import jax
  import jax.numpy as jnp

  height, width, _ = x.shape

  def layer(carry: tuple[Array, Array], drawn: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
    image, matrix = carry
    # The default on accelerators has 8 to 11 bits, which would move pixels of a large image visibly.
    matrix = jnp.matmul(matrix, geometry(*drawn, height, width), precision=jax.lax.Precision.HIGHEST)
    return (color(image, *drawn), matrix), None

  (x, matrix), _ = jax.lax.scan(layer, (x, jnp.eye(3)), (numbers, amounts))
  return resample(x, matrix, fill)


def color(
  x: Float[Array, 'height width channels'], number: Int[Array, ''], amount: Float[Array, '']
) -> Float[Array, 'height width channels']:
  """The image after operation `number`, as Pillow defines it but for rounding; itself after a geometric one.

    autocontrast  each channel stretched to 0 … 255
    equalize      the cumulative histogram of each channel made linear, in steps of (pixels - those of the highest
                  level) // 255; images where that is 0 (the smallest) stay as they are
    solarize      levels from 256 (1 - |a|) up are inverted
    posterize     the lower round(4 |a|) of the 8 bits become 0
    brightness, contrast, color, sharpness
                  d + (1 + 0.9 a) (x - d), clipped, with d black; the mean of the grey image; the grey image; the image
                  smoothed by 3×3

  The ranges are those of Cubuk et al. 2019, table 6. More magnitude is always stronger (as in torchvision), while in
  the reference implementation it weakens solarize and posterize, and takes factors from 0.1 up to 1.9.
  """
  import jax.numpy as jnp

  is_color, is_sharpness = (number == OPERATIONS.index(name) for name in ('color', 'sharpness'))
  grey = gray(x)
  blended = blend(x, jnp.where(is_color, grey, _smooth(x)), 1 + 0.9 * amount)
  is_table = (number >= OPERATIONS.index('autocontrast')) & (number <= OPERATIONS.index('contrast'))
  levels = jnp.clip(jnp.round(x), 0, TOP).astype(jnp.int32)
  looked_up = _tables(levels, grey.mean(), number, amount)[jnp.arange(x.shape[-1]), levels]
  return jnp.where(is_table, looked_up, jnp.where(is_color | is_sharpness, blended, x))


def _tables(
  levels: Int[Array, 'height width channels'], mean: Float[Array, ''], number: Int[Array, ''], amount: Float[Array, '']
) -> Float[Array, 'channels 256']:
  """What each level of each channel becomes: the operations from autocontrast to contrast."""
  import jax
  import jax.numpy as jnp

  strength, level = jnp.abs(amount), jnp.arange(256.0)
  counts = jax.vmap(_histogram, in_axes=-1)(levels)
  size = 2.0 ** jnp.round(4 * strength)
  choices = {
    'autocontrast': jax.vmap(_stretched)(counts),
    'equalize': jax.vmap(_equalized)(counts),
    'solarize': jnp.where(level < 256 * (1 - strength), level, TOP - level),
    'posterize': jnp.floor(level / size) * size,
    'brightness': blend(level, 0.0, 1 + 0.9 * amount),
    'contrast': blend(level, mean, 1 + 0.9 * amount),
  }
  tables = jnp.stack([jnp.broadcast_to(choice, counts.shape) for choice in choices.values()])
  return tables[jnp.clip(number - OPERATIONS.index('autocontrast'), 0, len(choices) - 1)]


def _histogram(channel: Int[Array, 'height width']) -> Int[Array, ' 256']:
  """How often each level occurs."""
  import jax.numpy as jnp

  return jnp.zeros(256, jnp.int32).at[channel.ravel()].add(1)


def _stretched(counts: Int[Array, ' 256']) -> Float[Array, ' 256']:
  """The table that takes the lowest level that occurs to 0 and the highest to 255."""
  import jax.numpy as jnp

  level = jnp.arange(256.0)
  low, high = jnp.argmax(counts > 0), TOP - jnp.argmax(counts[::-1] > 0)
  return jnp.where(high > low, jnp.clip((level - low) * (TOP / jnp.maximum(high - low, 1)), 0, TOP), level)


def _equalized(counts: Int[Array, ' 256']) -> Float[Array, ' 256']:
  """The table that makes the cumulative histogram linear, in whole numbers."""
  import jax.numpy as jnp

  below = jnp.cumsum(counts) - counts
  step = below[255 - jnp.argmax(counts[::-1] > 0)] // 255
  table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
  return jnp.where(step > 0, table, jnp.arange(256)).astype(jnp.float32)


def gray(x: Float[Array, 'height width channels']) -> Float[Array, 'height width 1']:
  """The luma of red, green and blue; the mean over the channels where there are not three."""
  if x.shape[-1] != 3:
    return x.mean(axis=-1, keepdims=True)
  # Not as a reduction, which on a CPU takes eight times as long.
  return LUMA[0] * x[..., :1] + LUMA[1] * x[..., 1:2] + LUMA[2] * x[..., 2:]


def blend(x: Array, other: Array | float, factor: Array) -> Array:
  """other + factor · (x - other), clipped to levels: from `other` at 0 over x at 1 to the opposite of `other`."""
  import jax.numpy as jnp

  return jnp.clip(other + factor * (x - other), 0, TOP)


def _smooth(x: Array) -> Array:
  """The mean over 3×3 pixels in which the centre counts five times; the outermost pixels stay."""
  import jax.numpy as jnp

  if min(x.shape[:2]) < 3:
    return x
  rows = x[:-2] + x[1:-1] + x[2:]
  box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
  inner = (box + 4 * x[1:-1, 1:-1]) / 13
  return jnp.concatenate(
    [x[:1], jnp.concatenate([x[1:-1, :1], inner, x[1:-1, -1:]], axis=1), x[-1:]],
  )


def geometry(number: Int[Array, ''], amount: Float[Array, ''], height: int, width: int) -> Float[Array, '3 3']:
  """Where operation `number` takes pixels from: (row, column, 1) of the source = matrix · (row, column, 1).

    rotate       about the centre by 30 a degrees, counter-clockwise
    shear_x, _y  column + 0.3 a · row, and the reverse; the image's upper left corner stays
    translate    by round(150/331 · a · side) pixels: 150 pixels in Cubuk et al. 2019, whose images had 331

  Rows and columns are counted from the centre of the image. The identity for operations on colours.
  """
  import jax.numpy as jnp

  drawn = {name: (number == index) * amount for index, name in enumerate(OPERATIONS)}
  angle, shear_x, shear_y = jnp.deg2rad(30 * drawn['rotate']), 0.3 * drawn['shear_x'], 0.3 * drawn['shear_y']
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  down = jnp.round(150 / 331 * drawn['translate_y'] * height) + shear_y * width / 2
  right = jnp.round(150 / 331 * drawn['translate_x'] * width) + shear_x * height / 2
  return jnp.array([[cosine, sine + shear_y, down], [shear_x - sine, cosine, right], [0, 0, 1]])


def resample(
  x: Float[Array, 'height width channels'], matrix: Float[Array, '3 3'], fill: Float[Array, ' channels']
) -> Float[Array, 'height width channels']:
  """The image at the places that `geometry` gives, bilinear, with `fill` outside."""
  import jax
  import jax.numpy as jnp

  height, width, _ = x.shape
  row = jnp.arange(height)[:, None] - (height - 1) / 2
  column = jnp.arange(width)[None, :] - (width - 1) / 2
  rows = matrix[0, 0] * row + matrix[0, 1] * column + matrix[0, 2] + (height - 1) / 2
  columns = matrix[1, 0] * row + matrix[1, 1] * column + matrix[1, 2] + (width - 1) / 2

  def one(channel: Array) -> Array:
    return jax.scipy.ndimage.map_coordinates(channel, [rows, columns], order=1, mode='constant')

  # Relative to the fill, so that what comes in from outside is 0 for all channels, as that argument must be static.
  return jax.vmap(one, in_axes=-1, out_axes=-1)(x - fill) + fill
