"""Plain files of texts; and texts as tables, for networks that read none: bags of words, hashed counts of them.

Reads files.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from transferlab.config import Positive, Schema
from transferlab.data.columns import Column
from transferlab.data.examples import Examples, Info, from_arrays
from transferlab.data.table_files import files_of, read_utf8
from transferlab.data.tokens import clean
from transferlab.errors import UserError

WORD = r'(?u)\b\w+\b'


class Bag(Schema):
  """Texts as one number for each word of a vocabulary."""

  words: Annotated[int, Field(gt=0, le=2**20)] = Field(
    10_000, description='the most frequent words of the training split'
  )
  weights: Literal['binary', 'counts', 'tfidf'] = Field(
    'binary',
    description='whether a word occurs; how often (at most 255 times); or counts (ln((1 + n) / (1 + n_word)) + 1) for '
    'n texts, n_word of them with the word, divided by the length of the row (Salton and Buckley 1988)',
  )
  minimum: Positive = Field(1, description='texts in which a word has to occur')
  lower: bool = Field(True, description='letters in lower case')


def fit_bag(texts: Sequence[str], bag: Bag) -> dict[str, Any]:
  """The preprocessing record of bags of words: a table's, whose columns are words, and 'bag', how they are counted.

  Args:
    texts: of the training split.

  Raises:
    UserError: no word occurs often enough.
  """
  from sklearn.feature_extraction.text import CountVectorizer

  counter = CountVectorizer(
    max_features=bag.words, min_df=min(bag.minimum, len(texts)), lowercase=bag.lower, token_pattern=WORD
  )
  try:
    counts = counter.fit_transform(texts)
  except ValueError as error:
    raise UserError(f'data.bag: {error} (of {len(texts):,} training texts)') from None
  words = counter.get_feature_names_out().tolist()
  how: dict[str, Any] = {'weights': bag.weights, 'lower': bag.lower}
  if bag.weights == 'tfidf':
    with_word = np.bincount(counts.indices, minlength=len(words))
    how['idf'] = (np.log((1 + len(texts)) / (1 + with_word)) + 1).tolist()
  plain = {'shift': [0.0] * len(words), 'scale': [1.0] * len(words)}
  return {'kind': 'table', **plain, 'columns': words, 'input_shape': [len(words)], 'bag': how}


def bags(texts: np.ndarray, record: Mapping[str, Any]) -> Column:
  """Texts as the record's bags of words, [N, words]: uint8, or float32 of 'tfidf'. Rows are computed when asked for."""
  how, words = record['bag'], record['columns']
  contents = hashlib.blake2b(json.dumps([how, words]).encode(), digest_size=16)
  contents.update('\0'.join(texts).encode('utf-8', 'surrogatepass'))
  dtype = np.float32 if how['weights'] == 'tfidf' else np.uint8
  read = _Bags(texts, tuple(words), how)
  return Column(read, np.arange(len(texts)), (len(words),), dtype, contents.hexdigest())


@dataclasses.dataclass(frozen=True, eq=False)
class _Bags:
  """Reads texts as rows of a bag of words."""

  texts: np.ndarray
  words: tuple[str, ...]
  how: Mapping[str, Any]

  def __call__(self, rows: np.ndarray) -> np.ndarray:
    from sklearn.preprocessing import normalize

    counts = self.counter.transform(self.texts[rows])
    if self.how['weights'] == 'binary':
      return (counts > 0).toarray().astype(np.uint8)
    if self.how['weights'] == 'counts':
      return counts.minimum(255).toarray().astype(np.uint8)
    return normalize(counts.multiply(np.asarray(self.how['idf'])).tocsr()).toarray().astype(np.float32)

  @functools.cached_property
  def counter(self) -> Any:
    from sklearn.feature_extraction.text import CountVectorizer

    vocabulary = {word: place for place, word in enumerate(self.words)}
    return CountVectorizer(vocabulary=vocabulary, lowercase=self.how['lower'], token_pattern=WORD)


def read_text(spec: str) -> Examples:
  """The lines of a plain file, each a text, in their order; of several parts as `table_files.files_of` has them.

  Raises:
    UserError: no such file, one that is not UTF-8, or one without any line.
  """
  parts = {name: _lines(path) for name, path in files_of(spec, 'txt').items()}
  ends = np.cumsum([0, *map(len, parts.values())])
  official = {name: np.arange(ends[i], ends[i + 1]) for i, name in enumerate(parts)}
  x = np.array([line for lines in parts.values() for line in lines], object)
  info = Info('text', 'next_token', origin=f'text file {Path(spec).name}', file=spec)
  return from_arrays(x, np.zeros(len(x), np.int32), info, None if '' in parts else official)


def _lines(path: str) -> list[str]:
  lines = read_utf8(path).replace('\r\n', '\n').removesuffix('\n').split('\n')
  if lines == ['']:
    raise UserError(f'{path} is empty')
  return lines


def as_language(examples: Examples) -> Examples:
  """Texts without their labels, of which every next token is to be predicted."""
  if examples.info.kind != 'text':
    raise UserError("data.task='next_token' is for texts, and the inputs are none")
  info = Info('text', 'next_token', origin=examples.info.origin, file=examples.info.file, notes=examples.info.notes)
  arrays = {**examples.arrays, 'label': np.zeros(len(examples), np.int32)}
  return dataclasses.replace(examples, arrays=arrays, info=info)


@dataclasses.dataclass(frozen=True, eq=False)
class Hashed:
  """Reads texts as rows of hashed word counts."""

  texts: np.ndarray
  size: int

  def __call__(self, rows: np.ndarray) -> np.ndarray:
    return (_vectorizer(self.size).transform(map(clean, self.texts[rows])).toarray() * np.sqrt(self.size)).astype(
      np.float32
    )


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
  contents = hashlib.blake2b('\0'.join(texts).encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()
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
