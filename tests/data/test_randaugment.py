"""RandAugment: every operation against Pillow, their sequence, and how they are drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image, ImageEnhance, ImageOps

from transferlab.data import randaugment
from transferlab.data.randaugment import OPERATIONS, RandAugment

pytestmark = pytest.mark.usefixtures('unoptimised')
FILL = jnp.array([10.0, 100.0, 200.0])
perform = jax.jit(randaugment.perform)


def _picture(height=40, width=36, low=20, high=230, seed=0, blur=2):
  """Bytes [H, W, 3], smooth, each channel with its own histogram and range."""
  noise = np.random.default_rng(seed).normal(size=(height, width, 3))
  smooth = scipy.ndimage.gaussian_filter(noise, (blur, blur, 0))
  smooth = (smooth - smooth.min((0, 1))) / (smooth.max((0, 1)) - smooth.min((0, 1)))
  return np.rint(low + np.array([0, 5, 9]) + (high - low - np.array([0, 20, 40])) * smooth).astype(np.uint8)


def _done(picture, name, amount, fill=FILL):
  x, numbers = jnp.asarray(picture, jnp.float32), jnp.array([OPERATIONS.index(name)])
  return np.asarray(perform(x, numbers, jnp.array([amount], jnp.float32), fill))


def _pillow(picture, name, amount):
  """The operation by Pillow, from the ranges in Cubuk et al. 2019."""
  image, factor = Image.fromarray(picture), 1 + 0.9 * amount
  return np.asarray(
    {
      'identity': lambda: image,
      'autocontrast': lambda: ImageOps.autocontrast(image),
      'equalize': lambda: ImageOps.equalize(image),
      'solarize': lambda: ImageOps.solarize(image, 256 - 256 * abs(amount)),
      'posterize': lambda: ImageOps.posterize(image, 8 - round(4 * abs(amount))),
      'brightness': lambda: ImageEnhance.Brightness(image).enhance(factor),
      'contrast': lambda: ImageEnhance.Contrast(image).enhance(factor),
      'color': lambda: ImageEnhance.Color(image).enhance(factor),
      'sharpness': lambda: ImageEnhance.Sharpness(image).enhance(factor),
    }[name](),
    dtype=np.float64,
  )


# Pillow rounds every result down, and the grey image to whole levels first.
WITHIN = dict.fromkeys(('identity', 'equalize', 'solarize', 'posterize'), 1e-3)
WITHIN |= dict.fromkeys(('autocontrast', 'brightness'), 1.01) | dict.fromkeys(('contrast', 'color', 'sharpness'), 2.0)


@pytest.mark.parametrize('amount', [0.0, 0.3, -0.5, 0.9, -1.0])
@pytest.mark.parametrize('name', WITHIN)
def test_operations_on_colours_are_those_of_pillow(name, amount):
  picture = _picture(blur=0.5)
  result, expected = _done(picture, name, amount), _pillow(picture, name, amount)
  np.testing.assert_allclose(result, expected, atol=WITHIN[name])
  assert abs((result - expected).mean()) < WITHIN[name] * 0.6
  if amount in (0.9, -1.0) and name != 'identity':
    assert np.abs(result - picture).mean() > 1


@pytest.mark.parametrize('name', [name for name in WITHIN if name not in ('autocontrast', 'equalize', 'identity')])
def test_magnitude_nought_changes_nothing_and_more_of_it_changes_more(name):
  picture = _picture()
  np.testing.assert_allclose(_done(picture, name, 0.0), picture, atol=1e-3)
  by = [np.abs(_done(picture, name, amount) - picture).mean() for amount in (0.25, 0.5, 1.0)]
  assert 0 < by[0] < by[1] < by[2]


@pytest.mark.parametrize('seed', range(4))
def test_equalize_takes_the_steps_of_pillow_for_images_of_any_size_and_range(seed):
  generator = np.random.default_rng(seed)
  for size in (4, 16, 17, 23):
    picture = np.minimum(generator.geometric(0.02, (size, size, 3)), 255).astype(np.uint8)
    picture[..., 2] = 77  # one level only
    np.testing.assert_array_equal(_done(picture, 'equalize', 0.5), _pillow(picture, 'equalize', 0.5))
    np.testing.assert_allclose(_done(picture, 'autocontrast', 0.5), _pillow(picture, 'autocontrast', 0.5), atol=1.01)


def test_grey_images_keep_their_colour_and_get_the_rest():
  picture = _picture()[..., :1]
  fill = jnp.array([50.0])
  np.testing.assert_allclose(_done(picture, 'color', 1.0, fill), picture, atol=1e-3)
  whole = np.asarray(ImageEnhance.Contrast(Image.fromarray(picture[..., 0])).enhance(1.9), np.float64)
  np.testing.assert_allclose(_done(picture, 'contrast', 1.0, fill)[..., 0], whole, atol=2.0)


def _source(name, amount, height, width):
  """Pillow's six numbers: the source (column, row) of a pixel, both counted from the corner."""
  angle = np.deg2rad(30 * amount)
  cosine, sine = np.cos(angle), np.sin(angle)
  middle, centre = width / 2, height / 2
  return {
    'rotate': (
      cosine,
      -sine,
      middle - cosine * middle + sine * centre,
      sine,
      cosine,
      centre - sine * middle - cosine * centre,
    ),
    'shear_x': (1, 0.3 * amount, 0, 0, 1, 0),
    'shear_y': (1, 0, 0, 0.3 * amount, 1, 0),
    'translate_x': (1, 0, np.rint(150 / 331 * amount * width), 0, 1, 0),
    'translate_y': (1, 0, 0, 0, 1, np.rint(150 / 331 * amount * height)),
  }[name]


def _places(numbers, height, width):
  """Source rows and columns of all pixels, in whole numbers at their centres."""
  column, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
  a, b, c, d, e, f = numbers
  return d * column + e * row + f - 0.5, a * column + b * row + c - 0.5


@pytest.mark.parametrize('amount', [0.3, -0.7, 1.0])
@pytest.mark.parametrize('name', ['rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y'])
def test_geometric_operations_are_those_of_pillow_within_and_the_fill_outside(name, amount):
  picture = _picture()
  height, width, _ = picture.shape
  numbers = _source(name, amount, height, width)
  expected = Image.fromarray(picture).transform((width, height), Image.Transform.AFFINE, numbers, Image.BILINEAR)
  result, (rows, columns) = _done(picture, name, amount), _places(numbers, height, width)
  within = (rows >= 0) & (rows <= height - 1) & (columns >= 0) & (columns <= width - 1)
  outside = (rows <= -1) | (rows >= height) | (columns <= -1) | (columns >= width)
  assert within.mean() > 0.4
  # Pillow rounds to whole levels, and its coordinates to 1/65536.
  np.testing.assert_allclose(result[within], np.asarray(expected, np.float64)[within], atol=1.01)
  np.testing.assert_allclose(result[outside], np.broadcast_to(FILL, result.shape)[outside], atol=1e-3)
  assert outside.any()


def test_a_positive_rotation_is_counter_clockwise_as_in_pillow():
  picture = _picture(41, 41)
  turned = np.asarray(Image.fromarray(picture).rotate(30, Image.BILINEAR), np.float64)
  np.testing.assert_allclose(_done(picture, 'rotate', 1.0)[10:31, 10:31], turned[10:31, 10:31], atol=1.5)


def test_operations_follow_each_other_and_geometry_is_resampled_once():
  picture, amounts = _picture(), [-1.0, 0.9, 0.6, 0.8]
  names = ['translate_x', 'solarize', 'rotate', 'contrast']
  numbers = jnp.array([OPERATIONS.index(name) for name in names])
  result = np.asarray(perform(jnp.asarray(picture, jnp.float32), numbers, jnp.array(amounts), FILL))
  colored = _pillow(np.asarray(_pillow(picture, 'solarize', 0.9), np.uint8), 'contrast', 0.8)
  height, width, _ = picture.shape
  rows, columns = _places(_source('rotate', 0.6, height, width), height, width)
  places = [rows, columns + _source('translate_x', -1.0, height, width)[2]]  # the image turned had been moved before
  expected = np.stack(
    [scipy.ndimage.map_coordinates(colored[..., c], places, order=1, cval=float(FILL[c])) for c in range(3)], -1
  )
  within = np.logical_and.reduce([(p >= 0) & (p <= size - 1) for p, size in zip(places, (height, width))])
  assert 0.3 < within.mean() < 0.9
  np.testing.assert_allclose(result[within], expected[within], atol=3)


def test_order_matters_between_operations_on_colours():
  x, amounts = jnp.asarray(_picture(), jnp.float32), jnp.array([1.0, 0.9])
  one, other = OPERATIONS.index('brightness'), OPERATIONS.index('solarize')
  forth, back = perform(x, jnp.array([one, other]), amounts, FILL), perform(x, jnp.array([other, one]), amounts, FILL)
  bright = np.asarray(_pillow(_picture(), 'brightness', 1.0), np.uint8)
  # One level of rounding decides whether a level is inverted, so a few pixels may differ.
  assert (np.abs(forth - _pillow(bright, 'solarize', 0.9)) <= 2).mean() > 0.99
  assert np.abs(forth - back).mean() > 10


def test_all_operations_and_both_signs_are_equally_frequent(monkeypatch):
  drawn = []
  monkeypatch.setattr(randaugment, 'perform', lambda x, numbers, amounts, fill: drawn.append((numbers, amounts)) or x)
  options = RandAugment(layers=3, magnitude=7.0)
  keys = jax.random.split(jax.random.key(0), 2000)

  def one(key):
    randaugment.randaugment(jnp.zeros((2, 2, 1)), key, options, jnp.zeros(1))
    return drawn.pop()

  numbers, amounts = map(np.asarray, jax.vmap(one)(keys))
  np.testing.assert_allclose(np.abs(amounts), 0.7, rtol=1e-6)
  counts = np.zeros((3, 14, 2))
  for layer in range(3):
    np.add.at(counts[layer], (numbers[:, layer], (amounts[:, layer] > 0).astype(int)), 1)
  for layer in range(3):
    assert scipy.stats.chisquare(counts[layer].ravel()).pvalue > 0.001
  pairs = np.histogram2d(numbers[:, 0], numbers[:, 1], bins=14)[0]
  assert scipy.stats.chi2_contingency(pairs).pvalue > 0.001


def test_images_under_vmap_are_what_they_are_alone():
  x = jnp.stack([jnp.asarray(_picture(seed=seed), jnp.float32) for seed in range(6)])
  keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(3)))(np.arange(6))
  together = jax.vmap(lambda value, key: randaugment.randaugment(value, key, RandAugment(), FILL))(x, keys)
  for row in range(6):
    alone = randaugment.randaugment(x[row], keys[row], RandAugment(), FILL)
    np.testing.assert_allclose(together[row], alone, atol=1e-3)
  assert together.min() >= 0
  assert together.max() <= 255
