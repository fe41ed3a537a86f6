"""Outputs of frozen stages, computed once: where that is exact, that it changes nothing, and that it is never stale."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from outcomes import Stopper

import transferlab
from transferlab import checkpoints, config, experiment, paths
from transferlab.errors import UserError
from transferlab.networks import network as networks
from transferlab.preparation import prepare, start
from transferlab.settings import Run
from transferlab.training import feature_cache, feature_store

NETWORK = {'name': 'convnet', 'width': 4, 'blocks': 2, 'features': 12, 'batch_norm': True, 'dropout': 0.2}
HEAD = {'name': 'probe', 'train': 'head', 'steps': 40, 'learning_rate': 1e-2}
TOP = {'name': 'top', 'train': 'dense|head', 'steps': 30, 'learning_rate': 1e-2}


def settings(*phases, use='auto', data=None, **more):
  values = {
    'network': NETWORK,
    'target': {'data': {'name': 'digits', 'validation': 4, 'shots': 6, 'batch_size': 16, **(data or {})}},
    'phases': list(phases) or [HEAD],
    'evaluation': {'every': 10},
    'checkpoint': {'every': 10},
    'logging': {'every': 5},
    'feature_cache': {'use': use},
    **more,
  }
  return config.validate(Run, values)


def said(*phases, **more):
  return prepare(settings(*phases, **more)).caching


def last(place):
  return paths.flatten(checkpoints.weights(checkpoints.find(str(place)), 'last'))


def assert_close(one, other):
  for path, leaf in one.items():
    np.testing.assert_allclose(leaf, other[path], rtol=2e-4, atol=2e-5, err_msg=path)


# ---------------------------------------------------------------------------------------------- what it comes out as
@pytest.mark.parametrize(
  'phases, data',
  [
    pytest.param([HEAD, TOP], {}, marks=pytest.mark.long),
    pytest.param([TOP], {'augment': {'shift': 1, 'flip': True, 'views': 3}}, marks=pytest.mark.long),
    ([HEAD], {'last_batch': 'pad', 'batch_size': 14}),
  ],
  ids=['head, then top', 'three views', 'padded batches'],
)
def test_a_run_from_kept_outputs_equals_one_that_runs_all_stages(tmp_path, phases, data):
  results = {}
  for use in ('auto', 'never'):
    results[use] = experiment.run(settings(*phases, use=use, data=data), tmp_path / use)
  assert len(results['auto']['frozen_stages']) == len(phases) and results['never']['frozen_stages'] == []
  assert all('once' in line for line in results['auto']['frozen_stages'])
  assert_close(last(tmp_path / 'auto'), last(tmp_path / 'never'))
  for one, other in zip(results['auto']['curve'], results['never']['curve']):
    assert one['train']['loss'] == pytest.approx(other['train']['loss'], rel=1e-3)
    if 'validation' in one:
      assert one['validation']['log_loss'] == pytest.approx(other['validation']['log_loss'], rel=1e-4)
  assert sum('validation' in row for row in results['auto']['curve']) == sum(p['steps'] for p in phases) // 10


@pytest.mark.parametrize('where', ['memory', 'disk'])
def test_outputs_in_memory_or_on_disk_train_to_the_same_bits_as_on_the_device(tmp_path, where):
  for place in ('device', where):
    run = settings(HEAD, feature_cache={'where': place, 'folder': str(tmp_path / 'kept')})
    experiment.run(run, tmp_path / place)
  found = last(tmp_path / where)
  for path, leaf in last(tmp_path / 'device').items():
    np.testing.assert_array_equal(leaf, found[path], err_msg=path)
  assert (tmp_path / 'kept').exists() == (where == 'disk')


def test_members_of_a_population_keep_the_outputs_of_their_own_weights(tmp_path):
  # The seed draws weights and examples: members that shared outputs would learn something else.
  tables = {}
  for use in ('auto', 'never'):
    base = {**settings(HEAD, use=use).model_dump(mode='json'), 'network': NETWORK}
    del base['seed']
    tables[use] = transferlab.run(
      {'base': base, 'axes': {'seed': [0, 1, 2]}, 'table': {'rows': 'seed'}}, tmp_path / use
    )
  for one, other in zip(tables['auto']['records'], tables['never']['records']):
    assert one['last']['test']['log_loss'] == pytest.approx(other['last']['test']['log_loss'], rel=1e-3)
    assert one['frozen_stages'] and not other['frozen_stages']


@pytest.mark.parametrize('at', [pytest.param(20, marks=pytest.mark.long), 40, pytest.param(55, marks=pytest.mark.long)])
def test_stopping_and_going_on_from_kept_outputs_is_exact_to_the_bit(tmp_path, at):
  run = settings(HEAD, TOP, data={'augment': {'shift': 1, 'views': 2}})
  experiment.run(run, tmp_path / 'whole')
  stopper = Stopper(at)
  with pytest.raises(transferlab.errors.Interrupted):
    experiment.run(run, tmp_path / 'cut', screen=stopper, stop=stopper)
  feature_store.forget()  # as another process would find it
  experiment.run(run, tmp_path / 'cut')
  found = last(tmp_path / 'cut')
  for path, leaf in last(tmp_path / 'whole').items():
    np.testing.assert_array_equal(leaf, found[path], err_msg=path)


# ------------------------------------------------------------------------------------------------ whether it is exact
def test_dropout_before_the_cut_keeps_the_stages_behind_it_in_every_step():
  # 'dense' holds the dropout, and stands frozen: it runs in evaluation mode. Its statistics moving keep it too.
  (line,) = said(HEAD)
  assert 'up to dense once' in line and '60 examples: 12' in line
  (line,) = said({**HEAD, 'statistics': [('block2', 'update')]})
  assert 'up to block1 once' in line and "running statistics of 'block2' move" in line
  (line,) = said({**HEAD, 'statistics': 'update'})
  assert "in every step: the running statistics of 'block1' move" in line


def test_a_stage_without_leaves_is_kept_out_only_where_it_draws():
  # The stage before one that trains is in training mode: dropout in VGG's, nothing of the kind in ResNet's pooling.
  small = {'name': 'resnet', 'depth': 8, 'width': 4}
  (line,) = said(HEAD, network=small)
  assert 'up to pool once' in line


@pytest.mark.parametrize(
  'changes, reason',
  [
    ({'data': {'augment': {'shift': 1}}}, 'views=K'),
    ({'data': {'augment': {'mixup': 0.2, 'views': 2}}}, 'mixup'),
    ({'parallel': {'compile': 'pmap'}}, 'pmap'),
    ({'feature_cache': {'device': 0.0, 'memory': 0.0, 'disk': 0.0}}, 'feature_cache.disk'),
  ],
)
def test_what_cannot_be_kept_is_said_and_refused_where_it_was_demanded(changes, reason):
  (line,) = said(**changes)
  assert 'in every step' in line and reason in line
  insisting = {**changes, 'feature_cache': {**changes.get('feature_cache', {}), 'use': 'always'}}
  with pytest.raises(UserError, match=r"feature_cache\.use: 'always', but phase 'probe' cannot"):
    prepare(settings(**insisting))


def test_a_phase_shorter_than_an_epoch_computes_what_it_needs_and_no_more():
  (line,) = said({**HEAD, 'steps': 2})
  assert 'fewer examples' in line


def test_full_fine_tuning_has_nothing_to_say():
  assert said({**HEAD, 'train': '.*'}) == ()


def test_a_term_that_reads_a_stage_keeps_that_stage_within_reach(tmp_path):
  objective = [{'term': 'cross_entropy'}, {'term': 'center_loss', 'stage': 'block1', 'weight': 0.1}]
  (line,) = said(HEAD, objective=objective)
  assert 'up to block1 once' in line and "objective reads 'block1'" in line
  for use in ('auto', 'never'):
    experiment.run(settings(HEAD, use=use, objective=objective), tmp_path / use)
  assert_close(last(tmp_path / 'auto'), last(tmp_path / 'never'))


# --------------------------------------------------------------------------------------------------- never stale
@pytest.fixture(scope='module')
def inputs():
  prepared = prepare(settings(HEAD, data={'augment': {'shift': 1, 'views': 2}}))
  member = start(prepared, None)
  stretch = member.stretches[0]
  variables = feature_cache.needed(member.variables, stretch.method.network, stretch.prefix.start)
  x, ids = np.array(member.arrays['x']), np.array(member.arrays['id'])
  return feature_cache.Inputs(stretch.method, stretch.prefix, variables, member.record, x, ids, jax.random.key(0), None)


def changed(array, places=1):
  array = np.array(array)
  array.reshape(-1)[-places:] += 1
  return array


def test_every_change_of_what_outputs_depend_on_makes_others(inputs):
  flat = paths.flatten(inputs.variables)
  others = {
    path: dataclasses.replace(inputs, variables=paths.unflatten({**flat, path: changed(flat[path])})) for path in flat
  }
  augment = inputs.method.augment
  others |= {
    'shift': dataclasses.replace(inputs, record={**inputs.record, 'shift': changed(inputs.record['shift'])}),
    'scale': dataclasses.replace(inputs, record={**inputs.record, 'scale': changed(inputs.record['scale'])}),
    'one pixel': dataclasses.replace(inputs, x=changed(inputs.x)),
    'order': dataclasses.replace(inputs, x=inputs.x[::-1], ids=inputs.ids[::-1]),
    'seed': dataclasses.replace(inputs, key=jax.random.key(1)),
    'views': dataclasses.replace(inputs, kept=dataclasses.replace(inputs.kept, views=3)),
    'augment': dataclasses.replace(
      inputs, method=dataclasses.replace(inputs.method, augment=augment.model_copy(update={'shift': 2}))
    ),
    'cut': dataclasses.replace(inputs, kept=dataclasses.replace(inputs.kept, start='block2', last='block1')),
  }
  keys = {name: feature_store.key(other) for name, other in others.items()}
  assert len(set(keys.values()) | {feature_store.key(inputs)}) == len(others) + 1
  assert feature_store.key(dataclasses.replace(inputs, x=np.array(inputs.x))) == feature_store.key(inputs)


def test_the_key_without_augmentation_does_not_know_the_seed(inputs):
  # A grid of seeds on the same frozen weights shares one set of outputs.
  plain = dataclasses.replace(inputs.method, augment=type(inputs.method.augment)())
  one = dataclasses.replace(inputs, method=plain)
  assert feature_store.key(one) == feature_store.key(dataclasses.replace(one, key=jax.random.key(1)))


def test_files_are_found_again_and_computed_again_where_they_are_damaged(inputs, tmp_path):
  on_disk = dataclasses.replace(inputs, kept=dataclasses.replace(inputs.kept, where='disk'))
  lines = []
  first = np.array(jax.tree.leaves(feature_store.outputs(on_disk, tmp_path, lines.append))[0])
  assert len(lines) == 1 and first.shape[0] == 2 * len(inputs.ids)
  again = feature_store.outputs(on_disk, tmp_path, lines.append)
  assert len(lines) == 1 and np.array_equal(again, first)
  (file,) = tmp_path.glob('*/outputs/0.npy')
  values = np.load(file)
  np.save(file, values[:, ::-1])
  again = feature_store.outputs(on_disk, tmp_path, lines.append)
  assert 'comes out otherwise' in lines[1] and np.array_equal(again, first)
  file.write_bytes(file.read_bytes()[:100])
  assert np.array_equal(feature_store.outputs(on_disk, tmp_path, lines.append), first)
  shutil.rmtree(tmp_path)


def test_a_process_that_reads_old_files_keeps_them_while_another_writes_new_ones(inputs, tmp_path):
  on_disk = dataclasses.replace(inputs, kept=dataclasses.replace(inputs.kept, where='disk'))
  reading = jax.tree.leaves(feature_store.outputs(on_disk, tmp_path, lambda line: None))[0]
  before = np.array(reading)
  (file,) = tmp_path.glob('*/outputs/0.npy')
  np.save(file.with_name('1.npy'), before[:, ::-1])
  file.with_name('1.npy').replace(file)  # damaged, so that all are computed again
  lines = []
  feature_store.outputs(on_disk, tmp_path, lines.append)
  assert 'comes out otherwise' in lines[0]
  np.testing.assert_array_equal(reading, before)


def test_the_oldest_files_give_way_beyond_the_limit(inputs, tmp_path):
  size = inputs.kept.size
  sets = []
  for seed in range(3):
    one = dataclasses.replace(
      inputs,
      kept=dataclasses.replace(inputs.kept, where='disk'),
      key=jax.random.key(seed),
      limit=2.5 * size,
    )
    feature_store.outputs(one, tmp_path, lambda line: None)
    sets.append(feature_store.key(one))
  assert {path.parent.name for path in tmp_path.glob('*/outputs')} == set(sets[1:])


def test_a_value_that_is_not_one_for_each_example_is_not_kept():
  (line,) = said(HEAD, network={'name': f'{__name__}.with_scale'})
  assert "in every step: 'scale' gives something that has no axis of examples" in line


def with_scale(input_shape, outputs):
  """Features beside a vector of the layer's own, as positions would be."""

  def create(rngs):
    return {
      'flat': networks.flat_features,
      'scale': Scale(nnx.Linear(64, 8, rngs=rngs)),
      'head': Scaled(nnx.Linear(8, outputs, rngs=rngs)),
    }

  return networks.network(create)


class Scaled(nnx.Module):
  def __init__(self, layer):
    self.layer = layer

  def __call__(self, value):
    return self.layer(value['x'] * value['scale'])


class Scale(nnx.Module):
  def __init__(self, layer):
    self.layer = layer

  def __call__(self, x):
    return {'x': self.layer(x), 'scale': jnp.ones(8)}


@pytest.mark.parametrize('shots', [6, 1])
def test_a_network_whose_examples_see_each_other_is_refused(tmp_path, shots):
  run = settings(HEAD, network={'name': f'{__name__}.coupled'}, data={'shots': shots})
  with pytest.raises(UserError, match="up to 'mix' give other outputs for the same inputs in another batch"):
    experiment.run(run, tmp_path / 'run')


class Centred(nnx.Module):
  """Subtracts the mean of the batch: no example's output is its own."""

  def __init__(self, layer):
    self.layer = layer

  def __call__(self, x):
    return self.layer(x - x.mean(axis=0))


def coupled(input_shape, outputs):
  def create(rngs):
    return {
      'flat': networks.flat_features,
      'mix': Centred(nnx.Linear(64, 8, rngs=rngs)),
      'head': nnx.Linear(8, outputs, rngs=rngs),
    }

  return networks.network(create)


def test_outputs_are_those_of_the_network_itself(inputs, tmp_path):
  # The views, drawn here example by example, through the layers' own arithmetic in one batch.
  kept = feature_store.outputs(inputs, tmp_path, lambda line: None)
  method, record = inputs.method, inputs.record
  from transferlab.data import augmentation
  from transferlab.training.step import view_keys

  for view in range(2):
    keys = view_keys(jax.random.key(0), inputs.ids.astype(np.int32), np.int32(view))
    x = augmentation.apply(inputs.x, keys, method.augment, method.low, method.high)
    x = (x - record['shift']) / record['scale']
    outputs, _ = method.network.apply(inputs.variables, x, stop='head')
    count = len(inputs.ids)
    np.testing.assert_allclose(kept[view * count : (view + 1) * count], outputs['dense'], rtol=1e-4, atol=1e-5)
