"""Texts as numbers, until networks read them: hashed counts of words."""

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np

from transferlab.data.columns import Column
from transferlab.data.examples import Examples
from transferlab.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Hashed:
  """Reads texts as rows of hashed word counts."""

  texts: np.ndarray
  size: int

  def __call__(self, rows: np.ndarray) -> np.ndarray:
    return (_vectorizer(self.size).transform(self.texts[rows]).toarray() * np.sqrt(self.size)).astype(np.float32)


def hashed(examples: Examples, size: int) -> Examples:
  """Texts as a table [N, size]: counts of lower-case words, hashed with signs (Weinberger et al. 2009, eq. 2).

  Each row has Euclidean length √size, so that its numbers are of order one. Rows are computed when asked for.

  Raises:
    UserError: the inputs are no texts.
  """
  if examples.info.kind != 'text':
    raise UserError(f'data.hash is for texts, and the inputs are of kind {examples.info.kind!r}')
  texts = examples.arrays['x']
  columns = tuple(f'hash{number}' for number in range(size))
  contents = hashlib.blake2b('\0'.join(texts).encode(), digest_size=16).hexdigest()
  x = Column(Hashed(texts, size), np.arange(len(texts)), (size,), np.float32, f'{size} {contents}')
  info = dataclasses.replace(
    examples.info,
    kind='table',
    columns=columns,
    tasks={name: dataclasses.replace(own, kind='table', columns=columns) for name, own in examples.info.tasks.items()},
  )
  return dataclasses.replace(examples, arrays={**examples.arrays, 'x': x}, info=info)


@functools.cache
def _vectorizer(size: int) -> Any:
  from sklearn.feature_extraction.text import HashingVectorizer

  return HashingVectorizer(n_features=size)
