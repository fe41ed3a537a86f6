"""The classical methods that belong in every table, on raw inputs or, as probes, on the features of a network's stage.

A transfer that does not beat logistic regression on the pixels has carried nothing; what a stage has to offer is what
such a method reads off it. Here: what a config may say of them, and the one way to fit them to arrays. The linear
algebra is in probes.py, a stage's features are computed in features.py. Outputs are log-probabilities, scores or
predictions, which metrics.py measures like any.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from jaxtyping import Float, Int, Num

from transferlab.config import LATER, Positive, Schema
from transferlab.errors import UserError
from transferlab.evaluation import probes

Inputs = Float[np.ndarray, 'examples inputs']
Outputs = Float[np.ndarray, 'examples outputs']
Predict = Callable[[Inputs], Outputs]
Strength = Annotated[float, pydantic.Field(gt=0)]
# The least probability that is told from zero: its logarithm stays finite.
LEAST = 1e-12
ALL = 'all'


class Baseline(Schema):
  """A classical method and its one value, and what it is fitted on."""

  name: Literal['logistic_regression', 'nearest_neighbours', 'ridge'] = pydantic.Field(
    description='The method: logistic_regression and nearest_neighbours classify; ridge is for regression, and '
    'classifies by targets of 1 and -1.'
  )
  C: Strength = pydantic.Field(
    1.0, description='logistic_regression: the inverse strength of the L2 penalty; smaller is stronger.'
  )
  neighbours: Positive = pydantic.Field(
    1, description='nearest_neighbours: how many of the nearest training examples vote.'
  )
  alpha: Strength = pydantic.Field(1.0, description='ridge: the strength of the L2 penalty; larger is stronger.')
  stage: str | None = pydantic.Field(
    None,
    description="None: fitted on raw inputs; a stage's name: a probe of its features; 'all': of every stage, the head "
    'included (accuracy by depth).',
    json_schema_extra=LATER,
  )
  pool: Literal['mean', 'flat'] = pydantic.Field(
    'mean',
    description='stage: features are averaged over places (pixels), or every place has features of its own.',
    json_schema_extra=LATER,
  )
  standardize: bool | None = pydantic.Field(
    None,
    description="Features with mean 0 and deviation 1 by the training split. None: a stage's for linear methods, so "
    'that a penalty means the same at every depth; nothing else.',
    json_schema_extra=LATER,
  )
  penalties: Annotated[list[Strength], pydantic.Field(min_length=1)] | None = pydantic.Field(
    None,
    description='ridge, logistic_regression: L2 penalties (alpha, or 1/C) among which validation data choose; of '
    'equally good ones the strongest. None: alpha, or C.',
    json_schema_extra=LATER,
  )
  metric: Literal['euclidean', 'cosine'] = pydantic.Field(
    'euclidean', description='nearest_neighbours: what is near.', json_schema_extra=LATER
  )
  temperature: Strength | None = pydantic.Field(
    None,
    description='nearest_neighbours by cosine: votes weigh exp(cosine / temperature) (Wu et al. 2018: 0.07). None: '
    'equal votes.',
    json_schema_extra=LATER,
  )

  @property
  def standardizes(self) -> bool:
    """Whether features are standardised, also where the config leaves it open."""
    linear_probe = self.stage is not None and self.name != 'nearest_neighbours'
    return linear_probe if self.standardize is None else self.standardize

  @pydantic.model_validator(mode='after')
  def _no_value_of_another(self) -> 'Baseline':
    for key, names in VALUES.items():
      if self.name not in names and self._given(key):
        own = [mine for mine, theirs in VALUES.items() if self.name in theirs]
        raise ValueError(f'{key} belongs to {" and ".join(names)}; {self.name} has {", ".join(own)}')
    if self.penalties is not None:
      if len(set(self.penalties)) < len(self.penalties):
        raise ValueError('penalties should name none twice')
      if single := [key for key in ('alpha', 'C') if self._given(key)]:
        raise ValueError(f'penalties and {single[0]} exclude each other: give one of them')
    if self.temperature is not None and self.metric != 'cosine':
      raise ValueError("temperature weighs cosines: set metric='cosine'")
    if self.stage is None and self._given('pool'):
      raise ValueError('pool is for the features of a stage, and baseline.stage names none')
    return self

  def _given(self, key: str) -> bool:
    return getattr(self, key) != type(self).model_fields[key].default


# Whose value each key is.
VALUES = {
  'C': ('logistic_regression',),
  'neighbours': ('nearest_neighbours',),
  'alpha': ('ridge',),
  'penalties': ('ridge', 'logistic_regression'),
  'metric': ('nearest_neighbours',),
  'temperature': ('nearest_neighbours',),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
  """A method fitted to training data.

  Attributes:
    predict: inputs of any shape [M, …] -> outputs [M, …].
    penalty: of the L2 norm, as `Baseline.penalties` has it; None for methods without one.
    note: a sentence for the report, where something went less than well.
  """

  predict: Predict
  penalty: float | None = None
  note: str | None = None


def logistic_regression(
  x: Inputs,
  labels: Int[np.ndarray, ' examples'],
  num_classes: int,
  *,
  C: float = 1.0,
  penalties: Sequence[float] | None = None,
) -> list[Fitted]:
  """Multinomial logistic regression with an L2 penalty, by L-BFGS. Hastie et al. 2009, section 4.4.

  Args:
    x: inputs [N, D].
    labels: class numbers [N].
    num_classes: columns of the outputs.
    C: inverse strength of the penalty, for a single fit by scikit-learn to its tolerance (1e-4), as tables of
      baselines have always had it.
    penalties: fits by probes.py, to convergence.

  Returns:
    One fit, or one for each penalty. They predict log-probabilities [M, num_classes] for x [M, D]; log(1e-12) for a
    class without training examples.
  """
  classes = np.unique(labels)
  if len(classes) == 1:  # which leaves nothing to fit, and scikit-learn refuses
    certain: Predict = lambda x: _columns(np.ones((len(x), 1)), classes, num_classes)
    return [Fitted(certain, penalty) for penalty in penalties or [1 / C]]
  if penalties is None:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=C, solver='lbfgs', max_iter=1000).fit(x, labels)
    return [Fitted(lambda x: _columns(model.predict_proba(x), model.classes_, num_classes), 1 / C)]
  weights, intercepts, gradients = probes.logistic_regression(x, labels, penalties, num_classes)
  found = []
  for w, b, penalty, gradient in zip(weights, intercepts, penalties, gradients):
    far = f'penalty {penalty:g}: stopped at a gradient of {gradient:.1e}, and {probes.TOLERANCE:.0e} is convergence'
    note = far if gradient > probes.TOLERANCE else None
    found.append(Fitted(functools.partial(_probable, weights=w, intercepts=b), penalty, note))
  return found


def nearest_neighbours(
  x: Inputs,
  labels: Int[np.ndarray, ' examples'],
  num_classes: int,
  *,
  neighbours: int = 1,
  metric: str = 'euclidean',
  temperature: float | None = None,
) -> list[Fitted]:
  """Votes of the nearest training examples. Cover and Hart 1967; by cosine, weighted: Wu et al. 2018, section 3.4.

  Args:
    x: inputs [N, D].
    labels: class numbers [N].
    num_classes: columns of the outputs.
    neighbours: how many vote.
    metric: 'euclidean', with equal votes, or 'cosine'.
    temperature: of votes by cosine; None: equal votes.

  Returns:
    One fit, which predicts the log of the share of votes, no less than log(1e-12), [M, num_classes] for x [M, D].

  Raises:
    UserError: more neighbours than training examples.
  """
  if neighbours > len(x):
    raise UserError(f'nearest_neighbours: {neighbours} neighbours asked of {len(x)} training examples')
  if metric == 'cosine':
    vote = lambda queries: probes.cosine_votes(x, labels, queries, neighbours, num_classes, temperature)
    return [Fitted(lambda queries: np.log(np.clip(vote(queries), LEAST, 1.0)))]
  from sklearn.neighbors import KNeighborsClassifier

  model = KNeighborsClassifier(n_neighbors=neighbours).fit(x, labels)
  return [Fitted(lambda x: _columns(model.predict_proba(x), model.classes_, num_classes))]


def ridge(
  x: Inputs,
  labels: Num[np.ndarray, 'examples ...'],
  num_classes: int | None,
  *,
  alpha: float = 1.0,
  penalties: Sequence[float] | None = None,
) -> list[Fitted]:
  """Linear least squares with an L2 penalty on the weights, not on the intercept. Hoerl and Kennard 1970.

  Args:
    x: inputs [N, D].
    labels: targets [N] or [N, T]; for classification class numbers [N], fitted one versus the rest (see
      `probes.signed_targets`).
    num_classes: None for regression.
    alpha: the strength of the penalty, for a single fit.
    penalties: strengths of several.

  Returns:
    One fit for each penalty. They predict [M, T] for x [M, D]; for classification scores [M, num_classes], the largest
    of which is the class: no probabilities, so that log_loss and calibration_error say little.
  """
  strengths = [alpha] if penalties is None else penalties
  if num_classes is None:
    targets = np.asarray(labels, np.float64).reshape(len(x), -1)
  else:
    targets = probes.signed_targets(labels, num_classes)
  weights, intercepts = probes.ridge_path(x, targets, strengths)
  predicts = [functools.partial(_linear, weights=w, intercepts=b) for w, b in zip(weights, intercepts)]
  return [Fitted(predict, strength) for predict, strength in zip(predicts, strengths)]


BASELINES: dict[str, Callable[..., list[Fitted]]] = {
  'logistic_regression': logistic_regression,
  'nearest_neighbours': nearest_neighbours,
  'ridge': ridge,
}


def fits(
  baseline: Baseline,
  x: Num[np.ndarray, 'examples ...'],
  labels: Num[np.ndarray, 'examples ...'],
  *,
  num_classes: int | None,
) -> list[Fitted]:
  """The method fitted to training data: once, or for each penalty to choose from, the strongest first.

  Args:
    baseline: which method, its values, and whether it standardises (by these examples).
    x: preprocessed inputs or features [N, …]; inputs of any shape are flattened here and when predicting.
    labels: class numbers [N], or targets [N] or [N, T].
    num_classes: None for regression.

  Raises:
    UserError: no training examples, features that are not finite, a method for the other kind of task, or more
      neighbours than examples.
  """
  check(baseline, num_classes is None)
  if not len(x):
    raise UserError(f'{baseline.name}: there are no training examples to fit')
  x, labels = _flat(x), np.asarray(labels)
  if not np.isfinite(x).all():
    raise UserError(f'{baseline.name}: features of training examples are not finite')
  shift, scale = probes.standardization(x) if baseline.standardizes else (0.0, 1.0)
  labels = labels if num_classes is None else labels.reshape(-1)
  found = BASELINES[baseline.name]((x - shift) / scale, labels, num_classes, **_values(baseline))
  scaled = lambda own: lambda x: own((_flat(x) - shift) / scale)
  return [dataclasses.replace(each, predict=scaled(each.predict)) for each in found]


def _values(baseline: Baseline) -> dict[str, Any]:
  """The arguments of the named method."""
  values = {key: getattr(baseline, key) for key, names in VALUES.items() if baseline.name in names}
  if baseline.penalties is not None:
    values['penalties'] = sorted(baseline.penalties, reverse=True)
  elif baseline.name == 'logistic_regression' and baseline.stage is not None:
    values['penalties'] = [1 / baseline.C]  # probes are fitted to convergence
  return values


def fit(
  baseline: Baseline,
  x: Num[np.ndarray, 'examples ...'],
  labels: Num[np.ndarray, 'examples ...'],
  *,
  num_classes: int | None,
) -> Predict:
  """The prediction of a method with one penalty at most; see `fits`. Of several penalties the strongest is taken."""
  return fits(baseline, x, labels, num_classes=num_classes)[0].predict


def check(baseline: Baseline, regression: bool) -> None:
  """Raises `UserError` for a method of the other kind of task."""
  if regression and baseline.name != 'ridge':
    raise UserError(f'{baseline.name} is no method for regression; nearest: ridge')


def _flat(x: Any) -> Inputs:
  x = np.asarray(x, np.float64)
  return x.reshape(len(x), -1)


def _linear(x: Inputs, weights: np.ndarray, intercepts: np.ndarray) -> Outputs:
  return x @ weights + intercepts


def _probable(x: Inputs, weights: np.ndarray, intercepts: np.ndarray) -> Outputs:
  """Log-probabilities, no less than log(1e-12); a logit of minus infinity is a probability of zero."""
  logits = _linear(x, weights, intercepts)
  powers = np.exp(logits - logits.max(axis=1, keepdims=True))
  return np.log(np.clip(powers / powers.sum(axis=1, keepdims=True), LEAST, 1.0))


def _columns(
  probabilities: Float[np.ndarray, 'examples seen'], classes: Int[np.ndarray, ' seen'], num_classes: int
) -> Float[np.ndarray, 'examples classes']:
  """Log-probabilities in columns 0 … num_classes - 1, though training saw only some of the classes."""
  outputs = np.zeros((len(probabilities), num_classes))
  outputs[:, np.asarray(classes, np.int64)] = probabilities
  return np.log(np.clip(outputs, LEAST, 1.0))
