"""How the step is compiled: jit over a data-parallel mesh, in a scan, for a population, or under pmap.

`jax.jit` over a mesh is the reference: parameters replicated, batches split along their examples. pmap is a thin
alternative on which nothing else depends. Talks to devices.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transferlab.data.augmentation import couples
from transferlab.data.loader import gather
from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.training.settings import Parallel
from transferlab.training.step import Batch, Constants, Method, State, begin, train_step

AXIS = 'data'
Train = Callable[[State, Constants, Batch | None, Batch, Any], tuple[State, dict[str, jax.Array]]]


def devices(parallel: Parallel) -> list[jax.Device]:
  """The devices to train on. Raises `UserError` where there are fewer than asked for."""
  found = jax.devices()
  if parallel.devices is not None and parallel.devices > len(found):
    raise UserError(f'config.parallel.devices: {parallel.devices} asked for, {len(found)} there')
  return found[: parallel.devices]


def make_mesh(chosen: list[jax.Device]) -> Mesh | None:
  """A data-parallel mesh on Auto axes; None for a single device, which needs none."""
  if len(chosen) == 1:
    return None
  return jax.make_mesh((len(chosen),), (AXIS,), devices=chosen, axis_types=(AxisType.Auto,))


def place(tree: Any, mesh: Mesh | None, batch_axis: int | None = None) -> Any:
  """Puts arrays on the mesh: replicated, or split along `batch_axis`."""
  if mesh is None:
    return jax.device_put(tree)
  spec = P() if batch_axis is None else P(*[None] * batch_axis, AXIS)
  return jax.device_put(tree, NamedSharding(mesh, spec))


@functools.lru_cache(maxsize=64)
def beginning(method: Method, population: bool) -> Callable[[Any, Any], State]:
  """The transition into a phase, `begin(variables, step) -> state`, compiled."""
  one = lambda tree, step: begin(method, tree['params'], tree['stats'], tree['term_stats'], step)
  return jax.jit(jax.vmap(one, in_axes=(0, None)) if population else one)


@functools.lru_cache(maxsize=64)
def chunk(method: Method, mesh: Mesh | None, population: bool, looped: bool = True) -> Train:
  """Many steps in one call: `train(state, constants, arrays, picks, count)`.

  One batch after the other, the first `count` of `picks` [steps, batch]: places in `arrays`, from which the batch is
  gathered (`Order.batches`); or, where `arrays` is None, whole batches [steps, batch, …] (`loader.stream`). Returns
  the state and the metrics [steps]. `count` is an argument, so chunks of every length share one compilation. In a
  population every argument but `count` has a leading axis of members. The state is donated.

  Args:
    looped: a compiled loop over the steps; else a compiled step that is called `count` times (see `loops`).
  """

  def step(state: State, constants: Constants, arrays: Batch | None, picks: Batch, index: jax.Array | int) -> Any:
    pick = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), picks)
    return train_step(method, state, constants, pick if arrays is None else gather(arrays, pick))

  def next_row(
    carry: tuple[State, jax.Array], constants: Constants, arrays: Batch | None, picks: Batch, index: jax.Array
  ) -> tuple[State, jax.Array]:
    state, measured = step(carry[0], constants, arrays, picks, index)
    # One row of all metrics: writing each into an array of its own costs a small step visibly more.
    return state, carry[1].at[index].set(jnp.stack([measured[name] for name in sorted(measured)]))

  def start(state: State, *others: Any) -> tuple[list[str], jax.Array]:
    """Names of the metrics, and an empty row for each step."""
    names = sorted(jax.eval_shape(step, state, *others, 0)[1])
    return names, jnp.zeros((others[2]['place'].shape[0], len(names)), jnp.result_type(float))

  def train(state: State, constants: Constants, arrays: Batch | None, picks: Batch, count: jax.Array) -> Any:
    names, table = start(state, constants, arrays, picks)
    body = lambda index, carry: next_row(carry, constants, arrays, picks, index)
    state, table = lax.fori_loop(0, count, body, (state, table))
    return state, dict(zip(names, table.T))

  if looped:
    mapped = jax.vmap(train, in_axes=(0, 0, 0, 0, None)) if population else train
    return jax.jit(mapped, donate_argnums=0, **_outputs(mesh))
  once = jax.jit(layers.unlooped(next_row), donate_argnums=0, **_outputs(mesh))
  started: list[Any] = []  # tracing takes time, so the names are found once

  def call(state: State, constants: Constants, arrays: Batch | None, picks: Batch, count: int) -> Any:
    if not started:
      started[:] = start(state, constants, arrays, picks)
    names, table = started
    carry = state, place(jnp.zeros_like(table), mesh)
    for index in range(int(count)):
      carry = once(carry, constants, arrays, picks, np.int32(index))
    return carry[0], dict(zip(names, carry[1].T))

  return call


# Pixels in a batch from which a CPU convolves faster outside of compiled loops: at 128 × 32 × 32 a ResNet-20 does, by
# 1.7 times; at 128 × 28 × 28 a convnet of two layers does not, by as much.
MANY = 2**17


def loops(method: Method, shape: Sequence[int]) -> bool:
  """Whether many steps on batches of this shape are faster as one compiled loop than called one by one.

  They are, but for convolutions of large batches on a CPU: inside a loop XLA gives its convolution one thread, and the
  way around (`layers.convolve`) moves more memory. ResNet-20 at batch 128 takes 1.7 times as long in a loop.
  """
  params = method.network.shapes()['params']
  convolves = any(leaf.ndim == 4 for leaf in jax.tree.leaves([params.get(stage) for stage in method.stages]))
  return jax.default_backend() != 'cpu' or not convolves or len(shape) < 4 or math.prod(shape[:3]) < MANY


@functools.lru_cache(maxsize=64)
def single(method: Method) -> Any:
  """One step on one batch, compiled by itself: what a step costs is read from this one. The state is donated."""
  return jax.jit(functools.partial(train_step, method), donate_argnums=0)


def _outputs(mesh: Mesh | None) -> dict[str, Any]:
  return {} if mesh is None else {'out_shardings': NamedSharding(mesh, P())}


@functools.lru_cache(maxsize=64)
def mapped(method: Method, chosen: tuple[jax.Device, ...]) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
  """One step under pmap: state and constants with a leading device axis, the batch as [devices, batch / devices, …].

  Raises:
    UserError: a term, or mixing, couples examples across the batch: on a device it would see only that device's.
  """
  if couples(method.augment):
    raise UserError("config.parallel.compile: 'pmap' cannot mix examples across the batch (mixup, cutmix); use 'jit'")
  if method.streams:
    raise UserError("config.parallel.compile: 'pmap' cannot carry the state of a language model; use 'jit'")
  if method.objective.balancer is not None:
    raise UserError("config.parallel.compile: 'pmap' cannot balance tasks, whose gradients it has in parts; use 'jit'")
  if coupling := [name for name, term in method.objective.terms.items() if term.couples]:
    raise UserError(
      f"config.parallel.compile: 'pmap' cannot serve term {coupling[0]!r}, which couples examples across the batch; "
      "use 'jit'"
    )
  return jax.pmap(functools.partial(train_step, method, axis=AXIS), axis_name=AXIS, devices=chosen, donate_argnums=0)


def rows(batch_size: int, mesh: Mesh | None) -> int:
  """The batch size rounded up to what the mesh's devices divide."""
  count = 1 if mesh is None else mesh.size
  return -(-batch_size // count) * count
