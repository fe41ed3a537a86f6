"""Income across occupations: trained on one half of the occupations, moved to the other, against classical methods.

TRANSFERLAB_DATA=... python -m transferlab.main --config=experiments/adult_occupations.py

50 people of each class from six occupations; the source saw six others. The first layer's rows are carried over by the
names of the columns. Data: the adult tables of the UCI repository, with a header, in the folder that TRANSFERLAB_DATA
names, or data/.
"""

import os

import ml_collections

FIRST = ['Adm-clerical', 'Craft-repair', 'Exec-managerial', 'Farming-fishing', 'Handlers-cleaners', 'Machine-op-inspct']
SECOND = ['Other-service', 'Prof-specialty', 'Protective-serv', 'Sales', 'Tech-support', 'Transport-moving']


def get_config(arg: str = ''):
  """Dense 128, dense 64; 'smoke' gives a run of seconds."""
  smoke = arg == 'smoke'
  folder = os.environ.get('TRANSFERLAB_DATA', 'data')
  steps = 20 if smoke else 100
  data = dict(name=f'csv:{folder}/adult-{{train,test}}.csv', label='income', batch_size=64)
  adam = dict(optimizer='adam')
  rates = {'choose': {'phases.0.learning_rate': [1e-4, 3e-4, 1e-3]}}
  plain = {'network': None, 'source': None, 'transplant': None}

  config = ml_collections.ConfigDict(convert_dict=False)
  config.base = dict(
    network=dict(name='mlp', hidden=[128, 64]),
    source=dict(
      data=dict(data, where=dict(occupation=FIRST), validation=0.1),
      phases=[dict(adam, steps=20, learning_rate=1e-3) if smoke else dict(adam, epochs=3, learning_rate=1e-3)],
    ),
    target=dict(data=dict(data, where=dict(occupation=SECOND), validation=50, shots=50)),
    transplant=[('layer1/linear/kernel', 'columns'), ('.*', 'copy')],
    evaluation=dict(every=10, metrics=['balanced_accuracy', 'accuracy', 'auroc'], select='balanced_accuracy'),
  )
  config.axes = dict(
    method={
      'from scratch': {**rates, 'source': None, 'transplant': None, 'phases': [dict(adam, train='.*', steps=steps)]},
      'linear probe': {**rates, 'phases': [dict(adam, train='head', steps=steps)]},
      'full fine-tuning': {**rates, 'phases': [dict(adam, train='.*', steps=steps)]},
      'logistic regression': {
        **plain, 'baseline': dict(name='logistic_regression'), 'choose': {'baseline.C': [0.01, 0.1, 1.0]},
      },
      'nearest neighbours': {
        **plain, 'baseline': dict(name='nearest_neighbours'), 'choose': {'baseline.neighbours': [5, 10, 20]},
      },
    },
    seed=[0] if smoke else [0, 1, 2, 3, 4],
  )  # fmt: skip
  config.table = dict(baseline='from scratch', metric='balanced_accuracy')
  return config
