"""Training splits that lack classes or labels, for students that learn from a teacher's answers."""

import numpy as np
import pytest

import transferlab
from transferlab import config
from transferlab.data.sources import Data, load
from transferlab.errors import UserError
from transferlab.preparation import prepare, start
from transferlab.settings import Run

pytestmark = pytest.mark.usefixtures('quick_compilation')

DATA = {'name': 'digits', 'validation': 3, 'test': 0.3, 'batch_size': 16}
MLP = {'name': 'mlp', 'hidden': [12]}
TEACHER = {'data': DATA, 'phases': [{'steps': 60, 'learning_rate': 1e-2}]}


def loaded(**changes):
  return load(config.validate(Data, {**DATA, **changes}), 0)


def labels(data, split):
  return data.examples.arrays['label'][data.splits[split]]


def settings(data, objective=None, **more):
  values = {
    'network': MLP,
    'target': {'data': {**DATA, **data}},
    'teachers': {'big': TEACHER},
    'phases': [{'steps': 60, 'learning_rate': 1e-2}],
    'objective': objective or [{'term': 'kd', 'temperature': 2.0}],
    **more,
  }
  return config.validate(Run, values)


def test_classes_are_missing_from_training_alone():
  whole, part = loaded(), loaded(train_classes=[7, 8])
  assert set(labels(part, 'train')) == {7, 8}
  for split in ('validation', 'test'):
    np.testing.assert_array_equal(part.splits[split], whole.splits[split])
  assert part.info.outputs == 10
  kept = whole.splits['train'][np.isin(labels(whole, 'train'), [7, 8])]
  np.testing.assert_array_equal(part.splits['train'], kept)


def test_classes_are_named_by_their_original_numbers():
  part = loaded(classes=[3, 7, 8], train_classes=[8, 3], shots=4)
  assert sorted(labels(part, 'train')) == [0] * 4 + [2] * 4
  assert set(labels(part, 'test')) == {0, 1, 2}


@pytest.mark.parametrize(
  'change, message',
  [
    ({'train_classes': [7, 11]}, "train_classes: class '11'"),
    ({'classes': [1, 2], 'train_classes': [0]}, "train_classes: class '0'.*nearest: .*1"),
    ({'train_classes': []}, 'at least one'),
    ({'classes': [7, 8, 9], 'relabel': False, 'train_classes': [3]}, "train_classes: class '3'"),
    ({'name': 'diabetes', 'validation': None, 'train_classes': [3]}, 'these data have no classes'),
    ({'labelled': False, 'shots': 5}, 'draw by label; nearest: fraction'),
    ({'labelled': False, 'sampling': 'balanced'}, 'draw by label'),
  ],
  ids=range(7),
)
def test_mistakes_in_data_end_in_one_message(change, message):
  with pytest.raises(UserError, match=message):
    loaded(**change)


def test_a_student_learns_a_class_that_it_never_saw(tmp_path):
  """From soft targets alone, as the student of Hinton et al. 2015 learns threes."""
  eights = {}
  for name, objective in (('soft', None), ('hard', [{'term': 'cross_entropy'}, {'term': 'kd', 'weight': 0.0}])):
    results = transferlab.run(
      config.resolved(settings({'train_classes': [0, 1, 2, 4, 5, 6, 7, 8, 9]}, objective)), tmp_path / name
    )
    rows = [line.split(',') for line in (tmp_path / name / 'predictions' / 'test.csv').read_text().splitlines()[1:]]
    eights[name] = np.mean([float(row[3 + 3]) for row in rows if row[1] == '3'])
    assert results['labels']['train'] > 0
  assert eights['soft'] > 10 * eights['hard']


def test_labels_that_are_not_to_be_looked_at_change_nothing_and_count_for_nothing(tmp_path):
  results = {}
  for labelled in (True, False):
    run = settings({'labelled': labelled, 'fraction': 0.2})
    results[labelled] = transferlab.run(config.resolved(run), tmp_path / str(labelled))
  assert results[True]['last']['test'] == results[False]['last']['test']
  assert results[False]['labels']['train'] == 0 and results[True]['labels']['train'] > 0
  assert all('accuracy' not in point.get('train', {}) for point in results[False]['curve'])
  model = transferlab.load(tmp_path / 'False')
  assert model.predict(load(config.validate(Data, DATA), 0).examples.arrays['x'][:3]).shape == (3,)
  member = start(prepare(settings({'labelled': False})), None, {})
  assert (np.asarray(member.arrays['label']) == -1).all()


@pytest.mark.parametrize('term', ['cross_entropy', 'dkd', 'hinge'])
def test_terms_that_look_at_labels_are_refused_without(term):
  with pytest.raises(UserError, match=f"term '{term}' looks at labels, and data.labelled=False"):
    prepare(settings({'labelled': False}, [{'term': 'kd'}, {'term': term}]))


def test_old_data_keep_their_identity():
  assert not {'train_classes', 'labelled'} & set(config.identity(config.validate(Data, DATA)))


def test_every_example_is_tested_on_in_one_fold_and_trained_on_in_the_others():
  tested, size = [], None
  for number in (1, 2, 3):
    loaded = load(Data(name='iris', test=f'fold:{number}/3', validation=0.1), 0)
    rows = loaded.splits
    assert not set(rows['train']) & set(rows['test']) and not set(rows['validation']) & set(rows['test'])
    size = len(loaded.examples)
    assert sum(map(len, rows.values())) == size
    tested += loaded.examples.arrays['id'][rows['test']].tolist()
  assert sorted(tested) == list(range(size))


@pytest.mark.parametrize('test', ['fold:0/10', 'fold:11/10', 'fold:1/1', 'fold:3', 'fold:a/b'])
def test_what_is_no_fold_says_what_is(test):
  with pytest.raises(UserError, match='is no fold; fold:1/10 to fold:10/10'):
    config.validate(Data, {'name': 'iris', 'test': test})
