"""Exact evaluation: every example counts once, on any batch size and any number of devices. Talks to devices.

Batches are padded and the padding cut off again; metrics (metrics.py) are computed from the complete outputs.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from transferlab.data import preprocessing
from transferlab.data.loader import evaluation_batches
from transferlab.networks import layers
from transferlab.networks.network import Network
from transferlab.training import parallel

LOGITS = 2**25  # that a language model without a state gives at a time


@functools.lru_cache(maxsize=64)
def _forward(network: Network, population: bool, start: str | None, stop: str | None) -> Any:
  last = network.stages[network.stages.index(stop) - 1 if stop else -1]

  def forward(variables: Mapping[str, Any], record: Mapping[str, Any], x: Any) -> Any:
    inputs = x if start else preprocessing.apply(x, record['shift'], record['scale'])
    outputs, _ = network.apply(variables, inputs, start=start, stop=stop)
    return outputs[last]

  return jax.jit(jax.vmap(forward) if population else layers.unlooped(forward))


@functools.lru_cache(maxsize=64)
def _reading(network: Network, population: bool) -> Any:
  def read(variables: Mapping[str, Any], carry: Any, x: Any, following: Any) -> tuple[Any, Any]:
    outputs, _ = network.apply(variables, x if carry is None else {'x': x, 'carry': carry})
    logits = outputs[network.stages[-1]].astype(jnp.float32)
    likelihoods = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(following, 0)[..., None], axis=-1)
    hits = (logits.argmax(axis=-1) == following).astype(jnp.float32)
    scores = jnp.concatenate([likelihoods, hits[..., None]], axis=-1)
    return scores, None if carry is None else outputs[network.stages[-2]]['carry']

  return jax.jit(jax.vmap(read) if population else read)


def next_tokens(
  network: Network, variables: Mapping[str, Any], x: Mapping[str, Any], population: bool = False
) -> Float[np.ndarray, 'streams windows places two']:
  """The log-likelihood in nats of every next token, and whether it was the likeliest, the state carried over windows;
  where the network carries none each window is read by itself.

  Args:
    variables: as in `predict`.
    x: 'x' and 'next' [streams, windows, places] (windows.py); [members, streams, …] in a population.

  Returns:
    float32 [streams, windows, places, 2], without meaning where 'next' is −1; with a leading axis in a population.
  """
  given, following = x['x'], x['next']
  streams, windows = given.shape[-3:-1]
  if network.carry is None:
    return _each_window(network, variables, given, following, population)
  carry = network.carry(streams)
  if population:
    carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(given), *leaf.shape)), carry)
  read, pieces = _reading(network, population), []
  for window in range(windows):
    scores, carry = read(variables, carry, given[..., window, :], following[..., window, :])
    pieces.append(scores)
  return np.stack(jax.device_get(pieces), axis=2 if population else 1)


def _each_window(
  network: Network, variables: Mapping[str, Any], x: np.ndarray, following: np.ndarray, population: bool
) -> Float[np.ndarray, 'streams windows places two']:
  """`next_tokens` without a state: as many windows at a time as leave logits of a bearable size."""
  read, axis, (streams, windows, places) = _reading(network, population), x.ndim - 3, x.shape[-3:]
  flat = [each.reshape(*x.shape[:-3], streams * windows, places) for each in (x, following)]
  outputs, _ = jax.eval_shape(network.apply, network.shapes(), network.example(1, (places,)))
  rows = min(max(LOGITS // math.prod(outputs[network.stages[-1]].shape), 1), streams * windows)
  pieces = []
  for start in range(0, streams * windows, rows):
    part = [each[..., start : start + rows, :] for each in flat]
    missing = rows - part[0].shape[axis]
    pads = [(0, missing if place == axis else 0) for place in range(axis + 2)]
    scores, _ = read(variables, None, *(np.pad(each, pads, constant_values=-1) for each in part))
    pieces.append(jax.device_get(scores)[..., : rows - missing, :, :])
  return np.concatenate(pieces, axis).reshape(*x.shape, 2)


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
  buckets: Sequence[int] = (),
) -> Any:
  """The head's outputs for all examples, in order, as NumPy.

  Args:
    variables: parameters and statistics; in a population each leaf has a leading axis of members.
    record: arrays 'shift' and 'scale' of the preprocessing.
    x: [examples, …] ([members, examples, …] in a population), not yet preprocessed.
    start: the stage to start at; `x` is then the value before it, an array or a dict of arrays.
    stop: the stage to stop before; the value before it takes the place of the head's outputs.
    buckets: lengths to which batches of texts may be cut, texts of like lengths together; only for what one text gives
      in one vector, and not in a population.

  Returns:
    [examples, …] ([members, examples, …]), or `{task: …}`.
  """
  if buckets and not population and start is None and stop is None:
    return _by_length(network, variables, record, x, batch_size, mesh, buckets)
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


def _by_length(
  network: Network,
  variables: Mapping[str, Any],
  record: Mapping[str, Any],
  x: Any,
  batch_size: int,
  mesh: Mesh | None,
  buckets: Sequence[int],
) -> Any:
  """`predict` on texts that are sorted by length, each bucket cut to its own."""
  x = np.asarray(x)
  bucket = np.searchsorted(buckets, (x >= 0).sum(axis=1))
  found, places = [], []
  for number in np.unique(bucket):
    rows = np.flatnonzero(bucket == number)
    cut = x[rows, : buckets[number]] if number < len(buckets) else x[rows]
    found.append(predict(network, variables, record, cut, batch_size, mesh))
    places.append(rows)
  order = np.argsort(np.concatenate(places))
  return jax.tree.map(lambda *parts: np.concatenate(parts)[order], *found)
