"""Stretches of a file as arrays: read straight into the array's own memory, with no copy beside it. Reads files.

What a file means is the affair of the reader of its format; here is only that bytes arrive, all of them.
"""

import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from transferlab.errors import UserError

# Of NumPy's dtypes, those that are weights: booleans, integers, floats, complex.
NUMBERS = 'biufc'


def is_numeric(dtype: np.dtype) -> bool:
  """Whether arrays of this dtype are numbers; bfloat16 and the float8 of ml_dtypes are of kind 'V' to NumPy."""
  return dtype.kind in NUMBERS or dtype.type.__module__.startswith('ml_dtypes')


def dtype_of(name: str) -> np.dtype:
  """The dtype of this name, be it NumPy's or one that it lacks (bfloat16, float8). Raises `TypeError` for others."""
  import ml_dtypes

  if name.startswith(('bfloat16', 'float8_')) and hasattr(ml_dtypes, name):
    return np.dtype(getattr(ml_dtypes, name))
  return np.dtype(name)


def num_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
  """What an array takes."""
  return math.prod(shape) * dtype.itemsize


def as_bytes(array: np.ndarray) -> memoryview:
  """The memory of a contiguous array, to be written into."""
  return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def fill(file: Any, view: memoryview, path: str | Path, at_once: int = 2**30) -> None:
  """Reads from an open file until the view is full; `at_once` bounds what the file holds in memory of its own.

  Raises:
    UserError: the file ends before.
  """
  done = 0
  while done < len(view):
    count = file.readinto(view[done : done + at_once])
    if not count:
      raise UserError(f'{path} is damaged or cut short: {len(view) - done} bytes are missing')
    done += count


def open_file(path: str | Path, *, buffered: bool = False) -> BinaryIO:
  """The file; unbuffered where arrays are read from it. Raises `UserError` where it cannot be opened."""
  try:
    return open(path, 'rb', buffering=-1 if buffered else 0)
  except OSError as error:
    raise UserError(f'{path} cannot be read ({error.strerror or type(error).__name__})') from None


def read_at(path: str | Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """The array that begins at a byte of a file, little-endian and in C order.

  Raises:
    UserError: the file is gone, or ends before the array does.
  """
  array = np.empty(shape, dtype.newbyteorder('<'))
  with open_file(path) as file:
    file.seek(offset)
    fill(file, as_bytes(array), path)
  return array.astype(dtype.newbyteorder('='), copy=False)
