"""Losses against labels: formulas in float64 NumPy, and PyTorch's values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transferlab.errors import UserError
from transferlab.objectives import supervised

pytestmark = pytest.mark.usefixtures('quick_compilation')
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(0, 3, (6, 4)).astype(np.float32)
LABELS = np.array([0, 3, 1, 1, 2, 0], np.int32)
SOFT = RANDOM.dirichlet(np.ones(4), 6).astype(np.float32)
WEIGHTS = [0.5, 1.0, 2.0, 0.0]


def _log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_cross_entropy_of_labels_and_of_soft_targets():
  log = _log_softmax(LOGITS)
  np.testing.assert_allclose(supervised.cross_entropy(LOGITS, LABELS), -log[np.arange(6), LABELS], rtol=1e-5)
  np.testing.assert_allclose(supervised.cross_entropy(LOGITS, SOFT), -(SOFT * log).sum(1), rtol=1e-5)


def test_smoothing_mixes_the_uniform_distribution_into_the_target():
  log, one_hot = _log_softmax(LOGITS), np.eye(4)[LABELS]
  expected = -((0.9 * one_hot + 0.1 / 4) * log).sum(1)
  np.testing.assert_allclose(supervised.cross_entropy(LOGITS, LABELS, smoothing=0.1), expected, rtol=1e-5)


@pytest.mark.parametrize('smoothing', [None, 0.2])
def test_class_weights_give_each_example_the_weight_of_its_class(smoothing):
  values, weights = supervised.cross_entropy(LOGITS, LABELS, smoothing=smoothing, class_weights=WEIGHTS)
  np.testing.assert_allclose(weights, np.array(WEIGHTS)[LABELS])
  np.testing.assert_allclose(values, supervised.cross_entropy(LOGITS, LABELS, smoothing=smoothing), rtol=1e-6)
  _, soft = supervised.cross_entropy(LOGITS, SOFT, class_weights=WEIGHTS)
  np.testing.assert_allclose(soft, SOFT @ np.array(WEIGHTS), rtol=1e-6)
  with pytest.raises(UserError, match='2 weights for 4 classes'):
    supervised.cross_entropy(LOGITS, LABELS, class_weights=[1.0, 2.0])


def test_cross_entropy_and_its_gradient_are_finite_at_infinite_confidence():
  logits = jnp.array([[1e4, -1e4], [-jnp.inf, 0.0]])
  value = lambda z: supervised.cross_entropy(z, jnp.array([0, 1])).sum()
  found, gradient = jax.value_and_grad(value)(logits)
  assert found == 0
  np.testing.assert_array_equal(gradient, np.zeros((2, 2)))


def test_cross_entropy_equals_that_of_torch():
  torch = pytest.importorskip('torch')
  logits = torch.tensor(LOGITS)
  for targets in (torch.tensor(LABELS).long(), torch.tensor(SOFT)):
    expected = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1, reduction='none')
    found = supervised.cross_entropy(LOGITS, jnp.asarray(targets.numpy()), smoothing=0.1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
  expected = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS).long(), weight=torch.tensor(WEIGHTS))
  values, weights = supervised.cross_entropy(LOGITS, LABELS, class_weights=WEIGHTS)
  assert float((values * weights).sum() / weights.sum()) == pytest.approx(float(expected), rel=1e-5)


def test_squared_error_is_the_mean_over_the_outputs_of_each_example():
  predictions, targets = LOGITS.reshape(6, 2, 2), SOFT.reshape(6, 2, 2)
  expected = ((predictions.astype(np.float64) - targets) ** 2).mean((1, 2))
  np.testing.assert_allclose(supervised.squared_error(predictions, targets), expected, rtol=1e-6)


def test_squared_error_of_class_numbers_is_that_of_zeros_and_a_one():
  expected = ((LOGITS.astype(np.float64) - np.eye(4)[LABELS]) ** 2).mean(1)
  np.testing.assert_allclose(supervised.squared_error(LOGITS, LABELS), expected, rtol=1e-6)


@pytest.mark.parametrize('shape', [(6,), (6, 1)])
def test_binary_cross_entropy_is_that_of_the_sigmoid(shape):
  logit, label = LOGITS[:, 0], LABELS % 2
  p = 1 / (1 + np.exp(-logit.astype(np.float64)))
  expected = -np.where(label == 1, np.log(p), np.log(1 - p))
  found = supervised.binary_cross_entropy(jnp.asarray(logit).reshape(shape), jnp.asarray(label))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_hinge_of_one_logit_and_the_margin_of_several():
  found = supervised.hinge(jnp.array([[0.3], [0.3], [-2.0], [2.0]]), jnp.array([1, 0, 0, 1]))
  np.testing.assert_allclose(found, [0.7, 1.3, 0.0, 0.0], atol=1e-6)
  expected = []
  for logits, label in zip(LOGITS.astype(np.float64), LABELS):
    expected.append(max(0, 1 + np.delete(logits, label).max() - logits[label]))
  np.testing.assert_allclose(supervised.hinge(jnp.asarray(LOGITS), jnp.asarray(LABELS)), expected, rtol=1e-5, atol=1e-6)


def test_multiclass_hinge_equals_that_of_sklearn():
  from sklearn.metrics import hinge_loss

  found = supervised.hinge(jnp.asarray(LOGITS), jnp.asarray(LABELS)).mean()
  assert float(found) == pytest.approx(hinge_loss(LABELS, LOGITS.astype(np.float64), labels=range(4)), rel=1e-5)
