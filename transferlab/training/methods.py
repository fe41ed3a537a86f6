"""From what a config says of a phase to what the step needs: the method (static), and its arrays.

Methods are cached by what determines the compiled step, so that runs which differ in values only share one
compilation. Everything a user can get wrong about patterns is found here, before anything is allocated.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from transferlab import config, paths
from transferlab.data import preprocessing
from transferlab.data.augmentation import Augment, couples
from transferlab.data.examples import Info
from transferlab.errors import UserError, unknown
from transferlab.networks import sharing
from transferlab.networks.network import Network
from transferlab.objectives import SOURCE, balancers
from transferlab.objectives import objective as objectives
from transferlab.objectives.objective import Objective, TermSpec
from transferlab.objectives.settings import Balancing
from transferlab.training import balanced, optimizer, partition, phases, transforms
from transferlab.training.phases import Phase
from transferlab.training.step import Asked, Method
from transferlab.training.terms import with_terms


@dataclasses.dataclass(frozen=True)
class Stretch:
  """A phase made concrete for one run.

  Attributes:
    steps: its length, unless it stops early.
    method: the static half.
    rates: learning rate of each trainable path.
    weights: `{term: weight}`.
    adapt: stages whose statistics are recomputed before the phase.
    example: shapes of a batch of two, as the network and the terms see it.
    prefix: the frozen stages whose outputs are computed once (feature_cache.py).
    recordings: the outputs of other networks that are.
  """

  name: str
  phase: Phase
  steps: int
  method: Method
  rates: dict[str, float]
  weights: dict[str, float]
  adapt: frozenset[str]
  example: dict[str, Any]
  prefix: Any = None
  recordings: tuple[Any, ...] = ()

  @property
  def kept(self) -> tuple[Any, ...]:
    """All that is computed once."""
    return (*self.recordings, *([self.prefix] if self.prefix is not None else []))

  def constants(self, member: Any, start: int) -> dict[str, Any]:
    """The arguments of the step that do not move, for a phase that starts at global step `start`."""
    method, needs = self.method, self.method.objective.needs
    return {
      'source': member.start_point if needs_start(method) else None,
      'asked': {one.name: self._of_asked(one, member.asked[one.name]) for one in method.asked},
      'fisher': member.fisher if 'fisher' in needs else None,
      'preprocessing': member.record,
      'key': jax.random.key(member.seed),
      'hyper': optimizer.hyperparameters(self.phase, self.rates, start, self.steps),
      'weights': {name: jnp.float32(weight) for name, weight in self.weights.items()},
    }

  def _of_asked(self, asked: Asked, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the step needs of another network: of one whose outputs are recorded, a head that a term goes on with."""
    if asked.name not in self.method.recorded:
      return dict(given)
    if asked.name != SOURCE or 'source_head' not in self.method.objective.needs:
      return {}
    kept = lambda tree: {stage: own for stage, own in tree.items() if stage == asked.head}
    return {**given, 'variables': {kind: kept(tree) for kind, tree in given['variables'].items()}}


def needs_start(method: Method) -> bool:
  """Whether a step looks at the values that the transplant gave."""
  return method.objective.needs_source or any('source' in each.arguments for each in method.transforms)


# Terms that do not take soft targets.
HARD = ('hinge', 'center_loss', 'deep_supervision', 'dkd', 'mutual', 'self_distillation')
_OBJECTIVES: dict[Any, Objective] = {}
_METHODS: dict[Any, Method] = {}


def term_specs(terms: Sequence[Mapping[str, Any]] | None, info: Info, where: str) -> list[TermSpec]:
  """The terms of an objective, validated; the usual loss (of each task) where none are given."""
  if terms is None:
    usual = [(None, info.task)] if not info.tasks else [(name, own.task) for name, own in info.tasks.items()]
    return [TermSpec(term=objectives.DEFAULT[task], task=name) for name, task in usual]
  specs = [config.validate(TermSpec, dict(term), f'{where}.{i}') for i, term in enumerate(terms)]
  for i, spec in enumerate(specs):
    if spec.task is not None and spec.task not in info.tasks:
      raise unknown(f'{where}.{i}.task', spec.task, info.tasks)
  return specs


def objective_of(
  specs: Sequence[TermSpec],
  network: Network,
  where: str,
  teachers: Collection[str] = (),
  balancing: Balancing | None = None,
  kinds: Mapping[str, str] = {},
) -> Objective:
  """The objective; the same object for the same terms and balancer, whatever their weights.

  Args:
    kinds: the types of the tasks that are balanced.
  """
  described = [spec.model_dump(exclude={'weight'}) for spec in specs]
  key = (network, tuple(teachers), json.dumps([described, balancing and balancing.model_dump(), [*kinds.items()]]))
  if key not in _OBJECTIVES:
    made = objectives.build(specs, network.stages, where, teachers)
    given = {spec.label: spec.schedule for spec in specs if spec.schedule is not None}
    moving = {name: config.validate(phases.Schedule, own, f'{where}: {name}.schedule') for name, own in given.items()}
    made = dataclasses.replace(made, schedules=moving)
    if balancing is not None:
      balancer = balancers.build(balancing, f'{where.rpartition(".")[0]}.balancing')
      plain = made.plain and balancer.init is balancers.nothing
      made = dataclasses.replace(made, balancer=balancer, kinds=dict(kinds), plain=plain)
    _OBJECTIVES[key] = made
  return _OBJECTIVES[key]


def stretches(
  network: Network,
  run_phases: Sequence[Phase],
  lengths: Sequence[int],
  default_objective: Sequence[Mapping[str, Any]] | None,
  info: Info,
  augment: Augment,
  example: Mapping[str, Any],
  where: str = 'config',
  others: Mapping[str, Callable[[], Asked]] = {},
  examples: int | None = None,
  labelled: bool = True,
  gaps: frozenset[str | None] = frozenset(),
  balancing: Balancing | None = None,
  streams: int = 0,
) -> list[Stretch]:
  """All phases of a run, checked.

  Args:
    lengths: steps of each phase.
    example: a batch of shapes ('x', 'label'), from which the terms' own parameters take their shapes.
    others: the networks beside this one, by name, made where a term looks at their outputs: the source's, teachers.
    examples: in training.
    labelled: there are labels, if only to log an accuracy.
    gaps: the tasks of which training labels are missing.
    balancing: how the losses of several tasks combine.
    streams: real rows of a batch that go on where they stood in the batch before; 0: none do.

  Raises:
    UserError: any mistake in patterns, optimizers, objectives or statistics.
  """
  if sum(lengths) > config.LARGEST:
    raise UserError(f'{where}.phases: {sum(lengths):,} steps in all; at most {config.LARGEST:,} can be counted')
  specs = []
  for number, phase in enumerate(run_phases):
    given = default_objective if phase.objective is None else phase.objective
    place = f'{where}.objective' if phase.objective is None else f'{where}.phases.{number}.objective'
    specs.append(term_specs(given, info, place))
  _check_same_terms(specs, where)
  if couples(augment):
    _check_mixing(specs, info, where, gaps if labelled else frozenset())
  teachers = tuple(name for name in others if name != SOURCE)
  if balancing is not None and not info.tasks:
    raise UserError(f'{where}.balancing: {balancing.name!r} balances several tasks, and these data have one')
  kinds = {name: own.task for name, own in info.tasks.items()}
  objectives_ = [objective_of(terms, network, f'{where}.objective', teachers, balancing, kinds) for terms in specs]
  for terms, objective in zip(specs, objectives_):
    _check_tasks(terms, objective, info, where)
  asked = _asked(specs, objectives_, others, where)
  own = own_shapes(network, objectives_, example, asked, examples)
  classes = info.outputs if info.task == 'classification' and labelled else 0
  inputs = augment, info.low, info.high, classes, gaps, streams
  made = []
  for number, (name, phase, steps) in enumerate(zip(phases.names(run_phases), run_phases, lengths)):
    place = f'{where}.phases.{number}'
    if phase.average is not None and round(phase.average.first * steps) + phase.average.every > steps:
      raise UserError(f'{place}.average: the phase is over, after {steps} steps, before the first average is taken')
    method, rates, adapt = _method(network, objectives_[number], phase, own, inputs, place, asked, examples)
    weights = {spec.label: spec.weight for spec in specs[number]}
    made.append(Stretch(name, phase, steps, method, rates, weights, adapt, dict(example)))
  return made


def _asked(
  specs: Sequence[Sequence[TermSpec]],
  chosen: Sequence[Objective],
  others: Mapping[str, Callable[[], Asked]],
  where: str,
) -> tuple[Asked, ...]:
  """The networks whose outputs any term looks at."""
  names = list(dict.fromkeys(name for objective in chosen for name in objective.asked))
  if SOURCE in names and SOURCE not in others:
    needs = lambda objective, spec: 'source_outputs' in objective.terms[spec.label].needs
    asking = [spec.term for terms, one in zip(specs, chosen) for spec in terms if needs(one, spec)]
    raise UserError(f"{where}.objective: term {asking[0]!r} asks the source's network, but config.source is missing")
  return tuple(others[name]() for name in names)


def _check_same_terms(specs: Sequence[Sequence[TermSpec]], where: str) -> None:
  """A term's own parameters are known by its name, so phases that share a name must mean the same term."""
  known: dict[str, dict[str, Any]] = {}
  for spec in [spec for terms in specs for spec in terms]:
    means = spec.model_dump(exclude={'weight'})
    if known.setdefault(spec.label, means) != means:
      raise UserError(f'{where}: term {spec.label!r} means different things in different phases; give one a name')


def _check_tasks(terms: Sequence[TermSpec], objective: Objective, info: Info, where: str) -> None:
  """That every term is one for the task whose answers it reads."""
  for spec in terms:
    task = info.task if spec.task is None else info.tasks[spec.task].task
    term = objective.terms[spec.label]
    meant = term.answers
    if info.tasks and spec.task is None and (meant or {'labels', 'output'} & {*term.needs}):
      raise UserError(
        f'{where}.objective: term {spec.term!r} looks at one task, and the data have several; task= is one of '
        f'{", ".join(info.tasks)}'
      )
    if meant and task not in meant:
      raise UserError(f'{where}.objective: term {spec.term!r} is for {" and ".join(meant)}, and this is {task}')


def _check_mixing(specs: Sequence[Sequence[TermSpec]], info: Info, where: str, gaps: Collection[str | None]) -> None:
  """That mixed examples, which have soft targets, can be learnt."""
  if info.tasks:
    raise UserError(f'{where}.target.data.augment: mixup and cutmix need a single label column')
  if gaps:
    raise UserError(f'{where}.target.data.augment: mixup and cutmix mix labels, and some training labels are missing')
  for spec in [spec for terms in specs for spec in terms]:
    if spec.term in HARD:
      raise UserError(f'{where}.objective: term {spec.term!r} needs class numbers; mixup and cutmix make soft targets')


def own_shapes(
  network: Network,
  chosen: Sequence[Objective],
  example: Mapping[str, Any],
  asked: Sequence[Asked] = (),
  examples: int | None = None,
) -> dict[str, Any]:
  """Shapes of the terms' own parameters, `{'terms': …}`, or an empty dict."""
  if all(objective.plain for objective in chosen):
    return {}

  def start(variables: Any, batch: Any, given: Any) -> Any:
    return with_terms(network, chosen, variables, batch, 0, asked, given, examples)

  made = jax.eval_shape(start, network.shapes(), dict(example), {one.name: one.network.shapes() for one in asked})
  return {'terms': made['params'].get('terms', {})}


def _method(
  network: Network,
  objective: Objective,
  phase: Phase,
  own: Mapping[str, Any],
  inputs: tuple[Augment, float, float, int, frozenset[str | None], int],
  where: str,
  asked: Sequence[Asked],
  examples: int | None,
) -> tuple[Method, dict[str, float], frozenset[str]]:
  shapes = network.shapes()
  leaves = [*paths.flatten(shapes['params']), *paths.flatten(own)]
  trainable = partition.trainable_paths(phase, leaves, network.stages, [*objective.terms, balancers.NAME], where)
  if objective.balancer is not None and objective.balancer.level != 'losses':
    objective = _balancing_shared(network, objective, trainable, where)
  rates = partition.leaf_rates(phase, trainable, leaves, network.stages, where)
  training = phases.training_stages(network.stages, stage_leaves(network, leaves), set(trainable))
  moving, adapt = phases.statistics_stages(phase, [s for s in network.stages if s in shapes['stats']], training)
  asked = tuple(one for one in asked if one.name in objective.asked)
  examples = examples if 'examples' in objective.needs else None
  ending = (phase.average.name if phase.average else None, phase.interpolate is not None)
  key = (
    network,
    objective,
    _static(phase),
    tuple(leaves),
    tuple(trainable),
    frozenset(moving),
    inputs,
    asked,
    examples,
    *ending,
  )
  if key not in _METHODS:
    built = optimizer.build(phase, trainable, leaves, network.stages, where)
    transforming = transforms.build(phase.transform, trainable, network.stages, leaves, where)
    made = Method(network, objective, built, frozenset(trainable), frozenset(training), frozenset(moving), *inputs[:4])
    further: dict[str, Any] = {'asked': asked, 'examples': examples, 'transforms': transforming}
    further |= {'gaps': inputs[4], 'streams': inputs[5]}
    _METHODS[key] = dataclasses.replace(made, **further, average=ending[0], anchored=ending[1])
  return _METHODS[key], rates, frozenset(adapt)


def _balancing_shared(network: Network, objective: Objective, trainable: Sequence[str], where: str) -> Objective:
  """The objective, without the balancer in a phase that trains nothing that tasks share: then there is no conflict."""
  if not balanced.shared_paths(network, trainable):
    return objective_without(objective)
  if objective.balancer.level == 'representation' and sharing.last_shared(network) is None:
    raise UserError(
      f'{where}: config.balancing.level: this network has no representation that all tasks share; '
      "nearest: level='parameters'"
    )
  return objective


def objective_without(objective: Objective) -> Objective:
  """The same without its balancer; one object for one."""
  if objective not in _UNBALANCED:
    _UNBALANCED[objective] = dataclasses.replace(objective, balancer=None)
  return _UNBALANCED[objective]


_UNBALANCED: dict[Objective, Objective] = {}


def _static(phase: Phase) -> str:
  """What of a phase is compiled into its step, as text."""
  static = phase.model_dump(include={'optimizer', 'optimizer_options', 'clip', 'weight_decay_form'})
  schedule = phase.schedule.model_dump(include={'name', 'at', 'factor'})
  decay = [pattern for pattern, _ in optimizer.decay_rules(phase.weight_decay)]
  norms = [pattern for pattern, _ in optimizer.norm_rules(phase.max_norm)]
  return json.dumps([static, schedule, decay, norms, [spec.model_dump() for spec in phase.transform]], sort_keys=True)


def stage_leaves(network: Network, leaves: Sequence[str]) -> dict[str, list[str]]:
  """The leaves that each stage reads; a shared leaf under the path of its owner."""
  read: dict[str, list[str]] = {stage: [] for stage in network.stages}
  for path in leaves:
    if not path.startswith(paths.TERMS):
      read[paths.stage_of(path)].append(path)
  for path, owner in network.shared.items():
    read[paths.stage_of(path)].append(owner)
  return read


def example_of(record: Mapping[str, Any], label: Any, augment: Augment, info: Info) -> dict[str, Any]:
  """Shapes of a batch of two preprocessed examples; mixed examples have soft targets."""
  labels = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape[1:]), leaf.dtype), label)
  if info.task == 'next_token':
    labels = preprocessing.example(record, 2)
  if couples(augment) and info.task == 'classification':
    labels = jax.ShapeDtypeStruct((2, info.outputs), jnp.float32)
  return {'x': preprocessing.example(record, 2), 'label': labels}
