"""Rules on the way in: classes chosen, input channels changed, depth that differs; and what each of them refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transferlab import paths, transplant
from transferlab.errors import UserError
from transferlab.networks import network as networks

pytestmark = pytest.mark.usefixtures('quick_compilation')


def _variables(channels=3, outputs=5, depth=8, seed=0):
  network = networks.build('resnet', {'depth': depth, 'width': 2}, (8, 8, channels), outputs)
  random = np.random.default_rng(seed)
  drawn = {k: jnp.asarray(random.normal(size=v.shape), jnp.float32) for k, v in paths.flatten(network.shapes()).items()}
  return paths.unflatten(drawn)


def _transplanted(rules, source, target):
  made = transplant.plan(source, target, rules)
  return made, paths.flatten(transplant.apply(made, source, target)['params'])


HEAD_ONLY = [('head', 'init'), ('.*', 'copy')]


# ----------------------------------------------------------------------------------------------------------- classes
def test_a_head_is_sliced_to_the_classes_that_are_named_in_their_order():
  source, target = _variables(outputs=5), _variables(outputs=3, seed=1)
  made, found = _transplanted([('head', 'classes:4,0, 2'), ('.*', 'copy')], source, target)
  for name in ('kernel', 'bias'):
    np.testing.assert_array_equal(found[f'head/{name}'], np.asarray(source['params']['head'][name])[..., [4, 0, 2]])
  origin = next(o for o in made.origins if o.path == 'head/kernel')
  assert (origin.action, origin.rows) == ('classes', ((0, 4), (1, 0), (2, 2)))
  assert 'head/kernel' in made.copied()


@pytest.mark.parametrize(
  ('action', 'message'),
  [
    ('classes:1,2', r'head/bias has shape \(3,\); 2 classes of head/bias \(5,\) do not fill it'),
    ('classes:1,2,5', r'head/bias: classes \[1, 2, 5\], and the source has 0 to 4, each once'),
    ('classes:1,2,2', r'each once'),
    ('classes:1,²,3', 'numbers of classes are needed'),
    ('classes:1,two,3', r"'classes:1,two,3' for head/bias: numbers of classes are needed"),
    ('classes:', r"unknown action 'classes:' for 'head'; there are 'copy'"),
    ('classes', r"unknown action 'classes'"),
    ('partial:x', r"unknown action 'partial:x'"),
    ('copy:', r"unknown action 'copy:'"),
    ('slice:1', r"unknown action 'slice:1'"),
  ],
)
def test_classes_that_cannot_be_are_refused(action, message):
  with pytest.raises(UserError, match=message):
    transplant.plan(_variables(outputs=5), _variables(outputs=3), [('head', action), ('.*', 'copy')])


# ---------------------------------------------------------------------------------------------------------- channels
def _expected(kernel, channels, way):
  """By loops, in float64."""
  kernel = np.asarray(kernel, np.float64)
  given, made = kernel.shape[2], np.zeros((*kernel.shape[:2], channels, kernel.shape[3]))
  for j in range(channels):
    if way == 'sum':
      made[:, :, j] = sum(kernel[:, :, i] for i in range(given)) / channels
    elif way == 'tile':
      made[:, :, j] = kernel[:, :, j % given] * given / channels
    elif j < given:
      made[:, :, j] = kernel[:, :, j]
  return made


@pytest.mark.parametrize('way', ['sum', 'tile', 'zero'])
@pytest.mark.parametrize('channels', [1, 2, 4, 6])
def test_a_first_convolution_takes_another_number_of_channels(way, channels):
  if way == 'zero' and channels < 3:
    pytest.skip('zero adds channels')
  source, target = _variables(channels=3), _variables(channels=channels, seed=1)
  made, found = _transplanted([('stem', f'channels:{way}'), *HEAD_ONLY], source, target)
  kernel = source['params']['stem']['conv']['kernel']
  np.testing.assert_allclose(found['stem/conv/kernel'], _expected(kernel, channels, way), rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(found['stem/norm/scale'], source['params']['stem']['norm']['scale'])
  assert any(f'channels:{way}' in line for line in made.lines())


def test_a_summed_convolution_answers_to_grey_as_it_did_to_grey_in_three_channels():
  source, target = _variables(channels=3), _variables(channels=1, seed=1)
  _, found = _transplanted([('stem', 'channels:sum'), *HEAD_ONLY], source, target)
  grey = np.random.default_rng(2).normal(size=(2, 8, 8, 1)).astype(np.float32)
  answer = lambda x, kernel: jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  before = answer(np.repeat(grey, 3, axis=3), source['params']['stem']['conv']['kernel'])
  np.testing.assert_allclose(answer(grey, found['stem/conv/kernel']), before, atol=1e-5)


def test_channels_that_agree_are_copied():
  source, target = _variables(), _variables(seed=1)
  made, found = _transplanted([('stem', 'channels:sum'), ('.*', 'copy')], source, target)
  np.testing.assert_array_equal(found['stem/conv/kernel'], source['params']['stem']['conv']['kernel'])
  assert next(o.action for o in made.origins if o.path == 'stem/conv/kernel') == 'copy'


@pytest.mark.parametrize(
  ('rules', 'channels', 'message'),
  [
    ([('stem', 'channels:som')], 1, r'unknown way of channels for .stem.: .som.; nearest: sum'),
    ([('stem', 'channels:zero')], 1, r'channels:zero adds channels, and 1 are less than 3'),
    ([('block1', 'channels:sum')], 3, r'block1/conv1/kernel: channels:sum is for a convolution'),
    ([], 1, r"stem/conv/kernel has shape .* give it another origin, for example \('stem', 'channels:sum'\)"),
  ],
)
def test_channels_that_cannot_be_are_refused(rules, channels, message):
  source, target = _variables(outputs=5), _variables(channels=channels, outputs=4)
  if rules and rules[0][0] == 'block1':
    source['params']['block1']['conv1']['kernel'] = jnp.zeros((5, 5, 2, 2))
  with pytest.raises(UserError, match=message):
    transplant.plan(source, target, [*rules, *HEAD_ONLY])


# ------------------------------------------------------------------------------------------------------------- depth
def test_partial_copies_what_the_source_has_and_says_what_is_new():
  source, target = _variables(depth=8), _variables(depth=14, seed=1)
  source['params']['block2'], source['stats']['block2'] = (target[kind]['block2'] for kind in ('params', 'stats'))
  source = {kind: {**source[kind]} for kind in source}
  del source['params']['block3'], source['stats']['block3']
  made, found = _transplanted([('head', 'init'), ('.*', 'partial')], source, target)
  np.testing.assert_array_equal(found['block1/conv1/kernel'], source['params']['block1']['conv1']['kernel'])
  np.testing.assert_array_equal(found['block5/conv1/kernel'], target['params']['block5']['conv1']['kernel'])
  assert made.notes == ("partial '.*': from the source stem, block1, block2; new block3, block4, block5, block6",)
  stats = {o.path: o.action for o in made.origins if o.kind == 'stats'}
  assert (stats['block1/norm1/mean'], stats['block5/norm1/mean']) == ('copy', 'init')


def test_partial_still_refuses_shapes_that_differ():
  with pytest.raises(UserError, match=r'head/bias has shape \(3,\), head/bias of the source \(5,\)'):
    transplant.plan(_variables(outputs=5), _variables(outputs=3), [('.*', 'partial')])
