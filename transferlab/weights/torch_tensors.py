"""What the records of a PyTorch pickle mean as tensors: checked against the file, and read from it. Reads files.

A description is believed in nothing: types, sizes, strides and places are all checked before an array is made. Where
the storages of a file lie is the affair of torch_files.py.
"""

import dataclasses
import functools
import math
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from transferlab.errors import UserError
from transferlab.weights import pickles, raw, zips
from transferlab.weights.contents import Tensor
from transferlab.weights.pickles import Global, Record
from transferlab.weights.torch_parts import kind, shown

DTYPES = {
  'Double': 'float64', 'Float': 'float32', 'Half': 'float16', 'BFloat16': 'bfloat16', 'Long': 'int64', 'Int': 'int32',
  'Short': 'int16', 'Char': 'int8', 'Byte': 'uint8', 'Bool': 'bool', 'ComplexFloat': 'complex64',
  'ComplexDouble': 'complex128',
}  # fmt: skip
# Those that torch has as dtypes without a storage class, too.
OWN_DTYPES = frozenset({
  *DTYPES.values(), 'uint16', 'uint32', 'uint64',
  'float8_e4m3fn', 'float8_e5m2', 'float8_e4m3fnuz', 'float8_e5m2fnuz', 'float8_e8m0fnu',
})  # fmt: skip
NUMPY_DTYPE = re.compile('[<>=|]?(b1|i[1248]|u[1248]|f[248]|c8|c16)')
MODULE = re.compile(r'numpy\._?core\.(multiarray|numeric)\.')
MOST_AXES = 64
# A tensor may show an element of its storage more than once (`expand`); beyond this size that is a bomb or a mistake.
LARGEST_EXPANDED = 2**26
# What opening, unpacking and reading a damaged file may raise.
STRANGE = (
  *(ValueError, TypeError, LookupError, OSError, RuntimeError, EOFError, OverflowError, MemoryError),
  *(zipfile.BadZipFile, zlib.error, struct.error),
)


@dataclasses.dataclass(frozen=True)
class Block:
  """Where one storage lies in the file.

  Attributes:
    start: first byte; of the zip entry's own header where `packed`.
    size: bytes that it holds.
    packed: stands in a zip archive.
    deflated: the name of the entry where it is compressed.
    crc: of all its bytes; 0 where the file does not say.
  """

  start: int
  size: int
  packed: bool = False
  deflated: str | None = None
  crc: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Archive:
  """An opened file: the pickle's object, and where the storages lie, by key."""

  path: Path
  value: Any
  blocks: dict[str, Block]
  big_endian: bool = False


@dataclasses.dataclass(frozen=True)
class Place:
  """A stretch of a storage: `count` elements from byte `start`."""

  path: Path
  block: Block
  start: int
  count: int
  big_endian: bool


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """A tensor as the pickle describes it; nothing of it is checked yet."""

  storage: Any
  offset: Any
  shape: Any
  stride: Any
  dtype: Any = None
  bits: Any = None

  def number(self) -> None:
    """Not known without reading the file again."""


@dataclasses.dataclass(frozen=True, eq=False)
class Inside:
  """A NumPy array or number that stands in the pickle itself; nothing of it is checked yet."""

  dtype: Any
  shape: Any
  data: Any
  fortran: Any = False

  def number(self) -> Any:
    """The value of a single number."""
    if not isinstance(self.shape, tuple) or self.shape:
      return None
    try:
      return _inside_values(self).item()
    except (ValueError, TypeError):
      return None


def leaf(record: Record) -> View | Inside | None:
  """The tensor that a record stands for; None where it stands for something else."""
  for _ in range(8):  # a parameter of a subclass of a parameter …; a file may nest them without end
    name = kind(record)
    if name in ('torch._utils._rebuild_parameter', 'torch._utils._rebuild_parameter_with_state'):
      inner = record.args[0] if record.args else None
    elif name == 'torch._tensor._rebuild_from_type_v2' and len(record.args) > 2 and isinstance(record.args[2], tuple):
      inner = Record(record.args[0], record.args[2])
    else:
      return _view(name, record.args) if name.startswith('torch.') else _inside(name, record)
    if not isinstance(inner, Record):
      return None
    record = inner
  return None


def _view(name: str, args: tuple[Any, ...]) -> View | None:
  first = dict(zip(('storage', 'offset', 'shape', 'stride'), args))
  if len(first) < 4:
    return None
  if name == 'torch._utils._rebuild_tensor':
    return View(**first)
  if name == 'torch._utils._rebuild_tensor_v2':
    return View(**first, bits=args[6] if len(args) > 6 else None)
  if name == 'torch._utils._rebuild_tensor_v3' and len(args) > 6:
    return View(**first, dtype=args[6], bits=args[7] if len(args) > 7 else None)
  return None


def _inside(name: str, record: Record) -> Inside | None:
  """The array or number of NumPy that a record stands for: numbers only."""
  if (match := MODULE.match(name)) is None:
    return None
  made, args, found = name[match.end() :], record.args, None
  if made == '_reconstruct' and record.states:
    state = record.states[-1]
    if isinstance(state, tuple) and len(state) == 5:
      found = Inside(_numpy_dtype(state[2]), state[1], state[4], bool(state[3]))
  elif made == 'scalar' and len(args) == 2:
    found = Inside(_numpy_dtype(args[0]), (), args[1])
  elif made == '_frombuffer' and len(args) == 4:
    found = Inside(_numpy_dtype(args[1]), args[2], args[0], args[3] == 'F')
  return found if found is not None and found.dtype is not None else None


def _numpy_dtype(record: Any) -> np.dtype | None:
  """The dtype of a pickled `numpy.dtype`, where it is one of numbers."""
  code = record.args[0] if kind(record) == 'numpy.dtype' and record.args else None
  if not isinstance(code, str) or not NUMPY_DTYPE.fullmatch(code):
    return None
  state = record.states[-1] if record.states else ()
  order = state[1] if isinstance(state, tuple) and len(state) > 1 else '='
  return np.dtype(code).newbyteorder('>' if order == '>' else '<' if order == '<' else '=')


def storage(record: Any) -> tuple[str, Any, int] | None:
  """Key, type, and first element of the storage that a persistent identifier stands for; None for others."""
  identifier = record.args[0] if isinstance(record, Record) and record.kind is pickles.PERSISTENT else None
  if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != 'storage':
    return None
  key, view = identifier[2], identifier[5] if len(identifier) > 5 else None
  start = view[1] if isinstance(view, tuple) and len(view) == 3 else 0
  return (key, identifier[1], start) if isinstance(key, str) and type(start) is int else None


def itemsize(storage_type: Any) -> int:
  dtype = _storage_dtype(storage_type)
  return 1 if dtype is None else dtype.itemsize


def _storage_dtype(storage_type: Any) -> np.dtype | None:
  """The dtype of 'torch.FloatStorage', also of 'torch.cuda'; None for bytes without one. Raises `ValueError`."""
  name = storage_type.name if isinstance(storage_type, Global) and storage_type.module.startswith('torch') else ''
  if name == 'UntypedStorage':
    return None
  if name.removesuffix('Storage') not in DTYPES:
    raise ValueError(f'values of a {shown(str(storage_type) if name else "strange storage")} are not read')
  return raw.dtype_of(DTYPES[name.removesuffix('Storage')])


def tensor(name: str, found: View | Inside, archive: Archive) -> Tensor:
  """The tensor of a description that fits the file.

  Raises:
    UserError: it does not, naming the tensor.
  """
  try:
    return _checked_view(name, found, archive) if isinstance(found, View) else _checked_inside(found)
  except (ValueError, TypeError, OverflowError) as error:
    raise UserError(f'{archive.path}: tensor {shown(name)!r}: {error}') from None


def _whole_numbers(values: Any, what: str, least: int) -> tuple[int, ...]:
  if not isinstance(values, (tuple, list)) or len(values) > MOST_AXES:
    raise ValueError(f'its {what} is no tuple of at most {MOST_AXES} whole numbers')
  if not all(type(value) is int and least <= value < 2**63 for value in values):
    raise ValueError(f'its {what} holds something else than whole numbers from {least}')
  return tuple(values)


def _checked_view(name: str, view: View, archive: Archive) -> Tensor:
  if (lies := storage(view.storage)) is None:
    raise ValueError('its storage is not described as PyTorch does')
  key, storage_type, start = lies
  dtype = _storage_dtype(storage_type) if view.dtype is None else _own_dtype(view.dtype)
  if dtype is None:
    raise ValueError('its dtype is not known')
  (offset,) = _whole_numbers((view.offset,), 'offset', 0)
  shape, stride = _whole_numbers(view.shape, 'shape', 0), _whole_numbers(view.stride, 'stride', 0)
  if len(shape) != len(stride):
    raise ValueError(f'its shape {shape} and its stride {stride} differ in length')
  if key not in archive.blocks:
    raise ValueError(f'its storage {shown(key)!r} is missing in the file')
  block, count = archive.blocks[key], math.prod(shape)
  span = 1 + sum((size - 1) * step for size, step in zip(shape, stride)) if count else 0
  first = offset + start * (1 if view.dtype is None else 0)
  if first < 0 or (first + span) * dtype.itemsize > block.size:
    raise ValueError(f'{span} elements of {dtype} from {first} do not lie in its storage of {block.size} bytes')
  if count > max(span, LARGEST_EXPANDED):
    raise ValueError(f'it shows {span} stored elements as {count}')
  place = Place(archive.path, block, first * dtype.itemsize, span, archive.big_endian)
  return Tensor(shape, dtype, functools.partial(_read_view, name, place, shape, stride, dtype, _bits(view.bits)))


def _own_dtype(named: Any) -> np.dtype:
  """The dtype of a global such as torch.float8_e4m3fn."""
  if not isinstance(named, Global) or named.module != 'torch' or named.name not in OWN_DTYPES:
    raise ValueError(f'values of a {shown(str(named)) if isinstance(named, Global) else "strange dtype"} are not read')
  return raw.dtype_of(named.name)


def _bits(metadata: Any) -> tuple[bool, bool]:
  """Whether the values are stored conjugated, and whether with the other sign: views that torch leaves unresolved."""
  metadata = metadata if isinstance(metadata, dict) else {}
  return metadata.get('conj') is True, metadata.get('neg') is True


def _read_view(
  name: str, place: Place, shape: tuple[int, ...], stride: tuple[int, ...], dtype: np.dtype, bits: tuple[bool, bool]
) -> np.ndarray:
  try:
    stored = np.empty(place.count, dtype)
    fill(place.path, place.block, place.start, stored)
  except STRANGE as error:
    raise UserError(f'{place.path}: tensor {shown(name)!r} cannot be read: {shown(str(error))}') from None
  if place.big_endian != (sys.byteorder == 'big'):
    part = dtype.itemsize // 2 if dtype.kind == 'c' else dtype.itemsize
    stored.view(f'u{part}').byteswap(inplace=True)
  if not stored.size or _is_contiguous(shape, stride):
    values = stored.reshape(shape)
  else:
    steps = [step * dtype.itemsize for step in stride]
    values = np.lib.stride_tricks.as_strided(stored, shape, steps, writeable=False).copy(order='C')
  if bits[0]:
    np.conjugate(values, out=values)
  if bits[1]:
    np.negative(values, out=values)
  return values


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
  """Whether elements follow each other in C order; the stride of an axis of one element means nothing."""
  return all(size == 1 or step == math.prod(shape[axis + 1 :]) for axis, (size, step) in enumerate(zip(shape, stride)))


def fill(path: Path, block: Block, start: int, array: np.ndarray) -> None:
  """Reads bytes of a storage into an array's memory; checks their sum where the whole storage is read.

  Raises:
    UserError: the file cannot be opened, or ends too early.
    ValueError: the sum is another, or the archive's entry is damaged. Archives raise the other errors in `STRANGE`.
  """
  view = raw.as_bytes(array)
  with raw.open_file(path) as file:
    if block.deflated is None:
      file.seek((zips.data_start(file, block.start) if block.packed else block.start) + start)
      raw.fill(file, view, path)
      if block.crc and len(view) == block.size and zlib.crc32(view) != block.crc:
        raise ValueError('its bytes were changed: their checksum is another')
    else:
      with zipfile.ZipFile(file) as archive, archive.open(block.deflated) as entry:
        entry.seek(start)
        raw.fill(entry, view, path, at_once=2**20)


def _checked_inside(found: Inside) -> Tensor:
  shape = _whole_numbers(found.shape, 'shape', 0)
  wanted, given = math.prod(shape) * found.dtype.itemsize, _inside_data(found.data)
  if given is None or len(given) != wanted:
    raise ValueError(f'its {wanted} bytes are not in the pickle')
  dtype = found.dtype.newbyteorder('=')
  return Tensor(shape, dtype, functools.partial(_inside_values, found))


def _inside_data(data: Any) -> bytes | bytearray | str | None:
  """Bytes, or the text that stands for them in older protocols, one character per byte; None for all else."""
  if kind(data) == '_codecs.encode' and data.args:
    data = data.args[0]
  elif kind(data) in ('builtins.bytes', '__builtin__.bytes') and not data.args:
    data = b''
  return data if isinstance(data, (bytes, bytearray)) or (isinstance(data, str) and _is_latin(data)) else None


def _is_latin(text: str) -> bool:
  return text.isascii() or max(text) <= '\xff'


def _inside_values(found: Inside) -> np.ndarray:
  data = _inside_data(found.data)
  data = data.encode('latin-1') if isinstance(data, str) else data or b''
  values = np.frombuffer(data, found.dtype).reshape(found.shape, order='F' if found.fortran else 'C')
  return values.astype(found.dtype.newbyteorder('='), order='C', copy=True)
