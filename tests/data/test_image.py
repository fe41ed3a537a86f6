"""Images: corruption against SciPy and formulas in float64, and augmentation against a plain loop."""

import functools

import cv2
import jax
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from transferlab.data import image
from transferlab.data.examples import Info

IMAGE = Info('image', 'classification', low=0.0, high=16.0)
TABLE = Info('table', 'classification', columns=('a', 'b'))
BYTES = Info('image', 'classification', low=0.0, high=255.0)


def _images(count=6, size=9, channels=1):
  """Smooth, so that bilinear interpolations can be compared."""
  noise = np.random.default_rng(0).uniform(0, 16, (count, size, size, channels))
  return scipy.ndimage.gaussian_filter(noise, (0, 1, 1, 0)).astype(np.float32)


def test_a_quarter_turn_is_the_exact_counter_clockwise_quarter_turn():
  x = _images(1, 8, 2)[0]
  np.testing.assert_allclose(image.rotate(x, 90.0), np.rot90(x), atol=1e-3)


def test_rotation_equals_scipys_bilinear_rotation():
  x = _images(1, 16)[0]
  expected = scipy.ndimage.rotate(x[..., 0].astype(np.float64), 20.0, reshape=False, order=1, mode='grid-constant')
  # OpenCV rounds coordinates to 1/32 of a pixel in some versions.
  np.testing.assert_allclose(image.rotate(x, 20.0)[..., 0], expected, atol=0.3)
  assert np.abs(image.rotate(x, -20.0)[..., 0] - expected).max() > 1


def test_many_channels_all_get_the_background():
  turned = image.rotate(np.full((9, 9, 6), 5.0, np.float32), 45.0, background=5.0)
  np.testing.assert_allclose(turned, 5.0, atol=1e-5)


def test_angles_are_uniform_within_the_limits():
  """The angle is found again from the second moments of a bar."""
  bar = np.zeros((400, 41, 41, 1), np.float32)
  bar[:, 20, 8:33] = 16
  turned = image.corrupt(bar, np.arange(400), IMAGE, rotation=30.0)[..., 0].astype(np.float64)
  y, x = np.mgrid[-20:21, -20:21]
  xx, yy, xy = ((turned * each).sum(axis=(1, 2)) for each in (x * x, y * y, x * y))
  angles = -np.degrees(0.5 * np.arctan2(2 * xy, xx - yy))
  assert np.abs(angles).max() < 30.5
  assert scipy.stats.kstest(angles, scipy.stats.uniform(-30, 60).cdf).pvalue > 0.001


def test_contrast_scales_around_the_mean_of_each_image():
  x = _images(4, 5, 3)
  wide = x.astype(np.float64)
  mean = wide.mean(axis=(1, 2, 3), keepdims=True)
  expected = np.clip(mean + 0.3 * (wide - mean), 0, 16)
  np.testing.assert_allclose(image.corrupt(x, np.arange(4), IMAGE, contrast=0.3), expected, rtol=1e-5)
  strong = image.corrupt(x, np.arange(4), IMAGE, contrast=9.0)
  np.testing.assert_allclose(strong, np.clip(mean + 9 * (wide - mean), 0, 16), rtol=1e-4, atol=1e-4)
  assert strong.min() == 0
  assert strong.max() == 16


def test_noise_of_images_is_gaussian_in_units_of_the_range_and_clipped():
  x = np.full((50, 20, 20, 1), 8.0, np.float32)
  z = ((image.corrupt(x, np.arange(50), IMAGE, noise=0.05) - 8.0) / (0.05 * 16)).ravel()
  assert scipy.stats.kstest(z, 'norm').pvalue > 0.001
  hard = image.corrupt(x, np.arange(50), IMAGE, noise=1.0)
  assert hard.min() == 0
  assert hard.max() == 16


def test_noise_of_tables_is_in_units_of_the_columns_and_not_clipped():
  x = (np.random.default_rng(0).normal(size=(20000, 2)) * [1, 100]).astype(np.float32)
  added = image.corrupt(x, np.arange(20000), TABLE, noise=0.5).astype(np.float64) - x
  np.testing.assert_allclose(added.std(axis=0), 0.5 * x.std(axis=0), rtol=0.02)
  assert abs(np.corrcoef(added.T)[0, 1]) < 0.03
  given = image.corrupt(x, np.arange(20000), TABLE, noise=0.5, unit=np.array([2.0, 4.0])).astype(np.float64) - x
  np.testing.assert_allclose(given.std(axis=0), [1.0, 2.0], rtol=0.02)


def test_corruption_of_an_example_depends_on_its_id_and_the_seed_only():
  x, ids = _images(6), np.array([5, 17, 2, 90, 41, 8])
  options = {'noise': 0.2, 'rotation': 15.0, 'contrast': 0.7}
  whole = image.corrupt(x, ids, IMAGE, **options, seed=1)
  order = np.array([4, 0, 3])
  np.testing.assert_array_equal(image.corrupt(x[order], ids[order], IMAGE, **options, seed=1), whole[order])
  assert np.abs(image.corrupt(x, ids, IMAGE, **options, seed=2) - whole).min(axis=(1, 2, 3)).max() < 16
  assert (np.abs(image.corrupt(x, ids, IMAGE, **options, seed=2) - whole).max(axis=(1, 2, 3)) > 0.1).all()
  assert (np.abs(image.corrupt(x, ids + 1, IMAGE, **options, seed=1) - whole).max(axis=(1, 2, 3)) > 0.1).all()


def test_bytes_stay_bytes_and_are_rounded_once():
  x = np.random.default_rng(3).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
  result = image.corrupt(x, np.arange(3), BYTES, noise=0.1, contrast=0.5)
  precise = image.corrupt(x.astype(np.float32), np.arange(3), BYTES, noise=0.1, contrast=0.5)
  assert result.dtype == np.uint8
  np.testing.assert_array_equal(result, np.rint(precise))


def test_nothing_asked_for_changes_nothing():
  x = _images()
  assert image.corrupt(x, np.arange(6), IMAGE) is x


def test_rotation_is_followed_by_contrast():
  x = _images(1, 12)
  angle = np.random.default_rng([0, image.ROTATION, 0]).uniform(-40, 40)
  matrix = cv2.getRotationMatrix2D((5.5, 5.5), angle, 1.0)
  turned = cv2.warpAffine(x[0, ..., 0], matrix, (12, 12), flags=cv2.INTER_LINEAR).astype(np.float64)
  expected = turned.mean() + 0.5 * (turned - turned.mean())
  result = image.corrupt(x, np.arange(1), IMAGE, rotation=40.0, contrast=0.5)
  np.testing.assert_allclose(result[0, ..., 0], expected, rtol=1e-5, atol=1e-5)


def _keys(count, seed=0):
  return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(np.arange(count))


def _numbered(count, size=5):
  """Every pixel has a number of its own, so that a translation can be read off."""
  return np.tile(np.arange(1.0, size * size + 1, dtype=np.float32).reshape(1, size, size, 1), (count, 1, 1, 1))


def _moved(picture, down, right, mirrored):
  """By a plain loop: what a translation and then a mirroring should give."""
  size = len(picture)
  result = np.zeros_like(picture)
  for row in range(size):
    for column in range(size):
      if 0 <= row - down < size and 0 <= column - right < size:
        result[row, column] = picture[row - down, column - right]
  return result[:, ::-1] if mirrored else result


def test_every_augmented_image_is_a_translation_and_perhaps_a_mirror_image_and_all_are_equally_frequent():
  count, shift = 4500, 1
  x = _numbered(count)
  results = np.asarray(jax.jit(image.augment, static_argnums=(2, 3))(x, _keys(count), shift, True))
  cases = [(down, right, mirrored) for down in (-1, 0, 1) for right in (-1, 0, 1) for mirrored in (False, True)]
  times = np.array([(results == _moved(x[0], *case)).all(axis=(1, 2, 3)).sum() for case in cases])
  assert times.sum() == count
  assert scipy.stats.chisquare(times).pvalue > 0.001


@pytest.mark.parametrize('options', [{'shift': 2}, {'flip': True}])
def test_an_augmented_image_does_not_depend_on_its_neighbours(options):
  x, keys = np.random.default_rng(0).normal(size=(8, 6, 6, 2)).astype(np.float32), _keys(8)
  whole = np.asarray(image.augment(x, keys, **options))
  np.testing.assert_array_equal(image.augment(x[3:5], keys[3:5], **options), whole[3:5])
  assert not np.array_equal(whole, x)


def test_augmentation_without_options_returns_the_images_and_keeps_bytes():
  x = np.arange(50, dtype=np.uint8).reshape(2, 5, 5, 1)
  np.testing.assert_array_equal(image.augment(x, _keys(2)), x)
  assert image.augment(x, _keys(2), shift=1, flip=True).dtype == np.uint8
