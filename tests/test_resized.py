"""Weights at another resolution: against the formulas in float64, timm, and networks at both resolutions."""

import jax
import numpy as np
import peers
import pytest

from transferlab import paths, resized, transplant
from transferlab.errors import UserError
from transferlab.networks import network as networks

pytestmark = pytest.mark.usefixtures('quick_compilation')

RANDOM = np.random.default_rng(0)
SMALL = dict(width=12, depth=1, heads=2, hidden=16, registers=2)


def _cubic(t, a=-0.5):
  t = np.abs(t)
  near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
  return np.where(t <= 1, near, np.where(t < 2, far, 0))


def _matrix(old, new, kernel, reach):
  """[new, old]: the kernel around each new place, as wide as the new places are apart, weights adding up to one."""
  scale = max(old / new, 1)
  centres = (np.arange(new) + 0.5) * old / new - 0.5
  weights = kernel((np.arange(old) - centres[:, None]) / scale)
  assert reach >= 1
  return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize('shape', [(7, 4), (3, 9), (5, 5), (14, 2)])
def test_positions_are_bicubic_and_blurred_where_the_grid_shrinks(shape):
  grid = RANDOM.normal(size=(5, 6, 3))
  rows, columns = (_matrix(old, new, _cubic, 2) for old, new in zip(grid.shape, shape))
  expected = np.einsum('ar,bc,rcd->abd', rows, columns, grid)
  np.testing.assert_allclose(resized.with_grid(np.float32(grid), *shape), expected, atol=2e-6)


@pytest.mark.parametrize('shape', [(24, 16), (7, 9)])
def test_positions_are_those_of_timm(shape):
  torch = pytest.importorskip('torch')
  peers.torchvision()
  timm = pytest.importorskip('timm.layers')
  grid = RANDOM.normal(size=(14, 14, 8)).astype(np.float32)
  given = torch.tensor(grid.reshape(1, -1, 8))
  expected = timm.resample_abs_pos_embed(given, list(shape), [14, 14], num_prefix_tokens=0).numpy().reshape(*shape, 8)
  np.testing.assert_allclose(resized.with_grid(grid, *shape), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize('size', [4, 8, 11])
def test_patches_are_the_pseudo_inverse_of_their_resizing(size):
  kernel = RANDOM.normal(size=(6, 6, 3, 5))
  linear = lambda t: np.maximum(1 - np.abs(t), 0)
  one = _matrix(6, size, linear, 1)
  larger = np.kron(one, one)
  expected = np.linalg.pinv(larger.T) @ kernel.reshape(36, -1)
  found = np.asarray(resized.with_patches(np.float32(kernel), size))
  np.testing.assert_allclose(found, expected.reshape(size, size, 3, 5), atol=1e-5 * np.abs(expected).max())
  if size >= 6:  # larger patches answer what the smaller ones did
    patch = RANDOM.normal(size=(36, 3))
    answers = [np.einsum('pc,pco->o', patch, kernel.reshape(36, 3, 5)),
               np.einsum('pc,pco->o', larger @ patch, found.reshape(-1, 3, 5))]  # fmt: skip
    np.testing.assert_allclose(*answers, rtol=1e-4)


@pytest.mark.parametrize('size', [8, 24])
def test_patches_are_those_of_timm(size):
  torch = pytest.importorskip('torch')
  peers.torchvision()
  timm = pytest.importorskip('timm.layers')
  kernel = RANDOM.normal(size=(16, 16, 3, 4)).astype(np.float32)
  given = torch.tensor(np.moveaxis(kernel, (0, 1), (2, 3)).swapaxes(0, 1).copy())
  expected = timm.resample_patch_embed(given, [size, size], 'bilinear', True).numpy()
  found = np.moveaxis(resized.with_patches(kernel, size), (0, 1), (2, 3)).swapaxes(0, 1)
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


RULES = [('embed/position', 'resize'), ('embed/patch/kernel', 'resize'), ('head', 'init'), ('.*', 'copy')]


def _vit(shape, classes, **options):
  network = networks.build('vit', {**SMALL, 'patch': 8, **options}, shape, classes)
  return network, network.init(jax.random.key(classes))


def test_a_vit_at_another_resolution_patch_and_number_of_classes_is_carried_and_told():
  (_, source), (network, target) = _vit((32, 32, 3), 7), _vit((24, 48, 3), 4, patch=6)
  made = transplant.plan(source, target, RULES, stages=network.stages)
  actions = {origin.path: origin.action for origin in made.origins}
  carried = {path for path, action in actions.items() if action == 'resize'}
  assert carried == {'embed/position', 'embed/patch/kernel'}
  assert {path for path, action in actions.items() if action == 'init'} == {'head/kernel', 'head/bias'}
  new = transplant.apply(made, source, target)
  flat, old = paths.flatten(new['params']), paths.flatten(source['params'])
  np.testing.assert_array_equal(flat['embed/position'], resized.with_grid(old['embed/position'], 4, 8))
  np.testing.assert_array_equal(flat['embed/patch/kernel'], resized.with_patches(old['embed/patch/kernel'], 6))
  for path in ('embed/class_token', 'embed/registers', 'embed/prefix_position', 'block1/attention/query/kernel'):
    np.testing.assert_array_equal(flat[path], old[path])
  sizes = {path: leaf.size for path, leaf in flat.items()}
  share = lambda chosen: f'{sum(sizes[path] for path in chosen) / sum(sizes.values()):.2%}'
  assert f'resize 2 leaves, {share(carried)} of the bytes' in made.lines()[-1]
  assert f'init 2 leaves, {share(["head/kernel", "head/bias"])} of the bytes' in made.lines()[-1]


def test_what_is_measured_of_the_sources_parameters_is_never_resized():
  """Fisher information is not negative, and bicubic weights are."""
  (_, source), (network, target) = _vit((32, 32, 3), 7), _vit((24, 48, 3), 4, patch=6)
  made = transplant.plan(source, target, RULES, stages=network.stages)
  values = jax.tree.map(lambda leaf: jax.random.uniform(jax.random.key(0), leaf.shape) + 0.1, source['params'])
  found = paths.flatten(transplant.carried(made, values, target['params']))
  assert not found['embed/position'].any() and not found['embed/patch/kernel'].any()
  np.testing.assert_array_equal(found['embed/class_token'], paths.flatten(values)['embed/class_token'])


def test_resizing_to_the_same_shape_is_a_copy():
  (_, source), (_, target) = _vit((32, 32, 3), 7), _vit((32, 32, 3), 4)
  made = transplant.plan(source, target, RULES)
  assert {origin.action for origin in made.origins} == {'copy', 'init'}


@pytest.mark.parametrize(
  ('shape', 'options', 'rules', 'message'),
  [
    ((48, 32, 3), {}, [('head', 'init'), ('.*', 'copy')], "('embed/position', 'resize')"),
    ((32, 32, 3), dict(hidden=8), [('head', 'init'), ('.*', 'resize')], 'positions of patches'),
    ((32, 32, 1), {}, [('head', 'init'), ('.*', 'resize')], 'kernel of patches'),
    ((32, 32, 3), {}, [('head', 'init'), ('.*', 'resize:8')], 'unknown action'),
  ],
)
def test_what_cannot_be_resized_is_refused(shape, options, rules, message):
  (_, source), (network, target) = _vit((32, 32, 3), 7), _vit(shape, 7, **options)
  with pytest.raises(UserError) as error:
    transplant.plan(source, target, rules, stages=network.stages)
  assert message in str(error.value)
