"""What a phase may say, and what follows from it for the stages: lengths, modes, the table of phase ends.

Training is a list of phases; a phase says what moves. Pure Python over names and numbers: no arrays here, and
nothing that needs JAX, so that a mistaken config is answered at once.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic

from transferlab import config, paths
from transferlab.config import LATER, Fraction, NonNegative, Positive, Rate, Schema
from transferlab.errors import UserError

RateRules = Annotated[list[tuple[str, Rate]], pydantic.BeforeValidator(config.tuples), pydantic.Field(min_length=1)]
Patterns = Annotated[list[str], pydantic.Field(min_length=1)]
Statistics = Literal['auto', 'update', 'frozen', 'adapt']


class Schedule(Schema):
  """How the learning rate moves over a phase, as a factor of the phase's rates."""

  name: Literal['constant', 'cosine', 'linear', 'step', 'one_cycle', 'slanted_triangular', 'exponential'] = (
    pydantic.Field(
      'constant',
      description='constant; cosine or linear from 1 to `final`; step: times `factor` at each of `at`; one_cycle: '
      'cosine from 1/25 up to 1 over the first 30 %, then down to 1e-4/25 (Smith and Topin 2018, in the form of '
      "torch's OneCycleLR; momentum stays); slanted_triangular: linear from 1/`ratio` up to 1 over the first "
      '`cut_frac`, then down again (Howard and Ruder 2018, eq. 3); exponential: from `first` to 1, by the same factor '
      'in each step',
    )
  )
  warmup: Annotated[float, pydantic.Field(ge=0, lt=1)] = pydantic.Field(
    0.0, description='share of the phase over which the rate first rises linearly from 0'
  )
  final: Annotated[float, pydantic.Field(ge=0, le=1)] = pydantic.Field(
    0.0, description='factor at the end (cosine, linear)'
  )
  at: list[Fraction] = pydantic.Field([0.5, 0.75], description='shares of the phase at which a step happens')
  factor: Annotated[float, pydantic.Field(gt=0, le=1)] = pydantic.Field(0.1, description='what a step multiplies by')
  cut_frac: Fraction = pydantic.Field(
    0.1, description='share of the phase over which the rate rises (slanted_triangular)', json_schema_extra=LATER
  )
  ratio: Annotated[float, pydantic.Field(ge=1, le=1e30)] = pydantic.Field(
    32.0, description='the largest rate over the smallest (slanted_triangular)', json_schema_extra=LATER
  )
  first: Annotated[float, pydantic.Field(ge=1e-30, le=1)] = pydantic.Field(
    1e-6, description='factor at the start (exponential)', json_schema_extra=LATER
  )


class EarlyStop(Schema):
  """Ends the phase when validation has not improved for a while."""

  patience: Positive = pydantic.Field(description='evaluations without improvement after which the phase ends')
  min_delta: Rate = pydantic.Field(0.0, description='what counts as an improvement, in units of the selection metric')


class Transform(Schema):
  """A transformation of parameters before they are applied; keys beside these are arguments of its function."""

  model_config = pydantic.ConfigDict(extra='allow', frozen=True, strict=True, allow_inf_nan=False)
  name: str = pydantic.Field(description='mixout, or module.path.function of your own (training/transforms.py)')
  pattern: str = pydantic.Field('.*', description='the parameters it acts on, of those that train')


class Average(Schema):
  """A running average of what trains, which validation judges and which takes its place when the phase ends."""

  name: Literal['exponential', 'uniform'] = pydantic.Field(
    description='exponential: decay · average + (1 − decay) · parameters, from the start of the phase; uniform: the '
    'mean of the parameters every so many steps (stochastic weight averaging, Izmailov et al. 2018). Running '
    'statistics that moved are computed anew on the training inputs'
  )
  decay: Fraction = pydantic.Field(0.999, description='share of the old average that stays at a step (exponential)')
  first: config.Share = pydantic.Field(0.0, description='share of the phase after which averaging begins')
  every: Positive = pydantic.Field(1, description='steps from one average to the next')


Shares = Annotated[list[Annotated[float, pydantic.Field(ge=0, le=1)]], pydantic.Field(min_length=1)]


class Phase(Schema):
  """A stretch of training with one set of moving parameters."""

  name: str | None = pydantic.Field(None, description='name in logs and tables; None: phase1, phase2, …')
  train: str | Patterns = pydantic.Field(
    '.*', description='pattern(s) of the parameters that move; all others are frozen'
  )
  steps: NonNegative | None = pydantic.Field(
    None, description='length in optimizer steps, 0 to measure the network as it begins; or give epochs, or examples'
  )
  epochs: Annotated[float, pydantic.Field(gt=0)] | None = pydantic.Field(
    None, description='length in passes over the data'
  )
  examples: Positive | None = pydantic.Field(None, description='length in training examples seen')
  optimizer: str = pydantic.Field('adam', description='any optax optimizer by name; also momentum, nesterov')
  optimizer_options: dict[str, Any] = pydantic.Field({}, description='its further arguments, as optax names them')
  learning_rate: Rate | RateRules = pydantic.Field(
    1e-3, description='one rate, or rules [(pattern, rate), …] of which the first match wins'
  )
  layer_decay: Annotated[float, pydantic.Field(gt=0, le=1)] | None = pydantic.Field(
    None, description="each stage's rate is multiplied by layer_decay ** (stages between it and the head)"
  )
  weight_decay: Rate | RateRules = pydantic.Field(0.0, description='one value, or rules [(pattern, value), …]')
  weight_decay_form: Literal['auto', 'coupled', 'decoupled'] = pydantic.Field(
    'auto',
    description='coupled: added to the gradient (L2, as torch.optim.SGD); decoupled: added to the update, times the '
    'learning rate (AdamW); auto: decoupled for optimizers that have weight decay of their own, else coupled',
  )
  max_norm: Annotated[float, pydantic.Field(gt=0)] | RateRules | None = pydantic.Field(
    None,
    description='largest norm of the weights that come into a unit, after every step (Srivastava et al. 2014, '
    'Dropout, section 5.1); one value for all kernels, or rules [(pattern, value), …]',
    json_schema_extra=LATER,
  )
  schedule: Schedule = pydantic.Field(Schedule(), description='how the rate moves over the phase')
  clip: Annotated[float, pydantic.Field(gt=0)] | None = pydantic.Field(
    None, description='largest global norm of the gradient of what trains'
  )
  statistics: Statistics | Annotated[list[tuple[str, Statistics]], pydantic.BeforeValidator(config.tuples)] = (
    pydantic.Field(
      'auto',
      description='running statistics (BatchNorm), one policy or rules [(stage pattern, policy), …]. auto: they move '
      'in stages that train; update: they move although weights do not; frozen: they stay; adapt: recomputed on '
      "the target's training inputs before the phase (AdaBN), then frozen",
    )
  )
  objective: list[dict[str, Any]] | None = pydantic.Field(
    None, description="terms of this phase; None: the run's objective"
  )
  transform: list[Transform] = pydantic.Field(
    [],
    description="what becomes of parameters before each training step applies them: [dict(name='mixout', p=0.7)]",
    json_schema_extra=LATER,
  )
  keep_optimizer: bool = pydantic.Field(False, description='go on with the optimizer state of the phase before')
  early_stop: EarlyStop | None = pydantic.Field(None, description='end when validation stops improving')
  average: Average | None = pydantic.Field(
    None, description='a running average of what trains takes its place', json_schema_extra=LATER
  )
  interpolate: Shares | None = pydantic.Field(
    None,
    description='at the end of the phase go only this share of the way from its start (WiSE-FT, Wortsman et al. 2022): '
    '[0.5], or several among which validation data choose; in the last phase, results.json has the curve',
    json_schema_extra=LATER,
  )

  @pydantic.model_validator(mode='after')
  def _one_length(self) -> 'Phase':
    given = [name for name in ('steps', 'epochs', 'examples') if getattr(self, name) is not None]
    if len(given) != 1:
      raise ValueError(f'a phase has exactly one of steps, epochs and examples; given: {", ".join(given) or "none"}')
    return self


def names(phases: Sequence[Phase]) -> list[str]:
  """A name for each phase. Raises `UserError` where two have the same."""
  found = [phase.name or f'phase{number}' for number, phase in enumerate(phases, 1)]
  for name in found:
    if found.count(name) > 1:
      raise UserError(f'config.phases: two phases are named {name!r}')
  return found


def length(phase: Phase, examples: int, batch_size: int, last_batch: str) -> int:
  """The phase's length in steps.

  An epoch is `examples / batch_size` steps where batches carry over from one epoch to the next, and that number
  rounded up where the last batch of an epoch is padded.
  """
  if phase.steps is not None:
    return phase.steps
  if phase.examples is not None:
    return math.ceil(phase.examples / batch_size)
  assert phase.epochs is not None
  per_epoch = math.ceil(examples / batch_size) if last_batch == 'pad' else examples / batch_size
  return max(1, math.ceil(min(phase.epochs * per_epoch - 1e-9, config.LARGEST + 1)))


def ends(phases: Sequence[Phase], examples: int, batch_size: int, last_batch: str) -> list[int]:
  """The global step at which each phase ends, if none stops early."""
  table, step = [], 0
  for phase in phases:
    step += length(phase, examples, batch_size, last_batch)
    table.append(step)
  return table


def training_stages(stages: Sequence[str], leaves: Mapping[str, Iterable[str]], trainable: set[str]) -> set[str]:
  """The stages in training mode.

  A stage with leaves is, when any of them trains. A stage without leaves is, when a stage before it trains, or when
  it stands directly before one that trains.

  Args:
    stages: names in order.
    leaves: `{stage: paths of the leaves it reads}`, shared leaves by the path of their owner.
    trainable: paths that the optimizer may move.
  """
  own = {stage: any(path in trainable for path in leaves.get(stage, ())) for stage in stages}
  training: set[str] = set()
  for index, stage in enumerate(stages):
    if own[stage]:
      training.add(stage)
    elif not any(True for _ in leaves.get(stage, ())):
      following = next((s for s in stages[index + 1 :] if any(True for _ in leaves.get(s, ()))), None)
      if any(own[s] for s in stages[:index]) or (following is not None and own[following]):
        training.add(stage)
  return training


def statistics_stages(phase: Phase, with_statistics: Sequence[str], training: set[str]) -> tuple[set[str], set[str]]:
  """The stages whose statistics move during the phase, and those adapted before it.

  Args:
    with_statistics: the stages that have running statistics.
    training: the stages in training mode.

  Raises:
    UserError: a policy is asked of a network or a stage that has no statistics.
  """
  rules = [('.*', phase.statistics)] if isinstance(phase.statistics, str) else list(phase.statistics)
  if not with_statistics:
    asked = [policy for _, policy in rules if policy in ('update', 'adapt')]
    if asked:
      raise UserError(f'statistics {asked[0]!r}: the network has no running statistics (no BatchNorm)')
    return set(), set()
  if not rules or rules[-1][0] != '.*':
    rules.append(('.*', 'auto'))
  policies = paths.assign(rules, with_statistics, what='statistics')
  moving = {s for s in with_statistics if policies[s] == 'update' or (policies[s] == 'auto' and s in training)}
  return moving, {s for s in with_statistics if policies[s] == 'adapt'}
