"""A frozen convolutional base under a new dense layer, then its last block unfrozen: new classes of CIFAR-10.

TFDS_DATA_DIR=... python -m transferlab.main --config=experiments/cifar10_frozen_base.py

The recipe of the textbooks: a ResNet-20 that learnt airplane to deer is kept as it is; global pooling, a dense layer of
1024 and a new head learn dog to truck from 100 images of each with RMSprop; then the last block joins them at a tenth
of the rate. Data: tfds:cifar10.
"""

import ml_collections


def get_config(arg: str = ''):
  """From scratch, the frozen base, and the base with its last block unfrozen; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'
  data = dict(name='tfds:cifar10', batch_size=128, augment=dict(shift=4, flip=True), statistics='cifar10')
  steps = 2 if smoke else 100
  rmsprop = dict(optimizer='rmsprop', learning_rate=1e-3)
  plain = {'network': None, 'source': None, 'transplant': None}

  config = ml_collections.ConfigDict(convert_dict=False)
  config.base = dict(
    network=dict(name='resnet', depth=20, features=1024),
    source=dict(
      network=dict(name='resnet', depth=20),
      data=dict(data, classes=[0, 1, 2, 3, 4]),
      phases=[
        dict(
          optimizer='momentum',
          learning_rate=0.1,
          weight_decay=[('.*/kernel', 1e-4)],
          schedule=dict(name='cosine', warmup=0.1),
          train='.*',
          steps=2 if smoke else 400,
        )
      ],
    ),
    target=dict(data=dict(data, classes=[5, 6, 7, 8, 9], shots=100, validation=20)),
    transplant=[('dense|head', 'init'), ('.*', 'copy')],
    evaluation=dict(every=50),
  )
  config.axes = dict(
    method={
      'from scratch': {'source': None, 'transplant': None, 'phases': [dict(rmsprop, train='.*', steps=2 * steps)]},
      'frozen base': {'phases': [dict(rmsprop, train='dense|head', steps=2 * steps)]},
      'frozen base, then its last block': {
        'phases': [
          dict(rmsprop, name='dense', train='dense|head', steps=steps),
          dict(rmsprop, name='last block', train='block9|dense|head', steps=steps, learning_rate=1e-4),
        ],
      },
      'logistic regression': {
        **plain, 'baseline': dict(name='logistic_regression'), 'choose': {'baseline.C': [1e-4, 1e-3, 1e-2]},
      },
    },
    seed=[0] if smoke else [0, 1, 2],
  )  # fmt: skip
  config.table = dict(baseline='from scratch')
  config.population = False
  return config
