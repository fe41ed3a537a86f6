"""Inputs that are read when they are asked for: they index like an array, and only what is asked for is in memory.

Folders of images, TFDS data sets and hashed texts are columns; whoever needs all of it at once says `numpy.asarray`.
Nothing here knows what is read. Runs threads.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

Item = TypeVar('Item')
Result = TypeVar('Result')
AT_ONCE = 1024  # rows that are read at a time where all are wanted


class Column:
  """A leading example axis whose values are read on demand.

  Args:
    read: `read(rows) -> [rows, …]` for row numbers of the original data. It must survive pickling where worker
      processes are to read.
    rows: int [N], the row number that stands at each place.
    shape: of one example.
    digest: says which contents these are; changes with anything that changes a value.
  """

  def __init__(
    self, read: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, shape: Sequence[int], dtype: Any, digest: str
  ):
    self.read, self.rows, self.example_shape, self.dtype = read, rows, tuple(shape), np.dtype(dtype)
    self.digest = digest

  @property
  def shape(self) -> tuple[int, ...]:
    """[N, …], as of an array."""
    return (len(self.rows), *self.example_shape)

  @property
  def ndim(self) -> int:
    """Axes, the leading one included."""
    return 1 + len(self.example_shape)

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: Any) -> np.ndarray:
    """The examples at a number, a slice, or an array of numbers of any shape."""
    rows = np.asarray(self.rows[index])
    if not rows.size:
      return np.empty((*rows.shape, *self.example_shape), self.dtype)
    return self.read(rows.reshape(-1)).reshape(*rows.shape, *self.example_shape)

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    whole = np.empty(self.shape, self.dtype)
    for start in range(0, len(self), AT_ONCE):
      whole[start : start + AT_ONCE] = self[start : start + AT_ONCE]
    return whole if dtype is None else whole.astype(dtype, copy=False)

  def then(
    self, change: Callable[[np.ndarray, np.ndarray], np.ndarray], what: str, shape: Sequence[int] | None = None
  ) -> Column:
    """The column whose values are `change(values, rows)`, of the given shape; `what` says which change it is."""
    shape = self.example_shape if shape is None else shape
    return Column(_Changed(self.read, change), self.rows, shape, self.dtype, f'{self.digest} {what}')

  def kept(self) -> Column:
    """The column that reads every example once at most, and keeps it in memory."""
    store = _Store(self.read, int(self.rows.max(initial=-1)) + 1, self.example_shape, self.dtype)
    return Column(store, self.rows, self.example_shape, self.dtype, self.digest)

  def take(self, indices: np.ndarray, axis: int = 0) -> Column:
    """The column of these examples, in this order; nothing is read."""
    assert axis == 0
    return Column(self.read, self.rows[indices], self.example_shape, self.dtype, self.digest)


def joined(parts: Sequence[np.ndarray | Column]) -> np.ndarray | Column:
  """The examples of several, one after another, of one shape; a column where any of them is one."""
  if not any(isinstance(part, Column) for part in parts):
    return np.concatenate([np.asarray(part) for part in parts])
  if len({part.dtype for part in parts}) > 1:
    parts = [part.then(_as_float, 'float32') if isinstance(part, Column) else part.astype(np.float32) for part in parts]
  starts = np.cumsum([0, *map(len, parts)])
  digest = hashlib.blake2b(digest_size=16)
  for part in parts:
    if isinstance(part, Column):
      digest.update(f'{part.digest} {hashlib.blake2b(part.rows.tobytes()).hexdigest()}'.encode())
    else:
      digest.update(np.ascontiguousarray(part).data)
  read = _Joined(tuple(parts), starts)
  return Column(read, np.arange(starts[-1]), parts[0].shape[1:], parts[0].dtype, digest.hexdigest())


def _as_float(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
  return values.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Joined:
  parts: tuple[Any, ...]
  starts: np.ndarray

  def __call__(self, rows: np.ndarray) -> np.ndarray:
    values = np.empty((len(rows), *self.parts[0].shape[1:]), self.parts[0].dtype)
    for part, start, stop in zip(self.parts, self.starts, self.starts[1:]):
      own = np.flatnonzero((rows >= start) & (rows < stop))
      if len(own):
        values[own] = part[rows[own] - start]
    return values


@dataclasses.dataclass(frozen=True)
class _Changed:
  read: Callable[[np.ndarray], np.ndarray]
  change: Callable[[np.ndarray, np.ndarray], np.ndarray]

  def __call__(self, rows: np.ndarray) -> np.ndarray:
    return self.change(self.read(rows), rows)


class _Store:
  """Examples that were read, by row number."""

  def __init__(self, read: Callable[[np.ndarray], np.ndarray], count: int, shape: tuple[int, ...], dtype: np.dtype):
    self.read, self.values, self.known = read, np.empty((count, *shape), dtype), np.zeros(count, bool)
    self.lock = threading.Lock()

  def __call__(self, rows: np.ndarray) -> np.ndarray:
    with self.lock:
      missing = np.unique(rows[~self.known[rows]])
      for start in range(0, len(missing), AT_ONCE):
        some = missing[start : start + AT_ONCE]
        self.values[some] = self.read(some)
      self.known[missing] = True
      return self.values[rows]


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
  """`[function(item) for item in items]` on all cores, for functions that let go of Python's lock (decoding does).

  Several items at a time: to hand over a small image takes as long as to decode it.
  """
  count = max(1, len(items) // (4 * _cores()))
  parts = [items[start : start + count] for start in range(0, len(items), count)]
  if len(parts) < 2:
    return [function(item) for item in items]
  several = lambda part: [function(item) for item in part]
  return [result for results in _threads(os.getpid()).map(several, parts) for result in results]


def _cores() -> int:
  return len(os.sched_getaffinity(0))


@functools.cache
def _threads(process: int) -> concurrent.futures.ThreadPoolExecutor:
  """Those of one process: a forked one inherits the pool without its threads, and would wait for them forever."""
  del process
  return concurrent.futures.ThreadPoolExecutor(_cores(), 'transferlab-read')
