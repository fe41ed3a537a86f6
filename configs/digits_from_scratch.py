"""From scratch: the noisy digits of digits_few_shot.py, five examples of each, without a source.

python -m transferlab.main --config=configs/digits_from_scratch.py
Seen (seeds 5 to 9, two CPU cores): test accuracy .379 ± .030; 5 s, with an empty cache 11 s.
"""

import ml_collections


def get_config(arg: str = ''):
  """One phase that trains everything from its initialisation."""
  smoke = arg == 'smoke'

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='convnet', width=16, features=64)
  config.target = dict(
    data=dict(name='digits', test=0.5, half=1, noise=0.5, shots=5, validation=5, batch_size=32),
  )
  config.phases = [dict(train='.*', steps=20 if smoke else 300, learning_rate=3e-3, schedule=dict(name='cosine'))]
  config.evaluation = dict(every=20)
  return config
