"""Their names for the arrays of our networks: one file per network, which gives `ORIGINS`; here, what these share.

Nothing here reads a file or holds an array; names and shapes are enough to know a family.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from transferlab.errors import UserError, unknown
from transferlab.weights import layouts
from transferlab.weights.origin import Origin, Shapes, Table

# The doubt of an origin whose names Keras made up.
UNNAMED = 'recognised by the order and shapes of its layers alone: activations, padding and preprocessing are not known'


def fits(shapes: Shapes, table: Table, kernels: Mapping[str, tuple[int, int]]) -> bool:
  """Whether a file is what a table describes: all of the table's names but maybe the head's, no others, right kernels.

  Args:
    kernels: (size, outputs) of the convolutions that tell the family from others, by our path.
  """
  valued = {name for name in shapes if not re.fullmatch(Origin.valueless, name)}
  names = {theirs: ours for ours, (theirs, _) in table.items()}
  if not valued <= set(names) or any(not names[name].startswith('head/') for name in set(names) - valued):
    return False
  try:
    found = {names[name]: layouts.shape(tuple(shapes[name]), table[names[name]][1]) for name in valued}
  except UserError:
    return False
  # Channels of images are free: what the first convolution takes says nothing about the family.
  return all(
    len(found[path]) == 4 and (*found[path][:2], found[path][3]) == (size, size, outputs)
    for path, (size, outputs) in kernels.items()
  )


def torch_norm(ours: str, theirs: str) -> Table:
  """torch's names of a BatchNorm."""
  pairs = {'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
  return {f'{ours}/{leaf}': (f'{theirs}.{name}', 'same') for leaf, name in pairs.items()}


def torch_layer_norm(ours: str, theirs: str) -> Table:
  """torch's names of a layer normalisation."""
  return {f'{ours}/scale': (f'{theirs}.weight', 'same'), f'{ours}/bias': (f'{theirs}.bias', 'same')}


def keras_norm(ours: str, theirs: str) -> Table:
  """Keras' names of a BatchNormalization."""
  pairs = {'scale': 'gamma', 'bias': 'beta', 'mean': 'moving_mean', 'var': 'moving_variance'}
  return {f'{ours}/{leaf}': (f'{theirs}/{name}', 'same') for leaf, name in pairs.items()}


def torch_layer(ours: str, theirs: str, layout: str) -> Table:
  """torch's names of a layer with a bias; the layout of its weight."""
  return {f'{ours}/kernel': (f'{theirs}.weight', layout), f'{ours}/bias': (f'{theirs}.bias', 'same')}


def keras_layer(ours: str, theirs: str, layout: str = 'same') -> Table:
  """Keras' names of a layer with a bias; the layout of its kernel."""
  return {f'{ours}/kernel': (f'{theirs}/kernel', layout), f'{ours}/bias': (f'{theirs}/bias', 'same')}


def numbered(classes: Iterable[str]) -> list[str]:
  """The names that Keras gives to layers of these classes that have none: dense, dense_1, …."""
  seen: dict[str, int] = {}
  names = []
  for kind in classes:
    count = seen[kind] = seen.get(kind, -1) + 1
    names.append(f'{kind}_{count}' if count else kind)
  return names


# What the config.json of transformers calls the functions of networks/transformer.py.
ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'quick_gelu': 'quick_gelu',
  'relu': 'relu',
  'silu': 'silu',
  'swish': 'silu',
}


def stated_options(config: Mapping[str, Any], kinds: Iterable[str], names: Mapping[str, str]) -> dict[str, Any]:
  """Options of our network that transformers' config.json states.

  Args:
    kinds: the values of 'model_type' whose networks ours computes.
    names: our option for each of their keys; what is missing or null is left out.

  Raises:
    UserError: another kind of network under the same names, or an activation that ours does not have.
  """
  kind = config.get('model_type')
  if kind not in (None, *kinds):
    raise UserError(f'config.json: model_type={kind!r} has the names of {", ".join(kinds)}, and computes otherwise')
  found = {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None}
  if 'activation' in found and found['activation'] not in ACTIVATIONS:
    raise unknown('config.json: activation', str(found['activation']), ACTIVATIONS)
  return found | ({'activation': ACTIVATIONS[found['activation']]} if 'activation' in found else {})


def depth_of(shapes: Shapes, pattern: str) -> int:
  """How many blocks a file has: the number of names that a pattern matches."""
  return sum(bool(re.fullmatch(pattern, name)) for name in shapes)
