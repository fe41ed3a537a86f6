"""Which examples are tested on, chosen with and trained on: index arrays from ids, labels and a seed.

Pure NumPy. Every purpose has a random order of its own, in which an example's place depends on the seed, its id
and the others of its class, never on how many runs, classes or shots there are. Nothing here reads data.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from transferlab.errors import UserError, unknown

TEST, HALF, VALIDATION, TRAIN, LABELS = range(5)  # what a random order is for


_SLICE = re.compile(r'\s*([^\s\[\]+]+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*')


def sliced(spec: str, parts: Mapping[str, np.ndarray], option: str) -> np.ndarray:
  """The examples that `NAME`, `NAME[from:to]` or a sum of such with `+` names, as in TFDS.

  `from` and `to` are numbers of examples or percentages, counted from the end where negative. A percentage is rounded
  to the nearest example, so that 'train[:80%]' and 'train[80%:]' hold everything once.

  Args:
    parts: indices by name.
    option: the key of the config, for messages.

  Raises:
    UserError: no such part, a slice that cannot be read or holds nothing, or an example twice.
  """
  pieces = []
  for piece in spec.split('+'):
    found = _SLICE.fullmatch(piece)
    if not found:
      raise UserError(f"{option}: {piece.strip()!r} is no slice; 'train', 'train[:80%]' and 'train[100:]+test' are")
    name, start, stop = found.groups()
    if name not in parts:
      raise unknown(option, name, parts)
    rows = parts[name]
    taken = rows[_boundary(start, len(rows), 0) : _boundary(stop, len(rows), len(rows))]
    if not len(taken):
      raise UserError(f'{option}: {piece.strip()!r} holds none of the {len(rows)} examples')
    pieces.append(taken)
  rows = np.concatenate(pieces)
  if len(np.unique(rows)) < len(rows):
    raise UserError(f'{option}: {spec!r} names some examples twice')
  return rows


def named(spec: str) -> set[str]:
  """The parts that a spec takes examples from; what cannot be read is left to `sliced`."""
  return {found[1] for piece in spec.split('+') if (found := _SLICE.fullmatch(piece))}


def _boundary(text: str | None, count: int, default: int) -> int:
  if text is None:
    return default
  value = round(int(text[:-1]) * count / 100) if text.endswith('%') else int(text)
  return min(max(value + count if value < 0 else value, 0), count)


def ranks(ids: np.ndarray, strata: np.ndarray, seed: int, purpose: int) -> np.ndarray:
  """The place of each example in the random order of its stratum, from 0.

  The order sorts numbers that are drawn per id, so an example keeps its number whatever else is loaded, and
  the first k of a stratum are among its first k + 1: larger budgets contain smaller ones.

  Args:
    ids: int [N], row numbers in the original data, all different.
    strata: int [N], the class of each example (zeros for regression, −1 where it is missing).

  Returns:
    int64 [N].
  """
  if not len(ids):
    return np.zeros(0, np.int64)
  priority = np.random.default_rng([seed, purpose]).random(int(ids.max()) + 1)[ids]
  order = np.lexsort((priority, strata))
  _, starts, sizes = np.unique(strata[order], return_index=True, return_counts=True)
  places = np.empty(len(ids), np.int64)
  places[order] = np.arange(len(ids)) - np.repeat(starts, sizes)
  return places


def halves(ids: np.ndarray, strata: np.ndarray, half: int, seed: int) -> np.ndarray:
  """Indices of half 0 or half 1; together they hold every example once, and split each stratum evenly.

  A stratum of odd size gives half 0 one example more.

  Raises:
    UserError: the half is empty.
  """
  chosen = np.flatnonzero(ranks(ids, strata, seed, HALF) % 2 == half)
  return _not_empty(chosen, f'half={half}', len(ids))


def fold(ids: np.ndarray, strata: np.ndarray, number: int, folds: int, seed: int) -> np.ndarray:
  """The places of fold `number` (from 1) of so many: of each class every n-th example of its random order.

  The folds of one seed are disjoint and hold everything. Raises `UserError` where some class has fewer examples than
  there are folds.
  """
  if len(ids) and min(np.unique(strata, return_counts=True)[1]) < folds:
    raise UserError(f'data.test: {folds} folds, and some class has fewer examples')
  return np.flatnonzero(ranks(ids, strata, seed, TEST) % folds == number - 1)


def cut_test(ids: np.ndarray, strata: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """(rest, test): indices, `fraction` of each stratum to the nearest whole number; one example always stays.

  Raises:
    UserError: the test split would be empty.
  """
  chosen = ranks(ids, strata, seed, TEST) < _shares(strata, fraction)
  _not_empty(np.flatnonzero(chosen), f'test={fraction}', len(ids))
  return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def validation(
  ids: np.ndarray, strata: np.ndarray, amount: float | int, seed: int, names: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
  """(rest, validation): indices; a float is a share of each stratum, an int a number of examples of each.

  Args:
    names: class names for the messages, by stratum number; empty for regression.

  Raises:
    UserError: a stratum is too small to leave one training example, or the split would be empty.
  """
  if isinstance(amount, int):
    _enough(strata, amount, names, 'validation', leave=1)
    chosen = (ranks(ids, strata, seed, VALIDATION) < amount) & (strata >= 0)
  else:
    chosen = ranks(ids, strata, seed, VALIDATION) < _shares(strata, amount)
    _not_empty(np.flatnonzero(chosen), f'validation={amount}', len(ids))
  return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def shots(ids: np.ndarray, strata: np.ndarray, count: int, seed: int, names: Sequence[str] = ()) -> np.ndarray:
  """Indices of `count` examples of each stratum; contained in those of any larger count for the same seed.

  Raises:
    UserError: a stratum has fewer; the message names it, its size and the largest possible count.
  """
  _enough(strata, count, names, 'shots', leave=0)
  return np.flatnonzero(ranks(ids, strata, seed, TRAIN) < count)


def share(ids: np.ndarray, strata: np.ndarray, fraction: float, seed: int) -> np.ndarray:
  """Indices of `fraction` of each stratum, to the nearest whole number but at least one; nested as `shots`."""
  counts = np.maximum(1, np.floor(fraction * _sizes(strata) + 0.5))
  return np.flatnonzero(ranks(ids, strata, seed, TRAIN) < counts)


def kept_labels(ids: np.ndarray, strata: np.ndarray, fraction: float, seed: int, task: int) -> np.ndarray:
  """Indices of those that keep their label of this task, by its number; nested as `shots`, tasks independently."""
  counts = np.maximum(1, np.floor(fraction * _sizes(strata) + 0.5))
  return np.flatnonzero(ranks(ids, strata, seed, LABELS + task) < counts)


def _sizes(strata: np.ndarray) -> np.ndarray:
  """int [N]: how many examples the stratum of each example has."""
  _, inverse, counts = np.unique(strata, return_inverse=True, return_counts=True)
  return counts[inverse]


def _shares(strata: np.ndarray, fraction: float) -> np.ndarray:
  sizes = _sizes(strata)
  return np.minimum(np.floor(fraction * sizes + 0.5), sizes - 1)


def _not_empty(chosen: np.ndarray, what: str, available: int) -> np.ndarray:
  if not len(chosen):
    raise UserError(f'data.{what}: the split would be empty, since there are only {available} examples')
  return chosen


def _enough(strata: np.ndarray, count: int, names: Sequence[str], what: str, leave: int) -> None:
  numbers, sizes = np.unique(strata[strata >= 0], return_counts=True)
  if not len(sizes):
    raise UserError(f'data.{what}={count}: there are no examples to draw from')
  smallest = int(sizes.argmin())
  if sizes[smallest] - leave < count:
    owner = f'class {names[numbers[smallest]]!r} has' if names else 'there are'
    left = ', of which one must be left to train on' if leave else ''
    raise UserError(
      f'data.{what}={count}: {owner} only {sizes[smallest]} examples to draw from{left}; '
      f'the largest possible value is {sizes[smallest] - leave}'
    )
