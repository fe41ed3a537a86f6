"""Batches: every example once an epoch, places that depend on seed and epoch alone, carrying, padding, streaming."""

import itertools

import jax
import numpy as np
import pytest

from transferlab.data import loader
from transferlab.data.loader import Order


def _order(count=10, batch_size=4, rows=None, seed=0, **options):
  return Order(count, batch_size, rows or batch_size, seed, **options)


def _seen(picks):
  """(epoch, example) of every real row in the order of training."""
  real = slice(None) if picks['mask'] is None else picks['mask']
  return list(zip(picks['view'][real].reshape(-1), picks['row'][real].reshape(-1)))


@pytest.mark.parametrize('last_batch', ['carry', 'pad'])
@pytest.mark.parametrize('rows', [4, 6])
def test_every_example_stands_in_every_epoch_exactly_once(last_batch, rows):
  steps = {'carry': 5, 'pad': 6}[last_batch]  # two epochs of ten examples
  seen = _seen(_order(rows=rows, last_batch=last_batch).batches(0, steps))
  assert len(seen) == 20
  for epoch in (0, 1):
    assert sorted(row for view, row in seen if view == epoch) == list(range(10))
  assert [view for view, _ in seen] == [0] * 10 + [1] * 10


def test_carried_batches_run_on_into_the_next_epoch_and_padded_ones_stop_at_its_end():
  carried, padded = (_order(last_batch=kind).batches(0, 3) for kind in ('carry', 'pad'))
  assert carried['mask'] is None
  assert carried['view'].tolist() == [[0] * 4, [0] * 4, [0, 0, 1, 1]]
  assert padded['mask'].tolist() == [[True] * 4, [True] * 4, [True, True, False, False]]
  assert (carried['row'][:2] == padded['row'][:2]).all()


def test_rows_beyond_the_batch_are_masked_and_leave_the_others_where_they_are():
  """A batch of 5 on 4 devices has 8 rows: three are padding, on any number of devices the same five are real."""
  plain, spread = _order(batch_size=5).batches(0, 4), _order(batch_size=5, rows=8).batches(0, 4)
  assert spread['mask'].tolist() == [[True] * 5 + [False] * 3] * 4
  for name in ('row', 'view', 'place'):
    np.testing.assert_array_equal(spread[name][:, :5], plain[name])
  assert spread['place'].tolist() == [list(range(8))] * 4


def test_an_example_stands_where_the_permutation_of_seed_and_epoch_puts_it():
  order = _order(seed=7)
  expected = np.concatenate([loader.permutation(10, epoch, 7) for epoch in range(2)])
  assert order.batches(0, 5)['row'].reshape(-1).tolist() == expected.tolist()
  assert loader.permutation(10, 0, 7).tolist() == loader.permutation(10, 0, 7).tolist()
  different = {tuple(loader.permutation(10, epoch, seed)) for epoch in range(3) for seed in range(3)}
  assert len(different) == 9


@pytest.mark.parametrize('last_batch', ['carry', 'pad'])
@pytest.mark.parametrize('balanced', [False, True])
def test_random_access_equals_going_through_in_order(last_batch, balanced):
  labels = np.arange(10, dtype=np.int32) % 3 if balanced else None
  order = _order(rows=5, last_batch=last_batch, labels=labels)
  whole = order.batches(0, 12)
  for start, count in [(0, 1), (2, 3), (11, 1), (5, 7)]:
    part = order.batches(start, count)
    for name in whole:
      np.testing.assert_array_equal(part[name], whole[name][start : start + count], err_msg=name)


def test_permutations_are_uniform():
  """Over 2,000 epochs every example stands first as often as any other, within five standard deviations."""
  first = np.bincount([loader.permutation(5, epoch, 0)[0] for epoch in range(2000)], minlength=5)
  assert np.abs(first - 400).max() < 5 * np.sqrt(2000 * 0.2 * 0.8)


# -------------------------------------------------------------------------------------------------------- balance
LABELS = np.repeat([0, 1, 2], [30, 9, 3])


@pytest.mark.parametrize('dtype', [np.int32, np.int64])
def test_balanced_orders_give_every_class_its_turn_in_every_round(dtype):
  order = _order(count=42, labels=LABELS.astype(dtype)).epoch(3)
  assert len(order) == 42
  for turn in LABELS[order].reshape(14, 3):
    assert sorted(turn) == [0, 1, 2]


def test_balanced_orders_repeat_rare_examples_evenly_and_cut_common_ones():
  order = loader.balanced_order(LABELS, 0, seed=0)
  times = np.bincount(order, minlength=42)
  assert sorted(times[:30]) == [0] * 16 + [1] * 14
  assert sorted(times[30:39]) == [1] * 4 + [2] * 5
  assert sorted(times[39:]) == [4, 5, 5]
  assert not np.array_equal(order, loader.balanced_order(LABELS, 1, seed=0))


# ------------------------------------------------------------------------------------------------- batches of arrays
ARRAYS = {
  'x': np.arange(20.0, dtype=np.float32).reshape(10, 2),
  'label': {'first': np.arange(10, dtype=np.int32), 'second': -np.arange(10.0, dtype=np.float32)},
  'id': np.arange(100, 110),
}


def test_a_batch_holds_the_picked_rows_of_every_array():
  picks = jax.tree.map(lambda leaf: leaf[1], _order().batches(0, 2))
  batch = loader.gather(ARRAYS, picks)
  rows = loader.permutation(10, 0, 0)[4:8]
  np.testing.assert_array_equal(batch['x'], np.stack([[2 * row, 2 * row + 1] for row in rows]))
  np.testing.assert_array_equal(batch['id'], rows + 100)
  np.testing.assert_array_equal(batch['label']['first'], rows)
  np.testing.assert_array_equal(batch['label']['second'], -rows)
  assert set(batch) == {'x', 'label', 'id', 'row', 'mask', 'place', 'view'}


@pytest.mark.parametrize('start', [0, 3])
def test_streamed_batches_equal_held_ones_from_any_step(start):
  order = _order(rows=6, last_batch='pad')
  picks = order.batches(start, 7)
  for steps in (1, 2, 7):
    blocks = itertools.islice(loader.stream(ARRAYS, order, start, steps, workers=0), -(-7 // steps))
    batches = [(block, number) for block in blocks for number in range(steps)]
    for index, (block, number) in enumerate(batches[:7]):
      held = loader.gather(ARRAYS, {name: value[index] for name, value in picks.items()})
      for name in ('x', 'id', 'mask', 'place', 'view'):
        np.testing.assert_array_equal(block[name][number], held[name], err_msg=name)
      np.testing.assert_array_equal(block['label']['first'][number], held['label']['first'])


def test_evaluation_covers_every_example_once_and_never_drops_the_tail():
  parts = list(loader.evaluation_batches(10, 4))
  assert [list(range(10))[part] for part, _ in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
  assert [mask.tolist() for _, mask in parts] == [[True] * 4, [True] * 4, [True, True, False, False]]
