"""Columns: they index like the array they stand for, read what is asked for and no more, in threads and processes."""

import concurrent.futures
import multiprocessing
import pickle
import threading
import time

import numpy as np
import pytest

from transferlab.data import columns
from transferlab.data.columns import AT_ONCE, Column, in_threads

VALUES = np.random.default_rng(0).integers(0, 256, (60, 2, 3)).astype(np.uint8)


class Reads:
  """Rows of an array, with a note of every row that was asked for."""

  def __init__(self, values=VALUES, wait=0.0):
    self.values, self.rows, self.wait = values, [], wait

  def __call__(self, rows):
    self.rows += rows.tolist()
    time.sleep(self.wait)
    return self.values[rows]


def _column(read=None, values=VALUES):
  return Column(read or Reads(values), np.arange(len(values)), values.shape[1:], values.dtype, 'contents')


@pytest.mark.parametrize(
  'index',
  [0, -1, np.int32(7), slice(None), slice(50, 70), slice(None, None, -7), slice(5, 5), [4, 4, 1],
   np.array([[3, 0], [59, 3], [8, 9]]), np.zeros((2, 0), int), np.arange(60) % 7 == 3, np.zeros(60, bool)],
  ids=str,
)  # fmt: skip
def test_a_column_indexes_like_its_array(index):
  found = _column()[index]
  np.testing.assert_array_equal(found, VALUES[index])
  assert (found.shape, found.dtype) == (VALUES[index].shape, VALUES.dtype)


def test_a_row_that_is_not_there_is_an_index_error_as_for_arrays():
  for index in (60, -61, [0, 60]):
    with pytest.raises(IndexError):
      _column()[index]


def test_only_the_rows_asked_for_are_read():
  read = Reads()
  _column(read)[[5, 2]]
  taken = _column(read).take(np.array([9, 1, 30]))
  assert read.rows == [5, 2]
  taken[1:]
  assert read.rows == [5, 2, 1, 30]


def test_taking_twice_composes_and_keeps_shape_dtype_and_digest():
  taken = _column().take(np.arange(59, -1, -2)).take(np.array([3, 0]))
  np.testing.assert_array_equal(np.asarray(taken), VALUES[::-1][::2][[3, 0]])
  assert (taken.shape, taken.ndim, taken.dtype, len(taken)) == ((2, 2, 3), 3, np.uint8, 2)
  assert taken.digest == _column().digest


def test_a_change_sees_values_and_the_row_numbers_of_the_original_data():
  change = lambda values, rows: (values + rows[:, None, None]).astype(np.uint8)
  changed = _column().take(np.array([40, 7])).then(change, 'plus row')
  np.testing.assert_array_equal(np.asarray(changed), VALUES[[40, 7]] + np.array([40, 7], np.uint8)[:, None, None])
  assert changed.digest != _column().digest
  assert changed.digest != _column().then(change, 'plus more').digest
  smaller = _column().then(lambda values, rows: values[:, :1], 'cut', (1, 3))
  np.testing.assert_array_equal(smaller[3:5], VALUES[3:5, :1])
  assert smaller.shape == (60, 1, 3)


def test_a_column_longer_than_what_is_read_at_once_becomes_the_whole_array():
  values = np.arange(2 * AT_ONCE + 5, dtype=np.float32)[:, None]
  asked = []
  read = lambda rows: asked.append(len(rows)) or values[rows]
  np.testing.assert_array_equal(np.asarray(Column(read, np.arange(len(values)), (1,), np.float32, '')), values)
  assert asked == [AT_ONCE, AT_ONCE, 5]
  whole = np.asarray(_column(), dtype=np.float64)
  assert whole.dtype == np.float64
  np.testing.assert_array_equal(whole, VALUES)


def test_kept_examples_are_read_once_even_through_columns_taken_from_them():
  read = Reads()
  kept = _column(read).kept()
  np.testing.assert_array_equal(kept[[3, 3, 8]], VALUES[[3, 3, 8]])
  np.testing.assert_array_equal(kept.take(np.array([8, 20]))[:], VALUES[[8, 20]])
  np.testing.assert_array_equal(np.asarray(kept), VALUES)
  np.testing.assert_array_equal(kept.then(lambda values, rows: 255 - values, 'inverted')[:], 255 - VALUES)
  assert sorted(read.rows) == list(range(60))


def test_what_is_kept_is_not_changed_by_those_who_got_it():
  kept = _column().kept()
  kept[2:4][:] = 0
  np.testing.assert_array_equal(kept[2:4], VALUES[2:4])


def test_a_failed_read_is_tried_again():
  answers = iter([OSError('gone'), VALUES[:2]])

  def read(rows):
    if isinstance(answer := next(answers), OSError):
      raise answer
    return answer

  kept = Column(read, np.arange(2), (2, 3), np.uint8, '').kept()
  with pytest.raises(OSError, match='gone'):
    kept[:]
  np.testing.assert_array_equal(kept[:], VALUES[:2])


def test_threads_that_ask_for_the_same_examples_get_them_read_once():
  read = Reads(wait=0.02)
  kept = _column(read).kept()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda start: kept[start : start + 20], [0, 10, 0, 5, 10, 40, 30, 0]))
  for start, values in zip([0, 10, 0, 5, 10, 40, 30, 0], found):
    np.testing.assert_array_equal(values, VALUES[start : start + 20])
  assert len(read.rows) == len(set(read.rows))


def test_no_examples_at_all_are_an_empty_array_kept_or_not():
  empty = _column().take(np.zeros(0, int))
  for column in (empty, empty.kept()):
    assert np.asarray(column).shape == (0, 2, 3)
    assert column[0:0].dtype == np.uint8


def test_a_pickled_column_reads_the_same():
  again = pickle.loads(pickle.dumps(_column().take(np.array([8, 2]))))
  np.testing.assert_array_equal(np.asarray(again), VALUES[[8, 2]])


def test_threads_give_results_in_order_use_several_threads_and_pass_errors_on():
  threads = set()

  def square(number):
    threads.add(threading.get_ident())
    time.sleep(0.01)
    return number * number

  columns._threads.cache_clear()
  assert in_threads(square, list(range(20))) == [number * number for number in range(20)]
  assert threading.get_ident() not in threads
  assert in_threads(square, []) == []
  with pytest.raises(ZeroDivisionError):
    in_threads(lambda number: 1 / number, [1, 0, 2])


def _in_child(answers):
  answers.put(in_threads(abs, [-1, -2, -3]))


@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_a_forked_process_reads_with_threads_of_its_own():
  in_threads(abs, [-1, -2])  # the pool exists before the fork, and its threads do not come along
  context = multiprocessing.get_context('fork')
  answers = context.Queue()
  child = context.Process(target=_in_child, args=(answers,))
  child.start()
  try:
    assert answers.get(timeout=20) == [1, 2, 3]
  finally:
    child.kill()
