"""Where examples come from: from what a config says of data to arrays and splits. Reads files.

`load` is the way in; the readers behind it are listed in `SOURCES`. What a config may say is in settings.py, how splits
are drawn in splits.py, how images are corrupted in image.py, how inputs are scaled in preprocessing.py; batches are the
loader's. Neither jax nor any library for one kind of data is imported before something is read.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from transferlab.data import (
  bundled,
  folders,
  image,
  labels,
  mixture,
  preprocessing,
  selection,
  table_files,
  tables,
  tfds,
  windows,
)
from transferlab.data.augmentation import centre_crop, check, output_shape
from transferlab.data.columns import Column
from transferlab.data.examples import Examples, Info, digest
from transferlab.data.npz import read_npz
from transferlab.data.overlay import overlaid
from transferlab.data.settings import BUNDLED, TABLES, Data
from transferlab.data.texts import as_language, hashed, read_text
from transferlab.errors import UserError, unknown

__all__ = ['Data', 'Loaded', 'load']


@dataclass(frozen=True, eq=False)
class Loaded:
  """What `load` gives.

  `splits`: indices into `examples` by 'train', 'validation' (if any) and 'test'. `labels`: how many labelled
  examples 'train' and 'validation' use, and of each task under 'tasks'. `digest`: of the contents as they were read.
  `preprocessing`: fitted on the training split. `crop`: pixels of the square that networks see of an image; None: all.
  Of a mixture, `groups` [N] are the sets that examples come from, and an epoch draws `quotas` of each. Of a language
  model, training reads `streams` parts of the text side by side.
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
  streams: int = 0

  def count(self, record: preprocessing.Record) -> int:
    """How many training examples there are: of a language model, windows."""
    if self.info.task != 'next_token':
      return len(self.splits['train'])
    return len(_training(self, json.dumps(record['tokens']))['x'])

  def arrays(self, rows: np.ndarray, record: preprocessing.Record) -> dict[str, Any]:
    """'x', 'label' and 'id' of examples as training takes them: tables and texts encoded as the record says.

    Of a language model the windows of its streams, see windows.py.
    """
    if self.info.task == 'next_token':
      if rows is self.splits['train']:
        return _training(self, json.dumps(record['tokens']))
      return windows.training(self.examples.arrays['x'][rows], record['tokens'], 1)
    taken = self.examples.take(rows).arrays
    if self.info.kind == 'text':
      return {**taken, 'x': _read_texts(self.examples, json.dumps(record)).take(rows, axis=0)}
    return {**taken, 'x': preprocessing.encoded(taken['x'], self.info, record)}

  def evaluated(
    self, split: str | np.ndarray, record: preprocessing.Record, window: int | None = None
  ) -> tuple[Any, Any, np.ndarray]:
    """(x, label, id) of a split (or of rows) as evaluation takes them: encoded, and images cropped at their centre.

    For a language model 'label' is how many characters each token stands for that is to be predicted.

    Args:
      window: tokens that a language model without a state reads at once; None: any number.
    """
    rows = self.splits[split] if isinstance(split, str) else split
    if self.info.task == 'next_token':
      return *_windows(self, rows.tobytes(), json.dumps(record['tokens']), window or windows.EVALUATED), rows
    taken = self.arrays(rows, record)
    return centred(taken['x'], self.crop), taken['label'], taken['id']


@functools.lru_cache(maxsize=2)
def _read_texts(examples: Examples, record: str) -> Any:
  """All texts as the record encodes them, remembered: every split is evaluated several times."""
  x = preprocessing.encoded(examples.arrays['x'], examples.info, json.loads(record))
  return x.kept() if isinstance(x, Column) and math.prod(x.shape) * x.dtype.itemsize <= KEPT else x


@functools.lru_cache(maxsize=4)
def _training(loaded: Loaded, record: str) -> dict[str, Any]:
  """The windows of a training split, remembered."""
  texts = loaded.examples.arrays['x'][loaded.splits['train']]
  return windows.training(texts, json.loads(record), loaded.streams)


@functools.lru_cache(maxsize=8)
def _windows(loaded: Loaded, rows: bytes, record: str, window: int) -> tuple[Any, Any]:
  """What a language model is evaluated on, remembered."""
  return windows.evaluated(loaded.examples.arrays['x'][np.frombuffer(rows, np.int64)], json.loads(record), window)


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
  files: list[Path] = [] if data.tokens is None or data.tokens.file is None else [data.tokens.file]
  if kind in (*TABLES, 'text'):
    files += map(Path, table_files.files_of(path, {'text': 'txt'}.get(kind, kind)).values())
  else:
    files += sorted(Path(path).rglob('*')) if kind == 'folder' else [Path(path)] if kind == 'npz' else []
  own = tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file())
  return own + tuple(pair for part in data.sets.values() for pair in _stamp(part))


@functools.lru_cache(maxsize=64)
def _remembered(data: str, seed: int, stamp: Any) -> Loaded:
  settings = Data.model_validate_json(data)
  return _mixture(settings, seed) if settings.sets else _load(settings, seed, stamp)


def _mixture(data: Data, seed: int) -> Loaded:
  """The sets of a mixture, each loaded as it says, as one; in the order of their names."""
  held = {'hold': data.hold, 'workers': data.workers}
  parts = {name: load(own.model_copy(update=held), seed) for name, own in sorted(data.sets.items())}
  for name in mixture.left_out(data.mixing):
    parts[name] = dataclasses.replace(parts[name], splits={**parts[name].splits, 'train': np.zeros(0, np.int64)})
  examples, indices, groups = mixture.mixed({n: (own.examples, own.splits) for n, own in parts.items()}, data.mixing)
  _check_fed(data, examples)
  contents = hashlib.blake2b(repr([(n, own.digest) for n, own in parts.items()]).encode(), digest_size=16).hexdigest()
  quotas = mixture.quotas({name: len(own.splits['train']) for name, own in parts.items()}, data.mixing)
  return _loaded(data, examples, indices, contents, groups, quotas)


# What a reader depends on: runs of several seeds, shots or classes share what was read.
READ: tuple[str, ...] = ('name', 'folder', 'inputs', 'label', 'columns', 'missing', 'hash', 'resize', 'channels')
READ += ('corrupt', 'hold', 'workers', 'unlabelled', 'tokens')
# Bytes of decoded inputs up to which they stay in memory once read, though they are streamed: decoding MNIST anew in
# every epoch takes twenty times as long as training a small network on it. Worker processes keep nothing.
SMALL = 2**28
KEPT = 2**30  # bytes of bags of words that are kept once they are counted


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
  task = None if data.task == 'next_token' else data.task
  raw, contents = _read(Data(**{key: getattr(data, key) for key in READ}).model_dump_json(), task, stamp)
  raw = as_language(raw) if data.task == 'next_token' else raw
  _check(data, raw)
  examples = _corrupted(
    data, selection.select(data, raw), raw, seed if data.corruption_seed is None else data.corruption_seed
  )
  indices = selection.split(data, examples, seed if data.seed is None else data.seed)
  if data.overlay is not None:
    examples = overlaid(examples, indices, data.overlay, data.split_seed, data.name)
    _check_fed(data, examples)
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
  if info.kind == 'text':
    record = preprocessing.fit_texts(examples.arrays['x'][indices['train']], data.bag, data.tokens)
  else:
    standardize = info.kind == 'table' and data.hash is None if data.standardize is None else data.standardize
    train = examples.arrays['x'].take(indices['train'], axis=0)
    gaps = _has_gaps(examples) if gaps is None else gaps
    record = preprocessing.fit(train, info, standardize, data.statistics, data.categorical, gaps)
    if info.kind == 'image':
      record['input_shape'] = list(output_shape(data.augment, tuple(record['input_shape'])))
  if data.tokens is not None and data.tokens.file:
    contents = hashlib.blake2b(f'{contents} {record["tokens"]["tokenizer"]}'.encode(), digest_size=16).hexdigest()
  counted = {name: rows for name, rows in indices.items() if name in ('train', 'validation')}
  counted = labels.counts(examples.arrays['label'], counted)
  streams = data.batch_size if info.task == 'next_token' else 0
  return Loaded(examples, indices, examples.info, contents, counted, record, data.augment.crop, groups, quotas, streams)


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
  for name in ('noise', 'standardize') if info.kind == 'text' else ():
    if getattr(data, name):
      raise UserError(f'data.{name} is for numbers, and {data.name} holds texts')
  for name in ('tokens', 'bag') if info.kind != 'text' else ():
    if getattr(data, name) is not None:
      raise UserError(f'data.{name} is for texts, and the inputs of {data.name} are none')
  _check_fed(data, raw)
  if data.task not in (None, info.task) and (data.task, info.task) != ('binary', 'classification'):
    raise UserError(f'data.task={data.task!r}: the labels of {data.name} are for {info.task}')


def _check_fed(data: Data, examples: Examples) -> None:
  """Refuses what is for images where there are none, or not of these images."""
  x = examples.arrays['x']
  if examples.info.kind == 'image':
    if data.overlay is None or examples.info.tasks:  # of what is laid over others the size is not known yet
      check(data.augment, x.shape[1:])
    preprocessing.check_statistics(data.statistics, x.shape[-1])
    return
  for name in ('rotation', 'contrast', 'augment', 'statistics'):
    if getattr(data, name) != Data.model_fields[name].default:
      raise UserError(f'data.{name} is for images, and {data.name} holds none')


def _npz(data: Data) -> Examples:
  """Arrays of one's own: x and y, or x_train, y_train, x_test and y_test."""
  if isinstance(data.inputs, list):
    raise UserError('data.inputs: one key of the npz file is needed, not a list')
  return read_npz(data.name.partition(':')[2], data.inputs, data.label, cast(Any, data.task), data.unlabelled == 'keep')


def _text(data: Data) -> Examples:
  """Lines of a plain file, for language models."""
  return read_text(data.name.partition(':')[2])


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
    task=cast(Any, data.task),
    columns=data.columns,
    unlabelled=data.unlabelled == 'keep',
    **given,
  )


SOURCES: Mapping[str, Callable[[Data], Examples]] = {
  **{name: (lambda data: bundled.READERS[data.name]()) for name in BUNDLED},
  **dict.fromkeys(TABLES, _table),
  'npz': _npz,
  'text': _text,
  'folder': _folder,
  'tfds': _tfds,
}
