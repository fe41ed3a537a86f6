"""Linear and nearest-neighbour probes: what can be read off features without changing them. Pure float64 NumPy.

Functions of plain arrays, usable outside the program; which features, which penalty and which task is decided in
baselines.py. Linear probes come as whole paths over a grid of penalties, whose cost is little more than that of one.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

Features = Num[np.ndarray, 'examples features']
Weights = Float[np.ndarray, 'penalties features targets']
Intercepts = Float[np.ndarray, 'penalties targets']

# L-BFGS stops where no entry of the gradient of the mean objective per example exceeds this.
TOLERANCE = 1e-6
MAX_ITERATIONS = 10_000
_SIMILARITIES = 2**23  # held at a time


def standardization(x: Features) -> tuple[Float[np.ndarray, ' features'], Float[np.ndarray, ' features']]:
  """(shift, scale) [D] such that (x - shift) / scale has mean 0 and deviation 1 (over N) in each feature of x [N, D].

  A constant feature is scaled by 1. So that a penalty means the same for features of every scale, as at every depth.
  """
  x = np.asarray(x, np.float64)
  deviation = x.std(axis=0)
  # The deviation of a constant is rounding noise, by which nothing should be divided.
  constant = (np.ptp(x, axis=0) == 0) | (deviation == 0)
  return x.mean(axis=0), np.where(constant, 1.0, deviation)


def signed_targets(labels: Int[np.ndarray, ' examples'], num_classes: int) -> Float[np.ndarray, 'examples classes']:
  """Targets of one-versus-rest classification by least squares: 1 for an example's class, -1 for the others.

  Args:
    labels: class numbers [N].

  Returns:
    [N, num_classes]. Ridge regression on them classifies by its largest prediction: Rifkin and Klautau 2004, and the
    few-shot probe of big_vision.
  """
  return 2.0 * (np.asarray(labels)[:, None] == np.arange(num_classes)) - 1.0


def ridge_path(
  x: Features, targets: Float[np.ndarray, 'examples targets'], penalties: Sequence[float]
) -> tuple[Weights, Intercepts]:
  """argmin ‖Y - XW - 1bᵀ‖² + λ‖W‖² for every penalty λ, from one eigendecomposition. Hoerl and Kennard 1970, eq. 2.1.

  With X and Y centred, W = V (Λ + λ)⁻¹ Vᵀ Xᵀ Y for XᵀX = V Λ Vᵀ; where there are fewer examples than features
  W = Xᵀ U (Λ + λ)⁻¹ Uᵀ Y for XXᵀ = U Λ Uᵀ (the dual form: Saunders et al. 1998). The intercept is not penalised.

  However small the penalty, nothing is divided by rounding noise: directions of eigenvalue below
  max(N, D) · 2⁻⁵² · the largest, which the data do not span as far as float64 can tell, get no weight. In exact
  arithmetic a positive penalty gives them none either; 0 gives the least-squares solution of smallest norm.

  Args:
    x: features [N, D], N > 0.
    targets: [N, T].
    penalties: λ >= 0, P of them, in the units of x² · N.

  Returns:
    Weights [P, D, T] and intercepts [P, T]: predictions are x @ weights[p] + intercepts[p].
  """
  x, targets = np.asarray(x, np.float64), np.asarray(targets, np.float64)
  mean_x, mean_y = x.mean(axis=0), targets.mean(axis=0)
  x, targets = x - mean_x, targets - mean_y
  wide = x.shape[1] > x.shape[0]
  values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
  spanned = values > max(x.shape) * np.finfo(np.float64).eps * max(values.max(initial=0.0), 0.0)
  values, vectors = values[spanned], vectors[:, spanned]
  basis = x.T @ vectors if wide else vectors
  projected = vectors.T @ (targets if wide else x.T @ targets)
  weights = np.stack([basis @ (projected / (values + penalty)[:, None]) for penalty in penalties])
  return weights, mean_y - mean_x @ weights


def logistic_regression(
  x: Features,
  labels: Int[np.ndarray, ' examples'],
  penalties: Sequence[float],
  num_classes: int,
  *,
  tolerance: float = TOLERANCE,
  max_iterations: int = MAX_ITERATIONS,
) -> tuple[Weights, Intercepts, Float[np.ndarray, ' penalties']]:
  """argmin of the summed cross-entropy + λ/2 ‖W‖² for every penalty λ, by L-BFGS. Hastie et al. 2009, section 4.4.

  The objective of scikit-learn's LogisticRegression with C = 1/λ: softmax over the classes, or, for two of them, one
  logit w·x + b that tells them apart; intercepts are not penalised. The fits begin with the strongest penalty, and each
  starts where the one before ended. Classes without examples get an intercept of minus infinity, and no weight.

  Args:
    x: features [N, D], N > 0.
    labels: class numbers [N] in 0 … num_classes - 1.
    penalties: λ > 0, P of them; λ = 1/C.
    tolerance: the largest entry of the gradient of the objective per example at which L-BFGS stops.
    max_iterations: at which it stops otherwise, for each penalty.

  Returns:
    Weights [P, D, C], intercepts [P, C] (logits are x @ weights[p] + intercepts[p]), and the largest entry of the
    gradient where each fit stopped [P]: above `tolerance` it did not converge.
  """
  x, labels = np.asarray(x, np.float64), np.asarray(labels)
  seen = np.unique(labels)
  weights = np.zeros((len(penalties), x.shape[1], num_classes))
  intercepts = np.full((len(penalties), num_classes), -np.inf)
  gradients = np.zeros(len(penalties))
  mean = x.mean(axis=0)
  z, basis = _rotated(x - mean)
  targets = (labels[:, None] == seen).astype(np.float64)
  for number, found, gradients[number] in _path(z, targets, penalties, tolerance, max_iterations):
    own = found[:-1] if basis is None else basis @ found[:-1]
    weights[number][:, seen] = own
    intercepts[number][seen] = found[-1] - mean @ own
  return weights, intercepts, gradients


def _path(
  x: Features, targets: Float[np.ndarray, 'examples classes'], penalties: Sequence[float], tolerance: float, most: int
) -> Iterator[tuple[int, Float[np.ndarray, 'features_and_one classes'], float]]:
  """(number, solution, gradient) of each penalty, the strongest first; one class has nothing to be told from."""
  classes, gradient = targets.shape[1], 0.0
  solution = np.zeros((x.shape[1] + 1, classes))
  for number in np.argsort(np.asarray(penalties, np.float64))[::-1]:
    # (-w/2, w/2) has half the norm² of the one w that two classes need: with twice the penalty the objectives agree.
    penalty = float(penalties[number]) * (2 if classes == 2 else 1)
    if classes > 1:
      solution, gradient = _minimised(x, targets, penalty, solution, tolerance, most)
    yield int(number), solution, gradient


def _rotated(x: Features) -> tuple[Features, Float[np.ndarray, 'features span'] | None]:
  """(z, Q) with x = z Qᵀ and z [N, N], where there are fewer examples than features; else (x, None).

  The best weights lie in the span of the examples (the representer theorem), and Q keeps their norm: the same problem
  in N in place of D unknowns for each class.
  """
  if x.shape[1] <= x.shape[0]:
    return x, None
  basis, triangle = np.linalg.qr(x.T)
  return triangle.T, basis


def _minimised(
  x: Features, targets: Float[np.ndarray, 'examples classes'], penalty: float, start: Any, tolerance: float, most: int
) -> tuple[Float[np.ndarray, 'features_and_one classes'], float]:
  """The best weights, with the intercepts below them, and the largest entry of the gradient there."""
  from scipy.optimize import minimize

  share = penalty / len(x)

  def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
    weights = flat.reshape(start.shape)
    logits = x @ weights[:-1] + weights[-1]
    logits -= logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits).sum(axis=1, keepdims=True))
    errors = (np.exp(logits - total) - targets) / len(x)
    value = np.mean(total[:, 0] - (logits * targets).sum(axis=1)) + share / 2 * np.square(weights[:-1]).sum()
    return float(value), np.vstack([x.T @ errors + share * weights[:-1], errors.sum(axis=0)]).ravel()

  # Stopping by the gradient alone: ftol would end the fit wherever progress is slow for a while.
  options = {'gtol': tolerance, 'ftol': 0.0, 'maxiter': most, 'maxfun': 2 * most, 'maxcor': 20}
  found = minimize(objective, start.ravel(), jac=True, method='L-BFGS-B', options=options)
  return found.x.reshape(start.shape), float(np.abs(found.jac).max())


def cosine_votes(
  x: Features,
  labels: Int[np.ndarray, ' examples'],
  queries: Num[np.ndarray, 'queries features'],
  neighbours: int,
  num_classes: int,
  temperature: float | None = None,
) -> Float[np.ndarray, 'queries classes']:
  """Votes of the training examples most alike by cosine s, with weight exp(s/τ). Wu et al. 2018, section 3.4.

  At most 2²³ similarities are held at a time. A feature vector of zeros is like nothing (s = 0). Of examples equally
  alike at the last place, the ones that vote are not specified.

  Args:
    x: features of the training examples [N, D].
    labels: their class numbers [N].
    queries: features [M, D] of the examples to classify.
    neighbours: how many vote, 1 … N.
    temperature: τ > 0; None: equal votes.

  Returns:
    [M, num_classes]: each class's share of the votes, which sum to 1.
  """
  x, labels = _directions(x), np.asarray(labels)
  queries = np.asarray(queries)
  rows = max(1, _SIMILARITIES // len(x))
  votes = np.zeros((len(queries), num_classes))
  for first in range(0, len(queries), rows):
    similar = _directions(queries[first : first + rows]) @ x.T
    nearest = np.argpartition(similar, len(x) - neighbours, axis=1)[:, len(x) - neighbours :]
    nearness = np.take_along_axis(similar, nearest, axis=1)
    # Relative to the nearest, which overflows for no temperature; the shares are the same.
    nearness = nearness - nearness.max(axis=1, keepdims=True)
    with np.errstate(over='ignore', invalid='ignore'):
      weight = np.ones_like(nearness) if temperature is None else np.exp(nearness / temperature)
    weight /= weight.sum(axis=1, keepdims=True)
    np.add.at(votes, (first + np.arange(len(nearest))[:, None], labels[nearest]), weight)
  return votes


def _directions(x: Features) -> Features:
  """Rows of length 1; rows of zeros stay as they are."""
  x = np.asarray(x, np.float64)
  # Squares of very large or small features would leave float64's range.
  largest = np.abs(x).max(axis=1, keepdims=True, initial=0.0)
  x = x / np.where(largest > 0, largest, 1.0)
  norm = np.linalg.norm(x, axis=1, keepdims=True)
  return x / np.where(norm > 0, norm, 1.0)
