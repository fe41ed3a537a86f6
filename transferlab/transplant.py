"""A transplant: a plan before it is an act.

`plan` decides for every target leaf where its value comes from, and for every source leaf whether it is used, from
shapes alone; `apply` then changes values only: never structure, shape, dtype or sharding of the target.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transferlab import paths
from transferlab.errors import UserError, nearest

DEFAULT_RULES = [('head', 'init'), ('.*', 'copy')]
ACTIONS = ("'copy'", "'copy:SOURCE PATH'", "'columns'", "'init'")


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where one target leaf comes from.

  Attributes:
    kind: 'params' or 'stats'.
    action: 'copy', 'columns' (rows of a first layer matched by column name) or 'init'.
    source: path of the source leaf; None for 'init'.
    rows: for 'columns', pairs (target row, source row).
  """

  kind: str
  path: str
  action: str
  source: str | None
  shape: tuple[int, ...]
  dtype: str
  rows: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a transplant will do: an origin for every target leaf, and the source leaves that nobody reads."""

  origins: tuple[Origin, ...]
  unused: tuple[str, ...]
  notes: tuple[str, ...] = ()

  def copied(self) -> list[str]:
    """Paths of the target's parameters that take a value from the source."""
    return [o.path for o in self.origins if o.kind == 'params' and o.action != 'init']

  def as_json(self) -> dict[str, Any]:
    """For `transplant.json`."""
    return dataclasses.asdict(self)

  def lines(self) -> list[str]:
    """The report, a line per leaf."""
    width = max((len(o.path) for o in self.origins), default=0)
    shown = [f'{o.path:<{width}}  {o.shape!s:<18} {o.action:<8} {o.source or ""}' for o in self.origins]
    return [*shown, *(f'not used: {path}' for path in self.unused), *self.notes]


def plan(
  source: Mapping[str, Any],
  target: Mapping[str, Any],
  rules: Sequence[tuple[str, str]],
  *,
  source_columns: Sequence[str] = (),
  target_columns: Sequence[str] = (),
  stages: Sequence[str] = (),
) -> Plan:
  """Decides where every target leaf comes from.

  Args:
    source, target: variables (`{'params', 'stats'}`) of arrays or shapes.
    rules: (pattern over target paths, action); the first match wins. Actions: 'copy' (the leaf of the same path),
      'copy:TEMPLATE' (the leaf that the template names; \\1 stands for the pattern's first group), 'columns' (a first
      layer [columns, features] whose rows are matched by column name), 'init' (its own initialisation).
      Statistics follow the first rule that matches them.
    source_columns, target_columns: column names of tables.
    stages: the target's stages, for error messages.

  Raises:
    UserError: a rule that matches nothing or is unknown, a source leaf that does not exist, shapes or dtypes that
      differ, or a plan that copies nothing.
  """
  given = {kind: paths.flatten(source.get(kind, {})) for kind in ('params', 'stats')}
  wanted = {kind: paths.flatten(target.get(kind, {})) for kind in ('params', 'stats')}
  actions = paths.assign(rules, wanted['params'], what='config.transplant', stages=stages)
  origins = []
  for path, action in actions.items():
    pattern = next(p for p, _ in rules if paths.matches(p, path))
    origins.append(
      _origin('params', path, pattern, action, given['params'], wanted['params'][path], source_columns, target_columns)
    )
  for path, leaf in wanted['stats'].items():
    pattern, action = next(((p, a) for p, a in rules if paths.matches(p, path)), ('', 'init'))
    action = 'init' if action == 'columns' else action
    origins.append(_origin('stats', path, pattern, action, given['stats'], leaf, (), ()))
  used = {origin.source for origin in origins}
  unused = tuple(path for kind in given for path in given[kind] if path not in used)
  made = Plan(tuple(origins), unused, _notes(origins, source_columns, target_columns))
  if not made.copied():
    raise UserError('config.transplant copies nothing: every parameter of the target would be initialised anew')
  return made


def _origin(
  kind: str,
  path: str,
  pattern: str,
  action: str,
  given: Mapping[str, Any],
  leaf: Any,
  source_columns: Sequence[str],
  target_columns: Sequence[str],
) -> Origin:
  shape, dtype = tuple(leaf.shape), str(leaf.dtype)
  if action == 'init':
    return Origin(kind, path, 'init', None, shape, dtype)
  if action != 'copy' and action != 'columns' and not action.startswith('copy:'):
    raise UserError(f'config.transplant: unknown action {action!r} for {pattern!r}; there are {", ".join(ACTIONS)}')
  name = _renamed(path, pattern, action.removeprefix('copy:')) if action.startswith('copy:') else path
  if name not in given:
    raise UserError(
      f'config.transplant: {path} would copy {name}, which the source does not have; '
      f"nearest: {', '.join(nearest(name, given)) or 'nothing'}; or give it the action 'init'"
    )
  theirs = given[name]
  if str(theirs.dtype) != dtype:
    raise UserError(f'config.transplant: {path} is {dtype}, {name} of the source {theirs.dtype}')
  if action == 'columns':
    rows = _matched_rows(path, shape, tuple(theirs.shape), source_columns, target_columns)
    return Origin(kind, path, 'columns', name, shape, dtype, rows)
  if tuple(theirs.shape) != shape:
    stage = paths.stage_of(path)
    raise UserError(
      f'config.transplant: {path} has shape {shape}, {name} of the source {tuple(theirs.shape)}; '
      f"give it another origin, for example ({stage!r}, 'init')"
    )
  return Origin(kind, path, 'copy', name, shape, dtype)


def _renamed(path: str, pattern: str, template: str) -> str:
  match = paths.compiled(pattern).fullmatch(path)
  try:
    if match is not None:
      return match.expand(template)
    # The pattern chose the stage by its name: the rest of the path stays.
    stage, _, rest = path.partition('/')
    match = paths.compiled(pattern).fullmatch(stage)
    assert match is not None
    return f'{match.expand(template)}/{rest}'
  except (re.error, IndexError) as error:
    raise UserError(f'config.transplant: template {template!r} does not fit pattern {pattern!r}: {error}') from None


def _matched_rows(
  path: str,
  shape: tuple[int, ...],
  theirs: tuple[int, ...],
  source_columns: Sequence[str],
  target_columns: Sequence[str],
) -> tuple[tuple[int, int], ...]:
  if not source_columns or not target_columns:
    raise UserError(f"config.transplant: {path}: 'columns' needs tables with column names on both sides")
  if shape[1:] != theirs[1:] or shape[0] != len(target_columns) or theirs[0] != len(source_columns):
    raise UserError(
      f"config.transplant: {path}: 'columns' is for a first layer [columns, features]; here {shape} for "
      f'{len(target_columns)} columns, the source {theirs} for {len(source_columns)}'
    )
  rows = tuple((i, source_columns.index(name)) for i, name in enumerate(target_columns) if name in source_columns)
  if not rows:
    raise UserError(f'config.transplant: {path}: source and target have no column in common')
  return rows


def _notes(origins: Sequence[Origin], source_columns: Sequence[str], target_columns: Sequence[str]) -> tuple[str, ...]:
  if not any(origin.action == 'columns' for origin in origins):
    return ()
  new = [name for name in target_columns if name not in source_columns]
  gone = [name for name in source_columns if name not in target_columns]
  return (
    f'columns matched by name: {len(target_columns) - len(new)}',
    f'columns new in the target, initialised: {", ".join(new) or "none"}',
    f'columns of the source not used: {", ".join(gone) or "none"}',
  )


def apply(made: Plan, source: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
  """The target's variables with the values that the plan takes from the source."""
  import jax.numpy as jnp

  given = {kind: paths.flatten(source.get(kind, {})) for kind in ('params', 'stats')}
  values = {kind: paths.flatten(target.get(kind, {})) for kind in ('params', 'stats')}
  for origin in made.origins:
    if origin.action == 'copy':
      values[origin.kind][origin.path] = jnp.asarray(given[origin.kind][str(origin.source)])
    elif origin.action == 'columns':
      mine, theirs = zip(*origin.rows)
      rows = jnp.asarray(given[origin.kind][str(origin.source)])[jnp.array(theirs)]
      values[origin.kind][origin.path] = values[origin.kind][origin.path].at[jnp.array(mine)].set(rows)
  return {kind: paths.unflatten(flat) for kind, flat in values.items()}


def start_point(made: Plan, params: Mapping[str, Any]) -> dict[str, Any]:
  """The transplanted parameters as the point that L2-SP pulls towards: None where nothing was copied."""
  copied = set(made.copied())
  return paths.unflatten({path: leaf if path in copied else None for path, leaf in paths.flatten(params).items()})
