"""Tables and texts of one's own as examples, checked before anything is trained. Reads files.

Here: what each column is, and every way in which it can be unfit. Which files are meant and what stands in them is in
table_files.py; how a table becomes numbers that a network takes in encoding.py. Nothing is guessed that could be meant
in two ways: the config says it.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from transferlab.data.examples import Examples, Info, from_arrays
from transferlab.data.table_files import Kind, Part, files_of, read_part
from transferlab.errors import UserError, unknown

Type = Literal['numeric', 'category', 'text', 'ignore']
Task = Literal['classification', 'binary', 'regression'] | None
LABELS = ('label', 'target', 'class', 'y')
MISSING = ('', '?', 'NA', 'N/A', 'NaN', 'nan', 'NULL', 'null', 'None')
MOST_VALUES = 1000  # different values of a column that counts as a category without being told
_LARGEST = float(np.finfo(np.float32).max)
_WHOLE = re.compile(r'[+-]?\d+')


@dataclass(frozen=True)
class _Table:
  """The files of a table, one after another, and what the config says of their columns."""

  spec: str
  kind: Kind
  types: Mapping[str, Type]
  missing: frozenset[str]
  parts: dict[str, Part]

  @property
  def header(self) -> list[str]:
    return list(dict.fromkeys(name for part in self.parts.values() for name in part.columns))

  def values(self, name: str) -> list[str | None]:
    """The column in all parts. Raises `UserError` where a part lacks it (in jsonl its values are missing)."""
    values: list[str | None] = []
    for part in self.parts.values():
      if name not in part.columns and self.kind != 'jsonl':
        owner = next(other.path for other in self.parts.values() if name in other.columns)
        raise UserError(f'{part.path}: {unknown("column", name, part.columns)}; {owner} has it')
      values += part.columns.get(name, [None] * len(part.lines))
    return values

  def rows(self) -> dict[str, np.ndarray]:
    """Row numbers by the name of the part."""
    ends = np.cumsum([len(part.lines) for part in self.parts.values()])
    return {name: np.arange(end - len(part.lines), end) for (name, part), end in zip(self.parts.items(), ends)}

  def place(self, row: int) -> str:
    """The file and the line of a row."""
    return [f'{part.path} line {line}' for part in self.parts.values() for line in part.lines][row]


def read_table(
  spec: str,
  kind: Kind,
  *,
  label: str | list[str] | None = None,
  inputs: list[str] | None = None,
  task: Task = None,
  columns: Mapping[str, Type] | None = None,
  missing: Sequence[str] = MISSING,
  unlabelled: bool = False,
) -> Examples:
  """The examples of a table or of labelled texts; rows keep the order of the files.

  A table is float32 [N, C], NaN where a value is missing; a column of words holds the number of each in
  `Info.categories`, sorted over all parts. Texts are object [N] of strings, as they are but for '' where there is none.
  A single input column that is not numeric is text. Labels that are words or whole numbers are classes, sorted;
  decimals are for regression.

  Args:
    spec: a file; files by part, 'adult-{train,test}.csv'; or a folder of files named as `table_files.PARTS`. Parts
      become official splits, and a plain file has none.
    kind: csv with RFC 4180's quotes; tsv without any; jsonl with one flat object per line.
    label: None: the only one of `LABELS` in the header; a list makes a task of each.
    inputs: None: every column that is neither label nor ignored.
    task: None: as the labels say; 'binary' is read as classification.
    columns: what a column is, where its values do not say it.
    missing: what stands for a missing value, beside a key that a line of jsonl lacks.
    unlabelled: labels may be missing.

  Raises:
    UserError: no such file or column, a damaged file, or contents unfit to learn from.
  """
  parts = {name: read_part(path, kind) for name, path in files_of(spec, kind).items()}
  table = _Table(spec, kind, columns or {}, frozenset(missing), parts)
  labels = _label_names(table, label)
  x, facts = _inputs(table, _input_names(table, labels, inputs))
  facts.update(origin=f'{kind} file {Path(spec).name}', file=spec)
  learned = {name: _label(table, name, task, unlabelled) for name in labels}
  y = {name: values for name, (values, _) in learned.items()}
  tasks = {name: Info(**facts, **own) for name, (_, own) in learned.items()}
  first, official = tasks[labels[0]], None if '' in parts else table.rows()
  if not isinstance(label, list):
    return from_arrays(x, y[labels[0]], first, official)
  return from_arrays(x, y, dataclasses.replace(first, tasks=tasks), official)


def _known(table: _Table, option: str, names: list[str]) -> list[str]:
  """The names, if the table has them all and none stands there twice."""
  for name in names:
    if name not in table.header:
      raise UserError(f'{table.spec}: data.{option}: {unknown("column", name, table.header)}')
  if len(set(names)) < len(names):
    raise UserError(f'{table.spec}: data.{option} names a column twice')
  return names


def _label_names(table: _Table, label: str | list[str] | None) -> list[str]:
  if label is not None:
    return _known(table, 'label', [label] if isinstance(label, str) else label)
  found = [name for name in LABELS if name in table.header]
  if len(found) == 1:
    return found
  what = f'several columns could be the label ({", ".join(found)})' if found else f'no column {", ".join(LABELS)}'
  raise UserError(f'{table.spec}: {what}; its columns are {", ".join(table.header)}: name one with data.label')


def _input_names(table: _Table, labels: list[str], inputs: list[str] | None) -> list[str]:
  """The input columns, in the order of the file or of `inputs`."""
  for option, named in ('columns', list(table.types)), ('inputs', inputs or []):
    for name in set(labels) & set(_known(table, option, named)):
      raise UserError(f'{table.spec}: data.{option} names {name!r}, which is the label; data.task says how to learn it')
  for name in inputs or []:
    if table.types.get(name) == 'ignore':
      raise UserError(f'{table.spec}: {name!r} is one of data.inputs, and data.columns ignores it')
  names = inputs or [name for name in table.header if name not in labels and table.types.get(name) != 'ignore']
  if not names:
    raise UserError(f'{table.spec}: no input column is left beside {", ".join(map(repr, labels))}')
  return names


def _inputs(table: _Table, names: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
  """Text, object [N], or a table, float32 [N, C], and what is known about it."""
  text = next((name for name in names if table.types.get(name) == 'text'), None)
  if text and len(names) > 1:
    what = f'{", ".join(name for name in names if name != text)} would be beside {text!r}'
    ways = f"set data.inputs=[{text!r}], or 'ignore' for the others in data.columns"
    raise UserError(f'{table.spec}: a text is the only input, and {what}: {ways}')
  numbers = {name: _numbers(table, name, alone=len(names) == 1) for name in names}
  if numbers[names[0]] is None:
    values = [value or '' for value in table.values(names[0])]
    x = np.array([value.strip() for value in values] if table.kind == 'csv' else values, object)
    return x, {'kind': 'text', 'columns': tuple(names)}
  x = np.empty((sum(len(part.lines) for part in table.parts.values()), len(names)), np.float32)
  categories: dict[str, tuple[str, ...]] = {}
  notes: list[str] = []
  for i, name in enumerate(names):
    known, category = numbers[name] or ({}, False)
    x[:, i] = _looked_up(table.values(name), known)
    if category:
      categories[name] = tuple(known)
    notes += _doubts(name, known, category and name not in table.types)
  return x, {'kind': 'table', 'columns': tuple(names), 'categories': categories, 'notes': tuple(notes)}


def _doubts(name: str, known: Mapping[str, float], guessed: bool) -> list[str]:
  """What a user may have meant otherwise."""
  words = [value for value in known if _number(value) is None]
  if guessed and len(words) < len(known) / 2:
    shown = ', '.join(map(repr, words[:3])) + (', …' if len(words) > 3 else '')
    return [f'column {name!r} is categories because of {shown}; where these are missing values, see data.missing']
  numbers = np.array(list(known.values()))
  if not words and (left := len(np.unique(numbers.astype(np.float32)))) < 0.9 * len(np.unique(numbers)):
    return [f'column {name!r}: {len(np.unique(numbers)):,} numbers become {left:,} in single precision: shift them']
  return []


def _numbers(table: _Table, name: str, alone: bool) -> tuple[dict[str, float], bool] | None:
  """The number that each present value becomes, and whether it is that of a category; None for text."""
  given, values = table.types.get(name), table.values(name)
  if given == 'text':
    return None
  present = _present(values, table.missing)
  if not present:
    raise UserError(f"{table.spec}: column {name!r} has no value at all; set data.columns={{{name!r}: 'ignore'}}")
  parsed = {value: _number(value) for value in present}
  words = [value for value, number in parsed.items() if number is None]
  if given == 'numeric' or (given is None and not words):
    return _finite(table, name, parsed), False
  if given is None and alone:
    return None
  if given is None and _too_many(len(present), len(values)):
    row, value = _first(values, words)
    what = f'{len(present):,} different values in {len(values):,} rows ({value!r}, {table.place(row)}, is no number)'
    ways = f"set data.columns={{{name!r}: 'text'}}, 'category' or 'ignore'"
    raise UserError(f'{table.spec}: column {name!r} has {what}: {ways}')
  return {value: float(i) for i, value in enumerate(present)}, True


def _present(values: Sequence[str | None], missing: frozenset[str]) -> list[str]:
  """The different values that are not missing, sorted."""
  return sorted({value.strip() for value in set(values) if value is not None} - missing)


def _too_many(different: int, rows: int) -> bool:
  return different > MOST_VALUES or (rows >= 100 and different > rows / 2)


def _number(value: str) -> float | None:
  """None where it is no number; infinity where float32 does not hold it."""
  try:
    number = float(value.replace('_', ' _'))  # float alone reads 1_000 as a number
  except ValueError:
    return None
  return math.copysign(math.inf, number) if abs(number) > _LARGEST else number


def _looked_up(values: Sequence[str | None], numbers: Mapping[str, float]) -> np.ndarray:
  """float64 [N]: the number of each value, NaN for those without."""
  known = {value: math.nan if value is None else numbers.get(value.strip(), math.nan) for value in set(values)}
  return np.array([known[value] for value in values])


def _first(values: Sequence[str | None], wanted: Collection[str]) -> tuple[int, str]:
  """The first row whose value is one of these, and the value."""
  found = ((row, value.strip()) for row, value in enumerate(values) if value is not None)
  return next((row, value) for row, value in found if value in wanted)


def _label(table: _Table, name: str, task: Task, unlabelled: bool) -> tuple[np.ndarray, dict[str, Any]]:
  """Class numbers int32 [N] or targets float32 [N, 1], −1 or NaN where missing, and what is known about them."""
  values = table.values(name)
  absent = [row for row, value in enumerate(values) if value is None or value.strip() in table.missing]
  if absent and (not unlabelled or len(absent) == len(values)):
    what = (
      f'the label {name!r} is missing ({values[absent[0]]!r}, see data.missing)'
      if values[absent[0]]
      else f'no label {name!r}'
    )
    way = "; data.unlabelled='keep' keeps them" if not unlabelled else ''
    raise UserError(f'{table.place(absent[0])}: {what}, the first of {len(absent):,} such rows{way}')
  numbers = {value: _number(value) for value in _present(values, table.missing)}
  words = [value for value, number in numbers.items() if number is None]
  decimals = [value for value, number in numbers.items() if number is not None and not _WHOLE.fullmatch(value)]
  if task == 'regression' or (task is None and decimals and not words):
    known = _finite(table, name, numbers, 'for regression ')
    return _looked_up(values, known).astype(np.float32)[:, None], {'task': 'regression', 'targets': (name,)}
  if task is None and _too_many(len(numbers), len(values)):
    ways = "'classification'" if words else "'regression' or 'classification'"
    what = f'{len(numbers):,} different values in {len(values):,} rows: set data.task={ways} if that is meant'
    raise UserError(f'{table.spec}: the label {name!r} has {what}')
  if words:
    return _classes(table, name, {value: value for value in numbers}, sorted)
  for value in decimals:
    if not float(value).is_integer():
      row = _first(values, [value])[0]
      what = f"the label {name!r} is {value!r}, and classes are words or whole numbers; set data.task='regression'"
      raise UserError(f'{table.place(row)}: {what}')
  wholes = {value: str(int(float(value) if value in decimals else value)) for value in numbers}
  return _classes(table, name, wholes, lambda classes: sorted(classes, key=int))


def _finite(table: _Table, name: str, numbers: Mapping[str, float | None], what: str = '') -> dict[str, float]:
  """The numbers, if all are. Raises `UserError` that names the first row whose value is none."""
  known = {value: number for value, number in numbers.items() if number is not None and math.isfinite(number)}
  if len(known) < len(numbers):
    row, value = _first(table.values(name), set(numbers) - set(known))
    raise UserError(f'{table.place(row)}: {value!r} in column {name!r} {what}is not a finite number')
  return known


def _classes(
  table: _Table, name: str, classes: Mapping[str, str], order: Callable[[set[str]], list[str]]
) -> tuple[np.ndarray, dict[str, Any]]:
  """Class numbers int32 [N], by the class of each value; the training part, where there is one, must have all."""
  names = order(set(classes.values()))
  if len(names) < 2:
    raise UserError(f'{table.spec}: the label {name!r} is {names[0]!r} in every row, so there is nothing to tell apart')
  order_of = {of: float(number) for number, of in enumerate(names)}
  numbers = {value: order_of[of] for value, of in classes.items()}
  label = np.nan_to_num(_looked_up(table.values(name), numbers), nan=-1).astype(np.int32)
  rows = table.rows()
  for part, own in rows.items() if 'train' in rows else []:
    untrained = np.setdiff1d(label[own][label[own] >= 0], label[rows['train']])
    if len(untrained):
      count, path = int((label[own] == untrained[0]).sum()), table.parts[part].path
      where = f"in {count} rows of part {part!r} and in none of 'train'"
      raise UserError(f'{path}: class {names[untrained[0]]!r} of {name!r} is {where}, so it was never trained on')
  return label, {'task': 'classification', 'classes': tuple(names)}
