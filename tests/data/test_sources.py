"""Sources: what is read equals what lies there, splits never leak, and unfit data end with one clear message."""

import os
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
import sklearn.datasets

from transferlab.config import identity, validate
from transferlab.data import folders, image, settings, sources
from transferlab.data.augmentation import Augment
from transferlab.data.columns import Column
from transferlab.data.examples import digest
from transferlab.data.sources import Data, load
from transferlab.errors import UserError


def _ids(loaded, split):
  return set(loaded.examples.arrays['id'][loaded.splits[split]].tolist())


def _npz(folder, **arrays):
  np.savez(folder / 'mine.npz', **arrays)
  return f'npz:{folder / "mine.npz"}'


def _grey(count=12, classes=3):
  x = np.random.default_rng(0).integers(0, 256, (count, 4, 5)).astype(np.uint8)
  return {'x': x, 'y': np.arange(count) % classes}


def _refused(match, name, **options):
  with pytest.raises(UserError, match=match):
    load(Data(name=name, **options), 0)


def test_reading_a_config_imports_neither_jax_nor_scikit_learn():
  code = 'import sys, transferlab.data.sources; print([m for m in ("jax", "sklearn", "cv2") if m in sys.modules])'
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '[]\n'


def test_digits_are_the_images_of_scikit_learn():
  loaded, bunch = load(Data(name='digits'), 0), sklearn.datasets.load_digits()
  ids = loaded.examples.arrays['id']
  np.testing.assert_array_equal(loaded.examples.arrays['x'][..., 0], bunch.images[ids])
  np.testing.assert_array_equal(loaded.examples.arrays['label'], bunch.target[ids])
  assert (loaded.info.low, loaded.info.high, loaded.info.outputs) == (0.0, 16.0, 10)
  assert (loaded.preprocessing['shift'], loaded.preprocessing['scale']) == ([0.0], [16.0])


@pytest.mark.parametrize(
  ('name', 'options', 'outputs'),
  [('iris', {}, 3), ('wine', {}, 3), ('breast_cancer', {}, 2), ('diabetes', {'scaled': False}, 1), ('linnerud', {}, 3)],
)
def test_tables_are_those_of_scikit_learn(name, options, outputs):
  loaded, bunch = load(Data(name=name), 0), getattr(sklearn.datasets, f'load_{name}')(**options)
  ids, label = loaded.examples.arrays['id'], loaded.examples.arrays['label']
  np.testing.assert_array_equal(loaded.examples.arrays['x'], bunch.data[ids].astype(np.float32))
  np.testing.assert_array_equal(label, bunch.target[ids].reshape(label.shape))
  assert loaded.info.columns == tuple(bunch.feature_names)
  assert loaded.info.outputs == outputs
  train = bunch.data[ids[loaded.splits['train']]]
  np.testing.assert_allclose(loaded.preprocessing['shift'], train.mean(axis=0), rtol=1e-6)


def test_splits_are_disjoint_cover_everything_and_count_the_labels_used():
  loaded = load(Data(name='digits', validation=0.2), 0)
  parts = [_ids(loaded, split) for split in ('train', 'validation', 'test')]
  assert set().union(*parts) == set(range(1797))
  assert sum(map(len, parts)) == 1797
  assert loaded.labels == {'train': len(parts[0]), 'validation': len(parts[1])}
  few = load(Data(name='digits', validation=3, shots=5), 0)
  assert few.labels == {'train': 50, 'validation': 30}


def test_the_run_seed_moves_validation_and_shots_but_never_the_test_split():
  data = Data(name='digits', validation=3, shots=5)
  first, second = load(data, 0), load(data, 1)
  assert _ids(first, 'test') == _ids(second, 'test')
  assert _ids(first, 'train') != _ids(second, 'train')
  assert _ids(first, 'validation') != _ids(second, 'validation')
  fixed = Data(name='digits', validation=3, shots=5, seed=0)
  assert _ids(load(fixed, 1), 'train') == _ids(first, 'train')
  assert _ids(load(Data(name='digits', split_seed=1), 0), 'test') != _ids(first, 'test')


def test_no_half_or_subset_trains_on_what_another_is_tested_on():
  whole = load(Data(name='digits'), 0)
  halves = [load(Data(name='digits', half=half), 0) for half in (0, 1)]
  subset = load(Data(name='digits', half=0, classes=[7, 1]), 0)
  assert set(halves[0].examples.arrays['id']).isdisjoint(halves[1].examples.arrays['id'])
  assert _ids(halves[0], 'test') | _ids(halves[1], 'test') == _ids(whole, 'test')
  assert _ids(halves[0], 'train') | _ids(halves[1], 'train') == _ids(whole, 'train')
  assert _ids(subset, 'test') <= _ids(halves[0], 'test')
  assert _ids(subset, 'train') <= _ids(halves[0], 'train')


def test_shots_of_five_are_contained_in_shots_of_ten_after_everything_else():
  five, ten = (load(Data(name='digits', half=1, validation=2, shots=count), 3) for count in (5, 10))
  assert _ids(five, 'train') < _ids(ten, 'train')
  assert _ids(five, 'validation') == _ids(ten, 'validation')


def test_classes_are_renumbered_in_the_order_given_or_keep_their_numbers():
  target = sklearn.datasets.load_digits().target
  renumbered = load(Data(name='digits', classes=[9, 4]), 0)
  expected = np.where(target[renumbered.examples.arrays['id']] == 9, 0, 1)
  np.testing.assert_array_equal(renumbered.examples.arrays['label'], expected)
  assert renumbered.info.classes == ('9', '4')
  kept = load(Data(name='digits', classes=[9, 4], relabel=False, shots=2), 0)
  assert set(kept.examples.arrays['label']) == {4, 9}
  assert kept.info.outputs == 10
  assert kept.labels == {'train': 4}


def test_corruption_leaves_splits_and_digest_alone_and_fits_preprocessing_to_what_is_seen():
  clean, noisy = load(Data(name='wine'), 0), load(Data(name='wine', noise=0.5), 0)
  assert clean.digest == noisy.digest
  assert _ids(clean, 'train') == _ids(noisy, 'train')
  x = noisy.examples.arrays['x'][noisy.splits['train']]
  np.testing.assert_allclose(noisy.preprocessing['scale'], x.std(axis=0, dtype=np.float64), rtol=1e-9)
  difference = (noisy.examples.arrays['x'] - clean.examples.arrays['x']) / clean.examples.arrays['x'].std(axis=0)
  assert abs(difference.std() - 0.5) < 0.05


def test_the_seed_of_the_run_draws_the_noise_unless_the_data_name_one():
  noisy = lambda seed, **own: load(Data(name='wine', noise=0.5, **own), seed).examples.arrays['x']
  np.testing.assert_array_equal(noisy(1), noisy(0, corruption_seed=1))
  assert (noisy(0) != noisy(1)).any()


def test_an_example_is_corrupted_alike_in_every_subset():
  whole = load(Data(name='wine', noise=0.5, corruption_seed=0), 0).examples.arrays
  part = load(Data(name='wine', noise=0.5, half=1, classes=[0, 2], corruption_seed=0), 1).examples.arrays
  np.testing.assert_array_equal(part['x'], whole['x'][np.isin(whole['id'], part['id'])])


def test_binary_is_one_output_for_two_classes():
  loaded = load(Data(name='breast_cancer', task='binary'), 0)
  assert (loaded.info.task, loaded.info.outputs) == ('binary', 1)
  assert load(Data(name='iris', classes=[0, 2], task='binary'), 0).info.outputs == 1
  _refused('needs two classes, and there are 3', 'iris', task='binary')
  _refused('labels of iris are for classification', 'iris', task='regression')


def test_official_splits_are_used_and_survive_halving(tmp_path):
  parts = {'x_train': _grey(30)['x'], 'y_train': _grey(30)['y'], 'x_test': _grey(12)['x'], 'y_test': _grey(12)['y']}
  name = _npz(tmp_path, **parts)
  loaded = load(Data(name=name), 0)
  assert (_ids(loaded, 'train'), _ids(loaded, 'test')) == (set(range(30)), set(range(30, 42)))
  np.testing.assert_array_equal(
    loaded.examples.arrays['x'][..., 0], np.concatenate([parts['x_train'], parts['x_test']])
  )
  halves = [load(Data(name=name, half=half), 0) for half in (0, 1)]
  assert [len(_ids(half, 'test')) for half in halves] == [6, 6]
  assert _ids(halves[0], 'test') | _ids(halves[1], 'test') == set(range(30, 42))


def test_npz_tables_take_names_and_targets_from_the_file(tmp_path):
  x, y = np.random.default_rng(0).normal(size=(20, 2)), np.random.default_rng(1).normal(size=20)
  loaded = load(Data(name=_npz(tmp_path, data=x, target=y, columns=['length', 'width'])), 0)
  assert (loaded.info.kind, loaded.info.task, loaded.info.outputs) == ('table', 'regression', 1)
  assert loaded.info.columns == ('length', 'width')
  np.testing.assert_allclose(loaded.examples.arrays['label'][:, 0], y, rtol=1e-6)
  np.testing.assert_allclose(loaded.examples.arrays['x'], x, rtol=1e-6)


def test_several_labels_make_several_tasks(tmp_path):
  grey = _grey(24)
  name = _npz(tmp_path, image=grey['x'], digit=grey['y'], angle=np.linspace(0, 1, 24), parity=grey['y'] % 2)
  loaded = load(Data(name=name, label=['digit', 'angle', 'parity'], shots=2), 0)
  assert [info.task for info in loaded.info.tasks.values()] == ['classification', 'regression', 'classification']
  assert [info.outputs for info in loaded.info.tasks.values()] == [3, 1, 2]
  rows = loaded.examples.arrays['id']
  np.testing.assert_array_equal(loaded.examples.arrays['label']['parity'], (grey['y'] % 2)[rows])
  np.testing.assert_allclose(loaded.examples.take(np.array([5, 2])).arrays['label']['angle'][:, 0], [5 / 23, 2 / 23])
  assert loaded.labels == {'train': 6, 'tasks': {task: {'train': 6} for task in ('digit', 'angle', 'parity')}}
  _refused('names several', name, label=['digit', 'parity'], classes=[0, 1])


@pytest.mark.parametrize(
  ('values', 'expected'),
  [([0, 0.2, 1], (0, 1)), ([-0.5, 0, 0.5], (-1, 1)), ([0, 3, 16], (0, 16)), ([-4, 0, 2], (-4, 2)), ([7, 7, 7], (7, 8))],
)
def test_the_range_of_float_images_is_a_convention_they_lie_in_or_their_own(tmp_path, values, expected):
  x = np.resize(np.array(values, np.float32), (8, 3, 3, 1))
  info = load(Data(name=_npz(tmp_path, x=x, y=np.arange(8) % 2)), 0).info
  assert (info.low, info.high) == expected


def test_the_digest_changes_with_one_value_and_not_with_the_place(tmp_path):
  arrays = _grey()
  (tmp_path / 'other').mkdir()
  here, there = (load(Data(name=_npz(folder, **arrays)), 0).digest for folder in (tmp_path, tmp_path / 'other'))
  assert here == there
  arrays['x'][3, 1, 1] ^= 1
  assert load(Data(name=_npz(tmp_path, **arrays)), 0).digest != here
  examples = load(Data(name='iris'), 0).examples
  assert digest(examples.take(np.arange(149, -1, -1))) != digest(examples)


def test_a_missing_file_names_the_nearest_in_its_folder(tmp_path):
  _npz(tmp_path, **_grey())
  _refused(r'no file .*mne.npz.*nearest in .*: mine.npz', f'npz:{tmp_path}/mne.npz')
  _refused('there is no folder', f'npz:{tmp_path}/nowhere/mine.npz')


def test_the_home_folder_is_found_by_its_sign(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  _npz(tmp_path, **_grey())
  assert len(load(Data(name='npz:~/mine.npz'), 0).examples) == 12
  assert Data(name='tfds:mnist', folder='~/sets').folder == str(tmp_path / 'sets')


def test_files_that_are_no_npz_files_or_are_damaged_end_with_one_message(tmp_path):
  name = _npz(tmp_path, **_grey(600))
  file = tmp_path / 'mine.npz'
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) // 2])
  _refused('not an npz file, or is damaged or cut short', name)
  file.write_bytes(whole[:500] + bytes([whole[500] ^ 255]) + whole[501:])
  _refused("'x' is damaged", name)
  for foreign in (b'', b'plain text', pickle.dumps([1, 2])):
    file.write_bytes(foreign)
    _refused('not an npz file', name)
  with file.open('wb') as bare:
    np.save(bare, np.zeros(3))
  _refused('holds one bare array', name)


def test_keys_that_are_absent_or_ambiguous_are_named(tmp_path):
  grey = _grey()
  name = _npz(tmp_path, pictures=grey['x'], label=grey['y'])
  _refused('no key of x, image.*holds pictures, label: name one with data.inputs', name)
  _refused("no key 'picture'; nearest: pictures", name, inputs='picture')
  assert len(load(Data(name=name, inputs='pictures'), 0).examples) == 12
  _refused('several keys could be the label .y, labels.', _npz(tmp_path, x=grey['x'], y=grey['y'], labels=grey['y']))
  _refused("no key 'x_test'", _npz(tmp_path, x_train=grey['x'], y=grey['y']))


def _spoiled(row, value):
  x = np.zeros((8, 3))
  x[row] = value
  return x


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'x': np.zeros((8, 3)), 'y': np.zeros(7, int)}, "'x' has 8 rows, and 'y' has 7"),
    (
      {'x': _spoiled(5, np.nan), 'y': np.arange(8) % 2},
      "'x' has 3 values that are NaN or infinite, the first in row 5",
    ),
    ({'x': _spoiled(2, 1e300), 'y': np.arange(8) % 2}, 'first in row 2'),
    ({'x': np.zeros((8, 3)), 'y': _spoiled(4, np.inf)[:, 0]}, "'y' has 1 values .* first in row 4"),
    ({'x': np.zeros((8, 3)), 'y': np.arange(8) - 2}, 'negative in 2 rows, the smallest -2'),
    ({'x': np.zeros((8, 3)), 'y': np.arange(8) // 2 * 2}, 'no example of class 1;'),
    ({'x': np.zeros((8, 3)), 'y': np.zeros(8, int)}, 'nothing to tell apart'),
    ({'x': np.zeros((8, 3)), 'y': np.arange(8) % 2, 'classes': ['a', 'b', 'c']}, "no example of class 'c'"),
    ({'x': np.zeros((8, 3)), 'y': np.arange(8) % 3, 'classes': ['a', 'b']}, 'label 2 in .* out of range'),
    ({'x': np.zeros((8, 3)), 'y': np.array(['a', 'b'] * 4)}, 'numbers are needed'),
    ({'x': np.zeros((8, 3)), 'y': np.eye(8, dtype=int)}, 'one class number per example'),
    ({'x': np.array([{}] * 8), 'y': np.arange(8)}, "'x' holds Python objects"),
    ({'x': np.zeros((0, 3)), 'y': np.zeros(0, int)}, 'is empty'),
    ({'x': np.zeros(8), 'y': np.arange(8) % 2}, 'needed: .N, D'),
    ({'x': np.zeros((8, 3)), 'y': np.arange(8) % 2, 'columns': ['a', 'b']}, '2 names under columns'),
    (
      {'x_train': np.zeros((8, 3)), 'y_train': np.arange(8) % 2, 'x_test': np.zeros((3, 3)), 'y_test': np.arange(3)},
      'label 2 in .* out of range: the training examples have 2 classes',
    ),
    (
      {'x_train': np.zeros((8, 3)), 'y_train': np.arange(8) % 2, 'x_test': np.zeros((2, 4)), 'y_test': np.arange(2)},
      r'shape \(8, 3\) and \(2, 4\)',
    ),
  ],
)
def test_unfit_arrays_end_with_one_message(tmp_path, arrays, message):
  _refused(message, _npz(tmp_path, **arrays))


def test_labels_that_are_floats_are_classes_only_when_told_so_and_whole(tmp_path):
  x = np.zeros((8, 3))
  assert load(Data(name=_npz(tmp_path, x=x, y=np.arange(8) % 2.0), task='classification'), 0).info.outputs == 2
  assert load(Data(name=_npz(tmp_path, x=x, y=np.arange(8) % 2), task='regression'), 0).info.task == 'regression'
  _refused('not whole numbers', _npz(tmp_path, x=x, y=np.arange(8) / 2), task='classification')
  _refused('not whole numbers', _npz(tmp_path, x=x, y=_spoiled(1, np.nan)[:, 0]), task='classification')


def test_requests_that_the_data_cannot_meet_are_refused():
  _refused('unknown class 12; nearest: ', 'digits', classes=[3, 12])
  _refused('unknown class -1', 'digits', classes=[-1, 2])
  _refused('shots=999: class', 'digits', shots=999)
  for options in ({'classes': [0, 1]}, {'shots': 3}, {'sampling': 'balanced'}):
    _refused(f'data.{next(iter(options))} needs classes', 'diabetes', **options)
  for options in ({'rotation': 3.0}, {'contrast': 0.5}, {'augment': Augment(flip=True)}):
    _refused(f'data.{next(iter(options))} is for images', 'iris', **options)
  _refused('out of sight', 'digits', augment=Augment(shift=8))


def test_a_class_without_training_examples_is_refused(tmp_path):
  """One example of class 2: it falls into half 0 of the training part, and half 1 has none."""
  name = _npz(tmp_path, x=np.zeros((41, 3)), y=np.append(np.arange(40) % 2, 2))
  assert load(Data(name=name, half=0), 0).info.outputs == 3
  _refused("class '2' has no training example", name, half=1)


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'name': 'digit'}, 'config.name: unknown data set .digit.; nearest: digits'),
    ({'name': 'npz:'}, 'nearest: npz:FILE'),
    ({'name': 'digits', 'shots': 3, 'fraction': 0.5}, 'shots and fraction exclude each other'),
    ({'name': 'digits', 'classes': [1, 2, 1]}, 'config.classes: should name at least one, and none twice'),
    ({'name': 'digits', 'classes': []}, 'config.classes'),
    ({'name': 'digits', 'classes': [4]}, 'at least two, unless relabel=False'),
    ({'name': 'digits', 'label': 'y'}, 'label is for npz, tfds, csv, tsv, jsonl, and there is none in .digits.'),
    ({'name': 'digits', 'validation': 1.5}, 'config.validation: input should be less than 1'),
    ({'name': 'digits', 'augment': {'shfit': 1}}, 'config.augment.shfit: no such key; nearest: shift'),
  ],
)
def test_a_config_that_contradicts_itself_is_refused(values, message):
  with pytest.raises(UserError, match=message):
    validate(Data, values)


def test_how_batches_are_held_is_no_part_of_the_identity():
  assert identity(Data(name='iris', hold='stream', workers=2)) == identity(Data(name='iris'))
  assert identity(Data(name='iris', noise=0.1)) != identity(Data(name='iris'))


def test_every_source_that_a_config_may_name_has_a_reader():
  assert set(sources.SOURCES) == {*settings.BUNDLED, *settings.FILES}


def test_usps_loads_whole_and_stays_bytes():
  folder = os.environ.get('TRANSFERLAB_TEST_DATA')
  if not folder:
    pytest.skip('TRANSFERLAB_TEST_DATA is unset')
  file = os.path.join(folder, 'images', 'usps.npz')
  loaded = load(Data(name=f'npz:{file}', test=0.2, shots=10), 0)
  with np.load(file) as arrays:
    np.testing.assert_array_equal(loaded.examples.arrays['x'], arrays['image'])
    np.testing.assert_array_equal(loaded.examples.arrays['label'], arrays['label'])
  assert loaded.examples.arrays['x'].dtype == np.uint8
  assert np.bincount(loaded.examples.arrays['label'][loaded.splits['test']]).tolist() == [220] * 10


# ------------------------------------------------------------------------------- parts, and what is read when asked for
PARTS = {'train': 20, 'validation': 6, 'test': 10}


@pytest.fixture
def photos(tmp_path):
  """`photos(parts)`: the name of a folder of random images in two classes, and all of them in their order."""

  def make(parts=PARTS):
    values = np.random.default_rng(0).integers(0, 256, (sum(parts.values()), 4, 5, 3)).astype(np.uint8)
    row = 0
    for part in sorted(parts):
      for number in range(parts[part]):
        # By class and then by name, as they will be read.
        file = tmp_path / 'photos' / part / ('a' if number < parts[part] / 2 else 'b') / f'{number:02}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), values[row][..., ::-1])
        row += 1
    return f'folder:{tmp_path / "photos"}', values

  return make


def _places(parts):
  """Ids by the name of the part: parts stand in the order of their names."""
  starts = np.cumsum([0, *(parts[part] for part in sorted(parts))])
  return {part: [*range(starts[i], starts[i + 1])] for i, part in enumerate(sorted(parts))}


@pytest.mark.parametrize(
  ('options', 'train', 'validation', 'test'),
  [
    ({}, ['train'], None, ['test']),
    ({'validation': 'validation'}, ['train'], ['validation'], ['test']),
    ({'test': 'validation'}, ['train'], None, ['validation']),
    ({'test': 'validation', 'validation': 'test'}, ['train'], ['test'], ['validation']),
    ({'train': 'train+validation'}, ['train', 'validation'], None, ['test']),
    ({'train': 'test'}, ['test'], None, ['validation']),
    ({'validation': 'test'}, ['train'], ['test'], ['validation']),
    ({'train': 'test', 'test': 'train'}, ['test'], None, ['train']),
  ],
)
def test_parts_are_trained_on_chosen_with_and_tested_on_as_named(photos, options, train, validation, test):
  name, _ = photos()
  places, loaded = _places(PARTS), load(Data(name=name, **options), 0)
  for split, parts in (('train', train), ('validation', validation), ('test', test)):
    if parts is None:
      assert split not in loaded.splits
    else:
      assert _ids(loaded, split) == {row for part in parts for row in places[part]}
  assert loaded.labels == {split: len(loaded.splits[split]) for split in loaded.splits if split != 'test'}


def test_slices_of_parts_are_those_of_python(photos):
  name, _ = photos()
  rows = _places(PARTS)
  parts = {'train': 'train[:40%]+train[-8:]+test[:-7]', 'validation': 'train[8:60%]', 'test': 'test[-7:]'}
  loaded = load(Data(name=name, **parts), 0)
  assert _ids(loaded, 'train') == {*rows['train'][:8], *rows['train'][-8:], *rows['test'][:-7]}
  assert _ids(loaded, 'validation') == set(rows['train'][8:12])
  assert _ids(loaded, 'test') == set(rows['test'][-7:])


@pytest.mark.parametrize('name', ['test', 'validation'])
def test_slices_that_leave_a_class_out_are_refused(photos, name):
  options = {'train': 'train[:12]', 'test': 'test', name: 'train[12:]'}
  _refused(f"data.{name}='train.12:.' holds no example of class 'a'.*a share takes", photos()[0], **options)


def test_data_without_parts_are_sliced_as_if_they_were_for_training(people):
  name, rows = people
  loaded = load(Data(name=name, label='rich', train='train[:80%]', test='train[80%:]'), 0)
  assert _ids(loaded, 'train') == set(range(48)) and _ids(loaded, 'test') == set(range(48, len(rows)))


def test_without_a_test_part_the_validation_part_is_tested_on_unless_it_is_named_to_choose_with(photos):
  parts = {'train': 20, 'val': 6}
  name, _ = photos(parts)
  rows = _places(parts)
  assert _ids(load(Data(name=name), 0), 'test') == set(rows['val'])
  loaded = load(Data(name=name, validation='val', test=0.2), 0)
  assert _ids(loaded, 'validation') == set(rows['val'])
  assert len(_ids(loaded, 'test')) == 4
  assert _ids(loaded, 'train') | _ids(loaded, 'test') == set(rows['train'])
  cut = load(Data(name=name, validation=0.2), 0)
  assert _ids(cut, 'test') == set(rows['val'])
  assert _ids(cut, 'train') | _ids(cut, 'validation') == set(rows['train'])


def test_a_part_is_not_taken_for_another_whose_name_begins_alike(photos):
  parts = {'train': 20, 'val': 6, 'validation': 4}
  name, _ = photos(parts)
  loaded = load(Data(name=name, train='train+validation'), 0)
  assert _ids(loaded, 'test') == set(_places(parts)['val'])


@pytest.fixture
def people(tmp_path):
  """A table of sixty people, and its rows as dicts."""
  rows = [{'job': 'abc'[i % 3], 'age': i // 20, 'rich': i % 2} for i in range(60)]
  lines = [','.join(rows[0]), *(','.join(map(str, row.values())) for row in rows)]
  (tmp_path / 'people.csv').write_text('\n'.join(lines))
  return f'csv:{tmp_path / "people.csv"}', rows


@pytest.mark.parametrize(
  'where', [{'job': ['a', 'c']}, {'age': [0, 2.0]}, {'job': ['a', 'b'], 'age': [1, 2]}, {'job': ['b']}]
)
def test_rows_are_those_that_have_the_values_asked_for_in_every_column(people, where):
  name, rows = people
  loaded = load(Data(name=name, label='rich', where=where, test=0.34), 0)
  kept = {i for i, row in enumerate(rows) if all(row[column] in values for column, values in where.items())}
  assert _ids(loaded, 'train') | _ids(loaded, 'test') == kept


@pytest.mark.parametrize(
  ('where', 'message'),
  [
    ({'jbo': ['a']}, "unknown data.where 'jbo'; nearest: job"),
    ({'job': ['d']}, "unknown data.where.job 'd'; nearest: a"),
    ({'age': ['old']}, "data.where.age: 'old' is no number"),
    ({'age': [7]}, "data.where={'age': .7.} leaves no example"),
  ],
)
def test_columns_and_values_that_do_not_exist_are_refused(people, where, message):
  _refused(message, people[0], label='rich', where=where)


def test_numbers_and_truth_values_name_categories_as_they_are_written(people):
  name, rows = people
  loaded = load(Data(name=name, label='rich', columns={'age': 'category'}, where={'age': [1]}), 0)
  assert _ids(loaded, 'train') | _ids(loaded, 'test') == {i for i, row in enumerate(rows) if row['age'] == 1}
  assert Data(**Data(name=name, where={'age': [1, 2.5, True, 'x']}).model_dump()).where == {'age': [1, 2.5, True, 'x']}


def test_where_is_for_tables_and_not_for_words_that_were_hashed(tmp_path):
  (tmp_path / 'said.tsv').write_text('label\ttext\n' + 'a\tyes yes\nb\tno no\n' * 4)
  _refused('data.noise is for numbers', f'tsv:{tmp_path / "said.tsv"}', noise=0.5)
  _refused('data.where is for the columns of tables', f'tsv:{tmp_path / "said.tsv"}', hash=8, where={'text': ['no no']})


def test_a_slice_of_data_without_parts_is_of_all_of_them():
  loaded = load(Data(name='digits', train='all[:1000]', test='all[1000:]'), 0)
  assert (_ids(loaded, 'train'), _ids(loaded, 'test')) == (set(range(1000)), set(range(1000, 1797)))
  rest = load(Data(name='digits', train='all[:1000]', test=0.2), 0)
  assert _ids(rest, 'train') | _ids(rest, 'test') == set(range(1000))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'test': 'tset'}, "unknown data.test 'tset'; nearest: test"),
    ({'train': 'train[:50%'}, "data.train: 'train.:50%' is no slice"),
    ({'test': 'train[80%:]'}, '4 examples are in both the train and the test split'),
    ({'validation': 'train[:2]'}, '2 examples are in both the train and the validation split'),
    ({'validation': 'validation[:60%]', 'test': 'validation[40%:]'}, 'in both the validation and the test split'),
    ({'train': 'train[:0]'}, 'holds none of the 20 examples'),
    ({'train': 'train[:5]'}, "class 'b' has no training example"),
  ],
)
def test_parts_that_overlap_or_do_not_exist_are_refused(photos, options, message):
  _refused(message, photos()[0], **options)


@pytest.mark.parametrize('hold', ['device', 'stream'])
def test_what_is_read_on_demand_is_the_whole_of_it_in_every_subset(photos, hold):
  name, values = photos()
  loaded = load(Data(name=name, half=1, classes=[1, 0], hold=hold), 0)
  x, ids = loaded.examples.arrays['x'], loaded.examples.arrays['id']
  assert isinstance(x, Column)
  np.testing.assert_array_equal(np.asarray(x), values[ids])
  for split, rows in loaded.splits.items():
    np.testing.assert_array_equal(loaded.arrays(rows, loaded.preprocessing)['x'][:], values[ids[rows]], split)
  # The first half of each part is of class a, which here is the second.
  first = {row for rows in _places(PARTS).values() for row in rows[: (len(rows) + 1) // 2]}
  assert loaded.examples.arrays['label'].tolist() == [int(row in first) for row in ids.tolist()]
  assert load(Data(name=name), 0).digest == loaded.digest


def test_held_and_small_images_are_decoded_once_and_streamed_ones_whenever_they_are_asked_for(photos, monkeypatch):
  name, values = photos({'train': 20, 'test': 10})
  read = []
  one = folders.Images.one
  monkeypatch.setattr(folders.Images, 'one', lambda images, row: read.append(row) or one(images, row))
  for hold, small, times in (('device', 0, 1), ('stream', values.size, 1), ('stream', values.size - 1, 3)):
    monkeypatch.setattr(sources, 'SMALL', small)
    sources._read.cache_clear()
    sources._remembered.cache_clear()
    read.clear()
    for noise in (0.0, 0.1, 0.2):
      np.asarray(load(Data(name=name, hold=hold, noise=noise), 0).examples.arrays['x'])
    assert np.bincount(read).tolist() == [times] * len(values)


def test_what_does_not_fit_the_memory_is_to_be_streamed(photos, monkeypatch):
  name, values = photos({'train': 20, 'test': 10})
  monkeypatch.setattr(os, 'sysconf', lambda what: 1 if what == 'SC_PAGE_SIZE' else 2 * values.size - 1)
  _refused("GiB of memory; data.hold='stream' reads it as it goes", name)
  assert len(load(Data(name=name, hold='stream'), 0).examples) == len(values)


@pytest.mark.parametrize('hold', ['device', 'stream'])
def test_images_read_on_demand_are_corrupted_as_the_same_images_in_memory(photos, hold):
  name, values = photos({'train': 20, 'test': 10})
  options = {'noise': 0.2, 'rotation': 30.0, 'contrast': 0.5}
  # Worker processes are sent what reads, so it must survive pickling.
  held = {'hold': hold, 'workers': 1} if hold == 'stream' else {'hold': hold}
  loaded = load(Data(name=name, corruption_seed=3, **held, **options), 0)
  expected = image.corrupt(values, np.arange(len(values)), loaded.info, seed=3, **options)
  assert (expected != values).mean() > 0.9
  np.testing.assert_array_equal(np.asarray(loaded.examples.arrays['x']), expected)
  half = load(Data(name=name, corruption_seed=3, half=1, **held, **options), 5).examples.arrays
  np.testing.assert_array_equal(half['x'][::-1], expected[half['id'][::-1]])
  assert loaded.digest == load(Data(name=name), 0).digest
  again = pickle.loads(pickle.dumps(loaded.examples.arrays['x'])) if hold == 'stream' else loaded.examples.arrays['x']
  np.testing.assert_array_equal(again[[7, 3]], expected[[7, 3]])


def test_moments_of_images_read_on_demand_are_those_of_the_training_part(photos):
  name, values = photos()
  train = values[_places(PARTS)['train']].astype(np.float64)
  record = load(Data(name=name, standardize=True, hold='stream'), 0).preprocessing
  np.testing.assert_allclose(record['shift'], train.mean(axis=(0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(record['scale'], train.std(axis=(0, 1, 2)), rtol=1e-12)
  assert record['input_shape'] == [4, 5, 3]


def test_named_statistics_are_shares_of_the_range(photos, tmp_path):
  name, _ = photos()
  record = load(Data(name=name, statistics='imagenet'), 0).preprocessing
  np.testing.assert_allclose(
    record['shift'], [123.675, 116.28, 103.53], rtol=1e-12
  )  # as torchvision has them, times 255
  np.testing.assert_allclose(record['scale'], [58.395, 57.12, 57.375], rtol=1e-12)
  plain = load(Data(name=name), 0).preprocessing
  assert (plain['shift'], plain['scale']) == ([0.0] * 3, [255.0] * 3)
  _refused("statistics='mnist' is for 1 channels, and the images have 3", name, statistics='mnist')
  _refused("statistics='imagenet' is for 3 channels, and the images have 1", 'digits', statistics='imagenet')
  grey = load(Data(name='digits', statistics='mnist'), 0).preprocessing
  np.testing.assert_allclose([grey['shift'], grey['scale']], [[0.1307 * 16], [0.3081 * 16]], rtol=1e-12)
  _refused('data.statistics is for images', 'iris', statistics='imagenet')
  with pytest.raises(UserError, match='statistics and standardize exclude each other'):
    validate(Data, {'name': 'digits', 'statistics': 'mnist', 'standardize': True})
  with pytest.raises(UserError, match="unknown statistics 'imagnet'; nearest: imagenet"):
    validate(Data, {'name': 'digits', 'statistics': 'imagnet'})


def test_a_crop_for_evaluation_is_the_centre_of_what_is_read_on_demand(photos):
  name, values = photos()
  loaded = load(Data(name=name, augment=Augment(crop=2)), 0)
  assert loaded.preprocessing['input_shape'] == [2, 2, 3]
  x, label, ids = loaded.evaluated('test', loaded.preprocessing)
  np.testing.assert_array_equal(np.asarray(x), values[ids][:, 1:3, 1:3])
  assert (x.shape, len(label)) == ((10, 2, 2, 3), 10)


def test_a_folder_that_changes_is_read_again_and_damaged_files_are_noted_or_refused(photos, tmp_path):
  name, values = photos({'train': 20, 'test': 10})
  first = load(Data(name=name), 0)
  (tmp_path / 'photos' / 'train' / 'a' / 'zz.png').write_bytes(b'no image')
  _refused(r"zz.png is no image that can be read; data.corrupt='skip' leaves such files out", name)
  second = load(Data(name=name, corrupt='skip'), 0)
  assert second.info.notes == (f'skipped: {tmp_path}/photos/train/a/zz.png is no image that can be read',)
  assert (second.digest, len(second.examples)) == (first.digest, len(values))


@pytest.mark.parametrize('name', ['mine.csv', 'photos'])
def test_a_path_alone_is_answered_with_what_it_seems_to_be(tmp_path, name):
  (tmp_path / 'mine.csv').touch()
  (tmp_path / 'photos').mkdir()
  kind = {'mine.csv': 'csv', 'photos': 'folder'}[name]
  with pytest.raises(UserError, match=f'nearest: {kind}:{tmp_path}/{name}'):
    validate(Data, {'name': f'{tmp_path}/{name}'})
