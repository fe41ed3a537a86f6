"""A folder of photos, from a MobileNet v1 that learnt ImageNet: a probe, then everything at a lower rate.

Width and preprocessing come with the weights; the head is new. The photos are in class folders under train and val, and
val is what the program tests on, once; choices are made on a quarter of train.

python -m transferlab.main --config=configs/mobilenet_photos.py
Seen (seed 0, two CPU cores): test accuracy .902 at the selected step, .895 at the last; 57 s.
Data: hymenoptera_data.zip of PyTorch's transfer-learning tutorial, unpacked in data/.
Weights: mobilenet_2_5_224_tf.h5 of keras.applications, in weights/; others with --config.source.weights=FILE.
"""

import ml_collections


def get_config(arg: str = ''):
  """Photos at 224×224; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'
  adam = dict(optimizer='adam', steps=2 if smoke else 60)

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='mobilenet')
  config.source = dict(weights='weights/mobilenet_2_5_224_tf.h5')
  config.transplant = [('head', 'init'), ('.*', 'copy')]
  config.target = dict(
    data=dict(
      name='folder:data/hymenoptera_data',
      resize=dict(size=256),
      augment=dict(crop=224, flip=True),
      validation=0.25,
      batch_size=32,
    )
  )
  config.phases = [
    dict(adam, name='probe', train='head', learning_rate=1e-2),
    dict(adam, name='fine-tune', train='.*', learning_rate=[('head', 1e-3), ('.*', 1e-4)], statistics='frozen'),
  ]
  config.evaluation = dict(every=20, batch_size=64)
  return config
