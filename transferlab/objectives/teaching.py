"""Terms that ask a teacher: the losses of distillation.py between answers and stages, as a config names them.

Where channels differ, the regressor between them is the term's own: it trains with the student, is checkpointed under
`terms/`, and is never exported. Where places differ, the larger side is averaged down to the smaller.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Float

from transferlab.config import Positive, Rate, Share
from transferlab.errors import UserError
from transferlab.networks import sequences
from transferlab.objectives import distillation
from transferlab.objectives.objective import Term, View, array, linear, linear_init, nothing

Temperature = Annotated[float, pydantic.Field(gt=0, le=1e6)]
# One value, or the first and the last: in between it moves linearly over the phase.
Ramp = Temperature | Annotated[list[Temperature], pydantic.Field(min_length=2, max_length=2)]
# The student's stages with the teacher's, or those of equal names.
Stages = Annotated[dict[str, str], pydantic.Field(min_length=1)] | Annotated[list[str], pydantic.Field(min_length=1)]
Pair = Annotated[dict[str, str], pydantic.Field(min_length=1, max_length=1)] | str
VARIANCE, FLOOR = 5.0, 1e-5  # of `variational`: at the start, and never less
SIDES = ('student', 'teacher')
CLASSES = ('classification', 'binary')  # the tasks whose answers are logits of classes


def pairs(stages: Stages | Pair) -> dict[str, str]:
  """The teacher's stage for each of the student's."""
  if isinstance(stages, str):
    return {stages: stages}
  return dict(stages) if isinstance(stages, Mapping) else {stage: stage for stage in stages}


def at(ramp: Ramp, view: View) -> Any:
  """What a ramp has come to at this point of the phase."""
  return ramp[0] + (ramp[1] - ramp[0]) * view.progress if isinstance(ramp, list) else ramp


# ----------------------------------------------------------------------------------------------------------- answers
def _answers(view: View, standardize: bool) -> tuple[Array, Array]:
  """Logits of the student and of the teacher; one logit of a binary answer stands for two classes."""
  given = [logits.reshape(len(logits), -1) for logits in (view.output, view.teacher_logits)]
  if given[0].shape != given[1].shape:
    raise UserError(
      f'config.objective: the teacher {view.teacher!r} answers {given[1].shape[1]} classes, the student '
      f'{given[0].shape[1]}'
    )
  student, teacher = map(as_classes, given)
  return (distillation.standardize(student), distillation.standardize(teacher)) if standardize else (student, teacher)


def as_classes(logits: Array) -> Float[Array, 'batch classes']:
  """Logits of classes; one logit stands for two."""
  logits = logits.reshape(len(logits), -1)
  return jnp.concatenate([jnp.zeros_like(logits), logits], axis=1) if logits.shape[1] == 1 else logits


def kd(*, temperature: Ramp = 4.0, standardize: bool = False) -> Term:
  """T² KL(teacher ‖ student) of answers softened by T (Hinton et al. 2015): see distillation.kd.

  Args:
    temperature: T, or [first, last].
    standardize: logits are standardised before (Sun et al. 2024).
  """

  def apply(view: View, own: dict) -> tuple[Array, dict, dict]:
    del own
    return distillation.kd(*_answers(view, standardize), at(temperature, view)), {}, {}

  return Term(nothing, apply, needs=('teacher_outputs',), answers=CLASSES)


def dkd(*, alpha: Rate = 1.0, beta: Rate = 8.0, temperature: Ramp = 4.0, standardize: bool = False) -> Term:
  """Decoupled knowledge distillation (Zhao et al. 2022): see distillation.dkd.

  Args:
    alpha, beta: weights of what is said of the label, and of the other classes.
    temperature: T, or [first, last].
    standardize: logits are standardised before (Sun et al. 2024).
  """

  def apply(view: View, own: dict) -> tuple[Array, dict, dict]:
    del own
    student, teacher = _answers(view, standardize)
    return distillation.dkd(student, teacher, view.labels.reshape(-1), alpha, beta, at(temperature, view)), {}, {}

  return Term(nothing, apply, needs=('teacher_outputs', 'labels'), answers=CLASSES)


def dist(*, beta: Rate = 2.0, gamma: Rate = 2.0, temperature: Ramp = 1.0, standardize: bool = False) -> Term:
  """Correlations within examples and within classes (Huang et al. 2022, DIST): see distillation.dist.

  Args:
    beta, gamma: weights of the two.
    temperature: T, or [first, last].
    standardize: logits are standardised before (Sun et al. 2024).
  """

  def apply(view: View, own: dict) -> tuple[Array, dict, dict]:
    del own
    return distillation.dist(*_answers(view, standardize), beta, gamma, at(temperature, view), view.mask), {}, {}

  return Term(nothing, apply, couples=True, needs=('teacher_outputs',), answers=CLASSES)


# ---------------------------------------------------------------------------------------------------------- features
def aligned(
  student: Float[Array, 'batch ... channels'], teacher: Float[Array, 'batch ... channels']
) -> tuple[Array, Array]:
  """Both with the same places: each axis as long as the shorter of the two, and none where one side has none.

  Whole multiples are averaged in blocks, others resized linearly.
  """
  if student.ndim != teacher.ndim:
    student, teacher = (x.mean(axis=tuple(range(1, x.ndim - 1))) for x in (student, teacher))
  places = tuple(map(min, student.shape[1:-1], teacher.shape[1:-1]))
  return _shrunk(student, places), _shrunk(teacher, places)


def _shrunk(x: Array, places: tuple[int, ...]) -> Array:
  if x.shape[1:-1] == places:
    return x
  if any(size % goal for size, goal in zip(x.shape[1:-1], places)):
    return jax.image.resize(x, (x.shape[0], *places, x.shape[-1]), 'linear')
  for axis, goal in enumerate(places, 1):
    x = x.reshape(*x.shape[:axis], goal, x.shape[axis] // goal, *x.shape[axis + 1 :]).mean(axis=axis + 1)
  return x


def _features(view: View, mine: str, theirs: str) -> tuple[Array, Array]:
  """A stage of each, with the same places."""
  student = array(view.outputs, mine)
  return aligned(student, array(view.teacher_outputs, theirs, f'stage of teacher {view.teacher!r}'))


def _pooled(view: View, mine: str, theirs: str) -> tuple[Array, Array]:
  """A stage of each, averaged over places."""
  student, teacher = _features(view, mine, theirs)
  own, other = view.outputs[mine], view.teacher_outputs[theirs]
  return sequences.averaged(student, own), sequences.averaged(teacher, other)


def _real(view: View, mine: str, features: Array) -> Array | None:
  """[batch, places], where a stage's features on texts are no padding; None where they have no places of texts."""
  value = view.outputs[mine]
  mask = value.get('mask') if isinstance(value, Mapping) else None
  return mask if mask is not None and features.shape[:-1] == mask.shape else None


def _plain(stages: Stages, loss: Callable[[View, str, str], Array], couples: bool = False) -> Term:
  """A loss without parameters, summed over the pairs of stages."""
  both = pairs(stages)

  def apply(view: View, own: dict) -> tuple[Array, dict, dict]:
    del own
    return jnp.stack([loss(view, mine, theirs) for mine, theirs in both.items()]).sum(axis=0), {}, {}

  return Term(nothing, apply, stages=tuple(both), couples=couples, needs=('teacher_outputs',))


def _regressing(
  stages: Stages, begin: Callable[[Array, int, int], dict], loss: Callable[[dict, Array, Array, Array | None], Array]
) -> Term:
  """A loss with parameters for every pair of stages, summed over the pairs.

  Args:
    begin: `begin(key, student's channels, teacher's) -> parameters`, or {} where none are needed.
    loss: `loss(parameters, student's features, teacher's, which places of texts are real) -> [batch]`.
  """
  both = pairs(stages)

  def init(view: View, key: Array) -> dict:
    made = {}
    for number, (mine, theirs) in enumerate(both.items()):
      student, teacher = _features(view, mine, theirs)
      made[mine] = begin(jax.random.fold_in(key, number), student.shape[-1], teacher.shape[-1])
    return {'params': {name: own for name, own in made.items() if own}, 'stats': {}}

  def apply(view: View, own: dict) -> tuple[Array, dict, dict]:
    losses = []
    for mine, theirs in both.items():
      features = _features(view, mine, theirs)
      losses.append(loss(own['params'].get(mine, {}), *features, _real(view, mine, features[0])))
    return jnp.stack(losses).sum(axis=0), {}, {}

  return Term(init, apply, stages=tuple(both), needs=('teacher_outputs',))


def hint(*, stages: Stages) -> Term:
  """½ ‖regressor(student) − teacher‖² of features (Romero et al. 2015, FitNets): see distillation.hint.

  The regressor is linear over channels, where those differ.

  Args:
    stages: {student's: teacher's}, or the names of stages that both have; they add up.
  """
  begin = lambda key, inputs, width: {} if inputs == width else linear_init(key, inputs, width)
  return _regressing(stages, begin, lambda own, s, t, real: distillation.hint(linear(own, s) if own else s, t, real))


def attention_transfer(*, stages: Stages, power: Temperature = 2.0, squared: bool = False) -> Term:
  """Distance of attention maps (Zagoruyko and Komodakis 2017): see distillation.attention_transfer.

  Args:
    stages: {student's: teacher's}, or the names of stages that both have; they add up.
    power: of the activations.
    squared: the mean squared difference, as the authors' code has it.
  """
  loss = lambda *given: distillation.attention_transfer(*_features(*given), power, squared)
  return _plain(stages, loss)


def nst(*, stages: Stages) -> Term:
  """Neuron selectivity transfer (Huang and Wang 2017): see distillation.nst.

  Args:
    stages: {student's: teacher's}, or the names of stages that both have; they add up.
  """
  return _plain(stages, lambda *given: distillation.nst(*_features(*given)))


def similarity_preserving(*, stages: Stages) -> Term:
  """Similarities between examples (Tung and Mori 2019): see distillation.similarity_preserving.

  Args:
    stages: {student's: teacher's}, or the names of stages that both have; they add up.
  """

  def loss(view: View, mine: str, theirs: str) -> Array:
    student, teacher = array(view.outputs, mine), array(view.teacher_outputs, theirs, 'stage of the teacher')
    return distillation.similarity_preserving(student, teacher, view.mask)

  return _plain(stages, loss, couples=True)


def relational(*, stages: Stages, distance_weight: Rate = 25.0, angle_weight: Rate = 50.0) -> Term:
  """Distances and angles between examples (Park et al. 2019): see distillation.relational; features are pooled.

  Args:
    stages: {student's: teacher's}, or the names of stages that both have; they add up.
    distance_weight, angle_weight: λ_D and λ_A.
  """
  loss = lambda view, *names: distillation.relational(*_pooled(view, *names), distance_weight, angle_weight, view.mask)
  return _plain(stages, loss, couples=True)


def pkt(*, stages: Stages) -> Term:
  """Probabilities of being neighbours (Passalis and Tefas 2018): see distillation.pkt; features are pooled.

  Args:
    stages: {student's: teacher's}, or the names of stages that both have; they add up.
  """
  return _plain(stages, lambda view, *names: distillation.pkt(*_pooled(view, *names), view.mask), couples=True)


def variational(*, stages: Stages) -> Term:
  """−log q(teacher | student) for a Gaussian q (Ahn et al. 2019, VID): see distillation.variational.

  The mean is a regressor of three layers over channels with ReLUs between, each channel's variance softplus(α) + 1e-5
  with 5 at the start, as in the authors' code; both train.

  Args:
    stages: {student's: teacher's}, or the names of stages that both have; they add up.
  """

  def begin(key: Array, inputs: int, width: int) -> dict:
    keys = jax.random.split(key, 3)
    layers = {f'layer{i}': linear_init(k, inputs if i == 1 else width, width) for i, k in enumerate(keys, 1)}
    return {**layers, 'alpha': jnp.full(width, jnp.log(jnp.expm1(VARIANCE - FLOOR)))}

  def loss(own: dict, student: Array, teacher: Array, real: Array | None) -> Array:
    mean = linear(own['layer1'], student)
    for name in ('layer2', 'layer3'):
      mean = linear(own[name], jax.nn.relu(mean))
    return distillation.variational(mean, teacher, jax.nn.softplus(own['alpha']) + FLOOR, real)

  return _regressing(stages, begin, loss)


def contrastive(
  *,
  stage: Pair,
  width: Positive = 128,
  temperature: Temperature = 0.07,
  negatives: Positive | None = None,
  momentum: Share = 0.5,
) -> Term:
  """Contrastive representation distillation (Tian et al. 2020): see distillation.contrastive; features are pooled.

  Both sides are embedded by linear layers of the term's own, and each embedding is told from those of other examples:
  of the same batch, or `negatives` drawn anew for each step from a memory of all training examples. The normaliser Z is
  estimated in the first step and kept, as in the authors' code; unlike there, positives are the embeddings of this
  step, and the examples of a batch share their negatives.

  Args:
    stage: {student's: teacher's}, or the name of a stage that both have.
    width: of the embeddings.
    temperature: τ.
    negatives: how many are drawn from the memory; None: the other examples of the batch.
    momentum: share of the old embedding that stays in the memory.
  """
  ((mine, theirs),) = pairs(stage).items()

  def init(view: View, key: Array) -> dict:
    keys, inputs = jax.random.split(key, 4), [x.shape[-1] for x in _pooled(view, mine, theirs)]
    params = {side: linear_init(k, size, width) for side, k, size in zip(SIDES, keys, inputs)}
    stats: dict[str, Any] = {'log_normalizer': jnp.zeros(2), 'known': jnp.zeros(())}
    if negatives is not None:
      draw = lambda k: distillation.unit(jax.random.normal(k, (view.examples, width)))
      stats['memory'] = {side: draw(k) for side, k in zip(SIDES, keys[2:])}
    return {'params': params, 'stats': stats}

  def apply(view: View, own: dict) -> tuple[Array, dict, dict]:
    given = zip(SIDES, _pooled(view, mine, theirs))
    now = {side: distillation.unit(linear(own['params'][side], x)) for side, x in given}
    loss, stats = _contrasted(view, now, own['stats'], negatives, temperature)
    if negatives is not None:
      stats['memory'] = _remembered(stats['memory'], now, view, momentum)
    return loss, {}, stats

  return Term(init, apply, stages=(mine,), couples=True, needs=('teacher_outputs', 'examples'))


def _contrasted(
  view: View, now: Mapping[str, Array], stats: Mapping[str, Any], negatives: int | None, temperature: float
) -> tuple[Array, dict[str, Any]]:
  """The losses of both sides, [batch], and the state with the normalisers of the first step."""
  if negatives is None:
    if len(view.mask) < 2:
      raise UserError('config.objective: contrastive: a batch of one has no other examples; negatives= draws some')
    others, rows = now, view.rows
  else:
    rows = jax.random.randint(view.key[0], (negatives,), 0, view.examples)
    others = {side: bank[rows] for side, bank in stats['memory'].items()}
  drawn = view.rows[:, None] != rows
  drawn = drawn & view.mask if negatives is None else drawn
  positive = (now['student'] * now['teacher']).sum(axis=-1) / temperature
  scores = [now[side] @ others[other].T / temperature for side, other in (SIDES, SIDES[::-1])]
  known = drawn & view.mask[:, None]
  estimated = jnp.stack([_log_mean(each, known) + jnp.log(view.examples) for each in scores])
  first = jnp.where(stats['known'] > 0, stats['log_normalizer'], jax.lax.stop_gradient(estimated))
  one, other = (distillation.contrastive(positive, s, view.examples, z, drawn) for s, z in zip(scores, first))
  return one + other, {**stats, 'log_normalizer': first, 'known': jnp.ones(())}


def _log_mean(scores: Array, which: Array) -> Float[Array, '']:
  """log of the mean of e^score over those chosen."""
  chosen = jnp.where(which, scores, -jnp.inf)
  return jax.nn.logsumexp(chosen) - jnp.log(which.sum())


def _remembered(memory: Mapping[str, Array], now: Mapping[str, Array], view: View, momentum: float) -> dict[str, Array]:
  """The memory with this batch's embeddings; of an example that stands there twice the last counts, padding never."""
  rows, places = view.rows, jnp.arange(len(view.mask))
  again = (rows[:, None] == rows) & (places > places[:, None]) & view.mask
  rows = jnp.where(view.mask & ~again.any(axis=1), rows, view.examples)
  mixed = {side: momentum * bank[view.rows] + (1 - momentum) * now[side] for side, bank in memory.items()}
  return {side: bank.at[rows].set(distillation.unit(mixed[side]), mode='drop') for side, bank in memory.items()}
