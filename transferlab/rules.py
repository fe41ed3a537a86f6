"""Hyper-parameters from the size of a data set and its images: rules that replace a search. Pure.

    config.update(rules.bit_hyperrule(examples=2_000, resolution=224))

A rule returns a part of a config: how images are resized and changed, batch size, phases. `resize` is for images that
are read from files (folders and TFDS). What a rule does not say stays as it was, and what is set after it wins.
"""

from typing import Any

from transferlab.errors import UserError

# Kolesnikov et al. 2020, section 3.3: data sets below 20,000 examples are small, below 500,000 medium, others large.
SMALL, MEDIUM = 20_000, 500_000
SMALL_AREA = 96 * 96  # pixels
BATCH = 512


def bit_hyperrule(examples: int, resolution: int | tuple[int, int]) -> dict[str, Any]:
  """The BiT-HyperRule, for convolutional networks trained by SGD (Kolesnikov et al. 2020, section 3.3).

  SGD with momentum 0.9, rate 0.003, batches of 512, no weight decay, 500, 10,000 or 20,000 steps; mixup with α = 0.1
  unless the data set is small. Images below 96×96 are brought to 160×160 and cropped to 128×128, others to 512×512 and
  480×480; flips are for tasks where they are natural.

  Warm-up and decay by 10 are at the steps of the authors' program (bit_hyperrule.py): warm-up over 100 steps for small
  data sets and 500 else; decay at 30, 60 and 90 % as the paper says, but at 40, 60 and 80 % for small ones. In that
  program test images are brought to the side of the crop; here, as everywhere in this one, the centre is cut out.

  Args:
    examples: how many there are to train on.
    resolution: side of the original images in pixels, or (height, width).

  Returns:
    `{'target': {'data': …}, 'phases': [one phase]}`.

  Raises:
    UserError: a number that is not positive.
  """
  side, crop = (160, 128) if _area(examples, resolution) < SMALL_AREA else (512, 480)
  steps, warm = _length(examples)
  at = [0.4, 0.6, 0.8] if examples < SMALL else [0.3, 0.6, 0.9]
  phase = dict(
    name='bit_hyperrule',
    train='.*',
    steps=steps,
    optimizer='momentum',
    learning_rate=0.003,
    schedule=dict(name='step', warmup=warm / steps, at=at, factor=0.1),
  )
  augment = dict(crop=crop, flip=True, mixup=0.0 if examples < SMALL else 0.1)
  return _part(dict(resize=dict(size=side, mode='exact'), augment=augment), phase)


def vit_rule(examples: int, resolution: int | tuple[int, int]) -> dict[str, Any]:
  """A rule for vision transformers trained by AdamW.

  No paper has it in this form. From He et al. 2022 (MAE, table 9, and for ViT-B the authors' FINETUNE.md): AdamW with
  β = 0.9, 0.999, rate 5e-4 · batch size / 256, weight decay 0.05 on kernels only, layer-wise decay 0.65 (0.75 for
  ViT-L), a cosine after the warm-up, and, unless the data set is small, RandAugment of magnitude 9, erasing 0.25, mixup
  0.8 and cutmix 1.0 on random resized crops, with label smoothing 0.1. (Stochastic depth would be the network's.)
  From Steiner et al. 2022, by SGD there (the authors' big_vision/configs/transfer.py): batches of 512, the
  gradient clipped to norm 1, a warm-up of 100 or 500 steps, 448×448 cropped to 384×384. From Kolesnikov et al. 2020
  (section 3.3): the number of steps, and what is small. Ours: putting these together; 256 cropped to 224 for images
  below 96×96, to which 384 adds no detail; and no strong augmentation for small data sets, whose 500 steps are too few.

  Args:
    examples: how many there are to train on.
    resolution: side of the original images in pixels, or (height, width).

  Returns:
    `{'target': {'data': …}, 'phases': [one phase], 'objective': …}`.

  Raises:
    UserError: a number that is not positive.
  """
  side, crop = (256, 224) if _area(examples, resolution) < SMALL_AREA else (448, 384)
  steps, warm = _length(examples)
  phase = dict(
    name='vit_rule',
    train='.*',
    steps=steps,
    optimizer='adamw',
    optimizer_options=dict(b1=0.9, b2=0.999),
    learning_rate=5e-4 * BATCH / 256,
    layer_decay=0.65,
    weight_decay=[('.*/kernel', 0.05)],
    schedule=dict(name='cosine', warmup=warm / steps),
    clip=1.0,
  )
  augment: dict[str, Any] = dict(crop=crop, flip=True)
  if examples >= SMALL:
    strong = dict(resized_crop=[0.08, 1.0], randaugment=dict(layers=2, magnitude=9.0), erase=0.25)
    augment |= strong | dict(mixup=0.8, cutmix=1.0)
  smoothing = dict(smoothing=0.1) if examples >= SMALL else {}
  return _part(dict(resize=dict(size=side), augment=augment), phase) | {
    'objective': [dict(term='cross_entropy', **smoothing)]
  }


def _length(examples: int) -> tuple[int, int]:
  """(steps, steps of warm-up)."""
  return (500, 100) if examples < SMALL else (10_000, 500) if examples < MEDIUM else (20_000, 500)


def _area(examples: int, resolution: int | tuple[int, int]) -> int:
  height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
  for name, value in (('examples', examples), ('resolution', height), ('resolution', width)):
    if not value > 0:
      raise UserError(f'{name} should be positive, not {value}')
  return height * width


def _part(data: dict[str, Any], phase: dict[str, Any]) -> dict[str, Any]:
  return {'target': {'data': {**data, 'batch_size': BATCH}}, 'phases': [phase]}
