"""Hashed texts: counts of words by MurmurHash3, as another implementation counts them."""

import re

import numpy as np
import pytest
from sklearn.feature_extraction import FeatureHasher

from transferlab.config import validate
from transferlab.data.columns import AT_ONCE
from transferlab.data.examples import Info, digest, from_arrays
from transferlab.data.sources import Data, load
from transferlab.data.texts import hashed
from transferlab.errors import UserError

TEXTS = ['The cat sat on the mat', 'a CAT, a cat!', '', 'Ünïcode naïve 東京 42', '? !', 'the ' * 1000 + 'end']


def _examples(texts=TEXTS, kind='text', **tasks):
  label = np.arange(len(texts), dtype=np.int32) % 2
  return from_arrays(np.array(texts, object), label, Info(kind, 'classification', ('0', '1'), tasks=tasks))


def _words(text):
  """Words of two letters or more, in lower case."""
  return re.findall(r'\b\w\w+\b', text.lower())


def _expected(texts, size):
  """Signed counts of words by scikit-learn's other hashing class, scaled to length √size by hand."""
  counts = FeatureHasher(size, input_type='string').transform([_words(text) for text in texts]).toarray()
  length = np.sqrt((counts**2).sum(axis=1, keepdims=True))
  return counts / np.where(length, length, 1) * np.sqrt(size)


@pytest.mark.parametrize('size', [1, 16, 4096])
def test_rows_are_signed_counts_of_words_of_length_root_size(size):
  x = np.asarray(hashed(_examples(), size).arrays['x'])
  np.testing.assert_allclose(x, _expected(TEXTS, size), rtol=1e-6)
  assert (x.shape, x.dtype) == ((len(TEXTS), size), np.float32)
  if size == 4096:
    lengths = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(lengths, [64, 64, 0, 64, 0, 64], rtol=1e-6)


def test_rows_are_computed_for_those_asked_for_only():
  column = hashed(_examples(), 32).arrays['x']
  np.testing.assert_allclose(column.take(np.array([3, 0]))[1], _expected(TEXTS, 32)[0], rtol=1e-6)
  texts = [f'word{number} and word{number // 2}' for number in range(AT_ONCE + 7)]
  np.testing.assert_allclose(np.asarray(hashed(_examples(texts), 32).arrays['x']), _expected(texts, 32), rtol=1e-6)


def test_the_digest_changes_with_one_letter_and_with_the_size():
  first = digest(hashed(_examples(), 8))
  assert digest(hashed(_examples(), 8)) == first
  assert digest(hashed(_examples([*TEXTS[:-1], TEXTS[-1] + 's']), 8)) != first
  assert digest(hashed(_examples(), 9)) != first


def test_hashed_texts_are_a_table_for_every_task():
  info = hashed(_examples(other=Info('text', 'regression', targets=('y',))), 4).info
  assert (info.kind, info.columns) == ('table', ('hash0', 'hash1', 'hash2', 'hash3'))
  assert (info.tasks['other'].kind, info.tasks['other'].columns) == ('table', info.columns)


def test_only_texts_are_hashed():
  with pytest.raises(UserError, match=r"data\.hash is for texts, and the inputs are of kind 'table'"):
    hashed(_examples(kind='table'), 8)


def test_a_table_too_wide_for_any_machine_is_refused_at_once():
  with pytest.raises(UserError, match=r'hash: input should be less than or equal to 1048576, not 2147483647'):
    validate(Data, {'name': 'tsv:films.tsv', 'hash': 2**31 - 1})


def test_a_table_of_texts_is_hashed_through_load_and_not_standardized(tmp_path):
  texts = [f'{"good" if row % 2 else "bad"} film number {row}' for row in range(24)]
  (tmp_path / 'films.tsv').write_text(
    'label\ttext\n' + ''.join(f'{row % 2}\t{text}\n' for row, text in enumerate(texts))
  )
  for hold in ('device', 'stream'):
    loaded = load(Data(name=f'tsv:{tmp_path}/films.tsv', hash=64, columns={'text': 'text'}, hold=hold), 0)
    np.testing.assert_allclose(np.asarray(loaded.examples.arrays['x']), _expected(texts, 64), rtol=1e-6)
    assert (set(loaded.preprocessing['shift']), set(loaded.preprocessing['scale'])) == ({0.0}, {1.0})
