"""A foreign model's arrays in our network, and its answers beside ours: what tests of names share."""

import jax
import jax.numpy as jnp
import numpy as np

from transferlab import paths
from transferlab.networks import layers
from transferlab.networks.network import build
from transferlab.weights import layouts, mapping


def recognised(arrays):
  """The one origin of all that takes the arrays for its own, and the options."""
  shapes = {name: tuple(np.shape(array)) for name, array in arrays.items()}
  found = [(origin, options) for origin in mapping.origins() if (options := origin.options(shapes)) is not None]
  assert len(found) <= 1, found
  return found[0] if found else (None, None)


def loaded(arrays, input_shape, *, expect, options):
  """(origin, our network, its variables) with these arrays, recognised as the origin `expect` with `options`."""
  origin, found = recognised(arrays)
  assert (origin.network, origin.name) == expect
  assert found == options
  table = origin.table(found)
  outputs = next(
    (arrays[name].shape for path, (name, _) in table.items() if path == 'head/bias' and name in arrays), (1,)
  )
  net = build(origin.network, found, input_shape, outputs[0])
  variables = {}
  for kind, tree in net.shapes().items():
    leaves = {path: leaf for path, leaf in paths.flatten(tree).items() if table[path][0] in arrays}
    values = {path: layouts.ours(np.asarray(arrays[table[path][0]]), table[path][1]) for path in leaves}
    assert {path: value.shape for path, value in values.items()} == {path: leaf.shape for path, leaf in leaves.items()}
    variables[kind] = paths.unflatten({path: jnp.asarray(value) for path, value in values.items()})
  return origin, net, variables


def network(arrays, input_shape, *, expect, options):
  """(origin, function of images) of our network with these arrays, which gives the value after every stage."""
  origin, net, variables = loaded(arrays, input_shape, expect=expect, options=options)
  stop = None if 'head' in variables['params'] else 'head'
  forward = jax.jit(layers.unlooped(lambda variables, x: net.apply(variables, x, stop=stop)[0]))
  return origin, lambda x: forward(variables, x)


def error(found, expected):
  """The largest difference, as a share of the largest expected value; examples are told apart."""
  expected = np.asarray(expected)
  assert found.shape == expected.shape
  assert len(expected) == 1 or np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()
  return np.abs(found - expected).max() / np.abs(expected).max()


def close(found, expected, share=1e-4):
  assert error(found, expected) < share
