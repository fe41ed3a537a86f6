"""From CIFAR-10 to MNIST: a published ResNet-20, its first convolution summed to one channel, ten images a class.

The .th file says which network it is (depth, width, shortcut), and its images' normalisation comes with it; --dry_run
shows where every leaf comes from.

python -m transferlab.main --config=configs/cifar10_to_mnist.py
Seen (seed 0, two CPU cores): test accuracy .863 at the selected step, .874 at the last; 49 s.
Data: tfds:mnist. Weights: resnet20-12fca82f.th of akamaster/pytorch_resnet_cifar10, in weights/; others with
--config.source.weights=FILE.
"""

import ml_collections


def get_config(arg: str = ''):
  """Head, then everything; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'
  momentum = dict(optimizer='momentum', schedule=dict(name='cosine'))

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='resnet')
  config.source = dict(weights='weights/resnet20-12fca82f.th')
  config.transplant = [('stem', 'channels:sum'), ('head', 'init'), ('.*', 'copy')]
  config.target = dict(
    data=dict(name='tfds:mnist', shots=10, validation=10, batch_size=50, augment=dict(shift=2)),
  )
  config.phases = [
    dict(momentum, name='head', train='head', learning_rate=0.1, steps=2 if smoke else 40),
    dict(momentum, name='all', train='.*', learning_rate=0.02, steps=2 if smoke else 100),
  ]
  config.evaluation = dict(every=20)
  return config
