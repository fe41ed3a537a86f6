"""Which examples a config means, and what each is for: parts, halves, classes, splits. Pure, given the examples."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from transferlab.data import encoding, labels, splits
from transferlab.data.examples import Examples, Info
from transferlab.data.settings import Data, fold_of
from transferlab.errors import UserError, unknown

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
  folded = isinstance(data.test, str) and data.test.startswith('fold:')
  if isinstance(data.test, str) and not folded:
    found['test'] = splits.sliced(data.test, given, 'data.test')
  elif usual and not folded:
    found['test'] = given[usual[0]]
  else:
    found['test'] = _cut_off(data, raw, train[labelled[train]])
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
  if raw.info.classes:
    _check_slices(data, raw, found)
  return found


def _cut_off(data: Data, raw: Examples, pool: np.ndarray) -> np.ndarray:
  """What of these rows is for testing: a fold, a share of each class, or the end of a text."""
  ids, strata = raw.arrays['id'][pool], raw.strata[pool]
  if isinstance(data.test, str):
    return pool[splits.fold(ids, strata, *fold_of(data.test), data.split_seed)]
  if raw.info.task == 'next_token':
    return pool[len(pool) - max(1, round(data.test * len(pool))) :]
  return pool[splits.cut_test(ids, strata, data.test, data.split_seed)[1]]


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


def select(data: Data, raw: Examples) -> Examples:
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


def split(data: Data, examples: Examples, seed: int) -> dict[str, np.ndarray]:
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
    if examples.info.task == 'next_token':
      size = round(data.validation * len(pool)) if isinstance(data.validation, float) else data.validation
      chosen = np.arange(len(pool) - min(max(1, size), len(pool) - 1), len(pool))
    else:
      _, chosen = splits.validation(ids[pool], strata[pool], data.validation, seed, names)
    if not len(chosen):
      raise UserError(f'{data.name}: of {len(pool)} training examples none can be spared for the validation split')
    result['validation'] = pool[chosen]
    train = train[~np.isin(train, pool[chosen])]
  if data.train_classes is not None:
    train = train[np.isin(strata[train], _numbers(data, names))]
  if data.shots is not None:
    train = train[strata[train] >= 0]
    train = train[splits.shots(ids[train], strata[train], data.shots, seed, names)]
  elif data.fraction is not None and examples.info.task == 'next_token':
    train = train[: max(1, round(data.fraction * len(train)))]
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
