"""ImageNet ResNets, BiT, MobileNet v2, ConvNeXt: published sizes, stages, partial depth; parity is in tests/weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transferlab import paths
from transferlab.errors import UserError
from transferlab.networks import bit
from transferlab.networks.mobilenet_v2 import rounded
from transferlab.networks.network import build

pytestmark = pytest.mark.usefixtures('quick_compilation')
LARGE = [192, 384, 768, 1536]


def _variables(net, seed=0):
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.1, 0.5, leaf.shape), leaf.dtype), net.shapes())


def _sides(net, side):
  outputs = jax.eval_shape(lambda v, x: net.apply(v, x)[0], net.shapes(), jnp.ones((1, side, side, 3)))
  return {name: value.shape[1:] for name, value in outputs.items()}


@pytest.mark.parametrize(
  ('name', 'options', 'parameters'),
  [
    *[('imagenet_resnet', dict(depth=18), 11_689_512), ('imagenet_resnet', dict(depth=34), 21_797_672)],
    *[('imagenet_resnet', dict(), 25_557_032), ('imagenet_resnet', dict(depth=101), 44_549_160)],
    *[('imagenet_resnet', dict(depth=152), 60_192_808), ('imagenet_resnet', dict(widening=2), 68_883_240)],
    ('imagenet_resnet', dict(depth=101, widening=2), 126_886_696),
    *[('bit', dict(), 25_549_352), ('bit', dict(width=192), 217_319_080)],
    *[('mobilenet_v2', dict(), 3_504_872), ('mobilenet_v2', dict(width=1.4), 6_108_776)],
    *[('convnext', dict(), 28_589_128), ('convnext', dict(depths=[3, 3, 27, 3], widths=LARGE), 197_767_336)],
  ],
)
def test_it_has_as_many_parameters_as_is_published(name, options, parameters):
  """By torchvision and timm, for a thousand classes."""
  shapes = build(name, options, (224, 224, 3), 1000).shapes()
  assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes['params'])) == parameters


@pytest.mark.parametrize(
  ('name', 'options', 'stages'),
  [
    ('imagenet_resnet', dict(depth=18, width=2), 8),
    ('imagenet_resnet', dict(width=2, blocks=4), 4),
    ('bit', dict(width=32, blocks=4), 4),
    ('mobilenet_v2', dict(width=0.1, blocks=3), 3),
    ('convnext', dict(depths=[2, 1], widths=[4, 6]), 3),
  ],
)
def test_stages_are_in_order_and_fewer_blocks_are_the_first_part_of_the_network(name, options, stages):
  net = build(name, options, (32, 32, 3), {'a': 2, 'b': 3})
  assert net.stages == ('stem', *(f'block{number}' for number in range(1, stages + 1)), 'pool', 'head')
  whole = {key: value for key, value in options.items() if key != 'blocks'}
  if name != 'convnext':
    all_shapes = paths.flatten(build(name, whole, (32, 32, 3), {'a': 2, 'b': 3}).shapes()['params'])
    for path, leaf in paths.flatten(net.shapes()['params']).items():
      assert path.startswith(('head', 'pool')) or all_shapes[path].shape == leaf.shape
  outputs, _ = jax.jit(net.apply)(_variables(net), jnp.ones((2, 32, 32, 3)))
  assert {task: value.shape for task, value in outputs['head'].items()} == {'a': (2, 2), 'b': (2, 3)}


@pytest.mark.parametrize('side', [64, 61])
def test_every_stride_of_resnets_and_mobilenets_rounds_up(side):
  found = _sides(build('imagenet_resnet', dict(width=2), (side, side, 3), 2), side)
  blocks = ('stem', 'block3', 'block4', 'block7', 'block8', 'block13', 'block14', 'block16')
  assert [found[name][0] for name in blocks] == [16, 16, 8, 8, 4, 4, 2, 2]
  assert [found[name][-1] for name in blocks] == [2, 8, 16, 16, 32, 32, 64, 64]
  for padding in ('both', 'same'):
    found = _sides(build('mobilenet_v2', dict(width=0.1, padding=padding), (side, side, 3), 2), side)
    assert [found[f'block{n}'][0] for n in (1, 2, 3, 4, 6, 7, 13, 14, 17)] == [-(-side // 2), 16, 16, 8, 8, 4, 4, 2, 2]
    assert found['last'] == (2, 2, 1280)


@pytest.mark.parametrize(
  ('channels', 'expected'), [(1, 8), (8, 8), (11.2, 16), (32 * 0.35, 16), (24 * 0.35, 8), (33.6, 32), (1792, 1792)]
)
def test_channels_are_multiples_of_eight_and_never_less_than_nine_tenths(channels, expected):
  assert rounded(channels) == expected
  assert rounded(channels) >= 0.9 * channels


def test_the_last_convolution_of_mobilenet_v2_is_never_narrower_than_at_width_one():
  widths = {width: build('mobilenet_v2', dict(width=width), (32, 32, 3), 2).shapes() for width in (0.35, 1.4)}
  found = {width: shapes['params']['head']['kernel'].shape[0] for width, shapes in widths.items()}
  assert found == {0.35: 1280, 1.4: 1792}


def test_a_standardised_kernel_has_mean_zero_and_variance_one_but_for_what_is_added_to_its_variance():
  """Qiao et al. 2019 in float64, for a filter whose variance is as small as what is added."""
  random = np.random.default_rng(0)
  conv = bit.StandardConv(2, 3, 3, rngs=nnx.Rngs(0))
  kernel = random.normal(size=(3, 3, 2, 3)) * [1e-5, 1, 3] + [0, 5, 0]
  conv.kernel[...] = jnp.asarray(kernel, jnp.float32)
  x = random.normal(size=(1, 3, 3, 2))
  deviation = np.sqrt(kernel.var(axis=(0, 1, 2)) + 1e-10)
  expected = np.einsum('hwi,hwio->o', x[0], (kernel - kernel.mean(axis=(0, 1, 2))) / deviation)
  np.testing.assert_allclose(conv(jnp.asarray(x, jnp.float32))[0, 1, 1], expected, rtol=1e-4, atol=1e-4)


def test_the_pool_of_convnext_normalises_the_mean_and_its_blocks_begin_as_the_identity():
  net = build('convnext', dict(depths=[1, 1], widths=[4, 6]), (32, 32, 3), 2)
  variables = net.init(jax.random.key(0))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
  outputs, _ = net.apply(variables, x)
  np.testing.assert_allclose(outputs['block1'], outputs['stem'], atol=1e-5)
  mean = np.asarray(outputs['block2'], np.float64).mean((1, 2))
  expected = (mean - mean.mean(-1, keepdims=True)) / np.sqrt(mean.var(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(outputs['pool'], expected, atol=1e-4)


def test_statistics_of_keras_networks_move_by_their_momentum():
  net = build('mobilenet_v2', dict(width=0.1, blocks=1, momentum=0.999), (8, 8, 3), 2)
  variables = _variables(net)
  x = jnp.ones((2, 8, 8, 3))
  _, moved = net.apply(variables, x, statistics={'stem'})
  before, after = (tree['stem']['norm']['mean'] for tree in (variables['stats'], moved))
  _, replaced = build('mobilenet_v2', dict(width=0.1, blocks=1, momentum=0.5), (8, 8, 3), 2).apply(
    variables, x, statistics={'stem'}
  )
  batch = 2 * replaced['stem']['norm']['mean'] - before
  np.testing.assert_allclose(after, 0.999 * before + 0.001 * batch, rtol=1e-5)


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('imagenet_resnet', dict(depth=18, blocks=9), 'depth 18 has 8 blocks, not 9; nearest: 8'),
    ('imagenet_resnet', dict(depth=34, widening=2), 'depth 34 has no bottlenecks that widening=2'),
    ('imagenet_resnet', dict(depth=18, stride_on='1x1'), "no bottlenecks that stride_on='1x1'"),
    ('imagenet_resnet', dict(depth=20), 'depth'),
    ('bit', dict(width=48), 'width is a multiple of 32, not 48; nearest: 64'),
    ('bit', dict(blocks=17), 'depth 50 has 16 blocks, not 17'),
    ('mobilenet_v2', dict(blocks=18), 'blocks'),
    ('mobilenet_v2', dict(padding='valid'), 'padding'),
    ('convnext', dict(depths=[1, 1]), r'depths and widths are of the same groups, not \[1, 1\]'),
    ('convnext', dict(), 'of 30×30 pixels; the smallest that fit are 32×32'),
  ],
)
def test_impossible_options_and_images_are_one_message(name, options, message):
  with pytest.raises(UserError, match=message):
    build(name, options, (30, 30, 3), 2)


@pytest.mark.parametrize('name', ['imagenet_resnet', 'bit', 'mobilenet_v2', 'convnext'])
def test_what_is_no_image_is_refused(name):
  with pytest.raises(UserError, match='takes images'):
    build(name, {}, (30,), 2)
