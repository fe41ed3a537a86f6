"""DELTA, batch spectral shrinkage, EWC and learning without forgetting against their papers' formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transferlab import config
from transferlab.errors import UserError
from transferlab.objectives import objective as objectives
from transferlab.objectives import staying_close
from transferlab.objectives.importance import FisherChoice
from transferlab.objectives.objective import SourceHead, TermSpec, View

pytestmark = pytest.mark.usefixtures('quick_compilation')
RANDOM = np.random.default_rng(0)


def _view(outputs=None, mask=None, **more):
  mask = jnp.ones(4, bool) if mask is None else jnp.asarray(mask)
  fields = {'outputs': outputs or {}, 'output': jnp.zeros((4, 3)), 'labels': jnp.zeros(4, jnp.int32)}
  fields |= {'params': {}, 'source': None, 'mask': mask, 'key': None, 'progress': 0.0, 'total': lambda v: v}
  return View(**{**fields, **more})


def _float32(tree):
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


# ----------------------------------------------------------------------------------------------------------- DELTA
MAPS = {'block1': RANDOM.normal(size=(4, 3, 5, 6)), 'pool': RANDOM.normal(size=(4, 6)), 'head': np.zeros((4, 2))}
THEIRS = {'block1': RANDOM.normal(size=(4, 3, 5, 6)), 'pool': RANDOM.normal(size=(4, 6)), 'head': np.zeros((4, 9))}
PARAMS = {'body': {'w': RANDOM.normal(size=(3, 2)), 'b': RANDOM.normal(size=2)}, 'head': {'w': RANDOM.normal(size=5)}}
START = {'body': {'w': RANDOM.normal(size=(3, 2)), 'b': None}, 'head': {'w': None}}
ATTENTION = {'block1': [0.1, 0.3, 0.05, 0.15, 0.25, 0.15]}


@pytest.mark.parametrize('attention', [{}, ATTENTION])
def test_delta_is_the_attended_distance_of_feature_maps_and_the_square_of_what_is_new(attention):
  """Ω' = Σ_j W_j ‖FM_j(w) − FM_j(w⁰)‖², its gradient 2 W_j (FM_j(w) − FM_j(w⁰)); Ω'' = ‖w̄‖², gradient 2 w̄."""

  def loss(outputs, params):
    options = {'stages': ['block1', 'pool'], 'attention': attention, 'beta': 0.3}
    each = staying_close.delta(outputs, _float32(THEIRS), params, _float32(START), **options)
    return each.sum(), each

  (_, each), (maps, weights) = jax.value_and_grad(loss, (0, 1), has_aux=True)(_float32(MAPS), _float32(PARAMS))
  expected = np.full(4, 0.3 * ((PARAMS['body']['b'] ** 2).sum() + (PARAMS['head']['w'] ** 2).sum()))
  for stage in ('block1', 'pool'):
    w = np.array(attention.get(stage, np.full(6, 1 / 6)))
    for example in range(4):
      for channel in range(6):
        difference = (MAPS[stage] - THEIRS[stage])[example, ..., channel]
        expected[example] += w[channel] * (difference**2).sum()
    np.testing.assert_allclose(maps[stage], 2 * w * (MAPS[stage] - THEIRS[stage]), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(each, expected, rtol=1e-5)
  assert not np.asarray(maps['head']).any()
  # The examples are four, and each holds Ω'' whole, so that their mean does.
  np.testing.assert_allclose(weights['body']['b'], 4 * 0.3 * 2 * PARAMS['body']['b'], rtol=1e-5)
  np.testing.assert_allclose(weights['head']['w'], 4 * 0.3 * 2 * PARAMS['head']['w'], rtol=1e-5)
  assert not np.asarray(weights['body']['w']).any()


def test_delta_refuses_what_cannot_be_compared():
  bad = {
    "stage 'head' has outputs \\[2\\], in the source \\[9\\]": {'stages': ['head']},
    "unknown delta: stage 'blok1'; nearest: block1": {'stages': ['blok1']},
    "'pool' has 2 weights for 6 channels": {'stages': ['pool'], 'attention': {'pool': [0.5, 0.5]}},
    "attention of stage 'block1'; nearest: pool": {'stages': ['pool'], 'attention': ATTENTION},
  }
  for message, options in bad.items():
    with pytest.raises(UserError, match=message):
      staying_close.delta(_float32(MAPS), _float32(THEIRS), {}, {}, **options)


# ------------------------------------------------------------------------------------------ batch spectral shrinkage
@pytest.mark.parametrize('shape', [(6, 4), (4, 9)])
@pytest.mark.parametrize('k', [1, 3])
def test_spectral_shrinkage_is_the_sum_of_the_smallest_squared_singular_values(shape, k):
  """Chen et al. 2019, eq. 4: Σ σ²; with F = Σ σ u vᵀ its gradient is Σ 2 σ u vᵀ over the k smallest."""
  features = RANDOM.normal(size=shape)
  u, sigma, v = np.linalg.svd(features, full_matrices=False)
  loss = lambda f: staying_close.spectral_shrinkage(f, jnp.ones(shape[0], bool), k=k)
  value, gradient = jax.value_and_grad(loss)(jnp.asarray(features, jnp.float32))
  assert float(value) == pytest.approx((sigma[-k:] ** 2).sum(), rel=1e-4)
  np.testing.assert_allclose(gradient, 2 * (u[:, -k:] * sigma[-k:]) @ v[-k:], rtol=1e-3, atol=1e-5)


def test_spectral_shrinkage_agrees_with_torch():
  torch = pytest.importorskip('torch')
  features = torch.tensor(RANDOM.normal(size=(8, 5)), requires_grad=True)
  loss = (torch.linalg.svdvals(features)[-2:] ** 2).sum()
  loss.backward()
  mine = lambda f: staying_close.spectral_shrinkage(f, jnp.ones(8, bool), k=2)
  value, gradient = jax.value_and_grad(mine)(jnp.asarray(features.detach().numpy(), jnp.float32))
  assert float(value) == pytest.approx(loss.item(), rel=1e-4)
  np.testing.assert_allclose(gradient, features.grad.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('shape', [(7, 3), (7, 12)])
@pytest.mark.parametrize('k', [2, 50])
def test_padding_adds_no_singular_values_and_gets_no_gradient(shape, k):
  """Of 4 real rows there are min(4, features) singular values; a zero that padding adds is none of the smallest."""
  features, mask = RANDOM.normal(size=shape), np.array([True, False, True, True, False, True, False])
  sigma = np.linalg.svd(features[mask], compute_uv=False)
  loss = lambda f: staying_close.spectral_shrinkage(f, jnp.asarray(mask), k=k)
  value, gradient = jax.value_and_grad(loss)(jnp.asarray(features, jnp.float32))
  assert float(value) == pytest.approx((sigma[-k:] ** 2).sum(), rel=1e-4)
  assert not np.asarray(gradient)[~mask].any()
  assert np.asarray(gradient)[mask].any()


def test_the_term_of_spectral_shrinkage_reads_one_stage_averaged_over_places_and_couples_examples():
  built = _built({'term': 'batch_spectral_shrinkage', 'stage': 'block1', 'k': 2})
  term = built.terms['batch_spectral_shrinkage']
  mask = [True, True, True, False]
  loss, _, _ = term.apply(_view(_float32(MAPS), mask), {'params': {}, 'stats': {}})
  sigma = np.linalg.svd(MAPS['block1'].mean((1, 2))[:3], compute_uv=False)
  assert float(loss) == pytest.approx((sigma[-2:] ** 2).sum(), rel=1e-4)
  assert term.couples


# ------------------------------------------------------------------------------------- elastic weight consolidation
def test_ewc_pulls_each_weight_by_its_fisher_information():
  """Kirkpatrick et al. 2017, eq. 3 with λ = 1: Σ ½ F (θ − θ*)²; the gradient is F (θ − θ*), and 0 for what is new."""
  fisher = {'body': {'w': RANDOM.uniform(size=(3, 2)), 'b': None}, 'head': {'w': None}}
  term = _built({'term': 'ewc'}).terms['ewc']

  def loss(params):
    view = _view(params=params, source=_float32(START), fisher=_float32(fisher))
    return term.apply(view, {'params': {}, 'stats': {}})[0]

  value, gradient = jax.value_and_grad(loss)(_float32(PARAMS))
  away = PARAMS['body']['w'] - START['body']['w']
  assert float(value) == pytest.approx(0.5 * (fisher['body']['w'] * away**2).sum(), rel=1e-5)
  np.testing.assert_allclose(gradient['body']['w'], fisher['body']['w'] * away, rtol=1e-5)
  assert not np.asarray(gradient['body']['b']).any()
  assert not np.asarray(gradient['head']['w']).any()


# ------------------------------------------------------------------------------------- learning without forgetting
def _softmax(z):
  powers = np.exp(z - z.max(1, keepdims=True))
  return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize('temperature', [2.0, 0.5])
def test_what_was_answered_is_kept_by_the_softened_cross_entropy(temperature):
  """Li and Hoiem 2016, eqs. 2 and 3, from probabilities as they stand there; the gradient is (ŷ' − y') / T."""
  mine, theirs = RANDOM.normal(size=(4, 5)), RANDOM.normal(size=(4, 5))
  soften = lambda y: y ** (1 / temperature) / (y ** (1 / temperature)).sum(1, keepdims=True)
  kept, learnt = soften(_softmax(theirs)), soften(_softmax(mine))

  def loss(logits):
    each = staying_close.softened_cross_entropy(logits, jnp.asarray(theirs, jnp.float32), temperature=temperature)
    return each.sum(), each

  (_, each), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(mine, jnp.float32))
  np.testing.assert_allclose(each, -(kept * np.log(learnt)).sum(1), rtol=1e-5)
  np.testing.assert_allclose(gradient, (learnt - kept) / temperature, rtol=1e-4, atol=1e-6)


def test_one_logit_stands_for_two_classes():
  mine, theirs = RANDOM.normal(size=(4, 1)), RANDOM.normal(size=(4, 1))
  p, q = (1 / (1 + np.exp(-z[:, 0] / 2)) for z in (theirs, mine))
  each = staying_close.softened_cross_entropy(*(jnp.asarray(z, jnp.float32) for z in (mine, theirs)), temperature=2.0)
  np.testing.assert_allclose(each, -(p * np.log(q) + (1 - p) * np.log(1 - q)), rtol=1e-5)


def test_the_old_head_starts_as_the_sources_and_is_the_terms_own():
  features = jnp.asarray(RANDOM.normal(size=(4, 6)), jnp.float32)
  params = {'kernel': jnp.asarray(RANDOM.normal(size=(6, 5)), jnp.float32)}
  recorded = jnp.asarray(RANDOM.normal(size=(4, 5)), jnp.float32)
  view = _view(source_head=SourceHead(params, recorded, lambda own: features @ own['kernel']))
  term = _built({'term': 'learning_without_forgetting'}).terms['learning_without_forgetting']
  own = term.init(view, None)
  np.testing.assert_array_equal(own['params']['kernel'], params['kernel'])
  change = RANDOM.normal(size=(6, 5)).astype(np.float32)
  moved = {'params': {'kernel': own['params']['kernel'] + change}, 'stats': {}}
  logits = np.asarray(features, np.float64) @ (np.asarray(params['kernel'], np.float64) + change)
  expected = -(_softmax(np.asarray(recorded, np.float64) / 2) * np.log(_softmax(logits / 2))).sum(1)
  np.testing.assert_allclose(term.apply(view, moved)[0], expected, rtol=1e-5)


# ----------------------------------------------------------------------------------------------------------- needs
STAGES = ('block1', 'pool', 'head')


def _built(*specs):
  return objectives.build([config.validate(TermSpec, spec) for spec in specs], STAGES)


def test_an_objective_says_what_its_terms_need():
  assert _built({'term': 'cross_entropy'}).needs == {'labels', 'output'}
  assert _built({'term': 'l2_sp'}).needs == {'source'}
  assert _built({'term': 'delta', 'stages': ['pool']}, {'term': 'ewc'}).needs == {'source', 'source_outputs', 'fisher'}
  assert _built({'term': 'learning_without_forgetting'}).needs == {'source_outputs', 'source_head'}
  assert _built({'term': 'ewc', 'labels': 'sampled', 'examples': 7}).fisher == FisherChoice('sampled', 7)


@pytest.mark.parametrize(
  ('specs', 'message'),
  [
    ([{'term': 'delta', 'stages': ['blok1']}], "delta: stage 'blok1'; nearest: block1"),
    ([{'term': 'delta', 'stages': []}], 'delta.stages: .*at least 1'),
    ([{'term': 'ewc', 'labels': 'given'}], "ewc.labels: .*'exact', 'sampled' or 'empirical'"),
    ([{'term': 'ewc'}, {'term': 'ewc', 'name': 'more', 'examples': 5}], 'Fisher information of different labels'),
    ([{'term': 'learning_without_forgetting', 'temperature': 0.0}], 'temperature: .*greater than 0'),
    ([{'term': 'batch_spectral_shrinkage', 'stage': 'pool', 'k': 0}], 'k: .*greater than 0'),
  ],
)
def test_mistaken_options_are_refused(specs, message):
  with pytest.raises(UserError, match=message):
    _built(*specs)
