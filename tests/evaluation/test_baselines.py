"""Classical baselines against their definitions: normal equations, votes by hand, the gradient at the optimum."""

import numpy as np
import pytest

from transferlab.config import validate
from transferlab.errors import UserError
from transferlab.evaluation import metrics
from transferlab.evaluation.baselines import Baseline, fit

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


@pytest.mark.parametrize('name, num_classes', [('ridge', 3), ('nearest_neighbours', None)])
def test_a_method_for_the_other_kind_of_task_is_refused(name, num_classes):
  with pytest.raises(UserError, match=f'{name} is no method for'):
    fit(Baseline(name=name), X, Y, num_classes=num_classes)


def test_a_value_of_another_method_is_refused_rather_than_ignored():
  with pytest.raises(UserError, match='neighbours belongs to nearest_neighbours; ridge has alpha'):
    validate(Baseline, {'name': 'ridge', 'neighbours': 3})
  everything = {'name': 'ridge', 'C': 1.0, 'neighbours': 1, 'alpha': 2.0}  # as a saved config has it
  assert validate(Baseline, everything).value == 2.0
