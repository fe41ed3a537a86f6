"""The door to foreign weights: any file, folder or name on the hub, opened by the reader of its format. Reads files.

    from transferlab.weights import readers
    readers.read('resnet.pth')['conv1.weight']

What a file is, its contents decide and never its name alone. The formats themselves are read by the files beside this
one; whose names stand for what is mapping.py's affair.
"""

import codecs
import dataclasses
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transferlab.errors import UserError, nearest
from transferlab.weights import (
  array_files,
  folders,
  hub,
  keras_files,
  msgpack_files,
  raw,
  safetensors_files,
  shards,
  torch_files,
  vector_files,
)
from transferlab.weights.contents import Contents

FORMATS = 'PyTorch, safetensors, Keras (.h5, .weights.h5, .keras), npz, Flax msgpack, orbax, vectors of words as text'
Reader = Callable[[Path, str | None], Contents]
SHARD = re.compile(r'.*-(\d+)-of-(\d+)\.\w+')
HDF5, ZIP = b'\x89HDF\r\n\x1a\n', (b'PK\3\4', b'PK\5\6')
# What people take for weights, by how it begins.
ELSE = {
  b'version https://git-lfs': 'it is a pointer of git-lfs, and the weights were not fetched (git lfs pull)',
  b'\x93NUMPY': 'it is one bare NumPy array; write several with numpy.savez',
  b'GGUF': 'it is a GGUF file of llama.cpp',
  b'\x1f\x8b': 'it is compressed with gzip; unpack it first',
  b'\xfd7zXZ': 'it is compressed with xz; unpack it first',
}


def read(spec: str | Path, part: str | None = None) -> Contents:
  """The arrays of a file by name, read one by one as they are asked for.

  Args:
    spec: a file, an index of shards, a folder, or `hf:ORG/NAME[@REVISION][/FILE]`.
    part: another entry of the file than its weights ('ema', 'optimizer'); `Contents.others` lists them.

  Raises:
    UserError: nothing there, a file of no known format, a damaged one, or an unknown part.
  """
  named = str(spec)
  fetched = hub.fetch(named) if named.startswith(hub.PREFIX) else None
  path = fetched.path if fetched else Path(os.path.expanduser(named))
  try:
    found = _opened(path, part, named)
    metadata, notes = (fetched.metadata, fetched.notes) if fetched else _beside(path)
  except OSError as error:  # no right to read, a broken disk, a name that is too long
    raise UserError(f'{named} cannot be read ({error.strerror or type(error).__name__})') from None
  return dataclasses.replace(found, metadata={**found.metadata, **metadata}, notes=(*found.notes, *notes))


def _beside(path: Path) -> tuple[dict[str, Any], list[str]]:
  """The records that lie beside weights whose name is one that hubs use."""
  folder = path if path.is_dir() else path.parent
  names = [child.name for child in folder.iterdir()]
  found = folders.weights_among(names) if path.is_dir() else [path.name]
  if not set(found) & set(folders.NAMES):
    return {}, []
  return folders.records({name: (folder / name).read_bytes for name in names})


def _opened(path: Path, part: str | None, named: str) -> Contents:
  if path.is_dir():
    return _folder(path, part, named)
  if not path.is_file():
    raise _missing(path)
  index = shards.index_of(path)
  if index is None:
    found, shard = _reader(path)(path, part), SHARD.fullmatch(path.name)
    alone = (f'one shard of {int(shard[2])}, read alone: no index lies beside it',) if shard else ()
    return dataclasses.replace(found, file=named, notes=(*found.notes, *alone))
  if part is not None:
    raise UserError(f'{path}: weights in shards have no parts, so there is no part {part!r}')
  return shards.read(index, _shard, named)


def _shard(path: Path) -> Contents:
  reader = _reader(path)
  return safetensors_files.as_written(path) if reader is safetensors_files.read else reader(path, None)


def _folder(folder: Path, part: str | None, named: str) -> Contents:
  """The weights in a folder: a checkpoint of orbax, one of ours, or the file that `folders` chooses."""
  from transferlab.weights import orbax_files

  # First, for a run of ours may hold exported files beside its checkpoints.
  if orbax_files.is_orbax(folder):
    return dataclasses.replace(orbax_files.read(folder, part), file=named)
  files = folders.weights_among([child.name for child in folder.iterdir() if child.is_file()])
  if len(files) == 1:
    return _opened(folder / files[0], part, os.path.join(named, files[0]))
  if files:
    raise UserError(f'{folder} holds several files of weights; name one of them: {", ".join(files[:8])}')
  raise UserError(f'{folder} holds no complete checkpoint of a run, and no weights of a known format ({FORMATS})')


def _reader(path: Path) -> Reader:
  """The reader of a file's format. Raises `UserError` where there is none."""
  with raw.open_file(path) as file:
    start = file.read(512)
  if not start:
    raise UserError(f'{path} is empty')
  if start.startswith(ZIP):
    return _archive(path)
  if start.startswith(HDF5):
    return keras_files.read
  if safetensors_files.is_safetensors(path):
    return safetensors_files.read
  if torch_files.is_torch(path):
    return torch_files.read
  if msgpack_files.is_msgpack(path):
    return msgpack_files.read
  if keras_files.is_keras(path):  # an HDF5 file behind a block of the user's own, or an index of several
    return keras_files.read
  if vector_files.is_vectors(path):
    return vector_files.read
  raise UserError(f'{path} is a file of no known format{_guess(start)}; read are {FORMATS}')


def _archive(path: Path) -> Reader:
  """The reader of a zip archive, by its members."""
  try:
    with zipfile.ZipFile(path) as archive:
      members = archive.namelist()
  except Exception as error:  # zipfile raises more than BadZipFile on foreign bytes
    what = f'is a zip archive (PyTorch, npz or Keras) that is damaged or cut short ({type(error).__name__})'
    raise UserError(f'{path} {what}') from None
  if keras_files.is_keras(path):
    return keras_files.read
  if any(name.split('/')[-1] == 'data.pkl' for name in members):
    return torch_files.read
  if any(name.endswith('.npy') for name in members):
    return array_files.read
  shown = ', '.join(members[:8]) or 'nothing'
  raise UserError(f'{path} is a zip archive of no known format; it holds {shown}; read are {FORMATS}')


def _guess(start: bytes) -> str:
  """What a file is that holds no weights, where its beginning says so."""
  for beginning, what in ELSE.items():
    if start.startswith(beginning):
      return f': {what}'
  if start[257:262] == b'ustar':
    return ': it is a tar archive; unpack it first'
  if re.match(rb'\s*<(!doctype|html|\?xml)', start, re.IGNORECASE):
    return ': it is a web page, perhaps what a download answered instead of the file'
  try:
    text = codecs.getincrementaldecoder('utf-8')().decode(start)  # the last character may be cut
  except UnicodeDecodeError:
    return ''
  return '' if re.search(r'[\x00-\x08\x0e-\x1f]', text) else f': it is text, beginning {text[:40]!r}'


def _missing(path: Path) -> UserError:
  """The error for a file that does not exist."""
  if not path.parent.is_dir():
    return UserError(f'no file {str(path)!r}: there is no folder {str(path.parent)!r}')
  near = nearest(path.name, sorted(child.name for child in path.parent.iterdir()))
  return UserError(f'no file {str(path)!r}; nearest in {str(path.parent)!r}: {", ".join(near) or "it is empty"}')
