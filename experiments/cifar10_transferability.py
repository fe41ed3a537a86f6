"""How transferable are the first n stages of a ResNet-20? Frozen or fine-tuned, from its own classes or from others.

TFDS_DATA_DIR=... python -m transferlab.main --config=experiments/cifar10_transferability.py

In the manner of Yosinski et al. 2014, figure 2. Network B learns dog to truck (five classes of CIFAR-10), network A
airplane to deer. The first n stages of either are copied; those above are new, and learn B's classes on B's images. BnB
and AnB keep what was copied as it is, BnB+ and AnB+ let it move. BnB loses where neighbouring stages had adapted to one
another and cannot find together again, AnB also where stages have become specific to A; AnB+ shows what transfer gives
beyond the start. The CPU profile takes 250 images of each class and two seeds; ':full' takes all and five.
Data: tfds:cifar10.
"""

import ml_collections

STAGES = ['stem', *(f'block{number}' for number in range(1, 10)), 'head']


def get_config(arg: str = ''):
  """Five curves over n; 'smoke': a run of seconds; 'full': as the docstring says."""
  smoke, whole = arg == 'smoke', arg == 'full'
  data = dict(name='tfds:cifar10', batch_size=128, statistics='cifar10', augment=dict(flip=True, views=2))
  data['fraction'] = 0.004 if smoke else 1.0 if whole else 0.05
  method = dict(
    optimizer='momentum',
    learning_rate=0.1,
    weight_decay=[('.*/kernel', 1e-4)],
    schedule=dict(name='cosine', warmup=0.1),
    steps=2 if smoke else 4000 if whole else 80,
  )
  classes = {'A': [0, 1, 2, 3, 4], 'B': [5, 6, 7, 8, 9]}

  def source(name: str) -> dict:
    return {'source': dict(data=dict(data, classes=classes[name]), phases=[dict(method, train='.*')])}

  def copied(count: int) -> dict:
    return {
      'transplant': [('|'.join(STAGES[:count]), 'copy'), ('.*', 'init')],
      'phases.0.train': '|'.join(STAGES[count:]),
    }

  config = ml_collections.ConfigDict(convert_dict=False)  # axes have dotted keys
  config.base = dict(
    network=dict(name='resnet', depth=20),
    target=dict(data=dict(data, classes=classes['B'])),
    phases=[dict(method)],
    evaluation=dict(batch_size=500),
  )
  config.axes = dict(
    n={count: copied(count) for count in ([1, 10] if smoke else [1, 3, 5, 7, 9, 10])},
    network={
      'B': {'source': None, 'transplant': None, 'phases.0.train': '.*'},
      'BnB': source('B'),
      'BnB+': {**source('B'), 'phases.0.train': '.*'},
      'AnB': source('A'),
      'AnB+': {**source('A'), 'phases.0.train': '.*'},
    },
    seed=[0] if smoke else [0, 1, 2, 3, 4] if whole else [0, 1],
  )
  config.population = whole  # on a CPU runs of convolutions side by side take memory and save no time
  config.table = dict(rows='network', baseline='B', along='n')
  return config
