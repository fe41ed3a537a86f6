"""Where examples come from: from what a config says of data to arrays and splits. Reads files.

`load` is the way in; the readers behind it are listed in `SOURCES`. What a config may say is in settings.py, how splits
are drawn in splits.py, how images are corrupted in image.py, how inputs are scaled in preprocessing.py; batches are the
loader's. Neither jax nor any library for one kind of data is imported before something is read.
"""

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from transferlab.data import (
  bundled,
  encoding,
  folders,
  image,
  labels,
  mixture,
  preprocessing,
  splits,
  table_files,
  tables,
  tfds,
)
from transferlab.data.augmentation import centre_crop, check, output_shape
from transferlab.data.columns import Column
from transferlab.data.examples import Examples, Info, digest
from transferlab.data.npz import read_npz
from transferlab.data.settings import BUNDLED, TABLES, Data
from transferlab.data.texts import hashed
from transferlab.errors import UserError, unknown

__all__ = ['Data', 'Loaded', 'load']


@dataclass(frozen=True, eq=False)
class Loaded:
  """What `load` gives.

  `splits`: indices into `examples` by 'train', 'validation' (if any) and 'test'. `labels`: how many labelled
  examples 'train' and 'validation' use, and of each task under 'tasks'. `digest`: of the contents as they were read.
  `preprocessing`: fitted on the training split. `crop`: pixels of the square that networks see of an image; None: all.
  Of a mixture, `groups` [N] are the sets that examples come from, and an epoch draws `quotas` of each.
  """

  examples: Examples
  splits: dict[str, np.ndarray]
  info: Info
  digest: str
  labels: dict[str, Any]
  preprocessing: preprocessing.Record
  crop: int | None = None
  groups: np.ndarray | None = None
  quotas: tuple[int, ...] = ()

  def arrays(self, rows: np.ndarray, record: preprocessing.Record) -> dict[str, Any]:
    """'x', 'label' and 'id' of examples as training takes them: tables encoded as the record says."""
    taken = self.examples.take(rows).arrays
    return {**taken, 'x': preprocessing.encoded(taken['x'], self.info, record)}

  def evaluated(self, split: str | np.ndarray, record: preprocessing.Record) -> tuple[Any, Any, np.ndarray]:
    """(x, label, id) of a split (or of rows) as evaluation takes them: encoded, and images cropped at their centre."""
    taken = self.arrays(self.splits[split] if isinstance(split, str) else split, record)
    return centred(taken['x'], self.crop), taken['label'], taken['id']


def centred(x: Any, crop: int | None) -> Any:
  """Images [N, H, W, C] as evaluation sees them where training crops: `crop` pixels square, from the centre."""
  if crop is None or x.shape[1:3] == (crop, crop):
    return x
  if isinstance(x, Column):
    return x.then(functools.partial(_crop_rows, crop), f'centre {crop}', (crop, crop, x.shape[3]))
  return centre_crop(x, crop)


def _crop_rows(crop: int, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
  return centre_crop(values, crop)


def load(data: Data, seed: int) -> Loaded:
  """`_load`, remembered: many runs of one program share their data.

  Raises:
    UserError: the file or its contents are unfit, or there are not the classes or examples asked for.
  """
  return _remembered(data.model_dump_json(), seed, _stamp(data))


def _stamp(data: Data) -> tuple[tuple[int, int], ...]:
  """What changes when a file that would be read does."""
  kind, _, path = data.name.partition(':')
  if data.sets:
    return tuple(pair for own in data.sets.values() for pair in _stamp(own))
  if kind in TABLES:
    files = list(map(Path, table_files.files_of(path, cast(table_files.Kind, kind)).values()))
  else:
    files = sorted(Path(path).rglob('*')) if kind == 'folder' else [Path(path)] if kind == 'npz' else []
  return tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file())


@functools.lru_cache(maxsize=64)
def _remembered(data: str, seed: int, stamp: Any) -> Loaded:
  settings = Data.model_validate_json(data)
  return _mixture(settings, seed) if settings.sets else _load(settings, seed, stamp)


def _mixture(data: Data, seed: int) -> Loaded:
  """The sets of a mixture, each loaded as it says, as one."""
  held = {'hold': data.hold, 'workers': data.workers}
  parts = {name: load(own.model_copy(update=held), seed) for name, own in data.sets.items()}
  examples, indices, groups = mixture.mixed({n: (own.examples, own.splits) for n, own in parts.items()}, data.mixing)
  _check_fed(data, examples)
  contents = hashlib.blake2b(repr([(n, own.digest) for n, own in parts.items()]).encode(), digest_size=16).hexdigest()
  quotas = mixture.quotas({name: len(own.splits['train']) for name, own in parts.items()}, data.mixing)
  return _loaded(data, examples, indices, contents, groups, quotas)


# What a reader depends on: runs of several seeds, shots or classes share what was read.
READ: tuple[str, ...] = ('name', 'folder', 'inputs', 'label', 'columns', 'missing', 'hash', 'resize', 'channels')
READ += ('corrupt', 'hold', 'workers', 'unlabelled')
# Bytes of decoded inputs up to which they stay in memory once read, though they are streamed: decoding MNIST anew in
# every epoch takes twenty times as long as training a small network on it. Worker processes keep nothing.
SMALL = 2**28


@functools.lru_cache(maxsize=4)
def _read(data: str, task: str | None, stamp: Any) -> tuple[Examples, str]:
  del stamp
  settings = Data.model_validate_json(data)
  examples = SOURCES[settings.name.partition(':')[0]](settings.model_copy(update={'task': task}))
  if settings.hash is not None:
    examples = hashed(examples, settings.hash)
  x = examples.arrays['x']
  if isinstance(x, Column) and _stays(settings, x):
    examples = dataclasses.replace(examples, arrays={**examples.arrays, 'x': x.kept()})
  return examples, digest(examples)


def _stays(settings: Data, x: Column) -> bool:
  """Whether inputs stay in memory once they are read. Raises `UserError` where they should and do not fit."""
  size = math.prod(x.shape) * x.dtype.itemsize
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if settings.hold == 'stream':
    return size <= min(SMALL, memory / 8) and not settings.workers
  if size > memory / 2:
    raise UserError(
      f'{settings.name} takes {size / 2**30:,.1f} GiB decoded, and the machine has {memory / 2**30:,.1f} GiB of '
      "memory; data.hold='stream' reads it as it goes"
    )
  return True


def _load(data: Data, seed: int, stamp: Any) -> Loaded:
  """Reads, selects, corrupts and splits the examples; `seed` is the run's, used where the data name none.

  The test split is cut from all the data before halves and classes are taken, so that no half or subset of
  classes trains on what another with the same `split_seed` and `test` is tested on.

  Raises:
    UserError: the file or its contents are unfit, or there are not the classes or examples asked for.
  """
  raw, contents = _read(Data(**{key: getattr(data, key) for key in READ}).model_dump_json(), data.task, stamp)
  _check(data, raw)
  examples = _corrupted(data, _select(data, raw), raw, seed if data.corruption_seed is None else data.corruption_seed)
  indices = _split(data, examples, seed if data.seed is None else data.seed)
  examples = _with_labels_kept(data, examples, indices['train'], seed if data.seed is None else data.seed)
  return _loaded(data, examples, indices, contents, gaps=_has_gaps(raw))


def _has_gaps(examples: Examples) -> bool:
  x = examples.arrays['x']
  return examples.info.kind == 'table' and not isinstance(x, Column) and bool(np.isnan(x).any())


def _loaded(
  data: Data,
  examples: Examples,
  indices: dict[str, np.ndarray],
  contents: str,
  groups: np.ndarray | None = None,
  quotas: tuple[int, ...] = (),
  gaps: bool | None = None,
) -> Loaded:
  """With preprocessing fitted on the training split; `gaps`: columns of a table may lack values."""
  record, info = preprocessing.Record(), examples.info
  unknown_tasks = [task for task in data.auxiliary if task not in info.tasks]
  if unknown_tasks:
    raise unknown(f'{data.name}: data.auxiliary', unknown_tasks[0], info.tasks or ['(these data have one task)'])
  if info.tasks and not set(info.tasks) - set(data.auxiliary):
    raise UserError(f'{data.name}: data.auxiliary: some task has to be the one that counts')
  examples = dataclasses.replace(examples, info=dataclasses.replace(info, auxiliary=tuple(data.auxiliary)))
  if examples.info.kind != 'text':
    standardize = info.kind == 'table' and data.hash is None if data.standardize is None else data.standardize
    train = examples.arrays['x'].take(indices['train'], axis=0)
    gaps = _has_gaps(examples) if gaps is None else gaps
    record = preprocessing.fit(train, examples.info, standardize, data.statistics, data.categorical, gaps)
    if examples.info.kind == 'image':
      record['input_shape'] = list(output_shape(data.augment, tuple(record['input_shape'])))
  counted = {name: rows for name, rows in indices.items() if name in ('train', 'validation')}
  counted = labels.counts(examples.arrays['label'], counted)
  return Loaded(examples, indices, examples.info, contents, counted, record, data.augment.crop, groups, quotas)


def _with_labels_kept(data: Data, examples: Examples, rows: np.ndarray, seed: int) -> Examples:
  """The examples, of which these rows, for training, keep the labels that the config leaves them."""
  label = examples.arrays['label']
  if not data.labelled:
    label = labels.changed(label, lambda task, own: labels.without(own, rows))
  else:
    if data.keep_labels is not None:
      label = labels.kept(label, rows, examples.arrays['id'], data.keep_labels, seed, data.name)
    labels.check(label, rows, data.name)
  return dataclasses.replace(examples, arrays={**examples.arrays, 'label': label})


def _corrupted(data: Data, examples: Examples, raw: Examples, seed: int) -> Examples:
  """The examples, worsened as the config says; numbers of categories stay what they are."""
  x, unit = examples.arrays['x'], None
  if not data.noise and data.rotation == 0 and data.contrast == 1:
    return examples
  if raw.info.kind == 'table' and data.noise:
    unit = np.nanstd(np.asarray(raw.arrays['x']), axis=0, dtype=np.float64)
    unit *= np.array([column not in raw.info.categories for column in raw.info.columns])
  options = (raw.info, data.noise, data.rotation, data.contrast, seed, unit)
  if isinstance(x, Column):
    worse: Any = x.then(functools.partial(_corrupt_rows, options), repr(options[1:5]))
  else:
    worse = image.corrupt(x, examples.arrays['id'], *options)
  return dataclasses.replace(examples, arrays={**examples.arrays, 'x': worse})


def _corrupt_rows(options: tuple, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
  return image.corrupt(values, rows, *options)


def _check(data: Data, raw: Examples) -> None:
  """Refuses what the config asks of data that cannot have it."""
  info = raw.info
  if info.task == 'regression':
    for name, asked in [
      ('classes', data.classes),
      ('shots', data.shots),
      ('sampling', data.sampling == 'balanced'),
    ]:
      if asked:
        raise UserError(f'data.{name} needs classes, and {data.name} is for regression')
  if info.tasks and data.classes is not None:
    raise UserError('data.classes selects from one label column, and data.label names several')
  if info.kind == 'text' and data.noise:
    raise UserError(f'data.noise is for numbers, and {data.name} holds texts')
  _check_fed(data, raw)
  if data.task not in (None, info.task) and (data.task, info.task) != ('binary', 'classification'):
    raise UserError(f'data.task={data.task!r}: the labels of {data.name} are for {info.task}')


def _check_fed(data: Data, examples: Examples) -> None:
  """Refuses what is for images where there are none, or not of these images."""
  x = examples.arrays['x']
  if examples.info.kind == 'image':
    check(data.augment, x.shape[1:])
    preprocessing.check_statistics(data.statistics, x.shape[-1])
    return
  for name in ('rotation', 'contrast', 'augment', 'statistics'):
    if getattr(data, name) != Data.model_fields[name].default:
      raise UserError(f'data.{name} is for images, and {data.name} holds none')


# Under which names data bring what is for training and, in the order of preference, for testing.
TRAINING = ('train', 'training', 'all')
TESTING = ('test', 'testing', 'validation', 'valid', 'val', 'dev')


def _parts(data: Data, raw: Examples) -> dict[str, np.ndarray]:
  """Indices of 'train', 'test' and, where a part is named for it, 'validation'."""
  given = raw.official or dict.fromkeys(('train', 'all'), np.arange(len(raw)))
  first = next((name for name in TRAINING if name in given), next(iter(given)))
  spec = first if data.train is None else data.train
  train = splits.sliced(spec, given, 'data.train')
  found, taken = {}, splits.named(spec)
  labelled = labels.present(raw.arrays['label'])
  if isinstance(data.validation, str):
    found['validation'] = splits.sliced(data.validation, given, 'data.validation')
    taken |= splits.named(data.validation)
  usual = [name for name in TESTING if name in given and name not in taken]
  if isinstance(data.test, str):
    found['test'] = splits.sliced(data.test, given, 'data.test')
  elif usual:
    found['test'] = given[usual[0]]
  else:
    pool = train[labelled[train]]
    _, test = splits.cut_test(raw.arrays['id'][pool], raw.strata[pool], data.test, data.split_seed)
    found['test'] = pool[test]
    train = train[~np.isin(train, found['test'])]
  found = {'train': train, **found}
  for one, other in (('train', 'test'), ('train', 'validation'), ('validation', 'test')):
    if both := len(np.intersect1d(found.get(one, []), found.get(other, []))):
      raise UserError(f'{data.name}: {both} examples are in both the {one} and the {other} split')
  keep = _where(data, raw)
  found = {name: rows[keep[rows]] for name, rows in found.items()}
  if data.unlabelled == 'keep':
    found = {name: rows if name == 'train' else rows[labelled[rows]] for name, rows in found.items()}
  used = np.concatenate(list(found.values()))
  if not len(used):
    raise UserError(f'data.where={data.where} leaves no example of {data.name}')
  if data.unlabelled == 'refuse' and not labelled[used].all():
    raise UserError(
      f'{data.name}: {(~labelled[used]).sum()} of the examples named have no label; data.train, data.validation '
      f"and data.test name other parts ({', '.join(given)}), and data.unlabelled='keep' trains on them without"
    )
  if raw.info.task != 'regression':
    _check_slices(data, raw, found)
  return found


def _check_slices(data: Data, raw: Examples, found: Mapping[str, np.ndarray]) -> None:
  """That slices of data which stand in the order of their classes do not leave a class out."""
  numbers = raw.strata[np.sort(np.concatenate(list(found.values())))]
  present = {number for number in numbers.tolist() if number >= 0 and number in (data.classes or [number])}
  if np.count_nonzero(np.diff(numbers)) > 3 * len(present):
    return  # they stand in no order
  for name, spec in (('validation', data.validation), ('test', data.test)):
    if isinstance(spec, str) and '[' in spec:
      for number in sorted(present - set(raw.strata[found[name]].tolist())):
        raise UserError(
          f'data.{name}={spec!r} holds no example of class {raw.info.classes[number]!r}, since these data stand in the '
          f'order of their classes; a share takes of each, as in data.{name}=0.2'
        )


def _where(data: Data, raw: Examples) -> np.ndarray:
  """bool [N]: which rows have the values asked for."""
  keep = np.ones(len(raw), bool)
  if data.where and (raw.info.kind != 'table' or data.hash is not None):
    raise UserError(f'data.where is for the columns of tables, and {data.name} holds none')
  for column, values in data.where.items():
    if column not in raw.info.columns:
      raise unknown('data.where', column, raw.info.columns)
    names = raw.info.categories.get(column)
    numbers = []
    for value in values:
      if names is None and isinstance(value, str):
        raise UserError(f'data.where.{column}: {value!r} is no number, and the column holds numbers')
      if names is not None and (written := encoding.as_written(value, names)) not in names:
        raise unknown(f'data.where.{column}', value, names)
      numbers.append(float(value) if names is None else names.index(written))
    keep &= np.isin(raw.arrays['x'][:, raw.info.columns.index(column)], np.array(numbers, np.float32))
  return keep


def _select(data: Data, raw: Examples) -> Examples:
  """The half and the classes asked for, relabelled, with its splits marked as official."""
  parts = _parts(data, raw)
  raw = dataclasses.replace(raw, official=parts).take(np.sort(np.concatenate(list(parts.values()))))
  assert raw.official is not None
  if data.half is not None:
    number = np.zeros(len(raw), np.int64)
    for place, rows in enumerate(raw.official.values()):
      number[rows] = place
    raw = raw.take(splits.halves(raw.arrays['id'], len(raw.official) * raw.strata + number, data.half, data.split_seed))
  if data.classes is not None:
    raw = _subset(raw, data.classes, data.relabel)
  return _as_binary(raw) if data.task == 'binary' else raw


def _subset(examples: Examples, classes: list[int], relabel: bool) -> Examples:
  names = examples.info.classes
  for number in classes:
    if not 0 <= number < len(names):
      raise unknown('class', number, map(str, range(len(names))))
  examples = examples.take(np.flatnonzero(np.isin(examples.strata, classes)))
  if not relabel:
    return examples
  numbers = np.full(len(names), -1, np.int32)
  numbers[classes] = np.arange(len(classes))
  return dataclasses.replace(
    examples,
    arrays={**examples.arrays, 'label': numbers[examples.arrays['label']]},
    info=dataclasses.replace(examples.info, classes=tuple(names[number] for number in classes)),
  )


def _as_binary(examples: Examples) -> Examples:
  def binary(info: Info) -> Info:
    if len(info.classes) != 2:
      raise UserError(f"data.task='binary' needs two classes, and there are {len(info.classes)}")
    return dataclasses.replace(info, task='binary')

  tasks = {name: binary(info) for name, info in examples.info.tasks.items()}
  return dataclasses.replace(examples, info=dataclasses.replace(binary(examples.info), tasks=tasks))


def _split(data: Data, examples: Examples, seed: int) -> dict[str, np.ndarray]:
  """Indices by split, drawn by the run's or the data's seed from what is not for testing."""
  assert examples.official is not None
  ids, strata, names = examples.arrays['id'], examples.strata, examples.info.classes
  train, test = examples.official['train'], examples.official['test']
  used = range(len(names)) if data.classes is None or data.relabel else data.classes
  for number in used:
    if number not in strata[train]:
      where = ', and test examples' if number in strata[test] else ''
      raise UserError(f'{data.name}: class {names[number]!r} has no training example{where}')
  if not len(train) or not len(test):
    raise UserError(f'{data.name}: the {"test" if len(train) else "training"} split is empty')
  result = {}
  if 'validation' in examples.official:
    result['validation'] = examples.official['validation']
  elif data.validation is not None and not isinstance(data.validation, str):
    pool = train[labels.present(examples.arrays['label'])[train]]
    _, chosen = splits.validation(ids[pool], strata[pool], data.validation, seed, names)
    result['validation'] = pool[chosen]
    train = train[~np.isin(train, pool[chosen])]
  if data.train_classes is not None:
    train = train[np.isin(strata[train], _numbers(data, names))]
  if data.shots is not None:
    train = train[strata[train] >= 0]
    train = train[splits.shots(ids[train], strata[train], data.shots, seed, names)]
  elif data.fraction is not None:
    train = train[splits.share(ids[train], strata[train], data.fraction, seed)]
  return {'train': train, **result, 'test': test}


def _numbers(data: Data, names: Sequence[str]) -> list[int]:
  """The labels of the classes that are trained on."""
  assert data.train_classes is not None
  if not names:
    raise UserError(f'{data.name}: data.train_classes: these data have no classes')
  used = list(range(len(names))) if data.classes is None else data.classes
  for number in data.train_classes:
    if number not in used:
      raise unknown(f'{data.name}: data.train_classes: class', str(number), [str(one) for one in used])
  relabelled = data.classes is not None and data.relabel
  return [used.index(number) if relabelled else number for number in data.train_classes]


def _npz(data: Data) -> Examples:
  """Arrays of one's own: x and y, or x_train, y_train, x_test and y_test."""
  if isinstance(data.inputs, list):
    raise UserError('data.inputs: one key of the npz file is needed, not a list')
  return read_npz(data.name.partition(':')[2], data.inputs, data.label, data.task, data.unlabelled == 'keep')


def _folder(data: Data) -> Examples:
  """Images in class folders, with or without a level of train, val and test above."""
  return folders.read_folder(data.name.partition(':')[2], data.resize, data.channels, data.corrupt)


def _tfds(data: Data) -> Examples:
  """A data set of TensorFlow Datasets, read without TensorFlow."""
  return tfds.read_tfds(data.name.partition(':')[2], data.folder, data.inputs, data.label, data.task, data.resize)


def _table(data: Data) -> Examples:
  """A table with named columns; several parts as FILE-{train,test}."""
  kind, _, path = data.name.partition(':')
  inputs = [data.inputs] if isinstance(data.inputs, str) else data.inputs
  given: dict[str, Any] = {} if data.missing is None else {'missing': tuple(data.missing)}
  return tables.read_table(
    path,
    cast(table_files.Kind, kind),
    label=data.label,
    inputs=inputs,
    task=data.task,
    columns=data.columns,
    unlabelled=data.unlabelled == 'keep',
    **given,
  )


SOURCES: Mapping[str, Callable[[Data], Examples]] = {
  **{name: (lambda data: bundled.READERS[data.name]()) for name in BUNDLED},
  **dict.fromkeys(TABLES, _table),
  'npz': _npz,
  'folder': _folder,
  'tfds': _tfds,
}
