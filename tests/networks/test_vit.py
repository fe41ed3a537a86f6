"""Vision transformers: what their stages compute against loops from the papers' formulas, and mistakes in options."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transferlab import paths, transplant
from transferlab.errors import UserError
from transferlab.networks.network import build, configured

pytestmark = pytest.mark.usefixtures('quick_compilation')
SMALL = dict(width=8, depth=2, heads=2, hidden=12, patch=4)
SHAPE = (8, 12, 3)


def _drawn(network, seed=0):
  random = np.random.default_rng(seed)
  flat = paths.flatten(network.shapes()['params'])
  return {path: random.normal(0, 0.5, leaf.shape) for path, leaf in flat.items()}


def _run(network, drawn, x, **how):
  params = paths.unflatten({path: jnp.asarray(value, jnp.float32) for path, value in drawn.items()})
  with jax.default_matmul_precision('highest'):
    return network.apply({'params': params, 'stats': {}}, jnp.asarray(x, jnp.float32), **how)[0]


def _norm(x, drawn, at):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * drawn[f'{at}/scale'] + drawn[f'{at}/bias']


def _linear(x, drawn, at):
  return x @ drawn[f'{at}/kernel'] + drawn[f'{at}/bias']


def _block(x, drawn, at):
  """Dosovitskiy et al. 2021, eqs. 2 and 3, one head after the other."""
  seen, weights = np.zeros_like(x), []
  y = _norm(x, drawn, f'{at}/norm1')
  query, key, value = (_linear(y, drawn, f'{at}/attention/{name}') for name in ('query', 'key', 'value'))
  for head in (slice(0, 4), slice(4, 8)):
    logits = query[:, head] @ key[:, head].T / 2.0
    weights.append(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    seen[:, head] = weights[-1] @ value[:, head]
  x = x + _linear(seen, drawn, f'{at}/attention/out')
  hidden = _linear(_norm(x, drawn, f'{at}/norm2'), drawn, f'{at}/mlp/up')
  erf = np.vectorize(math.erf)
  return x + _linear(hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))), drawn, f'{at}/mlp/down'), np.stack(weights)


def test_stages_compute_what_the_formulas_say_on_images_that_are_no_squares():
  network = build('vit', {**SMALL, 'registers': 1, 'explicit': True}, SHAPE, 3)
  drawn, x = _drawn(network), np.random.default_rng(1).normal(size=(2, *SHAPE))
  outputs = _run(network, drawn, x)
  for number, image in enumerate(x):
    patches = np.stack([
      np.einsum('hwc,hwcd->d', image[4 * r : 4 * r + 4, 4 * c : 4 * c + 4], drawn['embed/patch/kernel'])
      + drawn['embed/patch/bias'] + drawn['embed/position'][r, c]
      for r in range(2) for c in range(3)
    ])  # fmt: skip
    first = drawn['embed/class_token'] + drawn['embed/prefix_position'][0]
    tokens = np.concatenate([first[None], drawn['embed/registers'], patches])
    np.testing.assert_allclose(outputs['embed'][number], tokens, atol=1e-5)
    for block in ('block1', 'block2'):
      tokens, weights = _block(tokens, drawn, block)
      np.testing.assert_allclose(outputs[block]['x'][number], tokens, atol=2e-5 * np.abs(tokens).max())
      np.testing.assert_allclose(outputs[block]['attention'][number], weights, atol=1e-5)
    logits = _linear(_norm(tokens[0], drawn, 'pool/norm'), drawn, 'head')
    np.testing.assert_allclose(outputs['head'][number], logits, atol=5e-5 * np.abs(logits).max())


def test_the_fused_path_gives_what_explicit_weights_give():
  fused, explicit = (build('vit', {**SMALL, 'explicit': way}, SHAPE, 3) for way in (False, True))
  drawn, x = _drawn(fused), np.random.default_rng(1).normal(size=(2, *SHAPE))
  np.testing.assert_allclose(_run(fused, drawn, x)['head'], _run(explicit, drawn, x)['head'], rtol=1e-4, atol=1e-5)


def test_rates_of_stochastic_depth_rise_and_whole_branches_are_left_out():
  network = build('vit', {**SMALL, 'depth': 3, 'stochastic_depth': 0.6}, SHAPE, 3)
  drawn, x = _drawn(network), np.random.default_rng(1).normal(size=(1, *SHAPE)).repeat(400, axis=0)
  keys = jax.random.split(jax.random.key(0), 400)
  outputs, plain = _run(network, drawn, x, train=True, key=keys), _run(network, drawn, x)
  np.testing.assert_allclose(outputs['block1'], plain['block1'], rtol=1e-5)
  for block, rate in (('block2', 0.3), ('block3', 0.6)):
    ways = np.unique(np.asarray(outputs[block])[:, 0, 0].round(3))
    unchanged = np.abs(np.asarray(outputs[block]) - np.asarray(outputs[f'block{int(block[-1]) - 1}'])).max((1, 2)) == 0
    assert len(ways) >= 4
    assert abs(unchanged.mean() - rate**2) < 0.08  # both branches left out


def test_a_slice_in_training_draws_what_the_whole_draws():
  network = build('vit', {**SMALL, 'dropout': 0.3, 'attention_dropout': 0.3, 'stochastic_depth': 0.5}, SHAPE, 3)
  drawn, x = _drawn(network), np.random.default_rng(1).normal(size=(2, *SHAPE))
  keys = jax.random.split(jax.random.key(0), 2)
  whole = _run(network, drawn, x, train=True, key=keys)
  part = _run(network, drawn, whole['block1'], train=True, key=keys, start='block2')
  np.testing.assert_allclose(part['head'], whole['head'], rtol=1e-5)
  assert np.abs(whole['head'] - _run(network, drawn, x)['head']).max() > 0.01


def test_bfloat16_and_rematerialisation_reach_every_block():
  network = configured(build('vit', SMALL, SHAPE, 3), 'bfloat16', 'block.*')
  drawn, x = _drawn(network), np.random.default_rng(1).normal(size=(2, *SHAPE))
  exact, rough = _run(build('vit', SMALL, SHAPE, 3), drawn, x)['head'], _run(network, drawn, x)['head']
  assert rough.dtype == jnp.float32 and 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


def test_the_plan_of_a_vit_b_carried_to_another_resolution_accounts_for_every_byte():
  """From shapes alone: nothing is allocated."""
  source, target = build('vit', {}, (224, 224, 3), 1000), build('vit', {}, (384, 256, 3), 10)
  rules = [('embed/position', 'resize'), ('head', 'init'), ('.*', 'copy')]
  made = transplant.plan(source.shapes(), target.shapes(), rules, stages=target.stages)
  total = 85_798_656 + (24 * 16 - 14 * 14) * 768 + 7690  # of the ViT-B/16 without its head
  resized = 24 * 16 * 768
  expected = f'copy {12 * 16 + 6} leaves, {(total - resized - 7690) / total:.2%} of the bytes; '
  expected += f'resize 1 leaves, {resized / total:.2%} of the bytes; init 2 leaves, {7690 / total:.2%} of the bytes'
  assert made.lines()[-1] == f'parameters: {expected}'


@pytest.mark.parametrize(
  ('shape', 'options', 'message'),
  [
    ((10, 12, 3), SMALL, r'patches of 4 pixels do not divide images of 10×12; nearest: 8×12'),
    ((8,), SMALL, 'takes images'),
    ((3, 12, 3), SMALL, 'smallest that fit are 4×4'),
    (SHAPE, {**SMALL, 'heads': 3}, 'heads=3 do not divide the width 8; nearest: heads=2'),
    (SHAPE, {**SMALL, 'class_token': False}, "needs class_token=True; nearest: pool='mean'"),
    (SHAPE, {**SMALL, 'size': 'M'}, 'size'),
    (SHAPE, {**SMALL, 'registers': -1}, 'registers'),
    (SHAPE, {**SMALL, 'hidden_size': 4}, 'nearest: hidden'),
  ],
)
def test_mistakes_in_options_are_one_message(shape, options, message):
  with pytest.raises(UserError, match=message):
    build('vit', options, shape, 3)
