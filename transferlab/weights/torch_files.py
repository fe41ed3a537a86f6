"""Reads PyTorch's files (.pt, .pth, .th, .bin) without torch, and without running anything that stands in them.

Both formats are read: the zip archive, and the one before torch 1.6. Here is where a file keeps its pickle and its
storages; what the pickle means is said in torch_tensors.py, and what of it is wanted in torch_parts.py. Reads files.
"""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np

from transferlab.errors import UserError
from transferlab.weights import pickles, raw, torch_parts, torch_tensors
from transferlab.weights.contents import Contents
from transferlab.weights.torch_parts import shown
from transferlab.weights.torch_tensors import STRANGE, Archive, Block

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
LARGEST_DEFLATED_PICKLE = 2**26


def recognises(head: bytes) -> bool:
  """Whether a file begins (64 bytes are enough) as PyTorch wrote before 1.6, when no zip archive was used."""
  return b'\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.' in head[:32] or head.startswith(b'L%dL\n.' % MAGIC)


def is_torch(path: str | Path) -> bool:
  """Whether a file is PyTorch's, of either format; False for what cannot be opened."""
  try:
    with open(path, 'rb') as file:
      head = file.read(64)
    if not head.startswith(b'PK'):
      return recognises(head)
    with zipfile.ZipFile(path) as archive:
      return _root(archive.namelist()) is not None
  except STRANGE:
    return False


def read(path: str | Path, part: str | None = None) -> Contents:
  """The weights of a file that torch.save wrote: a state dict, a checkpoint around one, or a whole module.

  Args:
    part: the entry to take them from ('ema', 'model.state_dict'); by default the network's own.

  Raises:
    UserError: the file cannot be read, is damaged or none of PyTorch's, holds no tensors, or not that part; a tensor
      that the file describes wrongly.
  """
  path = Path(path)
  archive = _open(path)
  chosen = torch_parts.select(archive.value, torch_tensors.leaf, str(path), part)
  tensors = {name: torch_tensors.tensor(name, leaf, archive) for name, leaf in chosen.tensors.items()}
  return Contents(str(path), 'PyTorch', tensors, chosen.part, chosen.others, chosen.metadata, chosen.notes)


def _open(path: Path) -> Archive:
  with raw.open_file(path) as file:
    head = file.read(512)
    size = file.seek(0, io.SEEK_END)
  if not head:
    raise UserError(f'{path} is empty')
  if head[257:262] == b'ustar':
    raise UserError(
      f'{path} was written by a PyTorch before 0.1.10; load and save it once with one between 0.2 and 1.5'
    )
  if not head.startswith(b'PK') and not recognises(head):
    what = 'a pickle, but not of torch.save' if head[:1] == b'\x80' else 'neither a zip archive nor a pickle of its own'
    raise UserError(f'{path} is no file of PyTorch, or is damaged: it is {what}')
  try:
    return _open_zip(path) if head.startswith(b'PK') else _open_legacy(path, size)
  except STRANGE as error:
    raise UserError(
      f'{path} is damaged, cut short, or no file of PyTorch: {shown(str(error)) or type(error).__name__}'
    ) from None


def _root(names: list[str]) -> str | None:
  """The folder of a zip archive that holds everything, with its '/'."""
  return next((n.removesuffix('data.pkl') for n in names if n.endswith('/data.pkl') and n.count('/') == 1), None)


def _open_zip(path: Path) -> Archive:
  with zipfile.ZipFile(path) as archive:
    infos = {info.filename: info for info in archive.infolist()}
  root = _root(list(infos))
  if root is None:
    older = any(name.endswith('/model.json') for name in infos)
    what = 'TorchScript from before PyTorch 1.4' if older else 'a zip archive without data.pkl, so not of torch.save'
    raise UserError(f'{path} is {what}')
  if any(info.flag_bits & 1 for info in infos.values()):
    raise UserError(f'{path} is encrypted')
  blocks = {name.removeprefix(root): _block(info) for name, info in infos.items() if name.startswith(root)}
  value = pickles.load(io.BytesIO(_record(path, 'data.pkl', blocks)), blocks['data.pkl'].size).value
  order = _record(path, 'byteorder', blocks) if 'byteorder' in blocks else b'little'
  if order not in (b'little', b'big'):
    raise ValueError('its byteorder is neither little nor big')
  data = {name.removeprefix('data/'): block for name, block in blocks.items() if name.startswith('data/')}
  return Archive(path, value, data, order == b'big')


def _block(info: zipfile.ZipInfo) -> Block:
  deflated = None if info.compress_type == zipfile.ZIP_STORED else info.filename
  return Block(info.header_offset, info.file_size, True, deflated, info.CRC)


def _record(path: Path, name: str, blocks: dict[str, Block]) -> memoryview:
  """All bytes of a small entry of a zip archive."""
  block = blocks[name]
  if block.size > (LARGEST_DEFLATED_PICKLE if block.deflated else path.stat().st_size):
    raise ValueError(f'{name} says that it holds {block.size} bytes')
  whole = np.empty(block.size, np.uint8)
  torch_tensors.fill(path, block, 0, whole)
  return raw.as_bytes(whole)


def _open_legacy(path: Path, size: int) -> Archive:
  """Pickles of a magic number, a protocol, the writer's machine, the object, and keys; then the storages.

  Storages are little-endian on every machine: PyTorch turned them when it wrote on another.
  """
  with open(path, 'rb') as file:
    magic, protocol, _ = (pickles.load(file, size).value for _ in range(3))
    if magic != MAGIC or protocol != PROTOCOL:
      raise ValueError(f'protocol {PROTOCOL} was expected')
    found = pickles.load(file, size)
    keys = pickles.load(file, size).value
    itemsizes = {}
    for record in found.persistent:
      if (storage := torch_tensors.storage(record)) is not None:
        itemsizes[storage[0]] = torch_tensors.itemsize(storage[1])
    blocks = {}
    for key in keys if isinstance(keys, list) else ():
      if not isinstance(key, str):  # to hash a deep tuple overflows C's stack
        raise ValueError('the key of a storage is no text')
      count, start = struct.unpack('<q', file.read(8))[0], file.tell()
      length = count * itemsizes[key]
      if length < 0 or start + length > size:
        raise ValueError(f'a storage of {length} bytes begins at byte {start} of {size}')
      blocks[key] = Block(start, length)
      file.seek(start + length)
  return Archive(path, found.value, blocks)
