"""A frozen convolutional base, global pooling, a dense layer of 1024, new classes; then the last block is unfrozen.

The recipe of the textbooks: a ResNet-20 learns airplane to deer of CIFAR-10; its convolutions are kept as they are
while a dense layer and a head on top learn dog to truck from 100 images of each with RMSprop; then the last block joins
them at a tenth of the rate.

python -m transferlab.main --config=configs/cifar10_frozen_base.py
Seen (seed 0, two CPU cores, tfds:cifar10_jpeg in place of the data): test accuracy .641; 32 s, and 245 to pretrain,
once for this config and cifar10_first_stages.py. Against others: experiments/cifar10_frozen_base.md.
Data: tfds:cifar10, prepared where TFDS_DATA_DIR says (TFDS fetches it where there is none; that needs TensorFlow once).
"""

import ml_collections


def get_config(arg: str = ''):
  """Two phases; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'
  data = dict(name='tfds:cifar10', batch_size=128, augment=dict(shift=4, flip=True), statistics='cifar10')
  base = dict(name='resnet', depth=8 if smoke else 20)
  pretraining = dict(
    optimizer='momentum',
    learning_rate=0.1,
    weight_decay=[('.*/kernel', 1e-4)],
    schedule=dict(name='cosine', warmup=0.1),
    steps=2 if smoke else 400,
  )
  rmsprop = dict(optimizer='rmsprop', steps=2 if smoke else 100)

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(base, features=1024)
  config.source = dict(network=base, data=dict(data, classes=[0, 1, 2, 3, 4]), phases=[pretraining])
  config.target = dict(data=dict(data, classes=[5, 6, 7, 8, 9], shots=100, validation=20))
  config.transplant = [('dense|head', 'init'), ('.*', 'copy')]
  config.phases = [
    dict(rmsprop, name='dense', train='dense|head', learning_rate=1e-3),
    dict(rmsprop, name='last block', train='block9|dense|head', learning_rate=1e-4),
  ]
  if smoke:
    config.phases[1]['train'] = 'block3|dense|head'
  config.evaluation = dict(every=50)
  return config
