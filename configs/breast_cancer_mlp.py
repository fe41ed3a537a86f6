"""A table with two classes and one output: benign or malignant from 30 measurements of a tumour.

python -m transferlab.main --config=configs/breast_cancer_mlp.py
Seen (seeds 0 to 4, two CPU cores): test accuracy .963 ± .009, AUROC .995 ± .002; 4 s, with an empty cache 8 s.
"""

import ml_collections


def get_config(arg: str = ''):
  """A small perceptron with dropout, chosen by validation log loss."""
  smoke = arg == 'smoke'

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='mlp', hidden=[32, 16], dropout=0.2)
  config.target = dict(
    data=dict(name='breast_cancer', task='binary', validation=0.2, batch_size=32, sampling='balanced')
  )
  config.phases = [dict(optimizer='adamw', epochs=2 if smoke else 40, learning_rate=1e-3, weight_decay=1e-2)]
  config.evaluation = dict(every=20, select='log_loss', metrics=['accuracy', 'balanced_accuracy', 'auroc', 'log_loss'])
  return config
