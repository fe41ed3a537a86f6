"""Live models of PyTorch, torchvision, timm, Keras and transformers with random weights, to compare with.

A test that asks for one is skipped where the package is not installed.
"""

import functools
import importlib
import importlib.util
import itertools
import os
import re
import zlib
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

RANDOM = np.random.default_rng(0)


@functools.cache
def torchvision():
  """torchvision, also where it was installed without its compiled operators: they are declared first."""
  torch, spec = pytest.importorskip('torch'), importlib.util.find_spec('torchvision')
  if spec is None:
    pytest.skip('torchvision is not installed')
  try:
    import torchvision.models as models
  except RuntimeError:
    files = Path(spec.origin).parent.rglob('*.py')
    names = sorted({name for file in files for name in re.findall(r'torchvision::(\w+)', file.read_text())})
    library = torch.library.Library('torchvision', 'DEF')
    for name in names:
      library.define(f'{name}(Tensor x) -> Tensor')
    torchvision.library = library  # lives as long as its operators do
    import torchvision.models as models
  return models


@functools.cache
def timm():
  """timm's models, which need torchvision."""
  torchvision()
  return pytest.importorskip('timm').models


def torch_random(model, seed=0, scale=None):
  """Random weights and statistics, which keep the size of what passes through, or of a standard deviation `scale`."""
  torch = pytest.importorskip('torch')
  random = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, value in model.state_dict().items():
      if value.ndim > 1:
        value.normal_(0, scale or (2 / value[0].numel()) ** 0.5, generator=random)
      elif not name.endswith('num_batches_tracked'):
        value.normal_(0, 0.3, generator=random) if name.endswith(('bias', 'mean')) else value.uniform_(
          0.5, 1.5, generator=random
        )
  return model.eval()


def torch_arrays(model):
  return {name: value.numpy() for name, value in model.state_dict().items()}


def torch_run(model, x):
  torch = pytest.importorskip('torch')
  with torch.no_grad():
    found = model(torch.tensor(np.moveaxis(x, -1, 1).copy())).numpy()
  return np.moveaxis(found, 1, -1) if found.ndim == 4 else found


def torch_vgg(depth, batch_norm, width, features, classes):
  """torchvision's own VGG, with fewer channels and a smaller classifier."""
  torch, models = pytest.importorskip('torch'), torchvision()
  name = {11: 'A', 13: 'B', 16: 'D', 19: 'E'}[depth]
  channels = [entry if entry == 'M' else entry * width // 64 for entry in models.vgg.cfgs[name]]
  with torch.device('meta'):
    model = models.vgg.VGG(models.vgg.make_layers(channels, batch_norm), init_weights=False)
  nn = torch.nn
  dense = [
    (nn.Linear(*pair), nn.ReLU(), nn.Dropout()) for pair in itertools.pairwise([49 * 8 * width, *features, classes])
  ]
  model.classifier = nn.Sequential(*itertools.chain(*dense))[:-2]
  return torch_random(model.to_empty(device='cpu'))


def torch_imagenet_resnet(depth, width, classes, widening=1):
  """torchvision's own ResNet with fewer channels, of which it has no option."""
  torch, module = pytest.importorskip('torch'), torchvision().resnet
  groups = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]

  class Narrow(module.ResNet):
    def _make_layer(self, block, planes, blocks, **options):
      self.inplanes = width if planes == 64 else self.inplanes
      return super()._make_layer(block, planes * width // 64, blocks, **options)

  block = module.BasicBlock if depth < 50 else module.Bottleneck
  model = Narrow(block, groups, width_per_group=64 * widening)
  model.conv1, model.bn1 = torch.nn.Conv2d(3, width, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(width)
  model.fc = torch.nn.Linear(8 * width * block.expansion, classes)
  return torch_random(model)


def timm_bit(groups, width, classes):
  """timm's ResNet-v2 of BiT with fewer groups of blocks and fewer channels."""
  module = timm().resnetv2
  channels = [4 * width * 2**group for group, _ in enumerate(groups)]
  conv = functools.partial(module.StdConv2d, eps=1e-8)
  model = module.ResNetV2(groups, channels, classes, stem_chs=width, stem_type='fixed', conv_layer=conv)
  return torch_random(model)


def torch_first_blocks(blocks, classes):
  """The first blocks of torchvision's narrowest MobileNet v2, with a head."""
  torch, model = pytest.importorskip('torch'), torchvision().mobilenet_v2(width_mult=0.1)
  model.features, model.classifier[1] = model.features[: blocks + 1], torch.nn.Linear(8, classes)
  return torch_random(model)


def timm_first_blocks(groups, classes):
  """The first groups of blocks of timm's narrowest MobileNet v2, with a head."""
  torch, model = pytest.importorskip('torch'), timm_mobilenet_v2(0.1, classes)
  model.blocks, model.conv_head, model.bn2 = model.blocks[:groups], torch.nn.Identity(), torch.nn.Identity()
  model.classifier = torch.nn.Linear(8, classes)
  return torch_random(model)


def keras_first_blocks(side, blocks, classes):
  """The first blocks of Keras' narrowest MobileNet v2, with a head."""
  module = keras()
  whole = module.applications.MobileNetV2((side, side, 3), 0.1, weights=None, include_top=False)
  ends = [layer.output for layer in whole.layers if layer.name.endswith('project_BN')]
  features = module.layers.GlobalAveragePooling2D()(ends[blocks - 1])
  return module.Model(whole.input, module.layers.Dense(classes, name='predictions')(features))


def timm_mobilenet_v2(width, classes):
  """timm's MobileNet v2 of any width."""
  return timm().efficientnet._gen_mobilenet_v2('mobilenetv2_035', width, num_classes=classes)


def timm_convnext(depths, widths, classes):
  return torch_random(timm().convnext.ConvNeXt(num_classes=classes, depths=depths, dims=widths))


def torch_convnext(depths, widths, classes):
  module = torchvision().convnext
  settings = [module.CNBlockConfig(*pair, depth) for *pair, depth in zip(widths, [*widths[1:], None], depths)]
  return torch_random(module.ConvNeXt(settings, num_classes=classes))


def torch_resnet(depth, width, option, shortcut, head):
  """A CIFAR ResNet in PyTorch; `shortcut` and `head` are the names of the projection and the last layer."""
  torch = pytest.importorskip('torch')
  nn, functional = torch.nn, torch.nn.functional

  class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
      super().__init__()
      self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
      self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
      self.extra = outputs - inputs
      if self.extra and option == 'B':
        setattr(
          self, shortcut, nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x):
      y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
      if self.extra and option == 'B':
        x = getattr(self, shortcut)(x)
      elif self.extra:
        x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
      return torch.relu(x + y)

  class Net(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1, self.bn1, channels = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), width
      for group in range(3):
        outputs, more = width * 2**group, (depth - 2) // 6 - 1
        blocks = [Block(channels, outputs, 2 if group else 1), *(Block(outputs, outputs, 1) for _ in range(more))]
        setattr(self, f'layer{group + 1}', nn.Sequential(*blocks))
        channels = outputs
      setattr(self, head, nn.Linear(channels, 6))

    def forward(self, x):
      x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
      return getattr(self, head)(x.mean((2, 3)))

  return torch_random(Net())


@functools.cache
def keras():
  """Keras, on JAX."""
  os.environ.setdefault('KERAS_BACKEND', 'jax')
  return pytest.importorskip('keras')


def keras_random(model):
  for weight in model.weights:
    if len(weight.shape) > 1:
      inputs = np.prod(weight.shape[: 2 if re.search('_dw_|depthwise', weight.path) else -1])
      weight.assign(RANDOM.normal(0, (2 / inputs) ** 0.5, weight.shape))
    else:
      low, high = (0.5, 1.5) if 'variance' in weight.path or 'gamma' in weight.path else (-0.3, 0.3)
      weight.assign(RANDOM.uniform(low, high, weight.shape))
  return {weight.path: np.asarray(weight) for weight in model.weights}


def keras_run(model, x, *names):
  outputs = [model.get_layer(name).output for name in names]
  both = keras().Model(model.input, [*outputs, model.output])
  return jax.jit(lambda x: both(x, training=False))(x)


def keras_vgg(depth, width, side, features, *, named):
  """Keras' VGG of fewer channels: its own has no such option."""
  module = keras()
  module.backend.clear_session()
  call = lambda name: {'name': name} if named else {}
  x = inputs = module.Input((side, side, 3))
  for block, count in enumerate({16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}[depth], 1):
    for number in range(1, count + 1):
      filters = width * min(2 ** (block - 1), 8)
      convolution = module.layers.Conv2D(
        filters, 3, padding='same', activation='relu', **call(f'block{block}_conv{number}')
      )
      x = convolution(x)
    x = module.layers.MaxPooling2D(2, name=f'block{block}_pool')(x)
  if features:
    x = module.layers.Flatten()(x)
    for number, size in enumerate(features, 1):
      x = module.layers.Dense(size, activation='relu', **call(f'fc{number}'))(x)
    x = module.layers.Dense(5, **call('predictions'))(x)
  return module.Model(inputs, x)


def narrow_keras_resnet(depth, width):
  """The function that makes Keras' own ResNet, which has no option for fewer channels, with fewer of them."""
  module = keras()
  layers = importlib.import_module('keras.src.layers')  # where its models look layers up
  conv = layers.Conv2D

  def make(**options):
    narrow = lambda filters, *args, **rest: conv(filters * width // 64, *args, **rest)
    with mock.patch.object(layers, 'Conv2D', narrow):
      return getattr(module.applications, f'ResNet{depth}')(**options)

  return make


def keras_resnet(depth, width, side, classes):
  make = narrow_keras_resnet(depth, width)
  return make(weights=None, input_shape=(side, side, 3), classes=classes, classifier_activation=None)


def keras_squeezenet(side, classes):
  """SqueezeNet 1.1 in Keras, whose layers may have no '/' in their names: `squeezenet_arrays` puts it back."""
  module = keras()
  module.backend.clear_session()
  layers = module.layers

  def convolution(x, filters, size, name, **options):
    return layers.Conv2D(filters, size, activation='relu', name=name, **options)(x)

  x = inputs = module.Input((side, side, 3))
  x = layers.MaxPooling2D(3, 2)(convolution(x, 64, 3, 'conv1', strides=2))
  for number, (squeezed, expanded) in enumerate(
    [(16, 64)] * 2 + [(32, 128)] * 2 + [(48, 192)] * 2 + [(64, 256)] * 2, 2
  ):
    x = convolution(x, squeezed, 1, f'fire{number}+squeeze1x1')
    left = convolution(x, expanded, 1, f'fire{number}+expand1x1')
    right = convolution(x, expanded, 3, f'fire{number}+expand3x3', padding='same')
    x = layers.Concatenate()([left, right])
    x = layers.MaxPooling2D(3, 2)(x) if number in (3, 5) else x
  x = convolution(x, classes, 1, 'conv10')
  return module.Model(inputs, layers.GlobalAveragePooling2D()(x))


def slashed(arrays):
  """Arrays under the names that Keras 2 gave them."""
  return {name.replace('+', '/'): value for name, value in arrays.items()}


# ------------------------------------------------------------------------------------------------------- transformers
@functools.cache
def transformers():
  """transformers, on PyTorch; it looks at torchvision where that is installed."""
  pytest.importorskip('torch')
  if importlib.util.find_spec('torchvision') is not None:
    torchvision()
  module = pytest.importorskip('transformers')
  module.logging.set_verbosity_error()
  module.logging.disable_progress_bar()
  return module


SIZES = {'vocab_size': 40, 'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'intermediate_size': 48}
ROPE = {'rope_theta': 100.0, 'rope_type': 'default'}
TEXTS = {
  'Bert': {**SIZES, 'max_position_embeddings': 20},
  'Roberta': {**SIZES, 'max_position_embeddings': 22, 'pad_token_id': 1, 'type_vocab_size': 1, 'layer_norm_eps': 1e-5},
  'DistilBert': {
    'vocab_size': 40,
    'dim': 32,
    'n_layers': 2,
    'n_heads': 4,
    'hidden_dim': 48,
    'max_position_embeddings': 20,
  },
  'GPT2': {
    'vocab_size': 40,
    'n_embd': 32,
    'n_layer': 2,
    'n_head': 4,
    'n_positions': 20,
    'n_inner': 48,
    'pad_token_id': 0,
    'bos_token_id': 1,
    'eos_token_id': 2,
  },
  'Llama': {
    **SIZES,
    'num_key_value_heads': 2,
    'pad_token_id': 0,
    'rope_parameters': {'rope_theta': 100.0, 'rope_type': 'default'},
  },
}


def text_model(name, **options):
  """A model of transformers by its class ('BertForSequenceClassification'), small and with random weights."""
  module = transformers()
  family = re.match(r'(.+?)(For|LM|Model)', name)[1]
  config = getattr(module, f'{family}Config')(**{**TEXTS[family], 'num_labels': 3, **options})
  return torch_random(getattr(module, name)(config), scale=0.3)


def text_run(model, tokens, **options):
  """What a model gives for tokens [batch, places], −1 for padding behind them."""
  torch = pytest.importorskip('torch')
  mask = tokens >= 0
  ids = torch.tensor(np.where(mask, tokens, model.config.pad_token_id or 0).astype(np.int64))
  return model(input_ids=ids, attention_mask=torch.tensor(mask.astype(np.int64)), **options)


# ------------------------------------------------------------------------------------- values that names alone decide
def value_of(name, shape):
  """An array drawn from its name, the same on every machine; what passes through keeps its size."""
  random = np.random.default_rng(zlib.crc32(name.encode()))
  if len(shape) > 1:
    return random.normal(0, (2 * max(shape) / np.prod(shape)) ** 0.5, shape).astype(np.float32)
  near_one = re.search(r'var|gamma|\.weight$', name)
  return random.uniform(*((0.5, 1.5) if near_one else (-0.3, 0.3)), shape).astype(np.float32)


def image_of(side):
  """[1, side, side, 3], drawn from the side."""
  return np.random.default_rng(side).normal(size=(1, side, side, 3)).astype(np.float32)


def tokens_of(length):
  """[1, length], numbers of tokens, drawn from the length."""
  return np.random.default_rng(length).integers(3, 40, (1, length)).astype(np.int32)


def torch_by_name(model):
  """The model with the values that its names decide."""
  torch = pytest.importorskip('torch')
  state, first = model.state_dict(), {}
  for name, value in state.items():  # what is tied has the values of the name that comes first
    first.setdefault(value.data_ptr(), name)
  drawn = {
    name: torch.from_numpy(value_of(first[value.data_ptr()], tuple(value.shape)))
    if value.is_floating_point()
    else value
    for name, value in state.items()
  }
  model.load_state_dict(drawn)
  return model.eval()


def keras_by_name(model):
  """The model with the values that its names decide."""
  for weight in model.weights:
    weight.assign(value_of(weight.path.replace('+', '/'), tuple(weight.shape)))
  return model
