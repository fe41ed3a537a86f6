"""Tables of names as such: complete, one name a leaf, and back; what differs in one array is of no family."""

import jax
import numpy as np
import pytest

from transferlab import paths
from transferlab.networks.network import build
from transferlab.weights import layouts
from transferlab.weights.names import mobilenet, resnet, squeezenet, vgg

ORIGINS = (*resnet.ORIGINS, *vgg.ORIGINS, *mobilenet.ORIGINS, *squeezenet.ORIGINS)


def _recognised(arrays):
  shapes = {name: tuple(np.shape(array)) for name, array in arrays.items()}
  return [(origin, options) for origin in ORIGINS if (options := origin.options(shapes)) is not None]


OPTIONS = {
  'resnet': [{}, dict(depth=8, shortcut='B', width=4), dict(depth=14, features=9)],
  'vgg': [{}, dict(depth=11, width=2, pool='average', features=[3]), dict(depth=19, blocks=2, width=2, features=[])],
  'mobilenet': [{}, dict(width=0.25, blocks=4, features=[7, 5])],
  'squeezenet': [{}, dict(blocks=3, head_type='convolution')],
}
CASES = [(origin, options) for origin in ORIGINS for options in OPTIONS[origin.network]]
CASES += [(vgg.ORIGINS[0], dict(depth=13, batch_norm=True, width=2, features=[3]))]


@pytest.mark.parametrize(('origin', 'options'), CASES, ids=lambda value: getattr(value, 'name', str(value)))
def test_a_table_has_every_leaf_of_the_network_under_a_name_of_its_own_and_leads_back(origin, options):
  net = build(origin.network, options, (64, 64, 3), 4)
  leaves = {path: leaf for tree in net.shapes().values() for path, leaf in paths.flatten(tree).items()}
  table = origin.table(options)
  assert set(table) == set(leaves)
  assert len({name for name, _ in table.values()}) == len(table)
  shapes = {}
  for path, (name, layout) in table.items():
    theirs = jax.eval_shape(lambda array, layout=layout: layouts.theirs(array, layout), leaves[path])
    assert layouts.shape(theirs.shape, layout) == leaves[path].shape
    shapes[name] = theirs.shape
  if origin.inputs is resnet.CIFAR100:
    shapes['fc.bias'] = (100,)  # which tells it
  found = origin.options(shapes)
  again = build(origin.network, found, (64, 64, 3), 4).shapes()
  assert jax.tree.map(lambda leaf: leaf.shape, again) == jax.tree.map(lambda leaf: leaf.shape, net.shapes())


def _arrays(origin, options):
  """Zeros under an origin's names."""
  shapes, table = build(origin.network, options, (32, 32, 3), 4).shapes(), origin.table(options)
  leaves = {path: leaf for tree in shapes.values() for path, leaf in paths.flatten(tree).items()}
  return {name: layouts.theirs(np.zeros(leaves[path].shape), layout) for path, (name, layout) in table.items()}


VGG = _arrays(vgg.ORIGINS[0], dict(depth=11, width=2, features=[3]))


@pytest.mark.parametrize(
  'changes',
  [
    {'features.21.weight': np.zeros((16, 16, 3, 3))},  # one more
    {'features.0.weight': np.zeros((2, 3, 5, 5))},  # another size
    {'features.18.weight': np.zeros((12, 16, 3, 3))},  # another width
    {'features.0.weight': np.zeros((2, 27))},  # another kind
    {'features.3.bias': None},  # one less
  ],
)
def test_a_file_that_differs_in_one_array_is_no_vgg(changes):
  assert [origin for origin, _ in _recognised(VGG)] == [vgg.ORIGINS[0]]
  changed = {name: array for name, array in {**VGG, **changes}.items() if array is not None}
  assert _recognised(changed) == []


def test_counts_of_batches_and_a_missing_head_do_not_hide_a_family():
  arrays = {name: array for name, array in VGG.items() if not name.startswith('classifier.3')}
  assert vgg.torchvision({'features': [3]})['head/kernel'][0] == 'classifier.3.weight'
  ((origin, options),) = _recognised({**arrays, 'features.1.num_batches_tracked': np.zeros(())})
  assert (origin.name, options['depth']) == ('torchvision', 11)


def test_an_empty_file_is_none_of_these():
  assert _recognised({}) == []


def test_the_number_of_classes_tells_which_images_a_collection_was_trained_on():
  """The published means and deviations of CIFAR-10 and CIFAR-100, for values from 0 to 1."""
  arrays = _arrays(resnet.ORIGINS[1], dict(depth=8, width=2, shortcut='B'))
  ((ten, _),) = _recognised(arrays)
  ((hundred, _),) = _recognised({**arrays, 'fc.weight': np.zeros((100, 8)), 'fc.bias': np.zeros(100)})
  np.testing.assert_allclose(np.array(ten.inputs.shift) / 255, [0.4914, 0.4822, 0.4465])
  np.testing.assert_allclose(np.array(ten.inputs.scale) / 255, [0.2023, 0.1994, 0.2010])
  np.testing.assert_allclose(np.array(hundred.inputs.shift) / 255, [0.5070, 0.4865, 0.4409])
  np.testing.assert_allclose(np.array(hundred.inputs.scale) / 255, [0.2673, 0.2564, 0.2761])
