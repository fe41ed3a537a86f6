"""Checkpoints of our own: written, found, read. The only file that talks to orbax. Reads and writes files.

A checkpoint is a tree of arrays and a JSON record (the progress of a run). Parameters stand in it joined, so its
structure does not depend on what was frozen: large frozen leaves are written once, beside the checkpoints that refer
to them, and readers put them back. Surgery on foreign shapes is transplant.py's affair: here a structure that does
not fit is an error.

A kill leaves unfinished checkpoints behind; they do not count, and the one before is taken. A finished one that was
damaged since is an error, never skipped in silence: its message says where the run would go on without it.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transferlab import config, folder, paths
from transferlab.errors import UserError, nearest

# Readers accept every format up to this one.
FORMAT = 1
STATE, METADATA = 'state', '_CHECKPOINT_METADATA'
# Frozen leaves of this many bytes together are written once.
LARGE = 64 * 2**20
FROZEN = 'frozen_'


def _orbax() -> Any:
  """orbax's v1 API; imported where it is used, since it costs half a second."""
  warnings.filterwarnings('ignore', message='Sharding info not provided')
  from orbax.checkpoint import v1

  return v1


class Writer:
  """Saves checkpoints `folder/STEP` in the background, keeps the newest, and waits for them at the end."""

  def __init__(self, folder: Path, keep: int):
    v1 = _orbax()
    self._folder = folder.absolute()
    self._pending: Any = None
    # Before orbax, which clears what a kill left of any checkpoint in the background.
    self._clear()
    self._checkpointer = v1.training.Checkpointer(
      os.fspath(self._folder),
      preservation_policy=v1.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  def save(
    self, step: int, tree: Mapping[str, Any], progress: Mapping[str, Any], frozen: Mapping[str, str] | None = None
  ) -> None:
    """Copies the arrays (the step donates its own) and writes them in the background.

    `force`: without it orbax skips a save while one is under way, and says nothing.

    Args:
      frozen: a digest of each parameter that does not move from checkpoint to checkpoint, by path.
    """
    self.wait()
    tree, aside = self._set_aside(dict(tree), frozen or {})
    copied = jax.tree.map(jnp.copy, tree)
    record = {'format': FORMAT, **progress, **({'frozen': aside} if aside else {})}
    self._pending = self._checkpointer.save_checkpointables_async(
      step, {STATE: copied}, force=True, overwrite=True, custom_metadata=record
    )

  def wait(self) -> None:
    """Returns when everything saved is on disk."""
    if self._pending is not None:
      self._pending.result()
      self._pending = None
      self._clear()

  def close(self) -> None:
    """Waits, and releases the folder."""
    self.wait()
    self._checkpointer.close()

  def _set_aside(self, tree: dict[str, Any], digests: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes frozen leaves, where they are large and not there yet, to a folder named after their contents.

    Returns:
      The tree without them; and for the record {'folder': …, 'params': paths, 'selected': paths}, or nothing.
    """
    leaves = paths.flatten(tree['params'])
    frozen = {path: leaves[path] for path in digests}
    if sum(leaf.nbytes for leaf in frozen.values()) < LARGE:
      return tree, {}
    folder = self._folder / f'{FROZEN}{config.digest(dict(digests))}'
    if not _complete(folder):
      _orbax().save_checkpointables(os.fspath(folder), {STATE: paths.unflatten(frozen)}, overwrite=True)
    best = paths.flatten(tree['selected']['params']) if 'selected' in tree else {}
    same = [path for path in frozen if path in best and _bytes(best[path]) == _bytes(frozen[path])]
    aside = {'folder': folder.name, 'params': list(frozen), 'selected': same}
    return _map_params(tree, lambda where, flat: _without(flat, aside[where])), aside

  def _clear(self) -> None:
    """Removes frozen leaves that no checkpoint refers to; all stay while a checkpoint cannot be read."""
    found = sorted(self._folder.glob(f'*{FROZEN}*'))
    try:
      kept = {_aside(self._folder / str(step)).get('folder') for step in steps(self._folder)} if found else set()
    except UserError:
      return
    for place in found:
      if place.name not in kept:
        # Half a folder must not look like a whole one, should the program end here.
        doomed = place if place.name.startswith('.') else place.rename(place.with_name(f'.{place.name}'))
        shutil.rmtree(doomed)


def _map_params(tree: Mapping[str, Any], change: Callable[[str, dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
  """The tree with `change('params' or 'selected', {path: leaf})` in place of its parameters."""
  changed = {**tree, 'params': paths.unflatten(change('params', paths.flatten(tree['params'])))}
  if 'selected' in tree:
    best = paths.unflatten(change('selected', paths.flatten(tree['selected']['params'])))
    changed['selected'] = {**tree['selected'], 'params': best}
  return changed


def _aside(path: Path) -> dict[str, Any]:
  """What a checkpoint's record says of leaves that stand beside it; nothing where it holds all."""
  return progress(path).get('frozen') or {}


def _without(flat: Mapping[str, Any], left_out: Collection[str]) -> dict[str, Any]:
  gone = set(left_out)
  return {path: leaf for path, leaf in flat.items() if path not in gone}


def _bytes(leaf: Any) -> bytes:
  return np.ascontiguousarray(jax.device_get(leaf)).tobytes()


def steps(folder: Path) -> list[int]:
  """The steps of the complete checkpoints in a folder, ascending; unfinished ones do not count."""
  if not folder.is_dir():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and _complete(path))


def _complete(path: Path) -> bool:
  return (path / METADATA).is_file() and (path / STATE).is_dir()


def progress(path: Path) -> dict[str, Any]:
  """The JSON record of one checkpoint.

  Raises:
    UserError: not a checkpoint of ours, unreadable, or of a format newer than this program.
  """
  try:
    # Orbax itself prints the whole file where it is damaged.
    record = json.loads((path / METADATA).read_text()).get('custom_metadata')
  except (OSError, ValueError, AttributeError) as error:
    raise _damaged(path, error) from None
  if not isinstance(record, dict) or not isinstance(record.get('format'), int):
    raise UserError(f'{path} is a checkpoint, but not one of transferlab')
  if record['format'] > FORMAT:
    raise UserError(f'{path} has format {record["format"]}; this program reads formats up to {FORMAT}')
  return record


def load(path: Path, like: Any | None = None) -> Any:
  """The tree of one checkpoint, as NumPy arrays: where they go is the reader's affair.

  Args:
    like: a tree of arrays or `jax.ShapeDtypeStruct`s with the structure to restore; None: plain nested dicts and lists,
      as saved.

  Raises:
    UserError: no such checkpoint, one that cannot be read, or one of another structure.
  """
  aside = _aside(path)
  if not aside:
    return _read(path, like)
  frozen = paths.flatten(_read(path.parent / aside['folder'], None))
  moving = None if like is None else _map_params(like, lambda where, flat: _without(flat, aside[where]))
  return _map_params(_read(path, moving), lambda where, flat: {**flat, **{p: frozen[p] for p in aside[where]}})


def _read(path: Path, like: Any | None) -> Any:
  v1 = _orbax()
  try:
    if like is None:
      like = v1.checkpointables_metadata(os.fspath(path.absolute())).metadata[STATE]
    host = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    return v1.load_checkpointables(os.fspath(path.absolute()), {STATE: host})[STATE]
  except Exception as error:
    raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
  older = [step for step in steps(path.parent) if path.name.isdigit() and step < int(path.name)]
  rest = f'from step {older[-1]}' if older else 'from the start'
  what = f'{path} holds what checkpoints refer to and' if path.name.startswith(FROZEN) else f'checkpoint {path}'
  advice = f'; delete it to go on {rest}' if path.name.isdigit() else ''
  return UserError(f'{what} cannot be read ({_first_line(error)}){advice}')


def _first_line(error: Exception) -> str:
  return f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else "no message"}'[:300]


def find(spec: str) -> Path:
  """The checkpoint that a user names: a run's folder (its newest, or that of the candidate it chose) or one checkpoint.

  Raises:
    UserError: nothing there; the message names the nearest folder.
  """
  path = folder.chosen(Path(spec).expanduser())
  for candidate in (path, path / 'checkpoints'):
    if candidate.is_dir() and _complete(candidate):
      return candidate
    if found := steps(candidate):
      return candidate / str(found[-1])
  parent = next((folder for folder in path.parents if folder.is_dir()), Path('.'))
  choices = sorted(str(folder) for folder in parent.iterdir() if folder.is_dir() and folder != path)
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


def is_ours(path: Path) -> bool:
  """Whether a folder is one checkpoint of ours, of whatever format. Raises `UserError` where its record is damaged."""
  if not _complete(path):
    return False
  try:
    record = json.loads((path / METADATA).read_text())
  except (OSError, ValueError) as error:
    raise _damaged(path, error) from None
  own = record.get('custom_metadata') if isinstance(record, dict) else None
  return isinstance(own, dict) and isinstance(own.get('format'), int)


def foreign(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
  """{name: (shape, dtype)} of the arrays in a folder that orbax wrote as one tree; names are paths joined by '/'.

  Texts and random keys are left out, for they are no arrays of numbers.

  Raises:
    UserError: orbax cannot read the folder, or two arrays have the same name.
  """
  leaves = {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(_foreign_tree(path), is_leaf=_is_description):
    if isinstance(getattr(leaf, 'dtype', None), np.dtype):
      name = _joined(keys)
      if name in leaves:
        raise UserError(f'{path} holds two arrays of the name {name!r}')
      leaves[name] = (tuple(leaf.shape), leaf.dtype)
  return leaves


def foreign_values(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
  """These arrays of `foreign`, read together: for every call orbax reads the description of the whole tree.

  Raises:
    UserError: the folder is damaged.
  """
  from etils import epath
  from orbax import checkpoint as ocp

  wanted, tree = set(names), _foreign_tree(path)
  choose = lambda keys, _: ocp.RestoreArgs(restore_type=np.ndarray) if _joined(keys) in wanted else ocp.PLACEHOLDER
  item = jax.tree_util.tree_map_with_path(choose, tree, is_leaf=_is_description)
  try:
    args = ocp.args.PyTreeRestore(item=item, restore_args=item)
    read = ocp.PyTreeCheckpointHandler().restore(epath.Path(path.absolute()), args=args)
  except Exception as error:
    raise UserError(f'{path} cannot be read as an orbax checkpoint ({_first_line(error)})') from None
  flat = {
    _joined(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(read) if leaf is not ocp.PLACEHOLDER
  }
  return {name: np.asarray(flat[name]) for name in names}


def _foreign_tree(path: Path) -> Any:
  """What orbax says of a tree, in its structure: descriptions of arrays, texts and numbers."""
  _orbax()
  from etils import epath
  from orbax import checkpoint as ocp

  try:
    return ocp.PyTreeCheckpointHandler().metadata(epath.Path(path.absolute())).tree
  except Exception as error:
    raise UserError(f'{path} cannot be read as an orbax checkpoint ({_first_line(error)})') from None


def _is_description(leaf: Any) -> bool:
  return hasattr(leaf, 'dtype')


def _joined(keys: tuple[Any, ...]) -> str:
  """The path of a leaf: keys of dicts, indices of sequences, names of fields."""
  parts = [next(getattr(key, kind) for kind in ('key', 'idx', 'name') if hasattr(key, kind)) for key in keys]
  return '/'.join(map(str, parts))
