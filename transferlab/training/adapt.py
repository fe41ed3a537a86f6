"""AdaBN: BatchNorm statistics recomputed on the target's training inputs (Li et al. 2016, algorithm 1)."""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transferlab import paths
from transferlab.data import preprocessing
from transferlab.data.loader import evaluation_batches
from transferlab.networks import layers
from transferlab.networks.network import Network


@functools.lru_cache(maxsize=16)
def _moments(network: Network, stages: frozenset[str]) -> Any:
  def moments(variables: Mapping[str, Any], record: Mapping[str, Any], x: jax.Array, mask: jax.Array) -> Any:
    inputs = {'x': preprocessing.apply(x, record['shift'], record['scale']), 'example_mask': mask}
    with layers.replacing_statistics():
      _, stats = network.apply(variables, inputs, train=False, statistics=stages)
    return stats

  return jax.jit(moments)


def adapt(
  network: Network,
  variables: Mapping[str, Any],
  record: Mapping[str, Any],
  x: np.ndarray,
  stages: Collection[str],
  batch_size: int = 512,
) -> dict[str, Any]:
  """The variables with the statistics of `stages` replaced by those of all of `x`.

  Mean and variance are pooled over batches: mean = Σ n_b m_b / N, var = Σ n_b (v_b + m_b²) / N − mean². Where the
  data fit one batch they are those of the whole; beyond that a later layer sees its inputs normalised batch by batch.

  Args:
    x: [examples, …] training inputs, not yet preprocessed.
  """
  moments = _moments(network, frozenset(stages))
  sums: dict[str, Any] = {}
  for part, mask in evaluation_batches(len(x), min(batch_size, len(x))):
    batch = np.pad(x[part], [(0, len(mask) - (part.stop - part.start))] + [(0, 0)] * (x.ndim - 1))
    flat = paths.flatten(moments({k: variables[k] for k in ('params', 'stats')}, record, batch, mask))
    for path, value in flat.items():
      if path.endswith('/var'):
        value = value + jnp.square(flat[path.removesuffix('var') + 'mean'])
      sums[path] = sums.get(path, 0) + value * mask.sum()
  pooled = {path: value / len(x) for path, value in sums.items()}
  for path in [path for path in pooled if path.endswith('/var')]:
    pooled[path] = jnp.maximum(pooled[path] - jnp.square(pooled[path.removesuffix('var') + 'mean']), 0)
  old = paths.flatten(variables['stats'])
  stats = {path: pooled[path] if paths.stage_of(path) in stages else leaf for path, leaf in old.items()}
  return {**variables, 'stats': paths.unflatten(stats)}
