"""One offset for the logits of some classes: against a search over all that could matter."""

import numpy as np
import pytest

import transferlab
from transferlab import config
from transferlab.errors import UserError
from transferlab.evaluation import bias
from transferlab.preparation import prepare
from transferlab.settings import Run


def wrong(logits, labels, classes, offset):
  return int((bias.shifted(logits, classes, offset).argmax(1) != labels).sum())


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('classes', [[3], [0, 2]])
def test_no_other_offset_makes_fewer_errors(seed, classes):
  random = np.random.default_rng(seed)
  labels = random.integers(0, 5, 60)
  logits = random.normal(size=(60, 5)) + 1.5 * np.eye(5)[labels]
  logits[:, classes] -= 2 * (seed - 2)
  offset = bias.best_offset(logits, labels, classes)
  fine = np.linspace(-15, 15, 6001)
  fewest = min(wrong(logits, labels, classes, value) for value in fine)
  assert wrong(logits, labels, classes, offset) <= fewest
  equal = [abs(value) for value in fine if wrong(logits, labels, classes, value) == fewest]
  assert abs(offset) <= min(equal) + 1.0
  assert (offset > 0) == (seed > 2) or abs(offset) < 1


def test_nothing_is_moved_where_nothing_is_gained():
  logits = np.eye(4)[[0, 1, 2, 3, 0]] * 3.0
  assert bias.best_offset(logits, np.array([0, 1, 2, 3, 0]), [2]) == 0.0


def test_all_may_go_over_or_none():
  logits = np.zeros((3, 2)) + np.array([1.0, 0.0])
  assert wrong(logits, np.ones(3, int), [1], bias.best_offset(logits, np.ones(3, int), [1])) == 0
  assert wrong(logits, np.zeros(3, int), [0], bias.best_offset(-logits, np.zeros(3, int), [0])) == 0


def settings(**evaluation):
  data = {'name': 'digits', 'validation': 10, 'test': 0.3, 'train_classes': [0, 1, 2, 4, 5, 6, 7, 8, 9]}
  teacher = {'data': {**data, 'train_classes': None}, 'phases': [{'steps': 60, 'learning_rate': 1e-2}]}
  return {
    'network': {'name': 'mlp', 'hidden': [32]},
    'target': {'data': data},
    'teachers': {'all': teacher},
    'objective': [{'term': 'kd', 'temperature': 2.0}],
    'phases': [{'steps': 60, 'learning_rate': 1e-2}],
    'evaluation': {'every': 60, 'correct': [3], **evaluation},
  }


def test_a_run_measures_its_test_set_with_the_offset_that_validation_data_choose(tmp_path):
  sets = {'threes': {'name': 'digits', 'test': 0.3, 'classes': [3], 'relabel': False}}
  results = transferlab.run(settings(sets=sets), tmp_path / 'run')
  found, offsets = results['last'], results['offsets']['last']
  assert set(offsets) == {'validation', 'test'} and offsets['validation'] > 0
  assert found['test_corrected']['accuracy'] > found['test']['accuracy']
  assert found['test_corrected_on_test']['accuracy'] >= found['test_corrected']['accuracy']
  assert found['threes_corrected']['accuracy'] > found['threes']['accuracy']
  assert 'train_corrected' not in found and 'validation_corrected' not in found


@pytest.mark.parametrize(
  'change, message',
  [
    ({'correct': [11]}, "evaluation.correct: class '11'; nearest"),
    ({'correct': list(range(10))}, 'correct: some class has to stay'),
    ({'sets': {'test_corrected': {'name': 'digits'}}}, 'test_corrected'),
  ],
  ids=range(3),
)
def test_mistakes_end_in_one_message(change, message):
  with pytest.raises(UserError, match=message):
    prepare(config.validate(Run, settings(**change)))


def test_an_offset_needs_validation_data_to_be_chosen_on():
  values = settings()
  del values['target']['data']['validation']
  with pytest.raises(UserError, match='correct chooses an offset on validation data'):
    prepare(config.validate(Run, values))
