"""The preprocessing that belongs to the weights: x' = (x - shift) / scale, as a record that JSON can hold.

Here: fitting the record on training examples, applying it, and what a target takes over from its source.
Saving it with the weights is the checkpoint's affair; corruption belongs to the data, in image.py.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from transferlab.data.examples import Info
from transferlab.errors import UserError

Record = dict[str, Any]
_ROWS = 4096  # examples converted to float64 at a time


def fit(x: np.ndarray, info: Info, standardize: bool) -> Record:
  """The record `{'kind', 'shift', 'scale', 'columns', 'input_shape'}` for training examples.

  Images: the input range becomes [0, 1]; with `standardize` the pixels of each channel get mean 0 and standard
  deviation 1 instead. Tables: nothing; with `standardize` each column gets mean 0 and standard deviation 1. Deviations
  are over N, not N - 1. What is constant is shifted, and scaled by 1 (tables) or the input range (images).

  Args:
    x: training examples, [N, H, W, C] or [N, D]; N > 0.

  Returns:
    shift and scale are lists of C or D numbers; columns is the list of names (empty for images); input_shape
    is that of one example.
  """
  last = x.shape[-1]
  image = info.kind == 'image'
  shift, scale = (info.low, (info.high - info.low) or 1.0) if image else (0.0, 1.0)
  shifts, scales = np.full(last, shift, np.float64), np.full(last, scale, np.float64)
  if standardize:
    shifts, deviations = moments(x)
    scales = np.where(deviations > 0, deviations, scales)
  return {
    'kind': info.kind,
    'shift': shifts.tolist(),
    'scale': scales.tolist(),
    'columns': list(info.columns),
    'input_shape': [int(size) for size in x.shape[1:]],
  }


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation over all axes but the last of float32 or uint8 values, float64 [C].

  In two passes over blocks of rows, so that a large array is never converted whole. Sums of equal float32 values
  are exact in float64, so a constant has a deviation of exactly 0.
  """
  blocks = [x[start : start + _ROWS].reshape(-1, x.shape[-1]) for start in range(0, len(x), _ROWS)]
  count = sum(len(block) for block in blocks)
  mean = sum((block.sum(axis=0, dtype=np.float64) for block in blocks), np.zeros(x.shape[-1])) / count
  squares = sum((((block - mean) ** 2).sum(axis=0) for block in blocks), np.zeros(x.shape[-1]))
  return mean, np.sqrt(squares / count)


def apply(x: Any, shift: Any, scale: Any) -> Any:
  """(x - shift) / scale in float32, for NumPy or jax arrays [..., C]; shift and scale: lists or arrays [C]."""
  if isinstance(shift, (list, tuple)):
    shift = np.asarray(shift, np.float32)
  if isinstance(scale, (list, tuple)):
    scale = np.asarray(scale, np.float32)
  return (x.astype('float32') - shift.astype('float32')) / scale.astype('float32')


def reuse(source: Mapping[str, Any], target: Mapping[str, Any]) -> tuple[Record, list[str]]:
  """The record a target uses when it takes its source's preprocessing, and sentences for the report.

  Images take the source's shift and scale if they have as many channels. Tables take those of the columns the
  source knows by name; columns it does not know keep the target's own. Columns and input shape stay the target's.

  Raises:
    UserError: one is of images and the other of tables.
  """
  if source['kind'] != target['kind']:
    raise UserError(
      f'the source was trained on {source["kind"]} data and the target is {target["kind"]} data: '
      'its preprocessing cannot be reused'
    )
  record = {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in target.items()}
  if target['kind'] == 'table':
    return record, _reuse_columns(source, record)
  if len(source['shift']) != len(target['shift']):
    return record, [
      f"preprocessing: the target's own, since it has {len(target['shift'])} channels "
      f'and the source {len(source["shift"])}'
    ]
  record.update(shift=list(source['shift']), scale=list(source['scale']))
  return record, ["preprocessing: the source's shift and scale"]


def _reuse_columns(source: Mapping[str, Any], record: Record) -> list[str]:
  """Overwrites what the source knows in `record`, and says what it knew."""
  known = {name: (source['shift'][i], source['scale'][i]) for i, name in enumerate(source['columns'])}
  own = [name for name in record['columns'] if name not in known]
  for i, name in enumerate(record['columns']):
    if name in known:
      record['shift'][i], record['scale'][i] = known[name]
  total = len(record['columns'])
  notes = [f"preprocessing: {total - len(own)} of {total} columns take the source's shift and scale"]
  if own:
    notes.append(f"preprocessing: columns new to the source keep the target's own: {', '.join(own)}")
  absent = [name for name in known if name not in record['columns']]
  if absent:
    notes.append(f"preprocessing: the target lacks the source's columns: {', '.join(absent)}")
  return notes
