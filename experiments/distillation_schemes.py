"""Ways to learn from answers: a teacher's, one's own of an earlier generation, a companion's, one's own average.

python -m transferlab.main --config=experiments/distillation_schemes.py

A small ResNet on digits, 20 labels of each class; the teacher is a wider one that has seen all of the training digits.
Every row trains for the same number of steps, with rates as given; 'plain' and 'kd' differ in the term alone.
"""

import ml_collections

KD = dict(term='kd', temperature=4.0)
LABELS = dict(term='cross_entropy')


def get_config(arg: str = ''):
  """Eleven rows and five seeds; 'smoke': three rows in seconds."""
  smoke = arg == 'smoke'
  digits = dict(name='digits', test=0.5, validation=10, batch_size=32)
  few = dict(digits, shots=20)
  small, wide = dict(name='resnet', depth=8, width=4), dict(name='resnet', depth=8, width=16)
  method = dict(optimizer='adam', learning_rate=3e-3, schedule=dict(name='cosine', warmup=0.1))
  phases = [dict(method, steps=10 if smoke else 300)]
  teacher = dict(data=digits, network=wide, phases=phases)
  plain = dict(data=few, phases=phases)
  again = dict(plain, objective=[LABELS, KD], teachers=dict(previous=plain))

  def taught(*terms: dict, by: dict | None = None, **more) -> dict:
    return {'teachers': {'teacher': by or teacher}, 'objective': [LABELS, *terms], **more}

  rows = {
    'plain': {},
    'kd': taught(KD),
    'kd from T = 8 to 1': taught(dict(KD, temperature=[8.0, 1.0])),
    'kd, standardised': taught(dict(KD, temperature=2.0, standardize=True)),
    'kd without labels': {
      **taught(KD),
      'objective': [KD],
      'target.data': dict(digits, fraction=0.5, labelled=False),
    },
    'kd from a transplant': taught(
      KD, source=dict(data=dict(digits, half=0), phases=phases), transplant=[('head', 'init'), ('.*', 'copy')]
    ),
    'born again, second': taught(KD, by=plain),
    'born again, third': taught(KD, by=again),
    'mutual': {'objective': [LABELS, dict(term='mutual', networks=[small])]},
    'self-distillation': {'objective': [LABELS, dict(term='self_distillation', stages=['block1', 'block2'])]},
    'mean teacher': {
      'objective': [LABELS, dict(term='mean_teacher', decay=0.95, weight=10.0, schedule=dict(warmup=0.3))]
    },
  }
  if smoke:
    rows = {name: rows[name] for name in ('plain', 'kd', 'mutual')}

  config = ml_collections.ConfigDict(convert_dict=False)  # axes have dotted keys
  config.base = dict(network=small, target=dict(data=few), phases=phases, evaluation=dict(every=50))
  config.axes = dict(method=rows, seed=[0] if smoke else [0, 1, 2, 3, 4])
  config.table = dict(baseline='plain')
  return config
