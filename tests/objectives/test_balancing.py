"""Gradient balancing against independent solutions in float64 and conditions of optimality, and without solutions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from transferlab.objectives import balancing

pytestmark = pytest.mark.usefixtures('quick_compilation')

KEY = 7
SHAPES = [(2, 6), (3, 2), (5, 12), (8, 5)]
LONG = pytest.mark.long
BOTH = [(SHAPES[1], np.float64), (SHAPES[2], np.float32), (SHAPES[3], np.float64)]
BOTH += [pytest.param(shape, dtype, marks=LONG) for shape in SHAPES for dtype in (np.float64, np.float32)]
PRECISIONS = pytest.mark.parametrize('dtype', [pytest.param(np.float64, marks=LONG), np.float32])
WEIGHTS = ('mgda', 'imtl_g', 'nash', 'aligned_mtl')
UPDATES = ('cagrad', 'pcgrad', 'gradvac', 'graddrop')


# ------------------------------------------------------------ what is called, and on what
@functools.cache
def _compiled(name, **options):
  return jax.jit(functools.partial(getattr(balancing, name), **options))


def _orders(tasks, seed=0):
  random = np.random.default_rng(seed)
  return np.array([random.permutation(tasks) for _ in range(tasks)])


def _call(name, gradients, *arguments, dtype=np.float64, **options):
  """What the compiled function gives, in float64; it has the precision that was asked for."""
  with jax.enable_x64(dtype == np.float64):
    given = [jnp.asarray(a, dtype if np.asarray(a).dtype.kind == 'f' else None) for a in (gradients, *arguments)]
    results = jax.tree.leaves(_compiled(name, **options)(*given))
    assert all(r.dtype in (dtype, bool) for r in results)
    results = [np.asarray(r, float) if r.dtype != bool else bool(r) for r in results]
  return results[0] if len(results) == 1 else results


def _update(name, gradients, dtype=np.float64, c=0.5, seed=0):
  """The combined update of any method."""
  tasks = len(gradients)
  if name in WEIGHTS:
    return _call('combine', _call(name, gradients, dtype=dtype), gradients, dtype=dtype)
  if name == 'cagrad':
    return _call(name, gradients, float(c), dtype=dtype)
  if name == 'pcgrad':
    return _call(name, gradients, _orders(tasks, seed), dtype=dtype)
  if name == 'gradvac':
    return _call(name, gradients, np.zeros((tasks, tasks)), _orders(tasks, seed), 0.1, dtype=dtype)[0]
  with jax.enable_x64(dtype == np.float64):
    return np.asarray(_compiled(name)(jnp.asarray(gradients, dtype), jax.random.key(seed)), float)


def _inputs(shape, dtype=np.float64, seeds=6, magnitudes=(0, 2, 6), margin=0.1):
  """Random gradients that differ in length by up to 10^±magnitude, exact in `dtype`.

  With float32 none that are so close to being Pareto stationary, or on a side of it, that digits are lost.
  """
  for seed in range(seeds):
    for magnitude in magnitudes:
      random = np.random.default_rng([*shape, seed, magnitude])
      rows = random.normal(size=shape) + (seed % 3) * random.normal(size=shape[1])
      gradients = (rows * 10.0 ** random.uniform(-magnitude, magnitude, size=(shape[0], 1))).astype(dtype).astype(float)
      if dtype == np.float64 or _clear(gradients, margin):
        yield gradients


def _clear(gradients, margin):
  return np.linalg.norm(_hull(_units(gradients)) @ _units(gradients)) > margin


def _lengths(gradients):
  return np.linalg.norm(gradients, axis=1)


def _units(gradients):
  return gradients / np.maximum(_lengths(gradients), 1e-300)[:, None]


def _nonnegative(matrix, vector):
  return optimize.nnls(matrix, vector, maxiter=10_000)[0]


def _hull(gradients):
  """The weights of the shortest vector in the hull: min ‖Gᵀ v‖² + (1 − dᵀ v)², v ≥ 0, by SciPy, in scaled variables."""
  inverse = _lengths(gradients).min() / _lengths(gradients)
  zero = _nonnegative(np.vstack([_units(gradients).T, np.ones(len(gradients))]), np.eye(gradients.shape[1] + 1)[-1])
  if np.linalg.norm(zero @ _units(gradients)) > 1e-7 * zero.sum():
    zero = _nonnegative(np.vstack([_units(gradients).T, inverse]), np.eye(gradients.shape[1] + 1)[-1])
  return zero * inverse / (zero @ inverse)


# ------------------------------------------------------------ lengths, cosines, update
@PRECISIONS
def test_norms_directions_and_cosines_are_right_at_any_magnitude(dtype):
  tiny, huge = (1e-30, 1e30) if dtype == np.float32 else (1e-250, 1e250)
  gradients = np.array([[3, 4], [0, 0], [-4 * tiny, 3 * tiny], [huge, 0], [-huge, 0]])
  tolerance = dict(rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(_call('norms', gradients, dtype=dtype), [5, 0, 5 * tiny, huge, huge], rtol=1e-6, atol=0)
  units = np.array([[0.6, 0.8], [0, 0], [-0.8, 0.6], [1, 0], [-1, 0]])
  np.testing.assert_allclose(_call('directions', gradients, dtype=dtype), units, **tolerance)
  np.testing.assert_allclose(_call('cosines', gradients, dtype=dtype), units @ units.T, **tolerance)


@PRECISIONS
def test_combining_is_the_weighted_sum_and_rounding_errors_of_it_are_zero(dtype):
  for gradients in _inputs((5, 12), dtype, magnitudes=(0, 2)):
    weights = np.random.default_rng(0).normal(size=5)
    scale = np.abs(weights[:, None] * gradients).sum()
    combined = _call('combine', weights, gradients, dtype=dtype)
    np.testing.assert_allclose(combined, weights @ gradients, atol=scale * 1e-6 if dtype == np.float32 else 1e-14)
    cancelling = np.vstack([gradients[:4], -weights[:4] @ gradients[:4]])
    assert not _call('combine', [*weights[:4], 1.0], cancelling, dtype=dtype).any()
  small = np.array([[1.0, 0.0], [-1.0, 1e-4]])
  np.testing.assert_allclose(_call('combine', np.ones(2), small, dtype=dtype), [0, 1e-4], rtol=1e-6)


# ------------------------------------------------------------ MGDA
@pytest.mark.parametrize(('shape', 'dtype'), BOTH)
def test_mgda_gives_the_shortest_vector_of_the_hull(shape, dtype):
  close = 1e-9 if dtype == np.float64 else 2e-3
  for gradients in _inputs(shape, dtype):
    weights, lengths = _call('mgda', gradients, dtype=dtype), _lengths(gradients)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, rel=1e-6)
    shortest = weights @ gradients
    expected = _hull(gradients) @ gradients
    if np.linalg.norm(expected) < 1e-8 * (weights @ lengths):
      assert np.linalg.norm(shortest) < 1e-12 * (weights @ lengths)
      continue
    assert np.linalg.norm(shortest - expected) < close * np.linalg.norm(expected)
    # g_i · p ≥ ‖p‖², and equal where the weight is not zero.
    slack = gradients @ shortest / (shortest @ shortest) - 1
    assert (slack > -close * lengths / np.linalg.norm(shortest)).all()
    assert (np.abs(weights * slack) < close).all()


def test_mgda_finds_its_way_on_many_hulls():
  """Among them some on which tasks have to leave the active set, and to enter it again."""
  random = np.random.default_rng(0)
  units = random.normal(size=(400, 8, 5)) + 16 * random.normal(size=(400, 1, 5))
  units /= np.linalg.norm(units, axis=2, keepdims=True)
  with jax.enable_x64(True):
    weights = np.asarray(jax.jit(jax.vmap(balancing.mgda))(units))
  shortest = np.einsum('bi,bin->bn', weights, units)
  squares = (shortest * shortest).sum(axis=1)
  slack = np.einsum('bin,bn->bi', units, shortest) / squares[:, None] - 1
  assert (slack[squares > 1e-4] > -1e-8).all()
  assert (squares > 1e-4).sum() > 300


@PRECISIONS
def test_mgda_of_two_tasks_is_sener_and_koltuns_closed_form(dtype):
  for a, b in _inputs((2, 6), dtype, seeds=12, magnitudes=(0, 1)):
    gamma = min(max((b - a) @ b / ((a - b) @ (a - b)), 0), 1)
    np.testing.assert_allclose(_call('mgda', np.stack([a, b]), dtype=dtype), [gamma, 1 - gamma], atol=2e-5)


@PRECISIONS
def test_mgda_of_three_corners_has_the_weights_of_their_heights(dtype):
  """Of orthogonal gradients: 1 / ‖g‖²."""
  lengths = np.array([1e-6, 3e-6, 2e6])
  weights = _call('mgda', np.diag(lengths), dtype=dtype)
  np.testing.assert_allclose(weights, lengths**-2.0 / (lengths**-2.0).sum(), rtol=1e-5)


def test_normalized_mgda_has_the_direction_of_the_hull_of_unit_gradients():
  for gradients in _inputs((5, 12)):
    weights = _call('mgda', gradients, normalize='l2')
    assert weights.sum() == pytest.approx(1)
    units = _units(gradients)
    expected = _hull(units) @ units
    np.testing.assert_allclose(_units((weights @ gradients)[None]), _units(expected[None]), atol=1e-9)
    # The paper's code takes these for the gradients as they are.
    np.testing.assert_allclose(_units((weights * _lengths(gradients))[None]), _units(_hull(units)[None]), atol=1e-8)


def test_mgda_knows_two_normalizations():
  with pytest.raises(ValueError, match="'loss'; it can be 'none' or 'l2'"):
    balancing.mgda(jnp.eye(2), normalize='loss')


# ------------------------------------------------------------ surgery
def _pcgrad(gradients, orders):
  changed = gradients.copy()
  for i, order in enumerate(orders):
    for j in order:
      if j != i and changed[i] @ gradients[j] < 0:
        changed[i] -= changed[i] @ gradients[j] / (gradients[j] @ gradients[j]) * gradients[j]
  return changed


@pytest.mark.parametrize(('shape', 'dtype'), BOTH)
def test_pcgrad_is_the_papers_loop(shape, dtype):
  for seed, gradients in enumerate(_inputs(shape, dtype, margin=0)):
    orders = _orders(shape[0], seed)
    expected = _pcgrad(gradients, orders).sum(axis=0)
    combined = _call('pcgrad', gradients, orders, dtype=dtype)
    size = _lengths(gradients).max()
    np.testing.assert_allclose(combined, expected, atol=size * (1e-13 if dtype == np.float64 else 5e-6))


def test_pcgrad_depends_on_the_order_of_each_task():
  gradients = next(_inputs((8, 5), magnitudes=(0,)))
  results = [_call('pcgrad', gradients, orders) for orders in (_orders(8, 1), _orders(8, 1)[::-1], _orders(8, 2))]
  assert len({tuple(r.round(6)) for r in results}) == 3


def test_pcgrad_of_two_tasks_conflicts_with_neither():
  for gradients in _inputs((2, 6)):
    combined = _call('pcgrad', gradients, _orders(2))
    assert (gradients @ combined > -1e-10 * _lengths(gradients) * np.linalg.norm(combined)).all()


def _gradvac(gradients, targets, orders, beta):
  changed, targets = gradients.copy(), targets.copy()
  for i, order in enumerate(orders):
    for j in order:
      a, b = np.linalg.norm(changed[i]), np.linalg.norm(gradients[j])
      if j == i or not a * b:
        continue
      phi, goal = changed[i] @ gradients[j] / (a * b), targets[i, j]
      if phi < goal:
        # The angle to g_j shrinks from acos φ to acos φ̂ by adding g_j: the law of sines.
        grown, angle = math.acos(max(phi, -1)) - math.acos(goal), math.acos(goal)
        changed[i] += a * math.sin(grown) / math.sin(angle) * gradients[j] / b
      targets[i, j] = (1 - beta) * goal + beta * phi
  return changed.sum(axis=0), targets


@pytest.mark.parametrize(('shape', 'dtype'), BOTH)
def test_gradvac_is_the_papers_loop_over_several_steps(shape, dtype):
  tasks = shape[0]
  targets = expected_targets = np.zeros((tasks, tasks))
  for seed, gradients in enumerate(_inputs(shape, dtype, seeds=3, margin=0)):
    if dtype == np.float32 and abs(np.triu(_units(gradients) @ _units(gradients).T, 1)).max() > 0.99:
      continue
    orders = _orders(tasks, seed)
    expected, expected_targets = _gradvac(gradients, expected_targets, orders, 0.3)
    combined, targets = _call('gradvac', gradients, targets, orders, 0.3, dtype=dtype)
    close = 1e-9 if dtype == np.float64 else 2e-3
    np.testing.assert_allclose(combined, expected, atol=_lengths(gradients).max() * close)
    np.testing.assert_allclose(targets, expected_targets, atol=close)
  assert np.abs(targets).max() > 0.1
  assert not np.diagonal(targets).any()


def test_gradvac_of_two_tasks_meets_its_target():
  gradients = np.array([[2.0, 0, 0], [-1.0, 1.0, 0]])
  targets = np.array([[0, 0.7], [-1.0, 0]])  # the second task is left alone
  combined, after = _call('gradvac', gradients, targets, _orders(2), 0.25)
  changed = combined - gradients[1]
  assert changed @ gradients[1] / (np.linalg.norm(changed) * np.sqrt(2)) == pytest.approx(0.7)
  cosine = -1 / math.sqrt(2)
  np.testing.assert_allclose(after, [[0, 0.75 * 0.7 + 0.25 * cosine], [-0.75 + 0.25 * cosine, 0]])


def test_gradvac_with_targets_that_stay_zero_is_pcgrad():
  for seed, gradients in enumerate(_inputs((5, 12))):
    orders = _orders(5, seed)
    combined, targets = _call('gradvac', gradients, np.zeros((5, 5)), orders, 0.0)
    np.testing.assert_allclose(combined, _call('pcgrad', gradients, orders), atol=1e-12 * _lengths(gradients).max())
    assert not targets.any()


def test_a_target_out_of_reach_changes_no_gradient():
  gradients = np.array([[1.0, 0], [0, 1.0]])
  combined, targets = _call('gradvac', gradients, np.ones((2, 2)), _orders(2), 0.5)
  np.testing.assert_allclose(combined, [1, 1])
  np.testing.assert_allclose(targets, [[1, 0.5], [0.5, 1]])


def test_orders_are_permutations_drawn_for_each_task():
  drawn = np.array([balancing.draw_order(jax.random.key(k), 3) for k in range(60)])
  assert drawn.shape == (60, 3, 3)
  np.testing.assert_array_equal(np.sort(drawn, axis=-1), np.broadcast_to(np.arange(3), drawn.shape))
  for row in range(3):
    assert len(set(map(tuple, drawn[:, row]))) == 6
  assert len(set(map(tuple, drawn.reshape(60, 9)))) > 45  # of 216: rows do not go together


# ------------------------------------------------------------ GradDrop
def _graddrop(gradients, keys, **options):
  function = jax.jit(jax.vmap(lambda key: balancing.graddrop(jnp.asarray(gradients, jnp.float32), key, **options)))
  return np.asarray(function(jax.random.split(jax.random.key(KEY), keys)), float)


def test_graddrop_keeps_one_sign_of_each_coordinate_as_often_as_it_is_pure():
  gradients = np.array([[1.0, -2, 3, -1, 0], [2.0, 1, -1, -3, 0], [0.5, 0.5, 0, -1, 0]])
  positive, negative = np.maximum(gradients, 0).sum(axis=0), np.minimum(gradients, 0).sum(axis=0)
  results = _graddrop(gradients, 4000)
  is_positive, is_negative = np.isclose(results, positive), np.isclose(results, negative)
  assert (is_positive | is_negative).all()
  purity = 0.5 * (1 + gradients.sum(axis=0)[:4] / np.abs(gradients).sum(axis=0)[:4])
  np.testing.assert_allclose(is_positive.mean(axis=0)[:4], purity, atol=4 * 0.5 / math.sqrt(4000))
  assert is_positive[:, 0].all()
  assert is_negative[:, 3].all()
  mixed = is_positive[:, 1:3].astype(float)
  assert abs(np.corrcoef(mixed.T)[0, 1]) < 0.1  # drawn for each coordinate


def test_graddrop_lets_pass_what_leaks():
  gradients = np.array([[1.0, -2, 3], [2.0, 1, -1], [-0.5, 0.5, 1]])
  masked = _graddrop(gradients, 50)
  np.testing.assert_allclose(_graddrop(gradients, 50, leak=1.0), np.tile(gradients.sum(axis=0), (50, 1)), atol=1e-6)
  blended = 0.25 * gradients.sum(axis=0) + 0.75 * masked
  np.testing.assert_allclose(_graddrop(gradients, 50, leak=0.25), blended, atol=1e-6)
  # The first task passes whole; of the others only what has the sign that was kept.
  signs = np.where(np.isclose(masked, np.maximum(gradients, 0).sum(axis=0)), 1, -1)
  expected = np.array([gradients[0] + (gradients[1:] * (np.sign(gradients[1:]) == s)).sum(axis=0) for s in signs])
  np.testing.assert_allclose(_graddrop(gradients, 50, leak=jnp.array([1.0, 0, 0])), expected, atol=1e-6)


def test_graddrop_of_activations_draws_one_mask_for_the_batch_by_their_signs():
  random = np.random.default_rng(0)
  gradients, activations = random.normal(size=(3, 4, 2, 2)), random.normal(size=(4, 2, 2))
  results = _graddrop(gradients, 2000, activations=jnp.asarray(activations, jnp.float32))
  signal = (np.sign(activations) * gradients).sum(axis=1)  # tasks, then features
  kept = {sign: np.where(np.sign(signal) == sign, 1, 0)[:, None] * gradients for sign in (1, -1)}
  for place in np.ndindex(2, 2):
    at = (..., *place)
    positive = np.isclose(results[at], kept[1].sum(axis=0)[at], atol=1e-6).all(axis=1)
    negative = np.isclose(results[at], kept[-1].sum(axis=0)[at], atol=1e-6).all(axis=1)
    assert (positive ^ negative).all()
    purity = 0.5 * (1 + signal[at].sum() / np.abs(signal[at]).sum())
    assert positive.mean() == pytest.approx(purity, abs=4 * 0.5 / math.sqrt(2000))


# ------------------------------------------------------------ CAGrad
def _certify(gradients, combined, c, close):
  """The distance is as long as allowed; its direction is made of the gradients that improve least, with weights ≥ 0."""
  mean, lengths = gradients.mean(axis=0), _lengths(gradients)
  radius = c * np.linalg.norm(mean)
  towards = combined - mean
  assert np.linalg.norm(towards) == pytest.approx(radius, rel=1e-5 if close > 1e-6 else 1e-9)
  gains, error = gradients @ combined, close * lengths * np.linalg.norm(mean)
  worst = _units(gradients)[gains - error <= (gains + error).min()]
  parts = _nonnegative(worst.T, towards / radius)
  assert np.linalg.norm(parts @ worst - towards / radius) < math.sqrt(close)


@pytest.mark.parametrize(('shape', 'dtype'), BOTH)
def test_cagrad_has_the_largest_worst_improvement_within_its_distance(shape, dtype):
  for number, gradients in enumerate(_inputs(shape, dtype, seeds=4)):
    c = (0.1, 0.5, 0.9)[number % 3]
    _certify(gradients, _update('cagrad', gradients, dtype, c), c, 1e-9 if dtype == np.float64 else 1e-3)


def test_no_sampled_step_within_the_distance_improves_the_worst_task_more():
  random = np.random.default_rng(0)
  for gradients in _inputs((5, 12), magnitudes=(0,)):
    mean, c = gradients.mean(axis=0), 0.5
    worst = (gradients @ _update('cagrad', gradients, c=c)).min()
    offsets = random.normal(size=(2000, 12))
    offsets *= c * np.linalg.norm(mean) * random.uniform(0.5, 1, size=(2000, 1)) / _lengths(offsets)[:, None]
    assert ((mean + offsets) @ gradients.T).min(axis=1).max() < worst


def _dual(w, gradients, c):
  mean, average = gradients.mean(axis=0), w @ gradients
  return average @ mean + c * np.linalg.norm(mean) * np.linalg.norm(average)


def test_cagrad_is_the_minimum_of_the_papers_dual_problem():
  simplex = dict(bounds=[(0, 1)] * 3, constraints=dict(type='eq', fun=lambda w: w.sum() - 1))
  solve = functools.partial(optimize.minimize, _dual, method='SLSQP', options=dict(ftol=1e-14), **simplex)
  for gradients in _inputs((3, 2), magnitudes=(0,)):
    c, starts = 0.4, np.random.default_rng(0).dirichlet(np.ones(3), 4)
    found = min(solve(w, args=(gradients, c)).fun for w in starts)
    assert (gradients @ _update('cagrad', gradients, c=c)).min() == pytest.approx(found, rel=1e-6, abs=1e-7)


def test_cagrad_without_distance_is_the_mean_gradient():
  for gradients in _inputs((5, 12), magnitudes=(0, 6)):
    mean = gradients.mean(axis=0)
    np.testing.assert_allclose(_update('cagrad', gradients, c=0.0), mean, atol=1e-14 * np.abs(gradients).max())


def test_cagrad_trades_off_where_the_gradients_are_stationary_as_long_as_c_is_below_1():
  gradients = np.array([[1.0, 0], [-2.0, 0]])
  np.testing.assert_allclose(_update('cagrad', gradients, c=0.5), [-0.25, 0])
  for c in (1.0, 1.5):
    assert not _update('cagrad', gradients, c=c).any()


# ------------------------------------------------------------ IMTL-G, Nash, Aligned-MTL
@PRECISIONS
@pytest.mark.parametrize('shape', [(2, 6), (5, 12)])
def test_imtl_g_has_equal_projections_and_the_papers_closed_form(shape, dtype):
  close = 1e-8 if dtype == np.float64 else 5e-3
  for gradients in _inputs(shape, dtype, magnitudes=(0, 1)):
    weights = _call('imtl_g', gradients, dtype=dtype)
    assert weights.sum() == pytest.approx(1, abs=close)
    projections = _units(gradients) @ (weights @ gradients)
    assert np.ptp(projections) < close * np.abs(weights * _lengths(gradients)).sum()
    apart = gradients[0] - gradients[1:]
    turned = _units(gradients)[0] - _units(gradients)[1:]
    others = gradients[0] @ turned.T @ np.linalg.inv(apart @ turned.T)
    np.testing.assert_allclose(weights, [1 - others.sum(), *others], rtol=close, atol=close * np.abs(weights).max())


def test_imtl_g_of_dependent_gradients_has_the_least_squared_error():
  tried = 0
  for gradients in _inputs((3, 2), seeds=8, magnitudes=(0, 1)):
    if _clear(gradients, 1e-3):
      units, weights = _units(gradients), _call('imtl_g', gradients)
      expected = np.linalg.lstsq(units, np.ones(3), rcond=None)[0]
      turned = np.sign((np.linalg.pinv(units.T) @ expected / _lengths(gradients)).sum())
      np.testing.assert_allclose(_units((weights @ gradients)[None])[0], turned * _units(expected[None])[0], atol=1e-8)
      tried += 1
  assert tried > 4


@pytest.mark.parametrize(('shape', 'dtype'), BOTH)
def test_nash_gives_the_bargaining_solution(shape, dtype):
  tried = 0
  for gradients in _inputs(shape, dtype):
    weights = _call('nash', gradients, dtype=dtype)
    if not _clear(gradients, 1e-7):
      assert not weights.any()
      continue
    assert (weights > 0).all()
    gains = gradients @ (weights @ gradients)
    np.testing.assert_allclose(gains * weights, 1, atol=1e-8 if dtype == np.float64 else 2e-3)
    tried += 1
  assert tried > 2


def test_nash_is_found_where_gradients_are_almost_stationary():
  for angle in (1e-1, 1e-3, 1e-5):
    gradients = np.array([[1.0, angle], [-1.0, angle], [0.1, 1.0]])
    weights = _call('nash', gradients)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights * (gradients @ (weights @ gradients)), 1, rtol=1e-3)


def test_no_step_of_its_length_has_a_larger_product_of_gains_than_nashs():
  random = np.random.default_rng(0)
  for gradients in _inputs((5, 12), magnitudes=(0, 2)):
    combined = _update('nash', gradients)
    assert np.linalg.norm(combined) == pytest.approx(math.sqrt(5))
    others = combined + random.normal(size=(2000, 12)) * 10 ** random.uniform(-3, 0, size=(2000, 1))
    gains = np.vstack([combined, _units(others) * math.sqrt(5)]) @ _units(gradients).T
    logs = np.log(np.maximum(gains, 1e-300)).sum(axis=1)
    assert logs[1:].max() < logs[0]


@pytest.mark.parametrize(('shape', 'dtype'), BOTH)
def test_aligned_mtl_descends_the_gradients_with_equal_singular_values(shape, dtype):
  for number, gradients in enumerate(_inputs(shape, dtype, magnitudes=(0, 1), margin=0.2)):
    left, sigma, right = np.linalg.svd(gradients, full_matrices=False)
    aligned = sigma.min() * left @ right
    close = dict(atol=sigma.min() * (1e-9 if dtype == np.float64 else 1e-4))
    shares = np.random.default_rng(number).dirichlet(np.ones(len(gradients)))
    if sigma.min() < 0.05 * sigma.max() and dtype == np.float32:
      continue
    combined = _call('aligned_mtl', gradients, shares, dtype=dtype) @ gradients
    np.testing.assert_allclose(combined, shares @ aligned, **close)
    np.testing.assert_allclose(_update('aligned_mtl', gradients, dtype), aligned.mean(axis=0), **close)


@PRECISIONS
def test_aligned_mtl_has_the_digits_of_singular_values_and_not_of_their_squares(dtype):
  lengths = np.array([1.0, 2e-5, 0.3]) if dtype == np.float32 else np.array([1.0, 2e-12, 0.3])
  rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
  weights = _call('aligned_mtl', np.diag(lengths) @ rotation, dtype=dtype)
  np.testing.assert_allclose(weights, lengths.min() / lengths / 3, rtol=1e-3)


# ------------------------------------------------------------ inputs without a conflict, or without a solution
A, B = np.array([1.0, 0.25]), np.array([-0.5, 1.0])
STATIONARY = {
  'opposed': np.array([A, -A, B]),
  'opposed, of other length': np.array([A, -(2.0**20) * A, B]),
  'opposed, beside a short one': np.array([2.0**20 * A, -(2.0**20) * A, B]),
  'two opposed and nothing': np.array([A, 0 * A, -A]),
  'surrounding zero': np.array([[1.0, 0], [-0.5, 0.75], [-0.5, -0.75]]),
}
CALM = {
  'two alike': np.array([A, A, B]),
  'parallel': np.array([A, 2.0**20 * A, B]),
  'all alike': np.array([A, A, A]),
  'all parallel': np.array([A, 1e-6 * A, 1e6 * A]),
  'dependent': np.array([A, B, A + B]),
  'orthogonal': np.array([[1.0, 0], [0, 1e6], [1e-6, 0]]),
}
ODD = {**STATIONARY, **CALM, 'zero': np.zeros((3, 2)), 'one': np.array([0 * A, B, 0 * A])}


@PRECISIONS
@pytest.mark.parametrize('case', ODD)
def test_nothing_is_infinite(case, dtype):
  for name in (*WEIGHTS, *UPDATES):
    assert np.isfinite(_update(name, ODD[case], dtype)).all(), name
    if name in WEIGHTS:
      assert np.isfinite(_call(name, ODD[case], dtype=dtype)).all(), name


@PRECISIONS
@pytest.mark.parametrize('case', STATIONARY)
def test_stationary_gradients_give_no_update(case, dtype):
  gradients = STATIONARY[case]
  assert _call('stationary', gradients, dtype=dtype)
  for name in ('nash', 'imtl_g'):
    assert not _call(name, gradients, dtype=dtype).any(), name
  weights = _call('mgda', gradients, dtype=dtype)
  assert (weights >= 0).all()
  assert weights.sum() == pytest.approx(1, rel=1e-6)
  assert np.linalg.norm(weights @ gradients) < (1e-14 if dtype == np.float64 else 3e-6) * (
    weights @ _lengths(gradients)
  )
  assert not _update('mgda', gradients, dtype).any()
  assert not _update('cagrad', gradients, dtype, c=1.0).any()


@PRECISIONS
@pytest.mark.parametrize('case', [*CALM, 'one'])
def test_gradients_without_such_an_average_are_not_stationary(case, dtype):
  assert not _call('stationary', ODD[case], dtype=dtype)
  assert not _call('stationary', ODD[case], _update('mgda', ODD[case], dtype), dtype=dtype)
  assert _call('stationary', ODD[case], np.zeros(2), dtype=dtype)


def test_stationary_is_what_rounding_cannot_tell_from_it():
  bent = lambda angle: np.array([[math.cos(angle), math.sin(angle)], [-math.cos(angle), math.sin(angle)]])
  for dtype, flagged, clear in ((np.float64, 1e-9, 1e-6), (np.float32, 1e-4, 1e-2)):
    assert _call('stationary', bent(flagged), dtype=dtype)
    assert not _call('stationary', bent(clear), dtype=dtype)


@PRECISIONS
@pytest.mark.parametrize('case', CALM)
def test_dependent_gradients_have_solutions(case, dtype):
  gradients = CALM[case]
  lengths, units = _lengths(gradients), _units(gradients)
  close = 1e-9 if dtype == np.float64 else 1e-3
  weights = _call('nash', gradients, dtype=dtype)
  np.testing.assert_allclose(weights * (gradients @ (weights @ gradients)), 1, atol=close)
  weights = _call('imtl_g', gradients, dtype=dtype)
  assert weights.sum() == pytest.approx(1, rel=1e-5)
  if case not in ('dependent', 'orthogonal'):
    projections = units @ (weights @ gradients)
    np.testing.assert_allclose(projections, projections[0], rtol=close)
  shortest, expected = _call('mgda', gradients, dtype=dtype) @ gradients, _hull(gradients) @ gradients
  np.testing.assert_allclose(shortest, expected, atol=close * np.linalg.norm(expected))
  _certify(gradients, _update('cagrad', gradients, dtype), 0.5, close)
  if lengths.max() < 100:
    left, sigma, right = np.linalg.svd(gradients, full_matrices=False)
    kept = sigma > 1e-9
    aligned = sigma[kept].min() * left[:, kept] @ right[kept]
    np.testing.assert_allclose(_update('aligned_mtl', gradients, dtype), aligned.mean(axis=0), atol=close)
  orders = _orders(3)
  expected = _pcgrad(gradients, orders).sum(axis=0)
  np.testing.assert_allclose(_call('pcgrad', gradients, orders, dtype=dtype), expected, atol=close * lengths.max())


@PRECISIONS
def test_opposed_gradients_lose_all_to_surgery(dtype):
  for gradients in (np.array([A, -A]), np.array([A, -3 * A])):
    assert not _update('pcgrad', gradients, dtype).any()
    assert not _update('gradvac', gradients, dtype).any()


@PRECISIONS
def test_no_gradients_give_no_update(dtype):
  nothing = np.zeros((3, 2))
  assert _call('stationary', nothing, dtype=dtype)
  for name in (*WEIGHTS, *UPDATES):
    assert not _update(name, nothing, dtype).any(), name
    if name in WEIGHTS:
      assert not _call(name, nothing, dtype=dtype).any(), name
  targets = np.full((3, 3), 0.25)
  np.testing.assert_array_equal(_call('gradvac', nothing, targets, _orders(3), 0.5, dtype=dtype)[1], targets)


@PRECISIONS
def test_a_task_without_gradient_is_as_if_it_was_not_there(dtype):
  wider = np.array([[1.0, 0.25], [0, 0], [-4.0, 3.0]])
  gradients = np.hstack([wider[::2], np.zeros((2, 4))])  # in 6 coordinates, for which there are programs
  orders, wider_orders = np.array([[1, 0], [0, 1]]), np.array([[1, 2, 0], [0, 1, 2], [0, 1, 2]])
  close = dict(rtol=1e-9 if dtype == np.float64 else 1e-5, atol=1e-14)
  for name in WEIGHTS:
    weights = _call(name, wider, dtype=dtype)
    np.testing.assert_allclose(weights[::2], _call(name, gradients, dtype=dtype), err_msg=name, **close)
    assert weights[1] == 0
  expected = _call('aligned_mtl', gradients, np.array([0.2, 0.7]), dtype=dtype)
  np.testing.assert_allclose(
    _call('aligned_mtl', wider, np.array([0.2, 0.1, 0.7]), dtype=dtype), np.insert(expected, 1, 0), **close
  )
  np.testing.assert_allclose(_update('cagrad', wider, dtype), _update('cagrad', gradients, dtype)[:2], **close)
  expected = _call('pcgrad', gradients, orders, dtype=dtype)
  np.testing.assert_allclose(_call('pcgrad', wider, wider_orders, dtype=dtype), expected[:2], **close)
  targets = np.array([[0, 0.5], [0.25, 0]])
  expected, expected_targets = _call('gradvac', gradients, targets, orders, 0.5, dtype=dtype)
  targets = np.insert(np.insert(targets, 1, 0.125, axis=0), 1, 0.125, axis=1)
  combined, targets = _call('gradvac', wider, targets, wider_orders, 0.5, dtype=dtype)
  np.testing.assert_allclose(combined, expected[:2], **close)
  np.testing.assert_allclose(targets[::2, ::2], expected_targets, **close)
  assert (targets[1] == 0.125).all()
  assert (targets[:, 1] == 0.125).all()
  assert not _call('stationary', wider, dtype=dtype)
  for gradients in _inputs((5, 12), dtype, seeds=2):
    gradients[1] = 0
    for name in WEIGHTS:
      assert _call(name, gradients, dtype=dtype)[1] == 0, name


@pytest.mark.parametrize('size', [1e-8, 1.0, 1e8])
def test_one_task_keeps_its_own_gradient(size, dtype=np.float32):
  gradients = np.array([[0.5, -0.25, 1.0]]) * size
  factors = {**dict.fromkeys((*WEIGHTS, *UPDATES), 1.0), 'nash': 1 / _lengths(gradients)[0], 'cagrad': 1.5}
  for name, factor in factors.items():
    np.testing.assert_allclose(_update(name, gradients, dtype), factor * gradients[0], rtol=1e-6, err_msg=name)
  assert not _call('stationary', gradients, dtype=dtype)


# ------------------------------------------------------------ scale, precision, programs
@pytest.mark.parametrize('name', [*WEIGHTS, 'cagrad', 'pcgrad'])
def test_the_scale_of_all_gradients_changes_nothing_but_the_scale(name):
  """By powers of 2 not even rounding, where squares of float32 over- and underflow."""
  gradients = next(_inputs((5, 12), np.float32, magnitudes=(1,)))
  scales = (2.0**-80, 1.0, 2.0**80)
  if name in WEIGHTS:
    power = -1 if name == 'nash' else 0
    results = [_call(name, scale * gradients, dtype=np.float32) * scale**-power for scale in scales]
  else:
    results = [_update(name, scale * gradients, np.float32) / scale for scale in scales]
  assert results[1].any()
  np.testing.assert_array_equal(results[0], results[1])
  np.testing.assert_array_equal(results[2], results[1])


@pytest.mark.parametrize('name', [*WEIGHTS, *UPDATES])
def test_gradients_that_are_not_finite_give_no_finite_update(name):
  for bad in (np.nan, np.inf):
    gradients = next(_inputs((3, 2), magnitudes=(0,))).copy()
    gradients[1, 0] = bad
    assert not np.isfinite(_update(name, gradients)).all()


def test_functions_can_be_called_without_compiling():
  gradients = next(_inputs((3, 2), np.float32, magnitudes=(1,)))
  with jax.enable_x64(False):
    plain = balancing.aligned_mtl(jnp.asarray(gradients, jnp.float32))
  np.testing.assert_allclose(plain, _call('aligned_mtl', gradients, dtype=np.float32), rtol=1e-3, atol=1e-5)
