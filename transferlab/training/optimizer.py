"""The optimizer of a phase: an optax core at rate 1, weight decay by pattern, and rates as arrays at the very end.

Learning rates and weight decay are arguments of the compiled step, not constants in it: runs that differ only in
such values share one compilation, and can be trained together under `vmap`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from transferlab import paths
from transferlab.errors import UserError, unknown
from transferlab.training.phases import Average, Phase, RateRules, Schedule

# Names of ours beside optax's own.
ALIASES = {
  'momentum': ('sgd', {'momentum': 0.9}),
  'nesterov': ('sgd', {'momentum': 0.9, 'nesterov': True}),
}
# They need the value of the loss, or several evaluations of it, or a rate that is not a factor of the update.
_OTHER_FORMS = {
  'lbfgs',
  'polyak_sgd',
  'noisy_sgd',
  'optimistic_gradient_descent',
  'optimistic_adam',
  'optimistic_adam_v2',
  'fromage',
  'rprop',
}


def optimizer_names() -> list[str]:
  """Every name that `optimizer` may have: optax's functions of a learning rate, and our aliases."""
  found = [
    name
    for name, value in vars(optax).items()
    if inspect.isfunction(value)
    and not name.startswith(('_', 'scale_by'))
    and name not in _OTHER_FORMS
    and next(iter(inspect.signature(value).parameters), '') == 'learning_rate'
  ]
  return sorted([*found, *ALIASES])


@dataclasses.dataclass(frozen=True, eq=False)
class Optimizer:
  """The static half of a phase's optimizer; `Rates` is the half that is arrays.

  Attributes:
    core: optax transformation at learning rate 1.
    clip: largest global norm of the gradient, before any weight decay is added to it.
    decay: for each weight-decay rule the trainable paths it holds for.
    norms: for each rule of `max_norm` the trainable kernels it holds for.
    coupled: weight decay is added to the gradient, rather than to the update.
    schedule: how the rates move.
  """

  core: optax.GradientTransformation
  clip: float | None
  decay: tuple[frozenset[str], ...]
  norms: tuple[frozenset[str], ...]
  coupled: bool
  schedule: Schedule


def build(
  phase: Phase, trainable: Sequence[str], leaves: Sequence[str], stages: Sequence[str], where: str
) -> Optimizer:
  """The optimizer that a phase names.

  Raises:
    UserError: no such optimizer, or an argument that it does not take.
  """
  name, preset = ALIASES.get(phase.optimizer, (phase.optimizer, {}))
  if phase.optimizer not in optimizer_names():
    raise unknown('optimizer', phase.optimizer, optimizer_names())
  function = getattr(optax, name)
  parameters = inspect.signature(function).parameters
  options = {**preset, **phase.optimizer_options}
  for option in options:
    if option not in parameters or option in ('learning_rate', 'weight_decay', 'mask'):
      choices = [p for p in parameters if p not in ('learning_rate', 'weight_decay', 'mask')]
      raise unknown(f'{where}.optimizer_options for {name}:', option, choices)
  own_decay = 'weight_decay' in parameters
  try:
    core = function(learning_rate=1.0, **options, **({'weight_decay': 0.0} if own_decay else {}))
    jax.eval_shape(lambda leaf: core.update(leaf, core.init(leaf), leaf), jnp.zeros(2))
  except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
    reason = str(error).strip().partition('\n')[0]
    raise UserError(f'{where}.optimizer_options: optax.{name} refuses {options}: {reason}') from None
  held = functools.partial(_rule_paths, trainable=trainable, leaves=leaves, stages=stages)
  decay = held(decay_rules(phase.weight_decay), where=f'{where}.weight_decay')
  norms = held(norm_rules(phase.max_norm), where=f'{where}.max_norm')
  coupled = phase.weight_decay_form == 'coupled' or (phase.weight_decay_form == 'auto' and not own_decay)
  return Optimizer(core, phase.clip, decay, norms, coupled, phase.schedule)


def _rule_paths(
  given: Sequence[tuple[str, float]], trainable: Sequence[str], leaves: Sequence[str], stages: Sequence[str], where: str
) -> tuple[frozenset[str], ...]:
  """For each rule the trainable paths it holds for; leaves of terms need no rule."""
  patterns = [pattern for pattern, _ in given]
  if not patterns:
    return ()
  rules = [(pattern, number) for number, pattern in enumerate(patterns)]
  known = [p for p in leaves if not p.startswith(paths.TERMS) or any(paths.matches(q, p) for q in patterns)]
  undecayed = [] if patterns[-1] == '.*' else [('.*', -1)]
  owners = paths.assign(rules + undecayed, known, what=where, stages=stages)
  return tuple(frozenset(path for path in trainable if owners.get(path) == i) for i in range(len(rules)))


def decay_rules(weight_decay: float | RateRules) -> list[tuple[str, float]]:
  """Weight decay as rules; none where it is zero."""
  if isinstance(weight_decay, float | int):
    return [('.*', float(weight_decay))] if weight_decay else []
  return [rule for rule in weight_decay if rule[0] != '.*' or rule[1]]


def norm_rules(max_norm: float | RateRules | None) -> list[tuple[str, float]]:
  """Largest norms as rules; none where there are no limits."""
  if max_norm is None:
    return []
  return [('.*', float(max_norm))] if isinstance(max_norm, float | int) else list(max_norm)


def hyperparameters(phase: Phase, rates: Mapping[str, float], start: int, steps: int) -> dict[str, Any]:
  """The arrays of a phase's optimizer: rates by leaf, weight decay by rule, and the phase's place in the run."""
  schedule = phase.schedule
  return {
    'rates': {path: jnp.float32(rate) for path, rate in rates.items()},
    'weight_decay': [jnp.float32(value) for _, value in decay_rules(phase.weight_decay)],
    'max_norm': [jnp.float32(value) for _, value in norm_rules(phase.max_norm)],
    'start': jnp.int32(start),
    'steps': jnp.float32(steps),
    **schedule_values(schedule),
    'average': None if phase.average is None else _average_values(phase.average, steps),
  }


def _average_values(average: Average, steps: int) -> dict[str, Array]:
  """The numbers of a running average; see averaging.py."""
  first = jnp.int32(round(average.first * steps))
  return {'decay': jnp.float32(average.decay), 'first': first, 'every': jnp.int32(average.every)}


def schedule_values(schedule: Schedule) -> dict[str, Float[Array, '']]:
  """What a schedule says in numbers that need not be known when the step is compiled."""
  return {name: jnp.float32(getattr(schedule, name)) for name in ('warmup', 'final', 'cut_frac', 'ratio', 'first')}


def update(
  optimizer: Optimizer, gradients: Any, state: Any, trainable: Any, hyper: Mapping[str, Any], step: Array
) -> tuple[Any, Any, Float[Array, '']]:
  """One step: the new trainable tree, the new optimizer state, and the schedule's factor.

  Args:
    gradients, trainable: trees with holes.
    hyper: `hyperparameters`.
    step: global step, before this update.
  """
  if optimizer.clip is not None:
    gradients, _ = optax.clip_by_global_norm(optimizer.clip).update(gradients, optax.EmptyState())
  if optimizer.coupled:
    gradients = _decayed(optimizer, gradients, trainable, hyper)
  updates, state = optimizer.core.update(gradients, state, trainable)
  if not optimizer.coupled:
    updates = _decayed(optimizer, updates, trainable, hyper, sign=-1.0)
  factor = schedule_factor(optimizer.schedule, (step - hyper['start']) / hyper['steps'], hyper)
  rates = paths.unflatten({path: hyper['rates'].get(path) for path in paths.flatten(trainable)})
  updates = jax.tree.map(lambda u, rate: (u * (rate * factor)).astype(u.dtype), updates, rates)
  return _limited(optimizer, optax.apply_updates(trainable, updates), hyper), state, factor


def _limited(optimizer: Optimizer, trainable: Any, hyper: Mapping[str, Any]) -> Any:
  """The parameters with the weights that come into each unit (all axes of a kernel but the last) cut to their norm."""
  if not optimizer.norms:
    return trainable
  flat = paths.flatten(trainable)
  for chosen, largest in zip(optimizer.norms, hyper['max_norm']):
    for path in sorted(chosen):
      if flat[path].ndim > 1:
        norms = jnp.sqrt(jnp.square(flat[path]).sum(axis=tuple(range(flat[path].ndim - 1))))
        flat[path] = flat[path] * (largest / jnp.maximum(norms, largest))
  return paths.unflatten(flat)


def _decayed(optimizer: Optimizer, updates: Any, trainable: Any, hyper: Mapping[str, Any], sign: float = 1.0) -> Any:
  for chosen, value in zip(optimizer.decay, hyper['weight_decay']):
    mask = paths.unflatten(
      {path: None if leaf is None else path in chosen for path, leaf in paths.flatten(trainable).items()}
    )
    decay = optax.masked(optax.add_decayed_weights(sign * value), mask)
    updates, _ = decay.update(updates, decay.init(trainable), trainable)
  return updates


def schedule_factor(
  schedule: Schedule, progress: Float[Array, ''], values: Mapping[str, Float[Array, '']]
) -> Float[Array, '']:
  """The factor of the learning rates at `progress` through the phase, in [0, 1).

  Args:
    schedule: only its name, `at` and `factor` are read.
    values: `schedule_values`.
  """
  warmup, final = values['warmup'], values['final']
  ramp = jnp.where(progress < warmup, progress / jnp.maximum(warmup, 1e-12), 1.0)
  after = jnp.clip((progress - warmup) / (1 - warmup), 0.0, 1.0)
  if schedule.name == 'cosine':
    shape = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * after))
  elif schedule.name == 'linear':
    shape = 1 - (1 - final) * after
  elif schedule.name == 'step':
    # Division in float32 may fall just short of the share at which a step is due.
    passed = sum((progress >= jnp.float32(at - 1e-6)).astype(jnp.float32) for at in schedule.at)
    shape = jnp.power(schedule.factor, jnp.float32(passed))
  elif schedule.name == 'one_cycle':
    shape = _one_cycle(after)
  elif schedule.name == 'slanted_triangular':
    shape = _slanted_triangular(after, values['cut_frac'], values['ratio'])
  elif schedule.name == 'exponential':
    shape = jnp.power(values['first'], 1 - after)
  else:
    shape = jnp.ones(())
  return ramp * shape


def _one_cycle(progress: Float[Array, '']) -> Float[Array, '']:
  start, end, peak = 1 / 25, 1e-4 / 25, 0.3
  rising = start + (1 - start) * 0.5 * (1 - jnp.cos(jnp.pi * progress / peak))
  falling = end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * (progress - peak) / (1 - peak)))
  return jnp.where(progress < peak, rising, falling)


def _slanted_triangular(
  progress: Float[Array, ''], cut_frac: Float[Array, ''], ratio: Float[Array, '']
) -> Float[Array, '']:
  """Howard and Ruder 2018, equation 3, with T · cut_frac not rounded down.

  The paper's rounding makes the rate negative at the end of phases of a few steps. Where T · cut_frac is whole, the
  two are the same.
  """
  p = jnp.where(progress < cut_frac, progress / cut_frac, (1 - progress) / (1 - cut_frac))
  return (1 + p * (ratio - 1)) / ratio
