"""Writes parity.json: what models of torchvision, PyTorch, timm and Keras answer, for those who have none of them.

python tests/make_parity.py

Weights and images are drawn from their names, so that only names, shapes and answers are stored.
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
  (Path(__file__).parent / 'fixtures' / 'parity.json').write_text(json.dumps(stored, indent=1) + '\n')


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
