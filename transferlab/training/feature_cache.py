"""Outputs that are computed once: the programs that give them, all examples in all views, and some of them again.

What is kept for a phase is decided in feature_plan.py; where it stays is feature_store.py's affair. Talks to devices.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from transferlab import paths
from transferlab.data import augmentation, preprocessing
from transferlab.data.augmentation import Augment
from transferlab.data.loader import evaluation_batches
from transferlab.networks import layers
from transferlab.networks.network import Network
from transferlab.training import parallel
from transferlab.training.feature_plan import Kept, Prefix, Recording
from transferlab.training.step import Asked, Method, answers, view_keys

# Rounding differs between batches of different size; features of other weights differ by far more.
TOLERANCE = 1e-3
SAMPLE = 16  # examples that are recomputed
AT_ONCE = 128  # examples at a time


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


@functools.lru_cache(maxsize=32)
def asking(asked: Asked, stages: tuple[str, ...], augment: Augment, low: float, high: float) -> Any:
  """As `program`, of another network: `{stage: value}` at some of its stages."""

  def run(variables: Any, record: Any, x: Array, key: Array, ids: Array, view: Array) -> Any:
    if augment != Augment():
      x = augmentation.apply(x, view_keys(key, ids, view), augment, low, high)
    given = answers(asked, {'variables': variables, 'preprocessing': record}, x)
    return {stage: given[stage] for stage in stages}

  return jax.jit(layers.unlooped(run))


@dataclasses.dataclass(frozen=True)
class Inputs:
  """All that the outputs depend on.

  Attributes:
    variables: of the stages that run, and shared leaves that these read.
    record: preprocessing as arrays.
    x, ids: [examples, …] not preprocessed, and [examples].
    key: the run's, which draws the views.
    mesh, limit: nothing that changes them: devices, and bytes that files may take.
  """

  method: Method
  kept: Prefix | Recording
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
    method, kept = self.method, self.kept
    changes = method.augment, method.low, method.high
    if isinstance(kept, Recording):
      return asking(kept.asked, kept.stages, *changes)
    return program(method.network, kept.start, *changes)

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
  for view in range(inputs.kept.views):
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
  view = int(random.integers(inputs.kept.views))
  again = inputs.run(rows, view, parallel.rows(min(AT_ONCE, count), inputs.mesh))
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True)
  return all(_close(kept[view * count + rows], value) for kept, value in pairs)


def _close(kept: np.ndarray, value: np.ndarray) -> bool:
  kept, value = np.asarray(kept, np.float64), np.asarray(value, np.float64)
  return bool(np.abs(kept - value).max(initial=0) <= TOLERANCE * np.abs(value).max(initial=0))


def empty(kept: Kept) -> Iterator[tuple[tuple[int, ...], Any]]:
  """Shape and dtype of every array that `compute` fills."""
  for leaf in jax.tree.leaves(kept.value):
    yield (kept.views * kept.examples, *leaf.shape), leaf.dtype
