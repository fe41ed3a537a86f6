"""Weights in several files with an index beside them (`*.index.json`, as large ones are published). Reads files.

What a shard holds is the affair of its format: the reader of one file is given.
"""

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from transferlab.errors import UserError, nearest
from transferlab.weights.contents import Contents, Tensor
from transferlab.weights.naming import strip_wrappers

SUFFIX = '.index.json'


def index_of(path: Path) -> Path | None:
  """The index by which a file is read: itself, or the one beside it that names it as a shard; None without one."""
  if path.name.endswith(SUFFIX):
    return path
  for index in sorted(path.parent.glob(f'*{SUFFIX}')):
    try:
      if path.name in names(index):
        return index
    except UserError:
      # One shard must not pass for the whole because the index is damaged; another file's index is no affair here.
      if '-of-' in path.name and index.name.startswith(path.name.split('-')[0]):
        raise
  return None


def names(index: Path) -> list[str]:
  """The files that an index names. Raises `UserError` where it cannot be read."""
  return list(dict.fromkeys(_weight_map(index)[0].values()))


def read(index: Path, opened: Callable[[Path], Contents], file: str) -> Contents:
  """All arrays that an index names, in its order, each from its shard.

  Args:
    opened: the reader of one shard; it may have taken wrapper prefixes off the names.
    file: as the user named it.

  Raises:
    UserError: an index that cannot be read, a shard that is missing, or one that lacks an array it should hold.
  """
  weight_map, metadata = _weight_map(index)
  shards: dict[str, list[str]] = {}
  for name, shard in weight_map.items():
    shards.setdefault(shard, []).append(name)
  _check_present(index, shards, len(weight_map))
  found: dict[str, Tensor] = {}
  formats: dict[str, None] = {}
  beside = 0
  for shard, held in shards.items():
    contents = opened(index.parent / shard)
    short, _ = strip_wrappers(held)
    for name in held:
      there = name if name in contents.tensors else short[name]
      if there not in contents.tensors:
        near = ', '.join(nearest(name, contents.tensors)) or 'it is empty'
        raise UserError(f'{index}: {name!r} should stand in {shard}, which does not hold it; nearest: {near}')
      found[name] = contents.tensors[there]
    beside += len(contents.tensors) - len(held)
    metadata = {**contents.metadata, **metadata}
    formats[contents.format] = None
  stripped, note = strip_wrappers(weight_map)
  notes = [note] if note else []
  if beside:
    notes.append(f'{beside} tensors of the shards are not in the index, and are left out')
  tensors = {stripped[name]: found[name] for name in weight_map}
  format = f'{" and ".join(formats)}, {len(shards)} shards'
  return Contents(file, format, tensors, metadata=metadata, notes=tuple(notes))


def _check_present(index: Path, shards: dict[str, list[str]], total: int) -> None:
  missing = [shard for shard in shards if not (index.parent / shard).is_file()]
  if missing:
    more = f'; {len(missing) - 1} further shards are missing too' if len(missing) > 1 else ''
    held = len(shards[missing[0]])
    raise UserError(f'{index}: shard {missing[0]} is missing; it would hold {held} of {total} tensors{more}')


def _weight_map(index: Path) -> tuple[dict[str, str], dict[str, Any]]:
  """{name: shard}, and what else the index says."""
  try:
    record = json.loads(index.read_bytes())
    weight_map = record['weight_map']
    if not weight_map or not all(isinstance(shard, str) for shard in weight_map.values()):
      raise ValueError
  except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    reason = error.strerror if isinstance(error, OSError) else "no JSON with a 'weight_map' of names and files"
    raise UserError(f'{index} is no index of shards, or is damaged ({reason})') from None
  for shard in set(weight_map.values()):
    where = PurePosixPath(shard)
    if where.is_absolute() or '..' in where.parts or '\\' in shard or '\0' in shard:
      raise UserError(f'{index} names a shard outside its folder: {shard!r}')
  metadata = record.get('metadata')
  return weight_map, dict(metadata) if isinstance(metadata, dict) else {}
