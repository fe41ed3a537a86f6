"""The gradient of a step: of the sum of its terms, or of several tasks as a balancer combines them.

One forward pass always. Balanced gradients of parameters take one backward pass for each task; of the shared
representation one through the heads for each task, and a single one through what tasks share. Pure.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from transferlab import paths
from transferlab.networks import sharing
from transferlab.networks.network import Network
from transferlab.objectives import balancing
from transferlab.objectives.balancers import NAME, Balancer, Tasks
from transferlab.objectives.objective import Objective
from transferlab.training import partition


class Terms(NamedTuple):
  """What the terms of an objective come to in a step.

  Attributes:
    values: of each term, weighted: their sum is the loss.
    metrics, term_stats: what is logged; the terms' state.
    moved: what the forward pass moves of the state: 'stats' and, of recurrent stages, 'carry'.
    own: the balancer's parameters and state.
    present: [tasks], 0 where the batch has no label that a term of the task needs.
    representation: what the last shared stage gives, where it is asked for.
  """

  values: dict[str, Array]
  metrics: dict[str, Array]
  moved: dict[str, Any]
  term_stats: dict[str, Any]
  own: dict[str, Any]
  present: Any = None
  representation: Any = None


Aux = tuple[dict[str, Array], dict[str, Any], dict[str, Any]]


def gradients(
  network: Network,
  objective: Objective,
  terms: Callable[..., Terms],
  trainable: Any,
  key: Array,
) -> tuple[Array, Aux, Any]:
  """(loss, (metrics, what the pass moved, the terms' state), gradient); the loss is a balancer's or the terms' sum.

  Args:
    terms: `terms(trainable, offset=None) -> Terms`; `offset` is added to what the last shared stage gives.
    key: of the step.
  """
  balancer = objective.balancer
  if balancer is not None and balancer.level != 'losses':
    return _balanced(network, objective, balancer, terms, trainable, key)

  def loss(trainable: Any) -> tuple[Array, Aux]:
    seen = terms(trainable)
    if balancer is None:
      return jnp.asarray(sum(seen.values.values())), (seen.metrics, seen.moved, seen.term_stats)
    losses, rest = by_task(objective, seen.values)
    combined, metrics, own = balancer.apply(Tasks(objective.kinds, losses, key, seen.present), seen.own)
    return combined + rest, (seen.metrics | _named(metrics), seen.moved, seen.term_stats | _state(own))

  (value, aux), slope = jax.value_and_grad(loss, has_aux=True)(trainable)
  return value, aux, slope


def by_task(objective: Objective, values: Mapping[str, Array]) -> tuple[Array, Array]:
  """([tasks] the sum of each task's terms, the sum of those that belong to none)."""
  sums = {task: jnp.zeros(()) for task in (*objective.kinds, None)}
  for name, value in values.items():
    sums[objective.tasks[name]] += value
  return jnp.stack([sums[task] for task in objective.kinds]), sums[None]


def shared_paths(network: Network, leaves: Any) -> set[str]:
  """Those of these parameters that serve all tasks; those of terms serve one."""
  stages = set(sharing.shared_stages(network))
  return {path for path in leaves if not path.startswith(paths.TERMS) and paths.stage_of(path) in stages}


def _balanced(
  network: Network,
  objective: Objective,
  balancer: Balancer,
  terms: Callable[..., Terms],
  trainable: Any,
  key: Array,
) -> tuple[Array, Aux, Any]:
  shared = shared_paths(network, [path for path, leaf in paths.flatten(trainable).items() if leaf is not None])
  inside = balancer.level == 'representation'
  # Zeros: what it is the gradient of, and what it adds.
  offset = None
  if inside:
    shapes = jax.eval_shape(lambda moved: terms(moved, 0.0).representation, trainable)
    offset = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

  def parts(moved: Any, offset: Any) -> tuple[tuple[Array, Array, Any], Terms]:
    seen = terms(moved, offset)
    return (*by_task(objective, seen.values), seen.representation), seen

  (losses, rest, value), pull, seen = jax.vjp(parts, trainable, offset, has_aux=True)
  nothing, whole = jax.tree.map(jnp.zeros_like, value), jnp.ones_like(rest)
  pulled = [pull((row, jnp.zeros_like(rest), nothing)) for row in jnp.eye(len(losses), dtype=losses.dtype)]
  of_shared = lambda tree: partition.split(tree, shared)[0]
  rows = [ravel_pytree(own[1] if inside else of_shared(own[0])) for own in pulled]
  matrix, unravel = jnp.stack([row for row, _ in rows]), rows[0][1]
  given = Tasks(
    objective.kinds, losses, key, seen.present, matrix, value if inside and isinstance(value, jax.Array) else None
  )
  combined, metrics, own = balancer.apply(given, seen.own)
  none = jnp.zeros_like(losses)
  if inside:
    common = of_shared(pull((none, whole, unravel(combined)))[0])
    specific = pull((jnp.ones_like(losses), whole, nothing))[0]
  else:
    common, specific = unravel(combined), jax.tree.map(lambda *leaves: sum(leaves), *[own[0] for own in pulled])
    if None in objective.tasks.values():
      further = pull((none, whole, nothing))[0]
      common, specific = _sum(common, of_shared(further)), _sum(specific, further)
  slope = partition.join(common, partition.split(specific, shared)[1])
  measured = {**metrics, **_diagnosed(given)}
  if balancer.lookahead is not None:
    measured |= _affinities(objective, terms, trainable, shared, given, unravel, balancer.lookahead)
  logged = {**seen.metrics, **_named(measured)}
  return losses.sum() + rest, (logged, seen.moved, seen.term_stats | _state(own)), slope


def _diagnosed(given: Tasks) -> dict[str, Array]:
  """Norms of the tasks' gradients, the cosine of every pair, and whether no step helps all tasks."""
  tasks, cosines = list(given.kinds), balancing.cosines(given.gradients)
  pairs = [(i, j) for i in range(len(tasks)) for j in range(i + 1, len(tasks))]
  return {
    **given.named(balancing.norms(given.gradients), 'norm'),
    **{f'cosine_{tasks[i]}_{tasks[j]}': cosines[i, j] for i, j in pairs},
    'stationary': balancing.stationary(given.gradients).astype(jnp.float32),
  }


def _affinities(
  objective: Objective,
  terms: Callable[..., Terms],
  trainable: Any,
  shared: set[str],
  given: Tasks,
  unravel: Callable[[Array], Any],
  rate: float,
) -> dict[str, Array]:
  """1 − L_j(θ − rate · ∇L_i) / L_j(θ) for each two tasks: what a step for task i does to the loss of task j.

  Inter-task affinity of Fifty et al. 2021; θ is what tasks share, batch and draws are those of the step. 0 where task j
  has no loss left, as without a label in the batch.
  """
  common, specific = partition.split(trainable, shared)
  found: dict[str, Array] = {}
  for one, slope in zip(given.kinds, given.gradients):
    moved = jax.tree.map(lambda leaf, own: leaf - rate * own, common, unravel(slope))
    after, _ = by_task(objective, terms(partition.join(moved, specific)).values)
    left = given.losses != 0
    gained = jnp.where(left, 1 - after / jnp.where(left, given.losses, 1), 0)
    found |= {f'affinity_{one}_{other}': gain for other, gain in zip(given.kinds, gained) if other != one}
  return found


def _sum(one: Any, other: Any) -> Any:
  return jax.tree.map(jnp.add, one, other)


def _named(metrics: Mapping[str, Array]) -> dict[str, Array]:
  return {f'{NAME}/{name}': value for name, value in metrics.items()}


def _state(own: Any) -> dict[str, Any]:
  return {NAME: own} if own else {}
