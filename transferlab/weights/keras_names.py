"""What the variables of a Keras file are called: one name per weight, `LAYER/WEIGHT`, whichever Keras wrote it. Pure.

Legacy files list names, made unique by a graph or prefixed by a model; Keras 3 numbers the variables of each object and
leaves what they are to its class. Opening files is keras_files.py's; a configuration is read here as data, never built.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transferlab.weights.contents import Tensor

# Each weight with the option that can leave it out, in the order in which the class creates them.
_KERNEL = (('kernel', None), ('bias', 'use_bias'))
_SEPARABLE = (('depthwise_kernel', None), ('pointwise_kernel', None), ('bias', 'use_bias'))
_RECURRENT = (('kernel', None), ('recurrent_kernel', None), ('bias', 'use_bias'))
_AFFINE = (('gamma', 'scale'), ('beta', 'center'))
_BATCH = (*_AFFINE, ('moving_mean', None), ('moving_variance', None))
_CONVOLUTIONS = [f'{kind}conv{axes}d' for kind in ('', 'depthwise_') for axes in (1, 2, 3)]
WEIGHTS: dict[str, tuple[tuple[str, str | None], ...]] = {
  **dict.fromkeys(['dense', *_CONVOLUTIONS, *(f'conv{axes}d_transpose' for axes in (1, 2, 3))], _KERNEL),
  **dict.fromkeys(['separable_conv1d', 'separable_conv2d'], _SEPARABLE),
  **dict.fromkeys(['cell', 'lstm_cell', 'gru_cell', 'simple_rnn_cell', 'conv_lstm_cell'], _RECURRENT),
  **dict.fromkeys(['batch_normalization', 'sync_batch_normalization'], _BATCH),
  **dict.fromkeys(['layer_normalization', 'group_normalization'], _AFFINE),
  'einsum_dense': (('kernel', None), ('bias', 'bias_axes')),
  'rms_normalization': (('scale', None),),
  'normalization': (('mean', None), ('variance', None), ('count', None)),
  'embedding': (('embeddings', None),),
  'p_re_lu': (('alpha', None),),
  'additive_attention': (('scale', 'use_scale'),),
}
# Groups that only hold a model's layers: no part of a name.
CONTAINERS = ('layers', '_layer_checkpoint_dependencies')
# Groups beside the model's own: state of its training.
TRAINING = re.compile(r'_?(optimizer|metrics|compile_metrics|compile_loss|loss_tracker|loss)')
# Keras 1 wrote `block1_conv1_W_1:0`.
_FIRST = {'W': 'kernel', 'b': 'bias', 'gamma': 'gamma', 'beta': 'beta'}
_FIRST |= {'running_mean': 'moving_mean', 'running_std': 'moving_variance'}


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
  """The variables of one object of a Keras 3 file.

  Attributes:
    path: of the object's group within the file, without its last part 'vars'.
    name: the object's own name, which only newer files hold.
    variables: by their number.
    place: grows in the order in which the file was written.
  """

  path: tuple[str, ...]
  name: str | None
  variables: Mapping[str, Tensor]
  place: tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
  """A variable, its name, and its unique path within the file, which stands in where two would have one name."""

  name: str
  path: str
  tensor: Tensor


def unique(named: Sequence[Named]) -> dict[str, Tensor]:
  """By name; variables that would have one name go by their paths within the file."""
  count = Counter(item.name for item in named)
  return {item.name if count[item.name] == 1 else item.path: item.tensor for item in named}


def without_wrapper(named: Sequence[Named], wrapper: str) -> tuple[list[Named], str]:
  """The variables without the name of the sub-model that holds all of them, and a note that says so."""
  short = [dataclasses.replace(item, name=item.name.removeprefix(f'{wrapper}/')) for item in named]
  return short, f'every name began with {wrapper}/, which was left out'


# ---------------------------------------------------------------------------------------------- configurations


def snake_case(name: str) -> str:
  """As Keras names groups after classes: `Conv2DTranspose` is conv2d_transpose, `GRUCell` gru_cell."""
  return re.sub(r'(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])', '_', re.sub(r'\W+', '', name)).lower()


def sublayers(entry: Any) -> list[Mapping[str, Any]]:
  """The layers of a model, given `{'class_name', 'config'}`; none for a layer that is no model."""
  config = entry.get('config') if isinstance(entry, Mapping) else None
  layers = config.get('layers') if isinstance(config, Mapping) else config  # early files: the list itself
  return [layer for layer in layers if isinstance(layer, Mapping)] if isinstance(layers, list) else []


def options_of(entry: Any) -> Mapping[str, Any]:
  """The options of a layer; nothing where there are none."""
  config = entry.get('config') if isinstance(entry, Mapping) else None
  return config if isinstance(config, Mapping) else {}


def name_of(entry: Any) -> str | None:
  """The own name of a layer."""
  name = options_of(entry).get('name') or (entry.get('name') if isinstance(entry, Mapping) else None)
  return name if isinstance(name, str) else None


def class_of(entry: Any) -> str:
  """The class of a layer; '' where the entry does not say."""
  name = entry.get('class_name') if isinstance(entry, Mapping) else None
  return name if isinstance(name, str) else ''


def layer_records(model: Any, prefix: str = '') -> list[dict[str, Any]]:
  """Every layer of a configuration in the model's order: its name, its class, and its plain options."""
  records = []
  for entry in sublayers(model):
    name = f'{prefix}{name_of(entry) or snake_case(class_of(entry))}'
    small = {key: value for key, value in options_of(entry).items() if key != 'name' and _small(value)}
    records.append({'name': name, 'class': class_of(entry), 'config': small})
    records.extend(layer_records(entry, f'{name}/'))
  return records


def _small(value: Any) -> bool:
  if isinstance(value, list):
    return len(value) <= 8 and all(item is None or isinstance(item, (bool, int, float)) for item in value)
  return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 100)


# ---------------------------------------------------------------------------------------------- legacy files


def legacy_names(layer: str, weights: Sequence[str], entry: Any = None) -> list[str]:
  """The weights of one layer of a legacy file: `conv1_3/kernel:0` of `conv1` is `conv1/kernel`.

  Args:
    entry: the layer's configuration where the file has one; it tells a sub-model from a layer.
  """
  split = [re.sub(r':\d+$', '', weight).strip('/').split('/') for weight in weights]
  rests = [_behind(parts, layer.split('/')) for parts in split]
  # The weights of a layer that was renamed keep its old name; those of a sub-model begin with several.
  renamed = len({parts[0] for parts in split}) == 1 and not sublayers(entry)
  renamed = renamed and (class_of(entry) != '' or all(len(parts) == 2 for parts in split))
  inner = {name_of(sub) for sub in sublayers(entry)}
  names = []
  for parts, rest in zip(split, rests):
    if rest is None:
      rest = _first_names(parts, layer) or (parts[1:] if renamed and len(parts) > 1 else parts)
    base = re.sub(r'_\d+$', '', rest[0])
    if len(rest) > 1 and rest[0] not in inner and base in inner:
      rest = [base, *rest[1:]]
    names.append('/'.join([layer, *rest]))
  return names


def _behind(parts: list[str], layer: list[str]) -> list[str] | None:
  """What follows the layer's name; a name with a counter behind it counts where the name itself does not occur."""
  *folders, last = layer
  for pattern in (re.escape(last), re.escape(last) + r'_\d+'):
    for start in range(len(parts) - len(layer)):
      end = start + len(folders)
      if parts[start:end] == folders and re.fullmatch(pattern, parts[end]):
        return parts[end + 1 :]
  return None


def _first_names(parts: list[str], layer: str) -> list[str] | None:
  found = re.fullmatch(rf'{re.escape(layer)}(?:_\d+)?_({"|".join(_FIRST)})(?:_\d+)?', '/'.join(parts))
  return [_FIRST[found[1]]] if found else None


# ---------------------------------------------------------------------------------------------- Keras 3


@dataclasses.dataclass(frozen=True, eq=False)
class _Node:
  """An object of a model: what is stored of it, and the objects that it holds."""

  stored: tuple[Stored, ...]
  children: Mapping[str, '_Node']
  place: tuple[int, int]

  @property
  def name(self) -> str | None:
    return next((stored.name for stored in self.stored if stored.name), None)

  @property
  def variables(self) -> dict[str, Tensor]:
    """By number, in the order of numbers."""
    found = {key: tensor for stored in self.stored for key, tensor in stored.variables.items()}
    return {key: found[key] for key in sorted(found, key=_natural)}

  @property
  def count(self) -> int:
    return len(self.variables) + sum(child.count for child in self.children.values())


def _natural(text: str) -> list[tuple[bool, int, str]]:
  """A key to sort by in which conv2d_2 stands before conv2d_10."""
  return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.findall(r'\d+|\D+', text)]


def _tree(stored: Sequence[Stored], depth: int = 0) -> _Node:
  own = tuple(item for item in stored if len(item.path) == depth)
  inside: dict[str, list[Stored]] = {}
  for item in stored:
    if len(item.path) > depth:
      inside.setdefault(item.path[depth], []).append(item)
  children = {key: _tree(items, depth + 1) for key, items in inside.items()}
  return _Node(own, children, max(item.place for item in stored))


def stored_names(stored: Sequence[Stored], model: Any) -> tuple[dict[str, list[Named]], list[str]]:
  """The variables of a Keras 3 file: {'model': …, 'optimizer': …}, those of the model by name, and notes.

  Args:
    model: the model's configuration, `{'class_name', 'config'}`; None where the file has none.
  """
  root = _tree(stored)
  parts: dict[str, list[Named]] = {'model': []}
  for name, node in root.children.items():
    if TRAINING.fullmatch(name):
      parts[name] = [named for named in _unnamed(node, name) if named]
  kept = {name: node for name, node in root.children.items() if name not in parts}
  root = dataclasses.replace(root, children=kept)
  notes: list[str] = []
  own = root.name or name_of(model) or 'model'
  for named in _walk(root, '', own, model, notes):
    seeds = re.search(r'(^|/)_?seed_generators?(_\d+)?/', named.path)
    parts.setdefault('seed_generators' if seeds else 'model', []).append(named)
  if wrapper := _wrapper(root):
    parts['model'], note = without_wrapper(parts['model'], wrapper)
    notes.append(note)
  numbered = [named.name for named in parts['model'] if re.search(r'(^|/)vars/\d+$', named.name)]
  if numbered:
    notes.append(f'{len(numbered)} variables keep a number, as the file does not say what they are: {numbered[0]}, …')
  return parts, notes


def _wrapper(root: _Node) -> str | None:
  """The name of the one sub-model that holds every variable of a model, where there is one."""
  held = [
    item
    for name, node in root.children.items()
    for item in ((node.children if name in CONTAINERS else {name: node}).items())
  ]
  full = [(group, node) for group, node in held if node.count]
  if root.variables or len(full) != 1:
    return None
  group, node = full[0]
  return (node.name or group) if any(node.children[key].count for key in CONTAINERS if key in node.children) else None


def _unnamed(node: _Node, path: str) -> Iterator[Named]:
  for key, tensor in node.variables.items():
    yield Named(f'{path}/vars/{key}', f'{path}/vars/{key}', tensor)
  for name, child in node.children.items():
    yield from _unnamed(child, f'{path}/{name}')


def _walk(node: _Node, path: str, name: str, entry: Any, notes: list[str], kind: str = '') -> Iterator[Named]:
  """The variables of an object, then those of the objects within it; the model's own name is no prefix of theirs."""
  variables = node.variables
  known = _weights(kind, options_of(entry), list(variables.values()))
  for index, (key, tensor) in enumerate(variables.items()):
    yield Named(f'{name}/{known[index] if known else f"vars/{key}"}', f'{path}vars/{key}', tensor)
  prefix = f'{name}/' if path else ''
  for group, child in _ordered(node.children, []):
    if group in CONTAINERS:
      for inner, own, sub_entry in _layers(child, group, entry, notes):
        sub = child.children[inner]
        sub_kind = _kind(sub_entry, inner, sub.name, kind)
        yield from _walk(sub, f'{path}{group}/{inner}/', f'{prefix}{own}', sub_entry, notes, sub_kind)
    else:
      sub_entry = _held(entry, group)
      own = child.name if child.name and _alone(child.name, node.children) else group
      sub_kind = _kind(sub_entry, group, child.name, kind)
      yield from _walk(child, f'{path}{group}/', f'{prefix}{own}', sub_entry, notes, sub_kind)


def _alone(name: str, siblings: Mapping[str, _Node]) -> bool:
  return sum(sibling.name == name for sibling in siblings.values()) == 1


def _ordered(children: Mapping[str, _Node], notes: list[str]) -> list[tuple[str, _Node]]:
  """As they were written, where their counters bear that out; else by class and counter."""
  children = {name: node for name, node in children.items() if node.count}
  written = sorted(children, key=lambda name: children[name].place)
  counters: dict[str, list[int]] = {}
  for name in written:
    base, counter = _counted(name)
    counters.setdefault(base, []).append(counter)
  if any(sorted(numbers) != numbers for numbers in counters.values()):
    written = sorted(children, key=_natural)
    if len(counters) > 1:
      notes.append(f'the file does not hold the order of its layers of different classes ({", ".join(counters)})')
  return [(name, children[name]) for name in written]


def _counted(group: str) -> tuple[str, int]:
  """`conv2d_3` is the class conv2d and its fourth."""
  found = re.fullmatch(r'(.+?)_(\d+)', group)
  return (found[1], int(found[2])) if found else (group, 0)


def _layers(node: _Node, container: str, model: Any, notes: list[str]) -> list[tuple[str, str, Any]]:
  """(group, layer's name, its configuration) in the model's order, the configuration's where there is one."""
  groups = _ordered(node.children, [] if sublayers(model) else notes)
  entries = _entries(node, container, model)
  order = {id(entry): index for index, entry in enumerate(sublayers(model))}
  groups.sort(key=lambda item: order.get(id(entries.get(item[0])), len(order)))
  names = {group: child.name or name_of(entries.get(group)) or group for group, child in groups}
  repeated = {name for name, count in Counter(names.values()).items() if count > 1}
  return [(group, group if names[group] in repeated else names[group], entries.get(group)) for group, _ in groups]


def _entries(node: _Node, container: str, model: Any) -> dict[str, Mapping[str, Any]]:
  """The configuration of each group: the one of its name, else the one of its class with its counter."""
  by_name: dict[str | None, Mapping[str, Any]] = {}
  by_class: dict[str, list[Mapping[str, Any]]] = {}
  for entry in sublayers(model):
    by_name[name_of(entry)] = entry
    if '.ops' not in str(entry.get('module')):  # operations are no layers, and have no groups
      by_class.setdefault(snake_case(class_of(entry)), []).append(entry)
  found = {}
  held = Counter(_counted(group)[0] for group in node.children)
  ranks: Counter[str] = Counter()
  for group in sorted(node.children, key=_natural):
    own = node.children[group].name
    base, counter = (group, 0) if group in by_class else _counted(group)
    same = by_class.get(base, [])
    # The older container counts each layer twice, so that only the order of its counters means something.
    index = ranks[base] if container != CONTAINERS[0] and held[base] == len(same) else counter
    ranks[base] += 1
    if own is not None and own in by_name:
      found[group] = by_name[own]
    elif own is None and index < len(same):
      found[group] = same[index]
  return found


def _held(entry: Any, attribute: str) -> Any:
  """The configuration of what a wrapper or a recurrent layer holds under an attribute."""
  options = options_of(entry)
  if attribute in ('layer', 'forward_layer', 'backward_layer'):
    return options.get(attribute) or options.get('layer')
  if attribute == 'cell':
    return options.get('cell') or {'class_name': f'{class_of(entry)}Cell', 'config': options}
  return None


def _kind(entry: Any, group: str, name: str | None, holder: str) -> str:
  """The class, in snake case, that decides what an object's variables are; '' where nothing does."""
  candidates = [snake_case(class_of(entry)), group, _counted(group)[0], _counted(name or '')[0]]
  if group.endswith('_dense') and holder.endswith('attention'):
    candidates.append('einsum_dense')
  return next((kind for kind in candidates if kind in WEIGHTS), candidates[0] or _counted(group)[0])


def _weights(kind: str, options: Mapping[str, Any], tensors: Sequence[Tensor]) -> list[str] | None:
  """The names of these variables of a class; None where neither options, their number nor shapes decide."""
  table = WEIGHTS.get(kind, ())
  optional = [option for _, option in table if option]
  fixed = [name for name, option in table if not option]
  if any(option in options for option in optional):
    names = [name for name, option in table if not option or options.get(option, True)]
  elif len(tensors) == len(table) or len(optional) == 1:
    names = [name for name, _ in table][: len(tensors)]
  else:
    names = fixed
  if not names or len(names) != len(tensors) or not all(map(_fits, names, tensors)):
    return None
  return names


def _fits(name: str, tensor: Tensor) -> bool:
  """A user's own class may bear a known name; a quantised kernel is followed by other variables than a plain one."""
  if name.endswith(('kernel', 'embeddings')):
    return len(tensor.shape) > 1 and tensor.dtype.kind not in 'iu'
  return True
