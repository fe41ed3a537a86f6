"""Five ways to transfer, and two that do not, on handwritten digits: the quickstart.

python -m transferlab.main --config=experiments/digits_methods.py
"""

import ml_collections


def get_config(arg: str = ''):
  """The comparison; 'smoke' makes it a run of seconds."""
  smoke = arg == 'smoke'
  steps = 20 if smoke else 200
  rates = [1e-3, 3e-3, 1e-2]
  data = dict(name='digits', validation=5, test=0.5, batch_size=32)
  adam = dict(optimizer='adam', schedule=dict(name='cosine'))
  full = dict(adam, train='.*', steps=steps)
  head = dict(adam, train='head', steps=steps)
  neural = {'choose': {'phases.0.learning_rate': rates}}

  config = ml_collections.ConfigDict(convert_dict=False)  # axes have dotted keys
  config.base = dict(
    network=dict(name='convnet', width=16, features=64),
    source=dict(phases=[dict(adam, train='.*', steps=2 * steps, learning_rate=3e-3)]),
    target=dict(data=data),
    evaluation=dict(every=20),
  )
  config.axes = dict(
    pair={
      'digits to noisy digits': {
        'source.data': dict(data, half=0),
        'target.data': dict(data, half=1, noise=0.5, shots=5),
      },
      'digits 0-4 to 5-9': {
        'source.data': dict(data, classes=[0, 1, 2, 3, 4]),
        'target.data': dict(data, classes=[5, 6, 7, 8, 9], shots=10),
      },
    },
    method={
      'from scratch': {**neural, 'source': None, 'phases': [full]},
      'linear probe': {**neural, 'phases': [head]},
      'full fine-tuning': {**neural, 'phases': [full]},
      'probe, then fine-tune': {
        'phases': [dict(head, name='probe', steps=steps // 2, learning_rate=1e-2), dict(full, steps=steps // 2)],
        'choose': {'phases.1.learning_rate': rates},
      },
      'last stages': {**neural, 'phases': [dict(full, train='dense|head')]},
      'logistic regression': {
        'network': None,
        'source': None,
        'baseline': dict(name='logistic_regression'),
        'choose': {'baseline.C': [0.01, 0.1, 1.0]},
      },
      'nearest neighbours': {
        'network': None,
        'source': None,
        'baseline': dict(name='nearest_neighbours'),
        'choose': {'baseline.neighbours': [1, 3, 5]},
      },
    },
    seed=[0] if smoke else [0, 1, 2, 3, 4],
  )
  config.table = dict(baseline='from scratch')
  return config
