"""Where outputs that are computed once stay: in this process, or in files that later runs find again. Writes files.

They are known by a hash of all that they depend on: the compiled program, weights, preprocessing, inputs, and what
draws the views. What changes any of these makes other outputs, under another name.
"""

import collections
import hashlib
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transferlab import folder, paths
from transferlab.data.columns import Column
from transferlab.errors import UserError
from transferlab.training import feature_cache, parallel
from transferlab.training.feature_cache import Inputs
from transferlab.training.feature_plan import Prefix, Recording
from transferlab.training.methods import Stretch

FORMAT = 1
WHOLE = 'outputs'  # the folder of a complete set
HELD = 2**31  # bytes of outputs that stay in this process for runs to come
_held: collections.OrderedDict[str, Any] = collections.OrderedDict()
_codes: dict[Any, str] = {}  # by the program and the shapes it is for
_lock = threading.RLock()


def key(inputs: Inputs) -> str:
  """32 hexadecimal digits that change with anything that changes an output."""
  method, kept, total = inputs.method, inputs.kept, hashlib.blake2b(digest_size=16)
  shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), inputs.variables)
  total.update(_code(inputs).encode())
  total.update(repr((FORMAT, jax.__version__, kept.views, kept.examples, shapes)).encode())
  augmented = method.augment != type(method.augment)()
  # Inputs as they are do not depend on the run's seed.
  total.update(repr((method.augment, method.low, method.high) if augmented else None).encode())
  draws = np.asarray(jax.random.key_data(inputs.key)) if augmented else np.zeros(0)
  leaves = {**paths.flatten(inputs.variables), **inputs.record, 'ids': inputs.ids, 'key': draws}
  for name, leaf in sorted(leaves.items()):
    array = np.ascontiguousarray(leaf)
    total.update(f'{name} {array.dtype.str} {array.shape}'.encode())
    total.update(array.data)
  if isinstance(inputs.x, Column):
    total.update(f'{inputs.x.digest} {inputs.x.shape} {inputs.x.dtype.str}'.encode())
    total.update(np.ascontiguousarray(inputs.x.rows).data)
  else:
    total.update(f'{inputs.x.dtype.str} {inputs.x.shape}'.encode())
    total.update(np.ascontiguousarray(inputs.x).data)
  return total.hexdigest()


def _code(inputs: Inputs) -> str:
  """The program that gives the outputs, constants included, for a batch of one."""
  known = inputs.program, inputs.x.shape[1:], inputs.x.dtype.str
  if known in _codes:
    return _codes[known]
  abstract = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
  variables, record, run_key = jax.tree.map(abstract, (inputs.variables, dict(inputs.record), inputs.key))
  x, number = jax.ShapeDtypeStruct((1, *inputs.x.shape[1:]), inputs.x.dtype), jax.ShapeDtypeStruct((), jnp.int32)
  ids = jax.ShapeDtypeStruct((1,), jnp.int32)
  _codes[known] = inputs.program.lower(variables, record, x, run_key, ids, number).as_text()
  return _codes[known]


def arrays(
  stretch: Stretch,
  variables: Any,
  member: Any,
  mesh: Any,
  place: Path,
  say: Callable[[str], None],
  limit: float = math.inf,
) -> dict[str, Any]:
  """The training examples as a phase takes them that keeps outputs: these stand, view after view, under 'seen'.

  There 'x' is what the frozen stages give, 'recorded' what other networks give, by name and stage.

  Args:
    variables: of the member, at the start of the phase.
    member: what the loop knows of a run (state.Member).
    place: folder for files, where outputs stay on disk.
    say: told of what takes time.
    limit: bytes that all outputs in that folder may take.
  """
  own, method = dict(member.arrays), stretch.method
  ids, run_key = np.asarray(own['id']), parallel.place(jax.random.key(member.seed), mesh)

  def of(kept: Prefix | Recording, variables: Any, record: Any) -> Any:
    variables, record = parallel.place((variables, dict(record)), mesh)
    return outputs(Inputs(method, kept, variables, record, member.arrays['x'], ids, run_key, mesh, limit), place, say)

  seen: dict[str, Any] = {}
  for recording in stretch.recordings:
    given = member.asked[recording.asked.name]
    recorded = of(recording, given['variables'], given['preprocessing'])
    seen['recorded'] = {**seen.get('recorded', {}), recording.asked.name: recorded}
  if stretch.prefix is not None:
    needed = feature_cache.needed(variables, method.network, stretch.prefix.start)
    seen['x'] = of(stretch.prefix, needed, member.record)
    del own['x']
  return {**own, 'seen': seen}


def outputs(inputs: Inputs, place: Path, say: Callable[[str], None]) -> Any:
  """A tree of [views · examples, …] arrays: found, or computed; a sample is recomputed either way.

  Args:
    place: folder for files, where outputs stay on disk.
    say: told of what takes time.

  Raises:
    UserError: the same inputs give other outputs in another batch, or a file cannot be written.
  """
  name = key(inputs)
  with _lock:
    if inputs.kept.where == 'disk':
      with folder.locked(place / name):
        return _on_disk(inputs, place / name, say)
    if name not in _held:
      _held[name] = _checked(inputs, _in_memory(inputs, say))
    _held.move_to_end(name)
    return _trimmed(name)


def _checked(inputs: Inputs, found: Any) -> Any:
  if not feature_cache.check(inputs, found):
    raise UserError(
      f'{inputs.kept.what} give other outputs for the same inputs in another batch; '
      "feature_cache.use='never' computes them in every step"
    )
  return found


def _trimmed(name: str) -> Any:
  """What is held under the name, after the oldest were dropped; it goes as well where it is too large itself."""
  found, size = _held[name], lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
  while _held and sum(map(size, _held.values())) > HELD:
    _held.popitem(last=False)
  return found


def forget() -> None:
  """Drops what this process keeps in memory."""
  with _lock:
    _held.clear()


def _in_memory(inputs: Inputs, say: Callable[[str], None]) -> Any:
  begun, structure = time.monotonic(), jax.tree.structure(inputs.kept.value)
  made = [np.empty(shape, dtype) for shape, dtype in feature_cache.empty(inputs.kept)]
  found = feature_cache.compute(inputs, jax.tree.unflatten(structure, made))
  say(f'{inputs.kept} ({time.monotonic() - begun:.1f} s)')
  return found


def _on_disk(inputs: Inputs, path: Path, say: Callable[[str], None]) -> Any:
  """Outputs in the files of a locked folder: found there, or written to new ones that then take their place.

  A process that still reads old ones keeps them: files that are gone stay readable where they are open.
  """
  found = _read(inputs, path / WHOLE)
  if found is not None:
    if feature_cache.check(inputs, found):
      return found
    say(f'features {path.name[:8]}: a sample comes out otherwise; all are computed again')
  begun, structure = time.monotonic(), jax.tree.structure(inputs.kept.value)
  _make_room(inputs, path)
  new = path / 'new'
  try:
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    made = jax.tree.unflatten(structure, list(_files(inputs, new)))
    feature_cache.compute(inputs, made)
    for leaf in jax.tree.leaves(made):
      leaf.flush()
    _checked(inputs, made)
    shutil.rmtree(path / WHOLE, ignore_errors=True)
    new.rename(path / WHOLE)
  except OSError as error:
    raise UserError(f'feature_cache.folder: {path}: {error.strerror}') from None
  finally:
    shutil.rmtree(new, ignore_errors=True)
  say(f'{inputs.kept} ({time.monotonic() - begun:.1f} s)')
  return _read(inputs, path / WHOLE)


def _make_room(inputs: Inputs, path: Path) -> None:
  """Deletes the oldest outputs in the folder, so that with these there are no more than the config allows."""
  others = [other for other in path.parent.iterdir() if (other / WHOLE).is_dir() and other != path]
  sizes = {other: sum(file.stat().st_size for file in (other / WHOLE).iterdir()) for other in others}
  for other in sorted(others, key=lambda other: (other / WHOLE).stat().st_mtime):
    if sum(sizes.values()) + inputs.kept.size <= inputs.limit:
      return
    del sizes[other]
    shutil.rmtree(other / WHOLE, ignore_errors=True)


def _files(inputs: Inputs, path: Path) -> Iterator[np.ndarray]:
  for number, (shape, dtype) in enumerate(feature_cache.empty(inputs.kept)):
    opened = np.lib.format.open_memmap(path / f'{number}.npy', 'w+', dtype=dtype, shape=shape)
    # A disk that is full shows now; a page that finds no room later ends the process.
    with (path / f'{number}.npy').open('r+b') as file:
      os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    yield opened


def _read(inputs: Inputs, path: Path) -> Any:
  """Outputs that are on disk as a whole, as arrays that read what is asked for; None where there are none."""
  leaves = []
  for number, (shape, dtype) in enumerate(feature_cache.empty(inputs.kept)):
    try:
      leaves.append(np.load(path / f'{number}.npy', mmap_mode='r'))
    except (OSError, ValueError):
      return None
    if (leaves[-1].shape, leaves[-1].dtype) != (shape, dtype):
      return None
  return jax.tree.unflatten(jax.tree.structure(inputs.kept.value), leaves)
