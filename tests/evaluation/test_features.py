"""Features of stages against forward passes by hand (NumPy, PyTorch), on any batch size, held or read on demand."""

import jax
import numpy as np
import pytest

from transferlab.data.columns import Column
from transferlab.errors import UserError
from transferlab.evaluation import features
from transferlab.networks import network as networks
from transferlab.preparation import initial

pytestmark = pytest.mark.usefixtures('quick_compilation')

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(37, 6)).astype(np.float32)
RECORD = {'shift': np.full(6, 0.5, np.float32), 'scale': np.full(6, 2.0, np.float32)}
IMAGES = RANDOM.normal(size=(11, 8, 8, 2)).astype(np.float32)
PLAIN = {'shift': np.zeros(2, np.float32), 'scale': np.ones(2, np.float32)}


@pytest.fixture(scope='module')
def perceptron():
  """A network of two hidden layers with much dropout, its variables, and its features by NumPy."""
  network = networks.build('mlp', {'hidden': [5, 4], 'dropout': 0.5}, (6,), 3)
  variables = initial(network, jax.random.key(0))
  expected, value = {}, ((X - 0.5) / 2.0).astype(np.float64)
  for stage in ('layer1', 'layer2', 'head'):
    (layer,) = (
      [variables['params'][stage]] if 'kernel' in variables['params'][stage] else variables['params'][stage].values()
    )
    value = value @ np.asarray(layer['kernel'], np.float64) + np.asarray(layer['bias'])
    value = value if stage == 'head' else np.maximum(value, 0)
    expected[stage] = value
  return network, variables, expected


@pytest.fixture(scope='module')
def convolutional():
  """A small convolutional network with BatchNorm whose running statistics are not those of any batch."""
  network = networks.build('convnet', {'width': 3, 'features': 5, 'batch_norm': True}, (8, 8, 2), 4)
  variables = initial(network, jax.random.key(1))
  moved = lambda leaf: np.abs(RANDOM.normal(size=leaf.shape)).astype(np.float32) + 0.5
  return network, {**variables, 'stats': jax.tree.map(moved, variables['stats'])}


@pytest.mark.parametrize('batch_size', [1, 8, 37, 500])
def test_features_are_those_of_evaluation_mode_on_any_batch_size(perceptron, batch_size):
  network, variables, expected = perceptron
  found = features.features(network, variables, RECORD, X, network.stages, batch_size=batch_size)
  assert list(found) == ['layer1', 'layer2', 'head']
  for stage, values in found.items():
    np.testing.assert_allclose(values, expected[stage], rtol=1e-5, atol=1e-6)


def test_stages_come_in_the_order_asked_for_and_only_those(perceptron):
  network, variables, expected = perceptron
  found = features.features(network, variables, RECORD, X, ['layer2'])
  assert list(found) == ['layer2']
  np.testing.assert_allclose(found['layer2'], expected['layer2'], rtol=1e-5, atol=1e-6)


def test_inputs_that_are_read_on_demand_are_read_once_and_a_batch_at_a_time(perceptron):
  network, variables, expected = perceptron
  order, seen = RANDOM.permutation(37), []
  column = Column(lambda rows: seen.append(rows) or X[rows], order, (6,), np.float32, 'x')
  found = features.features(network, variables, RECORD, column, ['head'], batch_size=10)
  np.testing.assert_allclose(found['head'], expected['head'][order], rtol=1e-5, atol=1e-6)
  assert max(map(len, seen)) <= 10 and sorted(np.concatenate(seen)) == list(range(37))


def test_one_compilation_serves_sets_of_every_size(perceptron):
  network, variables, _ = perceptron
  compiled = features._forward(network, ('layer1', 'head'), 'mean')
  before = compiled._cache_size()
  for count in (20, 23, 37):
    features.features(network, variables, RECORD, X[:count], ['layer1', 'head'], batch_size=16)
  assert features._forward(network, ('layer1', 'head'), 'mean') is compiled
  assert compiled._cache_size() == before + 1


@pytest.mark.parametrize('pool', ['mean', 'flat'])
def test_places_are_averaged_or_laid_side_by_side_as_pytorch_has_them(convolutional, pool):
  torch = pytest.importorskip('torch')
  network, variables = convolutional
  block = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), dtype=torch.float64), variables['params']['block1'])
  stats = {name: torch.tensor(np.asarray(leaf)) for name, leaf in variables['stats']['block1']['norm'].items()}
  x = torch.tensor(IMAGES, dtype=torch.float64).permute(0, 3, 1, 2)
  x = torch.nn.functional.conv2d(x, block['conv']['kernel'].permute(3, 2, 0, 1), block['conv']['bias'], padding=1)
  x = (x - stats['mean'][:, None, None]) / torch.sqrt(stats['var'][:, None, None] + 1e-5)
  x = x * block['norm']['scale'][:, None, None] + block['norm']['bias'][:, None, None]
  x = torch.nn.functional.max_pool2d(torch.relu(x), 2)
  expected = x.mean(dim=(2, 3)) if pool == 'mean' else x.permute(0, 2, 3, 1).reshape(11, -1)
  found = features.features(network, variables, PLAIN, IMAGES, ['block1'], pool=pool, batch_size=4)
  np.testing.assert_allclose(found['block1'], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_widths_are_counted_without_computing_anything(convolutional):
  network, _ = convolutional
  mean = features.widths(network, network.stages, jax.ShapeDtypeStruct((1, 8, 8, 2), np.float32), 'mean')
  flat = features.widths(network, network.stages, jax.ShapeDtypeStruct((1, 8, 8, 2), np.float32), 'flat')
  assert mean == {'block1': 3, 'block2': 6, 'dense': 5, 'head': 4}
  assert flat == {'block1': 4 * 4 * 3, 'block2': 2 * 2 * 6, 'dense': 5, 'head': 4}


def test_a_value_that_carries_more_than_features_is_pooled_by_its_features():
  value = {'x': np.arange(24.0).reshape(2, 3, 4), 'mask': np.ones((2, 3))}
  np.testing.assert_array_equal(features.pooled(value, 'mean'), value['x'].sum(axis=1) / 3)


def test_all_means_every_stage_and_a_mistyped_one_is_answered_with_the_nearest(convolutional):
  network, _ = convolutional
  assert features.chosen(network, 'all') == network.stages == ('block1', 'block2', 'dense', 'head')
  assert features.chosen(network, 'dense') == ('dense',)
  with pytest.raises(UserError, match="unknown stage 'blok2'; nearest: block2"):
    features.chosen(network, 'blok2')


def test_features_beyond_the_memory_of_the_machine_are_refused_before_they_are_computed():
  features.check_size(1000, {'stem': 10})
  with pytest.raises(UserError, match=r"50,000,000 of each at 'stem'.*pool='mean'"):
    features.check_size(10**6, {'stem': 5 * 10**7, 'head': 10})
