"""Labels that are missing: read, left out at random, counted, masked in losses and metrics."""

import csv
import json

import jax
import numpy as np
import pytest
from outcomes import assert_a_stop_changes_nothing

import transferlab
from transferlab import config, results
from transferlab.data import labels
from transferlab.data.examples import Info
from transferlab.data.sources import Data, load
from transferlab.errors import UserError
from transferlab.preparation import prepare, start
from transferlab.settings import Run
from transferlab.training import partition
from transferlab.training import step as training_step

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture
def two(tmp_path):
  """Images with a class and a size to tell, each of which is missing in some rows, in one row both."""
  random = np.random.default_rng(0)
  size = random.normal(size=40).astype(np.float32)
  x = random.normal(size=(40, 6)).astype(np.float32) + size[:, None]
  kind = (np.arange(40) % 3).astype(np.int64)
  kind[[4, 7, 30]] = -1
  size[[7, 12]] = np.nan
  np.savez(tmp_path / 'two.npz', x=x, kind=kind, size=size)
  return tmp_path / 'two.npz'


def data(path, **more):
  return {'name': f'npz:{path}', 'label': ['kind', 'size'], 'test': 0.2, 'unlabelled': 'keep', 'batch_size': 8, **more}


def settings(path, **more):
  values = {
    'network': {'name': 'mlp', 'hidden': [5]},
    'target': {'data': data(path, **more)},
    'phases': [{'steps': 12, 'learning_rate': 1e-2}],
    'checkpoint': {'every': 4},
    'evaluation': {'every': 4},
    'logging': {'every': 1},
  }
  return config.validate(Run, values)


def test_missing_labels_are_refused_unless_the_config_keeps_them(two):
  with pytest.raises(UserError, match=r"'kind' are negative in 3 rows, the smallest -1; data.unlabelled='keep'"):
    load(config.validate(Data, data(two, unlabelled='refuse')), 0)
  loaded = load(config.validate(Data, data(two)), 0)
  ids, label = loaded.examples.arrays['id'], loaded.examples.arrays['label']
  assert set(ids[label['kind'] == -1]) == {4, 7, 30} and set(ids[np.isnan(label['size'][:, 0])]) == {7, 12}
  # Without any label there is nothing to test on.
  assert 7 in ids[loaded.splits['train']] and 7 not in ids[loaded.splits['test']]


def test_every_task_counts_its_own_labels(two):
  loaded = load(config.validate(Data, data(two, validation=2)), 0)
  rows = {name: loaded.examples.arrays['id'][loaded.splits[name]] for name in ('train', 'validation')}
  for task, absent in (('kind', [4, 7, 30]), ('size', [7, 12])):
    expected = {name: int((~np.isin(own, absent)).sum()) for name, own in rows.items()}
    assert loaded.labels['tasks'][task] == expected
  assert loaded.labels['train'] == len(rows['train']) - 1


def test_a_share_of_labels_stays_of_every_class_and_smaller_shares_lie_in_larger():
  kept = {}
  for share in (0.1, 0.5):
    loaded = load(config.validate(Data, {'name': 'digits', 'keep_labels': share}), 3)
    own = loaded.examples.arrays['label'][loaded.splits['train']]
    whole = load(config.validate(Data, {'name': 'digits'}), 3)
    full = whole.examples.arrays['label'][whole.splits['train']]
    kept[share] = set(np.flatnonzero(own >= 0))
    for number in range(10):
      assert (own == number).sum() == np.floor(share * (full == number).sum() + 0.5)
    np.testing.assert_array_equal(own[own >= 0], full[own >= 0])
    assert loaded.labels['train'] == len(kept[share])
    test = loaded.examples.arrays['label'][loaded.splits['test']]
    np.testing.assert_array_equal(test, whole.examples.arrays['label'][whole.splits['test']])
  assert kept[0.1] < kept[0.5]


def test_shares_by_task_leave_the_others_alone_and_name_tasks(two):
  loaded = load(config.validate(Data, data(two, keep_labels={'size': 0.1})), 0)
  whole = load(config.validate(Data, data(two)), 0)
  assert loaded.labels['tasks']['kind'] == whole.labels['tasks']['kind']
  assert loaded.labels['tasks']['size']['train'] == round(0.1 * whole.labels['tasks']['size']['train'])
  with pytest.raises(UserError, match="keep_labels 'sizes'; nearest: size"):
    load(config.validate(Data, data(two, keep_labels={'sizes': 0.1})), 0)
  with pytest.raises(UserError, match=r"keep_labels 'digit'; nearest: 0.1, of the only label"):
    load(config.validate(Data, {'name': 'digits', 'keep_labels': {'digit': 0.1}}), 0)


def test_tables_keep_rows_without_a_label(tmp_path):
  with open(tmp_path / 'some.csv', 'w') as file:
    rows = [['a', 'b', 'label'], *[[i, i * i, '?' if i in (3, 9) else 'odd' if i % 2 else 'even'] for i in range(30)]]
    csv.writer(file).writerows(rows)
  base = {'name': f'csv:{tmp_path}/some.csv'}
  with pytest.raises(UserError, match=r"first of 2 such rows; data.unlabelled='keep'"):
    load(config.validate(Data, base), 0)
  loaded = load(config.validate(Data, {**base, 'unlabelled': 'keep'}), 0)
  label = loaded.examples.arrays['label']
  assert set(loaded.examples.arrays['id'][label < 0]) == {3, 9} and loaded.info.classes == ('even', 'odd')
  assert loaded.labels['train'] == len(loaded.splits['train']) - 2


def test_losses_and_gradients_are_those_of_the_labelled_examples(two):
  """Against the same step on each task's labelled examples alone, written out in float64."""
  prepared = prepare(settings(two))
  member = start(prepared, None)
  stretch = member.stretches[0]
  variables = member.variables
  rows = np.arange(16)  # of the training split, with gaps in both tasks
  batch = {
    'x': member.arrays['x'][rows],
    'label': jax.tree.map(lambda leaf: leaf[rows], member.arrays['label']),
    'place': rows.astype(np.int32),
    'row': rows.astype(np.int32),
    'mask': None,
  }
  kind, size = batch['label']['kind'], batch['label']['size'][:, 0]
  assert (kind < 0).any() and np.isnan(size).any()
  state = training_step.begin(stretch.method, variables['params'], variables['stats'], {}, 0)
  frozen = partition.split(variables['params'], stretch.method.trainable)[1]
  constants = {**stretch.constants(member, 0), 'frozen': frozen}
  _, metrics = training_step.train_step(stretch.method, state, constants, batch)
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables['params'])
  x = (np.asarray(batch['x'], np.float64) - np.asarray(prepared.record['shift'])) / np.asarray(prepared.record['scale'])
  hidden = np.maximum(x @ p['layer1']['linear']['kernel'] + p['layer1']['linear']['bias'], 0)
  logits = hidden @ p['head']['kind']['kernel'] + p['head']['kind']['bias']
  log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  there = kind >= 0
  expected = -log[np.arange(16), kind][there].mean()
  guess = (hidden @ p['head']['size']['kernel'] + p['head']['size']['bias'])[:, 0]
  squared = np.square(guess - size)[np.isfinite(size)].mean()
  np.testing.assert_allclose(metrics['cross_entropy_kind'], expected, rtol=1e-5)
  np.testing.assert_allclose(metrics['squared_error_size'], squared, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], expected + squared, rtol=1e-5)


def test_a_batch_without_any_label_gives_zero_and_not_nan(two):
  prepared = prepare(settings(two))
  member = start(prepared, None)
  method = member.stretches[0].method
  batch = {
    'x': member.arrays['x'][:4],
    'label': {'kind': np.full(4, -1, np.int32), 'size': np.full((4, 1), np.nan, np.float32)},
    'place': np.arange(4, dtype=np.int32),
    'row': np.arange(4, dtype=np.int32),
    'mask': None,
  }
  state = training_step.begin(method, member.variables['params'], member.variables['stats'], {}, 0)
  frozen = partition.split(member.variables['params'], method.trainable)[1]
  constants = {**member.stretches[0].constants(member, 0), 'frozen': frozen}
  new, metrics = training_step.train_step(method, state, constants, batch)
  assert metrics['loss'] == 0
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), new['trainable'], state['trainable']))


def test_a_run_with_a_tenth_of_one_tasks_labels_stops_and_goes_on_to_the_bit(two, tmp_path):
  run = settings(two, keep_labels={'size': 0.1}, validation=2)
  assert_a_stop_changes_nothing(run, 8, tmp_path)
  done = results_of(tmp_path / 'whole')
  assert done['labels']['tasks']['size']['train'] == 2
  assert set(done['last']['test']) >= {'kind/accuracy', 'size/r2', 'accuracy', 'mean_squared_error'}


def results_of(place):
  return json.loads((place / 'results.json').read_text())


def test_metrics_are_of_labelled_examples_and_their_mean_leaves_auxiliary_tasks_out():
  info = Info('table', 'classification', ('a', 'b'))
  tasks = dict.fromkeys(('one', 'two', 'help'), info)
  several = Info('table', 'classification', ('a', 'b'), tasks=tasks, auxiliary=('help',))
  outputs = {name: np.array([[0.0, 1.0]] * 4) for name in tasks}
  label = {'one': np.array([1, 0, -1, -1]), 'two': np.array([1, 1, 1, 0]), 'help': np.zeros(4, int)}
  measured = results.measure(['accuracy'], outputs, label, several)
  assert measured == {'one/accuracy': 0.5, 'two/accuracy': 0.75, 'help/accuracy': 0.0, 'accuracy': 0.625}
  only = results.measure(['two/accuracy', 'log_loss'], outputs, label, several)
  assert 'one/accuracy' not in only and only['two/accuracy'] == 0.75 and 'one/log_loss' in only


def test_predictions_leave_a_missing_label_blank(tmp_path):
  info = Info('table', 'classification', ('a', 'b'))
  results.write_predictions(tmp_path / 'p.csv', np.eye(2), np.arange(2), info, np.array([-1, 1]))
  assert [line.split(',')[1] for line in (tmp_path / 'p.csv').read_text().splitlines()[1:]] == ['', 'b']


def test_unlabelled_images_teach_through_a_teacher_alone(tmp_path):
  """Cross-entropy on a tenth of the labels, a teacher's answers on all: better than the tenth alone."""
  found = {}
  for name, terms in {
    'tenth': [{'term': 'cross_entropy'}],
    'taught': [{'term': 'cross_entropy'}, {'term': 'kd'}],
  }.items():
    values = {
      'network': {'name': 'mlp', 'hidden': [16]},
      'target': {'data': {'name': 'digits', 'keep_labels': 0.02, 'batch_size': 64}},
      'phases': [{'steps': 150, 'learning_rate': 1e-2}],
      'objective': terms,
      'teachers': {'big': {'data': {'name': 'digits'}, 'phases': [{'steps': 150, 'learning_rate': 1e-2}]}},
    }
    values['teachers'] = values['teachers'] if name == 'taught' else {}
    found[name] = transferlab.run(values, tmp_path / name)
  assert found['tenth']['labels']['train'] == found['taught']['labels']['train'] < 40
  accuracy = {name: done['last']['test']['accuracy'] for name, done in found.items()}
  assert accuracy['taught'] > accuracy['tenth'] + 0.05


def test_mixing_refuses_gaps():
  values = {'name': 'digits', 'keep_labels': 0.5, 'augment': {'mixup': 0.2}}
  with pytest.raises(UserError, match='some training labels are missing'):
    prepare(
      config.validate(
        Run,
        {
          'network': {'name': 'mlp'},
          'target': {'data': values},
          'phases': [{'steps': 1, 'learning_rate': 0.1}],
        },
      )
    )


def test_a_task_without_any_training_label_is_refused(tmp_path):
  np.savez(tmp_path / 'e.npz', x=np.zeros((6, 2), np.float32), a=[0, 1] * 3, b=[np.nan] * 5 + [1.0])
  with pytest.raises(UserError, match="no training example has a label 'b'"):
    spec = {
      'name': f'npz:{tmp_path}/e.npz',
      'label': ['a', 'b'],
      'unlabelled': 'keep',
      'train': 'all[:4]',
      'test': 'all[4:]',
    }
    load(config.validate(Data, spec), 0)


def test_gaps_are_known_by_task():
  label = {'a': np.array([0, -1, 2]), 'b': np.array([[0.5], [1.0], [np.nan]])}
  assert labels.gaps(label, np.array([0, 1])) == {'a'}
  assert labels.gaps(label, np.array([0, 2])) == {'b'} and labels.gaps(label['a'], np.array([0, 2])) == frozenset()
  np.testing.assert_array_equal(labels.present(label), [True, True, True])


def test_a_task_whose_value_has_no_meaning_leaves_the_mean_without_one():
  one = Info('table', 'regression', targets=('t',))
  info = Info('table', 'regression', targets=('t',), tasks={'p': one, 'q': one})
  label = {'p': np.ones((3, 1)), 'q': np.ones((3, 1))}
  broken = {'p': np.full((3, 1), np.nan), 'q': np.ones((3, 1))}
  assert results.measure(['mean_squared_error'], broken, label, info)['mean_squared_error'] is None
  absent = {**label, 'p': np.full((3, 1), np.nan)}
  assert results.measure(['mean_squared_error'], label, absent, info)['mean_squared_error'] == 0


@pytest.mark.parametrize(
  'change, message',
  [
    ({'unlabelled': 'keep', 'sampling': 'balanced'}, 'balanced sampling draws by label'),
    ({'unlabelled': 'keep', 'classes': [0, 1]}, 'classes and train_classes choose by label'),
    ({'keep_labels': 0.5, 'labelled': False}, 'keep_labels leaves labels out'),
    ({'mixing': {'heads': 'common'}}, "mixing is for the name 'mixture'"),
  ],
  ids=range(4),
)
def test_keys_that_do_not_go_together_are_refused(change, message):
  with pytest.raises(UserError, match=message):
    config.validate(Data, {'name': 'digits', **change})
