"""Batches: shuffled, checkpointable, the same whether held on the device or streamed through grain.

Which example stands at which place is a pure function of the seed and the epoch, so a position in the data is a
step number and nothing else: there is no iterator state to save.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

Batch = dict[str, Any]


def permutation(count: int, epoch: int, seed: int) -> Int[np.ndarray, ' count']:
  """The order of an epoch: a function of the seed and the epoch only."""
  return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def balanced_order(labels: Int[np.ndarray, ' count'], epoch: int, seed: int) -> Int[np.ndarray, ' count']:
  """An order in which every class has its turn in every round: rare classes are repeated, common ones cut.

  Each round visits the classes in a random order; each class walks through a permutation of its examples.
  """
  classes = np.unique(labels)
  random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
  rounds = -(-len(labels) // len(classes))
  turns = np.concatenate([random.permutation(len(classes)) for _ in range(rounds)])[: len(labels)]
  order = np.empty(len(labels), np.int64)
  for number, value in enumerate(classes):
    members = random.permutation(np.flatnonzero(labels == value))
    places = np.flatnonzero(turns == number)
    order[places] = members[np.arange(len(places)) % len(members)]
  return order


def mixed_order(
  groups: Int[np.ndarray, ' examples'], quotas: Sequence[int], epoch: int, seed: int
) -> Int[np.ndarray, ' count']:
  """An epoch of a mixture: `quotas[g]` examples of each group in a random order, rare groups oftener than once.

  Each group walks through one permutation of its examples after another; in the next epoch it goes on where it stopped.
  """
  random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
  turns = random.permutation(np.repeat(np.arange(len(quotas)), quotas))
  order = np.empty(len(turns), np.int64)
  for group, quota in enumerate(quotas):
    members = np.flatnonzero(groups == group)
    walk, places = divmod(np.arange(epoch * quota, (epoch + 1) * quota), len(members))
    walks = {number: np.random.default_rng([seed, group, number]).permutation(members) for number in np.unique(walk)}
    order[turns == group] = [walks[number][place] for number, place in zip(walk, places)]
  return order


def bucketed(
  order: Int[np.ndarray, ' count'], lengths: np.ndarray, batch_size: int, first: int, epoch: int, seed: int
) -> Int[np.ndarray, ' count']:
  """The order of an epoch, changed so that batches hold examples of like lengths.

  Of every `POOL` batches the examples are sorted by length and dealt out again; then all full batches are shuffled.

  Args:
    lengths: of all examples.
    first: places until the first batch begins: the last one of the epoch before ends there.
  """
  rest = order[first:]
  pools = [rest[start : start + POOL * batch_size] for start in range(0, len(rest), POOL * batch_size)]
  rest = np.concatenate([pool[np.argsort(lengths[pool], kind='stable')] for pool in pools]) if len(rest) else rest
  full = len(rest) // batch_size
  shuffled = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(full)
  batches = rest[: full * batch_size].reshape(full, batch_size)[shuffled]
  return np.concatenate([order[:first], batches.reshape(-1), rest[full * batch_size :]])


POOL = 50  # batches whose examples are sorted by length together


@dataclasses.dataclass(frozen=True)
class Order:
  """Which training example stands where in every batch of a run.

  Attributes:
    count: examples in an epoch: each training example once, unless it is a mixture.
    batch_size: examples in a global batch; rows beyond it pad the batch to what the devices divide.
    rows: `batch_size` rounded up to a multiple of the number of devices.
    last_batch: 'carry': batches run on from one epoch into the next; 'pad': the last of an epoch is padded.
    labels: [count] class numbers for balanced sampling, else None.
    views: how many versions of each example there are of what the arrays hold under 'seen', one version of all examples
      after the other; epochs take them in turn.
    groups, quotas: [examples] the set that each comes from, and how many of each set an epoch holds; None otherwise.
    lengths, buckets: [examples] how long each is, and the lengths that batches may have; those of like lengths share a
      batch. None and () where all are of one length.
    streams: the examples are windows of `batch_size` streams, one after another, stream by stream: each place of a
      batch goes on where it stood in the batch before.
  """

  count: int
  batch_size: int
  rows: int
  seed: int
  last_batch: Literal['carry', 'pad'] = 'carry'
  labels: np.ndarray | None = None
  views: int = 1
  groups: np.ndarray | None = None
  quotas: tuple[int, ...] = ()
  streams: bool = False
  lengths: np.ndarray | None = None
  buckets: tuple[int, ...] = ()

  @property
  def examples(self) -> int:
    """How many training examples there are."""
    return self.count if self.groups is None else len(self.groups)

  def epoch(self, epoch: int) -> np.ndarray:
    """[count] example numbers in the order of one epoch."""
    labels, groups = (None if own is None else own.astype(np.int32).tobytes() for own in (self.labels, self.groups))
    order = _epoch(self.count, epoch, self.seed, labels, groups, self.quotas)
    if self.lengths is None:
      return order
    first = -(epoch * self.count) % self.batch_size if self.last_batch == 'carry' else 0
    return bucketed(order, self.lengths, self.batch_size, first, epoch, self.seed)

  def batches(self, start: int, count: int) -> dict[str, Any]:
    """Steps `start` … `start + count − 1` as rows into the training examples.

    Returns:
      'row' [count, rows], 'place' in the global batch, 'view' (the epoch: how often the example was seen before),
      'mask' (real or padding), which is None where no batch of the whole run has padding; and 'seen', the row among
      versions, where there are several; of streams also 'fresh', 1 where they begin; and where there are buckets
      'length' [count], the shortest that holds the whole batch.
    """
    steps = np.arange(start, start + count)[:, None]
    place = np.broadcast_to(np.arange(self.rows), (count, self.rows))
    mask = place < self.batch_size
    if self.streams:
      return self._of_streams(steps, place, mask)
    if self.last_batch == 'carry':
      position = steps * self.batch_size + place
      view, within = position // self.count, position % self.count
    else:
      per_epoch = -(-self.count // self.batch_size)
      within = steps % per_epoch * self.batch_size + place
      view = np.broadcast_to(steps // per_epoch, within.shape)
      mask = mask & (within < self.count)
    first, last = int(view[0, 0]), int(view[-1, -1])
    epochs = [self.epoch(epoch) for epoch in range(first, last + 1)]
    flat = epochs[0] if len(epochs) == 1 else np.concatenate(epochs)
    row = np.where(mask, flat[(view - first) * self.count + np.minimum(within, self.count - 1)], 0)
    full = self.rows == self.batch_size and (self.last_batch == 'carry' or self.count % self.batch_size == 0)
    picks = {'row': row, 'place': place, 'view': view}
    if self.views > 1:
      picks['seen'] = row + self.examples * (view % self.views)
    found = {name: value.astype(np.int32) for name, value in picks.items()} | {'mask': None if full else mask}
    if self.lengths is not None:
      longest = np.where(mask, self.lengths[row], 0).max(axis=1)
      found['length'] = np.array(self.buckets)[np.searchsorted(self.buckets, longest)]
    return found

  def _of_streams(self, steps: np.ndarray, place: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    epoch, within = np.divmod(steps, self.count // self.batch_size)
    row = np.where(mask, place * (self.count // self.batch_size) + within, 0)
    picks = {'row': row, 'place': place, 'view': epoch + 0 * row, 'fresh': (within == 0) + 0 * row}
    full = self.rows == self.batch_size
    return {name: value.astype(np.int32) for name, value in picks.items()} | {'mask': None if full else mask}


@functools.lru_cache(maxsize=64)
def _epoch(
  count: int, epoch: int, seed: int, labels: bytes | None, groups: bytes | None, quotas: tuple[int, ...]
) -> np.ndarray:
  if groups is not None:
    return mixed_order(np.frombuffer(groups, np.int32), quotas, epoch, seed)
  if labels is None:
    return permutation(count, epoch, seed)
  return balanced_order(np.frombuffer(labels, np.int32), epoch, seed)


def gather(arrays: Mapping[str, Any], picks: Mapping[str, Any]) -> Batch:
  """Batches from arrays that are held: every array's rows `picks['row']`, beside mask, place and view. Pure.

  What stands under 'seen' has a row for every version of an example, and joins the others.
  """
  import jax

  own, seen = ({k: v for k, v in arrays.items() if k != 'seen'}, arrays.get('seen', {}))
  taken = jax.tree.map(lambda leaf: leaf[picks['row']], own)
  taken |= jax.tree.map(lambda leaf: leaf[picks.get('seen', picks['row'])], seen)
  return {**taken, **{name: picks[name] for name in ('row', 'mask', 'place', 'view', 'fresh') if name in picks}}


def stream(arrays: Mapping[str, Any], order: Order, start: int, steps: int, workers: int) -> Iterator[Batch]:
  """The same batches in blocks of `steps`, gathered by grain's threads (or worker processes) ahead of their use.

  Args:
    start: the step of the first block's first batch.

  Yields:
    Dicts of arrays [steps, batch, …].
  """
  import grain

  ahead = max(2, AHEAD // steps)
  source = grain.MapDataset.source(_Blocks(dict(arrays), order, start, steps))
  dataset = source.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=ahead))
  if workers:
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain's processes look at them, and this program has none
    dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  return iter(dataset)


AHEAD = 8  # batches that are prepared while the device works


@dataclasses.dataclass(frozen=True)
class _Blocks:
  """Random access to blocks of batches, which is what grain wants of a source."""

  arrays: dict[str, Any]
  order: Order
  start: int
  steps: int

  def __len__(self) -> int:
    return np.iinfo(np.int32).max

  def __getitem__(self, block: int) -> Batch:
    return gather(self.arrays, self.order.batches(self.start + int(block) * self.steps, self.steps))


def evaluation_batches(count: int, batch_size: int) -> Iterator[tuple[slice, Bool[np.ndarray, ' batch']]]:
  """Slices that cover every example once, each with a mask of `batch_size`: the last is to be padded, never dropped."""
  for start in range(0, count, batch_size):
    stop = min(start + batch_size, count)
    yield slice(start, stop), np.arange(batch_size) < stop - start
