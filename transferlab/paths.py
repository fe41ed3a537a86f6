"""How parameters are named and selected: the one pattern dialect.

A parameter is `stage/…/kernel`. A pattern is a regular expression; it selects a leaf if it fullmatches the
leaf's path or the name of the leaf's stage, so `head|block5` means both stages whole. In a list of rules the
first match wins. Freezing, learning rates, weight decay and transplants all speak this dialect and no other.
Leaves under `terms/` belong to objectives and are reached only by patterns that begin with `terms/`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transferlab.errors import UserError, nearest

Tree = dict[str, Any]
TERMS = 'terms/'


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Nested dicts to `{path: leaf}`; None is a leaf, and empty dicts vanish."""
  flat: dict[str, Any] = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat.update(flatten(value, f'{prefix}{name}/'))
    else:
      flat[f'{prefix}{name}'] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
  """The inverse of `flatten`."""
  tree: Tree = {}
  for path, value in flat.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = value
  return tree


def stage_of(path: str) -> str:
  """The stage a leaf belongs to: the first part of its path."""
  return path.partition('/')[0]


def compiled(pattern: object) -> re.Pattern[str]:
  """The pattern as a regular expression. Raises `UserError` where it is none."""
  if not isinstance(pattern, str):
    raise UserError(f'a pattern is a string, not {pattern!r}')
  try:
    return re.compile(pattern)
  except re.error as error:
    raise UserError(f'pattern {pattern!r} is not a regular expression: {error}') from None


def matches(pattern: str, path: str) -> bool:
  """Whether the pattern selects the leaf, by its path or by its stage."""
  if path.startswith(TERMS) and not pattern.startswith(TERMS):
    return False
  expression = compiled(pattern)
  return bool(expression.fullmatch(path) or expression.fullmatch(stage_of(path)))


def select(patterns: str | Sequence[str], paths: Iterable[str], *, what: str, stages: Iterable[str] = ()) -> list[str]:
  """The paths that any of the patterns selects, in the order of `paths`.

  Args:
    patterns: one pattern or several.
    paths: all leaves there are.
    what: what the patterns are for; it opens the error messages.
    stages: all stages there are, so that a stage without parameters is told from a mistyped one.

  Raises:
    UserError: a pattern selects nothing; the message names the nearest paths.
  """
  paths = list(paths)
  patterns = [patterns] if isinstance(patterns, str) else list(patterns)
  chosen: set[str] = set()
  for pattern in patterns:
    hits = [path for path in paths if matches(pattern, path)]
    if not hits:
      raise _matches_nothing(pattern, paths, what, stages)
    chosen.update(hits)
  return [path for path in paths if path in chosen]


def assign(
  rules: Sequence[tuple[str, Any]], paths: Iterable[str], *, what: str, stages: Iterable[str] = ()
) -> dict[str, Any]:
  """`{path: value}` by the first rule that matches each path, in the order of `paths`.

  Raises:
    UserError: a rule matches nothing, or never gets its turn because earlier rules take all that it matches
      (a closing '.*' may be left without work); or a path is matched by no rule.
  """
  paths = list(paths)
  values: dict[str, Any] = {}
  for number, (pattern, value) in enumerate(rules):
    hits = [path for path in paths if matches(pattern, path)]
    if not hits:
      raise _matches_nothing(pattern, paths, what, stages)
    free = [path for path in hits if path not in values]
    if not free and not (pattern == '.*' and number == len(rules) - 1):
      earlier = next(p for p, _ in rules if matches(p, hits[0]))
      raise UserError(
        f'{what}: rule {pattern!r} never applies, since the earlier rule {earlier!r} takes {hits[0]!r} and '
        'all else it matches; the first match wins, so put the narrower rule first'
      )
    values.update((path, value) for path in free)
  left = [path for path in paths if path not in values]
  if left:
    raise UserError(
      f'{what}: no rule matches {", ".join(left[:4])}{" …" if len(left) > 4 else ""}; '
      "end the list with a default such as ('.*', …)"
    )
  return {path: values[path] for path in paths}


def _matches_nothing(pattern: str, paths: list[str], what: str, stages: Iterable[str]) -> UserError:
  expression = compiled(pattern)
  bare = [stage for stage in stages if expression.fullmatch(stage)]
  if bare:
    return UserError(f'{what}: pattern {pattern!r} selects stage {bare[0]!r}, which exists but has no parameters')
  names = list(dict.fromkeys([stage_of(path) for path in paths])) + paths
  return UserError(
    f'{what}: pattern {pattern!r} matches no parameter; nearest: {", ".join(nearest(pattern, names, 4))}'
  )
