"""Two digits in one image: tuned sums of two losses, thirteen ways to balance them, and networks of one task each.

python -m transferlab.main --config=experiments/multi_digit.py

MultiMNIST in the form of Sener and Koltun 2018: a digit at the top left of 36 x 36 pixels, another of the same split at
the bottom right, the larger value where both are, brought to 28 x 28 by area (data/overlay.py; pairs are fixed by
split_seed). Published there (left, right; another generator): one task 97.23, 95.90; uniform 96.46, 94.99; uncertainty
96.47, 95.29; GradNorm 96.27, 94.84; MGDA-UB 97.26, 95.90.
Every row chooses its rate on validation data from the same three; 'tuned sum' also the share of the left digit. The CPU
profile trains a small convnet on 11,000 pairs for 400 steps, three seeds; ':full' on 55,000 for 4,300, five seeds.
Seen (CPU profile, two cores, 29 min): no balancer differs from the sum, all are behind single tasks (multi_digit.md);
':full' was not run. Data: tfds:mnist.
"""

import ml_collections

BALANCERS = {
  'random weights': dict(name='random_weights'),
  'uncertainty': dict(name='uncertainty'),
  'dynamic weight average': dict(name='dynamic_weight_average', every=50),
  'geometric mean': dict(name='geometric_mean'),
  'GradNorm': dict(name='gradnorm'),
  'FAMO': dict(name='famo'),
  'MGDA': dict(name='mgda'),
  'MGDA-UB': dict(name='mgda', level='representation'),
  'PCGrad': dict(name='pcgrad'),
  'CAGrad': dict(name='cagrad', c=0.5),
  'IMTL-G': dict(name='imtl_g'),
  'Nash-MTL': dict(name='nash'),
  'Aligned-MTL': dict(name='aligned_mtl'),
}


def get_config(arg: str = ''):
  """Rows of losses, balancers and single tasks; 'smoke': four of them in seconds; 'full': as the docstring says."""
  smoke, full = arg == 'smoke', arg == 'full'
  data = dict(name='tfds:mnist', train='train[:55000]', validation='train[55000:]', batch_size=128)
  data |= dict(overlay=dict(canvas=36, size=28))
  if not full:
    data |= dict(fraction=0.01 if smoke else 0.2)
  rates = [1e-3] if smoke else [5e-4, 1e-3, 2e-3]
  phase = dict(steps=4 if smoke else 4300 if full else 400, optimizer='adam', schedule=dict(name='cosine'))
  chosen = {'phases.0.learning_rate': rates}

  def loss(task: str, weight: float = 1.0) -> dict:
    return dict(term='cross_entropy', task=task, weight=weight)

  # Weights that add up to 2, so that the rates mean the same.
  shares = {'objective': [[loss('left', w), loss('right', 2 - w)] for w in ([1.0] if smoke else [0.7, 1.0, 1.3])]}
  rows = {
    'left alone': {'objective': [loss('left')], 'evaluation.select': 'left/accuracy', 'choose': chosen},
    'right alone': {'objective': [loss('right')], 'evaluation.select': 'right/accuracy', 'choose': chosen},
    'sum': {'choose': chosen},
    'tuned sum': {'choose': {**chosen, **shares}},
    **{name: {'balancing': spec, 'choose': chosen} for name, spec in BALANCERS.items()},
  }
  if smoke:
    rows = {name: rows[name] for name in ('left alone', 'right alone', 'sum', 'PCGrad')}

  config = ml_collections.ConfigDict(convert_dict=False)  # axes have dotted keys
  config.base = dict(
    network=dict(name='convnet', width=8, features=64),
    target=dict(data=data),
    phases=[phase],
    evaluation=dict(every=4 if smoke else 100, batch_size=1000),
  )
  config.axes = dict(method=rows, seed=[0] if smoke else [0, 1, 2, 3, 4] if full else [0, 1, 2])
  both = ['test:left/accuracy', 'test:right/accuracy']
  config.table = dict(baseline='tuned sum' if not smoke else 'sum', also=both, tradeoff=True)
  config.table |= dict(single=dict(left='left alone', right='right alone'))
  return config
