"""Fisher information and channel attention against sums over examples, labels and channels in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transferlab.errors import UserError
from transferlab.networks.convnet import convnet
from transferlab.networks.mlp import mlp
from transferlab.objectives import importance

pytestmark = pytest.mark.usefixtures('quick_compilation')
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(11, 4)).astype(np.float32)
RECORD = {'shift': np.full(4, 0.25, np.float32), 'scale': np.full(4, 2.0, np.float32)}
INPUTS = (X.astype(np.float64) - 0.25) / 2


def _random(network, seed=0):
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), network.shapes())


def _layers(variables):
  hidden, head = variables['params']['layer1']['linear'], variables['params']['head']
  return [np.asarray(leaf, np.float64) for leaf in (hidden['kernel'], hidden['bias'], head['kernel'], head['bias'])]


def _squares(variables, errors):
  """(∂ log p / ∂θ)² of each weight, summed over rows of (example, ∂/∂z): backpropagation by hand through one ReLU."""
  kernel, bias, last, _ = _layers(variables)
  sums = [np.zeros_like(leaf) for leaf in _layers(variables)]
  for example, error in errors:
    before = INPUTS[example] @ kernel + bias
    back = (last @ error) * (before > 0)
    gradients = [np.outer(INPUTS[example], back), back, np.outer(np.maximum(before, 0), error), error]
    sums = [total + gradient**2 for total, gradient in zip(sums, gradients)]
  return sums


def _outputs(variables):
  kernel, bias, last, shift = _layers(variables)
  return np.maximum(INPUTS @ kernel + bias, 0) @ last + shift


def _softmax(z):
  powers = np.exp(z - z.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def _expected(variables, task, labels, label):
  """Sums over examples and labels y of p(y) (∂ log p(y) / ∂z)², √p(y) ∂ log p(y) / ∂z at a time, over their number."""
  z, errors = _outputs(variables), []
  for example in range(len(X)):
    if task == 'classification':
      p = _softmax(z[example])
      counted = [(p[y], y) for y in range(len(p))] if labels == 'exact' else [(1.0, label[example])]
      errors += [(example, np.sqrt(share) * (p - np.eye(len(p))[y])) for share, y in counted]
    elif task == 'binary':
      p = 1 / (1 + np.exp(-z[example]))
      counted = [(p, 1), (1 - p, 0)] if labels == 'exact' else [(1.0, label[example])]
      errors += [(example, np.sqrt(share) * (p - y)) for share, y in counted]
    else:
      # E over y ~ N(z, 1) of (g (z − y))² is g²; each output by itself, since the outputs are independent.
      rows = np.eye(z.shape[1]) if labels == 'exact' else [z[example] - label[example]]
      errors += [(example, row) for row in rows]
  return [total / len(X) for total in _squares(variables, errors)]


@pytest.mark.parametrize('labels', ['exact', 'empirical'])
@pytest.mark.parametrize('task', ['classification', 'binary', 'regression'])
@pytest.mark.parametrize('chunk', [4, 64])
def test_fisher_is_the_mean_of_squared_gradients_over_examples_and_labels(task, labels, chunk):
  """Kirkpatrick et al. 2017, eq. 3: F; chunks of 4 leave a last one of 3 with a row of padding."""
  network = mlp((4,), {'classification': 3, 'binary': 1, 'regression': 2}[task], hidden=[5])
  variables = _random(network)
  if task == 'regression':
    label = RANDOM.normal(size=(11, 2)).astype(np.float32)
  else:
    label = RANDOM.integers(0, 3 if task == 'classification' else 2, 11).astype(np.int32)
  found = importance.fisher(network, variables, RECORD, X, label, task=task, labels=labels, chunk=chunk)
  for mine, theirs in zip(_layers({'params': found}), _expected(variables, task, labels, label)):
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('task', ['classification', 'binary', 'regression'])
def test_sampled_labels_are_those_the_network_predicts(task):
  """Many draws of one example average to its exact information, and another seed draws others."""
  outputs = jnp.asarray({'classification': [0.3, -1.0, 1.2], 'binary': [0.8], 'regression': [0.5, -0.2]}[task])
  keys = jax.random.split(jax.random.key(0), 20_000)
  rows = jax.vmap(lambda key: importance.scores(outputs, 0, key, task, 'sampled')[0])(keys)
  exact = np.asarray(importance.scores(outputs, 0, keys[0], task, 'exact'), np.float64)
  p = _softmax(np.asarray(outputs, np.float64))
  wanted = {
    'classification': np.diag(p) - np.outer(p, p),
    'binary': np.array([[0.8]]) * 0 + 1 / (1 + np.exp(-0.8)) * (1 - 1 / (1 + np.exp(-0.8))),
    'regression': np.eye(2),
  }[task]
  np.testing.assert_allclose(exact.T @ exact, wanted, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(np.asarray(rows).T @ np.asarray(rows) / len(rows), wanted, atol=0.03)


def test_sampling_depends_on_the_seed_and_not_on_the_chunks():
  network = mlp((4,), 3, hidden=[5])
  variables, label = _random(network), np.zeros(11, np.int32)
  draw = lambda **more: _layers(
    {'params': importance.fisher(network, variables, RECORD, X, label, task='classification', labels='sampled', **more)}
  )
  for whole, parts, others in zip(draw(), draw(chunk=3), draw(seed=1)):
    np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-6)
    assert np.abs(whole - others).max() > 1e-3


def test_fisher_is_taken_in_evaluation_mode():
  """With BatchNorm in training mode one example alone would have no gradient at all."""
  network = convnet((8, 8, 1), 3, width=4, blocks=1, features=6, batch_norm=True, dropout=0.5)
  variables = network.init(jax.random.key(0))
  images, record = RANDOM.normal(size=(3, 8, 8, 1)).astype(np.float32), {'shift': np.zeros(1), 'scale': np.ones(1)}
  label = np.array([0, 1, 2])
  found = importance.fisher(network, variables, record, images, label, task='classification', labels='empirical')

  def log_likelihood(params, image, y):
    logits = network.apply({**variables, 'params': params}, image[None])[0]['head'][0]
    return jax.nn.log_softmax(logits)[y]

  each = [jax.grad(log_likelihood)(variables['params'], image, y) for image, y in zip(images, label)]
  wanted = jax.tree.map(lambda *leaves: np.mean(np.square(leaves), axis=0), *each)
  assert max(float(np.max(leaf)) for leaf in jax.tree.leaves(wanted)) > 1e-3
  jax.tree.map(lambda mine, theirs: np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-6), found, wanted)


# ------------------------------------------------------------------------------------------- attention of channels
@pytest.mark.parametrize('chunk', [4, 64])
def test_attention_is_the_softmax_of_what_the_loss_rises_by_without_each_channel(chunk):
  """Li et al. 2019, DELTA: W_j = softmax(L(w⁰ without j) − L(w⁰)), worked out feature by feature."""
  network = mlp((4,), 3, hidden=[5])
  variables, label = _random(network), RANDOM.integers(0, 3, 11).astype(np.int32)
  kernel, bias, last, shift = _layers(variables)
  features = np.maximum(INPUTS @ kernel + bias, 0)

  def loss(features):
    return -np.log(_softmax(features @ last + shift)[np.arange(11), label]).mean()

  rises = np.array([loss(features * (np.arange(5) != channel)) - loss(features) for channel in range(5)])
  found = importance.channel_attention(network, variables, RECORD, X, label, ['layer1'], chunk=chunk)
  assert np.ptp(rises) > 0.05
  np.testing.assert_allclose(found['layer1'], _softmax(rises), rtol=1e-4)


def test_attention_of_maps_removes_a_channel_everywhere():
  network = convnet((8, 8, 1), 3, width=4, blocks=2, features=6)
  variables = _random(network)
  images, record = RANDOM.normal(size=(5, 8, 8, 1)).astype(np.float32), {'shift': np.zeros(1), 'scale': np.ones(1)}
  label = RANDOM.integers(0, 3, 5)
  (found,) = importance.channel_attention(network, variables, record, images, label, ['block1']).values()
  maps = np.array(network.apply(variables, images)[0]['block1'])

  def loss(maps):
    logits = network.apply(variables, jnp.asarray(maps), start='block2')[0]['head']
    return -np.log(_softmax(np.asarray(logits, np.float64))[np.arange(5), label]).mean()

  rises = []
  for channel in range(maps.shape[-1]):
    left = maps.copy()
    left[..., channel] = 0
    rises.append(loss(left) - loss(maps))
  np.testing.assert_allclose(found, _softmax(np.array(rises)), rtol=1e-3)
  assert np.sum(found) == pytest.approx(1)


@pytest.mark.parametrize('stage', ['head', 'layer7'])
def test_attention_is_for_stages_before_the_head(stage):
  network = mlp((4,), 3, hidden=[5])
  with pytest.raises(UserError, match=f"unknown stage '{stage}'; nearest: layer1"):
    importance.channel_attention(network, _random(network), RECORD, X, np.zeros(11, int), [stage])
