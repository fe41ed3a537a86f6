"""Accuracy by depth: a network that learnt the digits 0 to 4 is probed at every stage with five examples of 5 to 9.

python -m transferlab.main --config=configs/probe_by_depth.py
Seen (seeds 0 to 4, two CPU cores): test accuracy after block1 .901 ± .008, block2 .885 ± .026, dense .743 ± .082, the
head, which is initialised anew, .620 ± .089: deeper features serve other digits less. A network that learnt nothing
(--config.source=None) does about as well: .889 ± .021, .878 ± .044, .764 ± .066, .530 ± .064; what five examples show
here is the architecture. 6 s, with an empty cache 24 s (on a busy machine).
"""

import ml_collections


def get_config(arg: str = ''):
  """A pretrained source, and a logistic regression on the features of each of its stages; seeds draw the shots."""
  smoke = arg == 'smoke'
  data = dict(name='digits', test=0.5)

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='convnet', width=16, features=64)
  config.source = dict(
    seed=0,
    data=dict(data, classes=[0, 1, 2, 3, 4]),
    phases=[dict(train='.*', epochs=2 if smoke else 40, learning_rate=3e-3, schedule=dict(name='cosine'))],
  )
  config.target = dict(data=dict(data, classes=[5, 6, 7, 8, 9], shots=5, validation=5))
  config.baseline = dict(
    name='logistic_regression', stage='all', pool='flat', penalties=[1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3]
  )
  return config
