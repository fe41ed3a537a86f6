"""Weights of losses against the papers' formulas in float64, and what follows from them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from transferlab.objectives import loss_weights

pytestmark = pytest.mark.usefixtures('quick_compilation', 'float64')

LOSSES = np.array([0.3, 2.0, 7.5])


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def _slopes(function, x, step=1e-6):
  changes = step * np.eye(len(x))
  return np.array([float(function(x + change) - function(x - change)) for change in changes]) / (2 * step)


# ------------------------------------------------------------ random weights
def test_random_weights_are_softmaxes_of_normal_numbers():
  drawn = np.array(jax.vmap(lambda key: loss_weights.random_weights(key, 4))(jax.random.split(jax.random.key(0), 4000)))
  np.testing.assert_allclose(drawn.sum(axis=1), 1, rtol=1e-12)
  differences = np.log(drawn[:, 0] / drawn[:, 1]), np.log(drawn[:, 2] / drawn[:, 3])
  for difference in differences:  # of two independent standard normal numbers
    assert stats.kstest(difference, stats.norm(scale=math.sqrt(2)).cdf).pvalue > 1e-3
  assert abs(np.corrcoef(differences)[0, 1]) < 0.06


# ------------------------------------------------------------ uncertainty
def test_uncertainty_of_regression_is_the_likelihood_of_a_normal_distribution():
  errors, variances = np.array([0.5, -2.0]), np.array([0.3, 4.0])
  loss = loss_weights.uncertainty(errors**2, np.log(variances), np.array([True, True]))
  assert float(loss) == pytest.approx(
    -stats.norm.logpdf(errors, scale=np.sqrt(variances)).sum() - math.log(2 * math.pi)
  )


def test_uncertainty_of_classification_approximates_logits_divided_by_the_variance():
  """Equation 10, whose approximation is exact where the variance is 1, and with it in its slope for even odds."""
  logits, none = np.array([0.3, 1.5, -1.0]), np.zeros(1)
  loss = lambda s, z: float(loss_weights.uncertainty(-special.log_softmax(z)[:1], s))
  exact = lambda s, z: -special.log_softmax(z / np.exp(s))[0]
  assert loss(none, logits) == pytest.approx(exact(none, logits))
  # The paper: Σ exp(z / σ²) / σ ≈ (Σ exp z)^(1 / σ²), so that −log softmax(z / σ²) ≈ −log softmax(z) / σ² + log σ.
  s = np.array([0.4])
  sums = np.exp(logits / np.exp(s)).sum() / np.exp(s / 2), np.exp(logits).sum() ** np.exp(-s)
  assert loss(s, logits) == pytest.approx(exact(s, logits) + float(np.log(sums[1] / sums[0])[0]))


def test_uncertainty_is_least_at_the_variance_of_the_errors():
  regression = np.array([True, False, True])
  slopes = jax.grad(loss_weights.uncertainty, argnums=1)
  np.testing.assert_allclose(slopes(LOSSES, np.log(np.where(regression, 1, 2) * LOSSES), regression), 0, atol=1e-12)
  np.testing.assert_allclose(slopes(LOSSES, np.log(2 * LOSSES)), 0, atol=1e-12)
  weights = jax.grad(loss_weights.uncertainty)(LOSSES, np.array([0.0, 1.0, -1.0]), regression)
  np.testing.assert_allclose(weights, [0.5, math.exp(-1), 0.5 * math.e])


# ------------------------------------------------------------ dynamic weight average
def test_dynamic_weight_average_is_the_papers():
  previous, before = np.array([1.0, 3.0, 0.5]), np.array([2.0, 3.0, 0.4])
  for temperature in (0.5, 2.0, 10.0):
    powers = [math.exp(p / b / temperature) for p, b in zip(previous, before)]
    expected = [3 * power / sum(powers) for power in powers]
    np.testing.assert_allclose(loss_weights.dynamic_weight_average(previous, before, temperature), expected, rtol=1e-12)
  default = loss_weights.dynamic_weight_average(previous, before)
  np.testing.assert_array_equal(default, loss_weights.dynamic_weight_average(previous, before, 2.0))
  np.testing.assert_allclose(loss_weights.dynamic_weight_average(LOSSES, LOSSES), 1)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_dynamic_weight_average_is_defined_where_losses_are_zero_or_tiny(dtype):
  tiny = float(np.finfo(dtype).tiny)
  average = lambda *losses: np.asarray(loss_weights.dynamic_weight_average(*(jnp.asarray(a, dtype) for a in losses)))
  np.testing.assert_allclose(average([0, 1, 1], [0, 1, 1]), 1)
  np.testing.assert_allclose(average([5.0, 1, 1], [0, 1, 1]), 1)
  np.testing.assert_allclose(average([1e30, 1, 1], [tiny, 1, 1]), [3, 0, 0], atol=1e-6)
  np.testing.assert_allclose(average([1e30, 1e30, 1], [tiny, tiny, 1]), [1.5, 1.5, 0], atol=1e-6)
  assert average([0.0, 1, 1], [1, 1, 1]).argmin() == 0


# ------------------------------------------------------------ geometric mean
def test_geometric_mean_and_its_gradient():
  assert float(loss_weights.geometric_mean(LOSSES)) == pytest.approx(stats.gmean(LOSSES), rel=1e-12)
  gradient = jax.grad(loss_weights.geometric_mean)(jnp.asarray(LOSSES))
  np.testing.assert_allclose(gradient, stats.gmean(LOSSES) / (3 * LOSSES), rtol=1e-12)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_geometric_mean_has_a_gradient_at_tiny_losses(dtype):
  tiny = float(np.finfo(dtype).tiny)
  small = jnp.asarray([4 * tiny, 1.0], dtype)
  value, gradient = jax.value_and_grad(loss_weights.geometric_mean)(small)
  assert float(value) == pytest.approx(2 * math.sqrt(tiny), rel=1e-4)
  np.testing.assert_allclose(gradient, [0.25 / math.sqrt(tiny), math.sqrt(tiny)], rtol=1e-4)
  value, gradient = jax.value_and_grad(loss_weights.geometric_mean)(jnp.asarray([0.0, 1.0], dtype))
  assert float(value) == pytest.approx(math.sqrt(tiny), rel=1e-4)
  np.testing.assert_allclose(gradient, [0, math.sqrt(tiny) / 2], rtol=1e-4)


# ------------------------------------------------------------ GradNorm
def _gradnorm(weights, norms, losses, initial, alpha, constant):
  """With the targets as they are at the weights `constant`."""
  rates = losses / initial / (losses / initial).mean()
  return np.abs(weights * norms - (constant * norms).mean() * rates**alpha).sum()


def test_gradnorm_is_the_papers_with_targets_that_are_constant():
  norms, initial, weights = np.array([2.0, 0.1, 5.0]), np.array([1.0, 2.0, 5.0]), np.array([0.5, 1.5, 1.0])
  for alpha in (0.0, 0.12, 1.5):
    function = lambda w, alpha=alpha: loss_weights.gradnorm(norms, LOSSES, initial, w, alpha)
    value, slopes = jax.value_and_grad(function)(jnp.asarray(weights))
    expected = lambda w, alpha=alpha: _gradnorm(w, norms, LOSSES, initial, alpha, constant=weights)
    assert float(value) == pytest.approx(expected(weights), rel=1e-12)
    np.testing.assert_allclose(slopes, _slopes(expected, weights), rtol=1e-6)
  others = jax.grad(loss_weights.gradnorm, argnums=(0, 1))(
    jnp.asarray(norms), jnp.asarray(LOSSES), initial, weights, 1.5
  )
  assert not np.any(others)


def test_gradnorm_is_defined_at_losses_of_zero():
  norms, weights, ones = np.array([2.0, 1.0]), np.ones(2), np.ones(2)
  slopes = lambda losses, initial: jax.grad(loss_weights.gradnorm, argnums=3)(norms, losses, initial, weights, 0.5)
  np.testing.assert_allclose(slopes(np.array([0.0, 1.0]), ones), [2, -1])
  np.testing.assert_allclose(slopes(np.zeros(2), ones), [2, -1])
  value = loss_weights.gradnorm(norms, np.array([5.0, 2.0]), np.array([0.0, 1.0]), weights, 1.0)
  assert float(value) == pytest.approx(abs(2 - 1.5 * 1 / 1.5) + abs(1 - 1.5 * 2 / 1.5))


def test_renormalized_weights_are_not_negative_and_have_the_sum_of_the_tasks():
  np.testing.assert_allclose(loss_weights.renormalize(jnp.array([1.0, 2.0, 5.0])), [0.375, 0.75, 1.875])
  np.testing.assert_allclose(loss_weights.renormalize(jnp.array([1.0, -2.0, 3.0])), [0.75, 0, 2.25])
  np.testing.assert_allclose(loss_weights.renormalize(jnp.array([-1.0, 0.0])), 1)


# ------------------------------------------------------------ FAMO
LOGITS = np.array([0.2, -1.0, 0.7])


def _weights(z, losses):
  return z / losses / (z / losses).sum()


def test_famo_descends_the_weighted_mean_of_logarithms():
  weights = np.asarray(loss_weights.famo_weights(LOGITS, LOSSES, eps=0.0))
  z = special.softmax(LOGITS)
  c = 1 / (z / LOSSES).sum()
  assert weights.sum() == pytest.approx(1)
  np.testing.assert_allclose(weights, _slopes(lambda losses: c * (z * np.log(losses)).sum(), LOSSES), rtol=1e-8)
  np.testing.assert_allclose(loss_weights.famo_weights(LOGITS, LOSSES, eps=0.5), _weights(z, LOSSES + 0.5), rtol=1e-12)
  assert not np.any(jax.jacobian(loss_weights.famo_weights, argnums=(0, 1))(jnp.asarray(LOGITS), jnp.asarray(LOSSES)))


def test_famo_weights_are_defined_at_losses_of_zero():
  for dtype in (jnp.float32, jnp.float64):
    weights = loss_weights.famo_weights(jnp.zeros(3, dtype), jnp.array([0.0, 1.0, 1.0], dtype))
    np.testing.assert_allclose(weights, [1, 1e-8, 1e-8], rtol=1e-5)
    assert np.isfinite(loss_weights.famo_gradient(jnp.zeros(3, dtype), jnp.zeros(3, dtype), LOSSES, 0.01)).all()


def test_famo_moves_the_logits_by_the_jacobian_of_the_softmax():
  after = LOSSES * np.array([0.9, 0.5, 1.1])
  fall = np.log(LOSSES) - np.log(after)
  for gamma in (0.0, 0.3):
    gradient = loss_weights.famo_gradient(LOGITS, LOSSES, after, gamma, eps=0.0)
    expected = _slopes(lambda logits: special.softmax(logits) @ fall, LOGITS) + gamma * LOGITS
    np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-9)
  shifted = loss_weights.famo_gradient(LOGITS, LOSSES, after, 0.0, eps=0.5)
  exact = loss_weights.famo_gradient(LOGITS, LOSSES + 0.5, after + 0.5, 0.0, eps=0.0)
  np.testing.assert_allclose(shifted, exact, rtol=1e-12)
