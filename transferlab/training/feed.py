"""From places in the data to compiled steps: held on the device and scanned, streamed, or under pmap. Talks to devices.

The three have one interface and give the same batches. `place` puts a tree where the compiled step wants it, `single`
takes it back, `train` runs steps.
"""

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
  """What the loop wants of a way to train."""

  def place(self, tree: Any) -> Any:
    """State or constants, where the compiled step wants them."""

  def single(self, tree: Any) -> Any:
    """The inverse of `place`."""

  def train(self, method: Method, state: Any, constants: Any, step: int, count: int) -> tuple[Any, Any]:
    """Runs steps `step` … `step + count − 1`; metrics come as [count] arrays."""


class Held:
  """Data on the device, at most `room` steps a call; serves populations too."""

  def __init__(self, arrays: Sequence[dict[str, Any]], orders: Sequence[Order], mesh: Mesh | None, room: int):
    self.population, self.orders, self.mesh, self.room = len(arrays) > 1, orders, mesh, room
    held = _padded(arrays) if self.population else arrays[0]
    self.arrays = parallel.place(held, mesh)
    self.ahead: tuple[int, Any] | None = None

  def place(self, tree: Any) -> Any:
    return parallel.place(tree, self.mesh)

  def single(self, tree: Any) -> Any:
    return tree

  def _picks(self, step: int) -> Any:
    picks = [order.batches(step, self.room) for order in self.orders]
    if self.population:
      return {name: np.stack([pick[name] for pick in picks]) for name in picks[0]}
    return parallel.place(picks[0], self.mesh, batch_axis=1)

  def train(self, method: Method, state: Any, constants: Any, step: int, count: int) -> tuple[Any, Any]:
    assert count <= self.room
    train = parallel.chunk(method, self.mesh, self.population)
    picks = self.ahead[1] if self.ahead and self.ahead[0] == step else self._picks(step)
    state, metrics = train(state, constants, self.arrays, picks, np.int32(count))
    # While the device works, the host prepares what comes next.
    self.ahead = (step + count, self._picks(step + count))
    taken = np.s_[:, :count] if self.population else np.s_[:count]
    return state, {name: values[taken] for name, values in jax.device_get(metrics).items()}


class Streamed:
  """One step a call, on batches that grain gathers ahead."""

  def __init__(self, arrays: dict[str, Any], order: Order, mesh: Mesh | None, workers: int):
    self.arrays, self.order, self.mesh, self.workers = arrays, order, mesh, workers
    self.iterator: Any = None
    self.position = -1

  def place(self, tree: Any) -> Any:
    return parallel.place(tree, self.mesh)

  def single(self, tree: Any) -> Any:
    return tree

  def train(self, method: Method, state: Any, constants: Any, step: int, count: int) -> tuple[Any, Any]:
    if self.position != step:
      self.iterator = loader.stream(self.arrays, self.order, step, self.workers)
    train, pieces = parallel.single(method, self.mesh), []
    names: list[str] = []
    for _ in range(count):
      batch = next(self.iterator)
      # On one device the compiled step takes what it needs of the host's arrays by itself, and faster.
      batch = batch if self.mesh is None else parallel.place(batch, self.mesh, batch_axis=0)
      names = names or parallel.metric_names(method, state, constants, batch)
      state, values = train(state, constants, batch)
      pieces.append(values)
    self.position = step + count
    measured = np.stack(jax.device_get(pieces), axis=1)
    return state, dict(zip(names, measured))


class Mapped:
  """One step a call under pmap; the batch is cut into a part for each device."""

  def __init__(self, arrays: dict[str, Any], order: Order, chosen: Sequence[jax.Device]):
    self.arrays, self.order, self.chosen = arrays, order, tuple(chosen)
    # Copies that stood elsewhere would travel to their devices anew in every step.
    self.mesh = Mesh(np.array(chosen), (parallel.AXIS,))

  def place(self, tree: Any) -> Any:
    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(self.chosen), *leaf.shape)), tree)
    return parallel.place(copies, self.mesh, batch_axis=0)

  def single(self, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)

  def train(self, method: Method, state: Any, constants: Any, step: int, count: int) -> tuple[Any, Any]:
    train, pieces = parallel.mapped(method, self.chosen), []
    for number in range(step, step + count):
      picks = {name: value[0] for name, value in self.order.batches(number, 1).items()}
      batch = loader.gather(self.arrays, picks)
      parts = jax.tree.map(lambda leaf: leaf.reshape(len(self.chosen), -1, *leaf.shape[1:]), batch)
      state, metrics = train(state, constants, parts)
      pieces.append(metrics)
    return state, jax.tree.map(lambda *leaves: np.stack(leaves)[:, 0], *jax.device_get(pieces))


def _padded(arrays: Sequence[dict[str, Any]]) -> Any:
  """Stacked members; shorter ones are filled with zeros that no order ever points at."""
  longest = max(len(member['id']) for member in arrays)
  fill = lambda leaf: np.pad(leaf, [(0, longest - len(leaf))] + [(0, 0)] * (leaf.ndim - 1))
  return jax.tree.map(lambda *leaves: np.stack([fill(leaf) for leaf in leaves]), *arrays)
