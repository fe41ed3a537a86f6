"""Files of tables: which are meant, and their columns as they are written. Reads files."""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transferlab.errors import UserError, nearest

Kind = Literal['csv', 'tsv', 'jsonl']
PARTS = ('train', 'validation', 'valid', 'val', 'dev', 'test')


@dataclass(frozen=True)
class Part:
  """One file: `columns` are its values as written, by name (None: a key that a line of jsonl lacks)."""

  path: str
  lines: Sequence[int]
  columns: dict[str, Sequence[str | None]]


def files_of(spec: str, kind: str) -> dict[str, str]:
  """Paths by the name of the part; the one of a plain file is ''."""
  if Path(spec).is_dir():
    paths = {name: Path(spec) / f'{name}.{kind}' for name in PARTS}
    found = {name: str(path) for name, path in paths.items() if path.is_file()}
    if 'train' not in found:
      files = ', '.join(sorted(path.name for path in Path(spec).glob(f'*.{kind}'))[:12])
      raise UserError(f"{spec!r} is a folder without a file 'train.{kind}'; it holds {files or f'no {kind} file'}")
    return found
  if not re.search('[{}]', spec):
    return {'': spec}
  match = re.fullmatch(r'([^{}]*)\{([^{}]*)\}([^{}]*)', spec)
  names = match[2].split(',') if match else []
  if match is None or len(names) < 2 or not all(names) or len(set(names)) < len(names):
    what = "braces name the parts, at least two, each once, with commas between, as in 'adult-{train,test}.csv'"
    raise UserError(f'{spec!r}: {what}')
  return {name: f'{match[1]}{name}{match[3]}' for name in names}


def read_part(path: str, kind: Kind) -> Part:
  """The columns of a file. Raises `UserError` where it is missing, damaged, ragged or empty."""
  text = read_utf8(path)
  if not text.strip():
    raise UserError(f'{path} is empty')
  part = _objects(text, path) if kind == 'jsonl' else _rows(text, path, kind)
  if '' in part.columns:
    place = f'column {list(part.columns).index("") + 1} of {len(part.columns)}'
    raise UserError(f'{path}: {place} has no name in the header; give it one')
  if not part.lines:
    raise UserError(f'{path} has a header and no rows')
  return part


def read_utf8(path: str) -> str:
  """The file, decoded. Raises `UserError` where it is not there, or is not UTF-8."""
  file = Path(path)
  if not file.is_file():
    if not file.parent.is_dir():
      raise UserError(f'no file {path!r}: there is no folder {str(file.parent)!r}')
    near = ', '.join(nearest(file.name, sorted(found.name for found in file.parent.glob(f'*{file.suffix}'))))
    raise UserError(f'no file {path!r}; nearest in {str(file.parent)!r}: {near or f"no {file.suffix} file at all"}')
  try:
    return file.read_bytes().decode('utf-8-sig')
  except OSError as error:
    raise UserError(f'{path} cannot be read ({error.strerror})') from None
  except UnicodeDecodeError as error:
    before, byte = error.object[: error.start].split(b'\n'), error.object[error.start]
    what = f'byte {len(before[-1]) + 1} of the line, 0x{byte:02x}, is not UTF-8; convert the file'
    raise UserError(f'{path} line {len(before)}: {what}') from None


def _rows(text: str, path: str, kind: Kind) -> Part:
  """The values of a csv or tsv file, of which every row has as many as the header."""
  rows = _csv(text, path) if kind == 'csv' else _tsv(text)
  while len(rows) > 1 and len(rows[-1][1]) < 2 and not ''.join(rows[-1][1]).strip():
    rows.pop()
  header = [name.strip() for name in rows[0][1]]
  if len(header) < 2:
    what = f'needed are inputs and a label, with {"commas or semicolons" if kind == "csv" else "tabs"} between them'
    raise UserError(f'{path}: the header is one column, {"".join(header)!r}; {what}')
  for name in header:
    if header.count(name) > 1:
      raise UserError(f'{path}: the header names the column {name!r} {header.count(name)} times')
  for line, row in rows:
    if len(row) != len(header):
      raise UserError(f'{path} line {line} has {len(row)} values, and the header names {len(header)} columns')
  values = zip(*(row for _, row in rows[1:])) if len(rows) > 1 else [()] * len(header)
  return Part(path, [line for line, _ in rows[1:]], dict(zip(header, values)))


def _csv(text: str, path: str) -> list[tuple[int, list[str]]]:
  """Rows, each with the line it begins in. Values stand between commas, or semicolons where the header has no comma."""
  csv.field_size_limit(2**31 - 1)  # else a text of more than 131,072 characters is refused
  header = text.partition('\n')[0]
  delimiter = ';' if ';' in header and ',' not in header else ','
  reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True, skipinitialspace=True)
  rows, line = [], 1
  try:
    for row in reader:
      rows.append((line, row))
      line = reader.line_num + 1
  except csv.Error as error:
    raise UserError(f'{path} line {line}: wrongly quoted ({error})') from None
  return rows


def _tsv(text: str) -> list[tuple[int, list[str]]]:
  # Not str.splitlines: it would also cut a text at a form feed, or where its encoding was once mistaken (U+0085).
  return [(number, line.removesuffix('\r').split('\t')) for number, line in enumerate(text.split('\n'), 1)]


def _objects(text: str, path: str) -> Part:
  """The values of a jsonl file, numbers as they are written."""
  lines = text.rstrip().split('\n')
  records = [_object(line, f'{path} line {number}') for number, line in enumerate(lines, 1)]
  header = dict.fromkeys(name for record in records for name in record)
  return Part(path, range(1, len(lines) + 1), {name: [record.get(name) for record in records] for name in header})


def _object(line: str, place: str) -> dict[str, str | None]:
  """One line; objects are parsed to tuples of pairs, which tells them from arrays and shows keys given twice."""
  try:
    pairs = json.loads(line, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=tuple)
  except json.JSONDecodeError as error:
    if line.strip() == '[':
      raise UserError(f'{place} begins an array; needed: an object on every line, {{"column": value, …}}') from None
    raise UserError(f'{place} is not JSON: {error.msg.lower()}, at character {error.colno}') from None
  if not isinstance(pairs, tuple):
    what = 'an array' if isinstance(pairs, list) else f'the value {line.strip()[:40]}'
    raise UserError(f'{place} is {what}; needed: an object, {{"column": value, …}}')
  record = dict(pairs)
  if len(record) < len(pairs):
    raise UserError(f'{place} gives a key twice')
  for name, value in record.items():
    if isinstance(value, (tuple, list)):
      raise UserError(f'{place}: {name!r} holds {"an array" if isinstance(value, list) else "an object"}, not a value')
    if isinstance(value, bool):
      record[name] = str(value).lower()
  return record
