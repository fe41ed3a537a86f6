"""What ways of freezing cost: operations, memory and optimizer state of one step, as the compiler reports them.

python experiments/performance/freezing.py

A deep MLP of which only the head is to train, under Adam with weight decay. The last rows are the program's own way:
a trainable and a frozen tree with None in the holes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transferlab.data.augmentation import Augment
from transferlab.data.examples import Info
from transferlab.networks import network as networks
from transferlab.training import methods, report
from transferlab.training.phases import Phase

WIDTH, DEPTH, BATCH, CLASSES = 1024, 6, 256, 10
NETWORK = networks.build('mlp', {'hidden': [WIDTH] * DEPTH}, (WIDTH,), CLASSES)


def with_optax(optimizer: optax.GradientTransformation, log_norm: bool = False) -> tuple[float, float, float]:
  """A step that differentiates everything and leaves freezing to the optimizer: (GFLOP, MiB, optimizer MiB)."""

  def step(params: Any, slots: Any, x: jax.Array, y: jax.Array) -> Any:
    def loss(params: Any) -> jax.Array:
      outputs, _ = NETWORK.apply({'params': params, 'stats': {}}, x, train=True)
      return optax.softmax_cross_entropy_with_integer_labels(outputs['head'], y).mean()

    value, gradients = jax.value_and_grad(loss)(params)
    updates, slots = optimizer.update(gradients, slots, params)
    norm = optax.global_norm(gradients) if log_norm else jnp.zeros(())
    return optax.apply_updates(params, updates), slots, value, norm

  params = NETWORK.shapes()['params']
  slots = jax.eval_shape(optimizer.init, params)
  x, y = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32), jax.ShapeDtypeStruct((BATCH,), jnp.int32)
  compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, slots, x, y).compile()
  return compiled.cost_analysis()['flops'] / 1e9, compiled.memory_analysis().temp_size_in_bytes / 2**20, mib(slots)


def with_split(**phase: Any) -> tuple[float, float, float]:
  """The program's own step."""
  settings = Phase(steps=1, optimizer='adamw', **phase)
  x, y = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32), jax.ShapeDtypeStruct((BATCH,), jnp.int32)
  info = Info('table', 'classification', tuple(map(str, range(CLASSES))))
  example = methods.example_of((WIDTH,), y, Augment(), info)
  stretch = methods.stretches(NETWORK, [settings], [1], None, info, Augment(), example)[0]
  record = {'shift': jax.ShapeDtypeStruct((WIDTH,), jnp.float32), 'scale': jax.ShapeDtypeStruct((WIDTH,), jnp.float32)}
  record = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), record)
  cost = report.cost(stretch, NETWORK.shapes(), {'x': x, 'label': y}, BATCH, record)
  return cost.operations / 1e9, cost.temporaries / 2**20, cost.optimizer / 2**20


def mib(tree: Any) -> float:
  """Size of all leaves."""
  return report.size(tree) / 2**20


def labels(params: Any) -> dict[str, str]:
  """'train' for the head, 'freeze' for every other stage."""
  return {stage: 'train' if stage == 'head' else 'freeze' for stage in params}


def main() -> None:
  """Prints the table."""
  partitioned = optax.partition({'train': optax.adamw(1e-3), 'freeze': optax.set_to_zero()}, labels)
  rows: dict[str, Callable[[], tuple[float, float, float]]] = {
    'everything trains': lambda: with_optax(optax.adamw(1e-3)),
    'head: optax.partition with set_to_zero': lambda: with_optax(partitioned),
    '  … behind clip_by_global_norm': lambda: with_optax(optax.chain(optax.clip_by_global_norm(1.0), partitioned)),
    '  … with the gradient norm logged': lambda: with_optax(partitioned, log_norm=True),
    'head: split trees (transferlab)': lambda: with_split(train='head'),
    '  … with clip': lambda: with_split(train='head', clip=1.0),
    'biases: split trees (transferlab)': lambda: with_split(train='.*/bias'),
    'everything: split trees (transferlab)': lambda: with_split(train='.*'),
  }
  print(f'| way of freezing ({DEPTH} layers of {WIDTH}, batch {BATCH}) | GFLOP | temporary MiB | optimizer MiB |')
  print('|---|---:|---:|---:|')
  for name, measure in rows.items():
    operations, temporary, optimizer = measure()
    print(f'| {name} | {operations:.2f} | {temporary:.1f} | {optimizer:.2f} |')


if __name__ == '__main__':
  main()
