"""Probes against scikit-learn's ridge, logistic regression and nearest neighbours, and against their definitions."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from transferlab.evaluation import probes
from transferlab.evaluation.baselines import Baseline, fits

RANDOM = np.random.default_rng(0)
PENALTIES = [1e-6, 1e-2, 1.0, 30.0, 1e4]


def problem(examples, features, classes=3, seed=0):
  """Features of very different scales and means, of which some tell classes apart; one of them is constant."""
  random = np.random.default_rng(seed)
  labels = random.permutation(np.arange(examples) % classes)
  x = random.normal(size=(examples, features)) + random.normal(size=(classes, features))[labels]
  x = x * np.geomspace(0.1, 10, features) + random.normal(size=features) * 3
  x[:, 1] = 0.7
  return x, labels


# ------------------------------------------------------------------------------------------------------------ ridge
@pytest.mark.parametrize(('examples', 'features'), [(80, 6), (20, 50), (30, 30)])
@pytest.mark.parametrize('targets', [1, 4])
def test_ridge_is_scikit_learns_at_every_penalty_with_more_examples_and_with_more_features(examples, features, targets):
  x, _ = problem(examples, features)
  y = x[:, :targets] * 2 + 7 + RANDOM.normal(size=(examples, targets))
  weights, intercepts = probes.ridge_path(x, y, PENALTIES)
  assert weights.shape == (5, features, targets) and intercepts.shape == (5, targets)
  for number, penalty in enumerate(PENALTIES):
    expected = Ridge(alpha=penalty, solver='svd').fit(x, y)
    np.testing.assert_allclose(weights[number].T, expected.coef_.reshape(targets, -1), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(intercepts[number], np.ravel(expected.intercept_), rtol=1e-6, atol=1e-6)


def test_the_gradient_of_the_penalised_squares_vanishes_and_the_intercept_is_free():
  x, _ = problem(40, 5)
  y = RANDOM.normal(size=(40, 2)) + 1e3
  for penalty, w, b in zip(PENALTIES, *probes.ridge_path(x, y, PENALTIES)):
    errors = x @ w + b - y
    np.testing.assert_allclose(x.T @ errors + penalty * w, 0, atol=1e-7 * max(1, penalty))
    np.testing.assert_allclose(errors.sum(axis=0), 0, atol=1e-8)


@pytest.mark.parametrize('penalty', [0.0, 1e-300, 1e-18])
@pytest.mark.parametrize(('examples', 'features'), [(40, 8), (12, 30)])
def test_where_the_matrix_is_singular_a_vanishing_penalty_gives_least_squares_of_smallest_norm(
  examples, features, penalty
):
  x, _ = problem(examples, features)
  x[:, 3] = x[:, 2]  # the same feature twice, beside the constant one
  y = RANDOM.normal(size=(examples, 2))
  (weights,), (intercepts,) = probes.ridge_path(x, y, [penalty])
  expected = np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=1e-10)[0]
  np.testing.assert_allclose(weights, expected, atol=1e-6)
  np.testing.assert_allclose(intercepts, y.mean(0) - x.mean(0) @ expected, atol=1e-6)
  np.testing.assert_allclose(weights[2], weights[3], atol=1e-9)
  np.testing.assert_allclose(weights[1], 0, atol=1e-12)


def test_without_any_variation_ridge_predicts_the_mean():
  weights, intercepts = probes.ridge_path(np.full((6, 3), 0.1), np.arange(6.0)[:, None], [1e-12])
  assert (weights == 0).all() and intercepts == pytest.approx(2.5)


@pytest.mark.parametrize('classes', [2, 4])
def test_ridge_classifies_as_scikit_learns_ridge_classifier_on_targets_of_one_and_minus_one(classes):
  x, labels = problem(60, 5, classes)
  expected = RidgeClassifier(alpha=2.0).fit(x, labels)
  (found,) = fits(Baseline(name='ridge', alpha=2.0), x, labels, num_classes=classes)
  scores = found.predict(x)
  decision = expected.decision_function(x)
  np.testing.assert_allclose(scores[:, 1] if classes == 2 else scores, decision, atol=1e-6)
  np.testing.assert_array_equal(scores.argmax(1), expected.predict(x))


@pytest.mark.parametrize('dtype', [np.float32, np.uint8])
def test_features_of_any_type_are_fitted_in_float64(dtype):
  x, y = (RANDOM.normal(size=(50, 4)) * 40 + 100).astype(dtype), RANDOM.normal(size=(50, 1))
  weights, _ = probes.ridge_path(x, y, [1.0])
  expected = Ridge(alpha=1.0, solver='svd').fit(x.astype(np.float64), y).coef_
  np.testing.assert_allclose(weights[0].T, expected.reshape(1, -1), rtol=1e-9)


# ---------------------------------------------------------------------------------------------- logistic regression
@pytest.mark.parametrize('classes', [2, 3])
@pytest.mark.parametrize(('examples', 'features'), [(90, 4), (25, 60)])
def test_logistic_regression_is_at_scikit_learns_optimum_at_every_penalty(classes, examples, features):
  x, labels = problem(examples, features, classes)
  x, penalties = x / x.std(), [100.0, 0.3, 5.0]  # in no order
  found = probes.logistic_regression(x, labels, penalties, classes, tolerance=1e-9)
  for penalty, w, b, gradient in zip(penalties, *found):
    expected = LogisticRegression(C=1 / penalty, tol=1e-11, max_iter=100_000).fit(x, labels)
    coefficients = w[:, 1] - w[:, 0] if classes == 2 else w.T
    np.testing.assert_allclose(coefficients, np.squeeze(expected.coef_), atol=1e-5)
    logits = x @ w + b
    powers = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(powers / powers.sum(1, keepdims=True), expected.predict_proba(x), atol=1e-5)
    assert gradient <= 1e-8  # as near as sums of float64 let L-BFGS come


def test_the_gradient_that_is_reported_is_that_of_the_objective_and_within_tolerance():
  x, labels = problem(70, 5)
  penalties = [1e-3, 1.0]
  for penalty, w, b, gradient in zip(penalties, *probes.logistic_regression(x, labels, penalties, 3)):
    powers = np.exp(x @ w + b)
    errors = powers / powers.sum(1, keepdims=True) - np.eye(3)[labels]
    # In terms of the centred features, in which the fit is made.
    by_weight = (x - x.mean(0)).T @ errors + penalty * w
    assert max(np.abs(by_weight).max(), np.abs(errors.sum(0)).max()) / 70 == pytest.approx(gradient, abs=1e-12)
    assert gradient <= probes.TOLERANCE


def test_a_fit_that_was_cut_short_says_so(monkeypatch):
  x, labels = problem(70, 5)
  _, _, gradients = probes.logistic_regression(x, labels, [1e-3], 3, max_iterations=3)
  assert gradients[0] > probes.TOLERANCE
  whole = Baseline(name='logistic_regression', penalties=[1e-3])
  assert fits(whole, x, labels, num_classes=3)[0].note is None
  cut = probes.logistic_regression
  monkeypatch.setattr(probes, 'logistic_regression', lambda *given: cut(*given, max_iterations=3))
  assert 'penalty 0.001: stopped at a gradient of' in fits(whole, x, labels, num_classes=3)[0].note


def test_each_penalty_starts_where_the_stronger_one_ended(monkeypatch):
  starts, ends, minimised = [], [], probes._minimised

  def watched(x, targets, penalty, start, *rest):
    found = minimised(x, targets, penalty, start, *rest)
    starts.append((penalty, start))
    ends.append(found[0])
    return found

  monkeypatch.setattr(probes, '_minimised', watched)
  probes.logistic_regression(*problem(40, 4), [0.1, 10.0, 1.0], 3)
  assert [penalty for penalty, _ in starts] == [10.0, 1.0, 0.1]
  assert all((start == end).all() for (_, start), end in zip(starts[1:], ends))


def test_a_class_without_examples_has_probability_zero_and_does_not_change_the_others():
  x, labels = problem(60, 4, 2)
  weights, intercepts, _ = probes.logistic_regression(x, labels, [1.0], 2)
  more, shifted, _ = probes.logistic_regression(x, labels * 2, [1.0], 4)
  np.testing.assert_allclose(more[0][:, [0, 2]], weights[0])
  np.testing.assert_allclose(shifted[0][[0, 2]], intercepts[0])
  assert (more[0][:, [1, 3]] == 0).all() and (shifted[0][[1, 3]] == -np.inf).all()


# ------------------------------------------------------------------------------------------------ nearest neighbours
@pytest.mark.parametrize('neighbours', [1, 7, 40])
@pytest.mark.parametrize('temperature', [None, 0.07, 1.0])
def test_votes_by_cosine_are_scikit_learns_weighted_by_the_exponential(neighbours, temperature, monkeypatch):
  x, labels = problem(40, 6)
  queries = problem(33, 6, seed=1)[0]
  weigh = lambda distance: np.exp((1 - distance) / temperature)
  expected = KNeighborsClassifier(neighbours, metric='cosine', weights='uniform' if temperature is None else weigh)
  expected = expected.fit(x, labels).predict_proba(queries)
  votes = probes.cosine_votes(x, labels, queries, neighbours, 4, temperature)
  np.testing.assert_allclose(votes[:, :3], expected, atol=1e-12)
  assert (votes[:, 3] == 0).all()
  monkeypatch.setattr(probes, '_SIMILARITIES', 5 * 40)  # in pieces of five queries, the last of three
  np.testing.assert_allclose(probes.cosine_votes(x, labels, queries, neighbours, 4, temperature), votes, atol=1e-12)


def test_no_more_similarities_are_held_at_a_time_than_allowed(monkeypatch):
  held, directions = [], probes._directions
  monkeypatch.setattr(probes, '_directions', lambda x: held.append(len(x)) or directions(x))
  monkeypatch.setattr(probes, '_SIMILARITIES', 1000)
  probes.cosine_votes(*problem(40, 6), problem(130, 6)[0], 3, 3)
  assert held[0] == 40 and sum(held[1:]) == 130 and max(held[1:]) * 40 <= 1000


@pytest.mark.parametrize('temperature', [1e-300, 1e300])
def test_extreme_temperatures_are_the_nearest_alone_or_equal_votes(temperature):
  x, labels = problem(40, 6)
  votes = probes.cosine_votes(x, labels, x[:10] * 5, 9, 3, temperature)
  limit = probes.cosine_votes(x, labels, x[:10], 1 if temperature < 1 else 9, 3)
  np.testing.assert_allclose(votes, limit, atol=1e-12)


def test_cosine_knows_no_length_and_zeros_are_like_nothing():
  x = np.array([[1e-200, 0.0], [0.0, 1e200], [0.0, 0.0]])
  votes = probes.cosine_votes(x, np.array([0, 1, 2]), np.array([[3.0, 1.0], [1.0, 3.0], [-1.0, -1.0]]), 1, 3)
  np.testing.assert_array_equal(votes.argmax(1), [0, 1, 2])


# ---------------------------------------------------------------------------------------------------- standardising
def test_standardised_features_are_scikit_learns_and_constants_are_not_blown_up():
  x, _ = problem(50, 5)
  shift, scale = probes.standardization(x)
  np.testing.assert_allclose((x - shift) / scale, StandardScaler().fit_transform(x), atol=1e-12)
  assert scale[1] == 1.0
  third = np.full((7, 1), 1 / 3)  # whose deviation, by rounding, need not be 0
  assert probes.standardization(third)[1] == 1.0
