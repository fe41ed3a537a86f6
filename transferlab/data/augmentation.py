"""Random changes to training images, on the device: each example by itself (`apply`), then in pairs (`mix`).

Pure functions of arrays and one PRNG key per example; what may be asked for is the schema `Augment`. Translations and
mirroring are in image.py, RandAugment's operations in randaugment.py. jax is imported where it is used: data/sources.py
needs this file before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from transferlab.config import LATER, NonNegative, Positive, Schema
from transferlab.data import image
from transferlab.data.randaugment import TOP, RandAugment, blend, gray, randaugment
from transferlab.errors import UserError

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Key, Shaped

# Purposes, folded into each example's key; image.TRANSLATION and image.FLIP are 0 and 1.
VERTICAL_FLIP, CROP, RESIZED_CROP, BRIGHTNESS, CONTRAST, SATURATION, HUE, RANDAUGMENT, ERASE, MIX = range(2, 12)
CROP_ASPECTS = (3 / 4, 4 / 3)
NEARLY = 1.25  # times that an image may shrink without antialiasing
ERASED_SHARES, ERASED_ASPECTS = (0.02, 0.33), (0.3, 3.3)

Jitter = Annotated[float, Field(ge=0, le=10)]
Concentration = Annotated[float, Field(ge=0, le=1000)]
Shares = Annotated[
  tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]],
  BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
]


class Augment(Schema):
  """Random changes to training images, drawn for every view, on the device; in the order of these fields."""

  shift: NonNegative = Field(default=0, description='Translate by up to this many pixels; zeros come in from outside.')
  flip: bool = Field(default=False, description='Mirror left and right with probability 1/2.')
  vertical_flip: bool = Field(default=False, description='Mirror top and bottom with probability 1/2.')
  crop: Positive | None = Field(
    default=None,
    description='Side in pixels of the squares that the network sees: in training a random one, else the central one.',
  )
  resized_crop: Shares | None = Field(
    default=None,
    description='[low, high]: in training, a random share of the area within these bounds, with a random aspect ratio '
    'between 3/4 and 4/3, resized to `crop`, or to the size it came from (Szegedy et al. 2015).',
  )
  brightness: Jitter = Field(default=0.0, description='Factor from [max(0, 1 - v), 1 + v] on all levels.')
  contrast: Jitter = Field(default=0.0, description='Factor from [max(0, 1 - v), 1 + v] around the mean grey.')
  saturation: Jitter = Field(
    default=0.0, description="Factor from [max(0, 1 - v), 1 + v] around each pixel's grey; colour images only."
  )
  hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
    default=0.0, description='Turn hues by [-v, v]; 1 is the full circle; colour images only.'
  )
  randaugment: RandAugment | None = Field(
    default=None, description='Random operations in sequence on each image (Cubuk et al. 2020); None: none.'
  )
  erase: Annotated[float, Field(ge=0, le=1)] = Field(
    default=0.0,
    description='Probability of filling a box of 2 to 33 % of the area with the mean colour (Zhong et al. 2017).',
  )
  mixup: Concentration = Field(
    default=0.0,
    description='alpha > 0: mix images and labels of neighbours in the batch, with shares from Beta(alpha, alpha) '
    '(Zhang et al. 2018). With `cutmix` too, either happens with probability 1/2.',
  )
  cutmix: Concentration = Field(
    default=0.0,
    description='alpha > 0: paste a box from a neighbour in the batch, with shares of the area from Beta(alpha, '
    'alpha), and mix the labels as the areas (Yun et al. 2019).',
  )
  views: Positive | None = Field(
    default=None,
    description='How many different views of an image training cycles through, an epoch each (mixing stays random); '
    'None: a new one in every epoch. With a number, the outputs of frozen stages are computed once per view.',
    json_schema_extra=LATER,
  )

  @field_validator('resized_crop')
  @classmethod
  def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
    if value and value[0] > value[1]:
      raise ValueError('the lower share comes first')
    return value


def check(augment: Augment, shape: tuple[int, ...]) -> None:
  """Checks that images of this shape, [height, width, channels], can be augmented so.

  Raises:
    UserError: they are too small, or have no colours.
  """
  height, width, channels = shape
  size = f'images of {height}×{width}'
  if augment.shift >= min(height, width):
    raise UserError(f'data.augment.shift={augment.shift} moves {size} out of sight')
  if augment.crop is not None and augment.crop > min(height, width):
    raise UserError(f'data.augment.crop={augment.crop} is larger than {size}')
  for name in ('saturation', 'hue'):
    if getattr(augment, name) and channels != 3:
      raise UserError(f'data.augment.{name} is for images of 3 channels, not {channels}')
  if augment.randaugment and channels not in (1, 3):
    raise UserError(f'data.augment.randaugment is for images of 1 or 3 channels, not {channels}')


def couples(augment: Augment) -> bool:
  """Whether what an example becomes depends on others in the batch."""
  return bool(augment.mixup or augment.cutmix)


def output_shape(augment: Augment, shape: tuple[int, ...]) -> tuple[int, ...]:
  """[height, width, channels] of what the network sees, in training as in evaluation."""
  return shape if augment.crop is None else (augment.crop, augment.crop, shape[-1])


def centre_crop(x: Any, size: int | None) -> Any:
  """The central square of `size` pixels of images [..., H, W, C], for evaluation; None: the images themselves.

  Where the margin is odd the larger half is below and to the right.
  """
  if size is None:
    return x
  top, left = (x.shape[-3] - size) // 2, (x.shape[-2] - size) // 2
  return x[..., top : top + size, left : left + size, :]


def apply(
  x: Shaped[Array, 'batch height width channels'],
  keys: Key[Array, ' batch'],
  augment: Augment,
  low: float = 0.0,
  high: float = 1.0,
  fill: Float[Array, ' channels'] | float | None = None,
) -> Shaped[Array, 'batch out_height out_width channels']:
  """Each image changed by itself, as its own key says, in the order of the schema's fields; pairs are `mix`'s affair.

  Pure and jittable, with `augment` static. What moves whole pixels only keeps the dtype; all else gives float32 in
  [low, high]. Without anything to do, `x` itself.

  Args:
    x: uint8 or float32, in [low, high].
    keys: one PRNG key per example.
    fill: colour of erased boxes and of what RandAugment moves in; None: (low + high) / 2.
  """
  import functools

  import jax
  import jax.numpy as jnp

  steps = []
  if augment.shift or augment.flip:
    x = image.augment(x, keys, augment.shift, augment.flip)
  if augment.vertical_flip:
    steps.append(_flipped)
  if augment.resized_crop:
    out = output_shape(augment, x.shape[1:])
    steps.append(functools.partial(_resized_crop, shares=augment.resized_crop, shape=out, low=low, high=high))
  elif augment.crop is not None:
    steps.append(functools.partial(_cropped, size=augment.crop))
  background = jnp.broadcast_to(jnp.asarray((low + high) / 2 if fill is None else fill, jnp.float32), x.shape[-1:])
  if augment.brightness or augment.contrast or augment.saturation or augment.hue or augment.randaugment:
    steps.append(functools.partial(_colored, augment=augment, low=low, high=high, fill=background))
  if augment.erase:
    steps.append(functools.partial(_erased, probability=augment.erase, fill=background))
  if not steps:
    return x

  def one(value: Array, key: Array) -> Array:
    for step in steps:
      value = step(value, key)
    return value

  return jax.vmap(one)(x, keys)


def _flipped(x: Array, key: Array) -> Array:
  import jax
  import jax.numpy as jnp

  return jnp.where(jax.random.bernoulli(jax.random.fold_in(key, VERTICAL_FLIP)), x[::-1], x)


def _cropped(x: Array, key: Array, size: int) -> Array:
  """A window of size × size pixels; all places are equally probable."""
  import jax
  import jax.numpy as jnp

  room = jnp.array([x.shape[0] - size, x.shape[1] - size])
  start = jax.random.randint(jax.random.fold_in(key, CROP), (2,), 0, room + 1)
  return jax.lax.dynamic_slice(x, (start[0], start[1], 0), (size, size, x.shape[2]))


def _box(
  key: Array, shares: tuple[float, float], aspects: tuple[float, float], height: int, width: int
) -> tuple[Array, Array]:
  """Height and width of a box within the image, with area share ~ U[shares] and log(height / width) ~ U[log aspects].

  Aspect ratios with which a box of that area would not fit are left out (where none would fit, the nearest that does is
  taken), so nothing has to be drawn twice. Published implementations try 10 or 100 times, and then take the whole
  image or nothing; they thereby draw large areas less often.
  """
  import jax
  import jax.numpy as jnp

  of_share, of_aspect = jax.random.split(key)
  area = height * width * jax.random.uniform(of_share, minval=shares[0], maxval=shares[1])
  limits = jnp.clip(jnp.log(jnp.array(aspects)), jnp.log(area / width**2), jnp.log(height**2 / area))
  aspect = jnp.exp(jax.random.uniform(of_aspect, minval=limits[0], maxval=limits[1]))
  return jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)


def _resized_crop(
  x: Array, key: Array, shares: tuple[float, float], shape: tuple[int, ...], low: float, high: float
) -> Array:
  """A random window, resampled to `shape`: bilinear, antialiased where it may shrink by more than a quarter.

  The window is not rounded to whole pixels, and where it shrinks, pixels just outside of it count too.
  """
  import jax
  import jax.numpy as jnp

  of_box, of_place = jax.random.split(jax.random.fold_in(key, RESIZED_CROP))
  box = jnp.stack(_box(of_box, shares, CROP_ASPECTS, *x.shape[:2]))
  start = jax.random.uniform(of_place, (2,)) * jnp.maximum(jnp.array(x.shape[:2]) - box, 0)
  scale = jnp.array(shape[:2]) / box
  if max(x.shape[0] / shape[0], x.shape[1] / shape[1]) <= NEARLY:
    # Without the barrier XLA fuses both passes, and computes the first one anew for every pixel of the second.
    tall = jax.lax.optimization_barrier(_interpolated(x, start[0], scale[0], shape[0], 0))
    return _interpolated(tall, start[1], scale[1], shape[1], 1)
  x = x.astype(jnp.float32)
  resized = jax.image.scale_and_translate(x, shape, (0, 1), scale, -start * scale, method='linear', antialias=True)
  return jnp.clip(resized, low, high)  # weights sum to 1 up to rounding


def _interpolated(x: Array, start: Array, scale: Array, size: int, axis: int) -> Array:
  """Linear interpolation along an axis; on a CPU an eighth of the time of jax.image's products with whole matrices."""
  import jax.numpy as jnp

  place = jnp.clip((jnp.arange(size) + 0.5) / scale + start - 0.5, 0, x.shape[axis] - 1)
  low = jnp.floor(place).astype(jnp.int32)
  share = (place - low).reshape(-1, *[1] * (x.ndim - 1 - axis))
  high = jnp.minimum(low + 1, x.shape[axis] - 1)
  return x.take(low, axis, mode='clip') * (1 - share) + x.take(high, axis, mode='clip') * share


def _colored(x: Array, key: Array, augment: Augment, low: float, high: float, fill: Array) -> Array:
  """Colour jitter and RandAugment, both of which are defined in levels from 0 to 255."""
  import jax
  import jax.numpy as jnp

  unit = TOP / jnp.asarray(high - low, jnp.float32)
  levels = (x.astype(jnp.float32) - low) * unit
  levels = _jittered(levels, key, augment)
  if augment.randaugment:
    key = jax.random.fold_in(key, RANDAUGMENT)
    levels = randaugment(levels, key, augment.randaugment, (fill - low) * unit)
  return jnp.clip(low + levels / unit, low, high)


def _jittered(x: Array, key: Array, augment: Augment) -> Array:
  """Brightness, contrast, saturation, hue: in this order, as torchvision's ColorJitter, which shuffles it.

  The first three are d + f (x - d), clipped, with d black; the mean of the grey image; the grey image.
  """
  import jax

  def factor(purpose: int, spread: float) -> Array:
    return jax.random.uniform(jax.random.fold_in(key, purpose), minval=max(0.0, 1 - spread), maxval=1 + spread)

  if augment.brightness:
    x = blend(x, 0.0, factor(BRIGHTNESS, augment.brightness))
  if augment.contrast:
    x = blend(x, gray(x).mean(), factor(CONTRAST, augment.contrast))
  if augment.saturation:
    x = blend(x, gray(x), factor(SATURATION, augment.saturation))
  if augment.hue:
    import dm_pix

    turn = jax.random.uniform(jax.random.fold_in(key, HUE), minval=-augment.hue, maxval=augment.hue)
    x = dm_pix.adjust_hue(x / TOP, turn) * TOP
  return x


def _erased(x: Array, key: Array, probability: float, fill: Array) -> Array:
  """With this probability, a box of whole pixels of colour `fill` (Zhong et al. 2017, algorithm 1).

  2 to 33 % of the area, sides in a ratio of 0.3 to 3.3, before sides are rounded to whole pixels, at least one;
  everywhere within the image with equal probability.
  """
  import jax
  import jax.numpy as jnp

  height, width, _ = x.shape
  happens, of_box, of_place = jax.random.split(jax.random.fold_in(key, ERASE), 3)
  box = jnp.stack(_box(of_box, ERASED_SHARES, ERASED_ASPECTS, height, width))
  box = jnp.clip(jnp.round(box).astype(jnp.int32), 1, jnp.array([height, width]))
  start = jax.random.randint(of_place, (2,), 0, jnp.array([height, width]) - box + 1)
  inside = _inside(height, width, start, start + box)
  return jnp.where(inside & jax.random.bernoulli(happens, probability), fill, x.astype(jnp.float32))


def _inside(height: int, width: int, start: Array, stop: Array) -> Bool[Array, 'height width 1']:
  """Where `start` ≤ (row, column) < `stop`."""
  import jax.numpy as jnp

  rows, columns = jnp.arange(height), jnp.arange(width)
  tall = (rows >= start[0]) & (rows < stop[0])
  wide = (columns >= start[1]) & (columns < stop[1])
  return (tall[:, None] & wide[None, :])[..., None]


def mix(
  x: Shaped[Array, 'batch height width channels'],
  labels: Array | Mapping[str, Array],
  keys: Key[Array, ' batch'],
  mask: Bool[Array, ' batch'],
  augment: Augment,
  classes: int | Mapping[str, int],
) -> tuple[Shaped[Array, 'batch height width channels'], Any]:
  """Each image and its label mixed with those of the next in the batch, the last with the first.

    mixup   x' = λ x + (1 - λ) x_next, λ ~ Beta(alpha, alpha) (Zhang et al. 2018, eq. 1)
    cutmix  a box of x_next in x, with sides √(1 - λ) of the image's, its centre uniform over the image, cut at the edge
            and rounded to whole pixels; λ is then what of x is left (Yun et al. 2019, eqs. 1 and 2)

  and y' = λ y + (1 - λ) y_next in both, with λ drawn per example. With both asked for, either happens with probability
  1/2. Neighbours are neighbours in the global batch, so nothing depends on how many devices share it; padded
  rows stay, and mix into nothing. Without either, `x` and `labels` themselves.

  Args:
    x: after `apply`.
    labels: int [batch] are class numbers; float [batch, …] are targets of any kind. Or {task: either}.
    keys: those that `apply` had.
    mask: True for real examples, all of which come before padded ones.
    classes: number of classes, per task where there are several; not read for float labels.

  Returns:
    Images in float32, and float32 targets: [batch, classes] for class numbers, whose rows sum to 1, else [batch, …].
  """
  import jax
  import jax.numpy as jnp

  if not couples(augment):
    return x, labels
  weights, shares = jax.vmap(lambda key: _weights(key, augment, *x.shape[1:3]))(keys)
  last = jnp.arange(len(mask)) == mask.sum() - 1

  def mixed(values: Array, share: Array) -> Array:
    def by_row(rows: Array) -> Array:
      return rows.reshape(-1, *[1] * (values.ndim - 1))

    # A roll, and not a gather, which over a mesh would bring the whole batch to every device.
    following = jnp.where(by_row(last), values[:1], jnp.roll(values, -1, axis=0))
    return jnp.where(by_row(mask), share * values + (1 - share) * following, values)

  def soft(label: Array, count: int) -> Array:
    whole = jnp.issubdtype(label.dtype, jnp.integer)
    targets = jax.nn.one_hot(label, count) if whole else label.astype(jnp.float32)
    return mixed(targets, shares.reshape(-1, *[1] * (targets.ndim - 1)))

  return mixed(x.astype(jnp.float32), weights), jax.tree.map(soft, labels, classes)


def _weights(key: Array, augment: Augment, height: int, width: int) -> tuple[Float[Array, 'height width 1'], Array]:
  """What one image counts, by pixel, beside its partner; and what its label does."""
  import jax
  import jax.numpy as jnp

  choice, of_mixup, of_cutmix, of_centre = jax.random.split(jax.random.fold_in(key, MIX), 4)
  share, weights = jnp.ones(()), jnp.ones((height, width, 1))
  if augment.mixup:
    share = jax.random.beta(of_mixup, augment.mixup, augment.mixup)
    weights = share * weights
  if augment.cutmix:
    sides = jnp.array([height, width])
    half = sides * jnp.sqrt(1 - jax.random.beta(of_cutmix, augment.cutmix, augment.cutmix)) / 2
    centre = jax.random.uniform(of_centre, (2,)) * sides
    kept = 1.0 - _inside(height, width, jnp.round(centre - half), jnp.round(centre + half))
    pasted = jax.random.bernoulli(choice) if augment.mixup else True
    share, weights = jnp.where(pasted, kept.mean(), share), jnp.where(pasted, kept, weights)
  return weights, share
