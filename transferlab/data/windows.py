"""Texts for language models: all tokens of a split as a few long streams, cut into windows that follow one another.

Every token but the text's first is predicted exactly once, from all that stands before it in its stream: what a network
remembers is carried from a window to the next. Of a network that carries nothing each window is read by itself, and a
token predicted from what stands before it there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transferlab.data import tokens
from transferlab.errors import UserError

Windows = np.ndarray  # int32 [streams, windows, length]
EVALUATED = 256  # tokens of a window in evaluation, whose length changes but the time, where a state is carried


def stream(texts: Sequence[str], record: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
  """int32 [n]: the tokens of all texts, with an end behind each; and how many characters each stands for.

  A token has the characters from its own first to the next one's, so that those of a text add up to its length, and an
  end has one.
  """
  end = tokens.end_of(record)
  ids, characters = [], []
  for numbers, starts, length in tokens.located(texts, record):
    own = np.diff([0, *starts[1:], length]).tolist() if starts else []
    ids.append([*numbers, end])
    characters.append([*own, 1 if starts else 1 + length])
  return np.concatenate(ids).astype(np.int32), np.concatenate(characters).astype(np.int32)


def cut(values: np.ndarray, streams: int, length: int, key: str = 'data.batch_size') -> tuple[Windows, Windows]:
  """(what is read, what follows): `streams` parts of n / streams values or so, in windows; −1 where there is none.

  Args:
    key: of the config, that says how many streams.

  Raises:
    UserError: no more values than streams.
  """
  if len(values) <= streams:
    way = f'; nearest: {key}={len(values) - 1}' if len(values) > 1 else ''
    raise UserError(f'{len(values):,} tokens are too few for {streams:,} streams{way}')
  each = -(-(len(values) - 1) // streams)
  windows = -(-each // length)
  places = np.arange(streams)[:, None] * each + np.arange(windows * length)
  inside = (np.arange(windows * length) < each) & (places < len(values) - 1)
  places = np.where(inside, places, 0)
  shape = (streams, windows, length)
  return tuple(np.where(inside, values[places + i], tokens.PAD).reshape(shape) for i in (0, 1))  # type: ignore[return-value]


def training(texts: Sequence[str], record: Mapping[str, Any], streams: int) -> dict[str, Any]:
  """'x' and 'label' [streams · windows, length] and 'id': each stream's windows one after another, stream by stream."""
  ids, _ = stream(texts, record)
  x, following = (part.reshape(-1, record['length']) for part in cut(ids, streams, record['length']))
  return {'x': x, 'label': following, 'id': np.arange(len(x), dtype=np.int64)}


def evaluated(
  texts: Sequence[str], record: Mapping[str, Any], length: int = EVALUATED
) -> tuple[dict[str, Windows], Windows]:
  """({'x', 'next'}, characters of what follows), [streams, windows, length], as evaluation reads them."""
  ids, characters = stream(texts, record)
  x, following = cut(ids, record['streams'], length, 'data.tokens.streams')
  _, counted = cut(characters, record['streams'], length)
  return {'x': x, 'next': following}, counted
