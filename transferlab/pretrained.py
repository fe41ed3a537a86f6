"""The weights that a source names: those of a run of ours, or of any file. Reads files.

A foreign file becomes variables of ours in two ways: its family is recognised by its names, or the config's own rules
say what is what. Its arrays are read when a transplant takes them, and not before.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transferlab import config, folder, paths
from transferlab.errors import UserError
from transferlab.settings import Run, Source
from transferlab.weights import inputs, mapping, vector_files
from transferlab.weights.contents import Contents

# Of a network in a config, what is no option of its function.
COMPUTED = ('name', 'dtype', 'rematerialise')
# Options that say how a network is trained, and nothing of what its weights compute; and one that the data give.
TRAINING = ('dropout', 'embed_dropout', 'attention_dropout', 'stochastic_depth', 'vocabulary')
# Where vectors of words belong in a network on texts.
EMBEDDING = 'embed/embedding'


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
  """A source's weights: variables, the preprocessing that belongs to them, and where they come from.

  Attributes:
    preprocessing: None where nothing is known of the images that a foreign file was trained on.
    network, options: the network that they are of and its options, where that is known.
    contents, recognised: of a foreign file; None for a run's.
    head: leaves that a text tower makes (zero_shot.py).
    words: what rows of the embedding stand for, where the weights are vectors of words.
    notes: sentences for the report.
  """

  variables: dict[str, Any]
  preprocessing: dict[str, Any] | None
  origin: str
  network: str | None = None
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  contents: Contents | None = None
  recognised: mapping.Recognised | None = None
  head: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  words: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()


def read(source: Source, where: str = 'config.source', network: str | None = None) -> Weights:
  """The weights that a source names; those of a foreign file still lack what `as_network` gives them.

  Args:
    where: the source stands in the config.
    network: what a file with several networks is taken to be, where it is one of them.

  Raises:
    UserError: nothing there, or nothing readable.
  """
  assert source.weights is not None
  if is_foreign(source.weights):
    return _foreign(source, where, network)
  if source.part or source.names or source.match != 'names':
    raise UserError(f'{where}: part, names and match are for files of others, and {source.weights} is a run')
  from transferlab import checkpoints

  path = checkpoints.find(source.weights)
  record = checkpoints.progress(path)
  if 'preprocessing' not in record:
    raise UserError(f'{path} holds no preprocessing record, so its weights cannot be used')
  saved = path.parents[1] / 'config.json'
  network = folder.read_record(saved, 'config')['config'].get('network') if saved.is_file() else None
  options = {name: value for name, value in (network or {}).items() if name not in COMPUTED}
  if options.get('sharing') is None:
    options.pop('sharing', None)
  weights = checkpoints.weights(path, source.which)
  return Weights(weights, record['preprocessing'], str(path), (network or {}).get('name'), options)


def is_foreign(spec: str) -> bool:
  """Whether weights are others': what is no folder of ours, be it there or not."""
  place = Path(spec).expanduser()
  return spec.startswith('hf:') or place.is_file() or (not _ours(place) if place.is_dir() else bool(place.suffix))


def _ours(place: Path) -> bool:
  """Whether a folder is that of a run or a checkpoint of ours, be it a damaged one."""
  from transferlab import checkpoints

  try:
    if (place / 'config.json').is_file() and 'identity' in folder.read_record(place / 'config.json'):
      return True
    return 'format' in checkpoints.progress(checkpoints.find(str(place)))
  except UserError:
    return any((inside / checkpoints.METADATA).exists() for inside in (place, *place.glob('checkpoints/*')))


def _foreign(source: Source, where: str, network: str | None) -> Weights:
  from transferlab.weights import readers

  assert source.weights is not None
  if source.which != 'selected':
    raise UserError(f"{where}.which is for runs; {source.weights} is a file, whose entries 'part' names")
  contents = readers.read(source.weights, source.part)
  words = contents.metadata.get('words', ())
  recognised = None if source.names or words else mapping.recognise(contents, network)
  if recognised is not None:
    record, known, options = recognised.preprocessing, recognised.origin.network, recognised.options
  else:
    images = inputs.stated(contents.metadata)
    record, known, options = mapping.said(contents).get('preprocessing'), None, {}
    record = record or (images.record(len(images.shift)) if images else None)
  what = f'{contents.file} ({contents.format}{f", {contents.part}" if contents.part else ""})'
  what += f': {recognised}' if recognised else ''
  also = ', '.join(f'{name} ({count} arrays)' for name, count in contents.others.items())
  notes = [*contents.notes, *([f'the file also holds {also}: {where}.part takes another entry'] if also else [])]
  return Weights({}, record, what, known, options, contents, recognised, words=words, notes=tuple(notes))


def completed(run: Run, weights: Weights) -> tuple[Run, list[str]]:
  """The run whose network has the options that its weights were made with, but for those that the config gives.

  Raises:
    UserError: the weights are those of another network of ours.
  """
  from transferlab.networks import network as networks

  spec = run.network
  if weights.network is None or spec is None:
    return run, []
  given = spec.model_extra or {}
  if spec.name != weights.network:
    renamed = any(action.startswith('copy:') for _, action in run.transplant or [])
    if weights.contents is None or spec.name not in networks.NETWORKS or renamed:
      return run, []
    raise UserError(
      f"{weights.origin}; config.network is {spec.name!r}; nearest: config.network=dict(name='{weights.network}')"
    )
  known = {name: value for name, value in weights.options.items() if name not in TRAINING}
  taken = {name: known[name] for name in known if name not in given and _differs(spec.name, name, known[name])}
  notes = [f'network: {_shown(taken)} as the weights have it'] if taken else []
  for name, value in known.items():
    if name in given and given[name] != value:
      notes.append(f'network: {name}={given[name]!r} as the config has it; the weights were made with {value!r}')
  filled = {**spec.model_dump(), **taken}
  return run.model_copy(update={'network': type(spec).model_validate(filled)}), notes


def _differs(network: str, option: str, value: Any) -> bool:
  """Whether an option's value is another than its default: those at their default need not be written down."""
  from transferlab.networks import network as networks

  parameter = inspect.signature(networks.network_function(network)).parameters.get(option)
  return parameter is not None and parameter.default != value


def _shown(options: Mapping[str, Any]) -> str:
  return ', '.join(f'{name}={value!r}' for name, value in options.items())


def as_network(weights: Weights, source: Source, like: Mapping[str, Any]) -> Weights:
  """The weights with variables in the terms of a network, and what the report says of them.

  Args:
    like: the target's variables, as shapes.

  Raises:
    UserError: a file of no family that is known and no rules for it, or rules that do not fit.
  """
  if weights.contents is None:
    return weights
  by_shape = source.match == 'shapes'
  if weights.recognised is not None:
    mapped = weights.recognised.mapped
  elif weights.words:
    rules = source.names or [(vector_files.NAME, EMBEDDING, 'same')]
    leaf = weights.contents.tensors[vector_files.NAME]
    mapped = mapping.by_names(weights.contents, rules, {'params': {'embed': {'embedding': leaf}}, 'stats': {}})
  elif source.names or by_shape:
    mapped = mapping.by_names(weights.contents, source.names, like, by_shape=by_shape)
  else:
    raise mapping.unknown_file(weights.contents, like)
  said = ["match='shapes' was not needed: the file is recognised"] if by_shape and weights.recognised else []
  left = [f'not mapped: {name} {weights.contents.tensors[name].shape}' for name in mapped.unmapped]
  variables = mapped.variables
  if weights.head:
    variables = {**variables, 'params': {**variables['params'], 'head': dict(weights.head)}}
  return dataclasses.replace(
    weights, variables=variables, notes=(weights.origin, *weights.notes, *mapped.notes, *said, *left)
  )


def digest(weights: Weights, taken: Mapping[str, set[str]]) -> str:
  """Of a run's weights all, of a file's what is taken from it: nothing else is read.

  Args:
    taken: paths of the source's leaves by kind ('params', 'stats').
  """
  from transferlab.training import partition

  if weights.contents is None:
    return config.digest({**partition.digests(weights.variables), 'preprocessing': weights.preprocessing})
  found: dict[str, str] = {}
  for kind, wanted in sorted(taken.items()):
    leaves = paths.flatten(weights.variables[kind])
    for path in sorted(wanted):  # one at a time: together they may be large
      if cause := getattr(leaves[path], 'cause', None):  # made, and not read
        found[f'{kind}/{path}'] = cause()
        continue
      found |= {f'{kind}/{name}': value for name, value in partition.digests({path: leaves[path]}).items()}
  return config.digest({**found, 'preprocessing': weights.preprocessing})
