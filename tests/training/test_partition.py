"""Freezing: the split, what it costs as the compiler counts it, and the proof that frozen leaves stood still."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transferlab import paths
from transferlab.errors import UserError
from transferlab.networks.mlp import mlp
from transferlab.training import partition, report
from transferlab.training.step import begin

pytestmark = pytest.mark.usefixtures('quick_compilation')

TREE = {'a': {'w': np.arange(3.0), 'b': np.ones(2)}, 'c': {'w': np.zeros(1)}, 'terms': {'t': {'w': np.full(2, 7.0)}}}


@pytest.mark.parametrize('chosen', [[], ['a/w'], ['a/b', 'c/w', 'terms/t/w'], list(paths.flatten(TREE))])
def test_joining_is_the_inverse_of_splitting(chosen):
  trainable, frozen = partition.split(TREE, chosen)
  joined = partition.join(trainable, frozen)
  assert jax.tree.structure(joined) == jax.tree.structure(TREE)
  jax.tree.map(np.testing.assert_array_equal, joined, TREE)
  assert paths.flatten(trainable).keys() == paths.flatten(frozen).keys() == paths.flatten(TREE).keys()
  assert {path for path, leaf in paths.flatten(trainable).items() if leaf is not None} == set(chosen)
  assert {path for path, leaf in paths.flatten(frozen).items() if leaf is None} == set(chosen)


# ------------------------------------------------------------------------------------- what the compiler counts
BATCH, WIDTH, CLASSES = 64, 512, 10
DEEP = mlp((WIDTH,), CLASSES, hidden=[WIDTH] * 6)
ARRAYS = {
  'x': jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32),
  'label': jax.ShapeDtypeStruct((BATCH,), jnp.int32),
  'id': jax.ShapeDtypeStruct((BATCH,), jnp.int32),
}
RECORD = {'shift': jax.ShapeDtypeStruct((WIDTH,), jnp.float32), 'scale': jax.ShapeDtypeStruct((WIDTH,), jnp.float32)}
PATTERNS = {'all': '.*', 'head': 'head', 'biases': '.*/bias'}


@pytest.fixture(scope='module')
def costs(stretches):
  """The compiler's report of one Adam step for each choice of what trains."""
  x, label = np.zeros((2, WIDTH), np.float32), np.zeros(2, np.int32)
  phases = [{'name': name, 'train': pattern, 'steps': 1} for name, pattern in PATTERNS.items()]
  phases += [{'name': 'clipped', 'train': 'head', 'steps': 1, 'clip': 1.0}]
  made = stretches(DEEP, phases, x, label, classes=CLASSES)
  return {s.name: (s, report.cost(s, DEEP.shapes(), ARRAYS, BATCH, RECORD)) for s in made}


def _forward_operations():
  def forward(variables, x):
    return DEEP.apply(variables, x)[0]['head']

  return jax.jit(forward).lower(DEEP.shapes(), ARRAYS['x']).compile().cost_analysis()['flops']


def test_training_the_head_costs_a_forward_pass_and_the_backward_pass_of_the_head(costs):
  """Within 2 %. Backward: dW = hᵀ δ, 2 · batch · width · classes operations, and db, batch · classes."""
  forward = _forward_operations()
  by_hand = 2 * BATCH * (6 * WIDTH * WIDTH + WIDTH * CLASSES)
  assert forward == pytest.approx(by_hand, rel=0.01)
  backward = 2 * BATCH * WIDTH * CLASSES + BATCH * CLASSES
  assert costs['head'][1].operations == pytest.approx(forward + backward, rel=0.02)


def test_full_training_costs_three_forward_passes_less_the_gradient_of_the_inputs(costs):
  """dW of every layer, dX of all but the first; then Adam, about a dozen operations for each parameter."""
  layer = 2 * BATCH * WIDTH * WIDTH
  assert costs['all'][1].operations == pytest.approx(17 * layer, rel=0.1)


def test_training_the_biases_costs_at_most_two_thirds_of_full_training(costs):
  """No dW; the chain of dX remains."""
  layer = 2 * BATCH * WIDTH * WIDTH
  assert costs['biases'][1].operations == pytest.approx(11 * layer, rel=0.02)
  assert costs['biases'][1].operations <= costs['all'][1].operations * 2 / 3


def test_neither_clipping_nor_logging_brings_the_frozen_backward_pass_back(costs):
  """Accuracy is logged in all of them; the norm that clipping needs is of the head's gradient only."""
  assert costs['head'][0].method.classes
  extra = costs['clipped'][1].operations - costs['head'][1].operations
  assert 0 < extra < 10 * (WIDTH + 1) * CLASSES
  assert costs['clipped'][1].optimizer == costs['head'][1].optimizer


@pytest.mark.parametrize('name', ['all', 'head', 'biases', 'clipped'])
def test_adam_holds_two_slots_for_each_trainable_number_and_nothing_for_the_frozen(costs, name):
  """In the compiler's report, and in the arrays themselves."""
  stretch, cost = costs[name]
  sizes = {path: leaf.size for path, leaf in paths.flatten(DEEP.shapes()['params']).items()}
  trainable = sum(size for path, size in sizes.items() if paths.matches(PATTERNS.get(name, 'head'), path))
  assert cost.trainable == 4 * trainable
  variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), DEEP.shapes())
  slots = begin(stretch.method, variables['params'], {}, {}, 0)['optimizer']
  arrays = jax.tree.leaves(slots)
  assert sum(leaf.size for leaf in arrays if leaf.ndim) == 2 * trainable
  assert all(leaf.dtype == jnp.float32 for leaf in arrays if leaf.ndim)
  assert cost.optimizer == sum(leaf.nbytes for leaf in arrays)
  assert sum(leaf.nbytes for leaf in arrays if not leaf.ndim) == 4  # the count of steps


def test_frozen_weights_need_no_memory_beyond_themselves(costs):
  """Full training holds gradients and activations of every layer; the head's holds those of the head."""
  parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(DEEP.shapes()['params']))
  assert costs['head'][1].memory < 1.3 * parameters
  assert costs['all'][1].memory > 2.9 * parameters


# ----------------------------------------------------------------------------------------------- which leaves train
LEAVES = ['layer1/kernel', 'layer1/bias', 'head/kernel', 'terms/one/w', 'terms/two/w']


def _trainable(train, terms=()):
  from transferlab.training.phases import Phase

  return partition.trainable_paths(Phase(steps=1, train=train), LEAVES, ['layer1', 'pool', 'head'], terms, 'p')


def test_a_phase_trains_what_its_patterns_select_and_what_its_terms_own():
  assert _trainable('head') == ['head/kernel']
  assert _trainable(['head', '.*/bias']) == ['layer1/bias', 'head/kernel']
  assert _trainable('.*') == LEAVES[:3]
  assert _trainable('head', ['two']) == ['head/kernel', 'terms/two/w']


@pytest.mark.parametrize(
  ('train', 'message'),
  [
    ('haed', "p.train: pattern 'haed' matches no parameter; nearest: head"),
    ('pool', "stage 'pool', which exists but has no parameters"),
    (['head', 'layer2'], "pattern 'layer2' matches no parameter; nearest: layer1"),
  ],
)
def test_a_pattern_that_trains_nothing_is_an_error(train, message):
  with pytest.raises(UserError, match=message):
    _trainable(train)


# ----------------------------------------------------------------------------------------------------------- proof
BEFORE = partition.digests({'body': {'w': np.zeros(3), 'b': np.zeros(2)}, 'head': {'w': np.zeros(4)}})
RATES = {'body/w': 0.1, 'body/b': 0.1, 'head/w': 0.1}


def _after(*moved):
  tree = {'body': {'w': np.zeros(3), 'b': np.zeros(2)}, 'head': {'w': np.zeros(4)}}
  flat = paths.flatten(tree)
  for path in moved:
    flat[path][-1] = np.nextafter(0, 1)  # the smallest change there is
  return partition.digests(tree)


def test_a_frozen_leaf_that_moved_by_one_bit_fails_the_run():
  with pytest.raises(AssertionError, match='frozen parameters moved: body/b'):
    partition.prove(BEFORE, _after('head/w', 'body/b'), ['head/w'], RATES, 'head')


def test_even_a_change_of_sign_of_zero_is_noticed():
  changed = partition.digests({'body': {'w': np.zeros(3), 'b': -np.zeros(2)}, 'head': {'w': np.zeros(4)}})
  with pytest.raises(AssertionError, match='body/b'):
    partition.prove(BEFORE, changed, ['head/w'], {'head/w': 0.0}, 'head')


def test_a_pattern_that_moved_nothing_is_an_error_unless_its_rate_is_zero():
  with pytest.raises(UserError, match="nothing that pattern 'body' selects has moved over the phase, at rates up to"):
    partition.prove(BEFORE, _after('head/w'), list(RATES), RATES, ['head', 'body'])
  still = {**RATES, 'body/w': 0.0, 'body/b': 0.0}
  assert partition.prove(BEFORE, _after('head/w'), list(RATES), still, ['head', 'body']) == []


def test_a_single_leaf_that_did_not_move_is_a_warning():
  found = partition.prove(BEFORE, _after('head/w', 'body/w'), frozenset(RATES), RATES, ['head', 'body'])
  assert found == ['body/b did not move']
  found = partition.prove(BEFORE, _after('head/w'), frozenset(RATES), RATES, '.*')
  assert found == ['body/b did not move', 'body/w did not move']


def test_holes_have_no_digest():
  assert partition.digests({'a': {'w': None, 'b': np.ones(2)}}).keys() == {'a/b'}


# -------------------------------------------------------------------------------------------------- real training
def _problem():
  """Two hidden layers with dropout, on labels that mean nothing."""
  random = np.random.default_rng(0)
  x, y = random.normal(size=(24, 4)).astype(np.float32), random.integers(0, 3, 24).astype(np.int32)
  network = mlp((4,), 3, hidden=[5, 5], dropout=0.3)
  draw = lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype)
  return network, x, y, jax.tree.map(draw, network.shapes())


@pytest.mark.parametrize('form', ['coupled', 'decoupled'])
def test_frozen_leaves_do_not_move_by_a_bit_under_weight_decay(fit, form):
  network, x, y, variables = _problem()
  phase = {'train': 'layer2/.*/kernel|head', 'steps': 7, 'optimizer': 'adamw', 'weight_decay': 0.5, 'clip': 1.0}
  run = fit(network, [{**phase, 'weight_decay_form': form}], x, y, variables)
  before, after = paths.flatten(run.before['params']), paths.flatten(run.fitted.last['params'])
  for path, leaf in before.items():
    same = np.asarray(leaf).tobytes() == np.asarray(after[path]).tobytes()
    assert same == (path not in ('layer2/linear/kernel', 'head/kernel', 'head/bias')), path
  assert run.fitted.warnings == []


def test_training_a_frozen_body_equals_training_the_head_alone_on_its_features(fit):
  """The peer: optax on the head as a network of its own, fed the body's output."""
  network, x, y, variables = _problem()
  run = fit(network, [{'train': 'head', 'steps': 5, 'learning_rate': 0.1}], x, y, variables)
  features = np.asarray(network.apply(run.before, x)[0]['layer2'])
  # The stages before the head are frozen and hold leaves, so their dropout is off.
  head, peer = run.before['params']['head'], optax.adam(0.1)
  slots = peer.init(head)

  @jax.jit
  @jax.grad
  def gradient(head, features, labels):
    logits = features @ head['kernel'] + head['bias']
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  for row in run.order.batches(0, 5)['row']:
    updates, slots = peer.update(gradient(head, features[row], y[row]), slots)
    head = optax.apply_updates(head, updates)
  for name in head:
    np.testing.assert_allclose(run.fitted.last['params']['head'][name], head[name], atol=1e-5)


def test_a_leaf_that_training_leaves_alone_is_warned_of_by_name(fit):
  """Behind a dead layer nothing has a gradient; the layers after it still move."""
  network, x, y, variables = _problem()
  variables['params']['layer2']['linear']['bias'] = jnp.full(5, -1e6)
  run = fit(network, [{'steps': 2}], x, y, variables)
  names = ['head/kernel', 'layer1/linear/bias', 'layer1/linear/kernel', 'layer2/linear/bias', 'layer2/linear/kernel']
  assert run.fitted.warnings == [f"phase 'phase1': {name} did not move" for name in names]
  with pytest.raises(UserError, match="nothing that pattern 'layer1' selects has moved"):
    fit(network, [{'steps': 2, 'train': ['head', 'layer1']}], x, y, variables)
