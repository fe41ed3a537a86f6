"""Checkpoints of our own: written, found, read. The only file that talks to orbax. Reads and writes files.

A checkpoint is a tree of arrays and a JSON record (the progress of a run). Parameters stand in it joined, so its
structure does not depend on what was frozen. Surgery on foreign shapes is transplant.py's affair: here a structure
that does not fit is an error.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from transferlab import paths
from transferlab.errors import UserError, nearest

# Readers accept every format up to this one.
FORMAT = 1
STATE = 'state'


def _orbax() -> Any:
  """orbax's v1 API; imported where it is used, since it costs half a second."""
  warnings.filterwarnings('ignore', message='Sharding info not provided')
  from orbax.checkpoint import v1

  return v1


class Writer:
  """Saves checkpoints `folder/STEP` in the background, keeps the newest, and waits for them at the end."""

  def __init__(self, folder: Path, keep: int):
    v1 = _orbax()
    self._pending: Any = None
    self._checkpointer = v1.training.Checkpointer(
      os.fspath(folder.absolute()),
      preservation_policy=v1.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  def save(self, step: int, tree: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
    """Copies the arrays (the step donates its own) and writes them in the background.

    `force`: without it orbax skips a save while one is under way, and says nothing.
    """
    self.wait()
    copied = jax.tree.map(jnp.copy, dict(tree))
    self._pending = self._checkpointer.save_checkpointables_async(
      step, {STATE: copied}, force=True, overwrite=True, custom_metadata={'format': FORMAT, **progress}
    )

  def wait(self) -> None:
    """Returns when everything saved is on disk."""
    if self._pending is not None:
      self._pending.result()
      self._pending = None

  def close(self) -> None:
    """Waits, and releases the folder."""
    self.wait()
    self._checkpointer.close()


def steps(folder: Path) -> list[int]:
  """The steps of the complete checkpoints in a folder, ascending; unfinished ones do not count."""
  if not folder.is_dir():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and _complete(path))


def _complete(path: Path) -> bool:
  return (path / '_CHECKPOINT_METADATA').is_file() and (path / STATE).is_dir()


def progress(path: Path) -> dict[str, Any]:
  """The JSON record of one checkpoint.

  Raises:
    UserError: not a checkpoint of ours, unreadable, or of a format newer than this program.
  """
  v1 = _orbax()
  try:
    record = v1.checkpointables_metadata(os.fspath(path.absolute())).custom_metadata
  except Exception as error:
    raise UserError(f'{path} is no readable checkpoint: {_first_line(error)}') from None
  if not isinstance(record, dict) or not isinstance(record.get('format'), int):
    raise UserError(f'{path} is a checkpoint, but not one of transferlab')
  if record['format'] > FORMAT:
    raise UserError(f'{path} has format {record["format"]}; this program reads formats up to {FORMAT}')
  return record


def load(path: Path, like: Any | None = None) -> Any:
  """The tree of one checkpoint.

  Args:
    like: a tree of arrays or `jax.ShapeDtypeStruct`s with the structure to restore; None: plain nested dicts and lists
      of NumPy arrays, as saved.

  Raises:
    UserError: no such checkpoint, one that cannot be read, or one of another structure.
  """
  v1 = _orbax()
  try:
    if like is None:
      record = v1.checkpointables_metadata(os.fspath(path.absolute())).metadata[STATE]
      like = jax.tree.map(lambda leaf: _host(leaf), record)
    return v1.load_checkpointables(os.fspath(path.absolute()), {STATE: like})[STATE]
  except Exception as error:
    raise UserError(f'checkpoint {path} cannot be read: {_first_line(error)}') from None


def _host(leaf: Any) -> Any:
  import numpy as np

  return np.zeros(leaf.shape, leaf.dtype)


def _first_line(error: Exception) -> str:
  return f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else "no message"}'[:300]


def find(spec: str) -> Path:
  """The checkpoint that a user names: a run's folder (its newest checkpoint) or one checkpoint.

  Raises:
    UserError: nothing there; the message names the nearest folder.
  """
  path = Path(spec)
  for candidate in (path, path / 'checkpoints'):
    if candidate.is_dir() and _complete(candidate):
      return candidate
    if found := steps(candidate):
      return candidate / str(found[-1])
  parent = next((folder for folder in path.parents if folder.is_dir()), Path('.'))
  choices = sorted(str(folder) for folder in parent.iterdir() if folder.is_dir())
  near = ', '.join(nearest(spec, choices)) or 'nothing'
  what = 'holds no complete checkpoint' if path.exists() else 'does not exist'
  raise UserError(f'{spec} {what}; nearest: {near}')


def weights(path: Path, which: str = 'selected') -> dict[str, Any]:
  """The network's variables in a checkpoint: `{'params': …, 'stats': …}` of 'selected' (or, without one, 'last')."""
  tree = load(path)
  chosen = tree.get('selected') if which == 'selected' else None
  found = chosen or tree
  params = {name: stage for name, stage in found['params'].items() if name != paths.TERMS.rstrip('/')}
  return {'params': params, 'stats': found.get('stats') or {}}
