"""Reads Keras files without Keras: .h5 of weights and of models, .weights.h5, its shards, and .keras. Reads files.

Names, shapes and dtypes come first, values when they are asked for; the file is open only meanwhile. A configuration
is data: nothing in it is built, and links that lead out of the file are refused. Naming is keras_names.py's.
"""

import contextlib
import dataclasses
import functools
import json
import math
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transferlab.errors import UserError, nearest, unknown
from transferlab.weights import keras_names, zips
from transferlab.weights.contents import Contents, Tensor
from transferlab.weights.keras_names import Named, Stored

_WEIGHTS, _CONFIG, _METADATA = 'model.weights.h5', 'config.json', 'metadata.json'
_INDEX = '.weights.json'
# Attributes of a whole model that say more than a report has room for.
_LARGE = ('model_config', 'training_config')
# What a convolution calls its kernel, also where the rest of the name could not be made out.
_KERNEL = re.compile(r'(^|/)(recurrent_)?kernel(_\d+)?(:\d+)?$')
# A file that declares more than this, and this many times what it stores, would fill the memory with nothing.
_BOMB, _EXPANSION = 1 << 32, 1000


@dataclasses.dataclass(frozen=True, eq=False)
class _Source:
  """An HDF5 file: what messages call it, and how it is opened, each time anew."""

  label: str
  open: Callable[[], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class _Model:
  """What a file holds: its parts by name, the first of which is the model's."""

  parts: dict[str, list[Named]]
  config: Any = None
  metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()


def is_keras(path: Path) -> bool:
  """Whether this is an HDF5 file, a .keras archive, or the index of a sharded .weights.h5, going by its contents."""
  if not path.is_file():
    return False
  if path.name.endswith(_INDEX) or _is_hdf5(path):
    return True
  try:
    with zipfile.ZipFile(path) as archive:
      names = archive.namelist()
  except Exception:  # whatever zipfile says of a file that is none
    return False
  return _CONFIG in names and any(name.startswith('model.weights.') for name in names)


def read(path: Path, part: str | None = None) -> Contents:
  """The weights of a Keras file, `LAYER/WEIGHT` each, in the order of the model's layers; nothing of it is run.

  Args:
    part: another entry than the model's weights: 'optimizer_weights' of an .h5, 'optimizer' of the newer formats.

  Raises:
    UserError: no such file, one that is damaged, cut short or of another kind, one that refers to other files, or
      no such part.
  """
  if not path.is_file():
    raise UserError(f'no file {str(path)!r}')
  with _damage(str(path)):
    if path.name.endswith(_INDEX):
      model = _sharded(path)
    elif zipfile.is_zipfile(path) and not _is_hdf5(path):
      model = _archived(path)
    else:
      model = _hdf5(_Source(str(path), functools.partial(_opened, path)))
    parts = {name: keras_names.unique(named) for name, named in model.parts.items() if named}
    main = next(iter(model.parts))
    if not parts.get(main):
      raise UserError(f'{path} holds Keras layers, but none that has weights')
    chosen = part or main
    if chosen not in parts:
      raise unknown(f'part of {path}', chosen, parts)
    metadata = model.metadata | _described(model.config)
  return Contents(
    file=str(path),
    format='Keras',
    tensors=parts[chosen],
    part=chosen if len(parts) > 1 else None,
    others={name: len(tensors) for name, tensors in parts.items() if name != chosen},
    metadata=metadata,
    notes=model.notes,
  )


@contextlib.contextmanager
def _damage(label: str) -> Iterator[None]:
  """Turns what a foreign or damaged file does to h5py, zipfile and json into one message."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # HDF5 alone raises OSError, RuntimeError, KeyError, ValueError and more
    reason = ' '.join(str(error).split())[:120]
    raise UserError(f'{label} is damaged, cut short or no Keras file ({type(error).__name__}: {reason})') from None


def _described(config: Any) -> dict[str, Any]:
  """What a configuration says of the model's layers."""
  records = keras_names.layer_records(config)
  formats = [record['config'].get('data_format') for record in records]
  found: dict[str, Any] = {'layers': records} if records else {}
  return found | next(({'image_data_format': name} for name in formats if isinstance(name, str)), {})


# ---------------------------------------------------------------------------------------------- files


def _is_hdf5(path: Path) -> bool:
  import h5py

  return bool(h5py.is_hdf5(path))


def _opened(path: Path) -> Any:
  """The file for reading; locks are not insisted on, as read-only file systems may have none."""
  import h5py

  return h5py.File(path, 'r', locking='best-effort')


@contextlib.contextmanager
def _inside(path: Path, start: int, size: int) -> Iterator[Any]:
  import h5py

  with path.open('rb', buffering=0) as file, h5py.File(zips.Window(file, start, size), 'r') as opened:
    yield opened


def _archived(path: Path) -> _Model:
  """A .keras archive; its weights are read in place, unless somebody has compressed them."""
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    if _WEIGHTS not in names:
      kind = 'weights of another format than HDF5' if 'model.weights.npz' in names else 'no weights'
      raise UserError(f'{path} holds {kind}; save the model as .keras with h5 weights, or its weights as .weights.h5')
    info = archive.getinfo(_WEIGHTS)
    config, metadata = (_json(archive, name, path) if name in names else None for name in (_CONFIG, _METADATA))
    opener = _stretch(path, info) if info.compress_type == zipfile.ZIP_STORED else _unpacked(archive, info, path)
  model = _hdf5(_Source(f'{path} ({_WEIGHTS})', opener), config)
  version = metadata.get('keras_version') if isinstance(metadata, dict) else None
  known = {'keras_version': version} if isinstance(version, str) else {}
  return dataclasses.replace(model, config=config, metadata=known | model.metadata)


def _json(archive: zipfile.ZipFile, name: str, path: Path) -> Any:
  if archive.getinfo(name).file_size > 1 << 28:
    raise UserError(f'{path}: {name} is larger than any configuration')
  return json.loads(archive.read(name))


def _stretch(path: Path, info: zipfile.ZipInfo) -> Callable[[], Any]:
  """Opens a member that is stored as it is, where it lies."""
  with path.open('rb') as file:
    start = zips.data_start(file, info.header_offset)
  return functools.partial(_inside, path, start, info.file_size)


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Callable[[], Any]:
  """Opens a compressed member: a copy in the temporary folder, gone with the last tensor that refers to it."""
  import h5py

  if info.file_size > _BOMB and info.file_size > _EXPANSION / 10 * info.compress_size:
    raise UserError(f'{path}: {info.filename} claims {info.file_size} bytes of the {info.compress_size} stored')
  copy = tempfile.TemporaryFile()  # noqa: SIM115 it lives as long as the tensors
  with archive.open(info) as member:
    shutil.copyfileobj(member, copy)
  return functools.partial(h5py.File, copy, 'r')


def _sharded(path: Path) -> _Model:
  """The shards that an index names, which lie beside it."""
  index = json.loads(path.read_text())
  listed = index.get('weight_map') if isinstance(index, dict) else None
  if not isinstance(listed, dict) or not listed:
    raise UserError(f'{path} is no index of Keras weights: it has no weight_map')
  files = {name: None for value in listed.values() for name in (value if isinstance(value, list) else [value])}
  stored: list[Stored] = []
  for number, name in enumerate(files):
    if not isinstance(name, str) or Path(name).name != name:
      raise UserError(f'{path} names a shard {name!r}, which is no file beside it')
    shard = path.with_name(name)
    if not shard.is_file():
      near = nearest(name, sorted(found.name for found in path.parent.glob('*.h5')))
      raise UserError(
        f'{path} names a shard {name!r}, which is missing; nearest beside it: {", ".join(near) or "none"}'
      )
    source = _Source(str(shard), functools.partial(_opened, shard))
    with _damage(str(shard)), source.open() as file:
      stored.extend(_stored(source, file, number))
  parts, notes = keras_names.stored_names(stored, None)
  return _Model(parts, notes=tuple(notes))


def _hdf5(source: _Source, config: Any = None) -> _Model:
  """Any of the three layouts of an HDF5 file of Keras."""
  with _damage(source.label), source.open() as file:
    group = _member(source, file, 'model_weights') if 'model_weights' in file else file
    if _texts(group, 'layer_names') is not None:
      return _legacy(source, file, group)
    stored = list(_stored(source, file))
    if not any(item.variables for item in stored):
      held = ', '.join(list(file)[:8]) or 'nothing'
      raise UserError(f'{source.label} is an HDF5 file that holds no Keras layers; it holds: {held}')
    parts, notes = keras_names.stored_names(stored, config)
    return _Model(parts, config, notes=tuple(notes))


# ---------------------------------------------------------------------------------------------- contents


def _texts(group: Any, name: str) -> list[str] | None:
  """A list of names among a group's attributes, which Keras cuts into chunks where it is long; None without one."""
  chunks = [name] if name in group.attrs else []
  while chunks[:1] != [name] and f'{name}{len(chunks)}' in group.attrs:
    chunks.append(f'{name}{len(chunks)}')
  if not chunks:
    return None
  values = [value for chunk in chunks for value in np.atleast_1d(group.attrs[chunk])]
  return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _plain(group: Any, name: str) -> str | None:
  value = group.attrs.get(name)
  value = value.decode() if isinstance(value, bytes) else value
  return value if isinstance(value, str) else None


def _legacy(source: _Source, file: Any, group: Any) -> _Model:
  """Layers by name, and by name the weights of each."""
  text = _plain(file, 'model_config')
  config = json.loads(text) if text else None
  entries = {keras_names.name_of(entry): entry for entry in keras_names.sublayers(config)}
  named: list[Named] = []
  holders: set[str] = set()
  own = [] if 'top_level_model_weights' not in group else ['top_level_model_weights']
  for layer in [*(_texts(group, 'layer_names') or []), *own]:
    folder = _member(source, group, layer)
    weights = _texts(folder, 'weight_names') or []
    names = keras_names.legacy_names(layer, weights, entries.get(layer)) if layer not in own else weights
    for name, weight in zip(names, weights):
      named.extend(_named(source, folder, name, weight))
      holders.add(layer)
  notes = []
  if len(holders) == 1 and keras_names.sublayers(entries.get(*holders)):
    named, note = keras_names.without_wrapper(named, *holders)
    notes.append(note)
  found = {
    key: text for place in (group, file) for key in place.attrs if (text := _plain(place, key)) and key not in _LARGE
  }
  if found.get('backend') == 'theano':
    named, note = _turned(source, named, found)
    notes.append(note)
  whole = group is not file
  parts = {'model_weights' if whole else 'weights': named}
  if whole and 'optimizer_weights' in file:
    folder = _member(source, file, 'optimizer_weights')
    weights = _texts(folder, 'weight_names') or []
    parts['optimizer_weights'] = [item for weight in weights for item in _named(source, folder, weight, weight)]
  return _Model(parts, config, found, tuple(notes))


def _turned(source: _Source, named: list[Named], said: dict[str, str]) -> tuple[list[Named], str]:
  """The weights of a Theano model as others need them, and a note: its convolution turns a kernel by 180 degrees.

  As Keras 2 loads such files: all axes but those of the channels are reversed. Depthwise kernels stay, which Keras'
  Theano backend turned itself before it used them.
  """
  if not said.get('keras_version', '1').startswith('2'):
    raise UserError(f'{source.label} was written by Keras 1 with Theano; load and save it once with Keras 2')
  kernels = [item for item in named if _KERNEL.search(item.name)]
  if unclear := [item.name for item in kernels if len(item.tensor.shape) == 3]:
    what = 'a kernel of three axes, which is turned by 180 degrees in Conv1D and is not in LocallyConnected'
    raise UserError(f'{source.label} was written with Theano and holds {unclear[0]!r}, {what}; save it with TensorFlow')
  turning = {item.name for item in kernels if len(item.tensor.shape) in (4, 5)}
  turn = lambda tensor: dataclasses.replace(tensor, read=functools.partial(_read_turned, tensor))
  found = [dataclasses.replace(item, tensor=turn(item.tensor)) if item.name in turning else item for item in named]
  return found, f'written with the Theano backend: its {len(turning)} convolution kernels were turned by 180 degrees'


def _read_turned(tensor: Tensor) -> np.ndarray:
  return np.ascontiguousarray(np.flip(tensor.read(), tuple(range(len(tensor.shape) - 2))))


def _named(source: _Source, folder: Any, name: str, weight: str) -> list[Named]:
  dataset = _member(source, folder, weight)
  tensor = _tensor(source, dataset)
  return [Named(name, dataset.name.strip('/'), tensor)] if tensor else []


def _stored(source: _Source, file: Any, shard: int = 0) -> Iterator[Stored]:
  """The variables of every object of a Keras 3 file."""
  import h5py

  seen = set()
  waiting = [((), file)]
  while waiting:
    path, group = waiting.pop()
    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
      raise UserError(f'{source.label} holds the group {group.name} twice, or within itself')
    seen.add(address)
    for key in group:
      child = _member(source, group, key)
      if isinstance(child, h5py.Dataset):
        continue
      if key != 'vars':
        # Early files of Windows join the parts of a path with its own separator.
        waiting.append(((*path, *key.split('\\')), child))
        continue
      datasets = {name: _member(source, child, name) for name in child}
      tensors = {name: _tensor(source, dataset) for name, dataset in datasets.items()}
      variables = {name: tensor for name, tensor in tensors.items() if tensor}
      # Writing moves the end of the file: a gap may be filled later, but what lies furthest tells the order.
      place = max(h5py.h5o.get_info(held.id).addr for held in (group, child, *datasets.values()))
      place = max(place, *(dataset.id.get_offset() or 0 for dataset in datasets.values()), 0)
      yield Stored(path, _plain(child, 'name'), variables, (shard, place))


def _member(source: _Source, group: Any, path: str) -> Any:
  """The object at a path, none of whose parts is a link to elsewhere: a file of weights reads no other file."""
  import h5py

  for name in filter(None, path.split('/')):
    link = group.get(name, getlink=True) if isinstance(group, h5py.Group) and name in group else None
    if isinstance(link, h5py.SoftLink | h5py.ExternalLink):
      raise UserError(f'{source.label}: {path!r} is a link to elsewhere, and links are not followed')
    if link is None:
      raise UserError(f'{source.label} is damaged: it lists {path!r}, but does not hold it')
    group = group[name]
  return group


def _tensor(source: _Source, dataset: Any) -> Tensor | None:
  """The dataset, not read yet; None where it holds text or the like, and no numbers."""
  import h5py
  import ml_dtypes

  if not isinstance(dataset, h5py.Dataset):
    raise UserError(f'{source.label} is damaged: {dataset.name!r} is a group, and should be an array')
  if dataset.external or dataset.is_virtual:
    raise UserError(f'{source.label}: {dataset.name!r} keeps its values in other files, which are not read')
  dtype = dataset.dtype.newbyteorder('=')
  if dtype.kind == 'V' and dtype.itemsize == 2 and not dtype.names:
    dtype = np.dtype(ml_dtypes.bfloat16)  # which HDF5 does not know; Keras stores bare pairs of bytes
  elif dtype.kind not in 'biufc':
    return None
  if dataset.shape is None:
    return None
  size, held = math.prod(dataset.shape) * dtype.itemsize, dataset.id.get_storage_size()
  if size > _BOMB and size > _EXPANSION * held:
    raise UserError(f'{source.label}: {dataset.name!r} claims {size} bytes of the {held} that are stored')
  return Tensor(dataset.shape, dtype, functools.partial(_values, source, dataset.name, dataset.shape, dtype))


def _values(source: _Source, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """The array of a dataset, straight into its own memory."""
  with _damage(source.label), source.open() as file:
    dataset = _member(source, file, name)
    again = _tensor(source, dataset)
    if again is None or again.shape != shape or again.dtype != dtype:
      raise UserError(f'{source.label} has changed since its names were read: {name!r}')
    values = np.empty(shape, dtype)
    dataset.read_direct(values.view(f'V{dtype.itemsize}') if dtype.kind == 'V' else values)
    return values
