"""Networks of ImageNet against live models of torchvision, timm and Keras with random weights, values and gradients.

Outputs agree within 1e-4 of the largest. The cells have few channels and odd sides.
"""

import re

import jax
import numpy as np
import parity
import peers
import pytest

from transferlab import paths
from transferlab.networks import layers
from transferlab.weights import layouts

pytestmark = pytest.mark.usefixtures('quick_compilation')
TORCH_RESNET = dict(stride_on='3x3', epsilon=1e-5)
KERAS_RESNET = dict(stride_on='1x1', epsilon=1.001e-5, momentum=0.99, conv_bias=True)
TORCH_MOBILENET = dict(padding='both', epsilon=1e-5)
KERAS_MOBILENET = dict(padding='same', epsilon=1e-3, momentum=0.999)


def _images(*shape):
  return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def _captured(model, x, names):
  """What PyTorch's parts of these names answer, and the whole model last; channels last."""
  seen, parts = {}, dict(model.named_modules())

  def keep(name, value):
    seen[name] = value.detach().numpy().copy()  # the model may go on in place

  hooks = [parts[name].register_forward_hook(lambda _, __, value, name=name: keep(name, value)) for name in names]
  answer = peers.torch_run(model, x)
  for hook in hooks:
    hook.remove()
  return [*(np.moveaxis(value, 1, -1) if value.ndim == 4 else value for value in map(seen.get, names)), answer]


def _check_torch(model, side, stages, *, expect, options):
  """`stages`: our stages, and the parts of the model whose answers are theirs."""
  x = _images(2, side, side + 3, 3)
  _, ours = parity.network(peers.torch_arrays(model), x.shape[1:], expect=expect, options=options)
  outputs = ours(x)
  for stage, expected in zip([*stages, 'head'], _captured(model, x, list(stages.values()))):
    parity.close(outputs[stage], expected)


def _check_gradients(model, x, *, expect, options):
  """Of a weighted sum of the logits by every parameter, within 1e-4 of the largest of each array."""
  torch = pytest.importorskip('torch')
  origin, net, variables = parity.loaded(peers.torch_arrays(model), x.shape[1:], expect=expect, options=options)
  logits = model(torch.tensor(np.moveaxis(x, -1, 1).copy()))
  weights = _images(*logits.shape)
  (logits * torch.from_numpy(weights)).sum().backward()
  theirs, table = {name: value.grad.numpy() for name, value in model.named_parameters()}, origin.table(options)

  def total(params):
    return (net.apply({**variables, 'params': params}, x)[0]['head'] * weights).sum()

  ours = paths.flatten(jax.jit(layers.unlooped(jax.grad(total)))(variables['params']))
  assert {table[path][0] for path in ours} == set(theirs)
  for path, found in ours.items():
    expected = layouts.ours(theirs[table[path][0]], table[path][1])
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max(), path


# --------------------------------------------------------------------------------------------------------- ResNets
@pytest.mark.parametrize(
  ('depth', 'widening', 'side', 'stages'),
  [
    (18, 1, 64, {'block1': 'layer1.0', 'block3': 'layer2.0', 'block8': 'layer4'}),
    (50, 1, 47, {'stem': 'maxpool', 'block1': 'layer1.0', 'block4': 'layer2.0', 'block16': 'layer4'}),
    (50, 2, 33, {'block3': 'layer1'}),
    pytest.param(34, 1, 64, {'block7': 'layer2'}, marks=pytest.mark.long),
    pytest.param(152, 1, 64, {'block3': 'layer1', 'block11': 'layer2'}, marks=pytest.mark.long),
  ],
)
def test_an_imagenet_resnet_gives_what_torchvision_gives(depth, widening, side, stages):
  model = peers.torch_imagenet_resnet(depth, 8, 5, widening)
  options = dict(depth=depth, width=8, **TORCH_RESNET, **({'widening': widening} if depth >= 50 else {}))
  _check_torch(model, side, stages, expect=('imagenet_resnet', 'torchvision'), options=options)


def test_the_names_and_answers_of_timms_resnet_are_torchvisions():
  model = peers.torch_random(peers.timm().resnet.resnet18(num_classes=5))
  stages = {'stem': 'maxpool', 'block8': 'layer4'}
  options = dict(depth=18, width=64, **TORCH_RESNET)
  _check_torch(model, 40, stages, expect=('imagenet_resnet', 'torchvision'), options=options)


def test_gradients_of_a_resnet_are_pytorchs():
  torch, model = pytest.importorskip('torch'), peers.torch_imagenet_resnet(50, 4, 3)
  model.layer2, model.layer3, model.layer4 = model.layer2[:1], torch.nn.Sequential(), torch.nn.Sequential()
  model.fc = torch.nn.Linear(32, 3)
  options = dict(depth=50, width=4, blocks=4, widening=1, **TORCH_RESNET)
  _check_gradients(model, _images(2, 33, 33, 3), expect=('imagenet_resnet', 'torchvision'), options=options)


@pytest.mark.parametrize(
  ('depth', 'side', 'head'),
  [(50, 49, 'predictions'), pytest.param(101, 64, 'probs', marks=pytest.mark.long)],
)
def test_a_resnet_gives_for_red_green_blue_what_keras_gives_for_blue_green_red(depth, side, head):
  model = peers.keras_resnet(depth, 8, side, 5)
  arrays = {name.replace('predictions', head): value for name, value in peers.keras_random(model).items()}
  x = _images(2, side, side, 3)
  name = 'keras' if head == 'predictions' else 'keras2'
  options = dict(depth=depth, width=8, widening=1, **KERAS_RESNET)
  _, ours = parity.network(arrays, x.shape[1:], expect=('imagenet_resnet', name), options=options)
  outputs = ours(x)
  theirs = {'stem': 'pool1_pool', 'block4': 'conv3_block1_out', f'block{len(outputs) - 3}': 'conv5_block3_out'}
  found = peers.keras_run(model, np.ascontiguousarray(x[..., ::-1]), *theirs.values())
  for stage, expected in zip([*theirs, 'head'], found):
    parity.close(outputs[stage], expected)


def test_a_resnet_of_keras_is_recognised_without_its_top_and_under_the_heads_older_name():
  named = peers.keras_random(peers.keras_resnet(50, 4, 32, 5))
  for head, name in ((None, 'keras'), ('predictions', 'keras'), ('probs', 'keras2')):
    arrays = {path.replace('predictions', head or ''): value for path, value in named.items()}
    origin, options = parity.recognised({path: value for path, value in arrays.items() if path[0] != '/'})
    assert (origin.network, origin.name) == ('imagenet_resnet', name)
    assert options == dict(depth=50, width=4, widening=1, **KERAS_RESNET)
  assert origin.inputs.scale == (1.0, 1.0, 1.0)  # Caffe's images


# ------------------------------------------------------------------------------------------------------------- BiT
def _bit_npz(model):
  """A model's arrays under the names of the published files."""
  state, found = peers.torch_arrays(model), {}
  for name, value in state.items():
    theirs = re.sub(r'stages\.(\d+)\.blocks\.(\d+)\.', lambda m: f'block{int(m[1]) + 1}/unit{int(m[2]) + 1:02d}/', name)
    theirs = re.sub(r'(conv|norm)([123])\.', lambda m: f'{"abc"[int(m[2]) - 1]}/{m[1]}.', theirs)
    theirs = theirs.replace('downsample.', 'a/proj/').replace('stem.', 'root_block/')
    theirs = theirs.replace('conv.weight', 'standardized_conv2d/kernel').replace('head.fc.', 'head/conv2d/')
    theirs = theirs.replace('norm.weight', 'group_norm/gamma').replace('norm.bias', 'group_norm/beta')
    found[f'resnet/{theirs.replace("weight", "kernel")}'] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
  return found


def test_bit_gives_what_timm_gives():
  model = peers.timm_bit((3, 4, 6, 3), 32, 5)
  stages = {'stem': 'stem', 'block1': 'stages.0.blocks.0', 'block4': 'stages.1.blocks.0', 'block16': 'stages.3'}
  _check_torch(model, 46, stages, expect=('bit', 'timm'), options=dict(depth=50, width=32))


def test_bit_gives_what_timm_gives_from_the_same_published_file(tmp_path):
  """timm reads the file by a loader of its own."""
  arrays = _bit_npz(peers.timm_bit((3, 4), 32, 5))
  np.savez(tmp_path / 'a.npz', **arrays)
  model = peers.timm_bit((3, 4), 32, 5)
  peers.torch_random(model, seed=1).load_pretrained(str(tmp_path / 'a.npz'))
  x = _images(2, 33, 38, 3)
  options = dict(depth=50, width=32, blocks=7)
  origin, ours = parity.network(arrays, x.shape[1:], expect=('bit', 'bit'), options=options)
  outputs = ours(x)
  early, answer = _captured(model, x, ['stages.0'])
  parity.close(outputs['block3'], early)
  parity.close(outputs['head'], answer)
  assert origin.inputs.shift == origin.inputs.scale == (127.5, 127.5, 127.5)


def test_gradients_of_bit_are_pytorchs():
  model, options = peers.timm_bit((3, 1), 32, 3), dict(depth=50, width=32, blocks=4)
  for part in model.modules():
    if type(part).__name__ == 'StdConv2d':
      part.eps = 1e-10  # the authors'
  _check_gradients(model, _images(2, 33, 33, 3), expect=('bit', 'timm'), options=options)


# ---------------------------------------------------------------------------------------------------- MobileNet v2
@pytest.mark.parametrize(('side', 'width'), [(45, 0.1), pytest.param(64, 0.35, marks=pytest.mark.long)])
def test_mobilenet_v2_gives_what_torchvision_gives(side, width):
  model = peers.torch_random(peers.torchvision().mobilenet_v2(num_classes=5, width_mult=width))
  stages = {f'block{number}': f'features.{number}' for number in (1, 2, 3, 7, 17)}
  stages |= {'stem': 'features.0', 'last': 'features.18'}
  options = dict(width=width, **TORCH_MOBILENET)
  _check_torch(model, side, stages, expect=('mobilenet_v2', 'torchvision'), options=options)


def test_mobilenet_v2_gives_what_timm_gives():
  model = peers.timm().efficientnet.mobilenetv2_035(num_classes=5)
  stages = {'block1': 'blocks.0', 'block6': 'blocks.2', 'block17': 'blocks.6'}
  options = dict(width=0.35, **TORCH_MOBILENET)
  _check_torch(peers.torch_random(model), 38, stages, expect=('mobilenet_v2', 'timm'), options=options)


def test_gradients_of_mobilenet_v2_are_pytorchs():
  model, options = peers.torch_first_blocks(3, 3), dict(width=0.25, blocks=3, **TORCH_MOBILENET)
  _check_gradients(model, _images(2, 33, 33, 3), expect=('mobilenet_v2', 'torchvision'), options=options)


@pytest.mark.parametrize(
  ('side', 'width', 'depthwise', 'head', 'name'),
  [
    (45, 0.1, 'depthwise_kernel', 'Logits', 'keras2'),
    pytest.param(48, 0.35, 'kernel', 'predictions', 'keras', marks=pytest.mark.long),
  ],
)
def test_mobilenet_v2_gives_what_keras_gives_at_odd_sides_too(side, width, depthwise, head, name):
  applications = peers.keras().applications
  model = applications.MobileNetV2((side, side + 3, 3), width, weights=None, classes=5, classifier_activation=None)
  arrays = {
    path.replace('depthwise/kernel', f'depthwise/{depthwise}').replace('predictions', head): value
    for path, value in peers.keras_random(model).items()
  }
  x = _images(2, side, side + 3, 3)
  _, ours = parity.network(
    arrays, x.shape[1:], expect=('mobilenet_v2', name), options=dict(width=width, **KERAS_MOBILENET)
  )
  theirs = {'stem': 'Conv1_relu', 'block2': 'block_1_project_BN', 'block3': 'block_2_add', 'last': 'out_relu'}
  outputs, found = ours(x), peers.keras_run(model, x, *theirs.values())
  for stage, expected in zip([*theirs, 'head'], found):
    parity.close(outputs[stage], expected)


# -------------------------------------------------------------------------------------------------------- ConvNeXt
def test_convnext_gives_what_torchvision_gives():
  depths, widths = [2, 1], [8, 12]
  stages = {'stem': 'features.0', 'block1': 'features.1.0', 'block3': 'features.3'}
  model = peers.torch_convnext(depths, widths, 5)
  options = dict(depths=depths, widths=widths)
  _check_torch(model, 70, stages, expect=('convnext', 'torchvision'), options=options)


def test_convnext_gives_what_timm_gives():
  depths, widths = [1, 1, 2, 1], [8, 8, 12, 16]
  stages = {'stem': 'stem', 'block3': 'stages.2.blocks.0', 'block5': 'stages.3', 'pool': 'head.drop'}
  model = peers.timm_convnext(depths, widths, 5)
  _check_torch(model, 45, stages, expect=('convnext', 'timm'), options=dict(depths=depths, widths=widths))


def test_gradients_of_convnext_are_pytorchs():
  model, options = peers.torch_convnext([1, 1], [4, 6], 3), dict(depths=[1, 1], widths=[4, 6])
  _check_gradients(model, _images(2, 33, 33, 3), expect=('convnext', 'torchvision'), options=options)
