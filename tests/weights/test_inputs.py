"""Preprocessing that a repository states: as transformers and timm apply it."""

import numpy as np
import pytest

from transferlab.data import preprocessing
from transferlab.weights.inputs import stated

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGE = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.float64)


@pytest.mark.parametrize(
  ('metadata', 'expected', 'size'),
  [
    ({'preprocessor_config': dict(image_mean=MEAN, image_std=STD, size={'height': 384, 'width': 384})}, 1, 384),
    ({'preprocessor_config': dict(image_mean=MEAN, image_std=STD, rescale_factor=1 / 127.5, size=256)}, 2, 256),
    ({'preprocessor_config': dict(image_mean=MEAN, image_std=STD, size={'shortest_edge': 160})}, 1, 160),
    ({'config': {'pretrained_cfg': dict(mean=MEAN, std=STD, input_size=[3, 192, 192])}}, 1, 192),
  ],
)
def test_stated_preprocessing_is_applied_to_whole_bytes(metadata, expected, size):
  record = stated(metadata).record(3)
  assert record['input_shape'] == [size, size, 3]
  np.testing.assert_allclose(
    preprocessing.apply(IMAGE, record['shift'], record['scale']),
    (IMAGE * expected / 255 - np.array(MEAN)) / np.array(STD),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  'metadata',
  [
    {},
    {'config': {'model_type': 'bert'}},
    {'config': 'text', 'preprocessor_config': None},
    {'preprocessor_config': dict(image_mean='x', image_std=STD)},
    {'preprocessor_config': dict(image_mean=MEAN, image_std=[0.0] * 3)},
    {'preprocessor_config': dict(image_mean=MEAN, image_std=[0.5])},
  ],
)
def test_what_states_no_numbers_states_nothing(metadata):
  assert stated(metadata) is None
