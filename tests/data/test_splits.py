"""Splits: what is disjoint, what is contained in what, and what stays the same when something else changes."""

import contextlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from transferlab.data import splits
from transferlab.errors import UserError

IDS = np.arange(200)
STRATA = np.repeat([0, 1, 2], [100, 60, 40])


def _counts(indices, strata=STRATA):
  return np.bincount(strata[indices], minlength=3).tolist()


def test_halves_are_disjoint_cover_everything_and_split_each_class_evenly():
  first, second = (splits.halves(IDS, STRATA, half, seed=3) for half in (0, 1))
  assert sorted([*first, *second]) == IDS.tolist()
  assert _counts(first) == _counts(second) == [50, 30, 20]
  assert not np.array_equal(first, splits.halves(IDS, STRATA, 0, seed=4))


def test_test_cut_takes_the_fraction_of_every_class():
  rest, test = splits.cut_test(IDS, STRATA, 0.25, seed=0)
  assert _counts(test) == [25, 15, 10]
  assert sorted([*rest, *test]) == IDS.tolist()


def test_a_class_is_cut_the_same_way_whatever_other_classes_are_there():
  """A target of some of the classes is tested on what a source of all of them never trained on."""
  whole = splits.cut_test(IDS, STRATA, 0.25, seed=0)[1]
  part = np.flatnonzero(STRATA != 1)
  alone = part[splits.cut_test(IDS[part], STRATA[part], 0.25, seed=0)[1]]
  assert set(alone) == set(whole[STRATA[whole] != 1])


def test_order_of_the_examples_does_not_matter():
  order = np.random.default_rng(0).permutation(200)
  chosen = splits.shots(IDS[order], STRATA[order], 7, seed=1)
  assert set(IDS[order][chosen]) == set(splits.shots(IDS, STRATA, 7, seed=1))


def test_shots_of_five_are_contained_in_shots_of_ten():
  five, ten = (splits.shots(IDS, STRATA, count, seed=5) for count in (5, 10))
  assert _counts(five) == [5, 5, 5]
  assert _counts(ten) == [10, 10, 10]
  assert set(five) < set(ten)
  assert set(five) != set(splits.shots(IDS, STRATA, 5, seed=6))


def test_shots_are_drawn_uniformly():
  """Over 400 seeds each of 40 examples is among 10 shots 100 times, give or take five standard deviations."""
  strata = np.zeros(40, int)
  times = np.zeros(40)
  for seed in range(400):
    times[splits.shots(np.arange(40), strata, 10, seed)] += 1
  assert np.abs(times - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)


def test_purposes_have_independent_orders():
  strata = np.zeros(1000, int)
  orders = [splits.ranks(np.arange(1000), strata, 0, purpose) for purpose in range(4)]
  correlations = np.corrcoef(orders)[np.triu_indices(4, 1)]
  assert np.abs(correlations).max() < 0.15


def test_a_fraction_of_the_training_examples_keeps_at_least_one_of_each_class():
  small, large = (splits.share(IDS, STRATA, fraction, seed=0) for fraction in (0.001, 0.5))
  assert _counts(small) == [1, 1, 1]
  assert _counts(large) == [50, 30, 20]
  assert set(small) < set(large)


def test_validation_by_number_takes_that_many_of_each_class_and_by_fraction_a_share():
  rest, chosen = splits.validation(IDS, STRATA, 4, seed=0)
  assert _counts(chosen) == [4, 4, 4]
  assert sorted([*rest, *chosen]) == IDS.tolist()
  assert _counts(splits.validation(IDS, STRATA, 0.1, seed=0)[1]) == [10, 6, 4]


def test_too_many_shots_name_the_class_its_size_and_the_largest_possible_value():
  with pytest.raises(UserError, match=r"shots=41: class 'cat' has only 40 examples.*largest possible value is 40"):
    splits.shots(IDS, STRATA, 41, 0, names=('ant', 'bee', 'cat'))
  assert _counts(splits.shots(IDS, STRATA, 40, 0)) == [40, 40, 40]


def test_validation_leaves_something_to_train_on():
  with pytest.raises(UserError, match='largest possible value is 39'):
    splits.validation(IDS, STRATA, 40, 0, names=('ant', 'bee', 'cat'))
  with pytest.raises(UserError, match=r'validation=0\.001: the split would be empty'):
    splits.validation(IDS, STRATA, 0.001, 0)


def test_an_empty_half_or_test_split_is_an_error():
  one = np.zeros(1, int)
  with pytest.raises(UserError, match='half=1: the split would be empty'):
    splits.halves(one, one, 1, 0)
  with pytest.raises(UserError, match=r'test=0\.9: the split would be empty'):
    splits.cut_test(one, one, 0.9, 0)


PARTS = {'train': np.arange(40), 'test': np.arange(40, 51), 'extra': np.arange(51, 58), 'one': np.array([58])}


@pytest.mark.parametrize(
  'spec',
  ['train', 'train[:80%]', 'train[80%:]', 'test[:50%]', 'test[50%:]', 'test[33%:67%]', 'train[10:]', 'train[:10]',
   'train[3:7]', 'train[-4:]', 'train[:-4]', 'train[-25%:]', 'train[:-25%]', 'train[-8:-2]',
   'train[:2%]+train[98%:]', 'train+test', 'test[5:]+train[:2]', ' train [ :3 ] ', 'extra[1:]', 'one[:51%]+test',
   *(f'extra[{p}%:]' for p in range(0, 92, 7)), *(f'test[:{p}%]' for p in range(6, 101, 9))],
)  # fmt: skip
def test_slices_are_those_of_tfds(spec):
  infos = {
    name: tfds.core.SplitInfo(
      name=name,
      shard_lengths=[len(rows)],
      num_bytes=0,
      filename_template=tfds.core.ShardedFileTemplate('/', None, None),
    )
    for name, rows in PARTS.items()
  }
  absolute = tfds.core.ReadInstruction.from_spec(spec.replace(' ', '')).to_absolute(infos)
  expected = [row for piece in absolute for row in PARTS[piece.splitname][piece.from_ : piece.to]]
  assert splits.sliced(spec, PARTS, 'data.train').tolist() == expected


def test_slices_may_mix_numbers_and_percentages_and_name_parts_freely():
  assert splits.sliced('train[38:]+test[1:50%]', PARTS, '').tolist() == [38, 39, *range(41, 46)]
  assert splits.sliced('train[:]', PARTS, '').tolist() == list(range(40))
  assert splits.sliced('small-2.1/x[1:]', {'small-2.1/x': np.array([4, 9])}, '').tolist() == [9]


@pytest.mark.parametrize('count', [1, 2, 3, 7, 10, 99, 1000])
def test_slices_that_meet_at_a_percentage_hold_everything_once(count):
  for percent in range(101):
    found = []
    for spec in (f'all[:{percent}%]', f'all[{percent}%:]'):
      with contextlib.suppress(UserError):  # one of them may hold nothing
        found += splits.sliced(spec, {'all': np.arange(count)}, 'data.train').tolist()
    assert found == list(range(count))


def test_slices_beyond_the_end_end_there_as_in_python():
  for start, stop in ((0, 99), (-99, 5), (38, 41), (-3, 1000)):
    found = splits.sliced(f'train[{start}:{stop}]', PARTS, 'data.train')
    assert found.tolist() == list(range(40))[start:stop]


@pytest.mark.parametrize(
  ('spec', 'says'),
  [
    ('trian', "unknown data.test 'trian'; nearest: train"),
    ('train+tset', "unknown data.test 'tset'; nearest: test"),
    ('train[', "data.test: 'train[' is no slice; 'train', 'train[:80%]' and 'train[100:]+test' are"),
    ('train[5]', "'train[5]' is no slice"),
    ('train[0.5:]', "'train[0.5:]' is no slice"),
    ('train[::2]', "'train[::2]' is no slice"),
    ('train[:5%%]', 'is no slice'),
    ('', "'' is no slice"),
    ('train+', "'' is no slice"),
    ('train test', 'is no slice'),
    ('train[5:5]', "data.test: 'train[5:5]' holds none of the 40 examples"),
    ('train[90%:10%]', 'holds none of the 40 examples'),
    ('train[40:]', 'holds none of the 40 examples'),
    ('one[:50%]+test', "'one[:50%]' holds none of the 1 examples"),
    ('train[:60%]+train[50%:]', "data.test: 'train[:60%]+train[50%:]' names some examples twice"),
    ('test+test', 'names some examples twice'),
  ],
)
def test_slices_that_cannot_be_read_are_named(spec, says):
  with pytest.raises(UserError) as caught:
    splits.sliced(spec, PARTS, 'data.test')
  assert says in str(caught.value)


def test_folds_of_a_seed_are_disjoint_hold_everything_and_keep_the_shares_of_classes():
  ids, strata = np.arange(103) * 3, np.repeat([0, 1, 2], [60, 33, 10])
  folds = [splits.fold(ids, strata, number, 10, seed=4) for number in range(1, 11)]
  assert sorted(np.concatenate(folds).tolist()) == list(range(103))
  for rows in folds:
    counts = np.bincount(strata[rows], minlength=3)
    assert counts[0] == 6 and counts[1] in (3, 4) and counts[2] == 1
  assert set(folds[0]) != set(splits.fold(ids, strata, 1, 10, seed=5))
  with pytest.raises(UserError, match='11 folds, and some class has fewer'):
    splits.fold(ids, strata, 1, 11, seed=4)
