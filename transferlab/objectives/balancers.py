"""How the losses, or the gradients, of several tasks combine: the methods that `config.balancing` names.

The mathematics is in balancing.py (gradients) and loss_weights.py (losses), as plain functions; here are their options
and what they keep from one step to the next. A balancer is of the form of a term: its parameters train under
`terms/balancing`, its state is checkpointed, and neither is exported.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Float

from transferlab import config
from transferlab.config import Positive, Rate, Share
from transferlab.errors import UserError
from transferlab.objectives import balancing, loss_weights
from transferlab.objectives.settings import Balancing

NAME = 'balancing'  # of the balancer's own parameters and state among those of terms
BALANCERS = dict.fromkeys(
  (
    'equal',
    'random_weights',
    'uncertainty',
    'dynamic_weight_average',
    'geometric_mean',
    'gradnorm',
    'famo',
    'mgda',
    'pcgrad',
    'gradvac',
    'graddrop',
    'cagrad',
    'imtl_g',
    'nash',
    'aligned_mtl',
  ),
  'transferlab.objectives.balancers',
)
# What is balanced: gradients of all shared parameters, or of the output of the last shared stage.
Level = Literal['parameters', 'representation']
Temperature = Annotated[float, pydantic.Field(gt=0, le=1e6)]


@dataclasses.dataclass(frozen=True)
class Tasks:
  """What a balancer looks at.

  Attributes:
    kinds: 'classification', 'binary' or 'regression' of each task, by name, in order.
    losses: [tasks], each the weighted sum of the task's terms; 0 for a task that is not present.
    key: of the step.
    present: [tasks], 0 for a task of which the batch has no label (or no term at all): its loss says nothing.
    gradients: [tasks, n], of the losses, flattened; None where losses are balanced.
    representation: [batch, …], that these are the gradients of, where it is not parameters, and is one array.
  """

  kinds: Mapping[str, str]
  losses: Float[Array, ' tasks']
  key: Array
  present: Float[Array, ' tasks']
  gradients: Any = None
  representation: Any = None

  def named(self, values: Array, what: str) -> dict[str, Array]:
    """Metrics by task."""
    return {f'{what}_{task}': value for task, value in zip(self.kinds, values)}


def nothing(kinds: Mapping[str, str]) -> dict:
  """`init` of a balancer without parameters or state."""
  del kinds
  return {'params': {}, 'stats': {}}


@dataclasses.dataclass(frozen=True, eq=False)
class Balancer:
  """One way to combine.

  Attributes:
    level: what of: 'losses', or `Level`.
    apply: `apply(tasks, own) -> (combined, metrics, own_stats)`; combined is the loss to differentiate, or the update
      [n] that stands for the gradient of what is shared.
    init: `init(kinds) -> {'params': …, 'stats': …}`.
    lookahead: rate of the steps after which each task's loss is measured, to log who helps whom.
  """

  level: Literal['losses', 'parameters', 'representation']
  apply: Callable[[Tasks, dict], tuple[Array, dict[str, Array], dict]]
  init: Callable[[Mapping[str, str]], dict] = nothing
  lookahead: float | None = None


def build(spec: Balancing, where: str = 'config.balancing') -> Balancer:
  """The balancer that a config names. Raises `UserError`: there is none, or an option it does not take."""
  function = config.named('balancer', spec.name, BALANCERS)
  balancer = function(**config.check_options(function, spec.model_extra or {}, f'{where}: {spec.name}'))
  if spec.lookahead is not None and balancer.level != 'parameters':
    raise UserError(
      f'{where}.lookahead moves what tasks share along the gradient of each, and {spec.name} takes none of parameters; '
      "give name='equal' with diagnose=True, or a balancer of gradients with level='parameters'"
    )
  return dataclasses.replace(balancer, lookahead=spec.lookahead)


# ------------------------------------------------------------------------------------------------------------ losses
def _weighing_losses(weights: Callable[[Tasks], Array]) -> Balancer:
  def apply(tasks: Tasks, own: dict) -> tuple[Array, dict, dict]:
    del own
    chosen = jax.lax.stop_gradient(weights(tasks))
    return (chosen * tasks.losses).sum(), tasks.named(chosen, 'weight'), {}

  return Balancer('losses', apply)


def equal(*, diagnose: bool = False) -> Balancer:
  """The sum of the losses, each with the weights that its terms have: tune these before anything below.

  Args:
    diagnose: compute each task's gradient of the shared parameters too, to log cosines and norms.
  """
  if diagnose:
    return Balancer('parameters', lambda tasks, own: (tasks.gradients.sum(axis=0), {}, {}))
  return _weighing_losses(lambda tasks: jnp.ones_like(tasks.losses))


def random_weights() -> Balancer:
  """Weights with sum 1, drawn anew for each step (Lin et al. 2022, RLW): see loss_weights.random_weights."""

  def weights(tasks: Tasks) -> Array:
    drawn = tasks.present * loss_weights.random_weights(tasks.key, len(tasks.losses))
    return drawn / jnp.maximum(drawn.sum(), jnp.finfo(drawn.dtype).tiny)

  return _weighing_losses(weights)


def uncertainty() -> Balancer:
  """Weights by a variance for each task that trains along (Kendall et al. 2018): see loss_weights.uncertainty."""

  def init(kinds: Mapping[str, str]) -> dict:
    return {'params': {'log_variances': jnp.zeros(len(kinds))}, 'stats': {}}

  def apply(tasks: Tasks, own: dict) -> tuple[Array, dict, dict]:
    regression = jnp.array([kind == 'regression' for kind in tasks.kinds.values()])
    variances = jnp.where(tasks.present > 0, own['params']['log_variances'], 0)
    loss = loss_weights.uncertainty(tasks.losses, variances, regression)
    return loss, tasks.named(jnp.exp(-variances), 'weight'), {}

  return Balancer('losses', apply, init)


def dynamic_weight_average(*, temperature: Temperature = 2.0, every: Positive = 100) -> Balancer:
  """Weights by how fast losses fell (Liu et al. 2019, DWA): see loss_weights.dynamic_weight_average.

  Args:
    temperature: T.
    every: steps over which a loss is averaged, in place of the paper's epochs.
  """

  def init(kinds: Mapping[str, str]) -> dict:
    zeros = jnp.zeros(len(kinds))
    stats = {'sum': zeros, 'seen': zeros, 'steps': jnp.zeros(()), 'previous': zeros, 'before': zeros}
    return {'params': {}, 'stats': stats}

  def apply(tasks: Tasks, own: dict) -> tuple[Array, dict, dict]:
    stats = own['stats']
    weights = loss_weights.dynamic_weight_average(stats['previous'], stats['before'], temperature)
    total, steps = stats['sum'] + jax.lax.stop_gradient(tasks.losses), stats['steps'] + 1
    seen = stats['seen'] + tasks.present
    over = steps >= every
    moved = over & (seen > 0)
    new = {
      'sum': jnp.where(over, 0, total),
      'seen': jnp.where(over, 0, seen),
      'steps': jnp.where(over, 0, steps),
      'previous': jnp.where(moved, total / jnp.maximum(seen, 1), stats['previous']),
      'before': jnp.where(moved, stats['previous'], stats['before']),
    }
    return (weights * tasks.losses).sum(), tasks.named(weights, 'weight'), new

  return Balancer('losses', apply, init)


def geometric_mean() -> Balancer:
  """(Π L_i)^(1/k) of the k tasks present (Chennupati et al. 2019, GLS): see loss_weights.geometric_mean."""

  def apply(tasks: Tasks, own: dict) -> tuple[Array, dict, dict]:
    del own
    count = tasks.present.sum()
    mean = loss_weights.geometric_mean(jnp.where(tasks.present > 0, tasks.losses, 1))
    return jnp.where(count > 0, mean ** (len(tasks.losses) / jnp.maximum(count, 1)), 0), {}, {}

  return Balancer('losses', apply)


def famo(*, gamma: Rate = 0.01, rate: Rate = 0.025) -> Balancer:
  """Losses that fall at equal rates, from their history alone (Liu et al. 2023, FAMO): see loss_weights.famo_weights.

  Logits move by gradient descent, and by how the losses changed from the last batch to this one; the paper looks at the
  last batch again after the step, which costs a forward pass more.

  Args:
    gamma: decay of the logits.
    rate: of the logits.
  """

  def init(kinds: Mapping[str, str]) -> dict:
    zeros = jnp.zeros(len(kinds))
    return {'params': {}, 'stats': {'logits': zeros, 'losses': zeros}}

  def apply(tasks: Tasks, own: dict) -> tuple[Array, dict, dict]:
    logits, before, now = own['stats']['logits'], own['stats']['losses'], jax.lax.stop_gradient(tasks.losses)
    present = tasks.present > 0
    known = (before > 0) & present  # not in the first step
    after = jnp.where(known, now, before)
    slope = loss_weights.famo_gradient(logits, before, after, gamma)
    logits = jnp.where(known, logits - rate * slope, logits)
    parts = loss_weights.famo_weights(jnp.where(present | ~present.any(), logits, -jnp.inf), now)
    weights = jnp.where(present, parts, 0)
    new = {'logits': logits, 'losses': jnp.where(present, now, before)}
    return (weights * tasks.losses).sum(), tasks.named(weights, 'weight'), new

  return Balancer('losses', apply, init)


# --------------------------------------------------------------------------------------------------------- gradients
def _weighing(solve: Callable[[Array], Array], level: Level, stops: bool = True) -> Balancer:
  """A balancer of weights for gradients; `stops`: its update is zero where the gradients are Pareto stationary."""

  def apply(tasks: Tasks, own: dict) -> tuple[Array, dict, dict]:
    del own
    weights = solve(tasks.gradients)
    combined = balancing.combine(weights, tasks.gradients)
    if stops:
      combined = jnp.where(balancing.stationary(tasks.gradients), 0, combined)
    return combined, tasks.named(weights, 'weight'), {}

  return Balancer(level, apply)


def _combining(combine: Callable[[Tasks], Array], level: Level) -> Balancer:
  return Balancer(level, lambda tasks, own: (combine(tasks), {}, {}))


def gradnorm(*, alpha: Rate = 1.5, rate: Rate = 0.025, level: Level = 'representation') -> Balancer:
  """Weights that keep the lengths of gradients in step with training (Chen et al. 2018): see loss_weights.gradnorm.

  The paper's gradients are those of the last shared layer's weights; here of what that layer gives, or of all shared.
  Weights move in steps in which all tasks are present.

  Args:
    alpha: how strongly tasks that train slower are favoured.
    rate: of the weights.
    level: whose gradients.
  """

  def init(kinds: Mapping[str, str]) -> dict:
    return {'params': {}, 'stats': {'weights': jnp.ones(len(kinds)), 'initial': jnp.zeros(len(kinds))}}

  def apply(tasks: Tasks, own: dict) -> tuple[Array, dict, dict]:
    weights, initial = own['stats']['weights'], own['stats']['initial']
    initial = jnp.where(initial > 0, initial, tasks.losses)
    slope = jax.grad(loss_weights.gradnorm, argnums=3)(
      balancing.norms(tasks.gradients), tasks.losses, initial, weights, alpha
    )
    moved = jnp.where(tasks.present.all(), loss_weights.renormalize(weights - rate * slope), weights)
    new = {'weights': moved, 'initial': initial}
    return balancing.combine(weights, tasks.gradients), tasks.named(weights, 'weight'), new

  return Balancer(level, apply, init)


def mgda(*, level: Level = 'parameters', normalize: Literal['none', 'l2'] = 'none') -> Balancer:
  """The shortest average of the gradients (Désidéri 2012): see balancing.mgda.

  Args:
    level: 'representation' is the upper bound of Sener and Koltun 2018 (MGDA-UB).
    normalize: 'l2' takes the average of gradients of length 1.
  """
  return _weighing(lambda gradients: balancing.mgda(gradients, normalize), level)


def pcgrad(*, level: Level = 'parameters') -> Balancer:
  """Gradients without what conflicts with others (Yu et al. 2020): see balancing.pcgrad; the order is drawn anew.

  Args:
    level: whose gradients.
  """
  order = lambda tasks: balancing.draw_order(tasks.key, len(tasks.losses))
  return _combining(lambda tasks: balancing.pcgrad(tasks.gradients, order(tasks)), level)


def gradvac(*, beta: Share = 0.01, level: Level = 'parameters') -> Balancer:
  """Gradients at least as similar to one another as usual (Wang et al. 2021): see balancing.gradvac.

  Args:
    beta: share of the new cosine in what is usual.
    level: whose gradients.
  """

  def init(kinds: Mapping[str, str]) -> dict:
    return {'params': {}, 'stats': {'targets': jnp.zeros((len(kinds), len(kinds)))}}

  def apply(tasks: Tasks, own: dict) -> tuple[Array, dict, dict]:
    order = balancing.draw_order(tasks.key, len(tasks.losses))
    combined, targets = balancing.gradvac(tasks.gradients, own['stats']['targets'], order, beta)
    return combined, {}, {'targets': targets}

  return Balancer(level, apply, init)


def graddrop(*, leak: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.0, level: Level = 'representation') -> Balancer:
  """Each coordinate keeps one sign (Chen et al. 2020): see balancing.graddrop.

  Args:
    leak: how much of each gradient passes without being masked.
    level: whose gradients.
  """

  def combine(tasks: Tasks) -> Array:
    value, gradients = tasks.representation, tasks.gradients
    if value is None:
      return balancing.graddrop(gradients, tasks.key, leak)
    return balancing.graddrop(gradients.reshape(-1, *value.shape), tasks.key, leak, value).reshape(-1)

  return _combining(combine, level)


def cagrad(*, c: Annotated[float, pydantic.Field(ge=0, le=100)] = 0.5, level: Level = 'parameters') -> Balancer:
  """Near the average, what helps the worst task most (Liu et al. 2021, CAGrad): see balancing.cagrad.

  Args:
    c: how far from the average gradient, in its length.
    level: whose gradients.
  """
  return _combining(lambda tasks: balancing.cagrad(tasks.gradients, c), level)


def imtl_g(*, level: Level = 'representation') -> Balancer:
  """Equal projections on all gradients (Liu et al. 2021, IMTL-G): see balancing.imtl_g.

  Args:
    level: whose gradients; the paper's are the representation's.
  """
  return _weighing(balancing.imtl_g, level)


def nash(*, level: Level = 'parameters') -> Balancer:
  """The Nash bargaining solution (Navon et al. 2022, Nash-MTL): see balancing.nash; solved in every step.

  Args:
    level: whose gradients.
  """
  return _weighing(balancing.nash, level)


def aligned_mtl(*, level: Level = 'parameters') -> Balancer:
  """Gradients made orthogonal and of equal length (Senushkin et al. 2023, Aligned-MTL): see balancing.aligned_mtl.

  Args:
    level: whose gradients.
  """
  return _weighing(balancing.aligned_mtl, level, stops=False)
