"""Real data sets through every kind of source: as many examples of each class as are known, and a short run on them.

That reading takes neither TensorFlow nor a network is shown in data/test_tfds.py.
"""

import collections
import csv
import os
from pathlib import Path

import numpy as np
import pytest

import transferlab
from transferlab import config
from transferlab.data.sources import Data, load
from transferlab.preparation import prepare
from transferlab.settings import Run

FOLDER = Path(os.environ.get('TRANSFERLAB_TEST_DATA', 'unset'))
pytestmark = [
  pytest.mark.usefixtures('quick_compilation'),
  pytest.mark.skipif(not FOLDER.is_dir(), reason='TRANSFERLAB_TEST_DATA is unset'),
]
# LeCun's page gives 60,000 and 10,000; the histograms are those that many have counted.
MNIST = [
  [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
  [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
]


def _rows(file, column, delimiter=','):
  """The column of a table, read by Python's own reader."""
  with (FOLDER / file).open(newline='') as lines:
    return [row[column] for row in csv.DictReader(lines, delimiter=delimiter)]


def _counts(file, column, delimiter=','):
  found = collections.Counter(_rows(file, column, delimiter))
  return [found[name] for name in sorted(found)]


def _photos(part):
  return [len(list((FOLDER / 'images' / 'hymenoptera' / part / name).iterdir())) for name in ('ants', 'bees')]


def _adult():
  return [_counts(f'tabular/adult-{part}.csv', 'income') for part in ('train', 'test')]


def _trec():
  return [_counts(f'text/trec_{part}.tsv', 'label', '\t') for part in ('train', 'test')]


# Data and network, and the examples of each class for training and for testing.
CLASSES = {
  'MNIST': ({'name': 'tfds:mnist'}, {'name': 'mlp', 'hidden': [16]}, lambda: MNIST),
  'CIFAR-10': (
    {'name': 'tfds:cifar10_jpeg', 'hold': 'stream', 'augment': {'shift': 4, 'flip': True}, 'statistics': 'cifar10'},
    {'name': 'convnet', 'width': 2, 'features': 8},
    lambda: [[5000] * 10, [1000] * 10],
  ),
  'IMDB': ({'name': 'tfds:imdb_reviews', 'hash': 64}, {'name': 'mlp', 'hidden': []}, lambda: [[12500] * 2] * 2),
  'hymenoptera': (
    {'name': 'folder:images/hymenoptera', 'resize': {'size': 32}, 'augment': {'crop': 28, 'flip': True}},
    {'name': 'convnet', 'width': 2, 'features': 8},
    lambda: [_photos('train'), _photos('val')],
  ),
  'adult': (
    {'name': 'csv:tabular/adult-{train,test}.csv', 'label': 'income'},
    {'name': 'mlp', 'hidden': [8]},
    _adult,
  ),
  'TREC': (
    {'name': 'tsv:text/trec_{train,test}.tsv', 'label': 'label', 'hash': 64},
    {'name': 'mlp', 'hidden': []},
    _trec,
  ),
}
NUMBERS = {
  'red wine': ('winequality-red.csv', 'quality', 1599),
  'white wine': ('winequality-white.csv', 'quality', 4898),
  'abalone': ('abalone.csv', 'rings', 4177),
}


def _settings(data, network):
  kind, _, rest = data['name'].partition(':')
  named = {**data, 'name': data['name'] if kind == 'tfds' else f'{kind}:{FOLDER / rest}', 'batch_size': 32}
  phases = [{'steps': 3, 'optimizer': 'adam', 'learning_rate': 1e-3}]
  return {'network': network, 'target': {'data': named}, 'phases': phases, 'logging': {'every': 1}}


def _trained(settings, place):
  """The results of a short run, and how many examples it was tested on."""
  results = transferlab.run(settings, place)
  lines = (place / 'predictions' / 'test.csv').read_text().splitlines()
  assert results['steps'] == 3
  return results['last']['test'], len(lines) - 1


# Reading all their files takes a while.
LARGE = ('CIFAR-10', 'IMDB')


@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=pytest.mark.long if name in LARGE else ()) for name in CLASSES]
)
def test_data_sets_of_classes_hold_what_is_known_of_them_and_train(name, tmp_path):
  data, network, known = CLASSES[name]
  settings, (train, test) = _settings(data, network), known()
  loaded = prepare(config.validate(Run, settings)).loaded
  for split, counts in (('train', train), ('test', test)):
    labels = loaded.examples.arrays['label'][loaded.splits[split]]
    assert np.bincount(labels).tolist() == counts
  found, tested = _trained(settings, tmp_path / 'run')
  assert tested == sum(test)
  assert 0 < found['accuracy'] < 1


@pytest.mark.parametrize('name', NUMBERS)
def test_data_sets_to_regress_on_hold_what_is_known_of_them_and_train(name, tmp_path):
  file, label, count = NUMBERS[name]
  settings = _settings({'name': f'csv:tabular/{file}', 'label': label, 'task': 'regression'}, {'name': 'mlp'})
  loaded = prepare(config.validate(Run, settings)).loaded
  values = np.array(_rows(f'tabular/{file}', label), np.float64)
  assert len(loaded.examples) == len(values) == count
  np.testing.assert_allclose(np.sort(loaded.examples.arrays['label'].ravel()), np.sort(values))
  found, tested = _trained(settings, tmp_path / 'run')
  assert tested == len(loaded.splits['test']) == pytest.approx(count / 4, abs=1)
  assert np.isfinite(found['mean_absolute_error'])


def test_reviews_are_strings_until_they_are_hashed():
  loaded = load(Data(name='tfds:imdb_reviews'), 0)
  assert loaded.info.kind == 'text'
  assert all(isinstance(text, str) and len(text) > 20 for text in loaded.examples.arrays['x'][:100])
