"""The preprocessing that belongs to the weights: x' = (x - shift) / scale, as a record that JSON can hold.

Here: fitting the record on training examples, applying it, and what a target takes over from its source.
Saving it with the weights is the checkpoint's affair; corruption belongs to the data, in image.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from transferlab.data import encoding, texts, tokens
from transferlab.data.columns import Column
from transferlab.data.examples import Info
from transferlab.errors import UserError

Record = dict[str, Any]
_VALUES = 2**22  # numbers converted to float64 at a time


# Mean and standard deviation per channel, as shares of the input range, that published weights were trained with.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
  'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  'inception': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
  'clip': ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
  'cifar10': ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
  'cifar100': ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
  'mnist': ((0.1307,), (0.3081,)),
}


def check_statistics(name: str | None, channels: int) -> None:
  """Raises `UserError` where named statistics are for another number of channels."""
  if name is not None and len(STATISTICS[name][0]) != channels:
    known = len(STATISTICS[name][0])
    raise UserError(f'data.statistics={name!r} is for {known} channels, and the images have {channels}')


def fit(
  x: Any,
  info: Info,
  standardize: bool,
  statistics: str | None = None,
  categorical: Literal['one_hot', 'embedding'] = 'one_hot',
  gaps: bool = False,
) -> Record:
  """The record `{'kind', 'shift', 'scale', 'columns', 'input_shape'}` for training examples; 'range' where it is known.

  Images: the input range becomes [0, 1]; with `standardize` the pixels of each channel get mean 0 and standard
  deviation 1 instead, by the examples or, with `statistics`, by named numbers. Tables: nothing; with `standardize`
  each numeric column gets mean 0 and standard deviation 1. Deviations are over N, not N - 1. What is constant is
  shifted, and scaled by 1 (tables) or the input range (images). Tables with categories or missing values are encoded
  first (encoding.py), and the record then holds the 'encoding'.

  Args:
    x: training examples, [N, H, W, C] or [N, D]; N > 0.
    gaps: values are missing somewhere in the table, if not in the training examples.

  Returns:
    shift and scale are lists of C or D numbers; columns is the list of names (empty for images); input_shape
    is that of one example.
  """
  image = info.kind == 'image'
  if not image and (info.categories or gaps):
    return _fit_encoded(x, info, standardize, categorical)
  last = x.shape[-1]
  shift, scale = (info.low, (info.high - info.low) or 1.0) if image else (0.0, 1.0)
  shifts, scales = np.full(last, shift, np.float64), np.full(last, scale, np.float64)
  if statistics is not None:
    mean, deviation = map(np.asarray, STATISTICS[statistics])
    shifts, scales = info.low + mean * scale, deviation * scale
  elif standardize:
    shifts, deviations = moments(x)
    scales = np.where(deviations > 0, deviations, scales)
  record = {
    'kind': info.kind,
    'shift': shifts.tolist(),
    'scale': scales.tolist(),
    'columns': list(info.columns),
    'input_shape': [int(size) for size in x.shape[1:]],
  }
  known = image and not info.observed
  return {**record, 'range': [float(info.low), float(info.high)]} if known else record


def _fit_encoded(x: np.ndarray, info: Info, standardize: bool, categorical: Literal['one_hot', 'embedding']) -> Record:
  entries = encoding.fit(x, info, categorical)
  shift, scale = encoding.scaling(encoding.encode(x, info, entries), entries, standardize)
  return {
    'kind': info.kind,
    'shift': np.asarray(shift, np.float64).tolist(),
    'scale': np.asarray(scale, np.float64).tolist(),
    'columns': [entry['name'] for entry in entries],
    'input_shape': [len(entries)],
    'encoding': entries,
  }


def example(record: Mapping[str, Any], rows: int) -> Any:
  """The shape and dtype of a batch of inputs, preprocessed."""
  import jax

  return jax.ShapeDtypeStruct((rows, *record['input_shape']), np.int32 if 'tokens' in record else np.float32)


def encoded(x: Any, info: Info, record: Mapping[str, Any]) -> Any:
  """A raw table [N, C] as the record encodes it [N, D]; texts as tokens or bags of words; everything else as it is.

  Raises:
    UserError: values are missing, and were not where the record was fitted.
  """
  if info.kind == 'text':
    return tokens.encode(x, record['tokens']) if 'tokens' in record else texts.bags(x, record)
  if info.kind == 'table' and 'encoding' not in record and not isinstance(x, Column) and np.isnan(x).any():
    raise UserError('values are missing in this table, and none were in the one whose preprocessing it uses')
  return encoding.encode(x, info, record['encoding']) if 'encoding' in record else x


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation over all axes but the last of float32 or uint8 values, float64 [C].

  In two passes over blocks of rows, so that a large array is never converted whole. Sums of equal float32 values
  are exact in float64, so a constant has a deviation of exactly 0.
  """
  rows = max(1, _VALUES // int(np.prod(x.shape[1:])))
  blocks = lambda: (x[start : start + rows].reshape(-1, x.shape[-1]) for start in range(0, len(x), rows))
  count = len(x) * int(np.prod(x.shape[1:-1]))
  mean = sum((block.sum(axis=0, dtype=np.float64) for block in blocks()), np.zeros(x.shape[-1])) / count
  squares = sum((((block - mean) ** 2).sum(axis=0) for block in blocks()), np.zeros(x.shape[-1]))
  return mean, np.sqrt(squares / count)


def fit_texts(x: Sequence[str], bag: texts.Bag | None, by: tokens.Tokens | None) -> Record:
  """The record of texts, fitted to those of the training split: as bags of words, or as tokens.

  The latter holds no shift and no scale, since numbers of tokens pass as they are.

  Raises:
    UserError: neither is asked for; see `texts.fit_bag` and `tokens.fit`.
  """
  if bag is not None:
    return texts.fit_bag(x, bag)
  if by is None:
    return Record()
  numbers = tokens.fit(x, by)
  return {'kind': 'text', 'shift': [], 'scale': [], 'columns': [], 'input_shape': [by.length], 'tokens': numbers}


def apply(x: Any, shift: Any, scale: Any) -> Any:
  """(x - shift) / scale in float32, for NumPy or jax arrays [..., C]; shift and scale: lists or arrays [C].

  Without any, as the records of tokens have it, x passes as it is.
  """
  if np.shape(shift)[-1:] == (0,):
    return x
  if isinstance(shift, (list, tuple)):
    shift = np.asarray(shift, np.float32)
  if isinstance(scale, (list, tuple)):
    scale = np.asarray(scale, np.float32)
  return (x.astype('float32') - shift.astype('float32')) / scale.astype('float32')


def reuse(source: Mapping[str, Any], target: Mapping[str, Any]) -> tuple[Record, list[str]]:
  """The record a target uses when it takes its source's preprocessing, and sentences for the report.

  Images take the source's shift and scale, in the units of their own range (a source on 0 … 1 and a target on 0 … 255),
  and for their own number of channels: one channel takes the mean of the source's, several take them in turn. Tables
  take those of the columns the source knows by name; columns it does not know keep the target's own. Columns and input
  shape stay the target's.

  Raises:
    UserError: one is of images and the other of tables.
  """
  if source['kind'] != target['kind']:
    raise UserError(
      f'the source was trained on {source["kind"]} data and the target is {target["kind"]} data: '
      'its preprocessing cannot be reused'
    )
  for way in ('tokens', 'bag'):
    if (way in source) != (way in target):
      raise UserError(
        f'one of source and target reads texts by data.{way}, and the other does not: the preprocessing '
        "cannot be reused; target.preprocessing='refit' uses the target's own"
      )
  if 'tokens' in target or 'bag' in target:
    return _vocabulary_of(source, target)
  record = {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in target.items()}
  if 'encoding' in target:
    record = _merged(source.get('encoding', []), record)
  if target['kind'] == 'table':
    return record, _reuse_columns(source, record)
  return _image_record(source, record)


def _vocabulary_of(source: Mapping[str, Any], target: Mapping[str, Any]) -> tuple[Record, list[str]]:
  """The record of a target's texts with the vocabulary of its source; texts are as long as the target has them."""
  if 'bag' in source:
    return dict(source), [f"preprocessing: the source's {len(source['columns']):,} words"]
  known = len(tokens.vocabulary(source['tokens']))
  numbers = {
    **target['tokens'],
    **{key: source['tokens'][key] for key in ('tokenizer', 'size') if key in source['tokens']},
  }
  return {**target, 'tokens': numbers}, [f"preprocessing: the source's vocabulary of {known:,} tokens"]


def _image_record(source: Mapping[str, Any], record: Record) -> tuple[Record, list[str]]:
  """The record of a target's images with what belongs to the source's weights, and sentences for the report."""
  shift, scale = np.array(source['shift']), np.array(source['scale'])
  notes = ["preprocessing: the source's shift and scale"]
  if 'range' in source and 'range' in record and source['range'] != (mine := record['range']):
    (low, high), unit = source['range'], mine[1] - mine[0]
    shift, scale = mine[0] + (shift - low) * unit / (high - low), scale * unit / (high - low)
    notes[0] += f", for values in {mine[0]:g} … {mine[1]:g} in place of the source's {low:g} … {high:g}"
  elif 'range' in source and 'range' not in record:
    low, high = source['range']
    notes[0] += (
      f", as they are: the source's images had {low:g} … {high:g}, and what the target's could have is not known"
    )
  if len(shift) != (channels := len(record['shift'])):
    how = 'their mean' if channels == 1 else 'in turn'
    notes[0] += f"; {how} for {channels} channels in place of the source's {len(shift)}"
    shift, scale = (v.mean(keepdims=True) if channels == 1 else np.resize(v, channels) for v in (shift, scale))
  record.update(shift=shift.tolist(), scale=scale.tolist())
  seen, own = (each.get('input_shape', [])[:2] for each in (source, record))
  if seen and seen != own:
    notes.append(f'images: the source saw {seen[0]}×{seen[1]}, the target has {own[0]}×{own[1]}')
  return record, notes


def _merged(source: Sequence[Any], target: Record) -> Record:
  """The target's record with the categories that the source knows, too."""
  own = {name: (shift, scale) for name, shift, scale in zip(target['columns'], target['shift'], target['scale'])}
  entries = encoding.merge(list(source), target['encoding'])
  names = [entry['name'] for entry in entries]
  shift, scale = zip(*(own.get(name, (0.0, 1.0)) for name in names))
  return {
    **target, 'encoding': entries, 'columns': names, 'shift': list(shift), 'scale': list(scale),
    'input_shape': [len(names)],
  }  # fmt: skip


def _reuse_columns(source: Mapping[str, Any], record: Record) -> list[str]:
  """Overwrites what the source knows in `record`, and says what it knew."""
  known = {name: (source['shift'][i], source['scale'][i]) for i, name in enumerate(source['columns'])}
  numbers = set(_numeric(source)) & set(_numeric(record))
  own = [name for name in record['columns'] if name not in known]
  for i, name in enumerate(record['columns']):
    if name in known and name in numbers:
      record['shift'][i], record['scale'][i] = known[name]
  total = len(record['columns'])
  notes = [f"preprocessing: {total - len(own)} of {total} columns take the source's shift and scale"]
  if own:
    notes.append(f"preprocessing: columns new to the source keep the target's own: {', '.join(own)}")
  absent = [name for name in known if name not in record['columns']]
  if absent:
    notes.append(f"preprocessing: the target lacks the source's columns: {', '.join(absent)}")
  return notes


def _numeric(record: Mapping[str, Any]) -> list[str]:
  """The columns that hold numbers, and not what stands for a category."""
  if 'encoding' not in record:
    return record['columns']
  return [entry['name'] for entry in record['encoding'] if entry['kind'] == 'numeric']
