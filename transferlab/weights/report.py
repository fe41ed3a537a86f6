"""What a file of weights holds, as lines to read: --inspect. Pure but for the file's own list."""

import math
from collections.abc import Iterator

from transferlab.data import tokens
from transferlab.weights import mapping
from transferlab.weights.contents import Contents


def lines(contents: Contents) -> Iterator[str]:
  """The file, the family it is of, its preprocessing, and a line per array with its place in our network."""
  total = sum(math.prod(tensor.shape) for tensor in contents.tensors.values())
  part = f', entry {contents.part!r}' if contents.part else ''
  yield f'{contents.file}: {contents.format}{part}; {len(contents)} arrays, {total:,} values'
  if contents.others:
    yield 'also there: ' + ', '.join(f'{name} ({count} arrays)' for name, count in contents.others.items())
  yield from contents.notes
  for name, value in contents.metadata.items():
    shown = str(value)
    yield f'{name}: {shown if len(shown) <= 100 else shown[:97] + "…"}'
  found = mapping.recognise(contents)
  places: dict[str, str] = {}
  if found is None:
    yield 'of no family that is known: config.source.names=[(their pattern, our path, layout)] says what is what'
  else:
    yield f'recognised: {found}' + (f', {found.outputs} outputs' if found.outputs else '')
    yield from _preprocessing(found)
    yield from found.mapped.notes
    places = found.places()
  rows = [
    (name, 'x'.join(map(str, tensor.shape)) or 'scalar', str(tensor.dtype), places.get(name, ''))
    for name, tensor in contents.tensors.items()
  ]
  widths = [max(map(len, column), default=0) for column in zip(*rows)]
  for row in rows:
    yield '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


def _preprocessing(found: mapping.Recognised) -> Iterator[str]:
  record = found.preprocessing
  if record is None:
    yield 'preprocessing: unknown'
    return
  if 'tokens' in record:
    yield f'preprocessing: a tokenizer of {len(tokens.vocabulary(record["tokens"])):,} tokens'
    return
  shift, scale = (', '.join(f'{value:g}' for value in record[name]) for name in ('shift', 'scale'))
  size = 'x'.join(map(str, record['input_shape']))
  bounds = ' … '.join(f'{value:g}' for value in record.get('range', ()))
  note = f' ({record["note"]})' if record.get('note') else ''
  yield f'preprocessing: {size}{note}; (x - shift) / scale of {bounds}: shift {shift}; scale {scale}'
