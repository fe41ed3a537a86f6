"""Stochastic depth: whole examples, unbiased, one decision by one key; and its rates over the depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transferlab.networks import layers
from transferlab.networks.network import build
from transferlab.networks.residual import StochasticDepth, linear_rate

pytestmark = pytest.mark.usefixtures('quick_compilation')


def _dropped(rate, x, key, train=True):
  with layers.scope(layers.Scope(train=train, key=key)):
    return StochasticDepth(rate)(x)


@pytest.mark.parametrize('per_example', [False, True])
def test_each_example_is_dropped_whole_or_scaled_by_one_over_the_share_kept(per_example):
  x = np.random.default_rng(0).uniform(1, 2, (4000, 2, 3, 2)).astype(np.float32)
  key = jax.random.key(1)
  found = np.asarray(_dropped(0.3, x, jax.random.split(key, len(x)) if per_example else key))
  kept = found.any(axis=(1, 2, 3))
  np.testing.assert_allclose(found[kept], x[kept] / 0.7, rtol=1e-6)
  assert not found[~kept].any()
  assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.3 * 0.7 / len(x))


def test_with_one_key_per_example_the_decision_depends_on_that_key_only():
  keys, x = jax.random.split(jax.random.key(2), 64), jnp.ones((64, 3))
  order = np.random.default_rng(0).permutation(64)
  np.testing.assert_array_equal(_dropped(0.5, x[:9], keys[order][:9]), _dropped(0.5, x, keys)[order][:9])


def test_in_evaluation_and_at_rate_zero_nothing_changes_and_no_key_is_drawn():
  x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
  assert np.asarray(_dropped(0.5, x, None, train=False)).tobytes() == x.tobytes()
  assert np.asarray(_dropped(0.0, x, None)).tobytes() == x.tobytes()


def test_rates_rise_linearly_from_zero():
  assert [linear_rate(0.3, block, 4) for block in range(4)] == pytest.approx([0, 0.1, 0.2, 0.3])
  assert linear_rate(0.3, 0, 1) == 0


@pytest.mark.parametrize(
  ('name', 'options', 'blocks'),
  [('convnext', dict(depths=[1, 2], widths=[4, 4]), 3), ('imagenet_resnet', dict(depth=18, width=2, blocks=3), 8)],
)
def test_blocks_of_a_network_skip_their_branch_at_these_rates(name, options, blocks):
  """A dropped example passes a block as through its shortcut alone; blocks left out count for the rates."""
  net = build(name, {**options, 'stochastic_depth': 0.9}, (32, 32, 3), 2)
  random = np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.5, 1, leaf.shape), leaf.dtype), net.shapes())
  x = jnp.asarray(random.uniform(size=(300, 2, 2, options.get('width', 4))), jnp.float32)
  second = jax.jit(
    lambda train, key: net.apply(
      variables, x, train={'block2'} if train else False, statistics=(), key=key, start='block2', stop='block3'
    )[0]['block2'],
    static_argnums=0,
  )
  found, expected = second(True, jax.random.key(3)), second(False, jax.random.key(3))
  if name == 'imagenet_resnet':
    skipped = np.isclose(found, x).all(axis=(1, 2, 3))
  else:
    block = variables['params']['block2']
    variables['params']['block2'] = {**block, 'layer_scale': jnp.zeros(4)}
    shortcut = net.apply(variables, x, start='block2', stop='block3')[0]['block2']
    skipped = np.isclose(found, shortcut).all(axis=(1, 2, 3))
  assert not np.isclose(expected, found).all(axis=(1, 2, 3)).any()
  rate = linear_rate(0.9, 1, blocks)
  assert abs(skipped.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / len(x))
