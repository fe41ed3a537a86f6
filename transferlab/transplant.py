"""A transplant: a plan before it is an act.

`plan` decides for every target leaf where its value comes from, and for every source leaf whether it is used, from
shapes alone; `apply` then changes values only: never structure, shape, dtype or sharding of the target.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transferlab import paths, resized, rows
from transferlab.errors import UserError, nearest, unknown

ALL = [('.*', 'copy')]
DEFAULT_RULES = [('head', 'init'), *ALL]
ACTIONS = (
  "'copy'", "'copy:SOURCE PATH'", "'partial'", "'classes:3,7'", "'channels:sum|tile|zero'", "'positions:linear|first'",
  "'resize'", "'columns'", "'tokens[:mean|zero]'", "'init'",
)  # fmt: skip
# Actions on one leaf, and whether something stands behind their colon.
FORMS = {
  ('copy', False), ('copy', True), ('partial', False), ('classes', True), ('channels', True), ('positions', True),
  ('resize', False),
  ('init', False),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where one target leaf comes from.

  Attributes:
    kind: 'params' or 'stats'.
    action: 'copy', 'columns' (rows matched by the names of columns or categories), 'tokens' (rows, or outputs, matched
      by the tokens of two vocabularies), 'classes' (the outputs of chosen classes), 'channels' (another number of input
      channels), 'positions' (another number of learned positions) or 'init'.
    source: path of the source leaf; None for 'init'.
    rows: for 'columns' and 'tokens', pairs (target row, source row); for 'classes', pairs (target class, source class).
    way: for 'channels', 'sum', 'tile' or 'zero'; for 'positions' 'linear' or 'first'; for 'tokens' what new rows
      become: 'mean', 'zero', '' their own.
    foreign: the leaf's name in the file it comes from, where that is none of ours.
    before: of 'positions', the rows that stand for none.
  """

  kind: str
  path: str
  action: str
  source: str | None
  shape: tuple[int, ...]
  dtype: str
  rows: tuple[tuple[int, int], ...] = ()
  way: str = ''
  foreign: str = ''
  before: int = 0


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
    rows = [
      (o.path, str(o.shape), o.action + (f':{o.way}' if o.way else ''), o.source or '', o.foreign) for o in self.origins
    ]
    widths = [max(map(len, column), default=0) for column in zip(*rows)]
    shown = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return [*shown, *(f'not used: {path}' for path in self.unused), *self.notes, self.coverage()]

  def coverage(self) -> str:
    """How many leaves, and which share of the parameters' bytes, come from where."""
    sizes: dict[str, list[int]] = {}
    for origin in (origin for origin in self.origins if origin.kind == 'params'):
      sizes.setdefault(origin.action, []).append(math.prod(origin.shape) * np.dtype(origin.dtype).itemsize)
    total = sum(map(sum, sizes.values()))
    parts = [f'{action} {len(found)} leaves, {sum(found) / total:.2%} of the bytes' for action, found in sizes.items()]
    return f'parameters: {"; ".join(parts)}'


def plan(
  source: Mapping[str, Any],
  target: Mapping[str, Any],
  rules: Sequence[tuple[str, str]],
  *,
  source_names: rows.Names = rows.NOTHING,
  target_names: rows.Names = rows.NOTHING,
  stages: Sequence[str] = (),
  places: int | None = None,
) -> Plan:
  """Decides where every target leaf comes from.

  Args:
    source, target: variables (`{'params', 'stats'}`) of arrays or shapes.
    rules: (pattern over target paths, action); the first match wins. Statistics follow the first that matches them.
        'copy'           the leaf of the same path
        'copy:TEMPLATE'  the leaf that the template names; \\1 stands for the pattern's first group
        'partial'        copy where the source has the leaf, else init: for networks of another depth
        'classes:3,7'    the outputs of these classes of the source, in this order
        'channels:WAY'   a convolution on another number of input channels, see resized.py
        'positions:WAY'  a table [positions, width] of learned positions for texts of another length: 'linear'
                         interpolation between the source's rows, or its 'first' ones, others initialised
        'columns'        rows of a first layer [columns, features] or of embeddings [categories, features], by name
        'tokens[:WAY]'   rows of an embedding of tokens, or a language model's outputs, by token; WAY is what new ones
                         become: their own initialisation, the 'mean' of all of the source's, or 'zero'. Of a stage
                         that is named, leaves without an axis of tokens are copied
        'resize'         positions of patches on another grid, or patches of another size, see resized.py
        'init'           its own initialisation
    source_names, target_names: what rows of networks on tables and texts stand for (rows.py).
    stages: the target's stages, for error messages.
    places: how many learned positions the target has (`Network.positions`); rows of their table before those stand for
      none. None: all rows stand for one.

  Raises:
    UserError: a rule that matches nothing or is unknown, a source leaf that does not exist, shapes or dtypes that
      differ, or a plan that copies nothing.
  """
  given = {kind: paths.flatten(source.get(kind, {})) for kind in ('params', 'stats')}
  wanted = {kind: paths.flatten(target.get(kind, {})) for kind in ('params', 'stats')}
  actions = paths.assign(rules, wanted['params'], what='config.transplant', stages=stages)
  origins, notes = [], []
  for path, action in actions.items():
    pattern = next(p for p, _ in rules if paths.matches(p, path))
    leaf = wanted['params'][path]
    if action.partition(':')[0] == 'tokens' and path not in rows.TOKENS and paths.stage_of(path) == pattern:
      action = 'copy'
    if action.partition(':')[0] in ('columns', 'tokens'):
      origin, said = _by_name(path, action, given['params'], leaf, source_names, target_names)
      notes += said
    else:
      origin = _origin('params', path, pattern, action, given['params'], leaf, places)
      _check_tokens(origin, source_names, target_names)
    origins.append(origin)
  for path, leaf in wanted['stats'].items():
    pattern, action = next(((p, a) for p, a in rules if paths.matches(p, path)), ('', 'init'))
    action = 'init' if action.partition(':')[0] in ('columns', 'tokens') else action
    origins.append(_origin('stats', path, pattern, action, given['stats'], leaf))
  notes += _partly(origins, rules)
  used = {origin.source for origin in origins}
  unused = tuple(path for kind in given for path in given[kind] if path not in used)
  made = Plan(tuple(origins), unused, tuple(notes))
  if not made.copied():
    raise UserError('config.transplant copies nothing: every parameter of the target would be initialised anew')
  return made


def _origin(
  kind: str, path: str, pattern: str, action: str, given: Mapping[str, Any], leaf: Any, places: int | None = None
) -> Origin:
  shape, dtype = tuple(leaf.shape), str(leaf.dtype)
  verb, _, argument = action.partition(':')
  if (verb, bool(argument)) not in FORMS or action.endswith(':'):
    raise UserError(f'config.transplant: unknown action {action!r} for {pattern!r}; there are {", ".join(ACTIONS)}')
  if verb in WAYS and argument not in WAYS[verb]:
    raise unknown(f'way of {verb} for {pattern!r}:', argument, WAYS[verb])
  if verb == 'init' or (verb == 'partial' and path not in given):
    return Origin(kind, path, 'init', None, shape, dtype)
  name = _renamed(path, pattern, argument) if verb == 'copy' and argument else path
  theirs = _theirs(name, path, given, dtype)
  made = Origin(kind, path, 'copy', name, shape, dtype, foreign=getattr(theirs, 'origin', ''))
  if verb == 'classes':
    return _classes(made, theirs, argument)
  if verb == 'channels' and tuple(theirs.shape) != shape:
    return _channels(made, theirs, argument)
  if verb == 'resize' and tuple(theirs.shape) != shape:
    return _resized(made, theirs)
  if verb == 'positions' and tuple(theirs.shape) != shape:
    return _positions(made, theirs, argument, places)
  if tuple(theirs.shape) != shape:
    raise UserError(
      f'config.transplant: {path} has shape {shape}, {name} of the source {tuple(theirs.shape)}; '
      f'give it another origin, for example {_way_out(path, shape, tuple(theirs.shape))}'
    )
  return made


WAYS = {'channels': ('sum', 'tile', 'zero'), 'positions': ('linear', 'first')}


def _way_out(path: str, shape: tuple[int, ...], theirs: tuple[int, ...]) -> tuple[str, str]:
  """The rule that fits shapes which differ."""
  if _resizes(path, shape, theirs):
    return path, 'resize'
  if path.endswith('/positions') and len(shape) == len(theirs) == 2 and shape[1] == theirs[1]:
    return path, 'positions:linear'
  channels = len(shape) == len(theirs) == 4 and (*shape[:2], shape[3]) == (*theirs[:2], theirs[3])
  return paths.stage_of(path), 'channels:sum' if channels else 'init'


def _resizes(path: str, shape: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
  """Whether a leaf belongs to a resolution, and the shapes differ in nothing else."""
  grid = path.endswith('/position') and len(shape) == len(theirs) == 3 and shape[2] == theirs[2]
  return grid or (path.endswith('/patch/kernel') and shape[2:] == theirs[2:])


def _resized(made: Origin, theirs: Any) -> Origin:
  if not _resizes(made.path, made.shape, tuple(theirs.shape)):
    raise UserError(
      f'config.transplant: {made.path} has shape {made.shape}, {made.source} of the source {tuple(theirs.shape)}: '
      "'resize' is for positions of patches [rows, columns, width] and the kernel of patches"
    )
  return dataclasses.replace(made, action='resize')


def _classes(made: Origin, theirs: Any, argument: str) -> Origin:
  """The outputs of chosen classes, along the last axis."""
  parts = [part.strip() for part in argument.split(',')]
  if not all(re.fullmatch('[0-9]{1,9}', part) for part in parts):
    raise UserError(
      f"config.transplant: 'classes:{argument}' for {made.path}: numbers of classes are needed: classes:3,7"
    )
  chosen, known = [int(part) for part in parts], theirs.shape[-1]
  if max(chosen) >= known or len(set(chosen)) < len(chosen):
    raise UserError(f'config.transplant: {made.path}: classes {chosen}, and the source has 0 to {known - 1}, each once')
  if (*theirs.shape[:-1], len(chosen)) != made.shape:
    raise UserError(
      f'config.transplant: {made.path} has shape {made.shape}; {len(chosen)} classes of {made.source} '
      f'{tuple(theirs.shape)} do not fill it'
    )
  return dataclasses.replace(made, action='classes', rows=tuple(enumerate(chosen)))


def _channels(made: Origin, theirs: Any, way: str) -> Origin:
  """A convolution on another number of input channels."""
  mine, own = made.shape, tuple(theirs.shape)
  if len(mine) != 4 or (*mine[:2], mine[3]) != (*own[:2], own[3]):
    raise UserError(
      f'config.transplant: {made.path}: channels:{way} is for a convolution [h, w, in, out] whose inputs differ; '
      f'here {mine}, the source {own}'
    )
  if way == 'zero' and mine[2] < own[2]:
    raise UserError(
      f'config.transplant: {made.path}: channels:zero adds channels, and {mine[2]} are less than {own[2]}'
    )
  return dataclasses.replace(made, action='channels', way=way)


def _positions(made: Origin, theirs: Any, way: str, places: int | None) -> Origin:
  """A table of learned positions of another length."""
  mine, own = made.shape, tuple(theirs.shape)
  before = 0 if places is None else mine[0] - places
  if len(mine) != 2 or mine[1:] != own[1:] or own[0] <= before:
    raise UserError(
      f'config.transplant: {made.path}: positions:{way} is for a table [positions, width] of another length; here '
      f'{mine}, the source {own}'
    )
  return dataclasses.replace(made, action='positions', way=way, before=before)


def _partly(origins: Sequence[Origin], rules: Sequence[tuple[str, str]]) -> list[str]:
  """What rules of 'partial' copied and what not, by stage."""
  notes = []
  for pattern in (pattern for pattern, action in rules if action == 'partial'):
    own = [
      o for o in origins if o.kind == 'params' and next(p for p, _ in rules if paths.matches(p, o.path)) == pattern
    ]
    new = dict.fromkeys(paths.stage_of(o.path) for o in own if o.action == 'init')
    come = dict.fromkeys(paths.stage_of(o.path) for o in own if o.action != 'init')
    notes.append(
      f'partial {pattern!r}: from the source {", ".join(come) or "nothing"}; new {", ".join(new) or "nothing"}'
    )
  return notes


def _theirs(name: str, path: str, given: Mapping[str, Any], dtype: str) -> Any:
  """The source's leaf of this name, if there is one, and of the same dtype."""
  if name not in given:
    raise UserError(
      f'config.transplant: {path} would copy {name}, which the source does not have; '
      f"nearest: {', '.join(nearest(name, given)) or 'nothing'}; or give it the action 'init'"
    )
  if str(given[name].dtype) != dtype:
    raise UserError(f'config.transplant: {path} is {dtype}, {name} of the source {given[name].dtype}')
  return given[name]


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


def _by_name(
  path: str, action: str, given: Mapping[str, Any], leaf: Any, source_names: rows.Names, target_names: rows.Names
) -> tuple[Origin, list[str]]:
  """The origin of a leaf whose rows are matched by name, and what to say of it."""
  verb, colon, way = action.partition(':')
  if colon and (verb == 'columns' or not way or way not in NEW):
    raise unknown(f'config.transplant: action for {path}', action, ['columns', 'tokens', 'tokens:mean', 'tokens:zero'])
  shape, dtype = tuple(leaf.shape), str(leaf.dtype)
  if verb == 'columns':
    name, pairs, said = rows.by_column(path, given, leaf, source_names, target_names)
    if not pairs:
      return Origin('params', path, 'init', None, shape, dtype), said
  else:
    _theirs(path, path, given, dtype)
    name, (pairs, sentence) = path, rows.by_token(path, given, leaf, source_names, target_names)
    said = [f'{sentence}; new ones are {NEW[way]}']
  theirs = _theirs(name, path, given, dtype)
  return Origin('params', path, verb, name, shape, dtype, pairs, way, getattr(theirs, 'origin', '')), said


def _check_tokens(origin: Origin, source_names: rows.Names, target_names: rows.Names) -> None:
  """That what is copied whole stands for the same tokens on both sides."""
  names = [given.get(origin.path) for given in (source_names, target_names)]
  if origin.action == 'copy' and origin.path in rows.TOKENS and None not in names and [*names[0]] != [*names[1]]:  # type: ignore[misc]
    raise UserError(
      f'config.transplant: {origin.path} stands for other tokens in the source than in the target; '
      f"nearest: ({paths.stage_of(origin.path)!r}, 'tokens')"
    )


# What the rows of new tokens become.
NEW = {'': 'initialised', 'mean': "the mean of the source's", 'zero': 'zero'}


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
      taken = jnp.asarray(given[origin.kind][str(origin.source)])[jnp.array(theirs)]
      values[origin.kind][origin.path] = values[origin.kind][origin.path].at[jnp.array(mine)].set(taken)
    elif origin.action == 'tokens':
      own = values[origin.kind][origin.path]
      values[origin.kind][origin.path] = resized.with_tokens(
        given[origin.kind][str(origin.source)], own, rows.token_axis(origin.path), origin.rows, origin.way
      )
    elif origin.action == 'classes':
      numbers = jnp.array([number for _, number in origin.rows])
      values[origin.kind][origin.path] = jnp.asarray(given[origin.kind][str(origin.source)])[..., numbers]
    elif origin.action == 'channels':
      kernel = jnp.asarray(given[origin.kind][str(origin.source)])
      values[origin.kind][origin.path] = resized.with_channels(kernel, origin.shape[2], origin.way)
    elif origin.action == 'positions':
      table, own = jnp.asarray(given[origin.kind][str(origin.source)]), values[origin.kind][origin.path]
      values[origin.kind][origin.path] = resized.with_positions(table, own, origin.way, origin.before)
    elif origin.action == 'resize':
      leaf = jnp.asarray(given[origin.kind][str(origin.source)])
      grid = origin.path.endswith('/position')
      values[origin.kind][origin.path] = (
        resized.with_grid(leaf, *origin.shape[:2]) if grid else resized.with_patches(leaf, origin.shape[0])
      )
  return {kind: paths.unflatten(flat) for kind, flat in values.items()}


def carried(made: Plan, values: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
  """Values of the source's parameters (their Fisher information) where the plan puts the parameters: a tree like
  `params`, None where the plan copies nothing, and 0 in rows of a copied leaf that are new and in resized leaves.

  Args:
    values: a tree like the source's parameters.
    params: the target's.
  """
  import jax
  import jax.numpy as jnp

  # New rows of a vocabulary have none, whatever they are made of. Bicubic weights and pseudo-inverses are negative in
  # places, so that what is resized has none either.
  change: dict[str, dict[str, Any]] = {'tokens': {'way': ''}, 'resize': {'action': 'init'}}
  origins = (dataclasses.replace(o, **change.get(o.action, {})) for o in made.origins if o.kind == 'params')
  only = dataclasses.replace(made, origins=tuple(origins))
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), dict(params))
  return start_point(made, apply(only, {'params': values}, {'params': zeros})['params'])


def returned(made: Plan, source: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
  """The source's variables with the target's values wherever the plan took them from: what became of the source.

  Rows and classes go back to where they came from. A convolution on other input channels, learned positions of
  another number, and what was resized have no way back, and stay as the source has them, as does
  all that was not copied.
  """
  import jax.numpy as jnp

  values = {kind: paths.flatten(source.get(kind, {})) for kind in ('params', 'stats')}
  trained = {kind: paths.flatten(target.get(kind, {})) for kind in ('params', 'stats')}
  for origin in made.origins:
    old, new = values[origin.kind].get(str(origin.source)), trained[origin.kind][origin.path]
    if origin.action == 'copy':
      values[origin.kind][str(origin.source)] = jnp.asarray(new)
    elif origin.action == 'tokens':
      back = [(theirs, mine) for mine, theirs in origin.rows]
      values[origin.kind][str(origin.source)] = resized.with_tokens(new, old, rows.token_axis(origin.path), back, '')
    elif origin.action in ('columns', 'classes'):
      mine, theirs = (jnp.array(places) for places in zip(*origin.rows))
      places = (theirs,) if origin.action == 'columns' else (..., theirs)
      given = new[mine] if origin.action == 'columns' else new[..., mine]
      values[origin.kind][str(origin.source)] = jnp.asarray(old).at[places].set(given)
  return {kind: paths.unflatten(flat) for kind, flat in values.items()}


def start_point(made: Plan, params: Mapping[str, Any]) -> dict[str, Any]:
  """The transplanted parameters as the point that L2-SP pulls towards: None where nothing was copied."""
  copied = set(made.copied())
  return paths.unflatten({path: leaf if path in copied else None for path, leaf in paths.flatten(params).items()})
