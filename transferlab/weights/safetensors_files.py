"""Weights in safetensors files. Reads files.

The header is parsed here: the library's NumPy side knows neither bfloat16 nor float8, and holds every array twice.
The format: 8 bytes with the length of the header, the header as JSON, and the arrays, one behind the other.
"""

import itertools
import json
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from transferlab.errors import UserError
from transferlab.weights import raw
from transferlab.weights.contents import Contents, Tensor
from transferlab.weights.naming import strip_wrappers

FORMAT = 'safetensors'
SUFFIX = '.safetensors'
# As in the library: more is a damaged length.
LONGEST_HEADER = 100_000_000
KINDS = {'BOOL': 'bool', 'BF16': 'bfloat16', 'C64': 'complex64'}
KINDS |= {f'{kind}{bits}': f'{name}{bits}' for kind, name in (('U', 'uint'), ('I', 'int')) for bits in (8, 16, 32, 64)}
KINDS |= {f'F{bits}': f'float{bits}' for bits in (16, 32, 64)}
KINDS |= {f'F8_{kind}': f'float8_{kind.lower()}' for kind in ('E5M2', 'E4M3FNUZ', 'E5M2FNUZ')}
KINDS |= {'F8_E4M3': 'float8_e4m3fn', 'F8_E8M0': 'float8_e8m0fnu'}


def is_safetensors(path: str | Path) -> bool:
  """Whether a file begins like one: a possible length, then the brace of a header."""
  with raw.open_file(path) as file:
    start = file.read(9)
  if len(start) < 9 or start[8:] != b'{':
    return False
  # With its suffix, a wrong length is a damaged file of this format rather than another one.
  return struct.unpack('<Q', start[:8])[0] <= LONGEST_HEADER or str(path).endswith(SUFFIX)


def read(path: str | Path, part: str | None = None) -> Contents:
  """The tensors of one file; a shard is read alone.

  Args:
    part: must be None: a file of this format has no parts.

  Raises:
    UserError: no such file, a damaged or truncated one, or a dtype that NumPy cannot hold.
  """
  if part is not None:
    raise UserError(f'{path}: a safetensors file has no parts, so there is no part {part!r}')
  contents = as_written(Path(path))
  names, note = strip_wrappers(contents.tensors)
  tensors = {names[name]: tensor for name, tensor in contents.tensors.items()}
  return Contents(str(path), FORMAT, tensors, metadata=contents.metadata, notes=(note,) if note else ())


def as_written(path: Path) -> Contents:
  """One file with its names as they stand in it, as an index of shards refers to them. Raises as `read`."""
  header, start, size = _header(path)
  metadata = header.pop('__metadata__', {})
  if not isinstance(metadata, dict):
    raise _damaged(path, 'its __metadata__ is no record')
  tensors, places = {}, []
  for name, record in header.items():
    shape, dtype, begin, end = _entry(path, name, record)
    places.append((begin, end, name))
    tensors[name] = Tensor(shape, dtype, partial(raw.read_at, path, start + begin, shape, dtype))
  _check_places(path, places, size - start)
  return Contents(str(path), FORMAT, tensors, metadata=metadata)


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
  """(header, where the arrays begin, size of the file)."""
  with raw.open_file(path) as file:
    size = file.seek(0, 2)
    file.seek(0)
    length = struct.unpack('<Q', file.read(8))[0] if size >= 8 else 0
    if size < 10 or length > LONGEST_HEADER:
      raise _damaged(path, f'{size} bytes do not begin with a header')
    if 8 + length > size:
      raise _damaged(path, f'it has {size} bytes, and its header alone should have {8 + length}')
    text = bytearray(length)
    raw.fill(file, memoryview(text), path)
  try:
    # A name that stands twice would lose a tensor in silence.
    header = json.loads(text.decode(), object_pairs_hook=_unique)
  except (ValueError, RecursionError) as error:
    raise _damaged(path, f'its header is not valid JSON: {str(error)[:80]}') from None
  if not isinstance(header, dict):
    raise _damaged(path, 'its header is no record')
  return header, 8 + length, size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  record = dict(pairs)
  if len(record) < len(pairs):
    raise ValueError('a name stands twice')
  return record


def _entry(path: Path, name: str, record: Any) -> tuple[tuple[int, ...], np.dtype, int, int]:
  """(shape, dtype, begin, end) of one tensor, whose size must fit."""
  try:
    shape, (begin, end), kind = tuple(record['shape']), record['data_offsets'], record['dtype']
  except (TypeError, KeyError, ValueError):
    raise _damaged(path, f'tensor {name!r} lacks a shape, a dtype or offsets') from None
  if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
    raise _damaged(path, f'tensor {name!r} has shape {shape} and offsets {begin}, {end}')
  if not isinstance(kind, str) or kind not in KINDS:
    raise UserError(f'{path}: tensor {name!r} has dtype {kind!r}; read are {", ".join(KINDS)}')
  dtype = raw.dtype_of(KINDS[kind])
  needed = raw.num_bytes(shape, dtype)
  if end - begin != needed:
    raise _damaged(path, f'tensor {name!r} of shape {shape} and {kind} needs {needed} bytes, and has {end - begin}')
  return shape, dtype, begin, end


def _check_places(path: Path, places: list[tuple[int, int, str]], size: int) -> None:
  """Arrays must lie one behind the other, without gap or overlap, up to the end of the file."""
  places = sorted(places)
  if places and places[0][0]:
    raise _damaged(path, f'{places[0][0]} bytes before its first tensor belong to none')
  for (_, end, before), (begin, _, name) in itertools.pairwise(places):
    if begin != end:
      raise _damaged(path, f'tensors {before!r} and {name!r} {"overlap" if begin < end else "have a gap between them"}')
  last = places[-1][1] if places else 0
  if last != size:
    raise _damaged(path, f'{size} bytes of tensors are there, and {last} should be')


def _damaged(path: Path, reason: str) -> UserError:
  return UserError(f'{path} is damaged or cut short: {reason}')
