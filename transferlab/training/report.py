"""What the compiler says a phase costs: operations and memory of one step. Compiles; runs nothing."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from transferlab.training import parallel
from transferlab.training.methods import Stretch
from transferlab.training.partition import split
from transferlab.training.step import begin
from transferlab.training.terms import with_terms


@dataclasses.dataclass(frozen=True)
class Cost:
  """One step of a phase. Operations are the compiler's count of floating-point operations; sizes are bytes."""

  operations: float
  memory: int
  temporaries: int
  optimizer: int
  trainable: int


def shapes_of(stretch: Stretch, shapes: Any, arrays: Any, rows: int, record: Any) -> tuple[Any, Any, Any]:
  """(state, constants, batch) of a phase's step, as shapes.

  Args:
    shapes: the network's variables as shapes.
    arrays: 'x', 'label' and 'id' of the training split.
    rows: examples in a batch.
  """
  method = stretch.method

  def make(variables: Any, theirs: Any) -> tuple[Any, Any]:
    objective, example = method.objective, stretch.example
    full = with_terms(method.network, [objective], variables, example, 0, method.asked, theirs, method.examples)
    state = begin(method, full['params'], full['stats'], full['term_stats'], jnp.int32(0))
    frozen = split(full['params'], method.trainable)[1]
    given = {'start_point': variables['params'], 'fisher': variables['params'], 'record': record, 'seed': 0}
    asked = {name: {'variables': own, 'preprocessing': record} for name, own in theirs.items()}
    member = type('Start', (), {**given, 'asked': asked})
    return state, {**stretch.constants(member, 0), 'frozen': frozen}

  state, constants = jax.eval_shape(make, shapes, {one.name: one.network.shapes() for one in method.asked})
  batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), dict(arrays))
  of_batch = lambda value: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype), value)
  if stretch.prefix is not None:
    batch['x'] = of_batch(stretch.prefix.value)
  if stretch.recordings:
    batch['recorded'] = {recording.asked.name: of_batch(recording.value) for recording in stretch.recordings}
  batch |= {
    'mask': jax.ShapeDtypeStruct((rows,), bool),
    'place': jax.ShapeDtypeStruct((rows,), jnp.int32),
    'row': jax.ShapeDtypeStruct((rows,), jnp.int32),
    'view': jax.ShapeDtypeStruct((rows,), jnp.int32),
  }
  if stretch.method.streams:
    batch['fresh'] = jax.ShapeDtypeStruct((rows,), jnp.int32)
  return state, constants, batch


def cost(stretch: Stretch, shapes: Any, arrays: Any, rows: int, record: Any) -> Cost:
  """What one step of a phase costs; arguments as in `shapes_of`."""
  state, constants, batch = shapes_of(stretch, shapes, arrays, rows, record)
  compiled = parallel.single(stretch.method).lower(state, constants, batch).compile()
  memory = compiled.memory_analysis()
  total = (
    memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  )
  return Cost(
    float(compiled.cost_analysis()['flops']),
    int(total),
    int(memory.temp_size_in_bytes),
    size(state['optimizer']),
    size(state['trainable']),
  )


def size(tree: Any) -> int:
  """Bytes of all leaves."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
