"""Data sets of TensorFlow Datasets, read without TensorFlow through random access. Reads files.

Finding and preparing them is in tfds_builders.py.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transferlab.data import decoding, tfds_builders
from transferlab.data.columns import Column, in_threads
from transferlab.data.examples import Examples, Info, from_arrays
from transferlab.errors import UserError, unknown

Parts = tuple[tuple[str, int], ...]  # names and sizes, in their order
Leaves = list[tuple[str, Any]]  # paths 'outer/inner' and features


@dataclasses.dataclass(frozen=True)
class Images:
  """Reads the images of prepared files by row number, over all parts in the order of `parts`."""

  place: str
  parts: Parts
  feature: str
  shape: tuple[int, int, int]
  resize: decoding.Resize | None

  def __call__(self, rows: np.ndarray) -> np.ndarray:
    result = np.empty((len(rows), *self.shape), np.uint8)
    start = 0
    for part, count in self.parts:
      here = np.flatnonzero((rows >= start) & (rows < start + count))
      if len(here):
        records = _records(self.place, part, (self.feature,), (rows[here] - start).tolist())
        encoded = [_lookup(record, self.feature) for record in records]
        for row, image in zip(here, in_threads(self._one, list(zip(encoded, rows[here].tolist())))):
          result[row] = image
      start += count
    return result

  def _one(self, item: tuple[bytes, int]) -> np.ndarray:
    data, row = item
    name = f'example {row} of {self.place}'
    image = decoding.read_image(data, self.shape[2], self.resize, name)
    if image.shape != self.shape:
      raise UserError(f'{name} is {image.shape[0]}×{image.shape[1]}, and should be {self.shape[0]}×{self.shape[1]}')
    return image


def read_tfds(
  name: str,
  folder: str | None,
  inputs: str | list[str] | None,
  label: str | list[str] | None,
  task: str | None,
  resize: decoding.Resize | None,
) -> Examples:
  """The examples of a TFDS data set, its splits as parts.

  Images are read when asked for; labels, tables and texts at once.

  Args:
    name: 'NAME', 'NAME/CONFIG' or 'NAME:VERSION', as TFDS writes it.
    folder: where prepared data sets stand; None: TFDS's own place.
    inputs: the feature to learn from; None: as the data set's supervised keys say, or the only one it can be. Nested
      features are written 'outer/inner'; a dict of numbers, or a list of such features, is a table.
    label: the feature, or features, to learn; likewise.
    resize: for images that differ in size.

  Raises:
    UserError: no such data set or feature, one that cannot be prepared, or features unfit to learn from.
  """
  builder = tfds_builders.prepared(name, folder)
  features, info = dict(builder.info.features), builder.info
  usual = info.supervised_keys or (None, None)
  chosen = inputs or _chosen(usual[0], features, 'inputs', name)
  labels = [label] if isinstance(label, str) else label
  others = {key: feature for key, feature in features.items() if key not in _flat(chosen)}
  labels = labels or [_one(_chosen(usual[1] if usual[1] != usual[0] else None, others, 'label', name), 'label', name)]
  known_labels = {key: _feature(features, key, 'label', name) for key in labels}
  parts = tuple((part, int(split.num_examples)) for part, split in info.splits.items() if split.num_examples)
  if not parts:
    raise UserError(f'tfds:{name} holds no examples')
  place = str(builder.data_path)
  read = functools.partial(_columns, place, parts, tuple(p for p, f in _leaves(features) if _type(f) == 'Image'))
  kind, leaves = _kind(features, chosen, name)
  x: Any
  values = read(list(dict.fromkeys([*labels, *(path for path, _ in leaves if kind != 'image')])))
  known: dict[str, Any] = {'kind': kind, 'origin': f'TFDS {info.full_name}', 'file': None}
  if kind == 'image':
    sizes = [info.splits[part].num_bytes for part, _ in parts]
    x, facts = _images(*leaves[0], place, parts, resize, name, f'{info.full_name} {sizes}')
  elif kind == 'text':
    x, facts = np.array([_text(value) for value in values[leaves[0][0]]], object), {}
  else:
    x, facts = _table(values, leaves, chosen, name)
  targets, tasks = {}, {}
  for key, feature in known_labels.items():
    targets[key], own = _label(values[key], feature, key, task, name)
    tasks[key] = Info(**known, **facts, **own)
  ends = np.cumsum([0, *(count for _, count in parts)])
  official = {part: np.arange(ends[i], ends[i + 1]) for i, (part, _) in enumerate(parts)} if len(parts) > 1 else None
  if isinstance(label, list):
    return from_arrays(x, targets, dataclasses.replace(tasks[labels[0]], tasks=tasks), official)
  return from_arrays(x, targets[labels[0]], tasks[labels[0]], official)


# ------------------------------------------------------------------------------------------------------- features
def _type(feature: Any) -> str:
  return type(feature).__name__


def _leaves(features: Mapping[str, Any], prefix: str = '') -> Leaves:
  """Features that are no dicts; those of a dict by name, since files keep them in no order."""
  found: Leaves = []
  for key, feature in sorted(features.items()) if prefix else features.items():
    nested = _type(feature) == 'FeaturesDict'
    found += _leaves(dict(feature), f'{prefix}{key}/') if nested else [(prefix + key, feature)]
  return found


def _scalar(feature: Any) -> str:
  """The kind of its dtype ('b', 'i', 'u', 'f', or 'O' for strings) where a feature is one value; '' elsewhere."""
  return _number(feature) if feature.shape == () else ''


def _number(feature: Any) -> str:
  return '' if isinstance(feature.np_dtype, Mapping) else np.dtype(feature.np_dtype).kind


def _feature(features: Mapping[str, Any], path: str, option: str, name: str) -> Any:
  """The feature at a path 'outer/inner'."""
  feature: Any = features
  for key in path.split('/'):
    if (feature is not features and _type(feature) != 'FeaturesDict') or key not in feature:
      known = dict.fromkeys([*features, *(path for path, _ in _leaves(features))])
      raise unknown(f'data.{option} of tfds:{name}', path, known)
    feature = feature[key]
  return feature


def _chosen(key: Any, features: Mapping[str, Any], option: str, name: str) -> str | list[str]:
  """What the data set names (one feature, or several in any nesting); where it names none, the only one it can be."""
  if named := sorted(_flat(key)):
    return named if len(named) > 1 else named[0]
  fits = {'inputs': ('Image', 'Text', 'Tensor', 'FeaturesDict'), 'label': ('ClassLabel',)}[option]
  for what in fits:
    found = [path for path, feature in features.items() if _type(feature) == what]
    if len(found) == 1:
      return found[0]
  raise UserError(
    f'tfds:{name} does not say what its {option} is; it has {", ".join(sorted(features))}: set data.{option}'
  )


def _flat(key: Any) -> list[str]:
  if key is None or isinstance(key, str):
    return [key] if key else []
  return [name for inner in (key.values() if isinstance(key, Mapping) else key) for name in _flat(inner)]


def _one(key: str | list[str], option: str, name: str) -> str:
  if isinstance(key, str):
    return key
  raise UserError(f'tfds:{name} names several features as its {option} ({", ".join(key)}): set data.{option}')


def _kind(features: Mapping[str, Any], chosen: str | list[str], name: str) -> tuple[str, Leaves]:
  """The kind of the inputs, and the features they are made of."""
  if isinstance(chosen, list):
    leaves = _leaves({path: _feature(features, path, 'inputs', name) for path in chosen})
  else:
    feature = _feature(features, chosen, 'inputs', name)
    leaves = _leaves({chosen: feature})
    if _type(feature) == 'Image':
      return 'image', leaves
    if _type(feature) == 'Text' or _scalar(feature) in tuple('OSU'):
      return 'text', leaves
    if len(feature.shape) == 1 and None not in feature.shape and _number(feature) in tuple('biuf'):
      return 'table', leaves
  for path, leaf in leaves:
    if not _scalar(leaf):
      what = f'{_type(leaf)} of shape {leaf.shape}'
      raise UserError(f'tfds:{name}: feature {path!r} is of type {what}; {READABLE} can be read')
  return 'table', leaves


READABLE = 'images, texts, vectors of one length, and dicts of numbers and strings'


def _source(place: str, part: str, skipped: tuple[str, ...]) -> Any:
  return _opened(place, part, skipped, os.getpid())


@functools.lru_cache(maxsize=32)
def _opened(place: str, part: str, skipped: tuple[str, ...], process: int) -> Any:
  """A part for random access; every process opens its own, since readers have threads."""
  import tensorflow_datasets as tfds

  del process
  builder = tfds.builder_from_directory(place)
  decoders: dict[str, Any] = {}
  for path in skipped:
    *outer, last = path.split('/')
    inner = decoders
    for key in outer:
      inner = inner.setdefault(key, {})
    inner[last] = tfds.decode.SkipDecoding()
  return builder.as_data_source(split=part, decoders=decoders or None)


def _records(place: str, part: str, skipped: tuple[str, ...], rows: list[int]) -> Sequence[Any]:
  try:
    return _source(place, part, skipped).__getitems__(rows)
  except Exception as error:
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    raise UserError(f'{part!r} of {place} cannot be read: a file is damaged, cut short or missing ({said})') from None


def _lookup(record: Any, path: str) -> Any:
  return functools.reduce(lambda value, key: value[key], path.split('/'), record)


def _columns(place: str, parts: Parts, images: tuple[str, ...], wanted: list[str]) -> dict[str, list[Any]]:
  """Whole columns of features, in which images are left encoded."""
  columns: dict[str, list[Any]] = {path: [] for path in wanted}
  for part, count in parts:
    for start in range(0, count, 4096):
      for record in _records(place, part, images, list(range(start, min(start + 4096, count)))):
        for path in wanted:
          columns[path].append(_lookup(record, path))
  return columns


def _images(
  key: str, feature: Any, place: str, parts: Parts, resize: decoding.Resize | None, name: str, contents: str
) -> tuple[Column, dict[str, Any]]:
  """The images, and what is known about them."""
  if np.dtype(feature.np_dtype) != np.uint8:
    raise UserError(f'tfds:{name}: the images {key!r} are {np.dtype(feature.np_dtype)}; only 8-bit ones can be read')
  sides = resize.sides if resize else feature.shape[:2]
  if None in sides:
    raise UserError(f'tfds:{name}: its images differ in size; set data.resize, for example resize=dict(size=224)')
  shape = (int(sides[0]), int(sides[1]), 1 if feature.shape[2] == 1 else 3)
  read = Images(place, parts, key, shape, resize)
  rows = np.arange(sum(count for _, count in parts))
  return Column(read, rows, shape, np.uint8, repr((contents, parts, key, shape, resize))), {'high': 255.0}


def _table(
  values: Mapping[str, list[Any]], leaves: Leaves, chosen: str | list[str], name: str
) -> tuple[np.ndarray, dict[str, Any]]:
  """float32 [N, C], NaN for an unknown class, and what is known about the columns."""
  if len(leaves) == 1 and leaves[0][1].shape:
    path, _ = leaves[0]
    x = np.array(values[path], np.float32)
    _check_finite(x, path, name)
    return x, {'columns': (path,) if x.shape[1] == 1 else tuple(f'{path}{i}' for i in range(x.shape[1]))}
  columns, categories, names = [], {}, []
  for path, leaf in leaves:
    column = path.removeprefix(f'{chosen}/') if isinstance(chosen, str) else path
    if getattr(leaf, 'names', None):
      categories[column] = tuple(map(str, leaf.names))
      columns.append(np.array(values[path], np.float32))
      columns[-1][columns[-1] < 0] = np.nan
    elif _number(leaf) in tuple('biuf'):
      columns.append(np.array(values[path], np.float32))
      _check_finite(columns[-1], path, name)
    else:
      found, codes = np.unique([_text(value) for value in values[path]], return_inverse=True)
      categories[column] = tuple(map(str, found))
      columns.append(codes.astype(np.float32))
    names.append(column)
  return np.stack(columns, axis=1), {'columns': tuple(names), 'categories': categories}


def _check_finite(x: np.ndarray, path: str, name: str) -> None:
  """NaN stands for a missing value in a table; infinity stands for nothing."""
  if np.isinf(x).any():
    row = int(np.argwhere(np.isinf(x))[0][0])
    raise UserError(f'tfds:{name}: {path!r} has {np.isinf(x).sum()} infinite values, the first in example {row}')


def _label(values: list[Any], feature: Any, key: str, task: str | None, name: str) -> tuple[np.ndarray, dict[str, Any]]:
  """Labels, and what is known about them."""
  dtype, vector = _number(feature), len(feature.shape) == 1 and None not in feature.shape
  numbers = dtype == 'f' or (task == 'regression' and dtype in tuple('biu'))
  if not _scalar(feature) and not (vector and numbers):
    what = f'{_type(feature)} of shape {feature.shape}'
    raise UserError(f'tfds:{name}: {key!r} is of type {what}; a label is one number or name, or a vector to regress on')
  if getattr(feature, 'names', None) and task != 'regression':
    return np.array(values, np.int32), {'task': 'classification', 'classes': tuple(map(str, feature.names))}
  if numbers:
    array = np.array(values, np.float32).reshape(len(values), -1)
    if (bad := ~np.isfinite(array)).any():
      row = int(np.argwhere(bad)[0][0])
      raise UserError(f'tfds:{name}: label {key!r} is NaN or infinite in {bad.sum()} places, first in example {row}')
    targets = (key,) if array.shape[1] == 1 else tuple(f'{key}{i}' for i in range(array.shape[1]))
    return array, {'task': 'regression', 'targets': targets}
  plain = np.array(values) if dtype in tuple('biu') else np.array([_text(value) for value in values])
  classes, codes = np.unique(plain, return_inverse=True)
  return codes.astype(np.int32), {'task': 'classification', 'classes': tuple(map(str, classes))}


def _text(value: Any) -> str:
  return value.decode(errors='replace') if isinstance(value, bytes) else str(value)
