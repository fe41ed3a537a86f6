"""From red wine to white: what a source is worth for a table, against classical methods.

TRANSFERLAB_DATA=... python -m transferlab.main --config=experiments/wine_red_to_white.py

Quality of white wine (regression, 11 measurements) from about 40 bottles, pretrained on red wine. Data: the wine
quality tables of the UCI repository, comma-separated with a header, in the folder that TRANSFERLAB_DATA names, or
data/.
"""

import os

import ml_collections


def get_config(arg: str = ''):
  """Dense 128, dense 64; 'smoke' gives a run of seconds."""
  smoke = arg == 'smoke'
  folder = os.environ.get('TRANSFERLAB_DATA', 'data')
  steps = 20 if smoke else 400
  data = dict(label='quality', task='regression', batch_size=32)
  adam = dict(optimizer='adam')
  rates = {'choose': {'phases.0.learning_rate': [1e-3, 3e-3, 1e-2]}}
  plain = {'network': None, 'source': None}

  config = ml_collections.ConfigDict(convert_dict=False)
  config.base = dict(
    network=dict(name='mlp', hidden=[128, 64]),
    source=dict(
      data=dict(data, name=f'csv:{folder}/winequality-red.csv', validation=0.1),
      phases=[dict(adam, epochs=2 if smoke else 30, learning_rate=1e-3)],
    ),
    target=dict(data=dict(data, name=f'csv:{folder}/winequality-white.csv', validation=40, fraction=0.011)),
    evaluation=dict(every=20),
  )
  config.axes = dict(
    method={
      'from scratch': {**rates, 'source': None, 'phases': [dict(adam, train='.*', steps=steps)]},
      'linear probe': {**rates, 'phases': [dict(adam, train='head', steps=steps)]},
      'full fine-tuning': {**rates, 'phases': [dict(adam, train='.*', steps=steps)]},
      'ridge regression': {
        **plain, 'baseline': dict(name='ridge'), 'choose': {'baseline.alpha': [1.0, 10.0, 100.0]},
      },
    },
    seed=[0] if smoke else [0, 1, 2, 3, 4],
  )  # fmt: skip
  config.table = dict(baseline='from scratch', metric='mean_absolute_error')
  return config
