"""Distillation losses against their papers' formulas, as loops in float64, and against what the papers claim."""

import functools
import itertools
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from transferlab.objectives import distillation

pytestmark = pytest.mark.usefixtures('quick_compilation', 'float64')


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


# ------------------------------------------------------------ the papers' formulas
_dot = lambda x, y: sum(a * b for a, b in zip(x, y))
_unit = lambda x: [a / math.hypot(*x) for a in x]
_divergence = lambda p, q: sum(a * math.log(a / b) for a, b in zip(p, q))
_huber = lambda x, y: (x - y) ** 2 / 2 if abs(x - y) <= 1 else abs(x - y) - 0.5


def _softmax(z, temperature):
  powers = [math.exp(a / temperature) for a in z]
  return [a / sum(powers) for a in powers]


def kd(student, teacher, temperature=4.0):
  q, p = ([_softmax(z, temperature) for z in logits] for logits in (student, teacher))
  return [temperature**2 * d for d in map(_divergence, p, q)]


def dkd(student, teacher, labels, alpha=1.0, beta=8.0, temperature=4.0):
  each = []
  for z, v, label in zip(student, teacher, labels):
    p, q = _softmax(v, temperature), _softmax(z, temperature)
    tckd = _divergence([p[label], 1 - p[label]], [q[label], 1 - q[label]])
    p_others, q_others = (_softmax([a for c, a in enumerate(w) if c != label], temperature) for w in (v, z))
    each.append(temperature**2 * (alpha * tckd + beta * _divergence(p_others, q_others)))
  return each


def dist(student, teacher, beta=2.0, gamma=2.0, temperature=1.0):
  q, p = ([_softmax(z, temperature) for z in logits] for logits in (student, teacher))
  inter = statistics.fmean(1 - statistics.correlation(a, b) for a, b in zip(q, p))
  intra = statistics.fmean(1 - statistics.correlation(a, b) for a, b in zip(zip(*q), zip(*p)))
  return temperature**2 * (beta * inter + gamma * intra)


def hint(student, teacher):
  return [sum((s[i] - t[i]) ** 2 for i in np.ndindex(s.shape)) / 2 for s, t in zip(student, teacher)]


def attention_transfer(student, teacher, power=2.0, squared=False):
  attention = lambda f: _unit([sum(abs(a) ** power for a in f[place]) for place in np.ndindex(f.shape[:-1])])
  maps = [(attention(s), attention(t)) for s, t in zip(student, teacher)]
  if squared:
    return [statistics.fmean((a - b) ** 2 for a, b in zip(q_s, q_t)) for q_s, q_t in maps]
  return [math.dist(q_s, q_t) / 2 for q_s, q_t in maps]


def nst(student, teacher):
  samples = lambda f: [_unit([f[place][c] for place in np.ndindex(f.shape[:-1])]) for c in range(f.shape[-1])]
  kernel = lambda x, y: statistics.fmean(_dot(a, b) ** 2 for a in x for b in y)
  pairs = [(samples(s), samples(t)) for s, t in zip(student, teacher)]
  return [kernel(t, t) + kernel(s, s) - 2 * kernel(t, s) for s, t in pairs]


def variational(mean, teacher, variance):
  """Without the ½ log 2π of every number."""
  logs = [stats.norm.logpdf(t, m, np.sqrt(variance)) for m, t in zip(mean, teacher)]
  return [-sum(log.flat) - log.size * math.log(2 * math.pi) / 2 for log in logs]


def similarity_preserving(student, teacher):
  grams = [[_unit([_dot(x.flat, y.flat) for y in features]) for x in features] for features in (student, teacher)]
  return sum((a - b) ** 2 for s, t in zip(*grams) for a, b in zip(s, t)) / len(student) ** 2


def relational(student, teacher, distance_weight=25.0, angle_weight=50.0):
  def distances(x):
    pairs = [math.dist(x[i], x[j]) for i, j in itertools.permutations(range(len(x)), 2)]
    return [d / statistics.fmean(pairs) for d in pairs]

  def angles(x):
    triplets = itertools.permutations(range(len(x)), 3)
    return [_dot(_unit(x[i] - x[j]), _unit(x[k] - x[j])) for i, j, k in triplets]

  s, t = ([v.ravel() for v in features] for features in (student, teacher))
  loss_D = statistics.fmean(map(_huber, distances(s), distances(t)))
  loss_A = statistics.fmean(map(_huber, angles(s), angles(t)))
  return distance_weight * loss_D + angle_weight * loss_A


def pkt(student, teacher, eps=1e-7):
  def neighbours(x, i):
    kernel = {j: (_dot(_unit(list(x[i].flat)), _unit(list(x[j].flat))) + 1) / 2 for j in range(len(x)) if j != i}
    return {j: k / (sum(kernel.values()) + eps) for j, k in kernel.items()}

  pairs = [(neighbours(teacher, i), neighbours(student, i)) for i in range(len(student))]
  return statistics.fmean(sum(p[j] * math.log((p[j] + eps) / (q[j] + eps)) for j in p) for p, q in pairs)


def contrastive(positive, negatives, examples, log_normalizer=0.0, drawn=None):
  drawn = np.ones(negatives.shape, bool) if drawn is None else np.array(drawn)
  each = []
  for own, others, counts in zip(positive, negatives, drawn):
    ratio = counts.sum() / examples
    own, *others = (math.exp(s) / math.exp(log_normalizer) for s in (own, *others[counts]))
    each.append(-math.log(own / (own + ratio)) - sum(math.log(ratio / (s + ratio)) for s in others))
  return each


PER_EXAMPLE = (kd, dkd, hint, attention_transfer, nst, variational, contrastive)
COUPLED = (dist, similarity_preserving, relational, pkt)
FORMULAS = {formula.__name__: formula for formula in PER_EXAMPLE + COUPLED}
DRAWN = ((True, True, False, True), (False, False, True, False), (True,) * 4, (False,) * 4)
CASES = [
  ('kd', (5, 7), (5, 7), {}),
  ('kd', (1, 2), (1, 2), {'temperature': 1.0}),
  ('kd', (4, 10), (4, 10), {'temperature': 20.0}),
  ('dkd', (5, 4), (5, 4), {'labels': (0, 3, 1, 2, 0)}),
  ('dkd', (3, 2), (3, 2), {'labels': (1, 0, 1), 'temperature': 1.0}),
  ('dkd', (4, 6), (4, 6), {'labels': (5, 0, 2, 2), 'alpha': 0.3, 'beta': 2.0, 'temperature': 2.5}),
  ('dist', (5, 4), (5, 4), {}),
  ('dist', (3, 6), (3, 6), {'beta': 0.5, 'gamma': 1.5, 'temperature': 4.0}),
  ('hint', (3, 2, 3, 2), (3, 2, 3, 2), {}),
  ('attention_transfer', (3, 2, 3, 4), (3, 2, 3, 2), {}),
  ('attention_transfer', (2, 5, 2), (2, 5, 3), {'power': 1.0}),
  ('attention_transfer', (2, 2, 2, 2), (2, 2, 2, 1), {'power': 4.0, 'squared': True}),
  ('nst', (3, 2, 2, 3), (3, 2, 2, 5), {}),
  ('nst', (2, 5, 1), (2, 5, 2), {}),
  ('variational', (3, 2, 1, 3), (3, 2, 1, 3), {'variance': (0.5, 1.0, 3.0)}),
  ('similarity_preserving', (5, 3), (5, 6), {}),
  ('similarity_preserving', (5, 2, 1, 2), (5, 3), {}),
  ('relational', (5, 3), (5, 2), {}),
  ('relational', (4, 2, 2), (4, 3), {'distance_weight': 3.0, 'angle_weight': 0.0}),
  ('relational', (3, 2), (3, 2, 3), {'distance_weight': 0.0, 'angle_weight': 2.0}),
  ('pkt', (5, 3), (5, 2), {}),
  ('pkt', (4, 2, 2), (4, 3), {'eps': 0.01}),
  ('pkt', (3, 4), (3, 4), {'eps': 1e-100}),  # as good as none
  ('contrastive', (3,), (3, 6), {'examples': 100}),
  ('contrastive', (4,), (4, 4), {'examples': 20.0, 'log_normalizer': 0.7, 'drawn': DRAWN}),
]
FIRST = {case[0]: case for case in reversed(CASES)}  # the first of each


def _each_of(*formulas):
  cases = [FIRST[formula.__name__] for formula in formulas]
  return pytest.mark.parametrize(('name', 'shape', 'shape_t', 'options'), cases, ids=[case[0] for case in cases])


def _inputs(*shapes):
  random = np.random.default_rng(0)
  return [random.normal(size=shape) for shape in shapes]


def _results(name, student, teacher, dtype=np.float64, **options):
  """The loss, and the gradients with respect to both of its sum over examples."""
  (_, value), gradients = _compiled(name, tuple(options.items()))(*(jnp.asarray(v, dtype) for v in (student, teacher)))
  assert value.dtype == dtype
  return np.asarray(value), *map(np.asarray, gradients)


@functools.cache
def _compiled(name, options):
  def loss(s, t):
    arrays = {key: jnp.array(v) if isinstance(v, tuple) else v for key, v in options}
    value = getattr(distillation, name)(s, t, **arrays)
    return value.sum(), value

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def _slopes(function, x, step=1e-5):
  """Central differences of the sum of what the function of x gives."""
  changes = step * np.eye(x.size).reshape(-1, *x.shape)
  differences = [np.sum(function(x + change)) - np.sum(function(x - change)) for change in changes]
  return np.reshape(differences, x.shape) / (2 * step)


# ------------------------------------------------------------ values and gradients
@pytest.mark.parametrize(('name', 'shape', 'shape_t', 'options'), CASES)
def test_value_and_gradients_are_those_of_the_papers_formula(name, shape, shape_t, options):
  student, teacher = _inputs(shape, shape_t)
  formula = functools.partial(FORMULAS[name], **options)
  value, gradient, gradient_t = _results(name, student, teacher, **options)
  np.testing.assert_allclose(value, formula(student, teacher), rtol=1e-10, atol=1e-13)
  close = dict(rtol=1e-6, atol=1e-8)
  np.testing.assert_allclose(gradient, _slopes(lambda s: formula(s, teacher), student), **close)
  np.testing.assert_allclose(gradient_t, _slopes(lambda t: formula(student, t), teacher), **close)


def _with_torch(torch, name, s, t, variance=None, **options):
  """The sum of the loss over examples, from what PyTorch has."""
  F = torch.nn.functional
  unit = lambda x: F.normalize(x, dim=-1)
  if name == 'kd':
    return 16 * F.kl_div((s / 4).log_softmax(1), (t / 4).softmax(1), reduction='sum')
  if name == 'nst':
    s, t = (unit(x.flatten(1, -2).mT) for x in (s, t))
    kernel = lambda x, y: (x @ y.mT).square().mean((1, 2)).sum()
    return kernel(s, s) + kernel(t, t) - 2 * kernel(s, t)
  if name == 'variational':
    return F.gaussian_nll_loss(s, t, s.new_tensor(variance).expand_as(s), reduction='sum')
  if name == 'similarity_preserving':
    return F.mse_loss(unit(s @ s.T), unit(t @ t.T))
  if name == 'relational':
    distances = [torch.pdist(x) / torch.pdist(x).mean() for x in (s, t)]
    i, j, k = torch.tensor(list(itertools.permutations(range(len(s)), 3))).T
    angles = [F.cosine_similarity(x[i] - x[j], x[k] - x[j]) for x in (s, t)]
    return 25 * F.huber_loss(*distances) + 50 * F.huber_loss(*angles)
  scores = torch.cat([s[:, None], t], dim=1) - math.log(t.shape[1] / options['examples'])
  truth = torch.eye(scores.shape[1], dtype=scores.dtype)[:1].expand_as(scores)
  return F.binary_cross_entropy_with_logits(scores, truth, reduction='sum')


@_each_of(kd, nst, variational, similarity_preserving, relational, contrastive)
def test_value_and_gradients_agree_with_torch(name, shape, shape_t, options):
  torch = pytest.importorskip('torch')
  inputs = _inputs(shape, shape_t)
  tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
  expected = _with_torch(torch, name, *tensors, **options)
  expected.backward()
  value, *gradients = _results(name, *inputs, **options)
  assert value.sum() == pytest.approx(expected.item(), rel=1e-10)
  for gradient, tensor in zip(gradients, tensors):
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-8, atol=1e-12)


@_each_of(*PER_EXAMPLE, *COUPLED)
def test_float32_gives_what_float64_gives(name, shape, shape_t, options):
  student, teacher = _inputs(shape, shape_t)
  with jax.enable_x64(False):
    value, *gradients = _results(name, student, teacher, np.float32, **options)
  expected, *expected_gradients = _results(name, student, teacher, **options)
  np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
  for gradient, exact in zip(gradients, expected_gradients):
    np.testing.assert_allclose(gradient, exact, rtol=1e-3, atol=1e-5 * np.abs(exact).max())


# ------------------------------------------------------------ a batch and its examples
@_each_of(*PER_EXAMPLE)
def test_every_example_has_its_own_value(name, shape, shape_t, options):
  student, teacher = _inputs(shape, shape_t)
  before, *_ = _results(name, student, teacher, **options)
  student[0], teacher[0] = 2 * student[0] + 1, -teacher[0]
  after, *_ = _results(name, student, teacher, **options)
  assert before.shape == after.shape == shape[:1]
  np.testing.assert_array_equal(after[1:], before[1:])
  assert after[0] != before[0]


@_each_of(*COUPLED)
@pytest.mark.parametrize('padding', [0.0, 1.0, 1e3])
def test_padding_and_the_order_of_the_examples_change_nothing(name, shape, shape_t, options, padding):
  student, teacher = _inputs(shape, shape_t)
  value, *gradients = _results(name, student, teacher, **options)
  places, padded = [5, 0, 6, 2, 3], [padding * x for x in _inputs((8, *shape[1:]), (8, *shape_t[1:]))]
  padded[0][places], padded[1][places] = student, teacher
  mask = tuple(place in places for place in range(8))
  padded_value, *padded_gradients = _results(name, *padded, mask=mask, **options)
  assert value.shape == padded_value.shape == ()
  np.testing.assert_allclose(padded_value, value, rtol=1e-12)
  for gradient, expected in zip(padded_gradients, gradients):
    np.testing.assert_allclose(gradient[places], expected, rtol=1e-9, atol=1e-12)
    assert not np.delete(gradient, places, axis=0).any()


# ------------------------------------------------------------ where nothing is left to learn
@_each_of(kd, dkd, dist, hint, attention_transfer, nst, similarity_preserving, relational, pkt)
@pytest.mark.parametrize('dtype', [np.float64, np.float32])
def test_value_and_gradients_are_zero_where_student_equals_teacher(name, shape, shape_t, options, dtype):
  (same,) = _inputs(shape)
  with jax.enable_x64(dtype == np.float64):
    value, *gradients = _results(name, same, same, dtype, **options)
  tiny = 1e-12 if dtype == np.float64 else 1e-5
  np.testing.assert_allclose(value, 0, atol=tiny)
  # The ε of pkt stands in p and q, so that their gradients cancel only up to it.
  np.testing.assert_allclose(np.concatenate(gradients), 0, atol=max(1e-6, tiny) if name == 'pkt' else tiny)


@_each_of(hint, attention_transfer, nst, *COUPLED)
@pytest.mark.parametrize('both', [True, False])
@pytest.mark.parametrize('number', [0.0, 0.3])
def test_examples_that_are_all_equal_give_finite_values_and_gradients(name, shape, shape_t, options, both, number):
  with jax.enable_x64(False):
    teacher = np.full(shape_t, number) if both else _inputs(shape_t)[0]
    results = _results(name, np.full(shape, number), teacher, np.float32, **options)
  assert all(np.isfinite(result).all() for result in results)


# ------------------------------------------------------------ what the papers claim
INVARIANCES = {
  'a factor': ([attention_transfer, similarity_preserving, relational, pkt], lambda f: 3.7 * f),
  'a factor of each channel': ([nst], lambda f: f * [2.0, -0.5, 3.0, 1.0]),
  'a factor of each example': ([attention_transfer, pkt], lambda f: f * np.arange(1, 6).reshape(5, 1, 1, 1)),
  'another order of channels': ([attention_transfer, nst], lambda f: f[..., [2, 0, 3, 1]]),
  'a rotation': ([similarity_preserving, relational, pkt], lambda f: f @ np.linalg.qr(_inputs((4, 4))[0])[0]),
  'a translation': ([relational], lambda f: f + [1.0, -2.0, 0.5, 3.0]),
}


@pytest.mark.parametrize('change', INVARIANCES)
def test_the_losses_that_should_are_blind_to(change):
  formulas, changed = INVARIANCES[change]
  student, teacher = _inputs((5, 2, 2, 4), (5, 2, 2, 4))
  for name in (formula.__name__ for formula in formulas):
    expected, *_ = _results(name, student, teacher)
    assert (expected > 1e-3).all()
    for s, t in [(changed(student), teacher), (student, changed(teacher))]:
      np.testing.assert_allclose(_results(name, s, t)[0], expected, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0, 50.0])
def test_kd_is_the_relative_entropy_times_the_temperature_squared(temperature):
  student, teacher = _inputs((6, 5), (6, 5))
  p, q = special.softmax(teacher / temperature, axis=1), special.softmax(student / temperature, axis=1)
  value, gradient, _ = _results('kd', student, teacher, temperature=temperature)
  np.testing.assert_allclose(value, temperature**2 * special.rel_entr(p, q).sum(1), rtol=1e-10)
  np.testing.assert_allclose(gradient, temperature * (q - p), rtol=1e-9, atol=1e-13)


def test_the_gradient_of_kd_tends_to_the_difference_of_the_logits_over_their_number():
  """Hinton et al. 2015, eq. 4, times T²: what is left falls like 1 / T."""
  student, teacher = (z - z.mean(1, keepdims=True) for z in _inputs((6, 5), (6, 5)))
  gradients = [_results('kd', student, teacher, temperature=t)[1] for t in (1e2, 1e3, 1e4)]
  left = [np.abs(gradient - (student - teacher) / 5).max() for gradient in gradients]
  np.testing.assert_allclose([left[0] / left[1], left[1] / left[2]], 10, rtol=0.05)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_dkd_is_kd_where_beta_is_the_teachers_doubt(temperature):
  """Zhao et al. 2022, eq. 6."""
  student, teacher = map(jnp.asarray, _inputs((6, 5), (6, 5)))
  labels = jnp.array([0, 4, 2, 2, 1, 3])
  doubt = 1 - special.softmax(teacher / temperature, axis=1)[np.arange(6), labels]

  mine = functools.partial(distillation.dkd, alpha=1.0, temperature=temperature)
  each = lambda s, t, label, beta: mine(s[None], t[None], label[None], beta=beta)[0]
  value, gradient = jax.jit(jax.vmap(jax.value_and_grad(each)))(student, teacher, labels, doubt)
  expected, expected_gradient, _ = _results('kd', student, teacher, temperature=temperature)
  np.testing.assert_allclose(value, expected, rtol=1e-10)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(('shape', 'eps'), [((4, 2), 0.0), ((3, 7), 0.01)])
def test_standardized_logits_have_mean_zero_and_the_standard_deviation_of_a_population(shape, eps):
  logits, weights = _inputs(shape, shape)
  formula = lambda x: [[(a - statistics.fmean(z)) / (statistics.pstdev(z) + eps) for a in z] for z in x]
  mine, pull = jax.vjp(jax.jit(lambda z: distillation.standardize(z, eps=eps)), jnp.asarray(logits))
  np.testing.assert_allclose(mine, formula(logits), rtol=1e-10)
  (gradient,) = pull(jnp.asarray(weights))
  np.testing.assert_allclose(gradient, _slopes(lambda z: weights * formula(z), logits), rtol=1e-6, atol=1e-8)


def test_standardized_logits_forget_shift_and_scale_and_so_does_kd_of_them():
  student, teacher = _inputs((6, 5), (6, 5))
  factor, shift = np.linspace(0.5, 30, 6)[:, None], np.linspace(-9, 9, 6)[:, None]
  standardize = jax.jit(distillation.standardize)
  standard, changed = standardize(jnp.asarray(teacher)), jnp.asarray(factor * teacher + shift)
  np.testing.assert_allclose(standardize(changed), standard, rtol=1e-6)
  loss = jax.jit(jax.value_and_grad(lambda z: distillation.kd(standardize(z), standard, temperature=2.0).sum()))
  value, gradient = loss(changed)
  assert float(value) == pytest.approx(0, abs=1e-10)
  np.testing.assert_allclose(gradient, 0, atol=1e-6)
  assert float(loss(jnp.asarray(student))[0]) > 0.1
  assert np.isfinite(loss(jnp.full((6, 5), 0.3))[1]).all()


def test_variational_is_least_at_the_teachers_features_and_the_variance_of_what_is_left():
  mean, teacher = _inputs((4, 2, 3), (4, 2, 3))
  left = np.square(teacher - mean).mean((0, 1))
  least, gradient, _ = _results('variational', teacher, teacher, variance=tuple(left))
  assert not gradient.any()
  assert (_results('variational', mean, teacher, variance=tuple(left))[0] > least).all()
  slope = jax.jit(jax.grad(lambda v: distillation.variational(jnp.asarray(mean), jnp.asarray(teacher), v).sum()))
  np.testing.assert_allclose(slope(jnp.asarray(left)), 0, atol=1e-12)
  expected = _slopes(functools.partial(variational, mean, teacher), 2 * left)
  np.testing.assert_allclose(slope(jnp.asarray(2 * left)), expected, rtol=1e-6)


@pytest.mark.parametrize('dtype', [np.float64, np.float32])
def test_extreme_scores_give_finite_values_and_gradients(dtype):
  positive, negatives = np.array([500.0, 500, -500, -500]), np.array([[500.0, 1], [-500, 1], [500, 1], [-500, 1]])
  with jax.enable_x64(dtype == np.float64):
    value, *gradients = _results('contrastive', positive, negatives, dtype, examples=50)
  np.testing.assert_allclose(value, contrastive(positive, negatives, 50), rtol=1e-10 if dtype == np.float64 else 1e-5)
  assert all((np.abs(gradient) <= 1).all() for gradient in gradients)
