"""A folder of photos, from a DINOv2 ViT-S/14 that no label has taught: a linear probe.

The frozen network is run once over the photos and their mirror images; what it gives is kept, and the head, which sees
the class token and the mean over patches side by side, trains on that (Oquab et al. 2024, section 7.1, probe such
features). --config.phases=[] --config.baseline.name=logistic_regression --config.baseline.stage=all looks at every
block instead.

python -m transferlab.main --config=configs/vit_probe.py
Seen: not measured, since the weights were not at hand; the run was tried with weights of random values.
Data: class folders in data/photos/train and data/photos/val; val is what the program tests on.
Weights: a folder with model.safetensors, config.json and preprocessor_config.json of facebook/dinov2-small; or
--config.source.weights=hf:facebook/dinov2-small
"""

import ml_collections


def get_config(arg: str = ''):
  """Photos at 224×224; 'smoke': a run of seconds, at 28×28."""
  smoke = arg == 'smoke'

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='vit')
  config.source = dict(weights='weights/dinov2-small')
  config.transplant = [('embed/position', 'resize'), ('head', 'init'), ('.*', 'copy')]
  config.target = dict(
    data=dict(
      name='folder:data/photos',
      resize=dict(size=28 if smoke else 224),
      augment=dict(flip=True, views=2),
      validation=0.2,
      batch_size=8 if smoke else 64,
    )
  )
  config.phases = [dict(name='probe', train='head', steps=2 if smoke else 500, optimizer='adam', learning_rate=1e-3)]
  config.evaluation = dict(every=100, batch_size=64)
  return config
