"""Transformers against their equations in float64 NumPy: attention, blocks, padding, and generation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from transferlab import paths, sampling
from transferlab.errors import UserError
from transferlab.networks import transformer
from transferlab.networks.network import build

pytestmark = pytest.mark.usefixtures('quick_compilation')
# Padding behind, before, in the middle, everywhere, nowhere.
MASK = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1], [0, 1, 0, 0, 1, 0], [0] * 6, [1] * 6], bool)
SIZES = {'vocabulary': 11, 'width': 8, 'depth': 2, 'heads': 4, 'hidden': 12}
LLAMA = {
  'positions': None,
  'rotary': 100.0,
  'norm': 'rms',
  'activation': 'silu',
  'gated': True,
  'biases': False,
  'groups': 2,
  'tied': False,
  'heads': 4,
}
NETWORKS = {
  'bert': ('bert', {'positions': 9}),
  'roberta': ('bert', {'positions': 10, 'first': 2, 'kinds': 1, 'pool': 'mean', 'pooler': 'none'}),
  'gpt2': ('decoder', {'positions': 9}),
  'llama': ('decoder', LLAMA),
}
LANGUAGE = {'gpt2': {'positions': 30}, 'llama': LLAMA, 'llama tied': {**LLAMA, 'tied': True, 'groups': 1}}


def _net(name, length=6, **options):
  network, own = NETWORKS[name]
  return build(network, {**SIZES, **own, **options}, (length,), 3)


def _language(name, **options):
  return build('decoder', {**SIZES, **LANGUAGE[name], 'pool': 'none', **options}, (6,), SIZES['vocabulary'])


def _drawn(net, seed=0):
  """Random numbers for all parameters, near 1 for scales."""
  random = np.random.default_rng(seed)
  draw = lambda path, leaf: random.normal(1.0 if path.endswith('scale') else 0.0, 0.4, leaf.shape)
  flat = {
    path: jnp.asarray(draw(path, leaf), jnp.float32) for path, leaf in paths.flatten(net.shapes()['params']).items()
  }
  return {'params': paths.unflatten(flat), 'stats': {}}


def _tokens(mask, seed=0):
  return np.where(mask, np.random.default_rng(seed).integers(0, 11, mask.shape), -1).astype(np.int32)


def _close(found, expected, share=1e-5):
  assert found.shape == expected.shape
  assert np.abs(found - expected).max() <= share * np.abs(expected).max(), np.abs(found - expected).max()


# ------------------------------------------------------------------------------------------------ equations, in NumPy
def _softmax(logits):
  weights = np.exp(logits - logits.max())
  return weights / weights.sum()


def _turned(x, position, base):
  """Su et al. 2021, eq. 34, as complex numbers: pairs of features are numbers that are turned by an angle."""
  half = len(x) // 2
  angles = position * base ** (-2 * np.arange(half) / len(x))
  turned = (x[:half] + 1j * x[half:]) * np.exp(1j * angles)
  return np.concatenate([turned.real, turned.imag])


def _attention(w, x, mask, heads, groups, causal, base):
  """Each place by itself; (outputs at real places, attention weights)."""
  layer = lambda name, row: row @ w[name]['kernel'] + w[name].get('bias', 0.0)
  out, weights = np.zeros(x.shape), np.zeros((len(x), heads, x.shape[1], x.shape[1]))
  size = x.shape[2] // heads
  for example in range(len(x)):
    real = np.flatnonzero(mask[example])
    for number, place in enumerate(real):
      seen, found = (real[: number + 1] if causal else real), []
      for head in range(heads):
        own, shared = (slice(index * size, (index + 1) * size) for index in (head, head * groups // heads))
        turn = (lambda v, at: _turned(v, at, base)) if base else (lambda v, at: v)
        query = turn(layer('query', x[example, place])[own], number)
        keys = [turn(layer('key', x[example, there])[shared], at) for at, there in enumerate(seen)]
        each = _softmax(np.array(keys) @ query / np.sqrt(size))
        weights[example, head, place, seen] = each
        found.append(each @ np.array([layer('value', x[example, there])[shared] for there in seen]))
      out[example, place] = layer('out', np.concatenate(found))
  return out, weights


def _params(module):
  pairs = nnx.to_flat_state(nnx.state(module, nnx.Param))
  return paths.unflatten({'/'.join(path): np.asarray(leaf[...], np.float64) for path, leaf in pairs})


def _redrawn(module, seed=0):
  random = np.random.default_rng(seed)
  draw = lambda leaf: jnp.asarray(random.normal(0, 0.5, leaf.shape), jnp.float32)
  nnx.update(module, jax.tree.map(draw, nnx.state(module, nnx.Param)))
  return module


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize(('groups', 'base', 'biases'), [(None, None, True), (2, 50.0, False), (1, 50.0, True)])
def test_attention_is_that_of_the_equations_fused_and_explicit(groups, base, biases, causal):
  x = np.random.default_rng(1).normal(size=(*MASK.shape, 16)).astype(np.float32)
  positions = jnp.maximum(jnp.cumsum(MASK, axis=1) - 1, 0)
  found = []
  for explicit in (False, True):
    module = transformer.Attention(
      16,
      4,
      nnx.Rngs(0),
      groups=groups,
      biases=biases,
      causal=causal,
      explicit=explicit,
      rotary=base and transformer.turns(4, base),
    )
    found.append(_redrawn(module)(jnp.asarray(x), jnp.asarray(MASK), positions))
  expected, weights = _attention(_params(module), np.float64(x), MASK, 4, groups or 4, causal, base)
  for out, _, _ in found:
    _close(np.asarray(out)[MASK], expected[MASK])
  assert found[0][1] is None
  _close(np.moveaxis(np.asarray(found[1][1]), 1, 2)[MASK], np.moveaxis(weights, 1, 2)[MASK])


@pytest.mark.parametrize('name', ['gelu', 'gelu_tanh', 'quick_gelu', 'relu', 'silu'])
def test_activations_are_those_of_their_papers(name):
  x = np.linspace(-4, 4, 41)
  expected = {
    'gelu': x * (1 + special.erf(x / np.sqrt(2))) / 2,
    'gelu_tanh': 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    'quick_gelu': x / (1 + np.exp(-1.702 * x)),
    'relu': np.maximum(x, 0),
    'silu': x / (1 + np.exp(-x)),
  }
  np.testing.assert_allclose(transformer.ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), expected[name], atol=2e-6)


@pytest.mark.parametrize('behind', [False, True])
@pytest.mark.parametrize('gated', [False, True])
def test_a_block_normalises_before_or_behind_its_branches(behind, gated):
  options = dict(behind=behind, mlp={'activation': 'silu', 'gated': gated}, layer_scale=0.5)
  rngs = nnx.Rngs(0)
  norm = lambda: transformer.layer_norm(8, rngs, 0.1)
  block = _redrawn(transformer.Block('block1', 8, 2, 12, rngs, norm=norm, **options))
  x = np.random.default_rng(2).normal(size=(2, 5, 8)).astype(np.float32)
  w = _params(block)

  def normal(layer, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.1) * layer['scale'] + layer['bias']

  silu = lambda x: x / (1 + np.exp(-x))
  linear = lambda layer, x: x @ layer['kernel'] + layer['bias']
  attend = lambda x: _attention(w['attention'], x, np.ones((2, 5), bool), 2, 2, False, None)[0]

  def feed(x):
    up, layer = linear(w['mlp']['up'], x), w['mlp']
    return linear(layer['down'], silu(linear(layer['gate'], x)) * up if gated else silu(up))

  expected = np.float64(x)
  for branch, number in ((attend, 1), (feed, 2)):
    own, factors = w[f'norm{number}'], w[f'scale{number}']['factors']
    if behind:
      expected = normal(own, expected + factors * branch(expected))
    else:
      expected = expected + factors * branch(normal(own, expected))
  found = block(jnp.asarray(x))
  assert not isinstance(found, dict)
  _close(np.asarray(found), expected)


# ------------------------------------------------------------------------------------------------------------ padding
@pytest.mark.parametrize('name', ['bert', 'roberta', 'gpt2', 'llama'])
def test_padding_anywhere_changes_nothing_and_receives_no_gradient(name):
  net, wide = _net(name), _net(name, 8)
  variables, tokens = _drawn(net), _tokens(MASK)
  shifted = np.full((len(MASK), 8), -1, np.int32)
  for row, text in enumerate(tokens):
    real = text[text >= 0]
    shifted[row, 8 - len(real) :] = real
  compiled = jax.jit(lambda x: net.apply(variables, x)[0]), jax.jit(lambda x: wide.apply(variables, x)[0])
  outputs, others = compiled[0](tokens), compiled[1](shifted)
  _close(np.asarray(others['head']), np.asarray(outputs['head']))
  _close(np.asarray(others['block2']['x'])[shifted >= 0], np.asarray(outputs['block2']['x'])[tokens >= 0])
  assert not np.asarray(outputs['block2']['x'])[tokens < 0].any()
  alone = compiled[0](np.repeat(tokens[2:3], len(tokens), axis=0))
  _close(np.asarray(alone['head'])[:1], np.asarray(outputs['head'])[2:3])

  def loss(x):
    given = {**outputs['embed'], 'x': x}
    return jnp.square(net.apply(variables, given, start='block1')[0]['head']).sum()

  slopes = np.asarray(jax.jit(jax.grad(loss))(outputs['embed']['x']))
  assert np.isfinite(slopes).all() and not slopes[tokens < 0].any()
  assert (np.abs(slopes[tokens >= 0]).max(axis=-1) > 0).all()


@pytest.mark.parametrize('name', ['bert', 'llama'])
def test_explicit_attention_changes_no_output_or_gradient(name):
  tokens, found = _tokens(MASK), []
  for explicit in (False, True):
    net = _net(name, explicit=explicit)

    def loss(params, net=net):
      outputs = net.apply({'params': params, 'stats': {}}, tokens)[0]
      return jnp.square(outputs['head']).sum(), outputs

    (_, outputs), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(_drawn(net)['params'])
    found.append((outputs, paths.flatten(slopes)))
  assert 'attention' not in found[0][0]['block1']
  weights = np.asarray(found[1][0]['block2']['attention'])
  assert weights.shape == (5, 4, 6, 6)
  real = np.moveaxis(weights, 1, 2)[MASK]
  np.testing.assert_allclose(real.sum(axis=-1), 1, atol=1e-5)
  _close(np.asarray(found[1][0]['head']), np.asarray(found[0][0]['head']))
  largest = max(np.abs(slope).max() for slope in found[0][1].values())
  for path, slope in found[0][1].items():
    assert np.abs(found[1][1][path] - slope).max() < 1e-5 * largest, path


def test_in_training_an_example_depends_on_its_own_key_only():
  options = dict(dropout=0.2, attention_dropout=0.2, stochastic_depth=0.3)
  net = _net('bert', **options)
  variables, tokens = _drawn(net), _tokens(MASK)
  keys = jax.random.split(jax.random.key(0), 5)
  run = jax.jit(lambda x, keys: net.apply(variables, x, train=True, key=keys)[0]['head'])
  whole, part = run(tokens, keys), run(tokens[::-1][:5], keys[::-1])
  _close(np.asarray(part), np.asarray(whole)[::-1])
  assert np.abs(whole - net.apply(variables, tokens)[0]['head']).max() > 1e-3


# ---------------------------------------------------------------------------------------------------------- generation
@pytest.mark.parametrize('name', LANGUAGE)
def test_reading_in_pieces_with_a_cache_gives_what_reading_at_once_gives(name):
  net = _language(name)
  variables, tokens = _drawn(net), _tokens(MASK)
  whole = np.asarray(jax.jit(lambda x: net.apply(variables, x)[0]['head'])(tokens))
  carry, pieces = net.cache(len(tokens), 7), []
  run = jax.jit(lambda x, carry: net.apply(variables, {'x': x, 'carry': carry})[0])
  for piece in (tokens[:, :3], tokens[:, 3:4], tokens[:, 4:5], tokens[:, 5:]):
    outputs = run(piece, carry)
    carry = outputs['norm']['carry']
    pieces.append(np.asarray(outputs['head']))
  _close(np.concatenate(pieces, axis=1)[MASK], whole[MASK])
  assert carry['embed']['before'].tolist() == MASK.sum(axis=1).tolist()


@pytest.mark.parametrize('name', LANGUAGE)
def test_greedy_texts_from_a_cache_are_those_of_reading_everything_anew(name):
  net = _language(name)
  variables, prompt = _drawn(net, 2), [3, 1, 4, 1, 5]
  taken = sampling.sample(net, variables, np.array(prompt), sampling.Sampling(length=12, temperature=0.0))
  text, apply = list(prompt), jax.jit(lambda tokens: net.apply(variables, tokens)[0]['head'])
  for _ in range(12):
    padded = [*text, *[-1] * (17 - len(text))]
    text.append(int(apply(jnp.array([padded], jnp.int32))[0, len(text) - 1].argmax()))
  assert taken.tolist() == text[5:] and len(set(text[5:])) > 2


def test_a_place_sees_none_behind_it():
  for name in LANGUAGE:
    net, tokens = _language(name), np.repeat(_tokens(np.ones((1, 6), bool)), 2, axis=0)
    tokens[1, 4] = (tokens[1, 4] + 1) % 11
    one, other = jax.jit(net.apply)(_drawn(net), tokens)[0]['head']
    np.testing.assert_allclose(other[:4], one[:4], atol=1e-6)
    assert np.abs(other[4:] - one[4:]).max(axis=-1).min() > 1e-3


def test_a_tied_head_has_no_parameters_of_its_own():
  net = _language('gpt2')
  assert 'head' not in net.shapes()['params'] and net.shared == {'head/embedding': 'embed/embedding'}
  assert net.stages == ('embed', 'block1', 'block2', 'norm', 'head') and net.positions == 30
  assert _net('gpt2').stages[-3:] == ('norm', 'pool', 'head') and _net('gpt2').cache is None
  assert _net('roberta').positions == 8 and _net('llama').positions is None


@pytest.mark.parametrize(
  ('network', 'options', 'length', 'message'),
  [
    ('bert', dict(positions=5), 6, 'texts of 6 tokens, and it has 5 positions; nearest: data.tokens.length=5'),
    ('bert', dict(positions=7, first=2), 6, 'it has 5 positions'),
    ('decoder', dict(positions=5), 6, 'it has 5 positions'),
    ('bert', dict(heads=3), 6, '3 heads do not divide a width of 8; nearest: heads=2'),
    ('decoder', dict(groups=3), 6, '3 groups do not divide 4 heads; nearest: groups=2'),
    ('decoder', dict(heads=8, rotary=10.0), 6, 'rotary turns pairs of features, and each head has 1'),
    ('decoder', dict(rotary=10.0, rotary_bands=[4.0, 1.0, 8.0]), 6, 'low below high'),
    ('decoder', dict(pool='none', causal=False), 6, 'causal=False lets it see'),
    ('decoder', dict(pool='none', head_bias=True), 6, 'the head of a language model has no bias'),
    ('decoder', dict(pool='none'), 6, "the labels are 3 classes; nearest: data.task='next_token', or pool='last'"),
  ],
)
def test_mistaken_options_end_in_one_message(network, options, length, message):
  with pytest.raises(UserError, match=message):
    build(network, {**SIZES, **options}, (length,), 3)


def test_images_are_no_texts():
  with pytest.raises(UserError, match=r"network 'bert' takes texts \[tokens\], not inputs \[8, 8, 3\]"):
    build('bert', SIZES, (8, 8, 3), 2)


@pytest.mark.parametrize(
  ('prompt', 'length', 'message'),
  [(5, 26, '5 tokens, 26 are to follow, and the network has 30 positions; nearest: length=25'),
   (31, 4, 'nearest: a prompt of 26 tokens')],
)  # fmt: skip
def test_more_tokens_than_positions_are_one_message(prompt, length, message):
  net = _language('gpt2')
  with pytest.raises(UserError, match=message):
    sampling.sample(net, {}, np.zeros(prompt, np.int32), sampling.Sampling(length=length))


def test_a_classifier_does_not_go_on_with_a_text():
  with pytest.raises(UserError, match="does not go on with a text; nearest: lstm, gru, decoder, with pool='none'"):
    sampling.sample(_net('gpt2'), {}, np.zeros(2, np.int32), sampling.Sampling(length=3))
