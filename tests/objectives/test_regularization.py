"""L2-SP and center loss against their papers' formulas, worked out in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transferlab import config, transplant
from transferlab.errors import UserError
from transferlab.networks.mlp import mlp
from transferlab.objectives import regularization
from transferlab.objectives.objective import View

pytestmark = pytest.mark.usefixtures('quick_compilation')
RANDOM = np.random.default_rng(0)


def _view(features, labels, mask=None, classes=3, stage='body'):
  mask = jnp.ones(len(features), bool) if mask is None else jnp.asarray(mask)
  output = jnp.zeros((len(features), classes))
  return View({stage: jnp.asarray(features)}, output, jnp.asarray(labels), {}, None, mask, None, 0.0, lambda v: v)


# ----------------------------------------------------------------------------------------------------------- L2-SP
def test_l2_sp_pulls_the_transplanted_to_their_start_and_the_others_to_zero():
  """Li et al. 2018, eq. 3: α/2 ‖w − w⁰‖² + β/2 ‖w̄‖²; its gradient is α (w − w⁰) and β w̄."""
  params = {'body': {'w': jnp.array([1.0, 3.0]), 'b': jnp.array([-2.0])}, 'head': {'w': jnp.array([[4.0, 1.0]])}}
  source = {'body': {'w': jnp.array([0.0, 5.0]), 'b': None}, 'head': {'w': None}}
  loss, gradient = jax.value_and_grad(regularization.l2_sp)(params, source, alpha=0.2, beta=0.1)
  assert float(loss) == pytest.approx(0.1 * (1 + 4) + 0.05 * (4 + 16 + 1))
  np.testing.assert_allclose(gradient['body']['w'], [0.2, -0.4], rtol=1e-6)
  np.testing.assert_allclose(gradient['body']['b'], [-0.2], rtol=1e-6)
  np.testing.assert_allclose(gradient['head']['w'], [[0.4, 0.1]], rtol=1e-6)
  assert float(regularization.l2_sp(params, source)) == pytest.approx(0.5 * (1 + 4))


def test_training_with_l2_sp_follows_its_gradient_from_the_transplanted_values(fit):
  """The loss of the labels weighs nothing: w moves by −rate · weight · (α (w − w⁰) or β w)."""
  network = mlp((4,), 3, hidden=[5])
  draw = lambda leaf: jnp.asarray(RANDOM.normal(size=leaf.shape), leaf.dtype)
  source, variables = (jax.tree.map(draw, network.shapes()) for _ in range(2))
  made = transplant.plan(source, variables, [('layer1', 'copy'), ('head', 'init')])
  start = transplant.start_point(made, transplant.apply(made, source, variables)['params'])
  x, y = RANDOM.normal(size=(16, 4)).astype(np.float32), RANDOM.integers(0, 3, 16).astype(np.int32)
  objective = [{'term': 'cross_entropy', 'weight': 0.0}, {'term': 'l2_sp', 'weight': 0.5, 'alpha': 0.4, 'beta': 0.2}]
  phase = {'steps': 3, 'optimizer': 'sgd', 'learning_rate': 0.1}
  run = fit(network, [phase], x, y, variables, objective, start_point=start)
  for name in ('kernel', 'bias'):
    value, anchor = (np.asarray(tree['layer1']['linear'][name], np.float64) for tree in (run.before['params'], start))
    expected = anchor + (value - anchor) * (1 - 0.1 * 0.5 * 0.4) ** 3
    np.testing.assert_allclose(run.fitted.last['params']['layer1']['linear'][name], expected, rtol=1e-5, atol=1e-6)
    expected = np.asarray(run.before['params']['head'][name], np.float64) * (1 - 0.1 * 0.5 * 0.2) ** 3
    np.testing.assert_allclose(run.fitted.last['params']['head'][name], expected, rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------------- center loss
FEATURES = np.array([[1.0, 0.0], [3.0, 2.0], [0.0, 4.0], [100.0, 100.0]], np.float32)
LABELS = np.array([0, 0, 2, 2], np.int32)
CENTRES = np.array([[1.0, 1.0], [7.0, 7.0], [2.0, 0.0]], np.float32)


def test_center_loss_is_half_the_squared_distance_to_the_centre_of_the_class():
  term = regularization.center_loss(stage='body', rate=0.5)
  own = {'params': {}, 'stats': {'centres': jnp.asarray(CENTRES)}}
  loss, _, _ = term.apply(_view(FEATURES[:3], LABELS[:3]), own)
  np.testing.assert_allclose(loss, [0.5 * (0 + 1), 0.5 * (4 + 1), 0.5 * (4 + 16)])


def test_centres_move_by_equation_4_over_the_real_examples():
  """Class 0: Δ = ((1,1) − (1,0) + (1,1) − (3,2)) / (1 + 2); class 2: ((2,0) − (0,4)) / (1 + 1); class 1 stays."""
  term = regularization.center_loss(stage='body', rate=0.5)
  own = {'params': {}, 'stats': {'centres': jnp.asarray(CENTRES)}}
  _, _, stats = term.apply(_view(FEATURES, LABELS, [True, True, True, False]), own)
  expected = [[1 + 0.5 * 2 / 3, 1.0], [7.0, 7.0], [2 - 0.5 * 1.0, 0 + 0.5 * 2.0]]
  np.testing.assert_allclose(stats['centres'], expected, rtol=1e-6)


def test_centres_of_a_batch_spread_over_devices_move_as_those_of_the_whole():
  term = regularization.center_loss(stage='body', rate=0.3)
  mask = [True, True, True, False]
  own = {'params': {}, 'stats': {'centres': jnp.asarray(CENTRES)}}
  whole = term.apply(_view(FEATURES, LABELS, mask), own)[2]['centres']

  def shard(features, labels, mask):
    view = _view(features, labels, mask)
    spread = View(**{**vars(view), 'total': lambda v: jax.lax.psum(v, 'devices')})
    return term.apply(spread, own)[2]['centres']

  parts = (leaf.reshape(2, 2, *leaf.shape[1:]) for leaf in (FEATURES, LABELS, np.array(mask)))
  found = jax.vmap(shard, axis_name='devices')(*parts)
  np.testing.assert_allclose(found, [whole, whole], rtol=1e-6)


def test_center_loss_pulls_features_and_no_gradient_reaches_the_centres():
  term = regularization.center_loss(stage='body', rate=0.5)

  def loss(features, centres):
    return term.apply(_view(features, LABELS), {'params': {}, 'stats': {'centres': centres}})[0].sum()

  gradient = jax.grad(loss)(jnp.asarray(FEATURES), jnp.asarray(CENTRES))
  np.testing.assert_allclose(gradient, FEATURES - CENTRES[LABELS])


def test_center_loss_reads_features_averaged_over_places():
  images = RANDOM.normal(size=(4, 3, 5, 2)).astype(np.float32)
  term = regularization.center_loss(stage='body', rate=0.5)
  own = term.init(_view(images, LABELS), None)
  np.testing.assert_array_equal(own['stats']['centres'], np.zeros((3, 2)))
  loss, _, _ = term.apply(_view(images, LABELS), own)
  np.testing.assert_allclose(loss, 0.5 * (images.astype(np.float64).mean((1, 2)) ** 2).sum(1), rtol=1e-5)


def test_centres_move_through_training_and_are_checkpointed(fit):
  """A frozen body: features stand still, so the centres after k steps are worked out batch by batch."""
  network = mlp((4,), 3, hidden=[5])
  draw = lambda leaf: jnp.asarray(RANDOM.normal(size=leaf.shape), leaf.dtype)
  variables = jax.tree.map(draw, network.shapes())
  x, y = RANDOM.normal(size=(20, 4)).astype(np.float32), RANDOM.integers(0, 3, 20).astype(np.int32)
  objective = [{'term': 'cross_entropy'}, {'term': 'center_loss', 'stage': 'layer1', 'rate': 0.4}]
  run = fit(network, [{'steps': 4, 'train': 'head'}], x, y, variables, objective)
  own = run.before['params']['layer1']['linear']
  features = np.maximum(np.asarray(x, np.float64) @ own['kernel'] + own['bias'], 0)
  centres = np.zeros((3, 5))
  for row in run.order.batches(0, 4)['row']:
    batch, labels = features[row], y[row]
    change = [(centres[c] - batch[labels == c]).sum(0) / (1 + (labels == c).sum()) for c in range(3)]
    centres = centres - 0.4 * np.stack(change)
  np.testing.assert_allclose(run.fitted.tree['term_stats']['center_loss']['centres'], centres, rtol=1e-4, atol=1e-6)


def test_options_out_of_range_are_refused():
  for options in ({'rate': 1.5, 'stage': 'a'}, {}):
    with pytest.raises(UserError, match=r'rate: input should be less than 1|stage: is missing'):
      config.check_options(regularization.center_loss, options, 'center_loss')
