"""Preprocessing: the record against scikit-learn and float64 formulas, and what a target takes from its source."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from transferlab.data import preprocessing
from transferlab.data.examples import Info
from transferlab.data.npz import read_npz
from transferlab.errors import UserError

IMAGE = Info('image', 'classification', low=2.0, high=10.0)
TABLE = Info('table', 'classification', columns=('a', 'b', 'c'))


def _table(rows=5000):
  return (np.random.default_rng(0).normal(size=(rows, 3)) * [1, 50, 0.01] + [0, 1000, -3]).astype(np.float32)


def test_standardized_columns_equal_the_standard_scaler():
  x = _table()
  record = preprocessing.fit(x, TABLE, standardize=True)
  expected = StandardScaler().fit(x.astype(np.float64))
  np.testing.assert_allclose(record['shift'], expected.mean_, rtol=1e-12)
  np.testing.assert_allclose(record['scale'], expected.scale_, rtol=1e-12)
  result = preprocessing.apply(x, record['shift'], record['scale'])
  assert result.dtype == np.float32
  np.testing.assert_allclose(result, expected.transform(x.astype(np.float64)), atol=2e-2, rtol=1e-4)


def test_a_constant_column_becomes_zero_and_not_nan():
  x = _table(9999)
  x[:, 1] = 0.1  # any rounding of its mean would leave a tiny deviation, and a division by it
  record = preprocessing.fit(x, TABLE, standardize=True)
  assert record['scale'][1] == 1.0
  assert (preprocessing.apply(x, record['shift'], record['scale'])[:, 1] == 0).all()


def test_a_table_that_is_not_standardized_stays_as_it_is():
  x = _table(10)
  record = preprocessing.fit(x, TABLE, standardize=False)
  np.testing.assert_array_equal(preprocessing.apply(x, record['shift'], record['scale']), x)


def test_images_are_brought_from_their_range_to_zero_and_one():
  x = np.random.default_rng(0).uniform(2, 10, (4, 3, 3, 2)).astype(np.float32)
  record = preprocessing.fit(x, IMAGE, standardize=False)
  assert (record['shift'], record['scale']) == ([2.0, 2.0], [8.0, 8.0])
  np.testing.assert_allclose(preprocessing.apply(x, record['shift'], record['scale']), (x - 2) / 8, rtol=1e-6)
  assert (record['input_shape'], record['columns'], record['kind']) == ([3, 3, 2], [], 'image')


def test_standardized_uint8_images_use_exact_moments_of_each_channel():
  x = np.random.default_rng(1).integers(0, 256, (9000, 2, 2, 3)).astype(np.uint8)
  x[..., 1] //= 8
  record = preprocessing.fit(x, Info('image', 'classification', high=255.0), standardize=True)
  wide = x.astype(np.float64)
  np.testing.assert_allclose(record['shift'], wide.mean(axis=(0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(record['scale'], wide.std(axis=(0, 1, 2)), rtol=1e-12)


def test_jax_and_numpy_arrays_give_the_same_and_the_record_survives_json():
  x = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
  record = preprocessing.fit(x, Info('image', 'classification', high=255.0), standardize=True)
  record = json.loads(json.dumps(record))
  on_host = preprocessing.apply(x, record['shift'], record['scale'])
  on_device = preprocessing.apply(jnp.asarray(x), jnp.asarray(record['shift']), jnp.asarray(record['scale']))
  np.testing.assert_allclose(on_device, on_host, rtol=1e-6)
  np.testing.assert_allclose(on_host, (x.astype(np.float64) - record['shift']) / record['scale'], rtol=1e-5)


def _record(columns, shift, scale):
  return {'kind': 'table', 'shift': shift, 'scale': scale, 'columns': columns, 'input_shape': [len(columns)]}


def test_columns_known_to_the_source_take_its_numbers_by_name_and_new_ones_keep_their_own():
  source = _record(['age', 'height', 'income'], [1.0, 2.0, 3.0], [10.0, 20.0, 30.0])
  target = _record(['income', 'weight', 'age'], [7.0, 8.0, 9.0], [70.0, 80.0, 90.0])
  record, notes = preprocessing.reuse(source, target)
  assert record == _record(['income', 'weight', 'age'], [3.0, 8.0, 1.0], [30.0, 80.0, 10.0])
  assert target['shift'] == [7.0, 8.0, 9.0]
  text = ' '.join(notes)
  assert '2 of 3 columns' in text
  assert "keep the target's own: weight" in text
  assert "lacks the source's columns: height" in text


def _image_record(shape, shift):
  return {'kind': 'image', 'shift': shift, 'scale': [2.0] * len(shift), 'columns': [], 'input_shape': shape}


def test_images_take_the_numbers_but_not_the_resolution_of_the_source():
  record, notes = preprocessing.reuse(_image_record([8, 8, 1], [5.0]), _image_record([16, 16, 1], [6.0]))
  assert record == _image_record([16, 16, 1], [5.0])
  assert notes == ["preprocessing: the source's shift and scale", 'images: the source saw 8×8, the target has 16×16']


def test_one_channel_takes_the_mean_of_the_sources_and_several_take_them_in_turn():
  record, notes = preprocessing.reuse(_image_record([8, 8, 3], [1.0, 2.0, 6.0]), _image_record([8, 8, 1], [5.0]))
  assert record == _image_record([8, 8, 1], [3.0]) and 'their mean for 1 channels' in notes[0]
  source, target = _image_record([8, 8, 2], [5.0, 6.0]), _image_record([8, 8, 3], [1.0, 2.0, 3.0])
  record, notes = preprocessing.reuse(source, target)
  assert (
    record == _image_record([8, 8, 3], [5.0, 6.0, 5.0])
    and "in turn for 3 channels in place of the source's 2" in notes[0]
  )


def test_images_of_another_range_reach_the_network_as_the_sources_did():
  source = {**_image_record([8, 8, 1], [4.0]), 'range': [0.0, 16.0]}
  target = {**_image_record([8, 8, 1], [0.0]), 'range': [-1.0, 1.0]}
  record, notes = preprocessing.reuse(source, target)
  share = np.linspace(0, 1, 5)[:, None]  # of the range: the same brightness in both
  theirs = preprocessing.apply(16 * share, source['shift'], source['scale'])
  ours = preprocessing.apply(2 * share - 1, record['shift'], record['scale'])
  np.testing.assert_allclose(ours, theirs, rtol=1e-6)
  assert record['range'] == [-1.0, 1.0] and 'values in -1 … 1 in place of' in notes[0]


def test_images_whose_range_is_only_observed_are_taken_as_they_are_and_the_report_says_so():
  source = {**_image_record([8, 8, 1], [4.0]), 'range': [0.0, 255.0]}
  record, notes = preprocessing.reuse(source, _image_record([8, 8, 1], [0.0]))
  assert (record['shift'], record['scale']) == ([4.0], [2.0])
  assert "as they are: the source's images had 0 … 255, and what the target's could have is not known" in notes[0]


def test_a_range_is_recorded_where_the_format_gives_it_and_not_where_it_is_observed(tmp_path):
  for name, high, known in (('a', 1.0, True), ('b', 229.5, False)):
    x = np.linspace(0, high, 4 * 4 * 4 * 6, dtype=np.float32).reshape(6, 8, 8, 1)
    np.savez(tmp_path / f'{name}.npz', x=x, y=np.arange(6) % 2)
    info = read_npz(str(tmp_path / f'{name}.npz')).info
    assert ('range' in preprocessing.fit(x, info, False)) == known


def test_preprocessing_of_another_kind_of_data_is_refused():
  with pytest.raises(UserError, match='image data and the target is table data'):
    preprocessing.reuse(_image_record([8, 8, 1], [5.0]), _record(['a'], [1.0], [1.0]))


def test_whole_numbers_are_scaled_as_decimals_are():
  record = {'shift': [5.0, 3.0], 'scale': [2.0, 0.5]}
  whole = preprocessing.apply(np.array([[7, 2]], np.int32), **record)
  np.testing.assert_allclose(whole, [[1.0, -2.0]])
