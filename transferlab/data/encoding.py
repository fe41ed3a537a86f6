"""What a network takes of a table: its missing values filled in, its categories as indicators or as numbers.

Here: fitting on training examples a list of entries that JSON can hold, applying it, and what a target takes over from
its source. Reading tables is in tables.py; shift and scale are kept and applied by preprocessing.py.
"""

import copy
import numbers
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from transferlab.data.examples import Info
from transferlab.errors import UserError, nearest

Entry = dict[str, Any]


def fit(x_train: np.ndarray, info: Info, categorical: Literal['one_hot', 'embedding'] = 'one_hot') -> list[Entry]:
  """What each of the D encoded columns is, in order: dicts with 'column', 'name' and 'kind'.

  - 'numeric': the column, with 'fill' (the mean of its present values; 0 if there is none) where a value is missing;
  - 'missing': 1 where the value is missing, else 0; only for columns that miss values in training;
  - 'value': 1 where the value is this 'value', else 0; for every value that occurs in training, sorted (one_hot);
  - 'code': 0 where the value is missing or unseen in training, else its place, from 1, in 'values' (embedding).

  Args:
    x_train: training examples as `read_table` gives them, [N, C].

  Raises:
    UserError: two entries would have one name.
  """
  entries: list[Entry] = []
  for values, column in zip(x_train.T, info.columns):
    absent = np.isnan(values)
    if column not in info.categories:
      fill = float(values[~absent].mean(dtype=np.float64)) if not absent.all() else 0.0
      entries.append({'column': column, 'name': column, 'kind': 'numeric', 'fill': fill})
    else:
      known = sorted(info.categories[column][int(number)] for number in np.unique(values[~absent]))
      if categorical == 'embedding':
        entries.append({'column': column, 'name': column, 'kind': 'code', 'values': known})
        continue
      entries += [{'column': column, 'name': f'{column}={value}', 'kind': 'value', 'value': value} for value in known]
    if absent.any():
      entries.append({'column': column, 'name': f'{column}=missing', 'kind': 'missing'})
  return _distinct(entries)


def _distinct(entries: list[Entry]) -> list[Entry]:
  """The entries, if their names differ: first-layer weights are matched by them."""
  first: dict[str, Entry] = {}
  for entry in entries:
    other = first.setdefault(entry['name'], entry)
    if other is not entry:
      said = [f'{one["kind"]} of {one["column"]!r}' for one in (other, entry)]
      raise UserError(
        f'two encoded columns would be named {entry["name"]!r} ({" and ".join(said)}): rename the column, '
        'or name the value in data.missing'
      )
  return entries


def encode(x: np.ndarray, info: Info, entries: Sequence[Entry]) -> np.ndarray:
  """A raw table [N, C] as float32 [N, D], whatever data the entries were fitted on; its other columns are left out.

  Values of categories are compared by name, so that `info.categories` may number them in another way. What training
  had not seen is 0 in all indicators, and code 0.

  Raises:
    UserError: the table lacks a column of the entries, or holds numbers for categories or the other way round.
  """
  encoded = np.empty((len(x), len(entries)), np.float32)
  for i, entry in enumerate(entries):
    values = x[:, _position(entry, info)]
    absent = np.isnan(values)
    if entry['kind'] == 'numeric':
      encoded[:, i] = np.where(absent, np.float32(entry['fill']), values)
    elif entry['kind'] == 'missing':
      encoded[:, i] = absent
    else:
      known = [entry['value']] if entry['kind'] == 'value' else entry['values']
      codes = {value: code for code, value in enumerate(known, 1)}
      table = np.array([*(codes.get(value, 0) for value in info.categories[entry['column']]), 0], np.float32)
      encoded[:, i] = table[np.where(absent, -1, values).astype(np.int64)]  # the last place is for what is missing
  return encoded


def of_records(given: Any, entries: Sequence[Entry]) -> np.ndarray:
  """A table in the hand as float32 [N, D], encoded as `encode` does it.

  Args:
    given: a list of dicts (an example each), or columns by name: a dict of sequences (of single values: one example),
      or a data frame. None, NaN and '' are missing values; columns that the entries do not know are left out.

  Raises:
    UserError: a column is missing, of another length or no number where numbers were trained on.
  """
  if isinstance(given, list):
    given = {name: [row.get(name) for row in given] for name in dict.fromkeys(name for row in given for name in row)}
  elif all(np.ndim(given[name]) == 0 for name in given):
    given = {name: [given[name]] for name in given}
  spellings = _spellings(entries)
  columns = {
    name: [None if _is_missing(value) else value for value in given[name]] for name in spellings if name in given
  }
  if len({len(values) for values in columns.values()}) > 1:
    raise UserError(f'columns differ in length: { {name: len(values) for name, values in columns.items()} }')
  raw, categories = np.empty((len(next(iter(columns.values()), [])), len(columns)), np.float32), {}
  for i, (name, values) in enumerate(columns.items()):
    known = spellings[name]
    if known is None:
      raw[:, i] = [_as_number(value, name) for value in values]
    else:
      words = [None if value is None else as_written(value, known) for value in values]
      places = {word: place for place, word in enumerate(dict.fromkeys(word for word in words if word is not None))}
      categories[name] = tuple(places)
      raw[:, i] = [np.nan if word is None else places[word] for word in words]
  others = [str(name) for name in given if name not in columns]  # for messages only
  info = Info('table', 'classification', columns=(*columns, *others), categories=categories, origin='the table')
  return encode(raw, info, entries)


def _spellings(entries: Sequence[Entry]) -> dict[str, set[str] | None]:
  """The values that each column is known to have; None where it holds numbers."""
  known: dict[str, set[str] | None] = {}
  for column, own in _by_column(entries).items():
    values = [value for entry in own for value in entry.get('values', [entry.get('value')]) if value is not None]
    known[column] = None if own[0]['kind'] == 'numeric' else set(values)
  return known


def as_written(value: Any, known: Collection[str]) -> str:
  """A category as files spell it: as the one of `known` that it may be (True: 'true', 3.0: '3'), or as Python does."""
  ways = [str(value).strip()]
  if isinstance(value, (bool, np.bool_)):
    ways.append(ways[0].lower())
  elif isinstance(value, numbers.Real) and float(value).is_integer():
    whole = int(float(value))
    ways += [str(whole), f'{whole}.0']
  return next((way for way in ways if way in known), ways[0])


def plain(columns: Sequence[str]) -> list[Entry]:
  """Entries of a table that is numbers alone and misses none."""
  return [{'column': name, 'name': name, 'kind': 'numeric', 'fill': np.nan} for name in columns]


def _is_missing(value: Any) -> bool:
  if isinstance(value, str):
    return not value.strip()
  return value is None or type(value).__name__ == 'NAType' or bool(value != value)  # pandas.NA equals nothing at all


def _as_number(value: Any, column: str) -> float:
  try:
    return np.nan if value is None else float(value)
  except (TypeError, ValueError):
    raise UserError(f'column {column!r} holds {value!r}, and numbers were trained on') from None


def _position(entry: Entry, info: Info) -> int:
  """Where the column of an entry stands in a raw table."""
  column, kind = entry['column'], entry['kind']
  if column not in info.columns:
    near = ', '.join(nearest(column, info.columns))
    raise UserError(f'{info.origin or "the table"} has no column {column!r}, which was trained on; nearest: {near}')
  if kind != 'missing' and (kind == 'numeric') == (column in info.categories):
    was, now = ('numeric', 'category') if kind == 'numeric' else ('category', 'numeric')
    raise UserError(
      f'{info.origin or "the table"}: column {column!r} is {now}, and it was {was} where it was trained on; '
      f'set data.columns={{{column!r}: {was!r}}}'
    )
  return info.columns.index(column)


def merge(source_entries: Sequence[Entry], target_entries: Sequence[Entry]) -> list[Entry]:
  """What a target uses that takes its source's preprocessing: the target's columns, as the source knows them.

  Where the source has a column of this name and encoded it in the same way, its fill, values and indicators come first,
  in its order, then the values and indicators that only the target's training has. Other columns stay the target's own.

  Raises:
    UserError: two entries would have one name.
  """
  source, merged = _by_column(source_entries), []
  for column, own in _by_column(target_entries).items():
    theirs = source.get(column, [])
    if not theirs or _way(theirs) != _way(own):
      merged += own
      continue
    known = {(entry['name'], entry['kind']) for entry in theirs}
    merged += theirs + [entry for entry in own if (entry['name'], entry['kind']) not in known]
    if _way(own) == 'code':
      values = dict.fromkeys([*theirs[0]['values'], *own[0]['values']])
      merged[-1] = {**theirs[0], 'values': list(values)}
  return _distinct(copy.deepcopy(merged))


def _by_column(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
  columns: dict[str, list[Entry]] = {}
  for entry in entries:
    columns.setdefault(entry['column'], []).append(entry)
  return columns


def _way(entries: list[Entry]) -> str:
  """How a column is encoded: 'numeric', 'code' or 'one_hot', which may consist of its 'missing' alone."""
  return entries[0]['kind'] if entries[0]['kind'] in ('numeric', 'code') else 'one_hot'


def codes(entries: Sequence[Entry]) -> dict[int, list[str]]:
  """The values that have a code, in their order, by the position in D of each column to be embedded."""
  return {i: entry['values'] for i, entry in enumerate(entries) if entry['kind'] == 'code'}


def scaling(encoded: np.ndarray, entries: Sequence[Entry], standardize: bool) -> tuple[np.ndarray, np.ndarray]:
  """Shift and scale, float64 [D], by which encoded training examples [N, D] become (x - shift) / scale.

  With `standardize` numeric columns get mean 0 and deviation 1 (over N; a constant is scaled by 1). All else keeps
  shift 0 and scale 1: an indicator of something rare would become huge, and a code is no quantity.
  """
  shift, scale = np.zeros(len(entries)), np.ones(len(entries))
  for i, entry in enumerate(entries):
    if standardize and entry['kind'] == 'numeric':
      values = encoded[:, i].astype(np.float64)
      shift[i], scale[i] = values.mean(), values.std() or 1.0
  return shift, scale
