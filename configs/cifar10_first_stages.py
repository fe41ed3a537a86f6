"""The first k stages of a ResNet-20 that learnt half of CIFAR-10, copied and frozen, under the rest for the other half.

Yosinski et al. (2014) on a small scale: stem, block1, …, block9 learn airplane, automobile, bird, cat and deer; the
first k of these are copied and kept, and what stands above learns dog, frog, horse, ship and truck from 100 images of
each. `cifar10_first_stages.py:4` copies four stages (no number: six); `:0` is from scratch.

python -m transferlab.main --config=configs/cifar10_first_stages.py
Seen (seed 0, two CPU cores, tfds:cifar10_jpeg in place of the data): test accuracy .691; 290 s, of which 245 pretrain.
Every k: experiments/cifar10_first_stages.md.
Data: tfds:cifar10, prepared where TFDS_DATA_DIR says (TFDS fetches it where there is none; that needs TensorFlow once).
"""

import ml_collections

STAGES = ['stem', *(f'block{number}' for number in range(1, 10)), 'head']


def get_config(arg: str = ''):
  """An argument: the number of stages copied and frozen, 0 to 10; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'
  copied = 6 if smoke or not arg else int(arg)
  data = dict(name='tfds:cifar10', batch_size=128, augment=dict(shift=4, flip=True), statistics='cifar10')
  method = dict(optimizer='momentum', learning_rate=0.1, weight_decay=[('.*/kernel', 1e-4)])
  schedule = dict(name='cosine', warmup=0.1)

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='resnet', depth=8 if smoke else 20)
  config.target = dict(data=dict(data, classes=[5, 6, 7, 8, 9], shots=100, validation=20))
  if copied:
    config.source = dict(
      data=dict(data, classes=[0, 1, 2, 3, 4]),
      phases=[dict(method, schedule=schedule, steps=2 if smoke else 400)],
    )
    config.transplant = [('|'.join(STAGES[:copied]), 'copy'), ('.*', 'init')]
  config.phases = [dict(method, schedule=schedule, train='|'.join(STAGES[copied:]), steps=2 if smoke else 100)]
  config.evaluation = dict(every=50)
  return config
