"""Classical baselines against their definitions: normal equations, votes by hand, the gradient at the optimum."""

import numpy as np
import pytest

from transferlab.config import identity, validate
from transferlab.errors import UserError
from transferlab.evaluation import metrics
from transferlab.evaluation.baselines import Baseline, fit, fits

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(60, 4))
Y = (X[:, 0] + 0.3 * RANDOM.normal(size=60) > 0).astype(int) + (X[:, 1] > 0.5)
NEW = RANDOM.normal(size=(20, 4))


@pytest.mark.parametrize('strength', [0.1, 10.0])
def test_logistic_regression_is_where_the_gradient_of_penalty_and_log_loss_vanishes(strength):
  predict = fit(Baseline(name='logistic_regression', C=strength), X, Y, num_classes=3)
  # Log-probabilities are affine in x up to a constant per example: read the weights off, then check the optimum.
  basis = np.concatenate([np.zeros((1, 4)), np.eye(4)])
  logits = predict(basis)
  logits -= logits.mean(1, keepdims=True)
  weights = logits[1:] - logits[0]
  errors = np.exp(predict(X)) - np.eye(3)[Y]
  assert np.abs(strength * X.T @ errors + weights).max() < 0.02 * np.abs(weights).max()
  assert np.abs(errors.sum(0)).max() < 0.02


def test_probabilities_sum_to_one_and_metrics_read_them():
  outputs = fit(Baseline(name='logistic_regression'), X, Y, num_classes=3)(NEW)
  assert np.exp(outputs).sum(1) == pytest.approx(np.ones(20))
  expected = -np.mean(outputs[np.arange(20), Y[:20]])
  assert metrics.log_loss(outputs, Y[:20]) == pytest.approx(expected)


@pytest.mark.parametrize('neighbours', [1, 5])
def test_nearest_neighbours_give_the_log_of_the_fraction_of_votes(neighbours):
  outputs = fit(Baseline(name='nearest_neighbours', neighbours=neighbours), X, Y, num_classes=4)(NEW)
  for row, x in zip(outputs, NEW):
    voters = Y[np.argsort(np.square(X - x).sum(1))[:neighbours]]
    votes = np.array([np.mean(voters == c) for c in range(4)])
    assert row == pytest.approx(np.log(np.maximum(votes, 1e-12)))


@pytest.mark.parametrize('name', ['logistic_regression', 'nearest_neighbours'])
def test_columns_are_class_numbers_though_training_saw_only_some(name):
  labels = np.where(Y == 0, 1, 4)
  outputs = fit(Baseline(name=name), X, labels, num_classes=6)(X)
  assert np.mean(outputs.argmax(1) == labels) > 0.8
  assert outputs[:, [0, 2, 3, 5]] == pytest.approx(np.log(1e-12))


def test_one_class_in_training_is_predicted_with_certainty():
  outputs = fit(Baseline(name='logistic_regression'), X, np.full(60, 2), num_classes=3)(NEW)
  assert outputs == pytest.approx(np.tile(np.log([1e-12, 1e-12, 1.0]), (20, 1)))


@pytest.mark.parametrize('targets', [1, 2])
def test_ridge_solves_the_normal_equations_and_leaves_the_intercept_free(targets):
  labels = X[:, :targets] * 2 + 7 + RANDOM.normal(size=(60, targets))
  outputs = fit(Baseline(name='ridge', alpha=3.0), X, labels.squeeze(), num_classes=None)(NEW)
  centred, mean = X - X.mean(0), labels.mean(0)
  weights = np.linalg.solve(centred.T @ centred + 3.0 * np.eye(4), centred.T @ (labels - mean))
  assert outputs == pytest.approx((NEW - X.mean(0)) @ weights + mean)


def test_images_are_flattened():
  flat = fit(Baseline(name='nearest_neighbours'), X, Y, num_classes=3)(NEW)
  images = fit(Baseline(name='nearest_neighbours'), X.reshape(60, 2, 2, 1), Y[:, None], num_classes=3)
  assert (images(NEW.reshape(20, 2, 2, 1)) == flat).all()


def test_more_neighbours_than_examples_is_the_users_mistake():
  with pytest.raises(UserError, match='61 neighbours asked of 60'):
    fit(Baseline(name='nearest_neighbours', neighbours=61), X, Y, num_classes=3)


@pytest.mark.parametrize('name', ['logistic_regression', 'nearest_neighbours'])
def test_a_method_for_classification_is_refused_for_regression(name):
  with pytest.raises(UserError, match=f'{name} is no method for regression; nearest: ridge'):
    fit(Baseline(name=name), X, Y, num_classes=None)


def test_a_value_of_another_method_is_refused_rather_than_ignored():
  with pytest.raises(UserError, match='neighbours belongs to nearest_neighbours; ridge has alpha, penalties'):
    validate(Baseline, {'name': 'ridge', 'neighbours': 3})
  everything = {'name': 'ridge', 'C': 1.0, 'neighbours': 1, 'alpha': 2.0}  # as a saved config has it
  assert validate(Baseline, everything).alpha == 2.0


@pytest.mark.parametrize(
  ('values', 'says'),
  [
    (dict(name='ridge', penalties=[1.0, 1.0]), 'none twice'),
    (dict(name='ridge', penalties=[]), 'at least 1'),
    (dict(name='ridge', penalties=[0.0]), 'greater than 0'),
    (dict(name='ridge', penalties=[1.0], alpha=2.0), 'penalties and alpha exclude each other'),
    (dict(name='logistic_regression', penalties=[1.0], C=2.0), 'penalties and C exclude each other'),
    (dict(name='nearest_neighbours', penalties=[1.0]), 'penalties belongs to ridge and logistic_regression'),
    (dict(name='nearest_neighbours', temperature=0.1), "set metric='cosine'"),
    (dict(name='ridge', metric='cosine'), 'metric belongs to nearest_neighbours'),
    (dict(name='ridge', pool='flat'), 'pool is for the features of a stage'),
  ],
)
def test_keys_that_contradict_each_other_are_refused(values, says):
  with pytest.raises(UserError, match=says):
    validate(Baseline, values)


def test_the_identity_of_a_baseline_on_raw_inputs_is_what_it_was_before_there_were_probes():
  before = {'name': 'ridge', 'C': 1.0, 'neighbours': 1, 'alpha': 2.0}
  assert identity(Baseline(name='ridge', alpha=2.0)) == before
  assert identity(Baseline(name='ridge', alpha=2.0, stage='head')) == {**before, 'stage': 'head'}


@pytest.mark.parametrize('name', ['ridge', 'logistic_regression'])
def test_a_grid_is_fitted_from_the_strongest_penalty_to_the_weakest(name):
  found = fits(Baseline(name=name, penalties=[0.1, 100.0, 3.0]), X, Y, num_classes=3)
  assert [each.penalty for each in found] == [100.0, 3.0, 0.1]
  spread = [np.ptp(each.predict(NEW)) for each in found]
  assert spread == sorted(spread)
  single = {'ridge': {'alpha': 3.0}, 'logistic_regression': {'C': 1 / 3.0, 'stage': 'any', 'standardize': False}}
  alone = fit(Baseline(name=name, **single[name]), X, Y, num_classes=3)(NEW)
  assert found[1].predict(NEW) == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize('name', ['ridge', 'logistic_regression', 'nearest_neighbours'])
def test_standardised_features_are_scaled_by_the_training_examples_when_fitting_and_when_predicting(name):
  scales, shifts = np.array([1e-3, 1.0, 1e3, 30.0]), np.array([5.0, -1e3, 0.0, 1.0])
  mean, deviation = X.mean(0), X.std(0)
  expected = fit(Baseline(name=name), (X - mean) / deviation, Y, num_classes=3)((NEW - mean) / deviation)
  outputs = fit(Baseline(name=name, standardize=True), X * scales + shifts, Y, num_classes=3)(NEW * scales + shifts)
  assert outputs == pytest.approx(expected, abs=1e-6)


def test_probes_of_stages_are_standardised_where_a_penalty_depends_on_scale():
  kinds = [('ridge', True), ('logistic_regression', True), ('nearest_neighbours', False)]
  for name, expected in kinds:
    assert Baseline(name=name, stage='head').standardizes == expected
    assert not Baseline(name=name).standardizes
    assert Baseline(name=name, stage='head', standardize=not expected).standardizes != expected


def test_a_class_without_examples_is_never_predicted_by_any_method():
  labels = np.where(Y == 0, 1, 4)
  for given in (dict(name='ridge'), dict(name='logistic_regression', penalties=[1.0]), dict(name='nearest_neighbours')):
    outputs = fit(
      Baseline(**given, **({'metric': 'cosine'} if 'near' in given['name'] else {})), X, labels, num_classes=6
    )
    assert set(outputs(NEW).argmax(1)) == {1, 4}
    assert np.isfinite(outputs(NEW)).all()


def test_features_that_are_not_finite_are_refused():
  with pytest.raises(UserError, match='not finite'):
    fit(Baseline(name='ridge'), np.where(X > 2, np.inf, X), Y, num_classes=3)
