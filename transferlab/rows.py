"""Rows that stand for something: which leaves have them, and which of a source's are which of a target's, by name.

Rows of a table's first layer stand for columns, those of embeddings for categories or tokens. Here: their names, and
pairs of places. What a transplant makes of these is its own affair.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transferlab import paths
from transferlab.data import encoding, tokens
from transferlab.errors import UserError

# What rows of leaves stand for, by path; '' is for a first layer [columns, features], whatever its path. Of a network
# on texts the tokens that rows of its embedding, and the outputs of a language model, stand for.
Names = Mapping[str, Sequence[str]]
NOTHING: Names = {}
Pairs = tuple[tuple[int, int], ...]  # (row of the target, row of the source)
# The leaves that may have an axis of tokens: an embedding's rows, and what a language model gives at every place.
TOKENS = ('embed/embedding', 'head/kernel', 'head/bias')
SHOWN = 12  # names in a sentence


def of_record(record: Mapping[str, Any], shapes: Mapping[str, Any]) -> Names:
  """What rows of a network on these inputs stand for; nothing where they are neither tables nor texts.

  Args:
    record: the preprocessing.
    shapes: the network's variables.
  """
  columns = record['columns']
  if 'tokens' in record:
    return of_tokens(tokens.vocabulary(record['tokens']), shapes['params'])
  return of_columns(columns, encoding.codes(record.get('encoding', [])), shapes['params']) if columns else {}


def of_columns(columns: Sequence[str], categories: Mapping[int, Sequence[str]], shapes: Mapping[str, Any]) -> Names:
  """What rows of a table's network stand for, by path.

  Args:
    columns: names of the encoded columns.
    categories: the values of each column that is embedded, by its position.
    shapes: the parameters of a network whose stage 'embed' holds their tables, in front of the first layer.
  """
  names, embedded, flat = {}, [], paths.flatten(shapes)
  for place, values in categories.items():
    path, column = f'embed/column{place}/embedding', columns[place]
    if path not in flat:
      return {}  # one's own network, which embeds in its own way
    names[path] = [f'{column}, missing or unseen', *(f'{column}={value}' for value in values)]
    embedded += [f'{column}, feature {number}' for number in range(flat[path].shape[1])]
  return {**names, '': [name for place, name in enumerate(columns) if place not in categories] + embedded}


def of_tokens(vocabulary: Sequence[str], shapes: Mapping[str, Any]) -> Names:
  """The leaves of a network on texts that have an axis of tokens, and what stands where on it.

  Args:
    shapes: the network's parameters.
  """
  flat = paths.flatten(shapes)
  return {p: vocabulary for p in TOKENS if p in flat and flat[p].shape[token_axis(p)] == len(vocabulary)}


def token_axis(path: str) -> int:
  """Which axis of a leaf in `TOKENS` stands for tokens."""
  return 0 if path == TOKENS[0] else -1


def by_column(path: str, given: Mapping[str, Any], leaf: Any, source: Names, target: Names) -> tuple[str, Pairs, list]:
  """(path in the source, pairs of rows, sentences) for a leaf whose rows are columns or categories.

  There are no pairs where the source has no such column of categories.

  Args:
    given: the source's leaves.
    source, target: what rows stand for on both sides.

  Raises:
    UserError: no names, shapes that do not fit them, or no name in common.
  """
  if not source or not target:
    raise UserError(f"config.transplant: {path}: 'columns' needs tables with column names on both sides")
  shape, name, mine = tuple(leaf.shape), path, target.get(path, target.get('', ()))
  if path in target:
    # The first row of a table of embeddings says of which column it is, wherever that stands in the source.
    found = [there for there, names in source.items() if there and names[0] == mine[0]]
    if not found:
      return path, (), [f'{path}: the source has no such column: initialised']
    name = found[0]
  known, theirs = source.get(name, source.get('', ())), tuple(given[name].shape) if name in given else ()
  if theirs and (len(shape) != 2 or shape[1:] != theirs[1:] or shape[0] != len(mine) or theirs[0] != len(known)):
    raise UserError(
      f"config.transplant: {path}: 'columns' is for a first layer [columns, features] or a table of embeddings; here "
      f'{shape} for {len(mine)} rows, the source {theirs} for {len(known)}'
      + ('; give network.embedding, the number of features' if path in target else '')
    )
  pairs, new = _matched(mine, known)
  if not pairs:
    raise UserError(f'config.transplant: {path}: source and target have no column in common')
  wanted = set(mine)
  return (
    name,
    pairs,
    [
      f'{path}: rows matched by name: {len(pairs)}',
      f'{path}: new in the target, initialised: {_shown(new)}',
      f'{path}: of the source not used: {_shown([row for row in known if row not in wanted])}',
    ],
  )


def by_token(path: str, given: Mapping[str, Any], leaf: Any, source: Names, target: Names) -> tuple[Pairs, str]:
  """(pairs of places, a sentence) for a leaf with an axis of tokens.

  Raises:
    UserError: no such axis, other axes that differ, or no token in common.
  """
  if path not in target or path not in source:
    whose = 'source' if path in target else 'target'
    raise UserError(f"config.transplant: {path}: 'tokens' is for an axis of tokens, and that of the {whose} has none")
  axis, shapes = token_axis(path), [tuple(leaf.shape), tuple(given[path].shape)]
  if len({tuple(np.delete(shape, axis)) for shape in shapes}) > 1:
    raise UserError(f'config.transplant: {path} has shape {shapes[0]}, and that of the source {shapes[1]}')
  pairs, new = _matched(target[path], source[path])
  if not pairs:
    raise UserError(f'config.transplant: {path}: the vocabularies of source and target have no token in common')
  unused = len(set(source[path]) - set(target[path]))
  return pairs, (
    f'{path}: {len(pairs):,} of {len(target[path]):,} tokens from the source; new: {_shown(new)}; '
    f'{unused:,} of the source not used'
  )


def _matched(mine: Sequence[str], theirs: Sequence[str]) -> tuple[Pairs, list[str]]:
  """Pairs of places of the same name; and names that only the first has."""
  places = {name: place for place, name in enumerate(theirs) if name}
  pairs = tuple((place, places[name]) for place, name in enumerate(mine) if name in places)
  return pairs, [name for name in mine if name not in places]


def _shown(names: Sequence[str]) -> str:
  more = f', … ({len(names):,} in all)' if len(names) > SHOWN else ''
  return (', '.join(names[:SHOWN]) or 'none') + more
