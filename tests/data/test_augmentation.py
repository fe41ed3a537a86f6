"""Augmentation: what was drawn is read off the images, and the rest recomputed by Pillow, colorsys or in float64."""

import colorsys
import functools
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from transferlab import config
from transferlab.data import augmentation, image
from transferlab.data.augmentation import Augment
from transferlab.data.randaugment import RandAugment, randaugment
from transferlab.errors import UserError

pytestmark = pytest.mark.usefixtures('unoptimised')
apply = jax.jit(augmentation.apply, static_argnames='augment')
mix = jax.jit(augmentation.mix, static_argnames=('augment', 'classes'))
EVERYTHING = Augment(
  shift=2,
  flip=True,
  vertical_flip=True,
  crop=9,
  resized_crop=(0.3, 1.0),
  brightness=0.4,
  contrast=0.4,
  saturation=0.4,
  hue=0.1,
  randaugment=RandAugment(),
  erase=0.5,
)


def _keys(count, seed=0):
  return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(np.arange(count))


def _random(count, height=12, width=12, channels=3, low=0.0, high=1.0, seed=0):
  return np.random.default_rng(seed).uniform(low, high, (count, height, width, channels)).astype(np.float32)


def _uniform(values, low, high):
  assert low <= values.min()
  assert values.max() <= high
  return scipy.stats.kstest(values, scipy.stats.uniform(low, high - low).cdf).pvalue > 0.001


def test_without_anything_to_do_the_images_themselves_are_returned():
  x, labels, keys = jnp.asarray(_random(3)), jnp.arange(3), _keys(3)
  assert augmentation.apply(x, keys, Augment()) is x
  mixed, targets = augmentation.mix(x, labels, keys, jnp.ones(3, bool), EVERYTHING, 3)
  assert mixed is x
  assert targets is labels


def test_translations_and_mirroring_are_those_of_image_and_keep_bytes():
  x = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
  result = apply(x, _keys(20), Augment(shift=2, flip=True), 0, 255)
  assert result.dtype == np.uint8
  np.testing.assert_array_equal(result, image.augment(jnp.asarray(x), _keys(20), 2, True))


def test_half_of_the_images_are_upside_down_whether_mirrored_or_not():
  x, count = _random(1), 2000
  result = np.asarray(apply(np.repeat(x, count, 0), _keys(count), Augment(flip=True, vertical_flip=True)))
  cases = [x, x[:, ::-1], x[:, :, ::-1], x[:, ::-1, ::-1]]
  times = np.array([(result == case).all(axis=(1, 2, 3)).sum() for case in cases])
  assert times.sum() == count
  assert scipy.stats.chisquare(times).pvalue > 0.001


def test_crops_are_windows_of_the_image_and_all_are_equally_frequent():
  x, count = np.random.default_rng(0).integers(0, 256, (7, 6, 3)).astype(np.uint8), 3000
  result = np.asarray(apply(np.repeat(x[None], count, 0), _keys(count), Augment(crop=5)))
  assert result.dtype == np.uint8
  windows = [x[top : top + 5, left : left + 5] for top, left in itertools.product(range(3), range(2))]
  times = np.array([(result == window).all(axis=(1, 2, 3)).sum() for window in windows])
  assert times.sum() == count
  assert scipy.stats.chisquare(times).pvalue > 0.001


@pytest.mark.parametrize('size', [1, 4, 5])
def test_the_central_crop_has_equal_margins_up_to_one_pixel_below_and_to_the_right(size):
  rows, columns = np.mgrid[:7, :6]
  result = augmentation.centre_crop(np.stack([rows, columns], -1)[None], size)
  assert result.shape == (1, *augmentation.output_shape(Augment(crop=size), (7, 6, 2)))
  for axis, side in enumerate((7, 6)):
    before, after = result[..., axis].min(), side - 1 - result[..., axis].max()
    assert after - before == (side - size) % 2
  assert augmentation.centre_crop(rows, None) is rows
  assert augmentation.output_shape(Augment(), (7, 6, 2)) == (7, 6, 2)


def _windows(keys, augment, height, width):
  """(top, left, height, width) of the windows drawn, [N, 4], read off from where a ramp's pixels come from."""
  ramp = np.stack(np.mgrid[:height, :width], -1).astype(np.float32)
  # Far more pixels than the image has, so that the inner ones interpolate and nothing is smoothed.
  ramp = np.repeat(ramp[None], len(keys), 0)
  result = np.asarray(apply(ramp, keys, augment, 0.0, 1000.0), np.float64)
  out, boxes = result.shape[1:3], []
  for axis in range(2):
    places = (result[:, :, out[1] // 2, 0] if axis == 0 else result[:, out[0] // 2, :, 1]).astype(np.float64)
    first, last = out[axis] // 4, out[axis] - out[axis] // 4 - 1
    step = (places[:, last] - places[:, first]) / (last - first)
    boxes += [places[:, first] + 0.5 - (first + 0.5) * step, step * out[axis]]
  return np.stack([boxes[0], boxes[2], boxes[1], boxes[3]], -1)


def test_resized_crops_have_the_shares_and_the_aspects_asked_for_and_lie_within_the_image():
  height, width, count = 40, 32, 1500
  top, left, tall, wide = _windows(_keys(count), Augment(resized_crop=(0.2, 0.5)), height, width).T
  assert _uniform(tall * wide / (height * width), 0.2 - 1e-4, 0.5 + 1e-4)
  assert _uniform(np.log(tall / wide), np.log(3 / 4) - 1e-4, np.log(4 / 3) + 1e-4)
  assert _uniform(top / (height - tall), -1e-4, 1 + 1e-4)
  assert _uniform(left / (width - wide), -1e-4, 1 + 1e-4)
  assert (
    abs(
      np.corrcoef([tall * wide, tall / wide, top / (height - tall), left / (width - wide)])[np.triu_indices(4, 1)]
    ).max()
    < 0.1
  )


@pytest.mark.parametrize('height, width', [(40, 24), (24, 40), (30, 30)])
def test_resized_crops_of_nearly_everything_are_limited_to_the_aspects_that_fit(height, width):
  top, left, tall, wide = _windows(_keys(300), Augment(resized_crop=(0.9, 1.0)), height, width).T
  assert (tall * wide / (height * width)).min() > 0.9 - 1e-4
  for start, side, whole in ((top, tall, height), (left, wide, width)):
    assert start.min() > -1e-3
    assert (start + side).max() < whole + 1e-3


@pytest.mark.parametrize('crop', [None, 8])
def test_resized_crops_are_resampled_as_pillow_does(crop):
  """Up to the image's own size, or down, which is antialiased."""
  augment, keys = Augment(resized_crop=(0.3, 1.0), crop=crop), _keys(8)
  x = _random(8, 30, 24, 1)
  result = np.asarray(apply(x, keys, augment))
  size = (24, 30) if crop is None else (crop, crop)
  # A ramp is smoothed at the image's edge only, so the windows are read off without `crop` first.
  windows = _windows(keys, Augment(resized_crop=(0.3, 1.0)), 30, 24)
  for row, (top, left, tall, wide) in enumerate(windows):
    box = np.clip([left, top, left + wide, top + tall], 0, [24, 30, 24, 30])
    expected = Image.fromarray(x[row, ..., 0]).resize(size, Image.Resampling.BILINEAR, tuple(map(float, box)))
    np.testing.assert_allclose(result[row, ..., 0], np.asarray(expected), atol=2e-3)


def _grey(x):
  return x @ np.array([0.299, 0.587, 0.114]) if x.shape[-1] == 3 else x.mean(-1)


@pytest.mark.parametrize(
  'name, channels', [('brightness', 1), ('brightness', 3), ('contrast', 1), ('contrast', 3), ('saturation', 3)]
)
def test_jitter_is_torchvisions_formula_with_uniform_factors(name, channels):
  low, high, count = -1.0, 3.0, 600
  unit = _random(count, 5, 5, channels, 0.4, 0.6).astype(np.float64)
  result = np.asarray(apply((low + 4 * unit).astype(np.float32), _keys(count), Augment(**{name: 0.5}), low, high))
  result = (result.astype(np.float64) - low) / 4
  other = {
    'brightness': np.zeros((count, 1, 1, 1)),
    'contrast': _grey(unit).mean(axis=(1, 2))[:, None, None, None],
    'saturation': _grey(unit)[..., None],
  }[name]
  # The factor, from least squares over the image.
  away = unit - other
  factor = (away * (result - other)).sum((1, 2, 3)) / (away**2).sum((1, 2, 3))
  np.testing.assert_allclose(result, other + factor[:, None, None, None] * away, atol=2e-6)
  assert _uniform(factor, 0.5 - 1e-4, 1.5 + 1e-4)


def test_factors_are_never_negative_and_results_are_clipped():
  x = _random(400, 2, 2, 1, 0.5, 0.9)
  result = np.asarray(apply(x, _keys(400), Augment(brightness=3.0)), np.float64)
  factor = result[:, 0, 0, 0] / x[:, 0, 0, 0]
  dark = (result < 1).all(axis=(1, 2, 3))
  assert factor.min() >= 0
  assert result.max() == 1
  # Factors from [0, 4]; below 1/0.9 nothing is clipped.
  assert abs((factor[dark] < 1 / 0.9).sum() / 400 - 1 / 3.6) < 0.07


def test_hues_turn_by_the_same_angle_everywhere_and_the_angles_are_uniform():
  count, spread = 300, 0.3
  x = np.concatenate([_random(count, 3, 3), np.full((count, 1, 3, 3), 0.5, np.float32)], axis=1)  # and grey
  x[:, 0, 0] = [0.9, 0.3, 0.3]
  result = np.asarray(apply(x, _keys(count), Augment(hue=spread)))
  turns = []
  for before, after in zip(x, result):
    turn = (colorsys.rgb_to_hsv(*after[0, 0])[0] - colorsys.rgb_to_hsv(*before[0, 0])[0] + 0.5) % 1 - 0.5
    for old, new in zip(before.reshape(-1, 3), after.reshape(-1, 3)):
      hue, saturation, value = colorsys.rgb_to_hsv(*map(float, old))
      np.testing.assert_allclose(new, colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), atol=1e-5)
    turns.append(turn)
  assert _uniform(np.array(turns), -spread - 1e-5, spread + 1e-5)


def test_colours_change_in_the_order_brightness_contrast_saturation_hue_and_independently():
  x, keys = _random(100, 4, 4, 3, 0.3, 0.5), _keys(100)
  names = ('brightness', 'contrast', 'saturation', 'hue')
  step_by_step = x
  for name in names:
    step_by_step = apply(step_by_step, keys, Augment(**{name: 0.2}))
  together = apply(x, keys, Augment(**dict.fromkeys(names, 0.2)))
  np.testing.assert_allclose(together, step_by_step, atol=1e-5)
  factors = [np.asarray(apply(x, keys, Augment(**{name: 0.2})) - x).std((1, 2, 3)) for name in names]
  assert np.abs(np.corrcoef(factors)[np.triu_indices(4, 1)]).max() < 0.4


@pytest.mark.parametrize('low, high', [(0.0, 255.0), (-1.0, 1.0)])
def test_randaugment_works_in_levels_whatever_the_range(low, high):
  levels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.float32)
  options, fill, keys = RandAugment(layers=2, magnitude=8.0), np.array([20.0, 90.0, 200.0]), _keys(8)
  expected = jax.vmap(lambda value, key: randaugment(value, key, options, jnp.asarray(fill, jnp.float32)))(
    levels, jax.vmap(lambda key: jax.random.fold_in(key, augmentation.RANDAUGMENT))(keys)
  )
  x = (low + levels * (high - low) / 255).astype(np.uint8 if low == 0 else np.float32)
  background = (low + fill * (high - low) / 255).astype(np.float32)
  result = apply(x, keys, Augment(randaugment=options), low, high, background)
  np.testing.assert_allclose((result - low) * 255 / (high - low), expected, atol=1e-2)


def test_erased_boxes_cover_two_to_thirty_three_per_cent_anywhere():
  side, count = 40, 1500
  x = np.zeros((count, side, side, 2), np.float32)
  result = np.asarray(apply(x, _keys(count), Augment(erase=0.75), 0.0, 1.0, np.array([1.0, 0.5], np.float32)))
  inside = result[..., 0] == 1
  np.testing.assert_array_equal(result[..., 1], inside * 0.5)
  happened = inside.any(axis=(1, 2))
  assert scipy.stats.binomtest(int(happened.sum()), count, 0.75).pvalue > 0.001
  tall, wide = inside.any(axis=2).sum(axis=1)[happened], inside.any(axis=1).sum(axis=1)[happened]
  np.testing.assert_array_equal(inside.sum(axis=(1, 2))[happened], tall * wide)  # boxes, without holes
  share, aspect = tall * wide / side**2, tall / wide
  # Half a pixel of rounding on each side of a box of 3.1 × 10.3 pixels, the narrowest, is 20 %.
  assert 0.02 / 1.21 < share.min() < 0.04
  assert 0.3 < share.max() < 0.33 * 1.05
  assert 0.3 / 1.2 < aspect.min() < 0.35
  assert 2.9 < aspect.max() < 3.3 * 1.2
  assert scipy.stats.kstest(share, scipy.stats.uniform(0.02, 0.31).cdf).statistic < 0.05
  first = inside.argmax(axis=1).max(axis=1)[happened]
  room = side - tall
  assert ((first == 0).sum() / (1 / (room + 1)).sum()) == pytest.approx(1, abs=0.4)
  assert ((first == room).sum() / (1 / (room + 1)).sum()) == pytest.approx(1, abs=0.4)
  columns = inside.any(axis=1).mean(axis=0)
  np.testing.assert_allclose(columns, columns[::-1], atol=0.06)


def test_erasing_fills_with_the_middle_of_the_range_unless_told_otherwise():
  x = _random(20, low=-1, high=3)
  result = np.asarray(apply(x, _keys(20), Augment(erase=1.0), -1.0, 3.0))
  changed = result != x
  assert changed.any(axis=(1, 2, 3)).all()
  assert (result[changed] == 1.0).all()


def test_images_stay_within_the_range_and_do_not_depend_on_their_neighbours_nor_on_compilation():
  x = np.random.default_rng(0).integers(0, 256, (16, 14, 12, 3)).astype(np.uint8)
  x[:4], x[4:8] = 255, 0
  whole = np.asarray(apply(x, _keys(16), EVERYTHING, 0.0, 255.0))
  assert whole.shape == (16, 9, 9, 3)
  assert whole.dtype == np.float32
  assert whole.min() >= 0
  assert whole.max() <= 255
  assert whole[8:].std() > 20
  # Compiled otherwise, a level may be rounded to its neighbour and then be a table's next entry.
  part = augmentation.apply(jnp.asarray(x[8:12]), _keys(16)[8:12], EVERYTHING, 0.0, 255.0)
  assert (np.abs(part - whole[8:12]) < 1e-2).mean() > 0.99


@pytest.mark.parametrize(
  'name, value',
  [('vertical_flip', True), ('crop', 9), ('resized_crop', (0.3, 1.0)), ('hue', 0.2), ('contrast', 0.5), ('erase', 0.5)],
)
def test_each_change_depends_on_the_image_and_its_key_alone_and_not_on_compilation(name, value):
  x, keys, augment = _random(8), _keys(8), Augment(**{name: value})
  whole = np.asarray(apply(x, keys, augment))
  np.testing.assert_allclose(
    augmentation.apply(jnp.asarray(x[5:3:-1]), keys[5:3:-1], augment), whole[5:3:-1], atol=1e-5
  )
  assert not np.allclose(apply(x, _keys(8, 1), augment), whole)


def _mixed(augment, count, size=8):
  """Images and labels before and after."""
  x = _random(count, size, size, 2)
  labels = np.random.default_rng(1).integers(0, 4, count).astype(np.int32)
  mixed, targets = mix(x, labels, _keys(count), np.ones(count, bool), augment=augment, classes=4)
  return x.astype(np.float64), labels, np.asarray(mixed), np.asarray(targets)


def test_mixup_mixes_image_and_label_of_the_next_example_by_one_share_from_beta():
  count = 800
  x, labels, mixed, targets = _mixed(Augment(mixup=0.4), count)
  following = np.roll(np.arange(count), -1)
  away = x - x[following]
  share = (away * (mixed - x[following])).sum((1, 2, 3)) / (away**2).sum((1, 2, 3))
  np.testing.assert_allclose(mixed, x[following] + share[:, None, None, None] * away, atol=1e-5)
  expected = share[:, None] * np.eye(4)[labels] + (1 - share[:, None]) * np.eye(4)[labels[following]]
  np.testing.assert_allclose(targets, expected, atol=1e-5)
  np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
  assert scipy.stats.kstest(share.clip(0, 1), scipy.stats.beta(0.4, 0.4).cdf).pvalue > 0.001


def _pasted(x, mixed):
  """True where a pixel is the following image's; what is neither's fails."""
  following = np.roll(x, -1, axis=0)
  own, other = (mixed == x).all(-1), (mixed == following).all(-1)
  assert (own ^ other).all()
  return other


def test_cutmix_pastes_a_box_of_the_next_image_and_mixes_labels_as_the_areas():
  count, size = 800, 12
  x, labels, mixed, targets = _mixed(Augment(cutmix=1.0), count, size)
  box = _pasted(x, mixed)
  tall, wide = box.any(axis=2).sum(axis=1), box.any(axis=1).sum(axis=1)
  np.testing.assert_array_equal(box.sum(axis=(1, 2)), tall * wide)
  kept = 1 - box.mean(axis=(1, 2))
  expected = kept[:, None] * np.eye(4)[labels] + (1 - kept[:, None]) * np.eye(4)[np.roll(labels, -1)]
  np.testing.assert_allclose(targets, expected, atol=1e-6)
  # The paper's equation 2, drawn again: areas, and how often each place is pasted.
  generator, draws = np.random.default_rng(0), 20000
  half = np.sqrt(1 - generator.beta(1, 1, (draws, 1))) * size / 2
  centre = generator.uniform(0, size, (draws, 2))
  low, high = (np.rint(edge).clip(0, size) for edge in (centre - half, centre + half))
  areas = (high - low).prod(axis=1) / size**2
  assert (
    np.abs(np.quantile(areas, [0.1, 0.3, 0.5, 0.7, 0.9]) - np.quantile(1 - kept, [0.1, 0.3, 0.5, 0.7, 0.9])).max()
    < 0.06
  )
  rows = ((np.arange(size) >= low[:, :1]) & (np.arange(size) < high[:, :1])).mean(axis=0)
  np.testing.assert_allclose(box.any(axis=2).mean(axis=0), rows, atol=0.06)
  np.testing.assert_allclose(box.any(axis=1).mean(axis=0), rows, atol=0.06)


def test_cutmix_takes_alpha():
  x, _, mixed, _ = _mixed(Augment(cutmix=50.0), 300, 12)
  # λ is then near 1/2: boxes of half the area, before they are cut at the edge.
  areas = _pasted(x, mixed).mean(axis=(1, 2))
  assert areas.max() < 0.7
  assert areas.min() > 0.1


def test_with_both_asked_for_each_happens_to_half_of_the_examples():
  count = 1000
  x, labels, mixed, targets = _mixed(Augment(mixup=5.0, cutmix=1.0), count)
  own, other = (mixed == x).all(-1), (mixed == np.roll(x, -1, axis=0)).all(-1)
  pasted = (own | other).all(axis=(1, 2))
  assert scipy.stats.binomtest(int(pasted.sum()), count, 0.5).pvalue > 0.001
  assert not (own | other)[~pasted].any()
  differ = labels != np.roll(labels, -1)
  kept = targets[np.arange(count), labels]
  np.testing.assert_allclose(kept[pasted & differ], own.mean(axis=(1, 2))[pasted & differ], atol=1e-6)


@pytest.mark.parametrize('augment', [Augment(mixup=1.0), Augment(cutmix=1.0), Augment(mixup=1.0, cutmix=1.0)])
def test_padded_rows_stay_and_never_mix_into_real_ones(augment):
  x, labels, places = _random(8, 8, 8, 2), np.arange(8, dtype=np.int32), np.arange(8)
  for count in (1, 2, 5, 8):
    mask = places < count
    padded = np.where(mask[:, None, None, None], x, np.nan)
    mixed, targets = map(np.asarray, mix(padded, labels, _keys(8), mask, augment=augment, classes=8))
    assert np.isfinite(mixed[:count]).all()
    assert np.isnan(mixed[count:]).all()
    np.testing.assert_array_equal(targets[count:], np.eye(8)[count:])
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    # The next example counts what the example itself does not, and the last one's next is the first.
    following = (places[:count] + 1) % count
    share = targets[places[:count], places[:count]] if count > 1 else np.ones(1)
    expected = share[:, None] * np.eye(8)[:count] + (1 - share[:, None]) * np.eye(8)[following]
    np.testing.assert_allclose(targets[:count], expected, atol=1e-6)
    low, high = np.minimum(x[:count], x[following]), np.maximum(x[:count], x[following])
    assert (mixed[:count] >= low - 1e-6).all()
    assert (mixed[:count] <= high + 1e-6).all()
    assert count == 1 or np.abs(mixed[count - 1] - x[count - 1]).max() > 0.01


def test_targets_of_any_kind_are_mixed_by_the_same_shares_and_bytes_become_floats():
  count, augment = 6, Augment(mixup=1.0)
  x = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1)).astype(np.uint8)
  labels = {'class': np.arange(count, dtype=np.int32), 'value': np.random.default_rng(0).normal(size=(count, 2))}
  labels['value'] = labels['value'].astype(np.float32)
  mixed, targets = augmentation.mix(
    jnp.asarray(x), labels, _keys(count), jnp.ones(count, bool), augment, {'class': count, 'value': 0}
  )
  share = np.diag(targets['class'])
  assert share.std() > 0.1
  for values, result in ((x, mixed), (labels['value'], targets['value'])):
    by = share.reshape(-1, *[1] * (values.ndim - 1))
    np.testing.assert_allclose(result, by * values + (1 - by) * np.roll(values, -1, axis=0), rtol=1e-4, atol=1e-4)
  binary = augmentation.mix(x, jnp.arange(count) % 2 * 1.0, _keys(count), jnp.ones(count, bool), augment, 1)[1]
  np.testing.assert_allclose(binary, np.where(np.arange(count) % 2, share, 1 - share), atol=1e-6)


@pytest.mark.parametrize('alpha', [1e-3, 1000.0])
def test_extreme_alphas_give_finite_images(alpha):
  _, _, mixed, targets = _mixed(Augment(mixup=alpha, cutmix=alpha), 200)
  assert np.isfinite(mixed).all()
  np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
  assert targets.min() >= 0


def test_only_mixing_couples_examples():
  assert augmentation.couples(Augment(mixup=0.1))
  assert augmentation.couples(Augment(cutmix=0.1))
  assert not augmentation.couples(EVERYTHING)


@pytest.mark.parametrize(
  'options, shape, words',
  [
    ({'shift': 8}, (9, 8, 1), 'shift=8 moves images of 9×8'),
    ({'crop': 9}, (9, 8, 1), 'crop=9 is larger than images of 9×8'),
    ({'saturation': 0.1}, (9, 8, 1), 'saturation is for images of 3 channels, not 1'),
    ({'hue': 0.1}, (9, 8, 4), 'hue is for images of 3 channels, not 4'),
    ({'randaugment': {}}, (9, 8, 2), 'randaugment is for images of 1 or 3 channels, not 2'),
  ],
)
def test_what_does_not_fit_the_images_is_the_users_mistake(options, shape, words):
  augment = config.validate(Augment, options)
  with pytest.raises(UserError, match=words):
    augmentation.check(augment, shape)
  augmentation.check(augment, (9, 9, 3))


@pytest.mark.parametrize(
  'options',
  [
    {'resized_crop': [0.0, 0.5]},
    {'resized_crop': [0.6, 0.5]},
    {'resized_crop': [0.5, 1.1]},
    {'resized_crop': [0.5]},
    {'crop': 0},
    {'hue': 0.6},
    {'brightness': -0.1},
    {'erase': 1.1},
    {'mixup': -1.0},
    {'randaugment': {'magnitude': 11.0}},
    {'randaugment': {'layers': 0}},
  ],
)
def test_values_out_of_bounds_are_refused_by_name(options):
  with pytest.raises(UserError, match=f'config.{next(iter(options))}'):
    config.validate(Augment, options)


def test_a_config_survives_json_and_can_be_static():
  again = config.validate(Augment, config.resolved(EVERYTHING))
  assert again == EVERYTHING
  assert hash(again) == hash(EVERYTHING)
  assert hash(Augment()) != hash(EVERYTHING)


def test_the_schema_is_there_without_jax():
  code = "import sys, transferlab.data.augmentation; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
