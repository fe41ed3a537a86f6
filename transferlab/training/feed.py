"""From places in the data to compiled steps: held on the device and scanned, streamed, or under pmap. Talks to devices.

The three have one interface and give the same batches. `place` puts a tree where the compiled step wants it, `single`
takes it back, `train` runs steps.
"""

import functools
import math
import time
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from transferlab.data import loader
from transferlab.data.loader import Order
from transferlab.training import parallel
from transferlab.training.step import Method


class Feed(Protocol):
  """What the loop wants of a way to train.

  Attributes:
    waited: share of the last call's time in which the device may have waited for data; None where it never does.
  """

  waited: float | None

  def place(self, tree: Any) -> Any:
    """State or constants, where the compiled step wants them."""

  def single(self, tree: Any) -> Any:
    """The inverse of `place`."""

  def train(self, method: Method, state: Any, constants: Any, step: int, count: int) -> tuple[Any, Any]:
    """Runs steps `step` … `step + count − 1`; metrics come as [count] arrays."""

  def close(self) -> None:
    """Ends what prepares batches."""


class Held:
  """Data on the device, at most `room` steps a call; serves populations too."""

  def __init__(self, arrays: Sequence[dict[str, Any]], orders: Sequence[Order], mesh: Mesh | None, room: int):
    self.population, self.orders, self.mesh, self.room = len(arrays) > 1, orders, mesh, room
    self.members = arrays
    self.ahead: tuple[int, Any] | None = None
    self.waited = None
    self.cuts: dict[int, Any] = {}

  @functools.cached_property
  def arrays(self) -> Any:
    """All examples on the device; those that are read on demand are read when the first step wants them."""
    read = jax.tree.map(np.asarray, list(self.members))
    return parallel.place(_padded(read) if self.population else read[0], self.mesh)

  def close(self) -> None:
    pass

  def place(self, tree: Any) -> Any:
    return parallel.place(tree, self.mesh)

  def single(self, tree: Any) -> Any:
    return tree

  def _picks(self, step: int) -> Any:
    picks = [_of_examples(order.batches(step, self.room)) for order in self.orders]
    if self.population:
      return jax.tree.map(lambda *leaves: np.stack(leaves), *picks)
    return parallel.place(picks[0], self.mesh, batch_axis=1)

  def train(self, method: Method, state: Any, constants: Any, step: int, count: int) -> tuple[Any, Any]:
    assert count <= self.room
    looped = self.population or parallel.loops(method, _batch_shape(self.arrays, self.orders[0]))
    train = parallel.chunk(method, self.mesh, self.population, looped)
    if not self.population and self.orders[0].buckets and 'x' in self.arrays:
      return self._bucketed(train, state, constants, step, count)
    picks = self.ahead[1] if self.ahead and self.ahead[0] == step else self._picks(step)
    state, metrics = train(state, constants, self.arrays, picks, np.int32(count))
    # While the device works, the host prepares what comes next.
    self.ahead = (step + count, self._picks(step + count))
    taken = np.s_[:, :count] if self.population else np.s_[:count]
    return state, {name: values[taken] for name, values in jax.device_get(metrics).items()}

  def _bucketed(self, train: Any, state: Any, constants: Any, step: int, count: int) -> tuple[Any, Any]:
    """The same in runs of steps of one length, on inputs that are cut to it."""
    picks, pieces = self.orders[0].batches(step, self.room), []
    lengths = picks.pop('length')[:count]
    starts = [0, *(np.flatnonzero(np.diff(lengths)) + 1)]
    for start, stop in zip(starts, [*starts[1:], count]):
      # Rolled rather than cut, so that every call of a length has the same shapes.
      own = jax.tree.map(functools.partial(np.roll, shift=-start, axis=0), picks)
      placed = parallel.place(own, self.mesh, batch_axis=1)
      state, metrics = train(state, constants, self._cut(int(lengths[start])), placed, np.int32(stop - start))
      pieces.append((metrics, stop - start))
    measured = [{name: values[:taken] for name, values in one.items()} for one, taken in jax.device_get(pieces)]
    return state, {name: np.concatenate([piece[name] for piece in measured]) for name in measured[0]}

  def _cut(self, length: int) -> Any:
    """All examples, their inputs cut to a length."""
    if length not in self.cuts:
      self.cuts[length] = {**self.arrays, 'x': self.arrays['x'][:, :length]}
    return self.cuts[length]


class Streamed:
  """Blocks of batches that grain gathers ahead; at most `room` steps a call, and few where batches are large.

  While the device works on a block, the next one is put on the device.
  """

  def __init__(self, arrays: dict[str, Any], order: Order, mesh: Mesh | None, workers: int, room: int):
    self.arrays, self.order, self.mesh, self.workers = arrays, order, mesh, workers
    self.steps = max(1, min(room, BLOCK // (order.rows * _bytes(arrays))))
    self.blocks: Any = None
    self.block: Any = None  # on the host, and on the device
    self.start = self.stop = 0  # the steps of the block at hand
    self.idle = 0.0
    self.waited: float | None = None

  def place(self, tree: Any) -> Any:
    return parallel.place(tree, self.mesh)

  def single(self, tree: Any) -> Any:
    return tree

  def close(self) -> None:
    if self.blocks is not None:
      self.blocks.close()
      self.blocks = None

  def _next(self, step: int, running: Any) -> None:
    """Takes the block that starts at `step`; the time counts as waiting unless `running` outlasts it."""
    begun = time.perf_counter()
    host = next(self.blocks)
    self.block = host, parallel.place(host, self.mesh, batch_axis=1)
    self.start, self.stop = step, step + self.steps
    if running is None or next(iter(running.values())).is_ready():
      self.idle += time.perf_counter() - begun

  def train(self, method: Method, state: Any, constants: Any, step: int, count: int) -> tuple[Any, Any]:
    looped = parallel.loops(method, _batch_shape(self.arrays, self.order))
    train, pieces, end = parallel.chunk(method, self.mesh, False, looped), [], step + count
    begun, self.idle = time.perf_counter(), 0.0
    if self.blocks is None or not self.start <= step < self.stop:
      self.close()
      self.blocks = loader.stream(self.arrays, self.order, step, self.steps, self.workers)
      self._next(step, None)
    while step < end:
      skipped, taken = step - self.start, min(end, self.stop) - step
      host, placed = self.block
      if skipped:  # rolled rather than cut, so that every call has the same shapes
        rolled = jax.tree.map(functools.partial(np.roll, shift=-skipped, axis=0), host)
        placed = parallel.place(rolled, self.mesh, batch_axis=1)
      state, metrics = train(state, constants, None, placed, np.int32(taken))
      pieces.append((metrics, taken))
      step += taken
      if step == self.stop:
        self._next(step, metrics)
    cut = [{name: values[:taken] for name, values in metrics.items()} for metrics, taken in jax.device_get(pieces)]
    self.waited = self.idle / (time.perf_counter() - begun)
    return state, {name: np.concatenate([piece[name] for piece in cut]) for name in cut[0]}


BLOCK = 2**22  # bytes that are streamed in a call, at least a batch


def _bytes(arrays: dict[str, Any]) -> int:
  """Bytes of one example."""
  return sum(math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


def _batch_shape(arrays: dict[str, Any], order: Order) -> tuple[int, ...]:
  """Of the inputs, or of the outputs of frozen stages that stand for them."""
  inputs = arrays['x'] if 'x' in arrays else arrays['seen']['x']
  return (order.rows, *jax.tree.leaves(inputs)[0].shape[1:])


class Mapped:
  """One step a call under pmap; the batch is cut into a part for each device."""

  def __init__(self, arrays: dict[str, Any], order: Order, chosen: Sequence[jax.Device]):
    self.arrays, self.order, self.chosen = arrays, order, tuple(chosen)
    self.waited = None
    # Copies that stood elsewhere would travel to their devices anew in every step.
    self.mesh = Mesh(np.array(chosen), (parallel.AXIS,))

  def close(self) -> None:
    pass

  def place(self, tree: Any) -> Any:
    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(self.chosen), *leaf.shape)), tree)
    return parallel.place(copies, self.mesh, batch_axis=0)

  def single(self, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)

  def train(self, method: Method, state: Any, constants: Any, step: int, count: int) -> tuple[Any, Any]:
    train, pieces = parallel.mapped(method, self.chosen), []
    for number in range(step, step + count):
      picks = jax.tree.map(lambda leaf: leaf[0], _of_examples(self.order.batches(number, 1)))
      batch = loader.gather(self.arrays, picks)
      parts = jax.tree.map(lambda leaf: leaf.reshape(len(self.chosen), -1, *leaf.shape[1:]), batch)
      state, metrics = train(state, constants, parts)
      pieces.append(metrics)
    return state, jax.tree.map(lambda *leaves: np.stack(leaves)[:, 0], *jax.device_get(pieces))


def _of_examples(picks: dict[str, Any]) -> dict[str, Any]:
  """Without what is of whole batches."""
  return {name: value for name, value in picks.items() if name != 'length'}


def _padded(arrays: Sequence[dict[str, Any]]) -> Any:
  """Stacked members; shorter ones are filled with zeros that no order ever points at."""

  def stacked(*leaves: np.ndarray) -> np.ndarray:
    longest = max(map(len, leaves))
    return np.stack([np.pad(leaf, [(0, longest - len(leaf))] + [(0, 0)] * (leaf.ndim - 1)) for leaf in leaves])

  return jax.tree.map(stacked, *arrays)
