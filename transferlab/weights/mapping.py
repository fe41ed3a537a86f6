"""Their names to our paths: which family a file is of, or what the user's rules make of it. Pure but for reading.

Values are read when a transplant takes them, and not before. What stays unmapped is listed, never dropped in silence.
"""

import contextlib
import dataclasses
import functools
import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from transferlab import paths
from transferlab.errors import UserError, nearest
from transferlab.weights import layouts
from transferlab.weights.contents import Contents, Tensor
from transferlab.weights.inputs import of_texts, stated
from transferlab.weights.origin import Origin, Table

OURS = 'ours'
# What others call the leaves of a layer.
LEAVES = {
  'weight': ('kernel', 'scale', 'embedding'),
  'depthwise_kernel': ('kernel',),
  'embeddings': ('embedding',),
  'gamma': ('scale',),
  'beta': ('bias',),
  'running_mean': ('mean',),
  'running_var': ('var',),
  'moving_mean': ('mean',),
  'moving_variance': ('var',),
}
FORMAT = 1  # of our own files (export.py); all up to this one are read
Names = Sequence[tuple[str, str, str]]  # (their pattern, our path, layout)
# The files of transferlab/weights/names/.
FAMILIES = (
  *('resnet', 'vgg', 'mobilenet', 'squeezenet', 'imagenet_resnet', 'bit', 'mobilenet_v2', 'convnext'),
  *('vit', 'vit_npz', 'bert', 'decoder', 'clip_text'),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
  """A foreign array as one of ours; NumPy and jax read it when they are given it.

  Attributes:
    shape, dtype: in our layout, as our networks have it.
    name: theirs.
    file: for messages.

  Raises:
    UserError: the values are read, and are not all finite.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  name: str
  tensor: Tensor
  layout: str
  file: str

  @property
  def origin(self) -> str:
    """Their name, and what is done to the array: for the report."""
    return self.name if self.layout == 'same' else f'{self.name}, {layouts.LAYOUTS.get(self.layout, self.layout)}'

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    with np.errstate(over='ignore'):
      values = np.ascontiguousarray(
        layouts.ours(self.tensor.read(), self.layout), self.dtype if dtype is None else dtype
      )
    if not np.isfinite(values).all():
      raise UserError(f'{self.file}: {self.name} holds NaN or infinity, or numbers too large for {values.dtype}')
    return values


@dataclasses.dataclass(frozen=True, eq=False)
class Mapped:
  """A file as variables of ours.

  Attributes:
    variables: `{'params', 'stats'}`, with a `Leaf` for every array that has a place.
    unmapped: names that have none.
    notes: sentences for the report.
  """

  variables: dict[str, Any]
  unmapped: tuple[str, ...]
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Recognised:
  """A file of a family that is known: the origin, and the options and outputs of the network it fits."""

  origin: Origin
  options: dict[str, Any]
  outputs: int | None
  mapped: Mapped
  preprocessing: dict[str, Any] | None

  def places(self) -> dict[str, str]:
    """Our path, and the layout, of each of their names; of one that is in parts, all of them."""
    found: dict[str, list[str]] = {}
    for path, leaf in [pair for kind in self.mapped.variables.values() for pair in paths.flatten(kind).items()]:
      found.setdefault(leaf.name, []).append(path + ('' if leaf.layout == 'same' else f'  ({leaf.layout})'))
    return {name: '; '.join(parts) for name, parts in found.items()}

  def __str__(self) -> str:
    shown = ', '.join(f'{name}={value!r}' for name, value in self.options.items())
    return f'{self.origin.network}({shown}) as {self.origin.name} writes it' + (
      '' if self.outputs else ', without a head'
    )


@functools.cache
def origins() -> tuple[Origin, ...]:
  """Every family and origin there is."""
  found: list[Origin] = []
  for family in FAMILIES:
    found += importlib.import_module(f'transferlab.weights.names.{family}').ORIGINS
  return tuple(found)


def recognise(contents: Contents, network: str | None = None) -> Recognised | None:
  """Which family a file is of; None where it is none that is known.

  Every name of the file has its place then, every leaf but those of a head that was left out its name, and all shapes
  are those of our network.

  Args:
    network: ours, of which a file that holds several (CLIP's image tower and its text tower) is taken to be.
  """
  own = said(contents)
  if own.get('names') == OURS:
    return _own(contents, own)
  for origin in sorted(origins(), key=lambda origin: origin.network != network):
    shapes = {name: tensor.shape for name, tensor in contents.tensors.items() if not origin.skips(name)}
    options = origin.options(shapes)
    if options is not None and (found := _fitted(contents, origin, options)) is not None:
      return found
  return None


def said(contents: Contents) -> dict[str, Any]:
  """What a file of export.py's says of itself: 'names', 'network', 'options', 'preprocessing'; nothing for others.

  Raises:
    UserError: it cannot be read, or is of a format newer than this program.
  """
  given: Any = contents.metadata
  with contextlib.suppress(ValueError, RecursionError, TypeError):
    given = json.loads(given['__metadata__']) if '__metadata__' in given else given
  if not isinstance(given, Mapping) or 'transferlab' not in given:
    return {}
  try:
    number = int(given['transferlab'])
    network, record = json.loads(given['network']), json.loads(given['preprocessing'])
    found = {
      'names': given['names'],
      'network': network.pop('name'),
      'options': network,
      'preprocessing': record or None,
    }
    if record and not {'kind', 'shift', 'scale', 'columns', 'input_shape'} <= set(record):
      raise ValueError
  except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
    raise UserError(f'{contents.file}: what it says of itself cannot be read ({type(error).__name__})') from None
  if number > FORMAT:
    raise UserError(f'{contents.file} has format {number}; this program reads formats up to {FORMAT}')
  return found


def _own(contents: Contents, own: Mapping[str, Any]) -> Recognised:
  """A file under our own names; one under an origin's names is recognised as one of that origin's."""
  variables: dict[str, dict[str, Leaf]] = {'params': {}, 'stats': {}}
  for name, tensor in contents.tensors.items():
    kind, path = ('stats', name.removeprefix('stats/')) if name.startswith('stats/') else ('params', name)
    variables[kind][path.removeprefix('params/')] = Leaf(
      tensor.shape, tensor.dtype, name, tensor, 'same', contents.file
    )
  heads = [leaf.shape[-1] for path, leaf in variables['params'].items() if paths.stage_of(path) == 'head']
  origin = Origin('transferlab', own['network'], lambda shapes: None, lambda options: {}, None)
  mapped = Mapped({kind: paths.unflatten(flat) for kind, flat in variables.items()}, ())
  return Recognised(origin, own['options'], heads[0] if heads else None, mapped, own['preprocessing'])


def _fitted(contents: Contents, origin: Origin, options: dict[str, Any]) -> Recognised | None:
  from transferlab.networks import network as networks

  own, config = said(contents), contents.metadata.get('config')
  own = own if own.get('network') == origin.network else {}
  stating = origin.stated(config) if origin.stated and isinstance(config, Mapping) else {}
  options = {**options, **stating}
  options |= own.get('options', {})
  record = own.get('preprocessing')
  table = origin.table({**options, **({'input_shape': record['input_shape']} if record else {})})
  held = {name for name in contents.tensors if own or not origin.skips(name)}
  present = {ours: entry for ours, entry in table.items() if entry[0] in held}
  if any(paths.stage_of(ours) != 'head' for ours in set(table) - set(present)):
    return None
  sizes = {ours: layouts.shape(contents.tensors[theirs].shape, layout) for ours, (theirs, layout) in present.items()}
  outputs = next((shape[-1] for ours, shape in sizes.items() if shape and paths.stage_of(ours) == 'head'), None)
  shape = _input_shape(contents, origin, options, sizes, record)
  if shape[-1] != 3:  # colours are in the order blue, green, red only where they are three
    present = {ours: (theirs, layout.replace(', reverse=i', '')) for ours, (theirs, layout) in present.items()}
  if outputs is None and options.get('pool') == 'none' and options.get('tied'):
    outputs = options['vocabulary']  # the embedding is the head, too
  built = networks.build(origin.network, options, shape, outputs or 1)
  mapped = _mapped(contents, present, built.shapes(), origin)
  like = _leaves(built.shapes())
  if any(sizes[ours] != tuple(like[ours].shape) for ours in present) or mapped.unmapped:
    return None
  known = stated(contents.metadata) or origin.inputs
  if known is not None and origin.input_shape is not None:
    known = dataclasses.replace(known, size=shape[0])
  record = record or (known.record(shape[-1]) if known else None)
  said_too: list[str] = []
  if 'vocabulary' in options and record is None:
    record, said_too = of_texts(contents.metadata.get('tokenizer'), options['vocabulary'], shape[0])
  if origin.doubt and record is None:
    said_too.append(origin.doubt)
  if origin.unstated and 'heads' not in stating and own.get('network') != origin.network:
    said_too.append(origin.unstated)
  mapped = dataclasses.replace(mapped, notes=(*mapped.notes, *said_too))
  return Recognised(origin, options, outputs, mapped, record)


def _input_shape(
  contents: Contents,
  origin: Origin,
  options: Mapping[str, Any],
  sizes: Mapping[str, tuple[int, ...]],
  record: Mapping[str, Any] | None,
) -> tuple[int, ...]:
  """Of one example: what the weights decide, or a file of ours says, or else square images of the origin's size."""
  if origin.input_shape is not None and record is not None:
    return tuple(record['input_shape'])
  if origin.input_shape is not None:
    return origin.input_shape(options, {name: tensor.shape for name, tensor in contents.tensors.items()})
  size = origin.inputs.size if origin.inputs else origin.size
  return size, size, next(shape[-2] for shape in sizes.values() if len(shape) > 1)


def by_names(contents: Contents, names: Names, like: Mapping[str, Any], *, by_shape: bool = False) -> Mapped:
  """A file of any kind as variables of a network.

  Args:
    names: (pattern over their names, our path, layout); the first that matches decides, but what takes a part of an
      array leaves it to others as well. \\1 in a path is the
      pattern's first group. A pattern may also match a layer ('0' for 0.weight and 0.bias), and a path be one
      ('head' for head/kernel and head/bias): arrays go to the leaves that stand for them, those of one axis as they
      are. Layouts: see layouts.py.
    like: variables of the network, as arrays or shapes.
    by_shape: leaves that no rule names take the array that alone has their shape, where they alone can take it.

  Raises:
    UserError: a rule matches no name, names no path of the network, or does not fit the array; or two arrays would
      become one leaf.
  """
  leaves = _leaves(like)
  table: Table = {}
  for number, (pattern, template, layout) in enumerate(names):
    what = f'config.source.names.{number}'
    taken = {theirs for theirs, given in table.values() if layouts.part(given) is None}
    hits = _hits(contents, pattern, what)
    if not (free := {name: match for name, match in hits.items() if name not in taken}):
      raise UserError(f'{what}: rule {pattern!r} never applies: earlier rules take {", ".join(list(hits)[:3])}')
    for name, match in free.items():
      path = _leaf(_expanded(match, template, what), name, leaves)
      axes = len(contents.tensors[name].shape)
      _enter(table, name, path, layout if axes > 1 or path == template else 'same', leaves, what)
  if by_shape:
    table |= proposals(contents, table, like)
  mapped = _mapped(contents, table, like)
  return dataclasses.replace(mapped, notes=(*mapped.notes, *_proposed(contents, table, like)))


def _leaves(like: Mapping[str, Any]) -> dict[str, Any]:
  return {path: leaf for kind in ('params', 'stats') for path, leaf in paths.flatten(like.get(kind, {})).items()}


def _hits(contents: Contents, pattern: str, what: str) -> dict[str, re.Match[str]]:
  """The names that a pattern matches, whole or by the layer they belong to."""
  try:
    expression = paths.compiled(pattern)
  except UserError as error:
    raise UserError(f'{what}: {error}') from None
  hits = {}
  for name in contents.tensors:
    counted = re.fullmatch(Origin.valueless, name)  # goes with no layer
    match = expression.fullmatch(name) or (None if counted else expression.fullmatch(re.sub(r'[./][^./]*$', '', name)))
    if match:
      hits[name] = match
  if not hits:
    near = ', '.join(nearest(pattern, contents.tensors))
    raise UserError(f'{what}: pattern {pattern!r} matches no name in {contents.file}; nearest: {near}')
  return hits


def _expanded(match: re.Match[str], template: str, what: str) -> str:
  try:
    return match.expand(template)
  except (re.error, IndexError) as error:
    raise UserError(f'{what}: path {template!r} does not fit pattern {match.re.pattern!r}: {error}') from None


def _leaf(path: str, name: str, leaves: Mapping[str, Any]) -> str:
  """The leaf of a layer that an array stands for; the path itself where it is no layer's."""
  if path in leaves or not any(leaf.startswith(f'{path}/') for leaf in leaves):
    return path
  own = re.split('[./]', name)[-1]
  choices = [f'{path}/{leaf}' for leaf in LEAVES.get(own, (own,))]
  return next((choice for choice in choices if choice in leaves), choices[0])


def _enter(table: Table, name: str, path: str, layout: str, leaves: Mapping[str, Any], what: str) -> None:
  if path not in leaves:
    near = ', '.join(nearest(path, leaves))
    raise UserError(f'{what}: {name} would become {path}, which the network does not have; nearest: {near}')
  if path in table:
    raise UserError(f'{what}: {name} would become {path}, and so does {table[path][0]}')
  table[path] = (name, layout)


def _mapped(contents: Contents, table: Table, like: Mapping[str, Any], origin: Origin | None = None) -> Mapped:
  """The variables that a table makes of a file; their shapes may still differ from those of the network."""
  valueless, others = (origin.valueless, origin.others) if origin else (Origin.valueless, Origin.others)
  variables: dict[str, dict[str, Leaf]] = {'params': {}, 'stats': {}}
  stats, leaves = paths.flatten(like.get('stats', {})), _leaves(like)
  converted: dict[str, int] = {}
  for ours, (theirs, layout) in table.items():
    tensor, dtype = contents.tensors[theirs], np.dtype(leaves[ours].dtype)
    if tensor.dtype != dtype:
      _check_kind(contents, theirs, tensor)
      converted[str(tensor.dtype)] = converted.get(str(tensor.dtype), 0) + 1
    try:
      shape = layouts.shape(tensor.shape, layout)
    except UserError as error:
      raise UserError(f'{contents.file}: {theirs} to {ours}: {error}') from None
    variables['stats' if ours in stats else 'params'][ours] = Leaf(shape, dtype, theirs, tensor, layout, contents.file)
  used = {theirs for theirs, _ in table.values()}
  left = [name for name in contents.tensors if name not in used]
  apart = [name for name in left if re.fullmatch(others, name)]
  left = [name for name in left if name not in apart]
  plain = tuple(name for name in left if not re.fullmatch(valueless, name))
  notes = [f'{count} arrays are {dtype} in the file, and are converted' for dtype, count in converted.items()]
  if len(left) > len(plain):
    notes.append(f'{len(left) - len(plain)} names of the file carry nothing of use ({valueless})')
  if apart:
    notes.append(f'{len(apart)} arrays are of parts that the network does not have: {", ".join(apart[:3])}, …')
  return Mapped({kind: paths.unflatten(flat) for kind, flat in variables.items()}, plain, tuple(notes))


def _check_kind(contents: Contents, name: str, tensor: Tensor) -> None:
  import jax.numpy as jnp

  if not jnp.issubdtype(tensor.dtype, jnp.floating):
    raise UserError(f'{contents.file}: {name} holds {tensor.dtype}, which is no weight of a network')


def proposals(contents: Contents, table: Table, like: Mapping[str, Any]) -> Table:
  """What shapes alone decide: a leaf and an array, both still free, that fit each other and nothing else."""
  taken = {theirs for theirs, _ in table.values()}
  free = {path: tuple(leaf.shape) for path, leaf in _leaves(like).items() if path not in table}
  fits: dict[str, list[tuple[str, str]]] = {path: [] for path in free}
  takers: dict[str, list[str]] = {}
  for name, tensor in contents.tensors.items():
    if name in taken:
      continue
    if len(tensor.shape) == 2 and len(set(tensor.shape)) == 1 < tensor.shape[0]:
      continue  # square: its shape does not say which way it lies
    layout = _usual_layout(name, tensor.shape)
    shape = layouts.shape(tensor.shape, layout)
    for path in free:
      if free[path] == shape:
        fits[path].append((name, layout))
        takers.setdefault(name, []).append(path)
  return {path: found[0] for path, found in fits.items() if len(found) == 1 and len(takers[found[0][0]]) == 1}


def _usual_layout(name: str, shape: tuple[int, ...]) -> str:
  """torch calls its arrays weight, and writes outputs first; all others write them last."""
  if not name.endswith('weight'):
    return 'same'
  return {2: 'linear', 4: 'conv'}.get(len(shape), 'same')


def _proposed(contents: Contents, table: Table, like: Mapping[str, Any]) -> Iterator[str]:
  for path, (name, layout) in proposals(contents, table, like).items():
    yield f"by its shape alone {name} could be {path}: ({re.escape(name)!r}, {path!r}, {layout!r}), or match='shapes'"


def unknown_file(contents: Contents, like: Mapping[str, Any]) -> UserError:
  """The error for a file of no family that is known, and without rules."""
  some = ', '.join(list(contents.tensors)[:4])
  known = ', '.join(sorted({f'{origin.network} ({origin.name})' for origin in origins()}))
  offers = list(_proposed(contents, {}, like))
  return UserError(
    f'{contents.file} ({contents.format}, {len(contents)} arrays: {some}, …) is of no family that is known ({known}); '
    'say what is what with config.source.names=[(their pattern, our path, layout)], for example '
    f"[({re.escape(next(iter(contents), 'name'))!r}, {next(iter(_leaves(like)), 'path')!r}, 'same')]"
    + ''.join(f'\n  {offer}' for offer in offers)
  )
