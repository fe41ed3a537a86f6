"""From red wine to white: a regression network of two dense layers, pretrained on one, saved, loaded, fine-tuned.

Quality (3 to 9, by tasters) from 11 measurements. The source is pretrained in a run of its own folder, whose checkpoint
is found again by every run that shares it; the target is 36 white wines, and few-shot regression is where a source may
help. experiments/wine_red_to_white.py compares it with training from scratch and with ridge regression.

python -m transferlab.main --config=configs/wine_red_to_white.py
Seen (seed 0, two CPU cores): mean absolute error on test .826, R² -.39: 36 bottles say less than the mean does; 5 s.
Data: winequality-red.csv and winequality-white.csv of the UCI repository (comma-separated, header with underscores), in
the folder that TRANSFERLAB_DATA names, or data/.
"""

import os

import ml_collections


def get_config(arg: str = ''):
  """Dense 128, dense 64; 'smoke' gives a run of seconds."""
  smoke = arg == 'smoke'
  folder = os.environ.get('TRANSFERLAB_DATA', 'data')
  data = dict(label='quality', task='regression', batch_size=32)
  adam = dict(optimizer='adam', learning_rate=1e-3)

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='mlp', hidden=[128, 64])
  config.source = dict(
    data=dict(data, name=f'csv:{folder}/winequality-red.csv', validation=0.1),
    phases=[dict(adam, epochs=2 if smoke else 30)],
  )
  config.target = dict(data=dict(data, name=f'csv:{folder}/winequality-white.csv', validation=100, fraction=0.01))
  config.phases = [
    dict(adam, name='head', train='head', steps=20 if smoke else 100),
    dict(adam, name='fine_tune', train='.*', steps=20 if smoke else 100, learning_rate=1e-4),
  ]
  config.evaluation = dict(every=20)
  return config
