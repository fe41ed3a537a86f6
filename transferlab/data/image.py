"""What is done to images: corruption on the host, which belongs to the data, and augmentation on the device.

Corruption is a function of the seed and the example's id alone, so an example looks the same in every subset,
order and run; it also serves tables, which know only noise. Augmentation is a pure function of one key per
example. jax is imported where it is used: data/sources.py needs this file before anything heavy is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from transferlab.data.examples import Info

if TYPE_CHECKING:
  from jaxtyping import Array, Key, Shaped

ROTATION, NOISE = 16, 17  # purposes on the host; those of splits.py are 0 to 3
TRANSLATION, FLIP = range(2)  # purposes on the device, folded into each example's key


def corrupt(
  x: np.ndarray,
  ids: np.ndarray,
  info: Info,
  noise: float = 0.0,
  rotation: float = 0.0,
  contrast: float = 1.0,
  seed: int = 0,
  unit: np.ndarray | float | None = None,
) -> np.ndarray:
  """The examples, worsened in this order, in their own shape and dtype; what is at its default does nothing.

    rotation   about the centre by an angle drawn from U[-rotation, rotation] degrees, counter-clockwise,
               bilinear; what comes in from outside is `info.low`
    contrast   x' = m + contrast (x - m), with m the mean of the image over pixels and channels
    noise      x' = x + noise · unit · z, z ~ N(0, 1) per value

  Images are then clipped to [low, high], and uint8 images rounded to the nearest whole number.

  Args:
    x: images [N, H, W, C], uint8 or float32; or tables float32 [N, D], for which only noise is defined.
    ids: int [N], original row numbers.
    unit: None is high - low for images, and each column's standard deviation in `x` for tables.
  """
  image = info.kind == 'image'
  if not (noise or (image and (rotation or contrast != 1))):
    return x
  if unit is None:
    unit = info.high - info.low if image else x.std(axis=0, dtype=np.float64)
  deviation = np.asarray(noise * np.asarray(unit), np.float32)
  result = np.empty_like(x)
  for row, example in enumerate(ids):
    value = x[row].astype(np.float32)
    value = _turned(value, int(example), info, rotation, contrast, seed) if image else value
    if noise:
      value = value + deviation * _stream(seed, NOISE, int(example)).standard_normal(value.shape, np.float32)
    value = value.clip(info.low, info.high) if image else value
    result[row] = value.round() if x.dtype == np.uint8 else value
  return result


def _turned(value: np.ndarray, example: int, info: Info, rotation: float, contrast: float, seed: int) -> np.ndarray:
  """One image [H, W, C] after rotation and contrast."""
  if rotation:
    value = rotate(value, _stream(seed, ROTATION, example).uniform(-rotation, rotation), info.low)
  if contrast != 1:
    mean = value.mean(dtype=np.float64)
    value = (mean + contrast * (value - mean)).astype(np.float32)
  return value


def _stream(seed: int, purpose: int, example: int) -> np.random.Generator:
  return np.random.default_rng([seed, purpose, example])


def rotate(image: np.ndarray, degrees: float, background: float = 0.0) -> np.ndarray:
  """The image [H, W, C] float32, turned counter-clockwise about its centre, bilinear."""
  import cv2

  height, width, channels = image.shape
  matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
  options: dict[str, Any] = {
    'flags': cv2.INTER_LINEAR,
    'borderMode': cv2.BORDER_CONSTANT,
    'borderValue': background,
  }
  # One channel at a time: OpenCV fills the border of the first four channels only.
  turned = [
    cv2.warpAffine(np.ascontiguousarray(image[..., c]), matrix, (width, height), **options) for c in range(channels)
  ]
  return np.stack(turned, axis=-1)


def augment(
  x: Shaped[Array, 'batch height width channels'],
  keys: Key[Array, ' batch'],
  shift: int = 0,
  flip: bool = False,
) -> Shaped[Array, 'batch height width channels']:
  """Each image translated by up to ±`shift` pixels in both directions, and mirrored with probability 1/2.

  Both offsets are uniform over the 2·shift + 1 whole numbers; what comes in from outside is zero. Shape and
  dtype stay. Pure and jittable, with `shift` and `flip` static; an image's result depends on itself and its
  key only.

  Args:
    keys: one PRNG key per example.
    shift: pixels.
    flip: whether to mirror left and right.
  """
  import jax
  import jax.numpy as jnp

  def one(image: Array, key: Array) -> Array:
    if shift:
      start = jax.random.randint(jax.random.fold_in(key, TRANSLATION), (2,), 0, 2 * shift + 1)
      padded = jnp.pad(image, ((shift, shift), (shift, shift), (0, 0)))
      image = jax.lax.dynamic_slice(padded, (start[0], start[1], 0), image.shape)
    if flip:
      image = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, FLIP)), image[:, ::-1], image)
    return image

  return jax.vmap(one)(x, keys)
