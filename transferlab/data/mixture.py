"""Several data sets as one: their examples side by side, each with its own labels and without those of the others.

How often each set is drawn is counted here too; which example stands where is the loader's. Pure, but for inputs that
are read when they are asked for.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transferlab import config
from transferlab.data import labels
from transferlab.data.columns import joined
from transferlab.data.examples import Examples, Info, matched
from transferlab.data.settings import Mixing
from transferlab.errors import UserError

Parts = Mapping[str, tuple[Examples, Mapping[str, np.ndarray]]]


def mixed(parts: Parts, mixing: Mixing) -> tuple[Examples, dict[str, np.ndarray], np.ndarray]:
  """The examples of all sets, the splits of the whole, and [N] the number of the set from which each example comes.

  Numbers of examples ('id') go on from one set to the next. Splits of the same name are joined; each set's own
  test split stays beside them as 'test_NAME'.

  Args:
    parts: examples and splits of each set, by name.

  Raises:
    UserError: inputs of different forms, or labels that do not go together.
  """
  examples = {name: own for name, (own, _) in parts.items()}
  _same_inputs(
    {name: own.info for name, own in examples.items()}, {n: o.arrays['x'].shape for n, o in examples.items()}
  )
  common = mixing.heads == 'common'
  info, label, tasks = (*_common(examples), {}) if common else (None, *reversed(_separate(examples)))
  starts = np.cumsum([0, *map(len, examples.values())])
  firsts = np.cumsum([0, *(int(own.arrays['id'].max()) + 1 for own in examples.values())])
  splits: dict[str, list[np.ndarray]] = {}
  for start, (name, (_, rows)) in zip(starts, parts.items()):
    for split, own in rows.items():
      splits.setdefault(split, []).append(start + own)
      if split == 'test':
        splits[f'test_{name}'] = [start + own]
  arrays = {
    'x': joined([own.arrays['x'] for own in examples.values()]),
    'label': label,
    'id': np.concatenate([first + own.arrays['id'] for first, own in zip(firsts, examples.values())]),
  }
  origin = '; '.join(f'{name}: {own.info.origin}' for name, own in examples.items())
  notes = tuple(f'{name}: {note}' for name, own in examples.items() for note in own.info.notes)
  info = dataclasses.replace(info or next(iter(tasks.values())), origin=origin, file=None, notes=notes, tasks=tasks)
  groups = np.repeat(np.arange(len(examples)), [len(own) for own in examples.values()])
  order = ('train', 'validation', 'test')  # and what is measured beside them
  named = [*(name for name in order if name in splits), *(name for name in splits if name not in order)]
  return Examples(arrays, info), {name: np.concatenate(splits[name]) for name in named}, groups


def _same_inputs(infos: Mapping[str, Info], shapes: Mapping[str, tuple[int, ...]]) -> None:
  first = next(iter(infos))
  for name, info in infos.items():
    for what, one, other in (
      ('are of kind', infos[first].kind, info.kind),
      ('have the shape', shapes[first][1:], shapes[name][1:]),
      ('lie within', (infos[first].low, infos[first].high), (info.low, info.high)),
      ('have the columns', infos[first].columns, info.columns),
      ('have the categories', infos[first].categories, info.categories),
    ):
      if one != other and not (what == 'lie within' and info.kind != 'image'):
        way = '; data.resize brings images to one size' if what == 'have the shape' and info.kind == 'image' else ''
        raise UserError(f'mixture: inputs of {first!r} {what} {one}, those of {name!r} {other}{way}')


def _common(examples: Mapping[str, Examples]) -> tuple[Info, np.ndarray]:
  """One label for all, in the numbers of the set with the most classes."""
  known = {name: own for name, own in examples.items() if own.info.outputs}
  first = max(known, key=lambda name: known[name].info.outputs, default=None)  # of equal ones the first
  if first is None:
    raise UserError('mixture: no set has labels')
  info, found = known[first].info, []
  for name, own in examples.items():
    label = own.arrays['label']
    if isinstance(label, Mapping):
      raise UserError(f"mixture: {name!r} has several labels, which mixing.heads='common' cannot join")
    if name in known:
      found.append(matched(label, own.info, info, f'mixture: {name}'))
    else:
      found.append(_absent(known[first].arrays['label'], len(own)))
  return info, np.concatenate(found)


def _separate(examples: Mapping[str, Examples]) -> tuple[dict[str, Info], dict[str, np.ndarray]]:
  """The tasks of all sets; labels of equal names are one task's, in the numbers of the first."""
  infos: dict[str, Info] = {}
  found: dict[str, list[Any]] = {}
  for place, (name, own) in enumerate(examples.items()):
    label = own.arrays['label']
    several = own.info.tasks or ({name: own.info} if own.info.outputs else {})
    values = label if isinstance(label, Mapping) else {name: label}
    for task, info in several.items():
      infos.setdefault(task, info)
      found.setdefault(task, [None] * len(examples))[place] = matched(
        values[task], info, infos[task], f'mixture: {name}'
      )
  if not infos:
    raise UserError('mixture: no set has labels')
  sizes = [len(own) for own in examples.values()]
  return infos, {task: _filled(own, sizes) for task, own in found.items()}


def _filled(parts: Sequence[np.ndarray | None], sizes: Sequence[int]) -> np.ndarray:
  like = next(part for part in parts if part is not None)
  return np.concatenate([_absent(like, size) if part is None else part for part, size in zip(parts, sizes)])


def _absent(like: np.ndarray, count: int) -> np.ndarray:
  """Labels of this form that are all missing."""
  return labels.without(np.zeros((count, *like.shape[1:]), like.dtype), np.arange(count))


def left_out(mixing: Mixing) -> list[str]:
  """The sets that are not trained on."""
  return [] if isinstance(mixing.rates, str) else [name for name, rate in mixing.rates.items() if rate == 0]


def quotas(sizes: Mapping[str, int], mixing: Mixing) -> tuple[int, ...]:
  """How many training examples of each set an epoch holds: at least one, none at a rate of 0.

  Rates are size^(1/T) (Raffel et al. 2020, section 3.5.2; T = 1 is proportional), equal, or given.

  Args:
    sizes: training examples of each set.
  """
  if isinstance(mixing.rates, dict):
    rates = np.array([mixing.rates[name] for name in sizes], np.float64)
  elif mixing.rates == 'uniform':
    rates = np.ones(len(sizes))
  else:
    rates = np.array(list(sizes.values()), np.float64) ** (1 / mixing.temperature)
  rates /= rates.sum()
  total = sum(sizes.values()) if mixing.epoch is None else sizes[mixing.epoch] / rates[list(sizes).index(mixing.epoch)]
  counts = np.where(rates > 0, np.maximum(1, np.rint(total * rates)), 0)
  if counts.sum() > config.LARGEST:
    raise UserError(
      f'data.mixing: an epoch would hold {counts.sum():,.0f} examples; give epoch to a set that is drawn more'
    )
  return tuple(counts.astype(int).tolist())
