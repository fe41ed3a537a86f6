"""A folder of photos, from a ResNet-50 that learnt ImageNet: fine-tuning by the rule of Big Transfer, nothing searched.

BiT-HyperRule (Kolesnikov et al. 2020, section 3.3) for fewer than 20,000 photos: 500 steps of SGD with momentum .9 at
rate .003, a tenth of it from 30, 60 and 90 % on, no weight decay, photos brought to 448 pixels and cropped to 384,
mirrored. (For up to 500,000 photos the rule has 10,000 steps and mixup.) The rule's batches are of 512 and its network
has GroupNorm; here they are of 64, at an eighth of the rate, and BatchNorm keeps ImageNet's statistics.

python -m transferlab.main --config=configs/resnet50_photos.py
Seen: not measured, since the weights were not at hand; the run was tried with weights of zeros.
Data: class folders in data/photos/train and data/photos/val; val is what the program tests on.
Weights: resnet50-11ad3fa6.pth of torchvision, in weights/; BiT-M-R50x1.npz with --config.network.name=bit, or those of
Keras or timm: --config.source.weights=FILE.
"""

import ml_collections


def get_config(arg: str = ''):
  """Photos at 384×384; 'smoke': a run of seconds, at 32×32."""
  smoke = arg == 'smoke'

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='imagenet_resnet', depth=50)
  config.source = dict(weights='weights/resnet50-11ad3fa6.pth')
  config.transplant = [('head', 'init'), ('.*', 'copy')]
  config.target = dict(
    data=dict(
      name='folder:data/photos',
      resize=dict(size=40 if smoke else 448),
      augment=dict(crop=32 if smoke else 384, flip=True),
      validation=0.1,
      batch_size=8 if smoke else 64,
    )
  )
  config.phases = [
    dict(
      name='fine-tune',
      train='.*',
      statistics='frozen',
      steps=2 if smoke else 500,
      optimizer='momentum',
      learning_rate=3e-3 / 8,
      schedule=dict(name='step', at=[0.3, 0.6, 0.9], factor=0.1),
    )
  ]
  config.evaluation = dict(every=100, batch_size=64)
  return config
