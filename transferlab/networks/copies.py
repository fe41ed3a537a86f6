"""Copies of the stages of single-task networks, side by side in one network: what sharing.py is built with.

A network is put together of parts, each of which runs some stages. Layers and NNX stay out of here: a copy runs
through `init` and `apply` of the network that it comes from.

A stage that several copies run (one per task, or one per expert) has parameters `stage/<copy>/…`, statistics
likewise, and gives `{copy: value}`. A slice that starts there takes what the stage before gave: `{copy: value}`, or,
where the copies begin, the one value that each of them is given; 'example_mask' may stand beside either. Modes
(`train`, `statistics`) belong to stages, so they are the same for all copies. Copy i is initialised with
`fold_in(key, i)`, and draws with `fold_in(key, number of stages of its network + i)` in place of `key`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jaxtyping import Array

from transferlab import paths
from transferlab.errors import UserError, unknown
from transferlab.networks import layers
from transferlab.networks.network import Network, Outputs, Variables

RESERVED = ('x', 'example_mask')  # keys of values that mean something else


@dataclasses.dataclass(frozen=True)
class Call:
  """What `apply` was given beside variables and inputs."""

  train: bool | Collection[str]
  statistics: Collection[str] | None
  key: Array | None
  mask: Array | None

  def __call__(
    self, network: Network, variables: Variables, value: Any, names: Sequence[str], copy: int | None = None
  ) -> tuple[Outputs, dict[str, Any]]:
    """Consecutive stages of a single-task network."""
    key = self.key
    if key is not None and copy is not None:
      key = layers.fold_in(key, len(network.stages) + copy)  # no number of a stage, whose keys are folded alike
    if self.mask is not None:
      value = {**(value if isinstance(value, Mapping) else {'x': value}), 'example_mask': self.mask}
    end = network.stages.index(names[-1]) + 1
    stop = network.stages[end] if end < len(network.stages) else None
    modes = {'train': self.train, 'statistics': self.statistics}
    return network.apply(variables, value, **modes, key=key, start=names[0], stop=stop)


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """Stages that are run in the same way.

  Attributes:
    init: `init(key) -> variables` of these stages.
    run: `run(variables, value, names, call) -> (outputs, stats)`: consecutive ones of them on the value before.
    shared: as `Network.shared`.
  """

  init: Callable[[Array], Variables]
  run: Callable[[Variables, Any, tuple[str, ...], Call], tuple[Outputs, dict[str, Any]]]
  shared: Mapping[str, str] = dataclasses.field(default_factory=dict)


def single(network: Network, stages: tuple[str, ...]) -> Part:
  """The part of stages that run once, for everybody."""

  def init(key: Array) -> Variables:
    return {kind: {s: tree[s] for s in stages if s in tree} for kind, tree in network.init(key).items()}

  def run(variables: Variables, value: Any, names: tuple[str, ...], call: Call) -> tuple[Outputs, dict[str, Any]]:
    return call(network, variables, value, names)

  return Part(init, run, {path: owner for path, owner in network.shared.items() if paths.stage_of(path) in stages})


def copied(
  copies: Mapping[str, tuple[Network, int]],
  stages: tuple[str, ...],
  begins: str | None = None,
  carried: Mapping[str, Callable[[Any], Array]] = {},
) -> Part:
  """The part of stages that each of the copies runs by itself.

  Args:
    copies: `{name: (network, number)}`; see `numbered`.
    begins: the stage that is given one value for all.
    carried: what is made of this value, by name, and stands beside those of the copies after each of the stages.
  """

  def init(key: Array) -> Variables:
    made = {name: network.init(layers.fold_in(key, number)) for name, (network, number) in copies.items()}
    return {kind: _by_stage({name: made[name][kind] for name in made}, stages) for kind in ('params', 'stats')}

  def run(variables: Variables, value: Any, names: tuple[str, ...], call: Call) -> tuple[Outputs, dict[str, Any]]:
    common = names[0] == begins
    outputs, stats = {}, {}
    for name, (network, number) in copies.items():
      own = {kind: {s: tree[s][name] for s in stages if name in tree.get(s, ())} for kind, tree in variables.items()}
      outputs[name], stats[name] = call(network, own, value if common else value[name], names, number)
    beside = {name: read(value) if common else value[name] for name, read in carried.items()}
    return {s: {**own, **beside} for s, own in _by_stage(outputs, names).items()}, _by_stage(stats, names)

  def named(path: str, name: str) -> str:
    return path.replace('/', f'/{name}/', 1)

  shared = {
    named(path, name): named(owner, name)
    for name, (network, _) in copies.items()
    for path, owner in network.shared.items()
    if paths.stage_of(path) in stages
  }
  return Part(init, run, shared)


def numbered(networks: Mapping[str, Network]) -> dict[str, tuple[Network, int]]:
  """Networks with numbers in their order, which tell apart what copies of one stage draw."""
  return {name: (network, number) for number, (name, network) in enumerate(networks.items())}


def _by_stage(trees: Mapping[str, Mapping[str, Any]], stages: Sequence[str]) -> dict[str, Any]:
  """`{copy: {stage: …}}` to `{stage: {copy: …}}`, without stages that no copy has."""
  found = {stage: {name: tree[stage] for name, tree in trees.items() if stage in tree} for stage in stages}
  return {stage: own for stage, own in found.items() if own}


def assemble(parts: Mapping[str, Part]) -> tuple[tuple[str, ...], Callable, Callable, dict[str, str]]:
  """Stages, init, apply and shared parameters of the network whose stages, in this order, are run by these parts."""
  different = list(dict.fromkeys(parts.values()))

  def init(key: Array) -> Variables:
    made = [part.init(key) for part in different]
    return {kind: {s: tree[kind][s] for s in parts for tree in made if s in tree[kind]} for kind in ('params', 'stats')}

  shared = {path: owner for part in different for path, owner in part.shared.items()}
  return tuple(parts), init, functools.partial(_apply, parts), shared


def _apply(
  parts: Mapping[str, Part],
  variables: Variables,
  inputs: Any,
  *,
  train: bool | Collection[str] = False,
  statistics: Collection[str] | None = None,
  key: Array | None = None,
  start: str | None = None,
  stop: str | None = None,
) -> tuple[Outputs, dict[str, Any]]:
  """As `network._apply`, of which it keeps the contract; for the values of copies see the top of this file."""
  stages = tuple(parts)
  first = stages.index(start) if start else 0
  last = stages.index(stop) if stop else len(stages)
  value, mask = inputs, None
  if isinstance(inputs, Mapping):
    value, mask = {k: v for k, v in inputs.items() if k != 'example_mask'}, inputs.get('example_mask')
  call = Call(train, statistics, key, mask)
  outputs: Outputs = {}
  stats: dict[str, Any] = {}
  for part, group in itertools.groupby(stages[first:last], parts.__getitem__):
    names = tuple(group)
    new, moved = part.run(variables, value, names, call)
    outputs.update(new)
    stats.update(moved)
    value = new[names[-1]]
  return outputs, stats


# --------------------------------------------------------------------------------------------------------------- checks
def first_of(networks: Mapping[str, Network]) -> Network:
  """The first network. Raises `UserError` where another has other stages, or a task's name means something else."""
  if not networks:
    raise UserError('no task: give one network per task')
  if wrong := [task for task in networks if task in RESERVED or '/' in task]:
    raise UserError(f'a task cannot be called {wrong[0]!r}, which means something else in paths or values')
  (name, first), *rest = networks.items()
  for task, network in rest:
    if network.stages != first.stages:
      mine, theirs = ', '.join(first.stages), ', '.join(network.stages)
      raise UserError(f'networks of different stages: {name!r} has {mine}; {task!r} has {theirs}')
  return first


def cut(network: Network, stage: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The stages before `stage`, and the others. Raises `UserError` where there is none of this name."""
  if stage not in network.stages:
    raise unknown('stage', stage, network.stages)
  place = network.stages.index(stage)
  return network.stages[:place], network.stages[place:]


def check_free(network: Network, names: Collection[str]) -> None:
  """Raises `UserError` where the network has a stage of one of these names."""
  if taken := [name for name in names if name in network.stages]:
    raise UserError(f'the networks have a stage {taken[0]!r} already')


def check_shapes(networks: Mapping[str, Network], stages: Collection[str]) -> None:
  """Raises `UserError` where parameters of these stages differ in name or shape from network to network."""
  leaves = {task: paths.flatten(network.shapes()['params']) for task, network in networks.items()}
  shapes = {task: {p: v.shape for p, v in own.items() if paths.stage_of(p) in stages} for task, own in leaves.items()}
  (name, mine), *rest = shapes.items()
  for task, theirs in rest:
    if differ := [path for path in {**mine, **theirs} if mine.get(path) != theirs.get(path)]:
      one, other = (list(own[differ[0]]) if differ[0] in own else 'missing' for own in (mine, theirs))
      raise UserError(f'{differ[0]} is {one} in the network of {name!r} and {other} in that of {task!r}')


def check_tied(networks: Mapping[str, Network], parts: Sequence[Sequence[str]]) -> None:
  """Raises `UserError` where stages of two parts read the same parameter."""
  part = {stage: number for number, stages in enumerate(parts) for stage in stages}
  for task, network in networks.items():
    for path, owner in network.shared.items():
      if part[paths.stage_of(path)] != part[paths.stage_of(owner)]:
        begins = parts[part[paths.stage_of(path)]][0]
        raise UserError(f'network of {task!r}: {path} is {owner}, but copies begin between them, at {begins!r}')
