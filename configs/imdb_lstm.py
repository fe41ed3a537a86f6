"""Film reviews, liked or not, read word by word: an LSTM in both directions, means over places.

python -m transferlab.main --config=configs/imdb_lstm.py
The last 200 words of each review, 10,000 words known; texts of like lengths share a batch.
Data: tfds:imdb_reviews.
Seen (seed 0, two CPU cores): test accuracy .861 (selected); 4 min 40 s beside other jobs.
"""

import ml_collections


def get_config(arg: str = ''):
  """Embedding 64, LSTM 2 x 32; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='lstm', embedding=64, hidden=[32], both=True, pool='mean', input_dropout=0.3, dropout=0.3)
  tokens = dict(vocabulary=10_000, length=20 if smoke else 200, cut='start', buckets=[10] if smoke else [80, 120, 160])
  data = dict(name='tfds:imdb_reviews', tokens=tokens, validation=0.1, batch_size=64)
  config.target = dict(data={**data, **(dict(fraction=0.02, test='test[:500]') if smoke else {})})
  config.phases = [dict(steps=4 if smoke else 1400, optimizer='adam', learning_rate=2e-3, schedule=dict(name='cosine'))]
  config.evaluation = dict(every=4 if smoke else 200, batch_size=500)
  return config
