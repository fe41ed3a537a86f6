"""Texts with padding through embeddings, windows, recurrences and dropouts: padding changes and learns nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transferlab.errors import UserError
from transferlab.networks import sequences
from transferlab.networks.network import build, network

pytestmark = pytest.mark.usefixtures('quick_compilation')
VOCABULARY = 12
# No token 0 in any of them: it is what padding looks up. The last text is empty.
TEXTS = [[3, 5, 3], [1], [2, 7, 7, 4, 9, 1, 2, 11, 3, 8, 5, 10], [6, 1, 4, 4, 8], [9, 3, 2, 5, 1, 7, 6, 4], []]
EMPTY = len(TEXTS) - 1
CASES = [('textcnn', False), ('lstm', False), ('lstm', True), ('gru', False), ('gru', True)]


def _net(name, options=None, places=12, outputs=3):
  return build(name, {'vocabulary': VOCABULARY, 'embedding': 4, **(options or {})}, (places,), outputs)


def _random(net, seed=0, scale=0.6):
  """Random numbers for all weights: as they begin, biases are 0 or all the same."""
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, scale, leaf.shape), jnp.float32), net.shapes())


def _padded(texts, places=12):
  return np.array([[*text, *[-1] * (places - len(text))] for text in texts], np.int32)


def _close(found, expected, tolerance=1e-5):
  assert found.shape == expected.shape
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# ------------------------------------------------------------------------------------------------------ embedding
def test_tokens_become_their_rows_and_padding_zeros_wherever_it_stands():
  net = network(lambda rngs: {'embed': sequences.Embed(VOCABULARY, 4, rngs)})
  variables, tokens = _random(net), np.array([[-1, 3, 0, -1], [11, -1, -1, 11], [-1] * 4])
  found = net.apply(variables, tokens)[0]['embed']
  rows = np.asarray(variables['params']['embed']['embedding'])
  expected = [[rows[token] if token >= 0 else np.zeros(4) for token in text] for text in tokens]
  np.testing.assert_array_equal(found['x'], expected)
  np.testing.assert_array_equal(found['mask'], tokens >= 0)
  kept = net.apply(variables, {'x': tokens, 'carry': {'lstm1': 7}})[0]['embed']
  np.testing.assert_array_equal(kept['x'], expected)
  assert kept['carry'] == {'lstm1': 7}


# -------------------------------------------------------------------------------------------------------- windows
def _windows(x, mask):
  """Windows of 2 and 4 tokens, 3 filters each: a function of their weights and x, and random weights."""
  net = _net('textcnn', {'widths': [2, 4], 'filters': 3})
  params = _random(net)['params']['windows']

  def run(params, x):
    variables = {'params': {'windows': params}, 'stats': {}}
    return net.apply(variables, {'x': x, 'mask': mask}, start='windows', stop='head')[0]['windows']

  return run, params


def test_windows_are_pytorchs_convolution_of_each_text_without_padding():
  torch = pytest.importorskip('torch')
  tokens = _padded([text for text in TEXTS if text])
  mask = tokens >= 0
  x = np.where(mask[..., None], np.random.default_rng(1).normal(size=(*tokens.shape, 4)), 0).astype(np.float32)
  run, params = _windows(x, jnp.asarray(mask))
  cotangent = np.random.default_rng(2).normal(size=(len(tokens), 6)).astype(np.float32)

  expected, convolutions = [], {}
  texts = torch.tensor(x, requires_grad=True)
  for width in (2, 4):
    layer = convolutions[width] = torch.nn.Conv1d(4, 3, width, padding=width - 1)
    kernel = np.asarray(params[f'width{width}']['kernel']).reshape(width, 4, 3)
    layer.weight.data = torch.tensor(kernel.transpose(2, 1, 0).copy())
    layer.bias.data = torch.tensor(np.asarray(params[f'width{width}']['bias']))
    alone = [text[real].T[None] for text, real in zip(texts, torch.tensor(mask))]
    expected.append(torch.cat([torch.relu(layer(text)).amax(dim=-1) for text in alone]))
  expected = torch.cat(expected, dim=-1)
  (expected * torch.tensor(cotangent)).sum().backward()

  @jax.jit
  def ours(params, x):
    found, back = jax.vjp(run, params, x)
    return found, *back(jnp.asarray(cotangent))

  found, gradients, by_x = ours(params, x)
  _close(found, expected.detach().numpy())
  _close(np.asarray(by_x)[mask], texts.grad.numpy()[mask])
  for width, layer in convolutions.items():
    by_kernel = np.asarray(gradients[f'width{width}']['kernel']).reshape(width, 4, 3)
    _close(by_kernel.transpose(2, 1, 0), layer.weight.grad.numpy())
    _close(gradients[f'width{width}']['bias'], layer.bias.grad.numpy())


def test_a_filter_sees_every_token_at_each_of_its_places_and_zeros_beyond_the_text():
  x = np.random.default_rng(1).normal(size=(len(TEXTS), 12, 4)).astype(np.float32)
  mask = _padded(TEXTS) >= 0
  x[~mask] = 0
  run, params = _windows(x, jnp.asarray(mask))
  expected = np.zeros((len(TEXTS), 6))
  for row, text in enumerate(TEXTS):
    for at, width in enumerate([2, 4]):
      kernel, bias = (np.asarray(params[f'width{width}'][part], np.float64) for part in ('kernel', 'bias'))
      found = []
      for first in range(1 - width, len(text)):
        sums = bias.copy()
        for offset in range(width):
          if 0 <= first + offset < len(text):
            sums += x[row, first + offset] @ kernel[4 * offset : 4 * offset + 4]
        found.append(np.maximum(sums, 0))
      if text:
        expected[row, 3 * at : 3 * at + 3] = np.max(found, axis=0)
  _close(jax.jit(run)(params, x), expected)
  assert (expected[:EMPTY] > 0).any(axis=0).all()


# -------------------------------------------------------------------------------------------------------- padding
def _pools(name, both, places=12):
  """`run(params, inputs, start=None) -> {pool: logits}`, random parameters, and the name of the stage behind embed.

  The networks differ in their pools alone, so what comes before is the same, and is compiled once.
  """
  if name == 'textcnn':
    nets = {'max': _net(name, {'widths': [2, 3], 'filters': 5}, places)}
  else:
    options = {'hidden': [4, 3], 'both': both}
    nets = {pool: _net(name, {**options, 'pool': pool}, places) for pool in ('last', 'mean', 'max', 'concat')}
  net = nets['max']
  split = 'head' if name == 'textcnn' else 'pool'

  def run(params, inputs, start=None):
    variables = {'params': params['before'], 'stats': {}}
    before = net.apply(variables, inputs, start=start, stop=split)[0][net.stages[net.stages.index(split) - 1]]
    heads = {pool: {'params': {'head': head}, 'stats': {}} for pool, head in params['heads'].items()}
    return {pool: nets[pool].apply(head, before, start=split)[0]['head'] for pool, head in heads.items()}

  heads = {pool: _random(each, seed)['params']['head'] for seed, (pool, each) in enumerate(nets.items())}
  before = {stage: params for stage, params in _random(net)['params'].items() if stage != 'head'}
  return run, {'before': before, 'heads': heads}, net.stages[1]


@pytest.mark.parametrize(('name', 'both'), CASES)
def test_other_lengths_batches_and_orders_give_the_same_logits(name, both):
  (run, params, _), (other, _, _) = (_pools(name, both, places) for places in (12, 40))
  order = [EMPTY, 2, 0, 2, 4]
  here = jax.jit(run)(params, _padded(TEXTS))
  there = jax.jit(other)(params, _padded([TEXTS[i] for i in order], 40))
  for pool, logits in here.items():
    logits, elsewhere = np.asarray(logits), np.asarray(there[pool])
    _close(elsewhere, logits[order])
    # What is the same here differs from text to text, and of a text without tokens the head sees zeros.
    texts = np.delete(logits, EMPTY, axis=0)
    assert np.abs(texts[:, None] - texts[None]).max(axis=-1)[~np.eye(len(texts), dtype=bool)].min() > 1e-3
    np.testing.assert_array_equal(logits[EMPTY], params['heads'][pool]['bias'])
    np.testing.assert_array_equal(elsewhere[0], logits[EMPTY])


@pytest.mark.parametrize(('name', 'both'), CASES)
def test_padding_has_no_gradient(name, both):
  """Neither the row of the embedding that padding looks up, nor anything that stands at a padded place."""
  run, params, stage = _pools(name, both)
  embed, tokens = params['before']['embed'], _padded(TEXTS)
  mask = tokens >= 0

  def loss(params, x):
    found = run(params, {'x': x, 'mask': jnp.asarray(mask)}, stage)
    return sum(jnp.sin(logits + jnp.arange(3)).sum() for logits in found.values())

  @jax.jit
  def gradients(params, embed):
    net = _net(name)
    x, back = jax.vjp(
      lambda e: net.apply({'params': {'embed': e}, 'stats': {}}, tokens, stop=stage)[0]['embed']['x'], embed
    )
    by_params, by_x = jax.grad(loss, (0, 1))(params, x)
    return by_params, by_x, back(by_x)[0], back(jnp.ones_like(x))[0]

  params['before'].pop('embed')
  by_params, by_x, by_embed, counted = gradients(params, embed)
  assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(by_params))
  rows = np.asarray(by_embed['embedding'])
  assert (rows[0] == 0).all() and (rows[1:] != 0).any(axis=1).all()
  # Whatever stands behind: each row moves by what stands where its token does, and by nothing else.
  np.testing.assert_array_equal(counted['embedding'][:, 0], np.bincount(tokens[mask], minlength=VOCABULARY))
  if name == 'textcnn':
    # Filters at the end of a text reach over the zeros behind it, of 2 and 3 tokens: two places and no farther.
    mask[:, 1:] |= mask[:, :-1]
    mask[:, 1:] |= mask[:, :-1]
  assert (np.asarray(by_x)[~mask] == 0).all() and (np.asarray(by_x)[tokens >= 0] != 0).any()


# ------------------------------------------------------------------------------------------------------- dropouts
def _keys(number, seed=0):
  return jax.random.split(jax.random.key(seed), number)


@pytest.mark.parametrize('each', [False, True])
def test_locked_dropout_has_one_mask_for_all_places_of_an_example(each):
  net = network(lambda rngs: {'drop': sequences.LockedDropout(0.4)})
  variables, x = {'params': {}, 'stats': {}}, 1 + np.arange(50 * 3 * 40, dtype=np.float32).reshape(50, 3, 40)
  key = _keys(50) if each else jax.random.key(0)
  factors = np.asarray(net.apply(variables, x, train=True, key=key)[0]['drop']) / x
  np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1], x.shape), rtol=1e-6)
  assert len(np.unique(factors[:, 0] > 0, axis=0)) == 50
  dropped = factors[:, 0] == 0
  np.testing.assert_allclose(factors[:, 0][~dropped], 1 / 0.6, rtol=1e-6)
  assert abs(dropped.mean() - 0.4) < 5 * np.sqrt(0.4 * 0.6 / dropped.size)
  np.testing.assert_array_equal(net.apply(variables, x, key=key)[0]['drop'], x)


@pytest.mark.parametrize('each', [False, True])
def test_embed_dropout_drops_words_of_an_example_wherever_they_stand(each):
  net = _net('lstm', {'embed_dropout': 0.3, 'hidden': [4]}, 40)
  variables = _random(net)
  tokens = np.random.default_rng(0).integers(-1, VOCABULARY, (60, 40))
  key = _keys(60) if each else jax.random.key(0)
  kept, dropped = (net.apply(variables, tokens, train=t, key=key, stop='lstm1')[0]['embed']['x'] for t in (False, True))
  kept, dropped = np.asarray(kept), np.asarray(dropped)
  gone = np.full((60, VOCABULARY), np.nan)  # of an example's tokens
  for row, token in np.ndindex(gone.shape):
    at = tokens[row] == token
    if at.any():
      gone[row, token] = dropped[row, at][0, 0] == 0
      np.testing.assert_allclose(dropped[row, at], kept[row, at] * (1 - gone[row, token]) / 0.7, rtol=1e-6)
  assert (dropped[tokens < 0] == 0).all()
  assert len(np.unique(gone, axis=0)) > 50
  assert abs(np.nanmean(gone) - 0.3) < 5 * np.sqrt(0.3 * 0.7 / gone.size)


@pytest.mark.parametrize(
  ('option', 'where'),
  [('input_dropout', {'gru1'}), ('hidden_dropout', {'gru2', 'gru3'}), ('dropout', {'head'}), ('embed_dropout', set())],
)
def test_a_dropout_takes_features_from_the_stages_it_is_named_for_at_every_place(option, where):
  """What is dropped has no gradient, at any place of the text."""
  net = _net('gru', {'hidden': [4, 4, 4], 'pool': 'none', option: 0.5}, outputs=VOCABULARY)
  variables, mask = _random(net), jnp.ones((8, 5), bool)

  def loss(x, name):
    following = [*net.stages, None][net.stages.index(name) + 1]
    given = {'x': x, 'mask': mask}
    value = net.apply(variables, given, train=True, key=jax.random.key(0), start=name, stop=following)[0][name]
    return jnp.sin(value if name == 'head' else value['x']).sum()

  x = np.random.default_rng(0).normal(size=(8, 5, 4)).astype(np.float32)
  gradients = jax.jit(lambda x: {name: jax.grad(loss)(x, name) for name in net.stages[1:]})(x)
  for name, gradient in gradients.items():
    dropped = np.asarray(gradient) == 0
    assert (dropped == dropped[:, :1]).all()
    assert (0.2 if name in where else 0) <= dropped.mean() <= (0.8 if name in where else 0)
    assert (len(np.unique(dropped[:, 0], axis=0)) > 1) == (name in where)


@pytest.mark.parametrize(
  ('name', 'options', 'stage'),
  [
    ('textcnn', {'widths': [2], 'filters': 30, 'dropout': 0.2}, 'windows'),
    ('lstm', {'hidden': [30], 'pool': 'mean', 'dropout': 0.2}, 'pool'),
    ('gru', {'hidden': [30], 'pool': 'last', 'both': True, 'dropout': 0.2}, 'pool'),
  ],
)
def test_the_head_of_a_classifier_sees_features_dropped_one_by_one(name, options, stage):
  net = _net(name, options)
  run = jax.jit(lambda v, x, train: net.apply(v, x, train=train, key=jax.random.key(0))[0][stage], static_argnums=2)
  quiet, found = (np.asarray(run(_random(net), _padded(TEXTS[:EMPTY]), train)) for train in (False, True))
  dropped = found == 0
  np.testing.assert_allclose(found, np.where(dropped, 0, quiet / 0.8), rtol=1e-4, atol=1e-6)
  assert 0.05 < dropped[quiet != 0].mean() < 0.4
  assert len(np.unique(dropped, axis=0)) == EMPTY


DROPOUTS = [
  ('textcnn', {}),  # 0.5 before the head, as it is
  ('lstm', dict.fromkeys(['embed_dropout', 'input_dropout', 'hidden_dropout', 'dropout'], 0.4) | {'hidden': [6, 5]}),
  ('gru', {'embed_dropout': 0.4, 'input_dropout': 0.4, 'dropout': 0.4, 'both': True, 'pool': 'concat', 'hidden': [6]}),
]


@pytest.mark.parametrize(('name', 'options'), DROPOUTS)
def test_with_keys_of_its_own_an_example_does_not_depend_on_its_batch(name, options):
  order, keys = [4, 2, EMPTY, 2], _keys(len(TEXTS))
  variables = _random(_net(name, options))

  @jax.jit
  def run(tokens, keys):
    return _net(name, options, tokens.shape[1]).apply(variables, tokens, train=True, key=keys)[0]['head']

  whole = np.asarray(run(_padded(TEXTS), keys))
  _close(run(_padded([TEXTS[i] for i in order], 40), keys[jnp.array(order)]), whole[order])
  # The same text with another key is something else.
  other = np.asarray(run(_padded([TEXTS[4]] * 4, 40), _keys(4, seed=1)))
  assert np.abs(other - whole[4]).max(axis=1).min() > 1e-3
  assert len(np.unique(other.round(4), axis=0)) == 4


@pytest.mark.parametrize(('name', 'options'), DROPOUTS)
def test_in_evaluation_nothing_is_dropped(name, options):
  without = {**options, 'dropout': 0.0, **{part: 0.0 for part in options if part.endswith('_dropout')}}
  nets, tokens = [_net(name, given) for given in (options, without)], _padded(TEXTS)
  variables = _random(nets[0])
  found, expected = (
    jax.jit(lambda v, net=net, key=key: net.apply(v, tokens, key=key)[0]['head'])(variables)
    for net, key in zip(nets, (_keys(len(TEXTS)), None))
  )
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('widths', [[], [3, 3]])
def test_windows_of_no_width_or_of_one_twice_are_refused(widths):
  with pytest.raises(UserError, match='at least one, and none twice'):
    _net('textcnn', {'widths': widths})
