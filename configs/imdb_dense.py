"""Film reviews, liked or not, by the words that occur in them: 10,000 words, dense 16-16-2.

python -m transferlab.main --config=configs/imdb_dense.py
The first example of text in Chollet's "Deep Learning with Python" (there one sigmoid output, .88 on test).
Data: tfds:imdb_reviews, 25,000 reviews to train on and 25,000 to test.
Seen (seed 0, two CPU cores): test accuracy .887 (selected on validation data); 47 s beside other jobs.
"""

import ml_collections


def get_config(arg: str = ''):
  """A bag of words and a small network; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='mlp', hidden=[16, 16])
  data = dict(name='tfds:imdb_reviews', bag=dict(words=200 if smoke else 10_000), validation=0.1, batch_size=512)
  config.target = dict(data={**data, **(dict(fraction=0.02, test='test[:500]') if smoke else {})})
  config.phases = [dict(steps=4 if smoke else 180, optimizer='adam', learning_rate=1e-3)]
  config.evaluation = dict(every=4 if smoke else 30, batch_size=2000)
  return config
