"""Tables of names as such: complete, one name a leaf, and back; what differs in one array is of no family."""

import jax
import numpy as np
import pytest

from transferlab import paths
from transferlab.networks.network import build
from transferlab.weights import layouts, mapping
from transferlab.weights.names import resnet, vgg

pytestmark = pytest.mark.usefixtures('quick_compilation')

ORIGINS = mapping.origins()


def _recognised(arrays):
  shapes = {name: tuple(np.shape(array)) for name, array in arrays.items()}
  return [(origin, options) for origin in ORIGINS if (options := origin.options(shapes)) is not None]


OPTIONS = {
  'resnet': [{}, dict(depth=8, shortcut='B', width=4), dict(depth=14, features=9)],
  'vgg': [{}, dict(depth=11, width=2, pool='average', features=[3]), dict(depth=19, blocks=2, width=2, features=[])],
  'mobilenet': [{}, dict(width=0.25, blocks=4, features=[7, 5])],
  'squeezenet': [{}, dict(blocks=3, head_type='convolution')],
  'imagenet_resnet': [{}, dict(width=2, conv_bias=True, blocks=5), dict(depth=101, width=2, widening=2)],
  'bit': [{}, dict(depth=152, width=32, blocks=12), dict(width=32, blocks=6)],
  'mobilenet_v2': [{}, dict(width=0.35), dict(width=1.4), dict(width=0.5, blocks=5), dict(blocks=1)],
  'convnext': [{}, dict(depths=[2, 1, 3], widths=[4, 4, 6])],
}
# Arrays of transformers hold several leaves; their tables are held against the live origins.
CASES = [(origin, options) for origin in ORIGINS for options in OPTIONS.get(origin.network, [])]
CASES += [(vgg.ORIGINS[0], dict(depth=13, batch_norm=True, width=2, features=[3]))]
CLASSES = {resnet.AKAMASTER: 10, resnet.CIFAR10: 10, resnet.CIFAR100: 100}


@pytest.mark.parametrize(('origin', 'options'), CASES, ids=lambda value: getattr(value, 'name', str(value)))
def test_a_table_has_every_leaf_of_the_network_under_a_name_of_its_own_and_leads_back(origin, options):
  outputs = CLASSES.get(origin.inputs, 4)
  net = build(origin.network, options, (64, 64, 3), outputs)
  leaves = {path: leaf for tree in net.shapes().values() for path, leaf in paths.flatten(tree).items()}
  table = origin.table(options)
  assert set(table) == set(leaves)
  assert len({name for name, _ in table.values()}) == len(table)
  shapes = {}
  for path, (name, layout) in table.items():
    theirs = jax.eval_shape(lambda array, layout=layout: layouts.theirs(array, layout), leaves[path])
    assert layouts.shape(theirs.shape, layout) == leaves[path].shape
    shapes[name] = theirs.shape
  found = origin.options(shapes)
  again = build(origin.network, found, (64, 64, 3), outputs).shapes()
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


@pytest.mark.parametrize('path', ['stem/conv/kernel', 'dense/linear/kernel', 'dense1/linear/kernel', 'head/bias'])
@pytest.mark.parametrize('origin', ORIGINS, ids=lambda origin: f'{origin.network}-{origin.name}')
def test_a_number_where_an_array_should_be_breaks_nothing(origin, path):
  options = {'resnet': {'features': 3}, 'squeezenet': {}}.get(origin.network, {'features': [3]})
  table = origin.table(options)
  shapes = {name: (3, 3, 3, 3) for name, _ in table.values()}
  if path in table:
    assert origin.options({**shapes, table[path][0]: ()}) is None


def test_names_that_keras_made_up_say_nothing_of_the_images():
  """They may be anybody's network: nothing is reversed, and they are not written."""
  made_up = [origin for origin in ORIGINS if origin.name.endswith('numbered')]
  assert [origin.network for origin in made_up] == ['vgg', 'mobilenet', 'mobilenet']
  for origin in made_up:
    assert (origin.inputs, origin.size, origin.exported) == (None, 224, False)
    assert origin.doubt.startswith('recognised by the order and shapes of its layers alone')
    assert not [layout for _, layout in origin.table({}).values() if 'reverse' in layout]
  assert all(origin.exported for origin in ORIGINS if origin.network in OPTIONS and origin not in made_up)


IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CIFAR10 = ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
CIFAR100 = ([0.5070, 0.4865, 0.4409], [0.2673, 0.2564, 0.2761])


@pytest.mark.parametrize(
  ('name', 'classes', 'images'),
  [
    *[('akamaster', 10, IMAGENET), ('akamaster', 100, None), ('akamaster', 5, None), ('akamaster', None, None)],
    *[('chenyaofo', 10, CIFAR10), ('chenyaofo', 100, CIFAR100), ('chenyaofo', 5, None), ('chenyaofo', None, None)],
  ],
)
def test_the_number_of_classes_tells_which_images_a_collection_was_trained_on(name, classes, images):
  """The means and deviations that the collections publish, for values from 0 to 1; other weights are anybody's."""
  head = {'akamaster': 'linear', 'chenyaofo': 'fc'}[name]
  arrays = _arrays(next(origin for origin in resnet.ORIGINS if origin.name == name), dict(depth=8, width=2))
  del arrays[f'{head}.weight'], arrays[f'{head}.bias']
  if classes:
    arrays |= {f'{head}.weight': np.zeros((classes, 8)), f'{head}.bias': np.zeros(classes)}
  found = [origin for origin, _ in _recognised(arrays)]
  # Without a head the two collections' networks of shortcut A are one.
  assert name in [origin.name for origin in found]
  assert len(found) == (1 if classes else 2)
  for origin in found:
    assert origin.size == 32
    if images is None:
      assert (origin.inputs, origin.doubt) == (None, 'which images it was trained on is not known')
    else:
      np.testing.assert_allclose((np.array(origin.inputs.shift) / 255, np.array(origin.inputs.scale) / 255), images)
      assert (origin.inputs.size, origin.doubt) == (32, '')


@pytest.mark.parametrize('blocks', [1, 2, 5])
def test_the_first_blocks_of_a_resnet_have_names_but_are_of_no_family(blocks):
  options = dict(depth=14, width=2, shortcut='B', blocks=blocks)
  leaves = build('resnet', options, (32, 32, 3), 4).shapes()
  for origin in resnet.ORIGINS:
    table = origin.table(options)
    assert set(table) == {path for tree in leaves.values() for path in paths.flatten(tree)}
    assert table == {path: entry for path, entry in origin.table({**options, 'blocks': None}).items() if path in table}
    assert _recognised(_arrays(origin, options)) == []
