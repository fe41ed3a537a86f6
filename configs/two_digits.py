"""Two tasks, one trunk: which digit stands at the top left, and which at the bottom right, of two laid over each other.

Half of the right digits' labels are missing; the gradients of the two losses are freed of what conflicts (PCGrad).

python -m transferlab.main --config=configs/two_digits.py
Seen (seed 0, two CPU cores): test accuracy .961 left, .957 right; 27 s on a busy machine.
"""

import ml_collections


def get_config(arg: str = ''):
  """A convnet whose last block each task has to itself; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='convnet', width=16, sharing=dict(name='branched', stage='dense'))
  data = dict(name='digits', overlay=dict(canvas=12), test=0.3, validation=10, keep_labels=dict(right=0.5))
  config.target = dict(data=data)
  config.balancing = dict(name='pcgrad')
  config.phases = [
    dict(steps=4 if smoke else 600, optimizer='adam', learning_rate=2e-3, schedule=dict(name='cosine')),
  ]
  return config
