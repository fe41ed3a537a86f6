"""How general are the first k stages of a ResNet-20? Copied and frozen, for every k, from half of CIFAR-10's classes.

TFDS_DATA_DIR=... python -m transferlab.main --config=experiments/cifar10_first_stages.py

Airplane to deer teach all stages; the first k are copied and kept, and those above learn dog to truck from 100 images
of each, as does the whole network from scratch, and once after a copy of all stages but the head, none of them frozen
(Yosinski et al. 2014, on a small scale). Data: tfds:cifar10.
"""

import ml_collections

STAGES = ['stem', *(f'block{number}' for number in range(1, 10)), 'head']


def get_config(arg: str = ''):
  """Every k from 0 to 10, on three seeds; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'
  data = dict(name='tfds:cifar10', batch_size=128, augment=dict(shift=4, flip=True), statistics='cifar10')
  method = dict(
    optimizer='momentum',
    learning_rate=0.1,
    weight_decay=[('.*/kernel', 1e-4)],
    schedule=dict(name='cosine', warmup=0.1),
  )
  steps = 2 if smoke else 100

  def copied(count: int) -> dict:
    return {
      'transplant': [('|'.join(STAGES[:count]), 'copy'), ('.*', 'init')],
      'phases': [dict(method, train='|'.join(STAGES[count:]), steps=steps)],
    }

  everything = [dict(method, train='.*', steps=steps)]
  counts = [1, 6] if smoke else range(1, 11)

  config = ml_collections.ConfigDict(convert_dict=False)
  config.base = dict(
    network=dict(name='resnet', depth=20),
    source=dict(
      data=dict(data, classes=[0, 1, 2, 3, 4]),
      phases=[dict(method, train='.*', steps=2 if smoke else 400)],
    ),
    target=dict(data=dict(data, classes=[5, 6, 7, 8, 9], shots=100, validation=20)),
    evaluation=dict(every=50),
  )
  config.axes = dict(
    method={
      'from scratch': {'source': None, 'transplant': None, 'phases': everything},
      **{f'first {count} frozen, to {STAGES[count - 1]}': copied(count) for count in counts},
      'all copied, none frozen': {'phases': everything},
    },
    seed=[0] if smoke else [0, 1, 2],
  )
  config.table = dict(baseline='from scratch')
  config.population = False
  return config
