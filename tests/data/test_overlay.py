"""Two images in one: where they stand, whose labels are whose, and that no split sees another's images."""

import numpy as np
import pytest

from transferlab import config
from transferlab.data.sources import Data, load
from transferlab.errors import UserError


def loaded(**more):
  spec = {'name': 'digits', 'test': 0.3, 'validation': 5, 'overlay': {'canvas': 11}, **more}
  return load(config.validate(Data, spec), 0)


def test_each_image_stands_top_left_and_another_of_its_split_bottom_right():
  pairs, single = loaded(), loaded(overlay=None)
  whole, images = pairs.examples.arrays, single.examples.arrays['x']
  np.testing.assert_array_equal(whole['label']['left'], single.examples.arrays['label'])
  for rows in pairs.splits.values():
    others = []
    for row in rows:
      canvas = whole['x'][row]
      # Only the corners that the other image does not reach are this one's alone.
      np.testing.assert_array_equal(canvas[:3, :8], images[row][:3])
      np.testing.assert_array_equal(canvas[:8, :3], images[row][:, :3])
      same = np.flatnonzero((images[rows][:, 5:, :] == canvas[8:, 3:]).all(axis=(1, 2, 3)))
      fits = [
        other
        for other in rows[same]
        if np.array_equal(_laid(images[row], images[other]), canvas)
        and single.examples.arrays['label'][other] == whole['label']['right'][row]
      ]
      assert fits
      others += fits[:1]
    assert len(set(others)) > 0.95 * len(rows)  # each is the other one once; equal images aside


def _laid(one, other):
  canvas = np.zeros((11, 11, 1), one.dtype)
  canvas[:8, :8] = one
  canvas[3:, 3:] = np.maximum(canvas[3:, 3:], other)
  return canvas


def test_pairs_are_the_same_for_every_run_and_change_with_the_split_seed():
  test = [data.examples.arrays['x'][data.splits['test']] for data in (loaded(), loaded(seed=4), loaded(split_seed=1))]
  np.testing.assert_array_equal(test[0], test[1])
  assert test[0].shape == test[2].shape and (test[0] != test[2]).any()


def test_test_images_do_not_depend_on_a_validation_split():
  x = [data.examples.arrays['x'][data.splits['test']] for data in (loaded(), loaded(validation=None))]
  np.testing.assert_array_equal(*x)


def test_a_canvas_is_brought_to_a_size_by_area():
  half, whole = loaded(overlay={'canvas': 16, 'size': 8}), loaded(overlay={'canvas': 16})
  x = whole.examples.arrays['x']
  mean = x.reshape(len(x), 8, 2, 8, 2).mean(axis=(2, 4))[..., None]
  np.testing.assert_allclose(half.examples.arrays['x'], mean, atol=1e-5)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'overlay': {'canvas': 7}}, 'canvas: 7 pixels, and the images of digits have 8'),
    ({'name': 'wine', 'overlay': {}}, 'data.overlay is for square images of one class each, and wine'),
    ({'overlay': {'canvs': 9}}, 'nearest: canvas'),
    ({'keep_labels': {'top': 0.1}}, "keep_labels 'top'"),
  ],
  ids=range(4),
)
def test_mistakes_end_in_one_message(change, message):
  with pytest.raises(UserError, match=message):
    loaded(**change)
