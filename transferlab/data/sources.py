"""Where examples come from: from what a config says of data to arrays and splits. Reads files.

`load` is the way in; the readers behind it are listed in `SOURCES`. How splits are drawn is in splits.py, how
images are corrupted in image.py, how inputs are scaled in preprocessing.py; batches are the loader's. Neither
jax nor scikit-learn is imported before something is read, so that a mistyped key is answered at once.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from pydantic import Field

from transferlab.config import OUTSIDE, Fraction, NonNegative, Positive, Schema, Seed
from transferlab.data import image, preprocessing, splits
from transferlab.data.examples import Examples, Info, digest, from_arrays
from transferlab.data.npz import read_npz
from transferlab.errors import UserError, unknown

Share = Annotated[float, Field(gt=0, le=1)]


class Augment(Schema):
  """Random changes to training images, drawn anew for every view, on the device."""

  shift: NonNegative = Field(default=0, description='Translate by up to this many pixels; zeros come in from outside.')
  flip: bool = Field(default=False, description='Mirror left and right with probability 1/2.')


class Data(Schema):
  """One data set: where it comes from, which part of it, how it is split, changed and fed."""

  name: str = Field(description='digits, iris, wine, breast_cancer, diabetes, linnerud, or npz:FILE.')
  inputs: str | None = Field(default=None, description='npz: key of the inputs; None: x, image, images, data, inputs.')
  label: str | list[str] | None = Field(
    default=None,
    description='npz: key of the labels, or a list with one task each; None: y, label, labels, target.',
  )
  task: Literal['classification', 'binary', 'regression'] | None = Field(
    default=None,
    description="What to learn; 'binary' is two classes and one output. None: as the data say "
    '(npz: whole numbers are classes, floats are for regression).',
  )
  half: Literal[0, 1] | None = Field(default=None, description='Use one of two disjoint halves, each of all classes.')
  classes: list[int] | None = Field(default=None, description='Use only these classes, by their original numbers.')
  relabel: bool = Field(
    default=True, description='Number the classes used 0, 1, … in the order given; False: as they were.'
  )
  test: Fraction = Field(
    default=0.25, description='Fraction of each class cut off for testing; unused where data bring a test split.'
  )
  validation: Fraction | Positive | None = Field(
    default=None,
    description='To choose with: a fraction of each class outside test, or a number of examples of each '
    'class (regression: in all). None: no validation.',
  )
  shots: Positive | None = Field(default=None, description='Train on this many examples of each class.')
  fraction: Share | None = Field(default=None, description='Train on this fraction of what would be trained on.')
  noise: Annotated[float, Field(ge=0, le=1000)] = Field(
    default=0.0,
    description='Standard deviation of Gaussian noise: in input ranges, clipped to the range, for images; '
    "in each column's standard deviations for tables.",
  )
  rotation: Annotated[float, Field(ge=0, le=180)] = Field(
    default=0.0, description='Images: turn each by an angle drawn from ± this many degrees.'
  )
  contrast: Annotated[float, Field(gt=0, le=1000)] = Field(
    default=1.0, description="Images: factor around the image's own mean."
  )
  split_seed: Seed = Field(default=0, description='Fixes halves and test split: the same for every run.')
  corruption_seed: Seed | None = Field(
    default=None, description="Draws noise and rotation, fixed per example. None: the run's seed."
  )
  seed: Seed | None = Field(default=None, description="Draws validation and training examples. None: the run's seed.")
  standardize: bool | None = Field(
    default=None,
    description='Mean 0 and deviation 1 per column or channel, by the training split. None: tables only.',
  )
  augment: Augment = Field(default=Augment(), description='Random changes to training images.')
  sampling: Literal['uniform', 'balanced'] = Field(
    default='uniform', description='balanced: every class equally often, however many examples it has.'
  )
  batch_size: Annotated[int, Field(gt=0, le=2**20)] = Field(default=64, description='Examples in a global batch.')
  last_batch: Literal['carry', 'pad'] = Field(
    default='carry', description='A last batch that is not full: fill it from the next epoch, or pad and mask.'
  )
  hold: Literal['device', 'stream'] = Field(
    default='device',
    description='Keep all examples on the device, or stream them; the batches are the same.',
    json_schema_extra={**OUTSIDE},
  )
  workers: NonNegative = Field(
    default=0, description='Processes that prepare streamed batches; 0: none.', json_schema_extra={**OUTSIDE}
  )

  @pydantic.field_validator('name')
  @classmethod
  def _known(cls, name: str) -> str:
    try:
      _reader(name)
    except UserError as error:
      raise ValueError(str(error)) from None
    return name

  @pydantic.field_validator('classes', 'label')
  @classmethod
  def _distinct(cls, values: Any) -> Any:
    if isinstance(values, list) and (not values or len(set(values)) < len(values)):
      raise ValueError('should name at least one, and none twice')
    return values

  @pydantic.model_validator(mode='after')
  def _consistent(self) -> 'Data':
    if self.shots is not None and self.fraction is not None:
      raise ValueError('shots and fraction exclude each other: give one of them')
    if not self.name.startswith('npz:') and (self.inputs is not None or self.label is not None):
      raise ValueError(f'inputs and label are keys of npz files; {self.name!r} has none')
    if self.classes is not None and self.relabel and len(self.classes) < 2:
      raise ValueError('classes should name at least two, unless relabel=False')
    return self


@dataclass(frozen=True, eq=False)
class Loaded:
  """What `load` gives.

  `splits`: indices into `examples` by 'train', 'validation' (if any) and 'test'. `labels`: how many labelled
  examples 'train' and 'validation' use. `digest`: of the contents as they were read.
  """

  examples: Examples
  splits: dict[str, np.ndarray]
  info: Info
  digest: str
  labels: dict[str, int]
  preprocessing: preprocessing.Record


def load(data: Data, seed: int) -> Loaded:
  """`_load`, remembered: many runs of one program share their data.

  Raises:
    UserError: the file or its contents are unfit, or there are not the classes or examples asked for.
  """
  kind, _, path = data.name.partition(':')
  file = Path(path) if kind == 'npz' and Path(path).exists() else None
  stamp = None if file is None else (file.stat().st_mtime_ns, file.stat().st_size)
  return _remembered(data.model_dump_json(), seed, stamp)


@functools.lru_cache(maxsize=64)
def _remembered(data: str, seed: int, stamp: Any) -> Loaded:
  del stamp
  return _load(Data.model_validate_json(data), seed)


def _load(data: Data, seed: int) -> Loaded:
  """Reads, selects, corrupts and splits the examples; `seed` is the run's, used where the data name none.

  The test split is cut from all the data before halves and classes are taken, so that no half or subset of
  classes trains on what another with the same `split_seed` and `test` is tested on.

  Raises:
    UserError: the file or its contents are unfit, or there are not the classes or examples asked for.
  """
  raw = _reader(data.name)(data)
  _check(data, raw)
  unit = raw.arrays['x'].std(axis=0, dtype=np.float64) if raw.info.kind == 'table' else None
  examples = _select(data, raw)
  arrays = dict(examples.arrays)
  arrays['x'] = image.corrupt(
    arrays['x'],
    arrays['id'],
    raw.info,
    data.noise,
    data.rotation,
    data.contrast,
    seed if data.corruption_seed is None else data.corruption_seed,
    unit,
  )
  examples = dataclasses.replace(examples, arrays=arrays)
  indices = _split(data, examples, seed if data.seed is None else data.seed)
  standardize = raw.info.kind == 'table' if data.standardize is None else data.standardize
  return Loaded(
    examples,
    indices,
    examples.info,
    digest(raw),
    {name: len(rows) for name, rows in indices.items() if name != 'test'},
    preprocessing.fit(arrays['x'][indices['train']], examples.info, standardize),
  )


def _check(data: Data, raw: Examples) -> None:
  """Refuses what the config asks of data that cannot have it."""
  info, x = raw.info, raw.arrays['x']
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
  if info.kind == 'table':
    for name in ('rotation', 'contrast', 'augment'):
      if getattr(data, name) != Data.model_fields[name].default:
        raise UserError(f'data.{name} is for images, and {data.name} is a table')
  elif data.augment.shift >= min(x.shape[1:3]):
    raise UserError(f'data.augment.shift={data.augment.shift} moves images of {x.shape[1]}×{x.shape[2]} out of sight')
  if data.task not in (None, info.task) and (data.task, info.task) != ('binary', 'classification'):
    raise UserError(f'data.task={data.task!r}: the labels of {data.name} are for {info.task}')


def _select(data: Data, raw: Examples) -> Examples:
  """The half and the classes asked for, relabelled, with a test split marked as official."""
  ids, strata = raw.arrays['id'], raw.strata
  if raw.official is None:
    train, test = splits.cut_test(ids, strata, data.test, data.split_seed)
    raw = dataclasses.replace(raw, official={'train': train, 'test': test})
  assert raw.official is not None
  if data.half is not None:
    tested = np.isin(np.arange(len(raw)), raw.official['test'])
    raw = raw.take(splits.halves(ids, 2 * strata + tested, data.half, data.split_seed))
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
      raise UserError(f'{data.name}: class {names[number]!r} has no training example')
  if not len(train) or not len(test):
    raise UserError(f'{data.name}: the {"test" if len(train) else "training"} split is empty')
  result = {}
  if data.validation is not None:
    rest, chosen = splits.validation(ids[train], strata[train], data.validation, seed, names)
    train, result['validation'] = train[rest], train[chosen]
  if data.shots is not None:
    train = train[splits.shots(ids[train], strata[train], data.shots, seed, names)]
  elif data.fraction is not None:
    train = train[splits.share(ids[train], strata[train], data.fraction, seed)]
  return {'train': train, **result, 'test': test}


def digits(data: Data) -> Examples:
  """1,797 handwritten digits, 8×8×1, float32 in 0 … 16."""
  from sklearn.datasets import load_digits

  bunch = load_digits()
  info = Info(
    'image',
    'classification',
    tuple(map(str, bunch.target_names)),
    low=0.0,
    high=16.0,
    origin='scikit-learn load_digits (UCI optical recognition of handwritten digits, its test part)',
  )
  return from_arrays(bunch.images[..., None].astype(np.float32), bunch.target.astype(np.int32), info)


def _bundled(name: str, **options: Any) -> Examples:
  """A table that scikit-learn brings along."""
  import sklearn.datasets

  bunch = getattr(sklearn.datasets, f'load_{name}')(**options)
  columns, origin = tuple(map(str, bunch.feature_names)), f'scikit-learn load_{name}'
  x, y = bunch.data.astype(np.float32), bunch.target
  if y.dtype.kind == 'i':
    info = Info('table', 'classification', tuple(map(str, bunch.target_names)), columns, origin=origin)
    return from_arrays(x, y.astype(np.int32), info)
  targets = tuple(map(str, bunch.get('target_names', ['progression'])))
  return from_arrays(
    x,
    y.reshape(len(x), -1).astype(np.float32),
    Info('table', 'regression', (), columns, targets, origin=origin),
  )


def iris(data: Data) -> Examples:
  """150 flowers, 4 columns, 3 classes."""
  return _bundled('iris')


def wine(data: Data) -> Examples:
  """178 wines, 13 columns, 3 classes."""
  return _bundled('wine')


def breast_cancer(data: Data) -> Examples:
  """569 tumours, 30 columns, 2 classes."""
  return _bundled('breast_cancer')


def diabetes(data: Data) -> Examples:
  """442 patients, 10 unscaled columns; the progression of the disease after a year."""
  return _bundled('diabetes', scaled=False)


def linnerud(data: Data) -> Examples:
  """20 men, 3 exercises; weight, waist and pulse."""
  return _bundled('linnerud')


def npz(data: Data) -> Examples:
  """Arrays of one's own; read_npz says which."""
  return read_npz(data.name.partition(':')[2], data.inputs, data.label, data.task)


SOURCES: dict[str, Callable[[Data], Examples]] = {
  'digits': digits,
  'iris': iris,
  'wine': wine,
  'breast_cancer': breast_cancer,
  'diabetes': diabetes,
  'linnerud': linnerud,
  'npz': npz,
}


def _reader(name: str) -> Callable[[Data], Examples]:
  kind, colon, rest = name.partition(':')
  if kind not in SOURCES or bool(rest) != (kind == 'npz') or bool(colon) != (kind == 'npz'):
    raise unknown('data set', name, ['npz:FILE' if source == 'npz' else source for source in SOURCES])
  return SOURCES[kind]
