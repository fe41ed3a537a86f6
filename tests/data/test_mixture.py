"""Several data sets as one: whose labels are whose, how often each is drawn, what does not go together."""

import numpy as np
import pytest
from outcomes import assert_a_stop_changes_nothing

import transferlab
from transferlab import config
from transferlab.data import loader, mixture
from transferlab.data.settings import Mixing
from transferlab.data.sources import Data, load
from transferlab.errors import UserError
from transferlab.preparation import prepare
from transferlab.settings import Run

CLEAN = {'name': 'digits', 'half': 0, 'test': 0.3, 'validation': 3}
NOISY = {'name': 'digits', 'half': 1, 'test': 0.3, 'validation': 3, 'noise': 0.2, 'shots': 4}


def spec(mixing=None, sets=None, **more):
  return {'name': 'mixture', 'sets': sets or {'clean': CLEAN, 'noisy': NOISY}, 'mixing': mixing or {}, **more}


def loaded(*given, **more):
  return load(config.validate(Data, spec(*given, **more)), 0)


def settings(mixing=None, **more):
  values = {
    'network': {'name': 'mlp', 'hidden': [8]},
    'target': {'data': spec(mixing, batch_size=16)},
    'phases': [{'steps': 12, 'learning_rate': 1e-2}],
    'evaluation': {'every': 4},
    'checkpoint': {'every': 4},
    **more,
  }
  return config.validate(Run, values)


def test_examples_keep_their_inputs_labels_and_splits():
  whole = loaded()
  parts = {name: load(config.validate(Data, own), 0) for name, own in (('clean', CLEAN), ('noisy', NOISY))}
  for split in ('train', 'validation', 'test'):
    rows, start = whole.splits[split], 0
    assert len(rows) == sum(len(part.splits[split]) for part in parts.values())
    for name, part in parts.items():
      own = part.examples.take(part.splits[split]).arrays
      mine = rows[start : start + len(own['id'])]
      np.testing.assert_array_equal(whole.examples.arrays['x'][mine], own['x'])
      np.testing.assert_array_equal(whole.examples.arrays['label'][name][mine], own['label'])
      (other,) = {'clean', 'noisy'} - {name}
      assert (whole.examples.arrays['label'][other][mine] == -1).all()
      start += len(mine)
  assert len(np.unique(whole.examples.arrays['id'])) == len(whole.examples)
  assert {task: own['train'] for task, own in whole.labels['tasks'].items()} == {
    name: len(part.splits['train']) for name, part in parts.items()
  }


def test_common_heads_join_classes_by_name_and_measure_each_set():
  sets = {'all': {'name': 'digits', 'test': 0.3}, 'few': {'name': 'digits', 'classes': [7, 3], 'test': 0.3}}
  whole = loaded({'heads': 'common'}, sets)
  assert not whole.info.tasks and whole.info.outputs == 10
  few = load(config.validate(Data, sets['few']), 0)
  rows = whole.splits['train'][-len(few.splits['train']) :]
  own = few.examples.arrays['label'][few.splits['train']]
  np.testing.assert_array_equal(whole.examples.arrays['label'][rows], np.array([7, 3])[own])
  assert list(whole.splits) == ['train', 'test', 'test_all', 'test_few']
  np.testing.assert_array_equal(whole.splits['test'], np.r_[whole.splits['test_all'], whole.splits['test_few']])


def test_a_set_without_labels_joins_those_that_have_them():
  sets = {'few': {'name': 'digits', 'shots': 2}, 'more': {'name': 'digits', 'labelled': False}}
  whole = loaded({'heads': 'common'}, sets)
  assert whole.labels['train'] == 20 and len(whole.splits['train']) > 1000


@pytest.mark.parametrize(
  'mixing, expected',
  [
    ({}, (900, 100)),
    ({'rates': 'uniform'}, (500, 500)),
    ({'rates': 'uniform', 'epoch': 'small'}, (100, 100)),
    ({'rates': 'uniform', 'epoch': 'large'}, (900, 900)),
    ({'temperature': 2.0}, (750, 250)),  # 30 : 10
    ({'rates': {'large': 1.0, 'small': 3.0}}, (250, 750)),
    ({'rates': {'large': 1.0, 'small': 3.0}, 'epoch': 'large'}, (900, 2700)),
    ({'temperature': 2.0, 'epoch': 'small'}, (300, 100)),
    ({'epoch': 'small'}, (900, 100)),
    ({'rates': {'large': 1e6, 'small': 1e-6}}, (1000, 1)),
    ({'rates': {'large': 0.0, 'small': 2.0}}, (0, 1000)),
  ],
  ids=str,
)
def test_an_epoch_holds_what_the_rates_say(mixing, expected):
  assert mixture.quotas({'large': 900, 'small': 100}, config.validate(Mixing, mixing)) == expected


def test_every_group_walks_through_all_its_examples_before_any_comes_again():
  groups = np.array([0] * 7 + [1] * 3 + [2] * 5)
  quotas, seen = (4, 5, 2), {0: [], 1: [], 2: []}
  for epoch in range(21):
    order = loader.mixed_order(groups, quotas, epoch, 5)
    np.testing.assert_array_equal(np.bincount(groups[order], minlength=3), quotas)
    for group in seen:
      seen[group] += order[groups[order] == group].tolist()
  for group, size in ((0, 7), (1, 3), (2, 5)):
    for start in range(0, len(seen[group]) - size + 1, size):
      assert sorted(seen[group][start : start + size]) == np.flatnonzero(groups == group).tolist()
  orders = [loader.mixed_order(groups, quotas, 0, seed).tolist() for seed in (5, 6)]
  assert orders[0] != orders[1] and orders[0] == loader.mixed_order(groups, quotas, 0, 5).tolist()


def test_batches_are_drawn_at_the_rates_and_epochs_have_their_length():
  run = settings({'rates': 'uniform', 'epoch': 'noisy'}, phases=[{'epochs': 4, 'learning_rate': 1e-2}])
  prepared = prepare(run)
  assert prepared.stretches[0].steps == 4 * 80 // 16  # 40 shots of one, as many of the other
  picks = prepared.order().batches(0, 20)['row']
  assert np.bincount(prepared.loaded.groups[prepared.loaded.splits['train']][picks.reshape(-1)]).tolist() == [160, 160]


def test_a_set_at_rate_0_is_tested_and_neither_trained_on_nor_counted(tmp_path):
  run = settings({'heads': 'common', 'rates': {'clean': 1.0, 'noisy': 0.0}})
  prepared, whole = prepare(run), prepare(settings({'heads': 'common'})).loaded
  alone = load(config.validate(Data, CLEAN), 0)
  found = prepared.loaded
  assert found.labels['train'] == len(alone.splits['train'])
  for split in ('validation', 'test', 'test_noisy'):
    np.testing.assert_array_equal(
      found.examples.take(found.splits[split]).arrays['id'], whole.examples.take(whole.splits[split]).arrays['id']
    )
  np.testing.assert_array_equal(
    found.examples.take(found.splits['train']).arrays['x'], alone.examples.take(alone.splits['train']).arrays['x']
  )
  assert found.preprocessing == alone.preprocessing
  assert set(prepared.order().batches(0, 99)['row'].reshape(-1).tolist()) == set(range(len(alone.splits['train'])))
  assert 'test_noisy' in transferlab.run(config.resolved(run), tmp_path / 'run')['last']


def test_a_stop_changes_nothing(tmp_path):
  assert_a_stop_changes_nothing(settings({'rates': 'uniform'}), 8, tmp_path)


def test_each_task_learns_from_its_own_set_alone(tmp_path):
  """A head gets no gradient from the other set: with the trunk frozen it ends where it would alone."""
  done = transferlab.run(config.resolved(settings({'rates': 'uniform'})), tmp_path / 'both')
  assert set(done['last']['test']) >= {'clean/accuracy', 'noisy/accuracy', 'accuracy'}
  assert done['last']['test']['accuracy'] == pytest.approx(
    np.mean([done['last']['test'][f'{name}/accuracy'] for name in ('clean', 'noisy')])
  )
  assert done['labels']['tasks']['noisy']['train'] == 40


def test_images_that_are_read_later_join_those_in_memory(tmp_path):
  import cv2

  random = np.random.default_rng(0)
  for number in range(12):
    place = tmp_path / 'photos' / ('0' if number % 2 else '1')
    place.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(place / f'{number}.png'), random.integers(0, 256, (8, 8), np.uint8))
  x = random.integers(0, 256, (10, 8, 8, 1)).astype(np.uint8)
  np.savez(tmp_path / 'held.npz', x=x, y=np.arange(10) % 2)
  sets = {'photos': {'name': f'folder:{tmp_path}/photos'}, 'held': {'name': f'npz:{tmp_path}/held.npz'}}
  whole = loaded(None, sets)
  parts = [load(config.validate(Data, own), 0).examples.arrays['x'] for _, own in sorted(sets.items())]
  np.testing.assert_array_equal(np.asarray(whole.examples.arrays['x']), np.concatenate([np.asarray(p) for p in parts]))
  some = np.array([20, 3, 11, 12, 0])
  np.testing.assert_array_equal(whole.examples.arrays['x'][some], np.asarray(whole.examples.arrays['x'])[some])


@pytest.mark.parametrize(
  'change, message',
  [
    ({'sets': {}}, "needs sets"),
    ({'name': 'digits'}, "sets is for the name 'mixture'"),
    ({'shots': 3}, 'shots: each set of a mixture says this for itself'),
    ({'sets': {'a': {**CLEAN, 'batch_size': 3}}}, 'sets.a: batch_size: the mixture says this for all'),
    ({'mixing': {'epoch': 'clen'}}, "mixing.epoch 'clen'; nearest: clean"),
    ({'mixing': {'rates': {'clean': 1.0}}}, 'give one for each of clean, noisy'),
    ({'mixing': {'rates': {'clean': 0.0, 'noisy': 0.0}}}, 'some set has to be trained on'),
    ({'mixing': {'rates': {'clean': 0.0, 'noisy': 1.0}, 'epoch': 'clean'}}, 'clean is not trained on; nearest: noisy'),
    ({'mixing': {'rates': {'clean': 1.0, 'nosy': 2.0}}}, "mixing.rates 'nosy'; nearest: noisy"),
    ({'mixing': {'heads': 'shared'}}, "'separate' or 'common'"),
    ({'sampling': 'balanced'}, 'a mixture draws as mixing says'),
    ({'auxiliary': ['nosy']}, "auxiliary 'nosy'; nearest: noisy"),
    ({'auxiliary': ['clean', 'noisy']}, 'some task has to be the one that counts'),
    ({'sets': {'a': CLEAN, 'b': {'name': 'wine'}}}, "inputs of 'a' are of kind image, those of 'b' table"),
    (
      {'sets': {'a': {'name': 'wine'}, 'b': {'name': 'breast_cancer'}}},
      r"inputs of 'a' have the shape \(13,\), those of 'b' \(30,\)",
    ),
    (
      {
        'sets': {'a': {'name': 'digits', 'classes': [1, 2]}, 'b': {'name': 'digits', 'classes': [2, 4]}},
        'mixing': {'heads': 'common'},
      },
      "unknown class of mixture: b '4'",
    ),
  ],
  ids=range(16),
)  # fmt: skip
def test_mistakes_end_in_one_message(change, message):
  with pytest.raises(UserError, match=message):
    load(config.validate(Data, {**spec(), **change}), 0)
