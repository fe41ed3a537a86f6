"""Ways in which several tasks share a network: hard sharing up to a stage, experts with gates, cross-stitch units.

Each function takes one network per task, whose head has that task's size, and gives one network whose head gives
`{task: output}`. What its copies of stages are called, how they are cut and what they draw stands in copies.py.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transferlab.errors import UserError, unknown
from transferlab.networks import copies, layers
from transferlab.networks.copies import Call, Part
from transferlab.networks.network import Network, Outputs, Variables, flat_features

GATES = 'gates'
GATE_FEATURES = 'gate_features'
STITCH = '_stitch'


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MultiTask(Network):
  """A network of several tasks that says what they share.

  Attributes:
    tasks: in order; that of the rows and columns of cross-stitch units.
    common: see `shared_stages`.
    representation: see `last_shared`.
  """

  tasks: tuple[str, ...]
  common: tuple[str, ...]
  representation: str | None


def build(networks: Mapping[str, Network], shared: Mapping[str, Any], input_shape: tuple[int, ...]) -> MultiTask:
  """The way to share that a config names: `Sharing` of settings.py. Raises `UserError` as the functions do."""
  if shared['name'] == 'branched':
    made = branched(networks, shared['stage'])
  elif shared['name'] == 'mmoe':
    made = mmoe(networks, shared['stage'], experts=shared['experts'], input_shape=input_shape)
  else:
    made = cross_stitch(networks, shared['stages'], same=shared['same'])
  first = copies.first_of(networks)
  return dataclasses.replace(made, dtype=first.dtype, positions=first.positions)


def branched(networks: Mapping[str, Network], stage: str) -> MultiTask:
  """Hard sharing up to `stage`: from there on every task has a branch of its own (Caruana 1997).

  The stages before are the first network's; the branches may differ in width. At the head this is the network that
  its own function builds of `{task: size}`, initial values apart.

  Args:
    networks: one per task, of the same stages.
    stage: where the branches begin; the first stage leaves nothing in common.

  Raises:
    UserError: there is no such stage; networks of other stages, or other shapes before `stage`; a parameter that
      stages on both sides read; a task with a reserved name.
  """
  first = copies.first_of(networks)
  trunk, branch = copies.cut(first, stage)
  copies.check_shapes(networks, trunk)
  copies.check_tied(networks, (trunk, branch))
  branches = copies.copied(copies.numbered(networks), branch, stage)
  parts = {**dict.fromkeys(trunk, copies.single(first, trunk)), **dict.fromkeys(branch, branches)}
  return MultiTask(
    *copies.assemble(parts), tasks=tuple(networks), common=trunk, representation=trunk[-1] if trunk else None
  )


def mmoe(networks: Mapping[str, Network], stage: str, *, experts: int, input_shape: tuple[int, ...]) -> MultiTask:
  """Multi-gate mixture of experts (Ma et al. 2018, eqs. 6 and 7): y_t = h_t(Σ_i g_t(x)_i f_i(x)).

  The experts f_i are copies of the stages from `stage` to the one before the head; stages before are common, and x is
  what they give. A stage 'gates' stands between experts and heads: g_t(x) = softmax(W_t x) without bias, W_t
  [features, experts] at `gates/<task>/kernel`; it gives `{task: mixture}`. Gates read the mean of x over all places
  (as the routing weights of CondConv do, Yang et al. 2019), or, where `stage` is the first, the inputs flattened, as
  the paper's do: an image's mean colour says little. The stages of the experts carry to the gates what these read:
  `{'expert0': value, …, 'gate_features': [batch, features]}`. Of a value that is a dict, 'x' is mixed and the rest is
  the first expert's.

  Args:
    networks: one per task, of the same stages, and the same shapes but for the head; experts are the first one's.
    stage: where the experts begin.
    experts: how many.
    input_shape: shape of one example, which tells what the gates will read.

  Raises:
    UserError: as `branched`; no experts; `stage` is the head; a stage is called 'gates'; a parameter that stages of
      two of common part, experts and heads read.
  """
  first = copies.first_of(networks)
  trunk, rest = copies.cut(first, stage)
  middle, head = rest[:-1], rest[-1:]
  if not middle:
    raise UserError(f'stage {stage!r} is the head; experts begin before it: {", ".join(trunk) or "there is no stage"}')
  if experts < 1:
    raise UserError(f'experts: at least 1, not {experts}')
  copies.check_free(first, [GATES])
  copies.check_shapes(networks, (*trunk, *middle))
  copies.check_tied(networks, (trunk, middle, head))
  read = _mean_over_places if trunk else lambda value: flat_features(_features(value))

  def width(variables: Variables, x: Array) -> Array:
    return read(first.apply(variables, x, stop=stage)[0][trunk[-1]] if trunk else x)

  x = first.example(1, input_shape)
  names = [f'expert{number}' for number in range(experts)]
  carried = {GATE_FEATURES: read}
  parts = {
    **dict.fromkeys(trunk, copies.single(first, trunk)),
    **dict.fromkeys(middle, copies.copied(copies.numbered(dict.fromkeys(names, first)), middle, stage, carried)),
    GATES: _gates(tuple(networks), names, jax.eval_shape(width, first.shapes(), x).shape[1]),
    **dict.fromkeys(head, copies.copied(copies.numbered(networks), head)),
  }
  return MultiTask(*copies.assemble(parts), tasks=tuple(networks), common=(*trunk, *middle), representation=middle[-1])


def cross_stitch(
  networks: Mapping[str, Network], stages: Sequence[str] | None = None, *, same: float = 0.9
) -> MultiTask:
  """Cross-stitch networks (Misra et al. 2016, eq. 1): a column per task, x_t ← Σ_s α_ts x_s after chosen stages.

  After stage `block1` stands a stage `block1_stitch` with the leaf `alpha` [tasks, tasks], so that units can be
  trained, or frozen, apart from the layers. There is one scalar per unit and pair of tasks, as in their equation;
  implementations with one per channel can, beyond that, share some channels and not others. Of a value that is a
  dict, 'x' is mixed and the rest is the column's own. The paper lets units learn faster than layers: a rule
  ('.*_stitch', rate) does.

  Args:
    networks: one per task, of the same stages, and the same shapes but for the head.
    stages: those that a unit follows; None: every stage with parameters but the head. None of them, (): the columns
      stay separate.
    same: α_tt at the start; the others of a row share 1 − same evenly.

  Raises:
    UserError: fewer than two tasks; a stage that does not exist or is the head; networks of other stages or shapes;
      `same` outside [0, 1]; a task, or a stage, with a reserved name.
  """
  first = copies.first_of(networks)
  if len(networks) < 2:
    raise UserError('cross-stitch units mix the columns of two tasks or more')
  if not 0 <= same <= 1:
    raise UserError(f'same: between 0 and 1, not {same}')
  body = first.stages[:-1]
  if wrong := [name for name in stages or () if name not in body]:
    raise unknown('stage', wrong[0], body)
  given = first.shapes()['params'] if stages is None else stages
  units = {name: name + STITCH for name in body if name in given}
  copies.check_free(first, units.values())
  copies.check_shapes(networks, body)
  columns = copies.copied(copies.numbered(networks), first.stages, first.stages[0])
  stitches = _stitches(tuple(networks), tuple(units.values()), same)
  parts: dict[str, Part] = {}
  for name in first.stages:
    parts[name] = columns
    if name in units:
      parts[units[name]] = stitches
  order = tuple(parts)
  common = order[: order.index(list(units.values())[-1])] if units else ()
  return MultiTask(*copies.assemble(parts), tasks=tuple(networks), common=common, representation=None)


def shared_stages(network: Network) -> tuple[str, ...]:
  """The stages all of whose parameters serve all tasks; those without parameters between them count.

  The head of a usual network never does, whether it has one task or several. Experts do, since every gate weighs all
  of them; gates do not. Columns of cross-stitch networks do before the last unit, which hands each on to all tasks; a
  row of that unit, and what follows it, serves one task.
  """
  return network.common if isinstance(network, MultiTask) else network.stages[:-1]


def last_shared(network: Network) -> str | None:
  """The stage whose output is the shared representation: all that tasks have in common acts through it.

  After experts that is `{'expert0': …, …, 'gate_features': …}`. None where nothing is shared, and in cross-stitch
  networks, whose columns are representations of one task each.
  """
  if isinstance(network, MultiTask):
    return network.representation
  return network.stages[-2] if len(network.stages) > 1 else None


def _gates(tasks: tuple[str, ...], experts: Sequence[str], features: int) -> Part:
  def init(key: Array) -> Variables:
    keys = [layers.fold_in(key, len(experts) + len(tasks) + number) for number in range(len(tasks))]
    kernels = {task: {'kernel': layers.LECUN(own, (features, len(experts)))} for task, own in zip(tasks, keys)}
    return {'params': {GATES: kernels}, 'stats': {}}

  def run(variables: Variables, value: Any, names: tuple[str, ...], call: Call) -> tuple[Outputs, dict[str, Any]]:
    kernels, mixed = variables['params'][GATES], {}
    for task in tasks:
      gates = jax.nn.softmax(value[GATE_FEATURES] @ kernels[task]['kernel'])
      mixed[task] = _mixed(gates.T, [value[name] for name in experts], value[experts[0]])
    return {GATES: mixed}, {}

  return Part(init, run)


def _stitches(tasks: tuple[str, ...], stages: tuple[str, ...], same: float) -> Part:
  def init(key: Array) -> Variables:
    others = (1 - same) / (len(tasks) - 1)
    alpha = others + (same - others) * jnp.eye(len(tasks))
    return {'params': {stage: {'alpha': alpha} for stage in stages}, 'stats': {}}

  def run(variables: Variables, value: Any, names: tuple[str, ...], call: Call) -> tuple[Outputs, dict[str, Any]]:
    columns = [value[task] for task in tasks]  # not in the order of the dict, which jit sorts
    rows = zip(tasks, variables['params'][names[0]]['alpha'])
    return {names[0]: {task: _mixed(row[:, None], columns, value[task]) for task, row in rows}}, {}

  return Part(init, run)


def _mixed(weights: Float[Array, 'values ...'], values: Sequence[Any], own: Any) -> Any:
  """Σ_i w_i x_i; where values are dicts, beside what else `own` holds."""
  terms = [w.reshape(-1, *[1] * (x.ndim - 1)) * x for w, x in zip(weights, map(_features, values))]
  total = functools.reduce(jnp.add, terms)
  return {**own, 'x': total} if isinstance(own, Mapping) else total


def _features(value: Any) -> Array:
  return value['x'] if isinstance(value, Mapping) else value


def _mean_over_places(value: Any) -> Float[Array, 'batch features']:
  x = _features(value)
  return x.mean(axis=tuple(range(1, x.ndim - 1)))
