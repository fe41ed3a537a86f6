"""Exact evaluation: every example counts once, on any batch size and any number of devices. Talks to devices.

Batches are padded and the padding cut off again; metrics (metrics.py) are computed from the complete outputs.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from transferlab.data import preprocessing
from transferlab.data.loader import evaluation_batches
from transferlab.networks import layers
from transferlab.networks.network import Network
from transferlab.training import parallel


@functools.lru_cache(maxsize=64)
def _forward(network: Network, population: bool, start: str | None, stop: str | None) -> Any:
  last = network.stages[network.stages.index(stop) - 1 if stop else -1]

  def forward(variables: Mapping[str, Any], record: Mapping[str, Any], x: Any) -> Any:
    inputs = x if start else preprocessing.apply(x, record['shift'], record['scale'])
    outputs, _ = network.apply(variables, inputs, start=start, stop=stop)
    return outputs[last]

  return jax.jit(jax.vmap(forward) if population else layers.unlooped(forward))


def predict(
  network: Network,
  variables: Mapping[str, Any],
  record: Mapping[str, Any],
  x: Any,
  batch_size: int,
  mesh: Mesh | None = None,
  population: bool = False,
  *,
  start: str | None = None,
  stop: str | None = None,
) -> Any:
  """The head's outputs for all examples, in order, as NumPy.

  Args:
    variables: parameters and statistics; in a population each leaf has a leading axis of members.
    record: arrays 'shift' and 'scale' of the preprocessing.
    x: [examples, …] ([members, examples, …] in a population), not yet preprocessed.
    start: the stage to start at; `x` is then the value before it, an array or a dict of arrays.
    stop: the stage to stop before; the value before it takes the place of the head's outputs.

  Returns:
    [examples, …] ([members, examples, …]), or `{task: …}`.
  """
  axis = 1 if population else 0
  rows = parallel.rows(batch_size, mesh)
  forward, variables = _forward(network, population, start, stop), parallel.place(variables, mesh)
  pieces = []

  def padded(leaf: Any, part: slice) -> np.ndarray:
    batch = np.asarray(leaf[:, part] if population else leaf[part])
    missing = rows - batch.shape[axis]
    return np.pad(batch, [(0, missing if index == axis else 0) for index in range(batch.ndim)])

  for part, mask in evaluation_batches(jax.tree.leaves(x)[0].shape[axis], rows):
    batch = jax.tree.map(functools.partial(padded, part=part), x)
    outputs = forward(variables, record, parallel.place(batch, mesh, axis))
    real = np.flatnonzero(mask)
    pieces.append(jax.tree.map(lambda leaf, real=real: np.take(leaf, real, axis), jax.device_get(outputs)))
  return jax.tree.map(lambda *parts: np.concatenate(parts, axis), *pieces)
