"""Which tensors of an unpickled object are the network's weights, and what they are called. Pure.

Checkpoints hold a state dict, or several beside an optimizer; or a whole module; or something else. Here is the walk
through what a pickle held, the choice of the part, and the names. What a tensor is, torch_files.py knows.
"""

import collections
import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import Any, Protocol

from transferlab.errors import UserError, unknown
from transferlab.weights.naming import strip_wrappers
from transferlab.weights.pickles import Global, Record

# Entries of a checkpoint that are a network's own weights: of those that are there, the first is read.
PREFERRED = (
  *('state_dict', 'model_state_dict', 'model_state', 'model', 'net', 'network', 'module', 'params', 'weights'),
  *('net_state_dict', 'network_state_dict', 'model_dict', 'model_weights'),
  *('ema', 'model_ema', 'ema_model', 'ema_state_dict', 'state_dict_ema', 'model_state_dict_ema', 'params_ema'),
  *('teacher', 'student'),
)
# Entries that are the training's: never a network's weights, unless they are asked for.
TRAINING = (
  *('optimizer', 'optimizers', 'optimizer_state', 'optimizer_states', 'optimizer_state_dict', 'optimizer_dict'),
  *('optim', 'optim_state', 'optim_state_dict', 'opt', 'opt_state', 'criterion', 'loss', 'callbacks', 'loops'),
  *('scheduler', 'schedulers', 'scheduler_state_dict', 'lr_scheduler', 'lr_schedulers', 'lr_scheduler_state_dict'),
  *('scaler', 'grad_scaler', 'scaler_state_dict', 'amp', 'amp_scaler', 'rng', 'rng_state', 'rng_states'),
  *('torch_rng_state', 'cuda_rng_state', 'random_state'),
)
DICTS = ('collections.OrderedDict', 'collections.defaultdict', 'collections.Counter', 'builtins.dict')
SETS = ('builtins.set', 'builtins.frozenset', '__builtin__.set', '__builtin__.frozenset')
CONTAINERS = (dict, list, tuple, Record)
# No honest file meets these bounds; without them a few bytes could ask for endless names.
MOST_ENTRIES, MOST_LEVELS, MOST_NAMES, LONGEST_NAME = 2**23, 100, 2**18, 1000


class Leaf(Protocol):
  """A tensor, as far as its name and place are concerned."""

  @property
  def shape(self) -> Any:
    """As the file says, unchecked."""

  def number(self) -> Any:
    """The value of a number that stands in the pickle itself; None for every other tensor."""


@dataclasses.dataclass(frozen=True)
class Selection:
  """The weights of a file, by name, and what else it holds (as in `Contents`)."""

  tensors: dict[str, Any]
  part: str | None
  others: dict[str, int]
  metadata: dict[str, Any]
  notes: tuple[str, ...]


def select(root: Any, leaf: Callable[[Record], Leaf | None], file: str, part: str | None = None) -> Selection:
  """Chooses the network's own weights among everything that a pickle held.

  Args:
    root: the pickle's object.
    leaf: the tensor that a record stands for, None where it stands for something else.
    part: another entry ('ema', 'a.b').

  Raises:
    UserError: no tensors, an unknown part, several entries that may be meant, two tensors of one name, or names
      without end.
  """
  graph = Graph(root, leaf, file)
  if not graph.entries(root) and id(root) not in graph.leaves:
    raise UserError(f'{file}: holds no tensors')
  way = [] if part is None else _way_to(graph, root, part)
  way += _descent(graph, way[-1][1] if way else root, named=bool(way))
  keys, values = [key for key, _ in way], [root, *(value for _, value in way)]
  skipped = _training(graph, values[-1])
  tensors = graph.named(values[-1], skipped)
  kept = [*({key} for key in keys), {name for name, _ in graph.entries(values[-1])} - skipped]
  left = {
    '.'.join([*keys[:depth], name]): child
    for depth, value in enumerate(values)
    for name, child in graph.entries(value)
    if name not in kept[depth]
  }
  numbers = {name: graph.leaves[id(child)].number() for name, child in left.items() if id(child) in graph.leaves}
  numbers = {name: number for name, number in numbers.items() if number is not None and '.' not in name}
  others = {name: graph.count(child) for name, child in left.items() if name not in numbers}
  notes = _not_read(graph, values[-1])
  short, note = strip_wrappers(tensors, {name for name, found in tensors.items() if _is_scalar(found)})
  named = {short[name]: found for name, found in tensors.items()}
  said = [note, *notes] if note else notes
  return Selection(named, '.'.join(keys) or None, others, {**_metadata(root), **numbers}, tuple(said))


class Graph:
  """What can be reached from an object by ways that end at a tensor; every container is looked into once.

  So cycles end, and containers that hold each other a billion times over cost nothing: names are only given along
  ways that lead to a tensor.
  """

  def __init__(self, root: Any, leaf: Callable[[Record], Leaf | None], file: str):
    self.file = file
    self.leaves: dict[int, Leaf] = {}
    self._entries: dict[int, list[tuple[str, Any]]] = {}
    parents = self._explore(root, leaf)
    fruitful: set[int] = set()
    pending = list(self.leaves)
    while pending:
      place = pending.pop()
      if place not in fruitful:
        fruitful.add(place)
        pending += parents[place]
    self._entries = {
      place: [(name, child) for name, child in entries if id(child) in fruitful]
      for place, entries in self._entries.items()
    }

  def _explore(self, root: Any, leaf: Callable[[Record], Leaf | None]) -> Mapping[int, list[int]]:
    """Fills leaves and entries; gives the containers in which each container or tensor stands."""
    parents, pending, looked_at = collections.defaultdict(list), [root], 0
    while pending:
      value = pending.pop()
      if id(value) in self._entries:
        continue
      found = leaf(value) if isinstance(value, Record) else None
      inside = [] if found else children(value)
      looked_at += len(inside)
      if looked_at > MOST_ENTRIES:
        raise UserError(f'{self.file}: is no file of weights: it holds more than {MOST_ENTRIES} values')
      self._entries[id(value)] = entries = [(name, child) for name, child in inside if _is_container(child)]
      if found is not None:
        self.leaves[id(value)] = found
      for _, child in entries:
        parents[id(child)].append(id(value))
        pending.append(child)
    return parents

  def entries(self, value: Any) -> list[tuple[str, Any]]:
    """Names and values of what stands in a container and is a tensor, or leads to one."""
    return self._entries.get(id(value), [])

  def count(self, value: Any) -> int:
    """How many different tensors can be reached."""
    seen: set[int] = set()
    pending = [value]
    while pending:
      value = pending.pop()
      if id(value) not in seen:
        seen.add(id(value))
        pending += (child for _, child in self.entries(value))
    return sum(place in self.leaves for place in seen)

  def named(self, value: Any, skipped: Container[str] = ()) -> dict[str, Any]:
    """All tensors below a container, in its order, by their dotted names; a shared one under each of its names."""
    found: dict[str, Any] = {}
    pending: list[tuple[str, Any, tuple[int, ...]]] = [('', value, ())]
    steps = 0
    while pending:
      name, value, above = pending.pop()
      steps += 1
      if id(value) in self.leaves:
        if found.setdefault(name or 'tensor', self.leaves[id(value)]) is not self.leaves[id(value)]:
          raise UserError(f'{self.file}: two tensors have the name {name!r}')
      elif id(value) not in above:
        entries = [(key, child) for key, child in self.entries(value) if above or key not in skipped]
        if len(above) == MOST_LEVELS or steps + len(pending) + len(entries) > MOST_NAMES or len(name) > LONGEST_NAME:
          raise UserError(
            f'{self.file}: is no file of weights: its containers are nested more than {MOST_LEVELS} deep, '
            f'or hold more than {MOST_NAMES} tensors, or names of more than {LONGEST_NAME} characters'
          )
        prefix = f'{name}.' if above else ''
        pending += [(f'{prefix}{key}', child, (*above, id(value))) for key, child in reversed(entries)]
    return found


def _is_container(value: Any) -> bool:
  return isinstance(value, CONTAINERS) and (isinstance(value, Record) or bool(value))


def kind(record: Any) -> str:
  """What a record would have called, 'module.name'; '' for anything but an honest one."""
  name = record.kind if isinstance(record, Record) else None
  return str(name) if isinstance(name, Global) else ''


def children(value: Any) -> list[tuple[str, Any]]:
  """What stands in a container, by name: a module's as its state dict would name it, others by key or attribute."""
  if _is_list(value):
    return [(str(place), child) for place, child in enumerate(value)]
  if _is_dict(value):
    return _named(pairs(value))
  if kind(value) in SETS:
    return children(value.args[0]) if value.args and _is_list(value.args[0]) else []
  if not isinstance(value, Record):
    return []
  attributes = _attributes(value)
  if '_parameters' in attributes and '_modules' in attributes:
    return _module_children(attributes)
  elements = ((str(place), child) for place, child in enumerate(value.elements))
  return [*attributes.items(), ('args', value.args), *elements, *_named(pairs(value))]


def pairs(value: Any) -> dict[Any, Any]:
  """Keys and values of a dict, or of the record of one; {} for everything else."""
  if isinstance(value, dict):
    return value
  if not isinstance(value, Record):
    return {}
  given = value.args[-1] if value.args and kind(value) in DICTS else ()
  if isinstance(given, dict):
    return {**given, **dict(value.items)}
  given = [pair for pair in given if _is_list(pair) and len(pair) == 2] if _is_list(given) else []
  return {**{pair[0]: pair[1] for pair in given if isinstance(pair[0], (str, int))}, **dict(value.items)}


def _module_children(attributes: Mapping[str, Any]) -> list[tuple[str, Any]]:
  """Parameters, buffers and modules of a torch module, without the buffers that its state dict leaves out."""
  unsaved = attributes.get('_non_persistent_buffers_set')
  if isinstance(unsaved, Record):
    unsaved = unsaved.args[0] if unsaved.args else ()
  left_out = {name for name in unsaved if isinstance(name, str)} if isinstance(unsaved, (list, tuple)) else set()
  buffers = {key: child for key, child in pairs(attributes.get('_buffers')).items() if key not in left_out}
  return [
    entry
    for group in (pairs(attributes['_parameters']), buffers, pairs(attributes['_modules']))
    for entry in _named(group)
  ]


def _attributes(record: Record) -> dict[str, Any]:
  """What the record's object would have had as attributes, slots included."""
  found: dict[str, Any] = {}
  for state in record.states:
    # Objects with slots give two: what was in __dict__, and the slots.
    two = isinstance(state, tuple) and len(state) == 2 and all(part is None or _is_dict(part) for part in state)
    for part in state if two else (state,):
      found |= dict(_named(pairs(part))) if part is None or _is_dict(part) else {'state': part}
  return found


def _named(found: Mapping[Any, Any]) -> list[tuple[str, Any]]:
  """Keys as parts of names; those that are no text and no number are named by their place."""
  return [(f'?{place}' if (text := _text(key)) is None else text, found[key]) for place, key in enumerate(found)]


def _text(key: Any) -> str | None:
  if isinstance(key, bytes):
    return key.decode('latin-1')
  if isinstance(key, str):  # lone surrogates cannot be printed
    return key if key.isascii() else key.encode('utf-8', 'backslashreplace').decode()
  return str(key) if isinstance(key, float) or (isinstance(key, int) and abs(key) < 2**63) else None


def _is_list(value: Any) -> bool:
  return isinstance(value, (list, tuple))


def _is_dict(value: Any) -> bool:
  return isinstance(value, dict) or kind(value) in DICTS


def _is_branch(value: Any) -> bool:
  """Whether a container may hold entries to choose from: a record's attributes belong together."""
  return _is_list(value) or _is_dict(value) or (isinstance(value, Record) and bool(value.items))


def _descent(graph: Graph, value: Any, named: bool) -> list[tuple[str, Any]]:
  """The way from a container down to the weights; `named` where the container is known to be weights already."""
  way: list[tuple[str, Any]] = []
  while _is_branch(value) and len(way) < MOST_LEVELS:
    entries = [(name, child) for name, child in graph.entries(value) if name not in TRAINING]
    groups = {name: child for name, child in entries if id(child) not in graph.leaves}
    # Single numbers beside other entries are no weights: {'model': …, 'best_accuracy': tensor(0.9)}.
    weights = [n for n, child in entries if n not in groups and not _is_scalar(graph.leaves[id(child)])]
    known = [name for name in PREFERRED if name in groups]
    strange = [name for name in groups if name not in PREFERRED]
    if known and not ((way or named) and (strange or weights)):
      name = known[0]
    elif way or named or weights or not graph.entries(value) or (entries and not groups):
      break
    elif len(strange) == 1:
      name = strange[0]
    else:
      listed = ', '.join(f'{shown(name)} ({graph.count(child)})' for name, child in graph.entries(value)[:20])
      raise UserError(f'{graph.file}: none of its entries is known to be a network: {listed} tensors; give part')
    value = groups[name]
    way.append((name, value))
  return way


def _training(graph: Graph, value: Any) -> set[str]:
  """Entries of a state dict that are the training's, where it has others."""
  names = {name for name, _ in graph.entries(value)}
  found = {name for name, child in graph.entries(value) if name in TRAINING and id(child) not in graph.leaves}
  return found if _is_branch(value) and found < names else set()


def _way_to(graph: Graph, root: Any, part: str) -> list[tuple[str, Any]]:
  """The entries that lead to a part; names may hold dots themselves."""

  def search(value: Any, rest: str) -> list[tuple[str, Any]] | None:
    groups = {name: child for name, child in graph.entries(value) if id(child) not in graph.leaves}
    if rest in groups:
      return [(rest, groups[rest])]
    for name, child in groups.items():
      if name and rest.startswith(f'{name}.') and (deeper := search(child, rest[len(name) + 1 :])) is not None:
        return [(name, child), *deeper]
    return None

  if (way := search(root, part)) is not None:
    return way
  found = _parts(graph, root)
  if any(part == name for name, _ in children(root)):
    raise UserError(f'{graph.file}: part {part!r} is no container of tensors; there are: {", ".join(found) or "none"}')
  raise UserError(f'{graph.file}: {unknown("part", part, found)}')


def _parts(graph: Graph, root: Any) -> list[str]:
  """The parts that can be asked for, of the two uppermost levels: some dozens at most."""
  inside = lambda value: [(n, child) for n, child in graph.entries(value)[:50] if id(child) not in graph.leaves]
  upper = inside(root)
  lower = [f'{name}.{inner}' for name, child in upper[:10] for inner, _ in inside(child)]
  return [shown(name) for name in [*(name for name, _ in upper), *lower]][:50]


def shown(name: str) -> str:
  """A name of the file for a message: short, and without what a terminal would obey."""
  return repr(name if len(name) <= 200 else f'{name[:200]}…')[1:-1]


def _is_scalar(leaf: Leaf) -> bool:
  return isinstance(leaf.shape, (tuple, list)) and not leaf.shape


def _not_read(graph: Graph, value: Any) -> list[str]:
  """A note on entries of a state dict that are objects of an unknown kind, and may have been meant as weights."""
  if not _is_branch(value):
    return []
  known = {name for name, _ in graph.entries(value)}
  found = [
    f'{shown(name)} ({shown(kind(child)) or "of no kind"})'
    for name, child in children(value)
    if isinstance(child, Record) and name not in known and kind(child) not in (*DICTS, *SETS)
  ]
  more = f' and {len(found) - 5} more' if len(found) > 5 else ''
  return [f'left out, and not run: {", ".join(found[:5])}{more}'] if found else []


def _metadata(root: Any) -> dict[str, Any]:
  """The plain values of a checkpoint: numbers, short texts, short lists of them."""
  if not _is_branch(root) or _is_list(root):
    return {}
  found = [(name, list(value) if isinstance(value, tuple) else value) for name, value in _named(pairs(root))]
  return dict([(name, value) for name, value in found if _is_plain(value)][:100])


def _is_plain(value: Any) -> bool:
  if _is_list(value):
    return 0 < len(value) <= 16 and all(not _is_list(child) and _is_plain(child) for child in value)
  if isinstance(value, int):
    return abs(value) < 2**63
  return isinstance(value, float) or (isinstance(value, str) and len(value) <= 1000)
