"""Vectors of words as text: a line for each word, then its numbers (GloVe; word2vec and fastText with a first line of
how many there are and how wide). Reads files.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from transferlab.errors import UserError
from transferlab.weights.contents import Contents, Tensor

NAME = 'embedding'
LONGEST = 2**16  # bytes that a line may have


def is_vectors(path: Path) -> bool:
  """Whether a file begins as vectors of words do."""
  with path.open('rb') as file:
    first, second = (file.readline(LONGEST).decode('utf-8', 'replace').split() for _ in range(2))
  if _header(first):
    return len(second) > int(first[1]) and _numbers(second[-int(first[1]) :])
  return len(first) > 2 and len(second) in (0, len(first)) and _numbers(first[1:])


def read(path: Path, part: str | None) -> Contents:
  """The vectors as one array 'embedding' [words, features]; the words stand in the metadata, under 'words'.

  Where a word occurs twice the first counts.

  Raises:
    UserError: a line with another number of values, or with something that is no number.
  """
  if part is not None:
    raise UserError(f'{path}: vectors of words have no parts, so there is no part {part!r}')
  words: dict[str, int] = {}
  width = 0
  for number, word, values in _lines(path):
    width = width or values.count(' ') + 1
    if values.count(' ') + 1 != width:
      raise UserError(f'{path} line {number}: {values.count(" ") + 1} numbers for {word!r}, and {width} before')
    words.setdefault(word, len(words))
  shape = (len(words), width)

  def values_of() -> np.ndarray:
    found, seen = np.empty(shape, np.float32), set[str]()
    for number, word, values in _lines(path):
      if word in seen:
        continue
      try:
        found[words[word]] = np.array(values.split(' '), np.float32)
      except ValueError:
        raise UserError(f'{path} line {number}: the vector of {word!r} holds something that is no number') from None
      seen.add(word)
    return found

  tensors = {NAME: Tensor(shape, np.dtype(np.float32), values_of)}
  return Contents(str(path), 'vectors of words', tensors, metadata={'words': tuple(words)})


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
  """(line, word, its numbers as text), without the header; words may hold spaces, as some of GloVe's do."""
  width = 0
  with path.open('rb') as file:
    for number, raw in enumerate(file, 1):
      line = raw.decode('utf-8', 'replace').rstrip()
      if number == 1 and _header(line.split()):
        width = int(line.split()[1])
        continue
      if not line:
        continue
      width = width or len(line.split(' ')) - 1
      word, *values = line.rsplit(' ', width)
      yield number, word, ' '.join(values)


def _header(fields: list[str]) -> bool:
  return len(fields) == 2 and all(field.isdigit() for field in fields) and int(fields[1]) > 0


def _numbers(fields: list[str]) -> bool:
  try:
    return all(np.isfinite(float(field)) for field in fields)
  except ValueError:
    return False
