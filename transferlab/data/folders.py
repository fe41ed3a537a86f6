"""Photos in class folders: DIR/CLASS/FILE, or DIR/PART/CLASS/FILE with parts such as train, val and test. Reads files.

What is an image is decided by what a file holds, not by its name. Images are decoded when they are asked for
(columns.py), at one size (decoding.py).
"""

import dataclasses
import functools
import hashlib
import os
import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np

from transferlab.data import decoding
from transferlab.data.columns import Column, in_threads
from transferlab.data.examples import Examples, Info, from_arrays
from transferlab.errors import UserError, nearest

PARTS = ('train', 'training', 'test', 'testing', 'validation', 'valid', 'val', 'dev')


@dataclasses.dataclass(frozen=True)
class Images:
  """Reads image files by their number."""

  files: tuple[str, ...]
  size: tuple[int, int]
  channels: int
  resize: decoding.Resize | None

  def __call__(self, rows: np.ndarray) -> np.ndarray:
    return np.stack(in_threads(self.one, rows.tolist()))

  def one(self, row: int) -> np.ndarray:
    """[height, width, channels]."""
    file = self.files[row]
    try:
      data = Path(file).read_bytes()
    except OSError as error:
      raise UserError(f'{file} can no longer be read ({error.strerror})') from None
    image = decoding.read_image(data, self.channels, self.resize, file)
    if image.shape[:2] != self.size:
      raise UserError(f'{file} is no longer {self.size[0]}×{self.size[1]}, as it was when the folder was read')
    return image


def read_folder(
  place: str, resize: decoding.Resize | None, channels: int | None, corrupt: Literal['refuse', 'skip']
) -> Examples:
  """The photos of a folder, uint8 [N, height, width, channels], read when asked for.

  Every file is looked through once: so damaged ones are known by name, and the contents have a digest.

  Args:
    resize: None where all images have one size.
    channels: 1 or 3; None: 3 if any image has colours.
    corrupt: what becomes of files that are damaged or no images.

  Raises:
    UserError: no such folder, no classes or images in it, images that cannot be read, or of different sizes.
  """
  root = Path(place)
  parts = _parts(root, place)
  classes = tuple(sorted({_name(folder) for part in parts.values() for folder in _folders(part)}))
  files: list[Path] = []
  labels: list[int] = []
  rows = {}
  for name, part in parts.items():
    found = sorted((classes.index(_name(folder)), file) for folder in _folders(part) for file in _files(folder))
    rows[name] = np.arange(len(files), len(files) + len(found))
    files += [file for _, file in found]
    labels += [number for number, _ in found]
  looks = in_threads(functools.partial(_look, whole=resize is None), files)
  good = np.array([look.fault is None for look in looks], bool)
  notes = _judge(files, looks, corrupt, place)
  kept = np.flatnonzero(good)
  channels = channels or (3 if any(looks[row].colour for row in kept) else 1)
  label = np.array(labels, np.int32)
  _check_classes(classes, label[kept], {name: np.intersect1d(part, kept) for name, part in rows.items()}, label, place)
  shape = _one_size([looks[row] for row in kept], [files[row] for row in kept], resize)
  digest = hashlib.blake2b(repr((shape, channels, resize)).encode(), digest_size=16)
  for row in kept:
    digest.update(looks[row].digest)
  read = Images(tuple(str(files[row]) for row in kept), shape, channels, resize)
  x = Column(read, np.arange(len(kept)), (*shape, channels), np.uint8, digest.hexdigest())
  info = Info('image', 'classification', classes, high=255.0, origin=f'folder {root.name}', file=place, notes=notes)
  place_of = np.cumsum(good) - 1
  official = {name: place_of[np.intersect1d(part, kept)] for name, part in rows.items()} if len(parts) > 1 else None
  return from_arrays(x, label[kept], info, official)


@dataclasses.dataclass(frozen=True)
class _Look:
  """What one look at a file tells; the size only of images that were decoded whole."""

  fault: str | None
  digest: bytes = b''
  size: tuple[int, int] = (0, 0)
  colour: bool = False


def _look(file: Path, whole: bool) -> _Look:
  try:
    data = file.read_bytes()
  except OSError as error:
    return _Look(f'cannot be read ({error.strerror})')
  if fault := decoding.fault(data):
    return _Look(fault)
  image = decoding.decode(data, 3, None if whole else (1, 1))
  if image is None:
    return _Look('cannot be decoded: it is damaged, or of a kind that OpenCV does not read')
  digest = hashlib.blake2b(data, digest_size=16).digest()
  return _Look(None, digest, image.shape[:2], bool((image[..., :1] != image[..., 1:]).any()))


def _folders(place: Path) -> list[Path]:
  try:
    return sorted(found for found in place.iterdir() if found.is_dir() and not found.name.startswith('.'))
  except OSError as error:
    raise _unreadable(error) from None


def _unreadable(error: OSError) -> UserError:
  return UserError(f'the folder {error.filename} cannot be read ({error.strerror})')


def _name(folder: Path) -> str:
  """A class's name, the same however a file system writes its accents."""
  return unicodedata.normalize('NFC', os.fsencode(folder.name).decode(errors='replace'))


def _files(place: Path) -> list[Path]:
  """Everything in a class folder, at any depth, in an order that does not depend on the file system.

  Links are followed, though no folder is entered twice; those that lead nowhere are listed, to be reported.
  """

  def refuse(error: OSError) -> None:
    raise _unreadable(error)

  files, entered = [], set()
  for folder, inside, names in os.walk(place, onerror=refuse, followlinks=True):
    real = os.path.realpath(folder)
    inside[:] = [] if real in entered else [name for name in sorted(inside) if not name.startswith('.')]
    if real not in entered:
      files += [Path(folder, name) for name in names if not name.startswith('.')]
    entered.add(real)
  return sorted(file for file in files if os.path.isfile(file) or not os.path.exists(file))


def _parts(root: Path, place: str) -> dict[str, Path]:
  """Where the class folders of each part stand."""
  if os.path.isfile(root):
    raise UserError(f'{place} is a file; needed: a folder {root.parent}/CLASS/FILE or {root.parent}/PART/CLASS/FILE')
  if not os.path.isdir(root):
    above = next(folder for folder in root.absolute().parents if os.path.isdir(folder))
    missing = root.absolute().relative_to(above).parts[0]
    near = nearest(missing, [folder.name for folder in _folders(above)])
    raise UserError(f'no folder {place!r}; nearest in {str(above)!r}: {", ".join(near) or "no folder at all"}')
  inside = _folders(root)
  if not inside:
    raise UserError(f'{place} holds no class folders; needed: {place}/CLASS/FILE or {place}/PART/CLASS/FILE')
  named = [folder for folder in inside if folder.name.lower() in PARTS and _folders(folder)]
  if not named:
    return {'all': root}
  names = [folder.name for folder in named]
  if len(named) < len(inside):
    odd = next(folder.name for folder in inside if folder not in named)
    raise UserError(f'{place} holds parts ({", ".join(names)}) beside a folder {odd!r}')
  if len({name.lower() for name in names}) < len(names):
    raise UserError(f'{place} holds parts whose names differ in capitals only ({", ".join(names)})')
  return {folder.name.lower(): folder for folder in named}


def _judge(files: list[Path], looks: list[_Look], corrupt: str, place: str) -> tuple[str, ...]:
  """Notes on files that are skipped. Raises `UserError` where they are refused, or nothing is left."""
  faults = [f'{file} {look.fault}' for file, look in zip(files, looks) if look.fault]
  if len(faults) == len(files):
    raise UserError(f'{place}: no image in any class folder' + (f' ({faults[0]})' if faults else ''))
  if faults and corrupt == 'refuse':
    more = f' (and {len(faults) - 1} more)' if len(faults) > 1 else ''
    raise UserError(f"{faults[0]}{more}; data.corrupt='skip' leaves such files out")
  return tuple(f'skipped: {fault}' for fault in faults)


def _check_classes(
  classes: tuple[str, ...], kept: np.ndarray, parts: dict[str, np.ndarray], label: np.ndarray, place: str
) -> None:
  if len(classes) < 2:
    raise UserError(f'{place} has one class folder ({classes[0]!r}), so there is nothing to tell apart')
  for number, name in enumerate(classes):
    count = int((kept == number).sum())
    if not count:
      raise UserError(f'{place}: class folder {name!r} holds no image')
    if len(parts) == 1 and count == 1:
      raise UserError(f'{place}: class {name!r} has one image, which cannot be both trained and tested on')
  first = next((part for part in ('train', 'training') if part in parts), None)
  if first is None:
    return
  for number in sorted(set(kept.tolist()) - set(label[parts[first]].tolist())):
    where = next(part for part, rows in parts.items() if number in label[rows])
    raise UserError(f'{place}: class {classes[number]!r} occurs in {where!r} and never in {first!r}')


def _one_size(looks: list[_Look], files: list[Path], resize: decoding.Resize | None) -> tuple[int, int]:
  if resize is not None:
    return resize.sides
  for look, file in zip(looks, files):
    if look.size != looks[0].size:
      pair = ((looks[0], files[0]), (look, file))
      sizes = ' and '.join(f'{each.size[0]}×{each.size[1]} ({name.name})' for each, name in pair)
      raise UserError(f'the images differ in size: {sizes}; set data.resize, for example resize=dict(size=224)')
  return looks[0].size
