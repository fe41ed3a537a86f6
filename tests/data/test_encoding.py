"""Encoding tables: against pandas and scikit-learn, on data like adult's, and on data other than those fitted."""

import json
import os
from pathlib import Path

import numpy as np
import pandas
import pytest
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from transferlab.data.encoding import codes as codes_of
from transferlab.data.encoding import encode, fit, merge, scaling
from transferlab.data.examples import Info
from transferlab.data.tables import read_table
from transferlab.errors import UserError

WORDS = {
  'work': ['Federal', 'Local', 'Never', 'Private', 'State'],
  'sex': ['F', 'M'],
  'land': [f'land {i:02}' for i in range(40)],
}
NUMBERS = ('age', 'gain', 'hours')
ORDER = ('age', 'work', 'gain', 'land', 'sex', 'hours')


def _frame(rows, seed, words=WORDS):
  """Missing values in 'age', 'gain' and 'work'; 'hours' is never missing."""
  random = np.random.default_rng(seed)
  frame = pandas.DataFrame({name: random.choice(values, rows) for name, values in words.items()}, dtype=object)
  for name in NUMBERS:
    frame[name] = (random.normal(size=rows) * 50 + 1000).astype(np.float32)
  for name in ('age', 'gain', 'work'):
    frame.loc[random.random(rows) < 0.2, name] = np.nan
  return frame[list(ORDER)]


def _table(frame):
  """What `read_table` gives of a frame: (x, info)."""
  x, categories = np.empty(frame.shape, np.float32), {}
  for i, name in enumerate(frame.columns):
    if frame[name].dtype == object:
      codes, values = pandas.factorize(frame[name], sort=True)
      x[:, i], categories[name] = np.where(codes < 0, np.nan, codes), tuple(values)
    else:
      x[:, i] = frame[name]
  return x, Info(
    'table', 'classification', columns=tuple(frame.columns), categories=categories, origin='csv file a.csv'
  )


def _named(x, info, entries):
  """The encoded columns by name; values of an entry are those of its own column whatever the order."""
  return dict(zip([entry['name'] for entry in entries], encode(x, info, entries).T))


def _names(entries):
  return [entry['name'] for entry in entries]


def _few(rows, columns=('a', 'b'), categories=None):
  return np.float32(rows), Info('table', 'classification', columns=columns, categories=categories or {})


def test_one_hot_columns_are_those_of_pandas_in_name_value_and_order():
  frame = _frame(500, 0)
  x, info = _table(frame)
  entries = fit(x, info)
  expected = pandas.get_dummies(frame[['work']], prefix_sep='=', dummy_na=True, dtype=np.float32)
  expected.columns = expected.columns.str.replace('=nan', '=missing')
  mine = [entry for entry in entries if entry['column'] == 'work']
  assert _names(mine) == list(expected.columns)
  np.testing.assert_array_equal(encode(x, info, mine), expected.to_numpy())
  assert [entry['kind'] for entry in mine] == ['value'] * 5 + ['missing']
  assert mine[3] == {'column': 'work', 'name': 'work=Private', 'kind': 'value', 'value': 'Private'}


def test_columns_follow_the_table_and_indicators_stand_where_training_misses_values():
  x, info = _table(_frame(500, 0))
  names = _names(fit(x, info))
  assert names[:9] == ['age', 'age=missing', *(f'work={value}' for value in WORDS['work']), 'work=missing', 'gain']
  assert names[9:11] == ['gain=missing', 'land=land 00']
  assert names[-3:] == ['sex=F', 'sex=M', 'hours']
  assert encode(x, info, fit(x, info)).dtype == np.float32


def test_unseen_categories_and_another_numbering_are_as_in_scikit_learn():
  train, other = _frame(300, 1, {**WORDS, 'land': WORDS['land'][5:20]}), _frame(400, 2)
  entries = [entry for entry in fit(*_table(train)) if entry['kind'] == 'value']
  encoder = OneHotEncoder(handle_unknown='ignore', sparse_output=False)
  encoder.fit(train[['work', 'land', 'sex']].fillna('missing'))
  names = [name.replace('_', '=', 1) for name in encoder.get_feature_names_out()]
  expected = dict(zip(names, encoder.transform(other[['work', 'land', 'sex']].fillna('missing')).T))
  assert (other['land'].isin(WORDS['land'][:5])).any()
  for columns in (list(ORDER), list(ORDER[::-1])):
    found = _named(*_table(other[columns]), entries)
    assert set(found) == set(names) - {'work=missing'}
    for name, values in found.items():
      np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_missing_numbers_are_filled_and_marked_as_in_scikit_learn():
  train, other = _frame(300, 3), _frame(400, 4)
  other.loc[::7, 'hours'] = np.nan  # never missing in training
  entries = fit(*_table(train))
  imputer = SimpleImputer(add_indicator=True).fit(train[list(NUMBERS)].astype(np.float64))
  expected = imputer.transform(other[list(NUMBERS)].astype(np.float64))
  found = _named(*_table(other), entries)
  names = ['age', 'gain', 'hours', 'age=missing', 'gain=missing']
  np.testing.assert_allclose(np.stack([found[name] for name in names], 1), expected, rtol=1e-6)
  assert not {'hours=missing', 'sex=missing', 'land=missing'} & set(found)
  fills = {entry['name']: entry['fill'] for entry in entries if entry['kind'] == 'numeric'}
  np.testing.assert_allclose([fills[name] for name in NUMBERS], imputer.statistics_, rtol=1e-12)


def test_codes_are_those_of_an_ordinal_encoder_and_zero_without_a_value():
  train, other = _frame(300, 5, {**WORDS, 'land': WORDS['land'][::2]}), _frame(400, 6)
  entries = fit(*_table(train), categorical='embedding')
  assert _names(entries) == ['age', 'age=missing', 'work', 'gain', 'gain=missing', 'land', 'sex', 'hours']
  encoder = OrdinalEncoder(handle_unknown='use_encoded_value', unknown_value=-1, encoded_missing_value=-1)
  names = ['work', 'land', 'sex']
  expected = encoder.fit(train[names]).transform(other[names]) + 1
  found = _named(*_table(other), entries)
  for name, codes in zip(names, expected.T):
    np.testing.assert_array_equal(found[name], codes, err_msg=name)
  assert 0 in found['land']
  assert {place: len(values) for place, values in codes_of(entries).items()} == {2: 5, 5: 20, 6: 2}
  assert codes_of(fit(*_table(train))) == {}


def test_scaling_standardises_filled_numbers_and_nothing_else():
  train, other = _frame(300, 7), _frame(50, 8)
  train['hours'] = np.float32(0.1)
  for categorical in ('one_hot', 'embedding'):
    entries = fit(*_table(train), categorical)
    encoded = encode(*_table(train), entries)
    shift, scale = scaling(encoded, entries, standardize=True)
    numbers = [_names(entries).index(name) for name in NUMBERS]
    rest = np.setdiff1d(np.arange(len(entries)), numbers)
    assert (shift[rest] == 0).all()
    assert (scale[rest] == 1).all()
    scaler = StandardScaler().fit(encoded[:, numbers].astype(np.float64))
    np.testing.assert_allclose(shift[numbers], scaler.mean_, rtol=1e-12)
    np.testing.assert_allclose(scale[numbers], scaler.scale_, rtol=1e-12)
    assert scale[numbers[-1]] == 1  # a constant
    later = encode(*_table(other), entries)[:, numbers].astype(np.float64)
    np.testing.assert_allclose((later - shift[numbers]) / scale[numbers], scaler.transform(later), rtol=1e-12)
    shift, scale = scaling(encoded, entries, standardize=False)
    assert (shift == 0).all()
    assert (scale == 1).all()


@pytest.mark.parametrize('categorical', ['one_hot', 'embedding'])
def test_entries_survive_json(categorical):
  x, info = _table(_frame(100, 9))
  entries = fit(x, info, categorical)
  assert json.loads(json.dumps(entries)) == entries


def test_only_values_of_the_training_examples_are_known():
  x, info = _few([[0, 1], [2, 1]], categories={'a': ('p', 'q', 'r')})
  assert _names(fit(x, info)) == ['a=p', 'a=r', 'b']
  assert fit(x, info, 'embedding')[0]['values'] == ['p', 'r']


def test_a_column_that_training_never_saw_is_filled_with_zero():
  x, info = _few([[np.nan, np.nan], [np.nan, np.nan]], categories={'b': ('p', 'q')})
  entries = fit(x, info)
  assert _names(entries) == ['a', 'a=missing', 'b=missing']
  np.testing.assert_array_equal(encode(np.float32([[5, 1], [np.nan, np.nan]]), info, entries), [[5, 0, 0], [0, 1, 1]])


def test_a_target_takes_fills_and_values_of_its_source_and_adds_its_own():
  source = fit(*_few([[np.nan, 0, 0], [4, 1, 1]], ('a', 'b', 'c'), {'b': ('u', 'w'), 'c': ('x', 'y')}))
  x, info = _few(
    [[1, 1, 0, 7], [3, 2, np.nan, 7], [5, 0, 1, 7]], ('a', 'b', 'c', 'd'), {'b': ('t', 'u', 'v'), 'c': ('x', 'z')}
  )
  target = fit(x, info)
  before = json.dumps([source, target])
  merged = merge(source, target)
  assert _names(merged) == [
    'a', 'a=missing', 'b=u', 'b=w', 'b=t', 'b=v', 'c=x', 'c=y', 'c=z', 'c=missing', 'd',
  ]  # fmt: skip
  assert (merged[0]['fill'], merged[-1]['fill']) == (4.0, 7.0)
  found = _named(x, info, merged)
  np.testing.assert_array_equal(found['b=u'], [1, 0, 0])
  np.testing.assert_array_equal(found['b=t'], [0, 0, 1])
  np.testing.assert_array_equal(found['b=w'], [0, 0, 0])
  merged[0]['fill'] = merged[4]['value'] = None
  assert json.dumps([source, target]) == before  # records of other runs are not touched


def test_a_source_that_never_saw_a_category_still_marks_where_it_is_missing():
  categories = {'b': ('u', 'w')}
  source, target = fit(*_few([[1, np.nan]], categories=categories)), fit(*_few([[1, 0], [2, 1]], categories=categories))
  assert _names(merge(source, target)) == ['a', 'b=missing', 'b=u', 'b=w']


def test_codes_of_the_source_keep_their_numbers():
  categories = {'b': ('u', 'w')}
  source = fit(*_few([[1, 0], [2, 1]], categories=categories), 'embedding')
  x, info = _few([[1, 2], [2, 0], [3, 1]], categories={'b': ('t', 'u', 'v')})
  merged = merge(source, fit(x, info, 'embedding'))
  assert merged[1]['values'] == ['u', 'w', 't', 'v']
  assert _named(x, info, merged)['b'].tolist() == [4, 3, 1]


def test_a_column_encoded_in_another_way_stays_the_targets_own():
  x, info = _few([[1, 0], [2, 1]], categories={'b': ('u', 'w')})
  numeric = fit(*_few([[np.nan, 5], [2, 6]]))
  target = fit(x, info)
  assert merge(numeric, target)[2:] == target[1:]
  assert merge(fit(x, info, 'embedding'), target) == target
  assert merge([], target) == target


def test_data_without_a_column_of_the_entries_are_refused():
  entries = fit(*_table(_frame(100, 10)))
  x, info = _table(_frame(100, 10).rename(columns={'hours': 'hour'}))
  with pytest.raises(UserError, match=r"^csv file a\.csv has no column 'hours', which was trained on; nearest: hour$"):
    encode(x, info, entries)
  with pytest.raises(
    UserError, match=r"column 'sex' is numeric, and it was category .* set data\.columns=\{'sex': 'ca"
  ):
    encode(*_few([[0, 1]], ORDER[3:5], {'land': ('a',)}), entries[-3:])
  with pytest.raises(UserError, match="column 'hours' is category, and it was numeric"):
    encode(*_few([[0, 1]], ('a', 'hours'), {'hours': ('1', '2')}), entries[-1:])


def test_columns_the_entries_do_not_name_are_left_out():
  frame = _frame(100, 11)
  entries = fit(*_table(frame))
  wide = frame.assign(extra=np.float32(3))[['extra', *ORDER]]
  np.testing.assert_array_equal(encode(*_table(wide), entries), encode(*_table(frame), entries))


def test_two_encoded_columns_of_one_name_are_refused():
  x, info = _few([[0, 1], [np.nan, 1]], categories={'a': ('missing',)})
  with pytest.raises(
    UserError, match=r"named 'a=missing' \(value of 'a' and missing of 'a'\): rename the column, or na"
  ):
    fit(x, info)
  source = fit(*_few([[0, 1], [np.nan, 1]], categories={'a': ('p',)}))
  with pytest.raises(UserError, match=r"named 'a=missing' \(missing of 'a' and value of 'a'\)"):
    merge(source, fit(x[:1], info))


def test_adult_becomes_as_many_columns_as_pandas_gives():
  folder = os.environ.get('TRANSFERLAB_TEST_DATA')
  if not folder:
    pytest.skip('TRANSFERLAB_TEST_DATA is unset')
  examples = read_table(str(Path(folder, 'tabular', 'adult-{train,test}.csv')), 'csv', label='income')
  frames = [pandas.read_csv(Path(folder, 'tabular', f'adult-{part}.csv'), na_values='?') for part in ('train', 'test')]
  frame = pandas.concat([part.drop(columns='income') for part in frames], ignore_index=True)
  entries = fit(examples.arrays['x'][examples.official['train']], examples.info)
  dummies = pandas.get_dummies(frame, prefix_sep='=', dtype=np.float32)
  absent = {f'{name}=missing': frame[name].isna() for name in frame if frames[0][name].isna().any()}
  seen = set(pandas.get_dummies(frames[0].drop(columns='income'), prefix_sep='='))
  assert set(_names(entries)) == seen | set(absent)
  encoded = encode(examples.arrays['x'], examples.info, entries)
  for entry, values in zip(entries, encoded.T):
    name = entry['name']
    np.testing.assert_array_equal(values, np.float32(absent[name] if name in absent else dummies[name]), err_msg=name)
