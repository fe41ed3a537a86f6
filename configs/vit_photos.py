"""A folder of photos, from a ViT-B/16 that learnt ImageNet: fine-tuning by the rules of its paper.

SGD with momentum .9 and without weight decay, gradients clipped at 1, a cosine, a higher resolution (Dosovitskiy et al.
2021, section 4.1): positions of patches go from 14×14 to 24×24 places, and the head is new. Batches are of 64 where the
paper's are of 512, and the rate rises over the first tenth of the steps.

python -m transferlab.main --config=configs/vit_photos.py
Seen: not measured, since the weights were not at hand; the run was tried with weights of random values.
Data: class folders in data/photos/train and data/photos/val; val is what the program tests on.
Weights: vit_b_16-c867db91.pth of torchvision, in weights/; --config.source.weights=FILE takes those of timm, the npz
files of AugReg, or hf:google/vit-base-patch16-224 as well.
"""

import ml_collections


def get_config(arg: str = ''):
  """Photos at 384×384; 'smoke': a run of seconds, at 32×32."""
  smoke = arg == 'smoke'
  size = 32 if smoke else 384

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='vit')
  config.source = dict(weights='weights/vit_b_16-c867db91.pth')
  config.transplant = [('embed/position', 'resize'), ('head', 'init'), ('.*', 'copy')]
  config.target = dict(
    data=dict(
      name='folder:data/photos',
      resize=dict(size=size),
      augment=dict(flip=True),
      validation=0.1,
      batch_size=8 if smoke else 64,
    )
  )
  config.phases = [
    dict(
      name='fine-tune',
      train='.*',
      steps=2 if smoke else 500,
      optimizer='momentum',
      learning_rate=1e-2,
      schedule=dict(name='cosine', warmup=0.1),
      clip=1.0,
    )
  ]
  config.evaluation = dict(every=50, batch_size=64)
  return config
