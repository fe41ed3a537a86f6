"""Weights in msgpack files of Flax (`flax_model.msgpack`, `checkpoint_1000`): found without holding them. Reads files.

One pass over the file notes where every array lies and steps over its values. An array is an extension of type 1
that holds (shape, name of the dtype, bytes); those beyond a gibibyte are written in chunks. Which entries of the tree
are the weights is naming.py's affair.
"""

import dataclasses
import struct
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from transferlab.errors import UserError
from transferlab.weights import raw
from transferlab.weights.contents import Contents, Tensor
from transferlab.weights.naming import tree_contents

FORMAT = 'Flax msgpack'
ARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = '__msgpack_chunked_array__'
DEEPEST = 64
# Longer texts are no metadata, and bytes that are read for one are damaged lengths.
LONGEST = 2**20
# First byte -> kind, and the format of the number that follows: a length, or the value itself (the msgpack spec).
HEADS = {
  **{0xC4 + i: ('bin', form) for i, form in enumerate(('>B', '>H', '>I'))},
  **{0xC7 + i: ('ext', form) for i, form in enumerate(('>B', '>H', '>I'))},
  **{0xCA + i: ('value', f'>{form}') for i, form in enumerate('fdBHIQbhiq')},
  **{0xD9 + i: ('str', form) for i, form in enumerate(('>B', '>H', '>I'))},
  **{0xDC + i: ('list', form) for i, form in enumerate(('>H', '>I'))},
  **{0xDE + i: ('map', form) for i, form in enumerate(('>H', '>I'))},
}
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an array lies in the file."""

  shape: tuple[int, ...]
  dtype: np.dtype
  offset: int


class Damaged(Exception):
  """The file is not what its bytes announce; the message says why."""


def is_msgpack(path: str | Path) -> bool:
  """Whether a file begins like a tree: a map that is not empty, and a text as its first key."""
  with raw.open_file(path) as file:
    start = file.read(16)
  skip = {0xDE: 3, 0xDF: 5}.get(start[0], 1 if 0x80 < start[0] < 0x90 else 0) if start else 0
  key = start[skip : skip + 1]
  return bool(skip and key) and (0xA0 < key[0] < 0xC0 or key[0] == 0xD9)


def read(path: str | Path, part: str | None = None) -> Contents:
  """The arrays of a file by path; numbers and texts of the tree are metadata.

  Args:
    part: an entry of the tree other than the weights ('ema_params'); see `naming.choose`.

  Raises:
    UserError: no such file, a damaged or truncated one, arrays of Python objects, or an unknown part.
  """
  with raw.open_file(path, buffered=True) as file:
    walk = Walk(file)
    try:
      walk.tree()
      chunked = _chunked(walk)
    except (Damaged, ValueError, TypeError, OverflowError) as error:
      raise UserError(f'{path} is no msgpack file of Flax, or is damaged or cut short: {error}') from None
  if not walk.places and not chunked:
    raise UserError(f'{path}: a msgpack file without arrays')
  tensors = {
    name: Tensor(place.shape, place.dtype, partial(raw.read_at, path, place.offset, place.shape, place.dtype))
    for name, place in walk.places.items()
  }
  for name, (shape, chunks) in chunked.items():
    dtype = chunks[0].dtype
    tensors[name] = Tensor(shape, dtype, partial(_joined, path, shape, dtype, chunks))
  return tree_contents(str(path), FORMAT, tensors, part, walk.values)


class Walk:
  """One pass over an open file; `places` and `values` are what was found, by path.

  Raises:
    Damaged: the bytes are not msgpack, or not as Flax writes it.
  """

  def __init__(self, file: BinaryIO):
    self.places: dict[str, Place] = {}
    self.values: dict[str, Any] = {}
    self._file = file
    self._size = file.seek(0, 2)
    file.seek(0)

  def tree(self) -> None:
    """Walks the whole file, which is one map."""
    kind, count = self._head()
    if kind != 'map':
      raise Damaged('it does not begin with a map')
    self._map('', count, 0)
    if self._file.tell() != self._size:
      raise Damaged(f'{self._size - self._file.tell()} bytes follow behind its tree')

  def _take(self, count: int) -> bytes:
    if count > LONGEST:
      raise Damaged(f'a text of {count} bytes')
    taken = self._file.read(count)
    if len(taken) < count:
      raise Damaged(f'it ends after {self._size} bytes, in the midst of its tree')
    return taken

  def _step_over(self, count: int) -> None:
    end = self._file.tell() + count
    if end > self._size:
      raise Damaged(f'it has {self._size} bytes, and should have at least {end}')
    self._file.seek(end)

  def _head(self) -> tuple[str, Any]:
    """The kind of what comes next, with its length, or the value itself."""
    first = self._take(1)[0]
    if first < 0x80 or first >= 0xE0:
      return 'value', first if first < 0x80 else first - 256
    if first < 0xC0:
      kind, mask = ('map', 15) if first < 0x90 else ('list', 15) if first < 0xA0 else ('str', 31)
      return kind, first & mask
    if first in CONSTANTS:
      return 'value', CONSTANTS[first]
    if 0xD4 <= first <= 0xD8:
      return 'ext', 1 << (first - 0xD4)
    if first not in HEADS:
      raise Damaged(f'byte {first:#x} begins nothing')
    kind, form = HEADS[first]
    return kind, struct.unpack(form, self._take(struct.calcsize(form)))[0]

  def _any(self, name: str, depth: int) -> None:
    if depth > DEEPEST:
      raise Damaged(f'more than {DEEPEST} levels')
    kind, number = self._head()
    if kind == 'map':
      self._map(name, number, depth)
    elif kind == 'list':
      for index in range(number):
        self._any(f'{name}/{index}', depth + 1)
    elif kind == 'ext':
      self._extension(name, number)
    elif kind == 'bin' or (kind == 'str' and number > LONGEST):
      self._step_over(number)
    else:
      self.values[name] = self._take(number).decode() if kind == 'str' else number

  def _map(self, name: str, count: int, depth: int) -> None:
    seen = set()
    for _ in range(count):
      kind, number = self._head()
      if kind not in ('str', 'bin', 'value'):
        raise Damaged(f'a key of {name or "the tree"} is neither text nor number')
      key = str(number) if kind == 'value' else self._take(number).decode()
      if key in seen:
        raise Damaged(f'{key!r} stands twice in {name or "the tree"}')
      seen.add(key)
      self._any(f'{name}/{key}' if name else key, depth + 1)

  def _extension(self, name: str, length: int) -> None:
    code, end = self._take(1)[0], self._file.tell() + length
    if code in (ARRAY, SCALAR):
      self.places[name] = self._array(name)
    elif code == COMPLEX:
      _, (_, real), (_, imaginary) = self._head(), self._head(), self._head()
      self.values[name] = complex(real, imaginary)
    else:
      self._step_over(length)
    if self._file.tell() != end:
      raise Damaged(f'{name} has another length than it says')

  def _array(self, name: str) -> Place:
    if self._head() != ('list', 3):
      raise Damaged(f'{name} is no array')
    _, num_axes = self._head()
    sizes = [self._head() for _ in range(min(num_axes, DEEPEST))]
    if not all(of == 'value' and type(number) is int and number >= 0 for of, number in sizes):
      raise Damaged(f'{name} has no shape')
    shape = tuple(number for _, number in sizes)
    _, length = self._head()
    named = self._take(length).decode()
    kind, length = self._head()
    try:
      dtype = raw.dtype_of(named)
    except TypeError:
      raise Damaged(f'{name} has dtype {named!r}') from None
    if not raw.is_numeric(dtype):
      raise Damaged(f'{name} has dtype {named!r}, and numbers are needed')
    if kind not in ('bin', 'str') or length != raw.num_bytes(shape, dtype):
      raise Damaged(f'{name} of shape {shape} and {dtype} needs {raw.num_bytes(shape, dtype)} bytes, and has {length}')
    place = Place(shape, dtype, self._file.tell())
    self._step_over(length)
    return place


def _chunked(walk: Walk) -> dict[str, tuple[tuple[int, ...], list[Place]]]:
  """Takes arrays in chunks out of what was found: {name: (shape, chunks)}."""
  found = {}
  for marker in [name for name in walk.values if name.split('/')[-1] == CHUNKED]:
    name = marker.removesuffix(CHUNKED).rstrip('/')
    del walk.values[marker]
    shape = tuple(_numbered(walk.values, f'{name}/shape/'))
    chunks = _numbered(walk.places, f'{name}/chunks/')
    held = sum(raw.num_bytes(chunk.shape, chunk.dtype) for chunk in chunks)
    whole = all(type(size) is int and size >= 0 for size in shape) and len({chunk.dtype for chunk in chunks}) == 1
    if not whole or raw.num_bytes(shape, chunks[0].dtype) != held:
      raise Damaged(f'the chunks of {name} do not make an array of shape {shape}')
    found[name] = (shape, chunks)
  return found


def _numbered(found: dict[str, Any], prefix: str) -> list[Any]:
  """Takes out the entries prefix + 0, 1, 2, …."""
  taken: list[Any] = []
  while f'{prefix}{len(taken)}' in found:
    taken.append(found.pop(f'{prefix}{len(taken)}'))
  return taken


def _joined(path: str | Path, shape: tuple[int, ...], dtype: np.dtype, chunks: list[Place]) -> np.ndarray:
  array = np.empty(shape, dtype.newbyteorder('<'))
  view, done = raw.as_bytes(array), 0
  with raw.open_file(path) as file:
    for chunk in chunks:
      file.seek(chunk.offset)
      count = raw.num_bytes(chunk.shape, dtype)
      raw.fill(file, view[done : done + count], path)
      done += count
  return array.astype(dtype.newbyteorder('='), copy=False)
