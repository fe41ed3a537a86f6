"""What examples are: arrays with a leading example axis, and what is known about them.

Here: the two dataclasses that readers make and everything else takes, and the digest that notices changed
data. Nothing here reads files or draws anything.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from transferlab.data.columns import Column
from transferlab.errors import UserError, unknown
from transferlab.paths import flatten


@dataclass(frozen=True)
class Info:
  """What is known about examples.

  `low` and `high` bound the inputs of images, by their format or, where `observed`, by what they happen to be.
  `categories` holds the values of each categorical column of a table, whose inputs are then numbers of values. `notes`
  are sentences for the report. With several label columns `tasks` holds the `Info` of each, and this one's task,
  classes and targets are those of the first, by which splits are drawn; `auxiliary` are those that only help to train.
  """

  kind: Literal['image', 'table', 'text']
  task: Literal['classification', 'binary', 'regression', 'next_token']
  classes: tuple[str, ...] = ()
  columns: tuple[str, ...] = ()
  targets: tuple[str, ...] = ()
  categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
  low: float = 0.0
  high: float = 1.0
  observed: bool = False
  origin: str = ''
  file: str | None = None
  notes: tuple[str, ...] = ()
  tasks: dict[str, 'Info'] = field(default_factory=dict)
  auxiliary: tuple[str, ...] = ()

  @property
  def outputs(self) -> int:
    """How many outputs a network for this task has (of the first task, where there are several).

    Of a language model it is the vocabulary that says, which belongs to the preprocessing.
    """
    return {'classification': len(self.classes), 'binary': 1, 'regression': len(self.targets)}[self.task]


@dataclass(frozen=True, eq=False)
class Examples:
  """Arrays with a leading example axis.

  `x`: images [N, H, W, C], float32 or uint8; tables float32 [N, D], in which NaN is a missing value; or text, object
  [N] of strings. Inputs that are read when they are asked for are a `Column` (columns.py). `label`: int32 [N] for
  classification and binary, float32 [N, T] for regression, −1 and NaN where it is missing (labels.py); for several
  label columns a dict of these. `id`: int64 [N], row numbers in the original data (its training rows before its test
  rows). `official`: indices by the name of the part that the data bring ('train', 'test', 'validation', …), if
  any.
  """

  arrays: dict[str, Any]
  info: Info
  official: dict[str, np.ndarray] | None = None

  def __len__(self) -> int:
    return len(self.arrays['id'])

  def take(self, indices: np.ndarray) -> 'Examples':
    """The examples at these indices, in this order; official splits follow them."""
    indices = np.asarray(indices)
    official = self.official and {name: np.flatnonzero(np.isin(indices, rows)) for name, rows in self.official.items()}
    return Examples({name: _rows(value, indices) for name, value in self.arrays.items()}, self.info, official)

  @property
  def strata(self) -> np.ndarray:
    """int [N]: the class of each example by the first label column; zeros where there are no classes."""
    label = self.arrays['label']
    label = next(iter(label.values())) if isinstance(label, Mapping) else label
    return np.zeros(len(self), np.int64) if self.info.task in ('regression', 'next_token') else label


def _rows(value: Any, indices: np.ndarray) -> Any:
  if isinstance(value, Mapping):
    return {name: _rows(item, indices) for name, item in value.items()}
  return value.take(indices, axis=0)


def from_arrays(x: Any, label: Any, info: Info, official: dict[str, np.ndarray] | None = None) -> Examples:
  """Examples with their row numbers as ids."""
  return Examples({'x': x, 'label': label, 'id': np.arange(len(x), dtype=np.int64)}, info, official)


def matched(label: Any, theirs: Info, mine: Info, name: str) -> Any:
  """Labels of further data in the numbers that their classes have in the run's.

  Classes are matched by name; where the names of one side are just numbers (arrays have no others), by number.

  Args:
    label: as in `Examples`, of the data that `theirs` describes and `name` names.

  Raises:
    UserError: another task, other targets, or classes that the run does not know.
  """
  if set(theirs.tasks) != set(mine.tasks):
    raise UserError(f'{name} has the labels {", ".join(theirs.tasks) or "of one task"}, and the run {list(mine.tasks)}')
  if mine.tasks:
    return {task: matched(label[task], theirs.tasks[task], own, f'{name}, {task}') for task, own in mine.tasks.items()}
  if (theirs.task, len(theirs.targets)) != (mine.task, len(mine.targets)):
    raise UserError(
      f'{name} is for {theirs.task} with {theirs.outputs} outputs, the run for {mine.task} with {mine.outputs}'
    )
  if theirs.classes == mine.classes:
    return label
  unheard = [known for known in theirs.classes if known not in mine.classes]
  if not unheard:
    # −1, which stands for a missing label, takes the last.
    return np.array([*map(mine.classes.index, theirs.classes), -1], label.dtype)[label]
  numbered = [all(known.isdigit() for known in info.classes) for info in (theirs, mine)]
  if len(theirs.classes) == len(mine.classes) and numbered[0] != numbered[1]:
    return label
  raise unknown(f'class of {name}', unheard[0], mine.classes)


def digest(examples: Examples) -> str:
  """32 hexadecimal digits that change with any name, dtype, shape or value, not with where the data lie."""
  info, total = examples.info, hashlib.blake2b(digest_size=16)
  total.update(repr((info.task, info.classes, info.columns, info.targets, *info.categories.items())).encode())
  for name, array in sorted(flatten({**examples.arrays, 'official': examples.official or {}}).items()):
    total.update(repr((name, array.dtype.str, array.shape)).encode())
    if isinstance(array, Column):
      total.update(array.digest.encode())
    elif array.dtype.kind == 'O':
      total.update('\0'.join(array).encode('utf-8', 'surrogatepass'))
    else:
      total.update(np.ascontiguousarray(array).data)
  return total.hexdigest()
