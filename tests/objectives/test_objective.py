"""Objectives: weighted sums of terms, means over real examples, parameters of terms' own, and mistaken names."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transferlab import config, paths
from transferlab.errors import UserError
from transferlab.networks.mlp import mlp
from transferlab.objectives import objective as objectives
from transferlab.objectives.objective import TermSpec
from transferlab.preparation import prepare
from transferlab.settings import Run
from transferlab.training import partition
from transferlab.training.step import begin, train_step

pytestmark = pytest.mark.usefixtures('quick_compilation')
RANDOM = np.random.default_rng(0)
LINEAR = mlp((4,), 3, hidden=[])
DEEP = mlp((4,), 3, hidden=[5, 6])
X = RANDOM.normal(size=(8, 4)).astype(np.float32)
Y = RANDOM.integers(0, 3, 8).astype(np.int32)


def _random(network, seed=0):
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), network.shapes())


def _step(stretches, variables, objective, mask, x=X, y=Y):
  """One SGD step at rate 1: (parameters moved by minus the gradient, metrics)."""
  phase = {'steps': 10, 'optimizer': 'sgd', 'learning_rate': 1.0}
  (stretch,) = stretches(LINEAR, [phase], x, y, objective)
  record = {'shift': jnp.zeros(4), 'scale': jnp.ones(4)}
  member = SimpleNamespace(start_point=None, record=record, seed=0)
  state = begin(stretch.method, variables['params'], {}, {}, 0)
  frozen = partition.split(variables['params'], stretch.method.trainable)[1]
  place = jnp.arange(len(x))
  batch = {'x': x, 'label': y, 'id': place, 'mask': jnp.asarray(mask), 'place': place, 'view': 0 * place}
  step = jax.jit(lambda *arguments: train_step(stretch.method, *arguments))
  state, metrics = step(state, {**stretch.constants(member, 0), 'frozen': frozen}, batch)
  return state['trainable']['head'], {name: float(value) for name, value in metrics.items()}


def _softmax(x, head):
  logits = np.asarray(x, np.float64) @ np.asarray(head['kernel'], np.float64) + head['bias']
  p = np.exp(logits - logits.max(1, keepdims=True))
  return p / p.sum(1, keepdims=True)


# ------------------------------------------------------------------------------------------------------ reductions
@pytest.mark.parametrize('mask', [[True] * 8, [True, False, True, True, False, True, False, True]])
@pytest.mark.parametrize('weights', [None, [0.5, 1.0, 3.0]])
def test_the_loss_is_the_weighted_mean_over_real_examples_and_its_gradient_drives_the_step(stretches, mask, weights):
  """∂/∂z of −Σ w_y log p_y / Σ w_y is w (p − y) / Σ w; padding counts for nothing, not even in the accuracy."""
  variables = _random(LINEAR)
  x = np.where(np.array(mask)[:, None], X, 1e4).astype(np.float32)
  terms = [{'term': 'cross_entropy', 'weight': 0.3} | ({'class_weights': weights} if weights else {})]
  moved, metrics = _step(stretches, variables, terms, mask, x)
  head, real = variables['params']['head'], np.array(mask)
  p, y = _softmax(X[real], head), Y[real]
  w = np.array(weights or [1.0, 1.0, 1.0])[y]
  loss = -(w * np.log(p[np.arange(len(y)), y])).sum() / w.sum()
  assert metrics['cross_entropy'] == pytest.approx(loss, rel=1e-5)
  assert metrics['loss'] == pytest.approx(0.3 * loss, rel=1e-5)
  assert metrics['accuracy'] == pytest.approx((p.argmax(1) == y).mean())
  delta = 0.3 * (w / w.sum())[:, None] * (p - np.eye(3)[y])
  np.testing.assert_allclose(moved['kernel'], head['kernel'] - X[real].astype(np.float64).T @ delta, atol=1e-5)
  np.testing.assert_allclose(moved['bias'], head['bias'] - delta.sum(0), atol=1e-5)


def test_the_objective_is_the_weighted_sum_of_its_terms(stretches):
  variables = _random(LINEAR)
  terms = [
    {'term': 'cross_entropy', 'weight': 0.3},
    {'term': 'hinge', 'weight': 2.0},
    {'term': 'cross_entropy', 'name': 'smooth', 'smoothing': 0.1, 'weight': 0.0},
  ]
  _, metrics = _step(stretches, variables, terms, [True] * 8)
  head = variables['params']['head']
  logits = X.astype(np.float64) @ np.asarray(head['kernel']) + head['bias']
  margins = [max(0, 1 + np.delete(row, label).max() - row[label]) for row, label in zip(logits, Y)]
  assert metrics['hinge'] == pytest.approx(np.mean(margins), rel=1e-5)
  assert metrics['loss'] == pytest.approx(0.3 * metrics['cross_entropy'] + 2 * metrics['hinge'], rel=1e-6)
  log = np.log(_softmax(X, head))
  smooth = -((0.9 * np.eye(3)[Y] + 0.1 / 3) * log).sum(1).mean()
  assert metrics['smooth'] == pytest.approx(smooth, rel=1e-5)


def _scalar(params, *, factor: float = 1.0):
  """A term of a user's own that gives a scalar."""
  return factor * params['head']['bias'].sum()


def test_a_function_of_ones_own_is_a_term_by_its_dotted_name(stretches, monkeypatch):
  import sys

  module = SimpleNamespace(__name__='own_terms', scalar=_scalar)
  monkeypatch.setitem(sys.modules, 'own_terms', module)
  variables = _random(LINEAR)
  terms = [{'term': 'own_terms.scalar', 'factor': 3.0, 'weight': 0.5}]
  moved, metrics = _step(stretches, variables, terms, [True] * 4 + [False] * 4)
  bias = np.asarray(variables['params']['head']['bias'])
  assert metrics['loss'] == pytest.approx(1.5 * bias.sum(), rel=1e-5)
  np.testing.assert_allclose(moved['bias'], bias - 1.5, rtol=1e-5)


# ------------------------------------------------------------------------------------------ parameters of a term's own
DEEPLY = [{'term': 'cross_entropy'}, {'term': 'deep_supervision', 'stage': 'layer1', 'weight': 0.5}]


def test_deep_supervision_trains_its_classifier_under_terms_and_leaves_the_network_without_it(fit):
  """With everything frozen but the head, the classifier is a softmax regression on frozen features: worked by hand."""
  variables = _random(DEEP)
  x, y = RANDOM.normal(size=(16, 4)).astype(np.float32), RANDOM.integers(0, 3, 16).astype(np.int32)
  phase = {'train': 'head', 'optimizer': 'sgd', 'learning_rate': [('head', 0.01), ('.*', 0.4)]}
  short = fit(DEEP, [{**phase, 'steps': 1}], x, y, variables, DEEPLY)
  long = fit(DEEP, [{**phase, 'steps': 6}], x, y, variables, DEEPLY)
  own = short.fitted.tree['params']['terms']['deep_supervision']
  classifier = {name: np.asarray(value, np.float64) for name, value in own.items()}
  layer = short.before['params']['layer1']['linear']
  features = np.maximum(x.astype(np.float64) @ np.asarray(layer['kernel']) + layer['bias'], 0)
  for row in long.order.batches(1, 5)['row']:
    delta = (_softmax(features[row], classifier) - np.eye(3)[y[row]]) / len(row)
    classifier['kernel'] = classifier['kernel'] - 0.4 * 0.5 * features[row].T @ delta
    classifier['bias'] = classifier['bias'] - 0.4 * 0.5 * delta.sum(0)
  for name, value in long.fitted.tree['params']['terms']['deep_supervision'].items():
    np.testing.assert_allclose(value, classifier[name], rtol=1e-4, atol=1e-5)
  assert 'terms' not in long.fitted.last['params']
  assert paths.flatten(long.fitted.last['params']).keys() == paths.flatten(DEEP.shapes()['params']).keys()
  assert {'deep_supervision', 'deep_supervision/accuracy', 'cross_entropy'} <= set(long.fitted.history[-1]['train'])


def test_the_gradient_of_a_term_flows_into_the_stage_it_reads(fit):
  """deep_supervision alone moves layer1, and nothing behind it."""
  terms = [{**DEEPLY[0], 'weight': 0.0}, DEEPLY[1]]
  run = fit(DEEP, [{'steps': 2, 'train': '.*'}], X, Y, _random(DEEP), terms)
  before, after = paths.flatten(run.before['params']), paths.flatten(run.fitted.last['params'])
  moved = {path for path, leaf in before.items() if not np.array_equal(leaf, after[path])}
  assert moved == {'layer1/linear/kernel', 'layer1/linear/bias'}


def test_a_term_of_a_later_phase_has_its_parameters_from_the_start_and_holds_them_still_until_then(fit):
  phases = [{'steps': 3, 'objective': [{'term': 'cross_entropy'}]}, {'steps': 1, 'learning_rate': 0.0}]
  one = fit(DEEP, phases, X, Y, _random(DEEP), DEEPLY)
  two = fit(DEEP, phases[1:], X, Y, _random(DEEP), DEEPLY)
  mine, theirs = (run.fitted.tree['params']['terms']['deep_supervision']['kernel'] for run in (one, two))
  np.testing.assert_array_equal(mine, theirs)


# ---------------------------------------------------------------------------------------------------------- errors
def _build(*terms):
  return objectives.build([config.validate(TermSpec, term) for term in terms], DEEP.stages)


@pytest.mark.parametrize(
  ('terms', 'message'),
  [
    ([{'term': 'cross_entropie'}], "unknown term 'cross_entropie'; nearest: cross_entropy"),
    ([{'term': 'no.such'}], "unknown term 'no.such'"),
    ([{'term': 'cross_entropy', 'smothing': 0.1}], 'cross_entropy.smothing: no such key; nearest: smoothing'),
    ([{'term': 'cross_entropy', 'smoothing': 2.0}], 'cross_entropy.smoothing: input should be less than 1'),
    ([{'term': 'cross_entropy'}, {'term': 'cross_entropy'}], "two terms are called 'cross_entropy'"),
    ([{'term': 'hinge', 'name': 'a'}, {'term': 'cross_entropy', 'name': 'a'}], "two terms are called 'a'"),
    ([{'term': 'center_loss'}], 'center_loss.stage: is missing'),
    ([{'term': 'deep_supervision', 'stage': 'layer3'}], "stage 'layer3'; nearest: layer"),
  ],
)
def test_a_mistaken_term_is_answered_with_the_nearest(terms, message):
  with pytest.raises(UserError, match=message):
    _build(*terms)


def test_an_argument_that_no_view_can_fill_is_refused(monkeypatch):
  import sys

  monkeypatch.setitem(sys.modules, 'own_terms', SimpleNamespace(__name__='own_terms', odd=lambda logitz: logitz))
  with pytest.raises(UserError, match="argument 'logitz'; nearest: logits"):
    _build({'term': 'own_terms.odd'})


def test_negative_weights_and_unknown_tasks_are_refused(stretches):
  with pytest.raises(UserError, match=r'config.objective.0.weight: input should be greater than or equal to 0'):
    stretches(DEEP, [{'steps': 1}], X, Y, [{'term': 'cross_entropy', 'weight': -1.0}])
  with pytest.raises(UserError, match=r"unknown config.objective.0.task 'colour'"):
    stretches(DEEP, [{'steps': 1}], X, Y, [{'term': 'cross_entropy', 'task': 'colour'}])


def test_only_terms_that_pull_towards_the_source_ask_for_it():
  assert _build({'term': 'l2_sp'}).needs_source
  assert not _build({'term': 'cross_entropy'}).needs_source
  assert _build({'term': 'cross_entropy'}, {'term': 'l2_sp'}).plain
  assert not _build({'term': 'center_loss', 'stage': 'layer1'}).plain


def test_a_term_that_needs_a_source_is_refused_from_scratch():
  values = {
    'network': {'name': 'mlp'},
    'target': {'data': {'name': 'iris'}},
    'phases': [{'steps': 1, 'objective': [{'term': 'l2_sp'}]}],
  }
  with pytest.raises(UserError, match=r'l2_sp.*config\.source is missing'):
    prepare(config.validate(Run, values))
