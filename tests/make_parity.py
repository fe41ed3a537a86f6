"""Writes parity.json: what torchvision, PyTorch, timm, Keras and transformers answer, for those without these.

python tests/make_parity.py

Weights are drawn from their names, images and texts from their sizes: only names, shapes and answers are stored.
"""

import json
from pathlib import Path

import numpy as np
import peers

# Origin, the side of the image, and the model.
TORCH = {
  ('vgg', 'torchvision', 32): lambda: peers.torch_vgg(11, True, 2, [6, 4], 5),
  ('vgg', 'torchvision', 40): lambda: peers.torch_vgg(16, False, 2, [6, 4], 5),
  ('squeezenet', 'torchvision', 51): lambda: peers.torchvision().squeezenet1_1(num_classes=5),
  ('resnet', 'akamaster', 16): lambda: peers.torch_resnet(14, 4, 'A', 'shortcut', 'linear'),
  ('resnet', 'akamaster', 17): lambda: peers.torch_resnet(8, 4, 'B', 'shortcut', 'linear'),
  ('resnet', 'chenyaofo', 16): lambda: peers.torch_resnet(8, 4, 'B', 'downsample', 'fc'),
  ('imagenet_resnet', 'torchvision', 47): lambda: peers.torch_imagenet_resnet(18, 4, 5),
  ('imagenet_resnet', 'torchvision', 33): lambda: peers.torch_imagenet_resnet(50, 4, 5, 2),
  ('bit', 'timm', 33): lambda: peers.timm_bit((3, 1), 32, 5),
  ('mobilenet_v2', 'torchvision', 45): lambda: peers.torch_first_blocks(4, 5),
  ('mobilenet_v2', 'timm', 38): lambda: peers.timm_first_blocks(2, 5),
  ('convnext', 'torchvision', 45): lambda: peers.torch_convnext([1, 2], [8, 12], 5),
  ('convnext', 'timm', 64): lambda: peers.timm_convnext([1, 1, 2, 1], [4, 4, 6, 8], 5),
  ('vit', 'torchvision', 32): lambda: peers.torchvision().VisionTransformer(32, 8, 1, 1, 64, 32, num_classes=5),
  ('vit', 'timm', 24): lambda: peers.timm().VisionTransformer(
    img_size=24, patch_size=8, embed_dim=64, depth=1, num_heads=1, num_classes=5, reg_tokens=2, init_values=0.1
  ),
}
KERAS = {
  ('vgg', 'keras', 224): lambda: peers.keras_vgg(16, 2, 224, [6, 4], named=True),
  ('vgg', 'keras', 225): lambda: peers.keras_vgg(19, 2, 225, [6, 4], named=True),
  ('mobilenet', 'keras', 48): lambda: peers.keras().applications.MobileNet(
    (48, 48, 3), 0.25, weights=None, classes=5, classifier_activation=None
  ),
  ('squeezenet', 'keras', 63): lambda: peers.keras_squeezenet(63, 5),
  ('imagenet_resnet', 'keras', 35): lambda: peers.keras_resnet(50, 4, 35, 5),
  ('mobilenet_v2', 'keras', 45): lambda: peers.keras_first_blocks(45, 4, 5),
}
# Whose images are blue, green, red.
REVERSED = {'vgg', 'squeezenet', 'imagenet_resnet'}
# Heads of 64 features, as are assumed without a config.json; the number is the length of the text.
SIZES = {'hidden_size': 128, 'num_attention_heads': 2}
TEXTS = {
  ('bert', 'transformers', 5): lambda: peers.text_model('BertForSequenceClassification', **SIZES),
  ('bert', 'transformers', 6): lambda: peers.text_model('RobertaForSequenceClassification', **SIZES),
  ('bert', 'transformers', 7): lambda: peers.text_model('DistilBertForSequenceClassification', dim=128, n_heads=2),
  ('decoder', 'transformers', 8): lambda: peers.text_model('GPT2LMHeadModel', n_embd=128, n_head=2),
  ('decoder', 'transformers', 9): lambda: peers.text_model(
    'LlamaForCausalLM', **SIZES, num_key_value_heads=1, rms_norm_eps=1e-6, rope_parameters=None
  ),
}


def main() -> None:
  """Writes the file."""
  stored = []
  for case, make in TORCH.items():
    model = peers.torch_by_name(make())
    shapes = {name: list(value.shape) for name, value in peers.torch_arrays(model).items()}
    stored.append(_entry(case, shapes, peers.torch_run(model, peers.image_of(case[2]))))
  for case, make in KERAS.items():
    model = peers.keras_by_name(make())
    image = peers.image_of(case[2])
    image = np.ascontiguousarray(image[..., ::-1]) if case[0] in REVERSED else image
    shapes = {weight.path.replace('+', '/'): list(weight.shape) for weight in model.weights}
    stored.append(_entry(case, shapes, np.asarray(model(image, training=False))))
  for case, make in TEXTS.items():
    model = peers.torch_by_name(make())
    tied = {'lm_head.weight'} if case[:1] + case[2:] == ('decoder', 8) else set()
    shapes = {name: list(value.shape) for name, value in peers.torch_arrays(model).items() if name not in tied}
    answer = peers.text_run(model, peers.tokens_of(case[2])).logits.detach().numpy()
    stored.append(_entry(case, shapes, answer[:, -1] if answer.ndim == 3 else answer))
  lines = ',\n'.join(json.dumps(entry) for entry in stored)
  (Path(__file__).parent / 'fixtures' / 'parity.json').write_text(f'[\n{lines}\n]\n')


def _entry(case: tuple[str, str, int], shapes: dict[str, list[int]], answer: np.ndarray) -> dict:
  valued = {name: shape for name, shape in shapes.items() if not name.endswith('num_batches_tracked')}
  return {
    'network': case[0],
    'origin': case[1],
    'side': case[2],
    'shapes': valued,
    'answer': [float(f'{value:.8g}') for value in answer[0]],
  }


if __name__ == '__main__':
  main()
