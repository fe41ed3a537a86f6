"""A folder of photos, from a DINOv2 ViT-S/14 that no label has taught: a linear probe, and a regression on each block.

The frozen network is run once over the photos and their mirror images; what it gives is kept, and the head trains on
that (Oquab et al. 2024, section 7.1, probe such features, at 224×224 as here). The baseline is a logistic regression on
the mean over tokens behind every block, for those who want to see at which depth a class becomes linear.

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
  config.baseline = dict(name='logistic_regression', stage='all', pool='mean', penalties=[1e-2, 1.0, 1e2])
  config.evaluation = dict(every=100, batch_size=64)
  return config
