"""Networks of their published size with random weights, from the peer's own file to its answer; `pytest -m long -s`.

What it prints is kept in experiments/full_size_parity.md.
"""

import gc
import time

import jax
import numpy as np
import peers
import pytest

from transferlab import paths
from transferlab.networks import network as networks
from transferlab.weights import mapping, readers

pytestmark = pytest.mark.long
VGGS = ('vgg11', 'vgg13', 'vgg16', 'vgg19', 'vgg11_bn', 'vgg13_bn', 'vgg16_bn', 'vgg19_bn')
CIFAR = [f'resnet{depth}{shortcut}' for depth in (20, 32, 44, 56, 110) for shortcut in 'AB']


TORCHVISION = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'wide_resnet50_2', 'wide_resnet101_2')
TORCHVISION += ('mobilenet_v2', 'convnext_tiny', 'convnext_small', 'convnext_base', 'vit_b_16', 'vit_l_16')
TIMM = ('resnetv2_50x1_bit', 'mobilenetv2_100', 'convnext_tiny', 'vit_tiny_patch16_224', 'vit_small_patch16_224')
KERAS = ('VGG16', 'VGG19', 'MobileNet', 'MobileNetV2', 'ResNet50', 'ResNet101', 'ResNet152')


def _torch(name):
  if name in CIFAR:
    depth, shortcut = int(name[6:-1]), name[-1]
    return peers.torch_resnet(depth, 16, shortcut, 'shortcut', 'linear')
  return peers.torch_random(getattr(peers.torchvision(), name)())


def _keras(name):
  applications = peers.keras().applications
  model = getattr(applications, name)(weights=None, classifier_activation=None)
  peers.keras_random(model)
  return model


def _answer(path, image, stage='head'):
  """(what was recognised, what our stage gives, values, seconds to read and map).

  A path may be a folder with its config.json.
  """
  begun = time.perf_counter()
  found = mapping.recognise(readers.read(str(path)))
  variables = {
    kind: paths.unflatten({path: np.asarray(leaf) for path, leaf in paths.flatten(tree).items()})
    for kind, tree in found.mapped.variables.items()
  }
  seconds = time.perf_counter() - begun
  network = networks.build(found.origin.network, found.options, image.shape[1:], found.outputs or 1)
  values = sum(leaf.size for leaf in jax.tree.leaves(variables))
  stop = None if found.outputs else 'head'
  answer = jax.jit(lambda variables, image: network.apply(variables, image, stop=stop)[0][stage])(variables, image)
  return found, np.asarray(answer), values, seconds


def _compare(name, path, image, expected, stage='head'):
  found, answer, values, seconds = _answer(path, image, stage)
  error = np.abs(answer - expected).max() / np.abs(expected).max()
  file = path / 'model.safetensors' if path.is_dir() else path
  size = file.stat().st_size / 2**20
  print(f'| {name} | {file.suffix} | {found.origin.name} | {values:,} | {size:,.0f} | {seconds:.2f} | {error:.1e} |')
  file.unlink()
  gc.collect()
  assert error < 1e-4


@pytest.mark.parametrize('name', [*VGGS, 'squeezenet1_1', *CIFAR, *TORCHVISION])
def test_a_pytorch_file_of_full_size_gives_what_pytorch_gives(name, tmp_path):
  _check_torch(name, _torch(name), peers.image_of(32 if name in CIFAR else 224), tmp_path)


@pytest.mark.parametrize('name', TIMM)
def test_a_file_of_timm_of_full_size_gives_what_timm_gives(name, tmp_path):
  peers.timm()
  import timm

  _check_torch(f'timm {name}', peers.torch_random(timm.create_model(name)), peers.image_of(224), tmp_path)


def _check_torch(name, model, image, folder):
  torch = pytest.importorskip('torch')
  torch.save(model.state_dict(), folder / 'a.pth')
  expected = peers.torch_run(model, image)
  del model
  _compare(name, folder / 'a.pth', image, expected)


@pytest.mark.parametrize('name', KERAS)
@pytest.mark.parametrize('suffix', ['.weights.h5', '.keras'])
def test_a_keras_file_of_full_size_gives_what_keras_gives(name, suffix, tmp_path):
  model, image = _keras(name), peers.image_of(224)
  path = tmp_path / f'a{suffix}'
  (model.save_weights if suffix == '.weights.h5' else model.save)(path)
  given = image if name.startswith('MobileNet') else np.ascontiguousarray(image[..., ::-1])
  expected = np.asarray(model(given, training=False))
  del model
  _compare(name, path, image, expected)


# Published sizes are those that transformers has by default, but for what stands here; and a LLaMA that is made up.
TEXTS = {
  'bert-base': ('BertForSequenceClassification', {}),
  'distilbert-base': ('DistilBertForSequenceClassification', {}),
  'roberta-base': (
    'RobertaForSequenceClassification',
    {'vocab_size': 50265, 'max_position_embeddings': 514, 'type_vocab_size': 1, 'layer_norm_eps': 1e-5},
  ),
  'gpt2': ('GPT2LMHeadModel', {}),
  'llama of 100 M': (
    'LlamaForCausalLM',
    {'hidden_size': 640, 'intermediate_size': 1728, 'num_hidden_layers': 12, 'num_attention_heads': 10}
    | {'num_key_value_heads': 5, 'vocab_size': 32000},
  ),
}


@pytest.mark.parametrize('name', TEXTS)
def test_a_network_on_texts_of_full_size_gives_what_transformers_gives(name, tmp_path):
  torch, module = pytest.importorskip('torch'), peers.transformers()
  kind, options = TEXTS[name]
  made = getattr(module, kind)
  model = peers.torch_random(made(made.config_class(**options)), scale=0.02)
  model.save_pretrained(tmp_path)
  numbers = np.random.default_rng(0).integers(3, 30_000, (1, 64)).astype(np.int32)
  with torch.no_grad():
    expected = model(input_ids=torch.tensor(numbers.astype(np.int64))).logits.numpy()
  del model
  _compare(name, tmp_path, numbers, expected)


# Published sizes as above: class, what of the answer is compared, and our stage.
IMAGES = {
  'ViT-B/16': ('ViTForImageClassification', 'logits', 'head'),
  'DINOv2 ViT-B/14': ('Dinov2ForImageClassification', 'logits', 'head'),
  'CLIP ViT-B/32, images': ('CLIPVisionModelWithProjection', 'image_embeds', 'project'),
  'SigLIP ViT-B/16, images': ('SiglipVisionModel', 'pooler_output', 'pool'),
}


@pytest.mark.parametrize('name', IMAGES)
def test_a_network_on_images_of_full_size_gives_what_transformers_gives(name, tmp_path):
  torch, module = pytest.importorskip('torch'), peers.transformers()
  kind, answer, stage = IMAGES[name]
  made = getattr(module, kind)
  options = {'patch_size': 14} if name.endswith('/14') else {}
  model = peers.torch_random(made(made.config_class(**options)), scale=0.02)
  model.save_pretrained(tmp_path)
  image = peers.image_of(224)
  with torch.no_grad():
    expected = getattr(model(torch.tensor(np.moveaxis(image, -1, 1).copy())), answer).numpy()
  del model
  _compare(name, tmp_path, image, expected, stage)
