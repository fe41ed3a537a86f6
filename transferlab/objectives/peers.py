"""Terms whose teacher is on the way itself: the student's own average, students that learn side by side, deeper stages.

What they keep of other networks is the term's own: parameters under `terms/` that train with the student, averages in
its state; all is checkpointed, and never exported.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
import pydantic
from jaxtyping import Array

from transferlab.config import Fraction, Rate
from transferlab.errors import UserError
from transferlab.objectives import distillation
from transferlab.objectives.objective import Term, View, linear, linear_init
from transferlab.objectives.teaching import CLASSES, Ramp, Temperature, as_classes, at

Networks = Annotated[list[dict[str, Any]], pydantic.Field(min_length=1)]
Stages = Annotated[list[str], pydantic.Field(min_length=1)]


# -------------------------------------------------------------------------------------------------------- mean teacher
def mean_teacher(
  *, decay: Fraction = 0.99, cost: Literal['squared', 'kl'] = 'squared', temperature: Ramp = 1.0
) -> Term:
  """‖f(x, θ') − f(x, θ)‖² between the answers of the student and of its own average (Tarvainen and Valpola 2017).

  θ'_t = α θ'_{t−1} + (1 − α) θ_t, taken at the head of the next step; the average starts as the student, and answers in
  evaluation mode.
  'squared' is the mean over classes of the squared difference of probabilities, as in the authors' code, 'kl' is
  distillation.kd. Usually the weight rises: schedule=dict(warmup=0.3).

  Args:
    decay: α.
    cost: which.
    temperature: of both, or [first, last].
  """

  def init(view: View, key: Array) -> dict:
    del key
    return {'params': {}, 'stats': _weights(view)}

  def apply(view: View, own: dict) -> tuple[Array, dict, dict]:
    assert view.again is not None
    now = jax.lax.stop_gradient(_weights(view))
    average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, own['stats'], now)
    theirs = jax.lax.stop_gradient(view.again(average['params'], average.get('stats', {})))[view.head]
    theirs = theirs[view.task] if isinstance(theirs, Mapping) and view.task else theirs
    student, teacher, softness = as_classes(view.output), as_classes(theirs), at(temperature, view)
    if cost == 'kl':
      return distillation.kd(student, teacher, softness), {}, average
    probabilities = [jax.nn.softmax(logits / softness) for logits in (student, teacher)]
    return jnp.square(probabilities[0] - probabilities[1]).mean(axis=-1), {}, average

  return Term(init, apply, answers=CLASSES)


def _weights(view: View) -> dict[str, Any]:
  """The student's parameters, and its running statistics where it has any."""
  return {'params': dict(view.params), **({'stats': dict(view.stats)} if view.stats else {})}


# ------------------------------------------------------------------------------------------------ deep mutual learning
def mutual(*, networks: Networks, temperature: Temperature = 1.0) -> Term:
  """Students that teach one another as they learn (Zhang et al. 2018, Deep mutual learning).

  For K students the loss of each is its cross-entropy plus the mean over the others l of KL(p_l ‖ p_k), to whom the
  other's answer is given. The run's own network is the first, whose cross-entropy is a term of its own; the value of
  this term is all the rest. All are updated in the same step, where the paper takes turns. With a temperature T the
  divergence is distillation.kd. The accuracy of the others on training data is logged.

  Args:
    networks: the other students, as config.network names them.
    temperature: T; the paper's is 1.
  """

  def init(view: View, key: Array) -> dict:
    begun = {
      name: network.init(jax.random.fold_in(key, number))
      for number, (name, network) in enumerate(_students(networks, view).items())
    }
    stats = {name: variables['stats'] for name, variables in begun.items() if variables['stats']}
    return {'params': {name: variables['params'] for name, variables in begun.items()}, 'stats': stats}

  def apply(view: View, own: dict) -> tuple[Array, dict, dict]:
    answers, stats, measured = {'own': view.output}, {}, {}
    for number, (name, network) in enumerate(_students(networks, view).items(), 1):
      variables = {'params': own['params'][name], 'stats': own['stats'].get(name, {})}
      inputs = {'x': view.inputs, 'example_mask': view.mask}
      keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(view.key, number)
      outputs, moved = network.apply(variables, inputs, train=True, key=keys)
      answers[name] = outputs[network.stages[-1]]
      stats.update({name: moved} if moved else {})
      measured[f'{name}_accuracy'] = (answers[name].argmax(-1) == view.labels).astype(jnp.float32)
    hard = optax.softmax_cross_entropy_with_integer_labels
    losses = [hard(answers[name], view.labels) for name in answers if name != 'own']
    for one, logits in answers.items():
      taught = [
        distillation.kd(logits, jax.lax.stop_gradient(other), temperature)
        for name, other in answers.items()
        if name != one
      ]
      losses.append(sum(taught) / len(taught))
    return sum(losses), measured, stats

  return Term(init, apply, needs=('inputs', 'labels'), answers=('classification',))


def _students(networks: Networks, view: View) -> dict[str, Any]:
  """The other students by name, for inputs and classes as in the view."""
  from transferlab.networks import network as built

  made = {}
  for number, spec in enumerate(networks):
    if not isinstance(spec.get('name'), str):
      raise UserError(f'config.objective: mutual.networks.{number}: name is missing, or is no name')
    options = {name: value for name, value in spec.items() if name != 'name'}
    made[f'student{number + 1}'] = built.build(spec['name'], options, view.inputs.shape[1:], view.output.shape[-1])
  return made


# ---------------------------------------------------------------------------------------------------- self-distillation
def self_distillation(
  *, stages: Stages, temperature: Ramp = 3.0, alpha: Rate = 0.3, feature_weight: Rate = 0.0
) -> Term:
  """Shallow classifiers at some stages that learn from the network's own answer (Zhang et al. 2019).

  Be your own teacher: each adds (1 − α) cross-entropy + α distillation.kd towards the head's answer + λ ‖F_i − F_C‖²
  towards the features before the head, all pooled; the answer and the features are constants in it. The head's own
  cross-entropy is another term. Unlike in the paper the classifiers have no convolutions, but one linear layer each.

  Args:
    stages: where there are classifiers.
    temperature: of the answers, or [first, last].
    alpha: α.
    feature_weight: λ.
  """

  def init(view: View, key: Array) -> dict:
    made: dict[str, Any] = {}
    for number, stage in enumerate(stages):
      inputs, keys = view.features(stage).shape[-1], jax.random.split(jax.random.fold_in(key, number))
      made[stage] = {'classifier': linear_init(keys[0], inputs, view.output.shape[-1])}
      if feature_weight:
        made[stage]['regressor'] = linear_init(keys[1], inputs, _deepest(view).shape[-1])
    return {'params': made, 'stats': {}}

  def apply(view: View, own: dict) -> tuple[Array, dict, dict]:
    answer = jax.lax.stop_gradient(view.output)
    loss: Any = 0.0
    for stage in stages:
      features, layers = view.features(stage), own['params'][stage]
      logits = linear(layers['classifier'], features)
      loss += (1 - alpha) * optax.softmax_cross_entropy_with_integer_labels(logits, view.labels)
      loss += alpha * distillation.kd(logits, answer, at(temperature, view))
      if feature_weight:
        difference = linear(layers['regressor'], features) - jax.lax.stop_gradient(_deepest(view))
        loss += feature_weight * jnp.square(difference).sum(axis=-1)
    return loss, {}, {}

  return Term(init, apply, stages=tuple(stages), needs=('labels',), answers=('classification',))


def _deepest(view: View) -> Array:
  """The features before the head."""
  stages = list(view.outputs)
  if len(stages) < 2:
    raise UserError('config.objective: self_distillation.feature_weight: there is no stage before the head')
  return view.features(stages[-2])
