"""The classical methods that belong in every table: fitted on raw, preprocessed inputs, without a network.

A transfer that does not beat logistic regression on the pixels has carried nothing. Probes on a network's
features live in probes.py. Outputs are log-probabilities or predictions, which metrics.py measures like any.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from jaxtyping import Float, Int, Num

from transferlab.config import Positive, Schema
from transferlab.errors import UserError

Inputs = Float[np.ndarray, 'examples inputs']
Outputs = Float[np.ndarray, 'examples outputs']
Predict = Callable[[Inputs], Outputs]
# The least probability that is told from zero: its logarithm stays finite.
LEAST = 1e-12


class Baseline(Schema):
  """A classical method and its one value."""

  name: Literal['logistic_regression', 'nearest_neighbours', 'ridge'] = pydantic.Field(
    description='The method: logistic_regression and nearest_neighbours classify, ridge is for regression.'
  )
  C: Annotated[float, pydantic.Field(gt=0)] = pydantic.Field(
    1.0, description='logistic_regression: the inverse strength of the L2 penalty; smaller is stronger.'
  )
  neighbours: Positive = pydantic.Field(
    1, description='nearest_neighbours: how many of the nearest training examples vote, with equal weight.'
  )
  alpha: Annotated[float, pydantic.Field(gt=0)] = pydantic.Field(
    1.0, description='ridge: the strength of the L2 penalty; larger is stronger.'
  )

  @property
  def value(self) -> float:
    """The value that the named method uses."""
    return getattr(self, VALUES[self.name])

  @pydantic.model_validator(mode='after')
  def _no_value_of_another(self) -> 'Baseline':
    for name, key in VALUES.items():
      if name != self.name and getattr(self, key) != type(self).model_fields[key].default:
        raise ValueError(f'{key} belongs to {name}; {self.name} has {VALUES[self.name]}')
    return self


VALUES = {'logistic_regression': 'C', 'nearest_neighbours': 'neighbours', 'ridge': 'alpha'}


def logistic_regression(
  x: Inputs, labels: Int[np.ndarray, ' examples'], *, value: float, seed: int, num_classes: int
) -> Predict:
  """Multinomial logistic regression with an L2 penalty, by L-BFGS. Hastie et al. 2009, section 4.4.

  Args:
    x: inputs [N, D].
    labels: class numbers [N].
    value: C, the inverse strength of the penalty.
    seed: part of the common signature; L-BFGS draws nothing.
    num_classes: columns of the outputs.

  Returns:
    predict(x [M, D]) -> log-probabilities [M, num_classes]; log(1e-12) for a class without training examples.
  """
  from sklearn.linear_model import LogisticRegression

  classes = np.unique(labels)
  if len(classes) == 1:  # scikit-learn refuses to fit one class
    return lambda x: _columns(np.ones((len(x), 1)), classes, num_classes)
  model = LogisticRegression(C=value, solver='lbfgs', max_iter=1000, random_state=seed).fit(x, labels)
  return lambda x: _columns(model.predict_proba(x), model.classes_, num_classes)


def nearest_neighbours(
  x: Inputs, labels: Int[np.ndarray, ' examples'], *, value: int, seed: int, num_classes: int
) -> Predict:
  """Votes of the nearest training examples by Euclidean distance. Cover and Hart 1967.

  Args:
    x: inputs [N, D].
    labels: class numbers [N].
    value: the number of neighbours.
    seed: part of the common signature; nothing is drawn.
    num_classes: columns of the outputs.

  Returns:
    predict(x [M, D]) -> log of the fraction of votes, no less than 1e-12, [M, num_classes].

  Raises:
    UserError: more neighbours than training examples.
  """
  from sklearn.neighbors import KNeighborsClassifier

  del seed
  if value > len(x):
    raise UserError(f'nearest_neighbours: {value} neighbours asked of {len(x)} training examples')
  model = KNeighborsClassifier(n_neighbors=int(value)).fit(x, labels)
  return lambda x: _columns(model.predict_proba(x), model.classes_, num_classes)


def ridge(
  x: Inputs,
  labels: Float[np.ndarray, ' examples *targets'],
  *,
  value: float,
  seed: int,
  num_classes: int | None = None,
) -> Predict:
  """Linear least squares with an L2 penalty on the weights, not on the intercept. Hoerl and Kennard 1970.

  Args:
    x: inputs [N, D].
    labels: targets [N] or [N, T].
    value: alpha, the strength of the penalty.
    seed: part of the common signature; the closed form draws nothing.
    num_classes: part of the common signature; None.

  Returns:
    predict(x [M, D]) -> predictions [M, T].
  """
  from sklearn.linear_model import Ridge

  del seed, num_classes
  targets = np.asarray(labels, np.float64).reshape(len(x), -1)
  model = Ridge(alpha=value).fit(x, targets)
  return lambda x: np.asarray(model.predict(x)).reshape(len(x), -1)


BASELINES: dict[str, Callable[..., Predict]] = {
  'logistic_regression': logistic_regression,
  'nearest_neighbours': nearest_neighbours,
  'ridge': ridge,
}


def fit(
  baseline: Baseline,
  x: Num[np.ndarray, 'examples ...'],
  labels: Num[np.ndarray, 'examples ...'],
  *,
  num_classes: int | None,
  seed: int = 0,
) -> Predict:
  """The baseline fitted to training data; inputs of any shape are flattened here and when predicting.

  Args:
    baseline: which method, and its value.
    x: preprocessed inputs [N, …].
    labels: class numbers [N], or targets [N] or [N, T].
    num_classes: None for regression.
    seed: for methods that draw.

  Raises:
    UserError: no training examples, a method for the other kind of task, or more neighbours than examples.
  """
  if not len(x):
    raise UserError(f'{baseline.name}: there are no training examples to fit')
  if (num_classes is None) != (baseline.name == 'ridge'):
    task = 'regression' if num_classes is None else 'classification'
    raise UserError(f'{baseline.name} is no method for {task}; nearest: {_methods(num_classes)}')
  labels = np.asarray(labels)
  if num_classes is not None:
    labels = labels.reshape(-1)
  method = BASELINES[baseline.name]
  predict = method(_flat(x), labels, value=baseline.value, seed=seed, num_classes=num_classes)
  return lambda x: predict(_flat(x))


def _methods(num_classes: int | None) -> str:
  return 'ridge' if num_classes is None else 'logistic_regression, nearest_neighbours'


def _flat(x: Any) -> Inputs:
  x = np.asarray(x, np.float64)
  return x.reshape(len(x), -1)


def _columns(
  probabilities: Float[np.ndarray, 'examples seen'], classes: Int[np.ndarray, ' seen'], num_classes: int
) -> Float[np.ndarray, 'examples classes']:
  """Log-probabilities in columns 0 … num_classes - 1, though training saw only some of the classes."""
  outputs = np.zeros((len(probabilities), num_classes))
  outputs[:, np.asarray(classes, np.int64)] = probabilities
  return np.log(np.clip(outputs, LEAST, 1.0))
