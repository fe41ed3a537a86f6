"""Arrays of one's own: an npz file as examples, checked before anything is trained on it. Reads files.

Here: which keys are inputs and labels, and every way in which they can be unfit. Nothing is guessed that the
file does not say: where several keys could be meant, the config names one.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from transferlab.data.examples import Examples, Info, from_arrays
from transferlab.errors import UserError, nearest

Task = Literal['classification', 'binary', 'regression'] | None
INPUTS = ('x', 'image', 'images', 'data', 'inputs')
LABELS = ('y', 'label', 'labels', 'target')
SPLIT = ('_train', '_test')


def read_npz(
  path: str,
  inputs: str | None = None,
  label: str | list[str] | None = None,
  task: Task = None,
  unlabelled: bool = False,
) -> Examples:
  """The examples of an npz file; x_train, y_train, x_test and y_test make official splits.

  Inputs [N, D] are a table, [N, H, W] and [N, H, W, C] images; uint8 images stay as they are, all else
  becomes float32. Labels are integers [N] (classes 0, 1, … without a gap) or, for regression, floats [N] or
  [N, T]. The file may name its table columns under 'columns' and its classes under 'classes'. The range of
  images is 0 … 255 for uint8; else 0 … 1 or -1 … 1 if they lie within, else their smallest and largest value.

  Args:
    inputs: key of the inputs, where it is none of `INPUTS`; for official splits, without '_train' and '_test'.
    label: key of the labels, likewise; a list of them makes a task of each.
    task: None decides by each label's dtype; 'binary' is read as classification.
    unlabelled: labels may be missing: negative, NaN.

  Raises:
    UserError: no such file, no npz file or a damaged one, no such key, or contents unfit to learn from.
  """
  with open_npz(path) as arrays:
    parts = SPLIT if f'{inputs or "x"}{SPLIT[0]}' in arrays else ('',)
    official = len(parts) > 1
    x_key = inputs or ('x' if official else _only(arrays, INPUTS, 'inputs', path))
    y_keys = label or ('y' if official else _only(arrays, LABELS, 'label', path))
    x = [_numbers(arrays, x_key + part, path) for part in parts]
    y = {
      key: [_numbers(arrays, key + part, path) for part in parts]
      for key in (y_keys if isinstance(y_keys, list) else [y_keys])
    }
    columns, classes = (_names(arrays, key, path) for key in ('columns', 'classes'))
  for key, values in y.items():
    _same_lengths(x, values, x_key, key, parts, path)
  x, facts = _inputs(x, x_key, columns, path)
  facts.update(origin=f'npz file {Path(path).name}', file=path)
  labels, tasks = _labels(y, classes, task, facts, path, unlabelled)
  first = next(iter(tasks))
  rows = np.arange(sum(map(len, x)))
  splits = {'train': rows[: len(x[0])], 'test': rows[len(x[0]) :]} if official else None
  if isinstance(label, list):
    return from_arrays(np.concatenate(x), labels, dataclasses.replace(tasks[first], tasks=tasks), splits)
  return from_arrays(np.concatenate(x), labels[first], tasks[first], splits)


def open_npz(path: str) -> Any:
  """The file, opened; its arrays are read when they are asked for. Raises `UserError` where it is no npz file."""
  file = Path(path)
  if not file.is_file():
    if not file.parent.is_dir():
      raise UserError(f'no file {path!r}: there is no folder {str(file.parent)!r}')
    near = nearest(file.name, sorted(found.name for found in file.parent.glob('*.npz')))
    raise UserError(f'no file {path!r}; nearest in {str(file.parent)!r}: {", ".join(near) or "no npz file at all"}')
  try:
    arrays = np.load(file, allow_pickle=False)
  except Exception as error:  # a foreign file may fail in any of zipfile's, zlib's and NumPy's ways
    raise UserError(f'{path} is not an npz file, or is damaged or cut short ({type(error).__name__})') from None
  if not isinstance(arrays, np.lib.npyio.NpzFile):
    raise UserError(f'{path} is not an npz file but holds one bare array; write it with numpy.savez')
  return arrays


def _only(arrays: Any, candidates: tuple[str, ...], option: str, path: str) -> str:
  """The one candidate that the file holds."""
  found = [key for key in candidates if key in arrays]
  if len(found) == 1:
    return found[0]
  what = f'several keys could be the {option} ({", ".join(found)})' if found else f'no key of {", ".join(candidates)}'
  raise UserError(f'{path}: {what}; it holds {", ".join(arrays.files) or "nothing"}: name one with data.{option}')


def read_array(arrays: Any, key: str, path: str) -> np.ndarray:
  """One array of an opened file. Raises `UserError` where it is not there, or unreadable."""
  if key not in arrays:
    raise UserError(f'{path}: no key {key!r}; nearest: {", ".join(nearest(key, arrays.files)) or "it holds nothing"}')
  try:
    array = arrays[key]
  except Exception as error:  # as above
    if 'allow_pickle' in str(error):
      raise UserError(f'{path}: {key!r} holds Python objects (a pickle), which are never loaded') from None
    raise UserError(f'{path}: {key!r} is damaged or cut short ({type(error).__name__})') from None
  if not isinstance(array, np.ndarray):
    raise UserError(f'{path}: {key!r} is not an array')
  return array


def _numbers(arrays: Any, key: str, path: str) -> np.ndarray:
  array = read_array(arrays, key, path)
  if array.dtype.kind not in 'biuf':
    raise UserError(f'{path}: {key!r} has dtype {array.dtype}, and numbers are needed')
  if not array.ndim or not array.size:
    raise UserError(f'{path}: {key!r} of shape {array.shape} is empty')
  return array


def _names(arrays: Any, key: str, path: str) -> tuple[str, ...]:
  if key not in arrays:
    return ()
  names = tuple(map(str, read_array(arrays, key, path).reshape(-1)))
  if len(set(names)) < len(names):
    raise UserError(f'{path}: {key!r} holds a name twice')
  return names


def _same_lengths(
  x: list[np.ndarray], y: list[np.ndarray], x_key: str, y_key: str, parts: tuple[str, ...], path: str
) -> None:
  for part, rows, values in zip(parts, x, y):
    if len(rows) != len(values):
      raise UserError(f'{path}: {x_key + part!r} has {len(rows)} rows, and {y_key + part!r} has {len(values)}')


def _inputs(
  x: list[np.ndarray], key: str, columns: tuple[str, ...], path: str
) -> tuple[list[np.ndarray], dict[str, Any]]:
  """The parts of `x` as images or as rows of a table, and what is known about them."""
  shapes = ' and '.join(str(part.shape) for part in x)
  x = [part[..., None] if part.ndim == 3 else part for part in x]
  if any(part.ndim not in (2, 4) or part.shape[1:] != x[0].shape[1:] for part in x):
    raise UserError(f'{path}: inputs {key!r} of shape {shapes}; needed: [N, D], [N, H, W] or [N, H, W, C]')
  x = [part if part.ndim == 4 and part.dtype == np.uint8 else _finite(part, key, path) for part in x]
  if x[0].ndim == 4:
    low, high = _range(x)
    return x, {'kind': 'image', 'low': low, 'high': high, 'observed': high not in (1.0, 255.0)}
  columns = columns or tuple(f'x{i}' for i in range(x[0].shape[1]))
  if len(columns) != x[0].shape[1]:
    raise UserError(f'{path}: {len(columns)} names under columns, and {key!r} has {x[0].shape[1]} columns')
  return x, {'kind': 'table', 'columns': columns}


def _range(x: list[np.ndarray]) -> tuple[float, float]:
  if all(part.dtype == np.uint8 for part in x):
    return 0.0, 255.0
  low, high = float(min(part.min() for part in x)), float(max(part.max() for part in x))
  if low >= -1 and high <= 1:
    return (0.0 if low >= 0 else -1.0), 1.0
  return low, high if high > low else low + 1


def _finite(array: np.ndarray, key: str, path: str, gaps: bool = False) -> np.ndarray:
  """As float32, in which every value must be finite, or NaN where there may be gaps."""
  with np.errstate(over='ignore'):
    array = array.astype(np.float32)
  bad = ~(np.isfinite(array) | (gaps & np.isnan(array)))
  if bad.any():
    row = int(np.flatnonzero(bad.reshape(len(array), -1).any(axis=1))[0])
    raise UserError(f'{path}: {key!r} has {bad.sum()} values that are NaN or infinite, the first in row {row}')
  return array


def _labels(
  y: dict[str, list[np.ndarray]],
  names: tuple[str, ...],
  task: Task,
  known: dict[str, Any],
  path: str,
  unlabelled: bool,
) -> tuple[dict[str, np.ndarray], dict[str, Info]]:
  """Labels and `Info` by key; class names apply only where there is one key."""
  labels, tasks = {}, {}
  for key, parts in y.items():
    regression = task == 'regression' or (task is None and parts[0].dtype.kind == 'f')
    if regression:
      labels[key], facts = _targets(parts, key, path, unlabelled)
    else:
      labels[key], facts = _classes(parts, key, names if len(y) == 1 else (), path, unlabelled)
    tasks[key] = Info(**known, **facts)
  return labels, tasks


def _targets(y: list[np.ndarray], key: str, path: str, unlabelled: bool) -> tuple[np.ndarray, dict[str, Any]]:
  """Regression targets float32 [N, T], and what is known about them."""
  if any(part.ndim > 2 or part.shape[1:] != y[0].shape[1:] for part in y):
    raise UserError(f'{path}: targets {key!r} of shape {y[0].shape}; needed: [N] or [N, T]')
  label = np.concatenate([_finite(part, key, path, unlabelled).reshape(len(part), -1) for part in y])
  count = label.shape[1]
  targets = (key,) if count == 1 else tuple(f'{key}{i}' for i in range(count))
  return label, {'task': 'regression', 'targets': targets}


def _classes(
  y: list[np.ndarray], key: str, names: tuple[str, ...], path: str, unlabelled: bool
) -> tuple[np.ndarray, dict[str, Any]]:
  """Class numbers int32 [N], −1 where missing, and what is known; the first part says which classes there are."""
  if unlabelled:
    y = [np.where((part < 0) | (part != part), -1, part) for part in y]
  for part in y:
    if part.ndim != 1 and part.shape[1:] != (1,):
      raise UserError(f'{path}: labels {key!r} of shape {part.shape}; needed: one class number per example, [N]')
    if part.dtype.kind == 'f' and not (part == np.floor(part)).all():
      raise UserError(f'{path}: labels {key!r} are not whole numbers; for regression set data.task')
    if part.min() < 0 and not unlabelled:
      what = f'{path}: labels {key!r} are negative in {(part < 0).sum()} rows, the smallest {part.min()}'
      raise UserError(f"{what}; data.unlabelled='keep' takes them as missing")
  present = np.unique(y[0][y[0] >= 0])
  gap = next((number for number, value in enumerate(present) if value != number), len(present))
  count = len(names) or len(present)
  if gap < count:
    raise UserError(
      f'{path}: labels {key!r} have no example of class {names[gap] if names else gap!r}; '
      f'they should be 0 … {count - 1} without a gap, and the largest is {present.max(initial=-1)}'
    )
  largest = max(part.max() for part in y)
  if largest >= count:
    raise UserError(f'{path}: label {largest} in {key!r} is out of range: the training examples have {count} classes')
  if count < 2:
    raise UserError(f'{path}: all labels {key!r} are 0, so there is nothing to tell apart')
  label = np.concatenate([part.reshape(-1) for part in y]).astype(np.int32)
  return label, {'task': 'classification', 'classes': names or tuple(map(str, range(count)))}
