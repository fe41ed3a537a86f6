"""Transformations of parameters in training steps: mixout's formula, its draws, what it touches, and mistakes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transferlab import config
from transferlab.errors import UserError
from transferlab.networks.mlp import mlp
from transferlab.training import partition, transforms
from transferlab.training.phases import Phase
from transferlab.training.step import begin, train_step

pytestmark = pytest.mark.usefixtures('quick_compilation')
RANDOM = np.random.default_rng(0)
NETWORK = mlp((4,), 3, hidden=[5])
X = RANDOM.normal(size=(8, 4)).astype(np.float32)
Y = RANDOM.integers(0, 3, 8).astype(np.int32)


def _random(seed=0):
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), NETWORK.shapes())


# ----------------------------------------------------------------------------------------------------------- mixout
@pytest.mark.parametrize('p', [0.0, 0.3, 0.9])
def test_mixout_is_the_formula_of_the_paper_for_one_mask(p):
  """Lee et al. 2020, eqs. 5 and 6: (M w⁰ + (1 − M) w − p w⁰) / (1 − p); its derivative is (1 − M) / (1 − p)."""
  w, start = RANDOM.normal(size=(40, 50)), RANDOM.normal(size=(40, 50))
  mixed = lambda w: transforms.mixout(w, jnp.asarray(start, jnp.float32), jax.random.key(3), p=p)
  found, pull = jax.vjp(mixed, jnp.asarray(w, jnp.float32))
  found, slope = np.asarray(found), np.asarray(pull(jnp.ones((40, 50)))[0])
  mask = np.isclose(found, start, rtol=1e-6)
  np.testing.assert_allclose(found, (mask * start + (1 - mask) * w - p * start) / (1 - p), rtol=2e-4, atol=1e-5)
  np.testing.assert_allclose(slope, (1 - mask) / (1 - p), rtol=1e-6)
  # 2,000 draws: five standard deviations are 0.06 at most.
  assert abs(mask.mean() - p) < 0.06


def test_mixouts_mean_is_the_weight_itself():
  w, start = jnp.asarray([1.5, -0.5]), jnp.asarray([1.0, 2.0])
  draws = jax.vmap(lambda key: transforms.mixout(w, start, key, p=0.6))(jax.random.split(jax.random.key(0), 40_000))
  np.testing.assert_allclose(np.asarray(draws, np.float64).mean(0), w, atol=0.06)


def test_weights_that_have_not_moved_stay_to_the_bit():
  w = jnp.asarray(RANDOM.normal(size=1000), jnp.float32)
  np.testing.assert_array_equal(transforms.mixout(w, w, jax.random.key(0), p=0.7), w)


# ------------------------------------------------------------------------------------------------------- the hook
def _built(*specs, trainable=('layer1/linear/kernel', 'layer1/linear/bias', 'head/kernel', 'head/bias')):
  checked = config.validate(Phase, {'steps': 1, 'transform': list(specs)}).transform
  leaves = [*('layer1/linear/kernel', 'layer1/linear/bias', 'head/kernel', 'head/bias'), 'terms/a/kernel']
  return transforms.build(checked, trainable, NETWORK.stages, leaves, 'config.phases.0')


def test_only_what_is_selected_trains_and_has_a_source_is_transformed():
  params, start = _random()['params'], _random(1)['params']
  start = {'layer1': start['layer1'], 'head': {'kernel': None, 'bias': None}}
  (made,) = _built({'name': 'mixout', 'p': 0.5}, trainable=('layer1/linear/kernel', 'head/kernel', 'terms/a/kernel'))
  assert made.selected == ('layer1/linear/kernel', 'head/kernel')
  mixed = transforms.apply([made], params, start, jax.random.key(0))
  assert jax.tree.structure(mixed) == jax.tree.structure(params)
  assert (mixed['layer1']['linear']['kernel'] != params['layer1']['linear']['kernel']).any()
  for same in ('head', 'bias'):
    one, other = (tree['head'] if same == 'head' else tree['layer1']['linear']['bias'] for tree in (mixed, params))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_leaf_draws_the_same_whatever_else_is_transformed_and_leaves_draw_apart():
  params, start = ({'a': {'x': jnp.full(200, v), 'y': jnp.full(200, v)}} for v in (1.0, 0.0))
  whole = transforms.Transformation(
    'mixout', lambda **v: transforms.mixout(**v, p=0.5), transforms.ARGUMENTS, ('a/x', 'a/y')
  )
  part = transforms.Transformation('mixout', whole.function, transforms.ARGUMENTS, ('a/y',))
  both, one = (transforms.apply([each], params, start, jax.random.key(0))['a'] for each in (whole, part))
  np.testing.assert_array_equal(both['y'], one['y'])
  assert (both['x'] != both['y']).any()


def weight_drop(weights, key, *, rate: float):
  """One's own: it asks for no source."""
  return jnp.where(jax.random.bernoulli(key, rate, weights.shape), 0, weights)


def test_a_transformation_of_ones_own_takes_what_it_names():
  (made,) = _built({'name': 'test_transforms.weight_drop', 'rate': 1.0, 'pattern': 'head'})
  dropped = transforms.apply([made], _random()['params'], None, jax.random.key(0))
  assert not np.asarray(dropped['head']['kernel']).any()
  assert np.asarray(dropped['layer1']['linear']['kernel']).any()


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ({'name': 'mixut', 'p': 0.5}, "unknown transform 'mixut'; nearest: mixout"),
    ({'name': 'mixout'}, 'transform.0: mixout.p: is missing'),
    ({'name': 'mixout', 'p': 1.0}, 'mixout.p: .*less than 1'),
    ({'name': 'mixout', 'p': 0.5, 'q': 1}, 'mixout.q: no such key; nearest: p'),
    ({'name': 'mixout', 'p': 0.5, 'pattern': 'layer7'}, "'layer7' matches no parameter; nearest: .*layer1"),
    ({'name': 'mixout', 'p': 0.5, 'pattern': 'head'}, "nothing that 'head' selects trains"),
  ],
)
def test_mistakes_are_named(spec, message):
  with pytest.raises(UserError, match=message):
    _built(spec, trainable=('layer1/linear/kernel',))


# ------------------------------------------------------------------------------------------------------- the step
def _step(stretches, variables, start, step=0, seed=0, change=None, rows=8, objective=None):
  """One SGD step at rate 1: what the parameters lose is the gradient."""
  phase = {'steps': 10, 'optimizer': 'sgd', 'learning_rate': 1.0, 'transform': [change] if change else []}
  (stretch,) = stretches(NETWORK, [phase], X, Y, objective)
  record = {'shift': jnp.zeros(4), 'scale': jnp.ones(4)}
  constants = stretch.constants(SimpleNamespace(start_point=start, record=record, seed=seed), 0)
  state = begin(stretch.method, variables['params'], {}, {}, step)
  frozen = partition.split(variables['params'], stretch.method.trainable)[1]
  place = jnp.arange(rows)
  pad = lambda values: jnp.concatenate([values, jnp.zeros((rows - 8, *values.shape[1:]), values.dtype)])
  batch = {'x': pad(X), 'label': pad(Y), 'id': place, 'mask': place < 8, 'place': place, 'view': 0 * place}
  state, metrics = jax.jit(lambda *given: train_step(stretch.method, *given))(
    state, {**constants, 'frozen': frozen}, batch
  )
  moved = jax.tree.map(lambda new, old: np.asarray(old - new, np.float64), state['trainable'], variables['params'])
  return moved, float(metrics['loss'])


MIXOUT = {'name': 'mixout', 'p': 0.4, 'pattern': 'layer1'}


def test_a_step_applies_mixed_weights_and_its_gradient_goes_through_the_mixture(stretches):
  """∂L/∂w = (1 − M) / (1 − p) ∂L/∂mixed, and 0 where the source's weight stood in."""
  variables, start = _random(), {'layer1': _random(1)['params']['layer1'], 'head': {'kernel': None, 'bias': None}}
  for tree in (variables['params'], start):  # so far from zero that every ReLU is open, and a zero gradient means M
    tree['layer1']['linear']['bias'] += 10
  moved, loss = _step(stretches, variables, start, change=MIXOUT)
  gradient = moved['layer1']['linear']['kernel']
  mask = gradient == 0
  assert 0.1 < mask.mean() < 0.8
  w, w0 = (np.asarray(tree['layer1']['linear']['kernel'], np.float64) for tree in (variables['params'], start))
  b, b0 = (np.asarray(tree['layer1']['linear']['bias'], np.float64) for tree in (variables['params'], start))
  bias_mask = moved['layer1']['linear']['bias'] == 0
  mixed = lambda w, w0, mask: (mask * w0 + (1 - mask) * w - 0.4 * w0) / 0.6
  kernel, bias = mixed(w, w0, mask), mixed(b, b0, bias_mask)
  head = [np.asarray(variables['params']['head'][name], np.float64) for name in ('kernel', 'bias')]
  before = X.astype(np.float64) @ kernel + bias
  logits = np.maximum(before, 0) @ head[0] + head[1]
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  assert loss == pytest.approx(-np.log(p[np.arange(8), Y]).mean(), rel=1e-4)
  back = (((p - np.eye(3)[Y]) / 8) @ head[0].T) * (before > 0)
  np.testing.assert_allclose(gradient, (X.T @ back) * (1 - mask) / 0.6, rtol=1e-3, atol=1e-5)


def test_every_step_and_run_draws_anew_but_the_batch_does_not_matter(stretches):
  variables, start = _random(), _random(1)['params']
  mask = lambda **more: _step(stretches, variables, start, change=MIXOUT, **more)[0]['layer1']['linear']['kernel'] == 0
  first = mask()
  np.testing.assert_array_equal(first, mask())
  np.testing.assert_array_equal(first, mask(rows=11))
  assert (first != mask(step=1)).any()
  assert (first != mask(seed=1)).any()


def test_terms_see_the_weights_as_they_are(stretches):
  """L2-SP pulls from w, not from what stands in for it: its gradient is w − w⁰ everywhere."""
  variables, start = _random(), _random(1)['params']
  objective = [{'term': 'cross_entropy', 'weight': 0.0}, {'term': 'l2_sp'}]
  moved, _ = _step(stretches, variables, start, change=MIXOUT, objective=objective)
  for stage in ('layer1', 'head'):
    jax.tree.map(
      lambda got, w, w0: np.testing.assert_allclose(got, w - w0, rtol=1e-5, atol=1e-6),
      moved[stage], variables['params'][stage], start[stage],
    )  # fmt: skip
