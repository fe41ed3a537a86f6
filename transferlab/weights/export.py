"""The way back: a network's variables to a file, under our names or under those of an origin. Writes files.

What is written says of itself which network it is and what preprocessing belongs to it, so that it is a source again.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transferlab import config, paths
from transferlab.errors import UserError, nearest, unknown
from transferlab.networks import network as networks
from transferlab.weights import layouts
from transferlab.weights.mapping import FORMAT, OURS, origins
from transferlab.weights.origin import Origin, Table

SUFFIXES = ('.safetensors', '.npz', '.h5')
# Options that parameters do not show: those that every network with them computes by, and those of some origins only.
COMPUTED = {
  *('ceil_mode', 'stride_on', 'padding', 'epsilon', 'activation', 'rotary', 'pool', 'placed', 'class_token'),
  *('causal', 'normalise', 'rotary_factor', 'rotary_bands'),
}
HIDDEN = {'head_type', 'pooler', 'first', 'norm', 'gated', 'tied'}
# Of these and others, what stands beside the weights, or is for their user to know.
STATED = ('heads', 'epsilon', 'activation', 'rotary', 'rotary_factor', 'rotary_bands', 'first')
# The order in which Keras writes a layer's arrays.
KERAS_ORDER = (
  *('kernel', 'depthwise_kernel', 'pointwise_kernel', 'recurrent_kernel', 'embeddings'),
  *('gamma', 'bias', 'beta', 'moving_mean', 'moving_variance'),
)


def names_for(network: str) -> list[str]:
  """The names under which a network can be written."""
  known = [origin.name for origin in origins() if origin.network == network and origin.exported]
  return [OURS, *dict.fromkeys(known)]


def write(
  path: Path,
  variables: Mapping[str, Any],
  network: str,
  options: Mapping[str, Any],
  preprocessing: Mapping[str, Any],
  names: str = OURS,
) -> list[str]:
  """Writes a network to a file whose suffix says the format: .safetensors, .npz, or Keras' .h5.

  Args:
    variables: `{'params', 'stats'}`.
    options: of the network's function.
    names: 'ours', or an origin of the network: 'torchvision', 'keras'.

  Returns:
    Sentences for the user.

  Raises:
    UserError: another suffix, an origin that the network does not have, or leaves that it has no names for.
  """
  if path.suffix not in SUFFIXES:
    raise UserError(f'--export={path}: the suffix says the format; nearest: {nearest(path.suffix, SUFFIXES)[0]}')
  if names not in (known := names_for(network)):
    raise unknown(f'names for network {network!r}:', names, known)
  if path.suffix == '.h5' and not names.startswith('keras'):
    way = 'add names=keras' if 'keras' in known else f'it has no names for network {network!r}; nearest: .safetensors'
    raise UserError(f"--export={path}: .h5 is Keras' format: {way}")
  if not path.parent.is_dir():
    raise UserError(f'--export={path}: there is no folder {str(path.parent)!r}')
  arrays, notes = _named(variables, network, options, names)
  said = {
    'transferlab': str(FORMAT),
    'names': names,
    'network': json.dumps({'name': network, **options}),
    'preprocessing': json.dumps(dict(preprocessing)),
  }
  _write(path, arrays, said)
  count = sum(array.size for array in arrays.values())
  return [f'{path}: {len(arrays)} arrays, {count:,} values, names: {names}', *notes, *_inputs(preprocessing)]


def _named(
  variables: Mapping[str, Any], network: str, options: Mapping[str, Any], names: str
) -> tuple[dict[str, np.ndarray], list[str]]:
  """The arrays under the names asked for, in the order in which the origin has them."""
  leaves = {kind: paths.flatten(variables.get(kind, {})) for kind in ('params', 'stats')}
  if names == OURS:
    return {f'{kind}/{path}': np.asarray(leaf) for kind, flat in leaves.items() for path, leaf in flat.items()}, []
  options = config.check_options(networks.network_function(network), options, f'network {network!r}')
  refusals = []
  for origin in origins():
    if (origin.network, origin.name, origin.exported) == (network, names, True):
      try:
        return _under({**leaves['params'], **leaves['stats']}, origin, options)
      except UserError as refusal:  # another family of the same origin, or one for other images, may have names for it
        refusals.append(refusal)
  raise max(refusals, key=lambda refusal: 'has no name' not in str(refusal))  # the family that came nearest


def _under(
  leaves: Mapping[str, Any], origin: Origin, options: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], list[str]]:
  """The arrays under an origin's names. Raises `UserError` where it has none for them, or would answer otherwise."""
  table = origin.table(options)
  if homeless := [path for path in leaves if path not in table]:
    raise UserError(f'{origin.name} has no name for {", ".join(homeless[:3])}; names=ours writes every leaf')
  arrays = _theirs(leaves, table)
  _check_same(origin, options, arrays)
  turned = any('reverse=' in layout for ours, (_, layout) in table.items() if ours in leaves)
  notes = ['the first kernel takes blue, green, red, as the origin does'] if turned else []
  if origin.unstated:
    shown = ', '.join(f'{name}={options[name]!r}' for name in STATED if name in options)
    notes.append(f'what a config.json beside it has to say as well, or its user to know: {shown}')
  return arrays, notes


def _theirs(leaves: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
  """Their arrays, each of one leaf or of all that are parts of it."""
  parts: dict[str, list[tuple[layouts.Part | None, np.ndarray]]] = {}
  for ours, (theirs, layout) in table.items():
    if ours in leaves:
      part = (layouts.part(layout), layouts.theirs(np.asarray(leaves[ours]), layout))
      parts.setdefault(theirs, []).append(part)
  arrays = {}
  for theirs, found in parts.items():
    first, array = found[0]
    if first is not None:
      ordered = sorted(found, key=lambda each: each[0].begin if each[0] else 0)
      array = np.concatenate([part for _, part in ordered], axis=first.axis)
    arrays[theirs] = np.ascontiguousarray(array)
  return arrays


def _check_same(origin: Origin, options: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
  """That the origin's network under these names computes what ours does.

  Raises:
    UserError: its network has other options, which parameters do not show.
  """
  shapes, name = {name: array.shape for name, array in arrays.items()}, origin.name
  found = origin.options(shapes)
  if found is None:
    raise UserError(f'{name} has no network of these layers; names=ours writes every leaf')
  theirs = config.check_options(networks.network_function(origin.network), found, f'network {origin.network!r}')
  # What the origin's config.json can say is no matter of names.
  computed = COMPUTED - set(origin.states)
  for option in (computed & set(theirs)) | (HIDDEN & set(found)):
    if options[option] != (value := theirs[option]):
      raise UserError(
        f'the network of {name} has {option}={value!r}, and this one {options[option]!r}: with the same weights it '
        'would answer otherwise; names=ours writes every leaf'
      )


def _write(path: Path, arrays: Mapping[str, np.ndarray], said: Mapping[str, str]) -> None:
  """Whole or not at all. Raises `UserError` where the file system refuses."""
  if path.suffix == '.h5':
    from transferlab.weights import keras_export

    keras_export.write(path, _keras_layers(arrays), said)
    return
  partial = path.with_name(f'.{path.name}.{os.getpid()}.partial{path.suffix}')
  try:
    if path.suffix == '.safetensors':
      from safetensors.numpy import save

      partial.write_bytes(save(dict(arrays), metadata=dict(said)))
    else:
      np.savez(partial, __metadata__=np.array(json.dumps(said)), **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)
  except OSError as error:
    raise UserError(f'--export={path}: {error.strerror}') from None
  finally:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)


def _keras_layers(arrays: Mapping[str, np.ndarray]) -> list[tuple[str, list[tuple[str, np.ndarray]]]]:
  """Layers in the order of the table, the arrays of each in Keras' order."""
  layers: dict[str, list[tuple[str, np.ndarray]]] = {}
  for name, array in arrays.items():
    layer, _, weight = name.rpartition('/')
    layers.setdefault(layer, []).append((weight, array))
  return [(layer, sorted(own, key=lambda pair: KERAS_ORDER.index(pair[0]))) for layer, own in layers.items()]


def _inputs(record: Mapping[str, Any]) -> list[str]:
  """What the weights expect of images, for whoever feeds them elsewhere."""
  if record.get('kind') != 'image':
    return []
  shift, scale = ([f'{value:.6g}' for value in record[name]] for name in ('shift', 'scale'))
  bounds = ' … '.join(f'{value:g}' for value in record.get('range', ()))
  order = ' (red, green, blue)' if len(shift) == 3 else ''
  return [
    f'preprocessing: (x - shift) / scale of {bounds or "the values as they are"}: shift {", ".join(shift)}; '
    f'scale {", ".join(scale)}{order}'
  ]
