"""Features of all examples at the stages of a network, in evaluation mode, for probes. Talks to devices.

One compiled function per network and choice of stages runs a batch once for all of them; batches are padded and the
padding is cut off again, so that neither batch size nor number of devices changes an example's features.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from transferlab.data import preprocessing
from transferlab.data.loader import evaluation_batches
from transferlab.errors import UserError, unknown
from transferlab.evaluation.baselines import ALL
from transferlab.networks import layers, sequences
from transferlab.networks.network import Network
from transferlab.training import parallel

Pool = Literal['mean', 'flat']


def chosen(network: Network, stage: str | None) -> tuple[str, ...]:
  """The stages that a config means, in their order: one by its name, or 'all'.

  Raises:
    UserError: the network has no such stage.
  """
  if stage != ALL and stage not in network.stages:
    raise unknown('stage', stage, [*network.stages, ALL])
  return network.stages if stage == ALL else (str(stage),)


def pooled(value: Any, pool: Pool) -> Float[Array, 'batch features']:
  """A stage's output as one vector per example.

  Args:
    value: [batch, …, features], or a dict that holds it under 'x'.
    pool: 'mean' over places, as `View.features`; 'flat': the features of every place, one after the other.
  """
  features = value['x'] if isinstance(value, Mapping) else value
  return features.reshape(features.shape[0], -1) if pool == 'flat' else sequences.averaged(features, value)


@functools.lru_cache(maxsize=64)
def _forward(network: Network, stages: tuple[str, ...], pool: Pool) -> Any:
  def forward(variables: Mapping[str, Any], record: Mapping[str, Any], x: Array) -> dict[str, Array]:
    outputs, _ = network.apply(variables, preprocessing.apply(x, record['shift'], record['scale']))
    return {stage: pooled(outputs[stage], pool) for stage in stages}

  return jax.jit(layers.unlooped(forward))


def widths(network: Network, stages: Sequence[str], example: jax.ShapeDtypeStruct, pool: Pool) -> dict[str, int]:
  """How many features each of the stages has; nothing is computed.

  Args:
    example: the inputs of a batch, preprocessed or not.
  """
  sizes = (0,) if example.dtype == np.int32 and network.dtype == jnp.int32 else example.shape[-1:]
  record = {name: jax.ShapeDtypeStruct(sizes, np.float32) for name in ('shift', 'scale')}
  shapes = jax.eval_shape(_forward(network, tuple(stages), pool), network.shapes(), record, example)
  return {stage: int(shapes[stage].shape[1]) for stage in stages}


def check_size(count: int, widths: Mapping[str, int]) -> None:
  """Raises `UserError` where the features of `count` examples would not fit the memory of the machine.

  Half of it may be taken: float32 for all stages, and float64 twice for the stage that is being fitted.
  """
  size = count * (4 * sum(widths.values()) + 16 * max(widths.values()))
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if size > memory / 2:
    widest = max(widths, key=lambda stage: widths[stage])
    raise UserError(
      f'config.baseline: features of {count:,} examples take {size / 2**30:,.1f} GiB ({widths[widest]:,} of each at '
      f"{widest!r}), and the machine has {memory / 2**30:,.1f} GiB of memory; pool='mean' or a single stage takes less"
    )


def features(
  network: Network,
  variables: Mapping[str, Any],
  record: Mapping[str, Any],
  x: Any,
  stages: Sequence[str],
  *,
  pool: Pool = 'mean',
  batch_size: int = 256,
  mesh: Mesh | None = None,
) -> dict[str, Float[np.ndarray, 'examples features']]:
  """The features of all examples at each of the stages, in order.

  Args:
    variables: the network's parameters and statistics.
    record: arrays 'shift' and 'scale' of the preprocessing.
    x: [examples, …], an array or a `Column`, not yet preprocessed; read a batch at a time.
    stages: names of stages of the network.
    pool: see `pooled`.

  Returns:
    `{stage: [examples, features]}`, float32.
  """
  stages = tuple(stages)
  rows = parallel.rows(min(batch_size, max(len(x), 1)), mesh)
  forward, variables = _forward(network, stages, pool), parallel.place(variables, mesh)
  sizes = widths(network, stages, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), pool)
  found = {stage: np.empty((len(x), sizes[stage]), np.float32) for stage in stages}
  for part, mask in evaluation_batches(len(x), rows):
    batch = np.asarray(x[part])
    batch = np.pad(batch, [(0, rows - len(batch)), *[(0, 0)] * (batch.ndim - 1)])
    outputs = jax.device_get(forward(variables, record, parallel.place(batch, mesh, 0)))
    for stage in stages:
      found[stage][part] = outputs[stage][mask]
  return found
