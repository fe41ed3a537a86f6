"""What a phase says of lengths, of modes and of statistics; and that statistics move as it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transferlab import config
from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.networks.network import network
from transferlab.training import adapt, phases
from transferlab.training.phases import Phase

pytestmark = pytest.mark.usefixtures('quick_compilation')


def _phase(**values):
  return config.validate(Phase, {'steps': 1, **values} if not {'epochs', 'examples'} & set(values) else values)


# --------------------------------------------------------------------------------------------------------- lengths
@pytest.mark.parametrize(
  ('values', 'last_batch', 'steps'),
  [
    ({'steps': 7}, 'carry', 7),
    ({'epochs': 2.0}, 'carry', 25),  # 200 examples in batches of 8, run on
    ({'epochs': 2.0}, 'pad', 26),  # 13 batches an epoch, the last padded
    ({'epochs': 1.0}, 'carry', 13),  # 12.5, rounded up
    ({'epochs': 0.5}, 'carry', 7),
    ({'epochs': 0.5}, 'pad', 7),
    ({'epochs': 0.001}, 'carry', 1),
    ({'examples': 80}, 'carry', 10),
    ({'examples': 81}, 'pad', 11),
  ],
)
def test_lengths_in_epochs_and_examples_become_steps(values, last_batch, steps):
  assert phases.length(_phase(**values), 100, 8, last_batch) == steps


def test_a_whole_number_of_steps_is_not_rounded_up_by_floating_point():
  """0.07 · 100 is 7.000000000000001 in float64."""
  assert 0.07 * 100 > 7
  assert phases.length(_phase(epochs=0.07), 100, 1, 'carry') == 7
  assert phases.length(_phase(epochs=0.07), 100, 1, 'pad') == 7


def test_phases_end_one_after_the_other():
  run = [_phase(steps=5), _phase(epochs=1.0), _phase(examples=16)]
  assert phases.ends(run, 100, 10, 'carry') == [5, 15, 17]


@pytest.mark.parametrize('lengths', [{}, {'steps': 3, 'epochs': 1.0}])
def test_a_phase_has_exactly_one_length(lengths):
  with pytest.raises(UserError, match='exactly one of steps, epochs and examples'):
    config.validate(Phase, lengths)


def test_names_are_unique_and_numbered_where_none_is_given():
  assert phases.names([_phase(), _phase(name='probe'), _phase()]) == ['phase1', 'probe', 'phase3']
  with pytest.raises(UserError, match="two phases are named 'a'"):
    phases.names([_phase(name='a'), _phase(name='a')])
  with pytest.raises(UserError, match="two phases are named 'phase2'"):
    phases.names([_phase(name='phase2'), _phase()])


# ----------------------------------------------------------------------------------------------------------- modes
STAGES = ['augment', 'stem', 'drop1', 'block', 'drop2', 'pool', 'head']
LEAVES = {'stem': ['stem/w', 'stem/b'], 'block': ['block/w'], 'head': ['head/w']}


@pytest.mark.parametrize(
  ('trainable', 'training'),
  [
    ({'stem/w', 'stem/b', 'block/w', 'head/w'}, set(STAGES)),
    # A probe: what stands directly before the head is its dropout; nothing earlier is disturbed.
    ({'head/w'}, {'drop2', 'pool', 'head'}),
    # A stage without leaves trains when one before it does, even where the stage next to it is frozen.
    ({'stem/b'}, {'augment', 'stem', 'drop1', 'drop2', 'pool'}),
    ({'block/w'}, {'drop1', 'block', 'drop2', 'pool'}),
    (set(), set()),
  ],
)
def test_stages_without_leaves_follow_those_before_them_and_the_one_they_stand_before(trainable, training):
  assert phases.training_stages(STAGES, LEAVES, trainable) == training


def test_a_stage_that_reads_a_shared_leaf_counts_it_as_its_own():
  leaves = {'embedding': ['embedding/table'], 'body': ['body/w'], 'output': ['embedding/table']}
  assert phases.training_stages(list(leaves), leaves, {'embedding/table'}) == {'embedding', 'output'}


# ------------------------------------------------------------------------------------------------------ statistics
WITH = ['stem', 'block']


@pytest.mark.parametrize(
  ('policy', 'moving', 'adapted'),
  [
    ('auto', {'block'}, set()),
    ('update', {'stem', 'block'}, set()),
    ('frozen', set(), set()),
    ('adapt', set(), {'stem', 'block'}),
    ([('stem', 'adapt')], {'block'}, {'stem'}),
    ([('block', 'frozen'), ('.*', 'update')], {'stem'}, set()),
    ([], {'block'}, set()),
  ],
)
def test_policies_say_which_statistics_move_and_which_are_recomputed(policy, moving, adapted):
  assert phases.statistics_stages(_phase(statistics=policy), WITH, {'block', 'head'}) == (moving, adapted)


def test_a_policy_where_there_are_no_statistics_is_an_error():
  assert phases.statistics_stages(_phase(), [], {'block'}) == (set(), set())
  assert phases.statistics_stages(_phase(statistics='frozen'), [], {'block'}) == (set(), set())
  with pytest.raises(UserError, match=r"statistics 'adapt': the network has no running statistics"):
    phases.statistics_stages(_phase(statistics='adapt'), [], {'block'})
  with pytest.raises(UserError, match="pattern 'haed' matches"):
    phases.statistics_stages(_phase(statistics=[('haed', 'update')]), WITH, set())


# -------------------------------------------------------------------------------------------- statistics in training
def _network():
  def create(rngs):
    linear = nnx.Linear(4, 4, rngs=rngs)
    return {
      'first': layers.BatchNorm(4),
      'linear': linear,
      'second': layers.BatchNorm(4),
      'head': nnx.Linear(4, 3, rngs=rngs),
    }

  return network(create)


NETWORK = _network()


def _variables(seed=0):
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.5, 1.5, leaf.shape), leaf.dtype), NETWORK.shapes())


def _data(count=40):
  random = np.random.default_rng(1)
  return random.normal(2, 3, (count, 4)).astype(np.float32), random.integers(0, 3, count).astype(np.int32)


def _moments(stats, stage):
  return np.stack([np.asarray(stats[stage]['mean']), np.asarray(stats[stage]['var'])])


def _normalised(params, stage, values, mean, var):
  own = params[stage]
  return np.asarray(own['scale'], np.float64) * (values - mean) / np.sqrt(var + 1e-5) + own['bias']


RECORD = {'shift': jnp.full(4, 1.0), 'scale': jnp.full(4, 2.0)}


@pytest.mark.parametrize('batch_size', [100, 16])
def test_adapted_statistics_are_the_moments_of_the_activations_over_all_examples(batch_size):
  """Li et al. 2016, algorithm 1; 16 does not divide 40, so the last batch is padded."""
  variables, (x, _) = _variables(), _data()
  found = adapt.adapt(NETWORK, variables, RECORD, x, {'first'}, batch_size)['stats']
  values = (np.asarray(x, np.float64) - 1) / 2
  np.testing.assert_allclose(_moments(found, 'first'), [values.mean(0), values.var(0)], rtol=1e-5)
  np.testing.assert_array_equal(_moments(found, 'second'), _moments(variables['stats'], 'second'))


def test_a_later_layer_is_adapted_to_inputs_that_are_normalised_already():
  variables, (x, _) = _variables(), _data()
  found = adapt.adapt(NETWORK, variables, RECORD, x, {'first', 'second'})['stats']
  params, values = variables['params'], (np.asarray(x, np.float64) - 1) / 2
  hidden = _normalised(params, 'first', values, values.mean(0), values.var(0))
  hidden = hidden @ params['linear']['kernel'] + params['linear']['bias']
  np.testing.assert_allclose(_moments(found, 'second'), [hidden.mean(0), hidden.var(0)], rtol=1e-4)


def test_a_phase_adapts_statistics_before_it_and_freezes_them_while_weights_train(fit):
  (x, y), variables = _data(), _variables()
  run = fit(NETWORK, [{'steps': 5, 'statistics': [('first', 'adapt'), ('.*', 'frozen')]}], x, y, variables)
  after = run.fitted.last['stats']
  values = np.asarray(x, np.float64)
  np.testing.assert_allclose(_moments(after, 'first'), [values.mean(0), values.var(0)], rtol=1e-5)
  np.testing.assert_array_equal(_moments(after, 'second'), _moments(run.before['stats'], 'second'))
  assert not np.array_equal(run.fitted.last['params']['first']['scale'], run.before['params']['first']['scale'])


def test_update_moves_the_running_averages_of_frozen_stages_batch_by_batch(fit):
  (x, y), variables = _data(), _variables()
  run = fit(NETWORK, [{'steps': 5, 'train': 'head', 'statistics': [('first', 'update')]}], x, y, variables)
  expected = _moments(run.before['stats'], 'first').astype(np.float64)
  for row in run.order.batches(0, 5)['row']:
    values = np.asarray(x[row], np.float64)
    expected = 0.9 * expected + 0.1 * np.stack([values.mean(0), values.var(0)])
  np.testing.assert_allclose(_moments(run.fitted.last['stats'], 'first'), expected, rtol=1e-5)
  np.testing.assert_array_equal(_moments(run.fitted.last['stats'], 'second'), _moments(run.before['stats'], 'second'))


def test_by_default_statistics_move_in_the_stages_that_train_and_in_no_other(fit):
  (x, y), variables = _data(), _variables()
  run = fit(NETWORK, [{'steps': 3, 'train': 'second|head'}], x, y, variables)
  np.testing.assert_array_equal(_moments(run.fitted.last['stats'], 'first'), _moments(run.before['stats'], 'first'))
  assert (_moments(run.fitted.last['stats'], 'second') != _moments(run.before['stats'], 'second')).all()
