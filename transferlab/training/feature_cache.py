"""Outputs of a frozen prefix of the network: from which stage on a phase trains, and what the stages before it give.

A phase that trains only what lies behind a stage needs the stages before it once per example and view, where they
are deterministic: `find` says whether they are, `compute` runs them, `check` runs some again. Where the outputs stay
is feature_store.py's affair. Talks to devices.
"""

import dataclasses
import functools
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from transferlab import paths
from transferlab.data import augmentation, preprocessing
from transferlab.data.augmentation import Augment
from transferlab.data.loader import evaluation_batches
from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.networks.network import Network
from transferlab.training import parallel
from transferlab.training.methods import Stretch, stage_leaves
from transferlab.training.settings import FeatureCache
from transferlab.training.step import Method, stages_read, view_keys

Where = Literal['device', 'memory', 'disk']
# Rounding differs between batches of different size; features of other weights differ by far more.
TOLERANCE = 1e-3
SAMPLE = 16  # examples that are recomputed
AT_ONCE = 128  # examples at a time


@dataclasses.dataclass(frozen=True)
class Prefix:
  """The stages that a phase need not run again.

  Attributes:
    start: the stage at which training goes on.
    last: the stage before it, whose outputs are kept.
    views: how many views of every example there are.
    examples: in training.
    value: shapes and dtypes of the outputs for one example.
    where: the outputs stay.
  """

  start: str
  last: str
  views: int
  examples: int
  value: Any
  where: Where

  @property
  def each(self) -> int:
    """Bytes of one example's outputs."""
    return _bytes(self.value)

  @property
  def size(self) -> int:
    """Bytes of all outputs."""
    return self.examples * self.views * self.each

  def __str__(self) -> str:
    shapes = ', '.join('×'.join(map(str, leaf.shape)) for leaf in jax.tree.leaves(self.value))
    seen = f'{self.views} views of ' if self.views > 1 else ''
    place = {'device': 'on the device', 'memory': 'in memory', 'disk': 'on disk'}[self.where]
    return f'runs up to {self.last} once, for {seen}{self.examples:,} examples: {shapes}, {_mib(self.size)} {place}'


def _bytes(value: Any) -> int:
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(value))


def _mib(size: int) -> str:
  return f'{size / 2**20:,.3g} MiB' if size < 2**30 else f'{size / 2**30:,.3g} GiB'


# ------------------------------------------------------------------------------------------------- whether it is exact
def cut(method: Method, inputs: tuple[int, ...]) -> tuple[int, str]:
  """The number of leading stages that do the same in every step, and why no more of the frozen ones do ('' if all)."""
  network = method.network
  leaves = stage_leaves(network, list(paths.flatten(network.shapes()['params'])))
  moves = [any(path in method.trainable for path in leaves[stage]) for stage in network.stages]
  frozen = moves.index(True) if True in moves else len(moves) - 1
  for number, stage in enumerate(network.stages[:frozen]):
    if stage in method.moving:
      return number, f'the running statistics of {stage!r} move'
    if stage in method.training and draws(network, stage, inputs):
      return number, f'{stage!r} draws random numbers (dropout)'
  return frozen, ''


@functools.lru_cache(maxsize=256)
def draws(network: Network, stage: str, inputs: tuple[int, ...]) -> bool:
  """Whether a stage does anything else in training mode, running statistics apart."""
  shapes, number = network.shapes(), network.stages.index(stage)
  value: Any = jax.ShapeDtypeStruct((2, *inputs), jnp.float32)
  if number:
    value = jax.eval_shape(lambda v, x: network.apply(v, x, stop=stage)[0], shapes, value)[network.stages[number - 1]]
  key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  following = network.stages[number + 1] if number + 1 < len(network.stages) else None

  def program(train: bool) -> str:
    run = lambda v, x, k: network.apply(v, x, train=train, statistics=(), key=k, start=stage, stop=following)
    return str(jax.make_jaxpr(run)(shapes, value, key))

  return program(True) != program(False)


def find(
  stretch: Stretch, settings: FeatureCache, examples: int, batch_size: int, compile: str
) -> tuple[Prefix | None, str]:
  """The prefix of a phase that is computed once; and where there is frozen work that is not, why.

  Raises:
    UserError: `use` is 'always', and there is frozen work that cannot be.
  """
  method, network, inputs = stretch.method, stretch.method.network, tuple(stretch.example['x'].shape[1:])
  if settings.use == 'never':
    return None, ''
  count, reason = cut(method, inputs)
  if _idle(network, count) and not reason:
    return None, ''  # nothing is frozen, or nothing that takes work
  if not reason or not _idle(network, count):
    read = set() if method.source is not None else stages_read(method, network.shapes(), stretch.example)
    needed = [number for number, stage in enumerate(network.stages[:count]) if stage in read]
    # The last stage of the prefix may be read: its output is what is kept.
    if needed and needed[0] + 1 < count:
      count, reason = needed[0] + 1, f'the objective reads {network.stages[needed[0]]!r}'
  refusal = (reason if _idle(network, count) else '') or _refusal(stretch, compile)
  if settings.use == 'auto' and stretch.steps * batch_size < examples * (method.augment.views or 1):
    refusal = refusal or 'the phase sees fewer examples than there are'
  if not refusal:
    views = method.augment.views if method.augment != Augment() and method.augment.views else 1
    last, start = network.stages[count - 1], network.stages[count]
    value = _value(network, start, inputs)
    where, refusal = _place(settings, examples * views * _bytes(value))
    if value is None:
      refusal = f'{last!r} gives something that has no axis of examples'
    if not refusal:
      return Prefix(start, last, views, examples, value, where), reason and f'no further than {last!r}: {reason}'
  if settings.use == 'always':
    raise UserError(f"config.feature_cache.use: 'always', but phase {stretch.name!r} cannot: {refusal}")
  return None, refusal


def _idle(network: Network, count: int) -> bool:
  """Whether the first `count` stages have no parameters."""
  return not any(stage in network.shapes()['params'] for stage in network.stages[:count])


def _refusal(stretch: Stretch, compile: str) -> str:
  """Why inputs are needed in every step."""
  augment = stretch.method.augment
  if stretch.method.source is not None:
    return "the objective runs the source's network on the inputs"
  if compile == 'pmap':
    return "parallel.compile='pmap' takes its inputs batch by batch"
  if augmentation.couples(augment):
    return 'mixup and cutmix mix inputs anew in every step'
  if augment != Augment() and augment.views is None:
    return 'augmentation draws a new view in every epoch (data.augment.views=K makes it K views)'
  return ''


def _value(network: Network, start: str, inputs: Sequence[int]) -> Any:
  """Shapes of the value before `start`, for one example; None where a part of it has no axis of examples."""
  last = network.stages[network.stages.index(start) - 1]
  run = lambda v, x: network.apply(v, x, stop=start)[0][last]
  sizes = 2, 3
  found = [jax.eval_shape(run, network.shapes(), jax.ShapeDtypeStruct((size, *inputs), jnp.float32)) for size in sizes]
  for size, value in zip(sizes, found):
    if any(leaf.shape[:1] != (size,) for leaf in jax.tree.leaves(value)):
      return None
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), found[0])


def _place(settings: FeatureCache, size: int) -> tuple[Where, str]:
  """Where outputs of so many bytes stay, or why they do not."""
  physical = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  memory = physical / 4 if settings.memory is None else settings.memory * 2**30
  if settings.where != 'auto':
    return settings.where, ''
  if size <= settings.device * 2**30:
    return 'device', ''
  if size <= memory:
    return 'memory', ''
  place = Path(settings.folder or '.').expanduser()
  free = shutil.disk_usage(place if place.is_dir() else '.').free
  if size <= min(settings.disk * 2**30, free / 2):
    return 'disk', ''
  return 'disk', f'the outputs take {_mib(size)}, more than feature_cache.disk (or half of what is free) allows'


def cached(
  stretches: Sequence[Stretch], settings: FeatureCache, examples: int, batch_size: int, compile: str
) -> tuple[list[Stretch], list[str]]:
  """The phases, starting behind what is computed once; and a sentence for each phase that has frozen work.

  Args:
    examples: in training.
    batch_size: of a step.
    compile: how steps are compiled.

  Raises:
    UserError: see `find`.
  """
  made, said = [], []
  for stretch in stretches:
    prefix, reason = find(stretch, settings, examples, batch_size, compile)
    made.append(starting(stretch, prefix))
    if prefix is not None:
      said.append(f'phase {stretch.name!r} {prefix}' + (f'; {reason}' if reason else ''))
    elif reason:
      said.append(f'phase {stretch.name!r} runs its frozen stages in every step: {reason}')
  return made, said


def starting(stretch: Stretch, prefix: Prefix | None) -> Stretch:
  """The phase, starting behind the prefix."""
  if prefix is None:
    return stretch
  key = stretch.method, prefix.start
  if key not in _STARTING:
    _STARTING[key] = dataclasses.replace(stretch.method, start=prefix.start)
  return dataclasses.replace(stretch, method=_STARTING[key], prefix=prefix)


# One object for one method, so that runs which share a prefix share a compilation.
_STARTING: dict[tuple[Method, str], Method] = {}


# --------------------------------------------------------------------------------------------------- the outputs
@functools.lru_cache(maxsize=32)
def program(network: Network, start: str, augment: Augment, low: float, high: float) -> Any:
  """`run(variables, record, x, key, ids, view) -> value before start`, to be compiled for batches."""
  last = network.stages[network.stages.index(start) - 1]

  def run(variables: Any, record: Any, x: Array, key: Array, ids: Array, view: Array) -> Any:
    if augment != Augment():
      x = augmentation.apply(x, view_keys(key, ids, view), augment, low, high)
    inputs = preprocessing.apply(x, record['shift'], record['scale'])
    return network.apply(variables, inputs, stop=start)[0][last]

  return jax.jit(layers.unlooped(run))


@dataclasses.dataclass(frozen=True)
class Inputs:
  """All that the outputs depend on.

  Attributes:
    variables: of the stages before `prefix.start`, and shared leaves that these read.
    record: preprocessing as arrays.
    x, ids: [examples, …] not preprocessed, and [examples].
    key: the run's, which draws the views.
    mesh, limit: nothing that changes them: devices, and bytes that files may take.
  """

  method: Method
  prefix: Prefix
  variables: Any
  record: Mapping[str, Any]
  x: Any
  ids: np.ndarray
  key: Array
  mesh: Mesh | None
  limit: float = math.inf

  @property
  def program(self) -> Any:
    """The compiled function."""
    method = self.method
    return program(method.network, self.prefix.start, method.augment, method.low, method.high)

  def run(self, rows: np.ndarray, view: int, size: int) -> Any:
    """Outputs of the examples at `rows`, padded to `size` for the compiled program."""
    fill = np.minimum(np.arange(size), len(rows) - 1)
    x, ids = np.asarray(self.x[rows])[fill], self.ids[rows][fill].astype(np.int32)
    x, ids = parallel.place((x, ids), self.mesh, 0)
    value = self.program(self.variables, self.record, x, self.key, ids, np.int32(view))
    return jax.tree.map(lambda leaf: leaf[: len(rows)], jax.device_get(value))


def needed(variables: Mapping[str, Any], network: Network, start: str) -> dict[str, Any]:
  """The variables of the stages before `start`, shared leaves that they read included."""
  before = network.stages[: network.stages.index(start)]
  owners = {owner for path, owner in network.shared.items() if paths.stage_of(path) in before}
  kept = lambda tree: {path: leaf for path, leaf in paths.flatten(tree).items() if paths.stage_of(path) in before}
  shared = {path: leaf for path, leaf in paths.flatten(variables['params']).items() if path in owners}
  return {
    'params': paths.unflatten({**kept(variables['params']), **shared}),
    'stats': paths.unflatten(kept(variables['stats'])),
  }


def compute(inputs: Inputs, out: Any) -> Any:
  """Fills `out`, a tree of [views · examples, …] arrays, with the outputs of all examples in all views."""
  count = len(inputs.ids)
  size = parallel.rows(min(AT_ONCE, count), inputs.mesh)
  for view in range(inputs.prefix.views):
    for part, _ in evaluation_batches(count, size):
      value = inputs.run(np.arange(part.start, part.stop), view, size)
      for target, rows in zip(jax.tree.leaves(out), jax.tree.leaves(value), strict=True):
        target[view * count + part.start : view * count + part.stop] = rows
  return out


def check(inputs: Inputs, found: Any) -> bool:
  """Whether a random sample of the outputs, another one every time, comes out the same up to rounding.

  At most half of the examples are taken, in a batch that repeats the last of them: where the output of an example
  depends on the others in its batch, it shows.
  """
  count, random = len(inputs.ids), np.random.default_rng()
  rows = random.choice(count, max(1, min(SAMPLE, count // 2)), replace=False)
  view = int(random.integers(inputs.prefix.views))
  again = inputs.run(rows, view, parallel.rows(min(AT_ONCE, count), inputs.mesh))
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True)
  return all(_close(kept[view * count + rows], value) for kept, value in pairs)


def _close(kept: np.ndarray, value: np.ndarray) -> bool:
  kept, value = np.asarray(kept, np.float64), np.asarray(value, np.float64)
  return bool(np.abs(kept - value).max(initial=0) <= TOLERANCE * np.abs(value).max(initial=0))


def empty(prefix: Prefix) -> Iterator[tuple[tuple[int, ...], Any]]:
  """Shape and dtype of every array that `compute` fills."""
  for leaf in jax.tree.leaves(prefix.value):
    yield (prefix.views * prefix.examples, *leaf.shape), leaf.dtype
