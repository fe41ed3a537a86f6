"""Recurrences against their equations in float64 NumPy, against PyTorch and Keras; language models and their carry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from transferlab import paths
from transferlab.errors import UserError
from transferlab.networks.network import build

pytestmark = pytest.mark.usefixtures('quick_compilation')
CELLS = ['lstm', 'gru']
# Padding behind, before, in the middle, everywhere, nowhere.
MASK = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1], [0, 1, 0, 0, 1, 0], [0] * 6, [1] * 6], bool)
LENGTHS = [4, 1, 6, 3]


def _net(cell, **options):
  return build(cell, {'vocabulary': 9, 'embedding': 3, 'pool': 'mean', **options}, (6,), 2)


def _random(net, seed=0, scale=0.6):
  """Random numbers for all weights: as they begin, biases are 0 or all the same."""
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, scale, leaf.shape), jnp.float32), net.shapes())


def _values(*shape, seed=1):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _outputs_and_gradients(net, params, x, mask, cotangent):
  """What the recurrent stages give from x, and the gradients of its product with a cotangent, by params and by x."""

  def loss(params, x):
    given = {'x': x, 'mask': jnp.asarray(mask)}
    outputs = net.apply({'params': params, 'stats': {}}, given, start=net.stages[1], stop='pool')[0]
    found = outputs[net.stages[-3]]['x']
    return (found * cotangent).sum(), found

  params = {name: params[name] for name in net.stages[1:-2]}
  (_, found), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, jnp.asarray(x))
  return found, paths.flatten(gradients[0]), gradients[1]


def _close(found, expected, tolerance=1e-5):
  assert found.shape == expected.shape
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


# ------------------------------------------------------------------------------------------- equations, in NumPy
def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _lstm_step(w, x, h, c):
  i, f, g, o = np.split(x @ w['kernel'] + h @ w['recurrent'] + w['bias'], 4)
  c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
  return _sigmoid(o) * np.tanh(c), c


def _gru_step(w, x, h, c):
  given, own = x @ w['kernel'] + w['bias'], h @ w['recurrent'] + w['recurrent_bias']
  r, z, n = (slice(gate * len(h), (gate + 1) * len(h)) for gate in range(3))
  reset, update = _sigmoid(given[r] + own[r]), _sigmoid(given[z] + own[z])
  return (1 - update) * np.tanh(given[n] + reset * own[n]) + update * h, c


def _by_hand(cell, weights, x, mask, state=None, reverse=False):
  """Each text alone, without its padding; outputs stand where its tokens stood."""
  weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
  features = len(weights['recurrent'])
  outputs, ends = np.zeros((*mask.shape, features)), []
  for row, (text, real) in enumerate(zip(np.asarray(x, np.float64), mask)):
    h, c = (np.zeros(features),) * 2 if state is None else (state[name][row] for name in 'hc')
    for place in np.flatnonzero(real)[:: -1 if reverse else 1]:
      h, c = {'lstm': _lstm_step, 'gru': _gru_step}[cell](weights, text[place], h, c)
      outputs[row, place] = h
    ends.append((h, c))
  return outputs, {name: np.array(end) for name, end in zip('hc', zip(*ends))}


@pytest.mark.parametrize('both', [False, True])
@pytest.mark.parametrize('cell', CELLS)
def test_outputs_and_gradients_are_those_of_the_equations_wherever_padding_stands(cell, both):
  net = _net(cell, hidden=[2], both=both)
  params, x, stage = _random(net)['params'], _values(*MASK.shape, 3), f'{cell}1'
  cotangent = _values(*MASK.shape, 2 + 2 * both, seed=2)
  found, gradients, by_x = _outputs_and_gradients(net, params, x, MASK, cotangent)

  def loss(weights, x):
    made = [_by_hand(cell, weights['forward'], x, MASK)[0]]
    if both:
      made.append(_by_hand(cell, weights['backward'], x, MASK, reverse=True)[0])
    expected = np.concatenate(made, axis=-1)
    return (expected * cotangent).sum(), expected

  weights = jax.tree.map(lambda leaf: np.array(leaf, np.float64), params[stage])
  x = np.array(x, np.float64)
  _close(found, loss(weights, x)[1])
  arrays = {f'{stage}/{path}': leaf for path, leaf in paths.flatten(weights).items()}
  assert set(arrays) == set(gradients)
  for array, gradient in [(x, by_x), *((arrays[path], gradients[path]) for path in arrays)]:
    _close(gradient, _differences(lambda: loss(weights, x)[0], array), 1e-4)


def _differences(value, array, by=1e-5):
  found = np.zeros(array.shape)
  for index in np.ndindex(array.shape):
    before, ends = array[index], []
    for change in (by, -by):
      array[index] = before + change
      ends.append(value())
    array[index] = before
    found[index] = (ends[0] - ends[1]) / (2 * by)
  return found


@pytest.mark.parametrize('cell', CELLS)
def test_a_carried_state_is_where_the_equations_start_and_the_one_behind_the_last_token_is_carried_on(cell):
  """Gradients too: of the outputs and of that state, by the weights and by the state to start from."""
  net, name, parts = _net(cell, hidden=[2]), f'{cell}1', 'hc' if cell == 'lstm' else 'h'
  weights, x = _random(net)['params'][name]['forward'], _values(*MASK.shape, 3)
  state, slopes = ({part: _values(len(MASK), 2, seed=seed + i) for i, part in enumerate('hc')} for seed in (3, 5))
  cotangent = _values(*MASK.shape, 2, seed=2)

  def total(outputs, end):
    return (outputs * cotangent).sum() + sum((end[part] * slopes[part]).sum() for part in parts)

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  def ours(weights, state):
    given = {'x': x, 'mask': jnp.asarray(MASK), 'carry': {name: state}}
    params = {'params': {name: {'forward': weights}}, 'stats': {}}
    found = net.apply(params, given, start=name, stop='pool')[0][name]
    return total(found['x'], found['carry'][name]), (found['x'], found['carry'][name])

  (_, (outputs, end)), gradients = ours(weights, {part: state[part] for part in parts})
  weights, state = ({key: np.array(leaf, np.float64) for key, leaf in tree.items()} for tree in (weights, state))
  expected, expected_end = _by_hand(cell, weights, x, MASK, state)
  _close(outputs, expected)
  assert set(end) == set(parts)
  for part in parts:
    _close(end[part], expected_end[part])
  arrays = {**weights, **{part: state[part] for part in parts}}
  assert set(arrays) == set(gradients[0] | gradients[1])
  for key, gradient in (gradients[0] | gradients[1]).items():
    _close(gradient, _differences(lambda: total(*_by_hand(cell, weights, x, MASK, state)), arrays[key]), 1e-4)


@pytest.mark.parametrize('cell', CELLS)
def test_gradients_of_many_members_or_of_single_examples_are_those_of_each_alone(cell):
  net = _net(cell, hidden=[4], both=True)
  members, x = [_random(net, seed)['params'] for seed in range(3)], _values(*MASK.shape, 3)

  def gradient(params, x, mask):
    outputs, _ = net.apply({'params': params, 'stats': {}}, {'x': x, 'mask': mask}, start=f'{cell}1')
    return jnp.sin(outputs['head']).sum()

  gradient = jax.grad(gradient)
  together = jax.jit(jax.vmap(gradient, (0, None, None)))(jax.tree.map(lambda *a: jnp.stack(a), *members), x, MASK)
  examples = jax.jit(jax.vmap(gradient, (None, 0, 0)))(members[1], x[:, None], MASK[:, None])
  alone = jax.jit(gradient)
  for row, member in enumerate(members):
    jax.tree.map(lambda found, one, row=row: _close(found[row], np.asarray(one)), together, alone(member, x, MASK))
  jax.tree.map(lambda found, one: _close(found.sum(axis=0), np.asarray(one)), examples, alone(members[1], x, MASK))


# ---------------------------------------------------------------------------------------------- PyTorch and Keras
@pytest.mark.parametrize('layers', [1, 2])
@pytest.mark.parametrize('both', [False, True])
@pytest.mark.parametrize('cell', CELLS)
def test_outputs_and_gradients_are_those_of_pytorch(cell, both, layers):
  torch = pytest.importorskip('torch')
  kind = {'lstm': torch.nn.LSTM, 'gru': torch.nn.GRU}[cell]
  theirs = peers.torch_random(kind(3, 4, layers, batch_first=True, bidirectional=both))
  net = _net(cell, hidden=[4] * layers, both=both)
  mask = np.arange(6) < np.array(LENGTHS)[:, None]
  x, cotangent = _values(*mask.shape, 3) * mask[..., None], _values(*mask.shape, 4 + 4 * both, seed=2)

  def ours(part):
    """Their weights, or something of the same shapes, by our paths."""
    made = {}
    for layer in range(layers):
      for direction, end in (('forward', ''), ('backward', '_reverse'))[: 1 + both]:
        kernel, recurrent, bias, recurrent_bias = (
          part(getattr(theirs, f'{name}_l{layer}{end}')).numpy()
          for name in ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh')
        )
        at = f'{cell}{layer + 1}/{direction}'
        made |= {f'{at}/kernel': kernel.T, f'{at}/recurrent': recurrent.T}
        made |= {f'{at}/bias': bias, f'{at}/recurrent_bias': recurrent_bias}
    return made

  weights = ours(lambda parameter: parameter.detach())
  if cell == 'lstm':
    weights = {
      path: leaf + weights[path.replace('bias', 'recurrent_bias')] if path.endswith('/bias') else leaf
      for path, leaf in weights.items()
      if not path.endswith('recurrent_bias')
    }
  found, gradients, by_x = _outputs_and_gradients(net, paths.unflatten(weights), x, mask, cotangent)

  theirs.train()
  texts = torch.tensor(x, requires_grad=True)
  packed = torch.nn.utils.rnn.pack_padded_sequence(texts, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
  expected, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True, total_length=6)
  (expected * torch.tensor(cotangent)).sum().backward()
  _close(found, expected.detach().numpy())
  _close(by_x, texts.grad.numpy())
  # Each of an LSTM's two biases has the gradient of their sum.
  expected = ours(lambda parameter: parameter.grad)
  assert set(gradients) == set(weights)
  for path, gradient in gradients.items():
    _close(gradient, expected[path])


@pytest.mark.parametrize('both', [False, True])
@pytest.mark.parametrize('cell', CELLS)
def test_outputs_at_tokens_are_those_of_keras(cell, both):
  layers = peers.keras().layers
  layer = {'lstm': layers.LSTM, 'gru': layers.GRU}[cell](4, return_sequences=True)
  model = layers.Bidirectional(layer) if both else layer
  model.build((len(MASK), 6, 3))
  peers.keras_random(model)

  def ours(kernel, recurrent, bias):
    if cell == 'lstm':
      return {'kernel': kernel, 'recurrent': recurrent, 'bias': bias}
    # z, r, h become r, z, n.
    order = np.concatenate(np.arange(12).reshape(3, 4)[[1, 0, 2]])
    kernel, recurrent, bias = (array[..., order] for array in (kernel, recurrent, bias))
    return {'kernel': kernel, 'recurrent': recurrent, 'bias': bias[0], 'recurrent_bias': bias[1]}

  weights, x = [np.asarray(weight) for weight in model.get_weights()], _values(*MASK.shape, 3)
  params = {'forward': ours(*weights[:3]), **({'backward': ours(*weights[3:])} if both else {})}
  net = _net(cell, hidden=[4], both=both)
  given = {'x': x, 'mask': jnp.asarray(MASK)}
  found = net.apply({'params': {f'{cell}1': params}, 'stats': {}}, given, start=f'{cell}1', stop='pool')[0][f'{cell}1']
  expected = np.asarray(model(x, mask=MASK))
  _close(np.asarray(found['x'])[MASK], expected[MASK])


# ------------------------------------------------------------------------------------------------------- pooling
@pytest.mark.parametrize('both', [False, True])
@pytest.mark.parametrize('pool', ['last', 'mean', 'max', 'concat'])
def test_texts_are_pooled_over_their_tokens_alone(pool, both):
  net = _net('lstm', hidden=[4], pool=pool, both=both)
  x = _values(*MASK.shape, 4 + 4 * both)
  found = net.apply(_random(net), {'x': x, 'mask': jnp.asarray(MASK)}, start='pool')[0]['pool']
  expected = []
  for text, real in zip(x, MASK):
    tokens = text[real] if real.any() else np.zeros((1, text.shape[-1]))
    last, highest, mean = tokens[-1], tokens.max(axis=0), tokens.mean(axis=0)
    ends = np.concatenate([last[:4], tokens[0, 4:]])
    expected.append({'last': ends, 'mean': mean, 'max': highest, 'concat': np.concatenate([last, highest, mean])}[pool])
  _close(found, np.array(expected), 1e-6)


# ----------------------------------------------------------------------------------------------- as networks begin
def test_weights_begin_orthogonal_with_the_forget_gate_open_and_embeddings_small():
  for cell, gates in (('lstm', 4), ('gru', 3)):
    params = _net(cell, hidden=[20], vocabulary=500).init(jax.random.key(0))['params']
    weights = params[f'{cell}1']['forward']
    for gate in np.split(weights['recurrent'], gates, axis=1):
      np.testing.assert_allclose(gate.T @ gate, np.eye(20), atol=1e-5)
    assert abs(weights['kernel']).max() <= np.sqrt(6 / (3 + gates * 20))
    assert 0.09 < abs(params['embed']['embedding']).max() <= 0.1
    biases = {'lstm': np.repeat([0, 1, 0, 0], 20), 'gru': np.zeros(60)}[cell]
    np.testing.assert_array_equal(weights['bias'], biases)
  np.testing.assert_array_equal(weights['recurrent_bias'], np.zeros(60))


# ------------------------------------------------------------------------------------------------ language models
TEXTS = np.array([[1, 4, 4, 2, 8, 0, 3, 5], [2, 2, 7, -1, -1, -1, -1, -1], [6, 0, 1, 5, 3, 8, 8, -1], [-1] * 8])


@pytest.mark.parametrize('cell', CELLS)
def test_a_tied_head_has_the_embedding_for_weights(cell):
  net = build(cell, {'vocabulary': 9, 'embedding': 3, 'hidden': [4, 3], 'pool': 'none', 'tied': True}, (8,), 9)
  variables = _random(net)
  assert net.shared == {'head/embedding': 'embed/embedding'}
  assert set(net.shapes()['params']['head']) == {'bias'}
  run = jax.jit(lambda params: net.apply({'params': params, 'stats': {}}, TEXTS)[0])
  outputs = run(variables['params'])
  embedding = np.asarray(variables['params']['embed']['embedding'], np.float64)
  places = np.asarray(outputs[f'{cell}2']['x'], np.float64)
  _close(outputs['head'], places @ embedding.T + variables['params']['head']['bias'])
  # Both ends of the network move the same rows: 7 as the answer (it is no token of these texts), 4 as a token.
  gradient = jax.jit(jax.grad(lambda params: run(params)['head'][::2, :, 7].sum()))(variables['params'])
  _close(gradient['embed']['embedding'][7], places[::2].sum(axis=(0, 1)))
  assert np.abs(gradient['embed']['embedding'][4]).max() > 0.01


@pytest.mark.parametrize(('cell', 'hidden'), [('lstm', [4, 5]), ('gru', [4])])
def test_a_head_that_is_not_tied_answers_at_every_place_with_weights_of_its_own(cell, hidden):
  net = build(cell, {'vocabulary': 9, 'embedding': 3, 'hidden': hidden, 'pool': 'none'}, (8,), 9)
  variables = _random(net)
  outputs = jax.jit(lambda variables: net.apply(variables, TEXTS)[0])(variables)
  head = variables['params']['head']
  assert net.shared == {} and head['kernel'].shape == (hidden[-1], 9)
  expected = np.asarray(outputs[net.stages[-2]]['x'], np.float64) @ head['kernel'] + head['bias']
  _close(outputs['head'], expected)


@pytest.mark.parametrize('cell', CELLS)
@pytest.mark.parametrize(
  ('options', 'outputs', 'words'),
  [
    ({'tied': True, 'pool': 'none', 'hidden': [3, 4]}, 9, 'whose last layer is as wide as the embedding, 3'),
    ({'tied': True, 'pool': 'mean', 'hidden': [3]}, 9, "tied is for a language model .pool='none'."),
    ({'pool': 'none', 'both': True, 'hidden': [3]}, 9, "pool='none' answers at every place, .* both=False"),
    ({'pool': 'none', 'hidden': [3]}, {'a': 9, 'b': 9}, "pool='none' answers at every place, for one task"),
    ({'hidden': []}, 9, 'leaves nothing to read with'),
    ({'tied': True, 'pool': 'none', 'hidden': [3]}, 2, 'one of 9 tokens, and the labels are 2 classes'),
  ],
)
def test_what_no_language_model_can_be_is_refused_in_words(cell, options, outputs, words):
  with pytest.raises(UserError, match=f"network '{cell}': .*{words}"):
    build(cell, {'vocabulary': 9, 'embedding': 3, **options}, (8,), outputs)


@pytest.mark.parametrize('cell', CELLS)
def test_two_halves_with_the_state_carried_over_are_the_whole(cell):
  net = build(cell, {'vocabulary': 9, 'embedding': 3, 'hidden': [4, 5], 'pool': 'none'}, (8,), 9)
  variables = _random(net)

  @jax.jit
  def run(inputs):
    outputs = net.apply(variables, inputs)[0]
    return outputs['head'], outputs[net.stages[-2]].get('carry')

  whole, none = run(TEXTS)
  assert none is None
  carry = net.carry(len(TEXTS))
  assert set(carry) == {f'{cell}1', f'{cell}2'}
  assert all(not leaf.any() for leaf in jax.tree.leaves(carry))
  first, carry = run({'x': TEXTS[:, :4], 'carry': carry})
  second, end = run({'x': TEXTS[:, 4:], 'carry': carry})
  _close(jnp.concatenate([first, second], axis=1), whole, 1e-6)
  assert jax.tree.map(jnp.shape, end) == jax.tree.map(jnp.shape, net.carry(len(TEXTS)))
  _close(run({'x': TEXTS, 'carry': net.carry(len(TEXTS))})[1][f'{cell}2']['h'], end[f'{cell}2']['h'], 1e-6)
  # The second half by itself is another text.
  assert np.abs(run(TEXTS[:, 4:])[0] - second)[0].max() > 0.01
  for row in (1, 3):  # its second half is padding: the state stays
    jax.tree.map(lambda before, after, row=row: np.testing.assert_array_equal(before[row], after[row]), carry, end)


@pytest.mark.parametrize('cell', CELLS)
def test_a_network_that_reads_in_both_directions_carries_nothing(cell):
  assert _net(cell, hidden=[4], both=True).carry is None
