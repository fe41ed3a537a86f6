"""An objective: a weighted sum of named terms, each a small pure function.

Most terms are plain functions of arrays; their arguments are filled from the view by name. Terms with parameters or
state of their own are `Term`s. The objective returns what each term says; the step (training/step.py) reduces it over
masks, weights and devices.
"""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Bool, Float

from transferlab import config
from transferlab.config import Schema
from transferlab.errors import UserError, unknown
from transferlab.networks import sequences
from transferlab.objectives import SOURCE, balancers
from transferlab.objectives.importance import FisherChoice

# name in a config -> the module that holds the function of that name
TERMS = {
  'cross_entropy': 'transferlab.objectives.supervised',
  'binary_cross_entropy': 'transferlab.objectives.supervised',
  'squared_error': 'transferlab.objectives.supervised',
  'hinge': 'transferlab.objectives.supervised',
  'next_token': 'transferlab.objectives.supervised',
  'activation': 'transferlab.objectives.regularization',
  'temporal_activation': 'transferlab.objectives.regularization',
  'deep_supervision': 'transferlab.objectives.supervised',
  'l2_sp': 'transferlab.objectives.regularization',
  'center_loss': 'transferlab.objectives.regularization',
  'delta': 'transferlab.objectives.staying_close',
  'batch_spectral_shrinkage': 'transferlab.objectives.staying_close',
  'ewc': 'transferlab.objectives.staying_close',
  'learning_without_forgetting': 'transferlab.objectives.staying_close',
  'kd': 'transferlab.objectives.teaching',
  'dkd': 'transferlab.objectives.teaching',
  'dist': 'transferlab.objectives.teaching',
  'hint': 'transferlab.objectives.teaching',
  'attention_transfer': 'transferlab.objectives.teaching',
  'nst': 'transferlab.objectives.teaching',
  'similarity_preserving': 'transferlab.objectives.teaching',
  'relational': 'transferlab.objectives.teaching',
  'pkt': 'transferlab.objectives.teaching',
  'variational': 'transferlab.objectives.teaching',
  'contrastive': 'transferlab.objectives.teaching',
  'mean_teacher': 'transferlab.objectives.peers',
  'mutual': 'transferlab.objectives.peers',
  'self_distillation': 'transferlab.objectives.peers',
}
DEFAULT = {
  'classification': 'cross_entropy', 'binary': 'binary_cross_entropy', 'regression': 'squared_error',
  'next_token': 'next_token',
}  # fmt: skip


class TermSpec(Schema):
  """One term of an objective; keys beside these are arguments of the term's function."""

  model_config = pydantic.ConfigDict(extra='allow', frozen=True, strict=True, allow_inf_nan=False)
  term: str = pydantic.Field(description='name of the function (--list=terms)')
  weight: config.Rate = pydantic.Field(1.0, description='factor in the sum')
  schedule: dict[str, Any] | None = pydantic.Field(
    None, description="how the weight moves over the phase: what a phase's schedule takes, {'name': 'linear'}"
  )
  name: str | None = pydantic.Field(None, description="name in logs; None: the function's")
  task: str | None = pydantic.Field(None, description='which head and label it reads, where there are several')
  teacher: str | None = pydantic.Field(None, description='which of config.teachers it asks, where there are several')

  @property
  def label(self) -> str:
    """Name in logs, and of the term's own parameters."""
    return self.name or (f'{self.term}_{self.task}' if self.task else self.term)


# What a term may need beside the network itself; it is made only where a term says so.
NEEDS = (
  'source',
  'source_outputs',
  'source_head',
  'fisher',
  'teacher_outputs',
  'labels',
  'examples',
  'inputs',
  'output',
)


@dataclasses.dataclass(frozen=True)
class SourceHead:
  """The head of the source's network, for terms that go on answering as the source did.

  Attributes:
    params: its parameters as the source has them.
    logits: [batch, classes] what the source answers on the same inputs.
    apply: `apply(params) -> logits`: a head of this form on what the network gives before its own head.
  """

  params: Any
  logits: Array
  apply: Callable[[Any], Array]


@dataclasses.dataclass(frozen=True)
class View:
  """What a term may look at.

  Attributes:
    outputs: the value after every stage, by name.
    output: the output of the head (of the term's task, where there are several).
    head: the stage that gives it.
    labels: [batch] or [batch, …]: labels or targets of the same task.
    params: the network's parameters.
    source: the values that a transplant gave, None where it gave none; None without a transplant.
    mask: [batch], which examples are real (and labelled, for a term that looks at labels).
    known: [batch], which labels are there; None where none of the task's is missing. `labels` is 0 elsewhere.
    key: one key per example.
    progress: share of the phase that is done.
    total: sums an array over devices; the identity unless the step is mapped.
    asked: outputs of other networks on the same inputs, in evaluation mode, by name and stage; those that terms need.
    heads: the stage that is the head of each of these.
    task, teacher: the term's own task, and which of those networks it asks.
    source_head: the head of the source's network; None unless a term needs it.
    fisher: Fisher information of the values in `source`, None where there are none; None unless a term needs it.
    rows: [batch], which training examples these are, of `examples` in all; both None unless a term needs 'examples'.
    inputs: what the network was given, preprocessed; the outputs of its frozen stages where these run once.
    stats: the network's running statistics.
    again: `again(params, stats) -> outputs by stage`: the network on the same inputs with other weights, in evaluation
      mode.
  """

  outputs: Mapping[str, Any]
  output: Array
  labels: Array
  params: Any
  source: Any
  mask: Bool[Array, ' batch']
  key: Array
  progress: Float[Array, '']
  total: Callable[[Array], Array]
  asked: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  heads: Mapping[str, str] = dataclasses.field(default_factory=dict)
  task: str | None = None
  teacher: str | None = None
  source_head: SourceHead | None = None
  fisher: Any = None
  rows: Any = None
  examples: Any = None
  inputs: Any = None
  stats: Any = None
  head: str = 'head'
  again: Callable[[Any, Any], Mapping[str, Any]] | None = None
  known: Any = None

  @property
  def source_outputs(self) -> Mapping[str, Any]:
    """The source's network, by stage."""
    return self.asked[SOURCE]

  @property
  def teacher_outputs(self) -> Mapping[str, Any]:
    """The term's teacher, by stage."""
    assert self.teacher is not None
    return self.asked[self.teacher]

  @property
  def teacher_logits(self) -> Array:
    """What the teacher's head gives; of the term's task, where it has several."""
    assert self.teacher is not None
    given = self.teacher_outputs[self.heads[self.teacher]]
    return given[self.task] if isinstance(given, Mapping) and self.task in given else given

  def features(self, stage: str) -> Float[Array, 'batch features']:
    """A stage's output, averaged over places where it has any; over those of a text that are no padding."""
    return sequences.averaged(array(self.outputs, stage), self.outputs[stage])


def array(outputs: Mapping[str, Any], stage: str, what: str = 'stage') -> Array:
  """A stage's features, with their places. Raises `UserError` where there is no such stage."""
  if stage not in outputs:
    raise unknown(what, stage, outputs)
  value = outputs[stage]
  if isinstance(value, Mapping) and 'x' not in value:
    raise UserError(f'{what} {stage!r} gives a value for each of {", ".join(value)}, and a term reads one; see task=')
  return value['x'] if isinstance(value, Mapping) else value


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
  """A term with parameters or state of its own.

  Attributes:
    init: `init(view, key) -> {'params': …, 'stats': …}`.
    apply: `apply(view, own) -> (loss, metrics, own_stats)`; the loss is [batch] or a scalar.
    stages: the stages it reads, so that mistakes are found before anything is compiled.
    couples: the loss couples examples across the batch.
    needs: which of `NEEDS` it reads from the view.
    answers: the tasks whose answers it can read ('classification', 'binary', 'regression'); all where it is empty.
    fisher: for a term that needs 'fisher', which.
  """

  init: Callable[[View, Array], dict]
  apply: Callable[[View, dict], tuple[Any, dict, dict]]
  stages: tuple[str, ...] = ()
  couples: bool = False
  needs: tuple[str, ...] = ()
  answers: tuple[str, ...] = ()
  fisher: FisherChoice | None = None


def nothing(view: View, key: Array) -> dict:
  """`init` of a term without parameters or state."""
  del view, key
  return {'params': {}, 'stats': {}}


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
  """Terms by name, in order; `plain` where none has parameters or state. `init` and calling it are pure.

  Attributes:
    tasks, teachers, schedules: of each term, where it has one (a `Schedule` of training/phases.py).
    needs: what of `NEEDS` the terms read together.
    fisher: which Fisher information, where they read it.
    balancer: how the losses of several tasks combine (balancers.py); None: they are added.
    kinds: 'classification', 'binary' or 'regression' of each task, by name.
  """

  terms: dict[str, Term]
  tasks: dict[str, str | None]
  teachers: dict[str, str | None]
  needs_source: bool
  plain: bool
  needs: frozenset[str] = frozenset()
  fisher: FisherChoice | None = None
  schedules: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  balancer: Any = None
  kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def asked(self) -> list[str]:
    """The networks whose outputs the terms look at: the source's, and teachers'."""
    source = [SOURCE] if 'source_outputs' in self.needs else []
    return [*source, *dict.fromkeys(name for name in self.teachers.values() if name is not None)]

  def init(self, view: Callable[[str | None, str | None], View], key: Array) -> dict:
    """The terms' own parameters and state, `{'params': {name: …}, 'stats': {name: …}}`."""
    own: dict = {'params': {}, 'stats': {}}
    for index, (name, term) in enumerate(self.terms.items()):
      created = term.init(view(self.tasks[name], self.teachers[name]), jax.random.fold_in(key, index))
      own['params'].update({name: created['params']} if created['params'] else {})
      own['stats'].update({name: created['stats']} if created['stats'] else {})
    balancing = {} if self.balancer is None else self.balancer.init(self.kinds)
    return {kind: own[kind] | ({balancers.NAME: balancing[kind]} if balancing.get(kind) else {}) for kind in own}

  def __call__(self, view: Callable[[str | None, str | None], View], own: Mapping) -> tuple[dict[str, Any], dict, dict]:
    """(losses by term, metrics by 'term/metric', the terms' state); `view(task, teacher)` is what a term looks at."""
    losses, metrics, stats = {}, {}, {}
    for name, term in self.terms.items():
      mine = {'params': own['params'].get(name, {}), 'stats': own['stats'].get(name, {})}
      looked = view(self.tasks[name], self.teachers[name])
      masked = looked.known is not None and 'labels' in term.needs
      if masked:
        looked = dataclasses.replace(looked, mask=looked.mask & looked.known)
      loss, measured, state = term.apply(looked, mine)
      losses[name] = _of_known(loss, looked.known) if masked else loss
      if masked:
        measured = {key: _of_known(value, looked.known) for key, value in measured.items()}
      metrics.update({f'{name}/{key}': value for key, value in measured.items()})
      stats.update({name: state} if state else {})
    return losses, metrics, stats


def _of_known(loss: Any, known: Array) -> Any:
  """The loss with weight 0 for examples whose label is missing; one number has seen the mask already."""
  if isinstance(loss, tuple):
    return loss[0], loss[1] * known
  return (loss, known.astype(loss.dtype)) if loss.ndim else loss


# What a plain function's positional arguments are filled with.
_ARGUMENTS: dict[str, Callable[[View], Any]] = {
  'logits': lambda view: view.output,
  'predictions': lambda view: view.output,
  'labels': lambda view: view.labels,
  'targets': lambda view: view.labels,
  'params': lambda view: view.params,
  'source': lambda view: view.source,
  'outputs': lambda view: view.outputs,
  'source_outputs': lambda view: view.source_outputs,
  'student_logits': lambda view: view.output,
  'teacher_logits': lambda view: view.teacher_logits,
  'teacher_outputs': lambda view: view.teacher_outputs,
  'mask': lambda view: view.mask,
  'fisher': lambda view: view.fisher,
  'key': lambda view: view.key,
  'progress': lambda view: view.progress,
}


_NEEDED = {
  'teacher_logits': 'teacher_outputs',
  'targets': 'labels',
  **dict.fromkeys(('logits', 'predictions', 'student_logits'), 'output'),
  **{name: name for name in NEEDS},
}


def build(
  specs: Sequence[TermSpec], stages: Sequence[str], where: str = 'config.objective', teachers: Collection[str] = ()
) -> Objective:
  """The objective that a config names.

  Args:
    teachers: names of those there are.

  Raises:
    UserError: no such term, an argument it does not take, two terms of one name, a stage that does not exist, or no
      teacher for a term that asks one.
  """
  terms: dict[str, Term] = {}
  taught: dict[str, str | None] = {}
  plain = True
  for spec in specs:
    if spec.label == balancers.NAME:
      raise UserError(f'{where}: {spec.label!r} is the name of config.balancing; give the term another')
    if spec.label in terms:
      raise UserError(f'{where}: two terms are called {spec.label!r}; give one a name of its own')
    function = term_function(spec.term)
    options = config.check_options(function, spec.model_extra or {}, f'{where}: {spec.term}')
    positional = [
      p.name for p in inspect.signature(function).parameters.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    terms[spec.label] = _plain(function, positional, options) if positional else function(**options)
    plain &= bool(positional)
    taught[spec.label] = _teacher(spec, terms[spec.label], teachers, where)
    for stage in terms[spec.label].stages:
      if stage not in stages:
        raise unknown(f'{where}: {spec.term}: stage', stage, stages)
  needs = frozenset(need for term in terms.values() for need in term.needs)
  tasks = {spec.label: spec.task for spec in specs}
  return Objective(terms, tasks, taught, 'source' in needs, plain, needs, _one_fisher(terms.values(), where))


def _teacher(spec: TermSpec, term: Term, teachers: Collection[str], where: str) -> str | None:
  """The teacher that a term asks: the one it names, or the only one."""
  if 'teacher_outputs' not in term.needs:
    if spec.teacher is not None:
      raise UserError(f'{where}: {spec.term}: asks no teacher, and names {spec.teacher!r}')
    return None
  if not teachers:
    raise UserError(f'{where}: {spec.term}: asks a teacher, and config.teachers is empty')
  if spec.teacher is None and len(teachers) > 1:
    raise UserError(f'{where}: {spec.term}: there are several teachers; teacher= is one of {", ".join(teachers)}')
  if spec.teacher is not None and spec.teacher not in teachers:
    raise unknown(f'{where}: {spec.term}: teacher', spec.teacher, teachers)
  return spec.teacher or next(iter(teachers))


def _one_fisher(terms: Iterable[Term], where: str) -> FisherChoice | None:
  chosen = list(dict.fromkeys(term.fisher for term in terms if term.fisher is not None))
  if len(chosen) > 1:
    raise UserError(f'{where}: two terms want Fisher information of different labels or examples; one is computed')
  return chosen[0] if chosen else None


def term_function(name: str) -> Callable:
  """The function behind a term's name: a key of `TERMS`, or `module.path.function` of one's own."""
  return config.named('term', name, TERMS)


def _plain(function: Callable, positional: Sequence[str], options: Mapping[str, Any]) -> Term:
  for name in positional:
    if name not in _ARGUMENTS:
      raise unknown(f'term {function.__name__!r}: argument', name, _ARGUMENTS)

  def apply(view: View, own: dict) -> tuple[Any, dict, dict]:
    del own
    return function(*(_ARGUMENTS[name](view) for name in positional), **options), {}, {}

  return Term(
    nothing,
    apply,
    stages=tuple(stages) if isinstance(stages := options.get('stages'), list) else (),
    couples=getattr(function, 'couples', False),
    needs=tuple(dict.fromkeys(_NEEDED[name] for name in positional if name in _NEEDED)),
    fisher=FisherChoice() if 'fisher' in positional else None,
  )


def linear_init(key: Array, inputs: int, outputs: int) -> dict[str, Array]:
  """Parameters of a linear layer of a term's own, [inputs, outputs] and [outputs]."""
  return {'kernel': jax.nn.initializers.lecun_normal()(key, (inputs, outputs)), 'bias': jnp.zeros(outputs)}


def linear(params: Mapping[str, Array], x: Float[Array, 'batch inputs']) -> Float[Array, 'batch outputs']:
  """x W + b."""
  return x @ params['kernel'] + params['bias']
