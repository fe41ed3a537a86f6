"""TFDS: what is read equals what TFDS itself gives, without TensorFlow or a network; whatever cannot be read says why.

Small data sets are prepared here with TFDS's own tools, and then read from their files.
"""

import concurrent.futures
import io
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from transferlab.data import tfds_builders
from transferlab.data.decoding import Resize
from transferlab.data.examples import digest
from transferlab.data.sources import Data, load
from transferlab.data.tfds import _opened, read_tfds
from transferlab.errors import UserError

FOLDER = os.environ.get('TRANSFERLAB_TEST_DATA')
needs_data = pytest.mark.skipif(not FOLDER, reason='TRANSFERLAB_TEST_DATA is unset')
ClassLabel, FeaturesDict, Tensor, Text = (
  getattr(tfds.features, name) for name in ('ClassLabel', 'FeaturesDict', 'Tensor', 'Text')
)
tfds.disable_progress_bar()


class _Base(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Prepares `PARTS`: examples by the name of their split."""

  VERSION = tfds.core.Version('1.2.0')

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=FeaturesDict(self.FEATURES), supervised_keys=self.KEYS)

  def _split_generators(self, manager):
    return {part: self._generate_examples(part) for part in self.PARTS}

  def _generate_examples(self, part):
    yield from enumerate(self.PARTS[part])


def _prepared(place, features, parts, keys=None, name='mine'):
  """A prepared data set, of which only the files stay: no builder of its name is known. Gives the folder's name."""
  made = {'FEATURES': features, 'PARTS': parts, 'KEYS': keys, '__module__': __name__}
  builder = type(_Base)(name.title(), (_Base,), made, skip_registration=True)
  builder(data_dir=place, file_format='array_record').download_and_prepare(file_format='array_record')
  return str(place)


def _read(folder, inputs=None, label=None, task=None, resize=None, name='mine'):
  return read_tfds(name, folder, inputs, label, task, resize)


def _refused(folder, *arguments, name='mine', **options):
  with pytest.raises(UserError) as caught:
    _read(folder, *arguments, name=name, **options)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def _truth(folder, part, name='mine'):
  """The examples as TFDS decodes them, in its order."""
  return list(tfds.builder(name, data_dir=folder).as_data_source(split=part))


def _encoded(image, form='PNG'):
  stream = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, form)
  stream.seek(0)
  return stream


def _pixels(number, height=5, width=4, channels=3):
  return np.random.default_rng(number).integers(0, 256, (height, width, channels)).astype(np.uint8)


def _pictures(place, shape=(5, 4, 3), **features):
  """Images in two parts, of one size or (None) of several."""
  example = lambda n: {
    'image': _encoded(_pixels(n, shape[0] or 5 + n, shape[1] or 9 - n, shape[2] or 3)),
    'label': n % 2,
    **dict.fromkeys(features, n % 2),
  }
  kinds = {'image': tfds.features.Image(shape=shape), 'label': ClassLabel(names=['no', 'yes']), **features}
  parts = {'train': [example(n) for n in range(5)], 'test': [example(n) for n in range(5, 8)]}
  return _prepared(place, kinds, parts, ('image', 'label'))


# ------------------------------------------------------------------------------------------------------- real data
ALONE = """
import importlib.abc, socket, sys

class WithoutTensorFlow(importlib.abc.MetaPathFinder):
  def __init__(self, finders): self.finders = finders
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] == 'tensorflow': return None
    found = (finder.find_spec(name, path, target) for finder in self.finders)
    return next((spec for spec in found if spec is not None), None)

sys.meta_path[:] = [WithoutTensorFlow(sys.meta_path[:])]

def refuse(*arguments, **options): raise AssertionError('a socket was used')

for name in ('connect', 'connect_ex', 'sendto', 'bind'): setattr(socket.socket, name, refuse)
socket.getaddrinfo = refuse

import numpy as np
from transferlab.data.sources import Data, load

for name in sys.argv[3:]:
  loaded = load(Data(name=f'tfds:{name}', folder=sys.argv[1], hold='stream'), 0)
  splits = loaded.splits
  ends = np.array([splits['train'][0], splits['train'][-1], splits['test'][0], splits['test'][-1]])
  x = loaded.examples.arrays['x'][ends]
  label = loaded.examples.arrays['label']
  np.savez(f'{sys.argv[2]}/{name}.npz', x=x.astype(str) if x.dtype == object else x, classes=loaded.info.classes,
           train=label[splits['train']], test=label[splits['test']])
assert not [name for name in sys.modules if name.partition('.')[0] == 'tensorflow']
"""


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """What a process finds that has neither TensorFlow nor a network, by the name of the data set."""
  if not FOLDER:
    pytest.skip('TRANSFERLAB_TEST_DATA is unset')
  place = tmp_path_factory.mktemp('alone')
  names = ('mnist', 'cifar10_jpeg', 'imdb_reviews')
  command = [sys.executable, '-c', ALONE, f'{FOLDER}/tfds', str(place), *names]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return {name: dict(np.load(place / f'{name}.npz')) for name in names}


@pytest.mark.parametrize(
  ('name', 'key', 'count'), [('mnist', 'image', 7000), ('cifar10_jpeg', 'image', 6000), ('imdb_reviews', 'text', 25000)]
)
def test_real_data_sets_are_read_without_tensorflow_or_network(alone, name, key, count):
  """Labels are counted through TFDS's data source; first and last inputs of both parts are those TFDS decodes."""
  builder, found = tfds.builder(name, data_dir=f'{FOLDER}/tfds'), alone[name]
  whole = 0
  for place, part in enumerate(('train', 'test')):
    skip = {key: tfds.decode.SkipDecoding()} if key == 'image' else None
    source = builder.as_data_source(split=part, decoders=skip)
    labels = np.array([record['label'] for record in source.__getitems__(list(range(len(source))))])
    np.testing.assert_array_equal(found[part], labels)
    whole = whole + np.bincount(labels)
    decoded = builder.as_data_source(split=part)
    for row, number in enumerate((0, len(source) - 1)):
      truth = decoded[number][key]
      np.testing.assert_array_equal(found['x'][2 * place + row], truth.decode() if key == 'text' else truth)
  assert whole.tolist() == {'mnist': [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]}.get(
    name, [count] * len(whole)
  )
  assert found['classes'].tolist() == builder.info.features['label'].names


@needs_data
def test_images_of_any_rows_over_all_parts_are_those_of_tfds():
  x = read_tfds('mnist', f'{FOLDER}/tfds', None, None, None, None).arrays['x']
  rows = np.array([60000, 0, 69999, 59999, 7, 60000])
  sources = [tfds.builder('mnist', data_dir=f'{FOLDER}/tfds').as_data_source(split=part) for part in ('train', 'test')]
  expected = [sources[row // 60000][row % 60000]['image'] for row in rows.tolist()]
  np.testing.assert_array_equal(x[rows], expected)


# ------------------------------------------------------------------------------------------------------- images
def test_images_and_labels_are_those_that_were_prepared(tmp_path):
  folder = _pictures(tmp_path)
  examples = _read(folder)
  truth = [*_truth(folder, 'train'), *_truth(folder, 'test')]
  np.testing.assert_array_equal(np.asarray(examples.arrays['x']), [record['image'] for record in truth])
  assert examples.arrays['label'].tolist() == [record['label'] for record in truth]
  assert {name: rows.tolist() for name, rows in examples.official.items()} == {'train': [*range(5)], 'test': [5, 6, 7]}
  info = examples.info
  assert (info.kind, info.task, info.classes, info.high) == ('image', 'classification', ('no', 'yes'), 255)
  assert info.origin == 'TFDS mine/1.2.0'


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_grey_stays_grey_and_alpha_is_left_out(tmp_path, channels):
  folder = _pictures(tmp_path, (5, 4, channels))
  x = np.asarray(_read(folder).arrays['x'])
  kept = [record['image'][..., :3] for part in ('train', 'test') for record in _truth(folder, part)]
  np.testing.assert_array_equal(x, kept)


def test_images_of_several_sizes_need_one_to_be_brought_to(tmp_path):
  folder = _pictures(tmp_path, (None, None, 3))
  assert 'its images differ in size; set data.resize, for example resize=dict(size=224)' in _refused(folder)
  x = _read(folder, resize=Resize(size=[3, 2], mode='exact')).arrays['x']
  assert x.shape == (8, 3, 2, 3)
  for row, record in enumerate(_truth(folder, 'train')):
    mean = record['image'].mean(axis=(0, 1))
    assert np.abs(x[row].mean(axis=(0, 1)) - mean).max() <= 1  # averages over areas keep the mean


def test_images_that_are_no_bytes_are_refused_as_inputs(tmp_path):
  deep = {'depth': tfds.features.Image(shape=(2, 2, 1), dtype=np.uint16), 'label': ClassLabel(num_classes=2)}
  example = {'depth': io.BytesIO(_encoded(np.full((2, 2, 1), 9, np.uint8)).read()), 'label': 1}
  folder = _prepared(tmp_path, deep, {'train': [example] * 3})
  assert "the images 'depth' are uint16; only 8-bit ones can be read" in _refused(folder)


def test_an_image_is_no_label_even_where_it_is_supervised_by_itself(tmp_path):
  image = {'image': tfds.features.Image(shape=(5, 4, 3))}
  folder = _prepared(tmp_path, image, {'train': [{'image': _encoded(_pixels(0))}]}, ('image', 'image'))
  assert 'does not say what its label is; it has' in _refused(folder)
  assert 'is of type Image of shape (5, 4, 3); a label is one number or name' in _refused(folder, label='image')


def test_a_column_of_images_reads_the_same_in_threads_and_in_other_processes(tmp_path):
  x = _read(_pictures(tmp_path)).arrays['x']
  whole = np.asarray(x)
  np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(x))), whole)
  for start in ('spawn', 'fork'):
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context(start)) as pool:
      np.testing.assert_array_equal(pool.submit(np.asarray, x.take(np.array([7, 0]))).result(60), whole[[7, 0]])
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for row, found in enumerate(pool.map(lambda row: x[[row, 6]], range(8))):
      np.testing.assert_array_equal(found, whole[[row, 6]])


def test_the_digest_knows_the_version_the_feature_and_the_size(tmp_path):
  folder = _pictures(tmp_path / 'first', other=ClassLabel(num_classes=2))
  moved = shutil.copytree(folder, tmp_path / 'moved')
  ways = [(folder,), (str(moved),), (folder, None, 'other'), (folder, None, None, None, Resize(size=2))]
  digests = [digest(_read(*way)) for way in ways]
  assert digests[0] == digests[1] and len(set(digests)) == 3


# ------------------------------------------------------------------------------------------------------- tables, texts
TABLE = {
  'row': FeaturesDict({
    'age': np.float32, 'city': Text(), 'kind': ClassLabel(names=['old', 'new']), 'on': np.bool_,
    'more': FeaturesDict({'count': np.int64}),
  }),
  'label': ClassLabel(names=['no', 'yes']),
  'angle': np.float64, 'grade': np.int32, 'word': Text(), 'vector': Tensor(shape=(3,), dtype=np.float32),
  'target': Tensor(shape=(2,), dtype=np.float64), 'open': Tensor(shape=(None,), dtype=np.float32),
  'square': Tensor(shape=(2, 2), dtype=np.float32), 'several': tfds.features.Sequence(ClassLabel(num_classes=3)),
  'list': tfds.features.Sequence({'word': Text()}),
}  # fmt: skip


def _row(n):
  return {
    'row': {
      'age': np.nan if n == 4 else n / 3, 'city': ['Ulm', 'Århus', ''][n % 3], 'kind': [0, 1, -1][n % 3], 'on': n > 2,
      'more': {'count': n * n},
    },
    'label': n % 2, 'angle': n / 7, 'grade': [3, 5, 8][n % 3], 'word': ['b', 'a'][n % 2],
    'vector': np.array([n, -n, 0.5], np.float32), 'target': np.array([n, 1.0]),
    'open': np.ones(n, np.float32), 'square': np.ones((2, 2), np.float32), 'several': [1] * n,
    'list': [{'word': 'x'}] * n,
  }  # fmt: skip


@pytest.fixture(scope='module')
def table(tmp_path_factory):
  place = tmp_path_factory.mktemp('table')
  parts = {'train': [_row(n) for n in range(9)], 'validation': [_row(n) for n in range(9, 12)]}
  return _prepared(place, TABLE, parts, ('row', 'label'))


def _records(table):
  return [*_truth(table, 'train'), *_truth(table, 'validation')]


def test_a_dict_of_numbers_classes_and_strings_is_a_table(table):
  examples, records = _read(table), [record['row'] for record in _records(table)]
  # By name: files keep no order of features, and it must not change from process to process.
  assert (examples.info.kind, examples.info.columns) == ('table', ('age', 'city', 'kind', 'more/count', 'on'))
  cities = sorted({'', 'Ulm', 'Århus'})
  expected = {
    'age': [record['age'] for record in records],
    'city': [cities.index(record['city'].decode()) for record in records],
    'kind': [np.nan if record['kind'] < 0 else record['kind'] for record in records],
    'more/count': [record['more']['count'] for record in records],
    'on': [float(record['on']) for record in records],
  }
  assert np.isnan(expected['age']).sum() == 1 and np.isnan(expected['kind']).sum() == 4
  for number, name in enumerate(examples.info.columns):
    np.testing.assert_array_equal(examples.arrays['x'][:, number], np.array(expected[name], np.float32), name)
  assert examples.info.categories == {'city': tuple(cities), 'kind': ('old', 'new')}
  assert examples.arrays['label'].tolist() == [record['label'] for record in _records(table)]


@pytest.mark.parametrize(
  ('inputs', 'columns'),
  [('vector', ('vector0', 'vector1', 'vector2')), ('angle', ('angle',)), ('row/more/count', ('row/more/count',)),
   (['angle', 'row/more', 'grade'], ('angle', 'row/more/count', 'grade'))],
  ids=str,
)  # fmt: skip
def test_vectors_numbers_and_lists_of_features_are_tables(table, inputs, columns):
  examples = _read(table, inputs)
  assert (examples.info.columns, examples.info.categories) == (columns, {})
  value = lambda record, path: record if not path else value(record[path[0]], path[1:])
  paths = [column.split('/') for column in columns] if inputs != 'vector' else [['vector']]
  expected = [np.concatenate([np.atleast_1d(value(record, path)) for path in paths]) for record in _records(table)]
  np.testing.assert_array_equal(examples.arrays['x'], np.array(expected, np.float32))


def test_a_number_of_a_class_as_input_is_a_category(table):
  assert _read(table, 'row/kind', 'label').info.categories == {'row/kind': ('old', 'new')}


def test_texts_are_strings(table):
  examples = _read(table, 'row/city')
  assert (examples.info.kind, examples.arrays['x'].dtype) == ('text', object)
  assert examples.arrays['x'].tolist() == [record['row']['city'].decode() for record in _records(table)]


def test_labels_may_be_classes_strings_whole_numbers_or_numbers_to_regress_on(table):
  records = _records(table)
  words, grades = _read(table, label='word'), _read(table, label='grade')
  assert words.info.classes == ('a', 'b')
  assert words.arrays['label'].tolist() == ['ab'.index(record['word'].decode()) for record in records]
  assert grades.info.classes == ('3', '5', '8')
  assert grades.arrays['label'].tolist() == [[3, 5, 8].index(record['grade']) for record in records]
  regression = [
    ('angle', None, ('angle',)),
    ('grade', 'regression', ('grade',)),
    ('label', 'regression', ('label',)),
    ('target', None, ('target0', 'target1')),
  ]
  for key, task, targets in regression:
    found = _read(table, label=key, task=task)
    assert (found.info.task, found.info.targets, found.info.outputs) == ('regression', targets, len(targets))
    expected = np.array([np.atleast_1d(record[key]) for record in records], np.float32)
    np.testing.assert_array_equal(found.arrays['label'], expected)


def test_several_labels_make_several_tasks(table):
  examples = _read(table, label=['word', 'angle'])
  assert [info.task for info in examples.info.tasks.values()] == ['classification', 'regression']
  assert (examples.info.task, examples.info.classes) == ('classification', ('a', 'b'))
  np.testing.assert_array_equal(examples.arrays['label']['angle'], _read(table, label='angle').arrays['label'])
  np.testing.assert_array_equal(examples.arrays['label']['word'], _read(table, label='word').arrays['label'])


def test_keys_are_found_where_there_are_no_supervised_ones_or_several(tmp_path):
  kinds = {'text': Text(), 'length': np.float32, 'width': np.float32, 'sort': ClassLabel(num_classes=2)}
  rows = [{'text': f't{n}', 'length': n, 'width': -n, 'sort': n % 2} for n in range(4)]
  alone = _read(_prepared(tmp_path / 'none', kinds, {'train': rows}))
  assert alone.arrays['x'].tolist() == [record['text'].decode() for record in _truth(tmp_path / 'none', 'train')]
  assert (alone.info.classes, alone.official) == (('0', '1'), None)
  keys = ({'a': 'length', 'b': 'width'}, 'sort')
  both = _read(_prepared(tmp_path / 'several', kinds, {'train': rows}, keys))
  assert both.info.columns == ('length', 'width')
  np.testing.assert_array_equal(both.arrays['x'][:, 0], -both.arrays['x'][:, 1])
  several = {'a': np.float32, 'b': np.float32, 'c': ClassLabel(num_classes=2), 'd': ClassLabel(num_classes=2)}
  folder = _prepared(tmp_path / 'more', several, {'train': [dict.fromkeys('abcd', 1)]})
  assert 'does not say what its inputs is; it has a, b, c, d: set data.inputs' in _refused(folder)
  assert 'does not say what its label is; it has b, c, d: set data.label' in _refused(folder, 'a')


@pytest.mark.parametrize(
  ('inputs', 'label', 'says'),
  [
    ('vektor', None, "unknown data.inputs of tfds:mine 'vektor'; nearest: vector"),
    ('row/agee', None, "'row/agee'; nearest: row/age"),
    ('row/age/x', None, "'row/age/x'; nearest: row/age"),
    (None, 'labell', "unknown data.label of tfds:mine 'labell'; nearest: label"),
    ('open', None, "'open' is of type Tensor of shape (None,); images, texts, vectors of one length"),
    ('square', None, "'square' is of type Tensor of shape (2, 2)"),
    ('several', None, "'several' is of type Sequence of shape (None,)"),
    ('list', None, "'list' is of type Sequence"),
    (['angle', 'open'], None, "'open' is of type Tensor of shape (None,)"),
    (None, 'vectors', 'unknown data.label'),
    (None, 'open', "'open' is of type Tensor of shape (None,); a label is one number or name"),
    (None, 'several', "'several' is of type Sequence of shape (None,); a label"),
    (None, 'row', "'row' is of type FeaturesDict"),
    (None, 'list', "'list' is of type Sequence"),
  ],
)
def test_features_that_are_absent_or_unfit_are_named(table, inputs, label, says):
  assert says in _refused(table, inputs, label)


def test_numbers_that_are_infinite_and_labels_that_are_missing_are_named(tmp_path):
  kinds = {'x': np.float32, 'v': Tensor(shape=(2,), dtype=np.float32), 'y': np.float32, 'c': ClassLabel(num_classes=2)}
  rows = [{'x': 1, 'v': np.zeros(2, np.float32), 'y': 0, 'c': n % 2} for n in range(4)]
  rows[2] = {'x': np.inf, 'v': np.array([0, -np.inf], np.float32), 'y': np.nan, 'c': 0}
  folder = _prepared(tmp_path, kinds, {'train': rows})
  place = [bool(np.isnan(record['y'])) for record in _truth(folder, 'train')].index(True)
  assert f"'x' has 1 infinite values, the first in example {place}" in _refused(folder, 'x')
  assert f"'v' has 1 infinite values, the first in example {place}" in _refused(folder, 'v')
  assert f"'y' is NaN or infinite in 1 places, first in example {place}" in _refused(folder, 'c', 'y')


def test_bytes_that_are_no_unicode_are_replaced(tmp_path):
  rows = [{'text': text, 'label': n % 2} for n, text in enumerate([b'caf\xe9', b'plain'])]
  folder = _prepared(tmp_path, {'text': Text(), 'label': ClassLabel(num_classes=2)}, {'train': rows})
  assert set(_read(folder).arrays['x']) == {'caf\ufffd', 'plain'}


def test_examples_without_label_are_read_and_only_refused_where_they_are_used(tmp_path):
  kinds = {'text': Text(), 'label': ClassLabel(names=['no', 'yes'])}
  parts = {
    'test': [{'text': f'x{n}', 'label': -1} for n in range(5)],
    'train': [{'text': f't{n}', 'label': n % 2} for n in range(20)],
    'validation': [{'text': f'v{n}', 'label': n % 2} for n in range(6)],
  }
  folder = _prepared(tmp_path, kinds, parts, ('text', 'label'))
  assert np.bincount(_read(folder).arrays['label'] + 1).tolist() == [5, 13, 13]
  with pytest.raises(UserError, match='5 of the examples named have no label'):
    load(Data(name='tfds:mine', folder=folder), 0)
  loaded = load(Data(name='tfds:mine', folder=folder, test='validation'), 0)
  assert {name: len(rows) for name, rows in loaded.splits.items()} == {'train': 20, 'test': 6}
  assert set(loaded.examples.arrays['label']) == {0, 1}


# ------------------------------------------------------------------------------------------------------- names
def test_unknown_names_offer_those_of_tfds_and_of_the_folder(tmp_path):
  folder = _prepared(tmp_path, {'x': np.float32, 'c': ClassLabel(num_classes=2)}, {'train': [{'x': 1, 'c': 0}]})
  (tmp_path / 'minx').mkdir()  # not prepared: never offered
  assert "unknown TFDS data set 'mime'; nearest: mine" in _refused(folder, name='mime')
  assert 'minx' not in _refused(folder, name='mime')
  assert 'nearest: mnist,' in _refused(folder, name='mnits')
  assert "unknown TFDS data set 'nothing'" in _refused(str(tmp_path / 'nowhere'), name='nothing')


def test_data_sets_are_known_that_tfds_only_imports_with_tensorflow(tmp_path):
  """Without TensorFlow TFDS itself knows neither iris nor glue."""
  assert tfds_builders.find('iris', str(tmp_path)).info.full_name == 'iris/2.1.0'
  assert tfds_builders.find('glue/sst2', str(tmp_path)).info.features['label'].names == ['negative', 'positive']


@pytest.mark.parametrize(
  ('name', 'says'),
  [
    ('mnist:9.9.9', 'Dataset mnist cannot be loaded at version 9.9.9, only: 3.0.1.'),
    ('imdb_reviews/plain', "unknown configuration of tfds:imdb_reviews 'plain'; nearest: plain_text"),
    ('../mnist', 'this is no name; NAME, NAME/CONFIG and NAME:VERSION are'),
    ('a b', 'this is no name'),
    ('mnist/3/4', 'this is no name'),
  ],
)
def test_versions_and_configurations_that_do_not_exist_are_named(tmp_path, name, says):
  assert says in _refused(str(tmp_path), name=name)


def test_a_file_in_place_of_the_folder_is_called_one(tmp_path):
  (tmp_path / 'file').touch()
  assert 'is a file; needed: the folder' in _refused(str(tmp_path / 'file'), name='mnist')


# ------------------------------------------------------------------------------------------------------- preparing
class Unprepared(_Base):
  """A data set that this process knows, and that stands nowhere yet."""

  FEATURES, KEYS, PARTS = (
    {'x': np.float32, 'label': ClassLabel(num_classes=2)},
    ('x', 'label'),
    {'train': [{'x': n, 'label': n % 2} for n in range(30)]},
  )


PREPARING = """
import os, sys
import numpy as np
sys.path[:0] = {path!r}
import test_tfds
def spoil(self, part):
  for n, example in enumerate(self.PARTS[part]):
    if n == 20: {spoil}
    yield n, example
test_tfds.Unprepared._generate_examples = spoil
builder = test_tfds.Unprepared(data_dir=sys.argv[2], file_format='array_record')
builder.download_and_prepare(file_format='array_record')
"""


@pytest.fixture
def preparing(monkeypatch):
  """`preparing(statement)`: from now on preparing runs this statement at example 20."""
  here = [str(Path(__file__).parent)]
  return lambda spoil: monkeypatch.setattr(tfds_builders, 'PREPARE', PREPARING.format(path=here, spoil=spoil))


def test_what_is_not_prepared_is_prepared_once_in_another_process(tmp_path, preparing, capfd):
  preparing('pass')
  x = _read(str(tmp_path), name='unprepared').arrays['x']
  assert sorted(x[:, 0]) == [*range(30)]
  assert 'preparing tfds:unprepared (once' in capfd.readouterr().err
  preparing('os._exit(1)')
  np.testing.assert_array_equal(_read(str(tmp_path), name='unprepared').arrays['x'], x)


@pytest.mark.parametrize('end', ['os._exit(9)', 'os.kill(os.getpid(), 9)'])
def test_preparing_that_was_interrupted_is_done_again(tmp_path, preparing, end):
  preparing(end)
  assert 'tfds:unprepared could not be prepared: it said nothing' in _refused(str(tmp_path), name='unprepared')
  assert list((tmp_path / 'unprepared').glob('incomplete*'))
  preparing('pass')
  assert len(_read(str(tmp_path), name='unprepared')) == 30


def test_a_disk_that_is_full_while_preparing_is_said_in_one_sentence(tmp_path, preparing):
  """/dev/full refuses what is written to it as a full disk does."""
  if not Path('/dev/full').exists():
    pytest.skip('there is no /dev/full')
  preparing("open('/dev/full', 'wb', buffering=0).write(b'x')")
  assert 'the disk is full; data.folder names another place' in _refused(str(tmp_path), name='unprepared')


NO_NETWORK = """Traceback (most recent call last):
  File "requests/adapters.py", line 729, in send
    raise ConnectionError(e, request=request)
requests.exceptions.ConnectionError: HTTPSConnectionPool(host='archive.ics.uci.edu', port=443): Max retries exceeded \
with url: /static/public/53/iris.zip (Caused by NameResolutionError("HTTPSConnection(host='archive.ics.uci.edu', \
port=443): Failed to resolve 'archive.ics.uci.edu' ([Errno -2] Name or service not known)"))
"""
FULL = """Traceback (most recent call last):
  File "tensorflow_datasets/core/file_adapters.py", line 355, in write_examples
    writer.close()
RuntimeError: Failed to finalize writing of split "train": write() failed: No space left on device; writing \
/tmp/small/fat/incomplete.43WCLX_1.0.0/fat-train.array_record-00000-of-00001; at byte 2097152
"""
TOO_SMALL = 'OSError: Not enough disk space. Needed: 4.00 GiB (download: 1.00 GiB, generated: 3.00 GiB)'
NO_TENSORFLOW = """ModuleNotFoundError: Failed to encode example:
{'image': array([[[0, 0, 0]]], dtype=uint8), 'label': 0}
In <Image> with name "image":
No module named 'tensorflow'
"""
INSTALL = "this data set needs TensorFlow to be prepared; pip install 'transferlab[prepare]', and run the same again"


@pytest.mark.parametrize(
  ('output', 'says'),
  [
    (NO_NETWORK, 'there is no network, or its server does not answer'),
    (FULL, 'the disk is full; data.folder names another place'),
    (TOO_SMALL, 'the disk is full; data.folder names another place'),
    (NO_TENSORFLOW, INSTALL),
    ('Traceback\n  File "x"\nValueError: the checksum is wrong\n\n', 'ValueError: the checksum is wrong'),
    ('', 'it said nothing'),
  ],
  ids=['network', 'full', 'small', 'tensorflow', 'other', 'silent'],
)
def test_why_preparing_failed_is_said_in_one_sentence(tmp_path, monkeypatch, output, says):
  """The outputs are those of TFDS 4.9.10 in such cases, shortened."""
  commands = []

  def run(command, **options):
    commands.append(command)
    return subprocess.CompletedProcess(command, 1, '', output)

  monkeypatch.setattr(subprocess, 'run', run)
  message = _refused(str(tmp_path), name='unprepared')
  assert message == f'tfds:unprepared could not be prepared: {says}'
  assert commands[0][:2] == [sys.executable, '-c'] and commands[0][3:] == ['unprepared', str(tmp_path)]


@pytest.mark.skipif(find_spec('tensorflow') is not None, reason='TensorFlow is installed')
def test_data_sets_whose_builder_needs_tensorflow_say_so(tmp_path):
  assert _refused(str(tmp_path), name='titanic') == f'tfds:titanic: {INSTALL}'
  with pytest.raises(UserError, match=r'titanic could not be prepared: .*pip install'):
    tfds_builders.prepare('titanic', str(tmp_path))


class NeedsTensorflow(_Base):
  """A data set whose builder cannot even be made."""

  def _info(self):
    raise ModuleNotFoundError("No module named 'tensorflow'", name='tensorflow')


def test_what_is_prepared_is_read_even_where_its_builder_cannot_be_made(tmp_path):
  kinds = {'x': np.float32, 'label': ClassLabel(num_classes=2)}
  rows = {'train': [{'x': n, 'label': n % 2} for n in range(6)]}
  made = {'FEATURES': kinds, 'PARTS': rows, 'KEYS': ('x', 'label'), '__module__': __name__}
  builder = type(_Base)('NeedsTensorflow', (_Base,), made, skip_registration=True)
  builder(data_dir=tmp_path, file_format='array_record').download_and_prepare(file_format='array_record')
  assert sorted(_read(str(tmp_path), name='needs_tensorflow').arrays['x'][:, 0]) == [*range(6)]
  assert INSTALL in _refused(str(tmp_path / 'elsewhere'), name='needs_tensorflow')


# ------------------------------------------------------------------------------------------------------- damage
def _files(folder, name='mine'):
  place = Path(folder) / name / '1.2.0'
  return place, sorted(place.glob('*.array_record*'))


@pytest.mark.parametrize('damage', ['cut', 'empty', 'changed', 'missing', 'words'])
def test_damaged_files_end_with_one_message(tmp_path, damage):
  rows = [{'x': np.random.default_rng(n).normal(size=500).astype(np.float32), 'label': n % 2} for n in range(60)]
  kinds = {'x': Tensor(shape=(500,), dtype=np.float32), 'label': ClassLabel(num_classes=2)}
  folder = _prepared(tmp_path, kinds, {'train': rows}, ('x', 'label'))
  place, (file,) = _files(folder)
  whole = file.read_bytes()
  middle = len(whole) // 3
  {
    'cut': lambda: file.write_bytes(whole[: len(whole) // 2]),
    'empty': lambda: file.write_bytes(b''),
    'changed': lambda: file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]),
    'missing': file.unlink,
    'words': lambda: file.write_bytes(b'not a record ' * 9000),
  }[damage]()
  message = _refused(folder)
  assert message.startswith(f"'train' of {place} cannot be read: a file is damaged, cut short or missing (")


def test_files_that_go_after_loading_are_named_when_they_are_read(tmp_path):
  folder = _pictures(tmp_path)
  x = _read(folder).arrays['x']
  place, files = _files(folder)
  for file in files:
    file.unlink()
  _opened.cache_clear()
  with pytest.raises(UserError, match=f"'test' of {place} cannot be read"):
    x[7]


@pytest.mark.parametrize('file', ['dataset_info.json', 'features.json'])
def test_a_damaged_description_ends_with_one_message(tmp_path, file):
  folder = _pictures(tmp_path)
  (_files(folder)[0] / file).write_text('{"a')
  _refused(folder)


def test_a_damaged_image_names_the_example(tmp_path):
  rows = [{'image': _encoded(_pixels(n)), 'label': n % 2} for n in range(4)]
  rows[1]['image'] = io.BytesIO(b'\x89PNG\r\n\x1a\n no pixels')
  kinds = {'image': tfds.features.Image(shape=(None, None, 3)), 'label': ClassLabel(num_classes=2)}
  folder = _prepared(tmp_path, kinds, {'train': rows}, ('image', 'label'))
  x = _read(folder, resize=Resize(size=4)).arrays['x']
  with pytest.raises(UserError, match=r'^example \d of .*/mine/1\.2\.0 is damaged, or no image$'):
    np.asarray(x)


def test_an_image_of_another_size_than_promised_names_the_example(tmp_path):
  folder = _pictures(tmp_path)
  file = _files(folder)[0] / 'features.json'
  described = json.loads(file.read_text())
  described['featuresDict']['features']['image']['image']['shape']['dimensions'] = ['6', '4', '3']
  file.write_text(json.dumps(described))
  with pytest.raises(UserError, match=r'example 0 of .* is 5×4, and should be 6×4'):
    _read(folder).arrays['x'][0]


def test_files_in_a_format_without_random_access_are_refused(tmp_path):
  folder = _pictures(tmp_path)
  file = _files(folder)[0] / 'dataset_info.json'
  file.write_text(file.read_text().replace('array_record', 'tfrecord'))
  assert 'is prepared as tfrecord, which cannot be read at random' in _refused(folder)


def test_a_data_set_of_no_examples_is_refused(tmp_path):
  folder = _pictures(tmp_path)
  file = _files(folder)[0] / 'dataset_info.json'
  described = json.loads(file.read_text())
  for split in described['splits']:
    split['shardLengths'] = ['0']
  file.write_text(json.dumps(described))
  assert 'tfds:mine holds no examples' in _refused(folder)
