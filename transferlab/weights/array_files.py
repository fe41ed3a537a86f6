"""Weights as JAX programs publish them: npz files, and msgpack files of Flax. Reads files.

Both hold a tree by paths joined by '/'; which of its entries are the weights is naming.py's affair. No pickle is ever
loaded. The msgpack files themselves are walked by msgpack_files.py.
"""

import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from transferlab.data.npz import open_npz
from transferlab.errors import UserError
from transferlab.weights import raw, zips
from transferlab.weights.contents import Contents, Tensor
from transferlab.weights.naming import strip_wrappers, tree_contents

FORMAT = 'npz'
# Members are inflated, and summed, in pieces of this size.
AT_ONCE = 2**20


def read(path: str | Path, part: str | None = None) -> Contents:
  """The arrays of an npz file by name; bfloat16, which NumPy saves as '|V2', is bfloat16 again.

  Args:
    part: an entry of the tree other than the weights ('ema_params'); see `naming.choose`.

  Raises:
    UserError: no such file, a damaged or truncated one, one that holds Python objects, or an unknown part.
  """
  tensors, metadata, notes = {}, {}, []
  # Checks that it is a file of this kind; nothing but its list of members is used.
  with open_npz(str(path)) as arrays:
    members = arrays.zip.infolist()
    for info in members:
      name = info.filename.removesuffix('.npy')
      if name in tensors or name in metadata:
        raise UserError(f'{path}: {name!r} stands in it twice')
      if not info.filename.endswith('.npy'):
        notes.append(f'left out, since it is no array: {info.filename}')
        continue
      found = _member(path, name, arrays.zip, info)
      if isinstance(found, Tensor):
        tensors[name] = found
      else:
        metadata[name] = found
  if not tensors:
    raise UserError(f'{path}: an npz file without arrays of numbers')
  if any('/' in name for name in tensors):
    return tree_contents(str(path), FORMAT, tensors, part, metadata, notes)
  short, note = strip_wrappers(tensors)
  renamed = {short[name]: tensor for name, tensor in tensors.items()}
  return tree_contents(str(path), FORMAT, renamed, part, metadata, [*notes, *([note] if note else [])])


def _member(path: str | Path, name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
  """An array of numbers as a `Tensor`; texts as a plain list, read at once."""
  try:
    with archive.open(info) as file:
      shape, columns_first, saved = _array_header(file)
      header = file.tell()
      if saved.kind in 'US':
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False).tolist()
  except UserError as error:
    raise UserError(f'{path}: {name!r} {error}') from None
  except Exception as error:  # a foreign file may fail in any of zipfile's, zlib's and NumPy's ways
    raise _damaged(path, name, type(error).__name__) from None
  if saved.hasobject:
    raise UserError(f'{path}: {name!r} holds Python objects (a pickle), which are never loaded')
  dtype = raw.dtype_of('bfloat16') if saved.str == '|V2' else saved
  if not raw.is_numeric(dtype):
    raise UserError(f'{path}: {name!r} has dtype {saved}, and numbers are needed')
  if min(shape, default=0) < 0 or info.file_size != header + raw.num_bytes(shape, saved):
    needed = header + raw.num_bytes(shape, saved)
    raise _damaged(path, name, f'{info.file_size} bytes are there, and {needed} should be')
  values = partial(_values, str(path), info, header, shape, dtype, columns_first)
  return Tensor(shape, dtype.newbyteorder('='), values)


def _array_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
  """(shape, whether columns come first, dtype) of an npy file at its beginning."""
  version = np.lib.format.read_magic(file)
  if version == (1, 0):
    return np.lib.format.read_array_header_1_0(file)
  if version == (2, 0):
    return np.lib.format.read_array_header_2_0(file)
  raise UserError(
    f'is written in version {version[0]}.{version[1]} of the npy format; arrays of numbers are in 1.0 or 2.0'
  )


def _values(
  path: str, info: zipfile.ZipInfo, header: int, shape: tuple[int, ...], dtype: np.dtype, columns_first: bool
) -> np.ndarray:
  """One array; its checksum is verified."""
  array = np.empty(shape[::-1] if columns_first else shape, dtype)
  stored = info.compress_type == zipfile.ZIP_STORED
  try:
    (_fill_stored if stored else _fill_inflated)(path, info, header, raw.as_bytes(array))
  except UserError:
    raise
  except Exception as error:  # as above
    raise _damaged(path, info.filename, type(error).__name__) from None
  if not array.dtype.isnative:
    array = array.byteswap(inplace=True).view(dtype.newbyteorder('='))
  return array.T if columns_first else array


def _fill_stored(path: str, info: zipfile.ZipInfo, header: int, view: memoryview) -> None:
  """Without zipfile, which reads through copies and begins with the list of all members."""
  with raw.open_file(path) as file:
    file.seek(zips.data_start(file, info.header_offset))
    checksum = zlib.crc32(file.read(header))
    raw.fill(file, view, path)
  if zlib.crc32(view, checksum) != info.CRC:
    raise _damaged(path, info.filename, 'its checksum differs')


def _fill_inflated(path: str, info: zipfile.ZipInfo, header: int, view: memoryview) -> None:
  with zipfile.ZipFile(path) as archive, archive.open(info) as file:
    file.read(header)
    raw.fill(file, view, path, AT_ONCE)
    # The checksum is compared where the end is seen.
    file.read(1)


def _damaged(path: str | Path, name: str, reason: str) -> UserError:
  return UserError(f'{path}: {name.removesuffix(".npy")!r} is damaged or cut short ({reason})')
