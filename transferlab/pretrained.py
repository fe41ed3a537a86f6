"""The weights that a source names: those of a run of ours, or of any file. Reads files.

A foreign file becomes variables of ours in two ways: its family is recognised by its names, or the config's own rules
say what is what. Its arrays are read when a transplant takes them, and not before.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transferlab import config, paths
from transferlab.errors import UserError
from transferlab.settings import Run, Source
from transferlab.weights import mapping
from transferlab.weights.contents import Contents


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
  """A source's weights: variables, the preprocessing that belongs to them, and where they come from.

  Attributes:
    preprocessing: None where nothing is known of the images that a foreign file was trained on.
    contents, recognised: of a foreign file; None for a run's.
    notes: sentences for the report.
  """

  variables: dict[str, Any]
  preprocessing: dict[str, Any] | None
  origin: str
  contents: Contents | None = None
  recognised: mapping.Recognised | None = None
  notes: tuple[str, ...] = ()


def read(source: Source) -> Weights:
  """The weights that a source names; those of a foreign file still lack what `as_network` gives them.

  Raises:
    UserError: nothing there, or nothing readable.
  """
  assert source.weights is not None
  if is_foreign(source.weights):
    return _foreign(source)
  if source.part or source.names or source.match != 'names':
    raise UserError(f'config.source: part, names and match are for files of others, and {source.weights} is a run')
  from transferlab import checkpoints

  path = checkpoints.find(source.weights)
  record = checkpoints.progress(path)
  if 'preprocessing' not in record:
    raise UserError(f'{path} holds no preprocessing record, so its weights cannot be used')
  return Weights(checkpoints.weights(path, source.which), record['preprocessing'], str(path))


def is_foreign(spec: str) -> bool:
  """Whether weights are others': what is no folder of ours, be it there or not."""
  place = Path(spec).expanduser()
  return spec.startswith('hf:') or place.is_file() or (not _ours(place) if place.is_dir() else bool(place.suffix))


def _ours(place: Path) -> bool:
  """Whether a folder is that of a run or a checkpoint of ours, be it a damaged one."""
  from transferlab import checkpoints

  try:
    return (place / 'config.json').is_file() or 'format' in checkpoints.progress(checkpoints.find(str(place)))
  except UserError:
    return any((folder / checkpoints.METADATA).exists() for folder in (place, *place.glob('checkpoints/*')))


def _foreign(source: Source) -> Weights:
  assert source.weights is not None
  from transferlab.weights import readers

  contents = readers.read(source.weights, source.part)
  recognised = None if source.names else mapping.recognise(contents)
  record = None if recognised is None else recognised.preprocessing
  what = f'{source.weights} ({contents.format}{f", {contents.part}" if contents.part else ""})'
  what += f': {recognised}' if recognised else ''
  return Weights({}, record, what, contents, recognised, contents.notes)


def completed(run: Run, weights: Weights) -> tuple[Run, list[str]]:
  """The run whose network has the options that its weights were made with, but for those that the config gives.

  Raises:
    UserError: the weights are those of another network of ours.
  """
  from transferlab.networks import network as networks

  recognised, network = weights.recognised, run.network
  if recognised is None or network is None:
    return run, []
  given = network.model_extra or {}
  if network.name != recognised.origin.network:
    if network.name not in networks.NETWORKS or any(':' in action for _, action in run.transplant or []):
      return run, []
    raise UserError(
      f'{weights.origin}; config.network is {network.name!r}; nearest: '
      f"config.network=dict(name='{recognised.origin.network}')"
    )
  taken = {name: value for name, value in recognised.options.items() if name not in given}
  notes = [f'network: {_shown(taken)} as the weights have it'] if taken else []
  for name, value in recognised.options.items():
    if name in given and given[name] != value:
      notes.append(f'network: {name}={given[name]!r} as the config has it; the weights were made with {value!r}')
  filled = network.model_copy(update=taken)
  return run.model_copy(update={'network': type(network).model_validate(filled.model_dump())}), notes


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
  elif source.names or by_shape:
    mapped = mapping.by_names(weights.contents, source.names, like, by_shape=by_shape)
  else:
    raise mapping.unknown_file(weights.contents, like)
  left = [f'not mapped: {name} {weights.contents.tensors[name].shape}' for name in mapped.unmapped]
  return dataclasses.replace(
    weights, variables=mapped.variables, notes=(weights.origin, *weights.notes, *mapped.notes, *left)
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
      found |= {f'{kind}/{name}': value for name, value in partition.digests({path: leaves[path]}).items()}
  return config.digest({**found, 'preprocessing': weights.preprocessing})
