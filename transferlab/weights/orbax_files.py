"""Weights in orbax checkpoints: those of other programs, whatever way they were saved, and our own runs. Reads files.

checkpoints.py talks to orbax; here is where in a folder the weights stand. A folder may be one tree, one of several
named items ('default', 'state', 'params'), a step with items in it, or a run with steps in it: the newest counts.
"""

import re
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from transferlab import checkpoints, paths
from transferlab.errors import UserError, unknown
from transferlab.weights import raw
from transferlab.weights.contents import Contents, Tensor
from transferlab.weights.naming import tree_contents

FORMAT, OURS = 'orbax', 'transferlab'
# What orbax puts into the folder of a tree.
TREE = '_METADATA'
# '100', 'checkpoint_100'; unfinished ones have a dot in their names, and what checkpoints refer to is none.
STEP = re.compile(rf'(?!{checkpoints.FROZEN})(?:[^.]*[^.\d])?(\d+)')
SELECTED, LAST = 'selected', 'last'
# Arrays are read together up to this many bytes: one by one, orbax takes 60 ms for each of 600.
TOGETHER = 16 * 2**20


def is_orbax(path: str | Path) -> bool:
  """Whether a folder is, or holds, a checkpoint of orbax."""
  return bool(_trees(Path(path)))


def read(path: str | Path, part: str | None = None) -> Contents:
  """The arrays of a checkpoint: the folder of a run (its newest step), of a step, or of one tree.

  Our own have the names 'params/…' and 'stats/…'.

  Args:
    part: an entry of the tree other than the weights ('ema_params'), see `naming.choose`; for our own 'selected' or
      'last': by default the selected ones, where there are any.

  Raises:
    UserError: no checkpoint there, one that cannot be read, or an unknown part.
  """
  ours = _ours(Path(path))
  if ours is not None:
    return _read_ours(ours, str(path), part)
  trees = _trees(Path(path))
  if not trees:
    raise UserError(f'{path} holds no checkpoint that orbax finished')
  tensors: dict[str, Tensor] = {}
  for item, folder in trees.items():
    prefix = '' if len(trees) == 1 and item != 'params' else f'{item}/'
    tensors.update({f'{prefix}{name}': tensor for name, tensor in _tensors(folder).items()})
  if not tensors:
    raise UserError(f'{path}: an orbax checkpoint without arrays')
  folder = next(iter(trees.values()))
  notes = [] if folder == Path(path) else [f'read from {folder if len(trees) == 1 else folder.parent}']
  return tree_contents(str(path), FORMAT, tensors, part, notes=notes)


def _steps(folder: Path) -> list[Path]:
  """Folders whose names end in a number, the newest first."""
  if not folder.is_dir():
    return []
  numbers = {child: STEP.fullmatch(child.name) for child in folder.iterdir() if child.is_dir()}
  found = {child: int(match[1]) for child, match in numbers.items() if match}
  return sorted(found, key=lambda child: found[child], reverse=True)


def _trees(folder: Path) -> dict[str, Path]:
  """{item: its folder} of the newest checkpoint here; '' where the folder is a tree itself."""
  if not folder.is_dir():
    return {}
  for candidate in (folder, *_steps(folder), *_steps(folder / 'checkpoints')):
    if (candidate / TREE).is_file():
      return {'': candidate}
    items = {child.name: child for child in sorted(candidate.iterdir()) if (child / TREE).is_file()}
    # The steps of a run hold trees too, but are not items of one checkpoint.
    items = {name: child for name, child in items.items() if not STEP.fullmatch(name)}
    if items:
      return items
  return {}


def _tensors(folder: Path) -> dict[str, Tensor]:
  leaves = checkpoints.foreign(folder)
  groups = _Groups(folder, leaves)
  return {
    name: Tensor(shape, dtype, partial(groups.read, name))
    for name, (shape, dtype) in leaves.items()
    if raw.is_numeric(dtype)
  }


class _Groups:
  """Reads arrays in groups of neighbours, and keeps of the last group what nobody took yet."""

  def __init__(self, folder: Path, leaves: Mapping[str, tuple[tuple[int, ...], np.dtype]]):
    self._folder = folder
    self._group: dict[str, list[str]] = {}
    self._held: dict[str, np.ndarray] = {}
    self._lock = threading.Lock()
    current: list[str] = []
    size = 0
    for name, (shape, dtype) in leaves.items():
      if current and size + raw.num_bytes(shape, dtype) > TOGETHER:
        current, size = [], 0
      current.append(name)
      size += raw.num_bytes(shape, dtype)
      self._group[name] = current

  def read(self, name: str) -> np.ndarray:
    """One array, which is the caller's own."""
    with self._lock:
      if name not in self._held:
        self._held = {}  # first let go, then read
        self._held = checkpoints.foreign_values(self._folder, self._group[name])
      return self._held.pop(name)


def _ours(path: Path) -> Path | None:
  """The newest checkpoint where the path is a run of ours, or one checkpoint; None for others."""
  for candidate in (path, path / 'checkpoints'):
    steps = checkpoints.steps(candidate)
    newest = candidate / str(steps[-1]) if steps else candidate
    if checkpoints.is_ours(newest):
      return newest
  return None


def _read_ours(path: Path, file: str, part: str | None) -> Contents:
  """One checkpoint of ours; frozen parameters may stand in a folder beside it."""
  record = dict(checkpoints.progress(path))
  found = _tensors(path / checkpoints.STATE)
  aside = record.pop('frozen', None) or {}
  if aside:
    beside = _tensors(path.parent / aside['folder'] / checkpoints.STATE)
    found |= {f'params/{name}': beside[name] for name in aside['params']}
    found |= {f'{SELECTED}/params/{name}': beside[name] for name in aside[SELECTED]}
  parts = {LAST: ''} | ({SELECTED: f'{SELECTED}/'} if any(name.startswith(f'{SELECTED}/') for name in found) else {})
  chosen = part or (SELECTED if SELECTED in parts else LAST)
  if chosen not in parts:
    raise UserError(f'{file}: {unknown("part", chosen, parts)}')
  terms, root = f'{parts[chosen]}params/{paths.TERMS}', parts[chosen]
  kept = [n for n in found if n.startswith((f'{root}params/', f'{root}stats/')) and not n.startswith(terms)]
  others: dict[str, int] = {}
  for name in found:
    if name not in set(kept):
      last = chosen == SELECTED and name.startswith(('params/', 'stats/'))
      entry = 'terms' if f'params/{paths.TERMS}' in name else LAST if last else name.split('/')[0]
      others[entry] = others.get(entry, 0) + 1
  tensors = {name.removeprefix(root): found[name] for name in kept}
  notes = () if str(path) == file else (f'read from {path}',)
  return Contents(file, OURS, tensors, chosen, others, record, notes)
