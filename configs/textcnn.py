"""Six kinds of questions, told apart by convolutions over words (Kim 2014, CNN-rand: .912).

python -m transferlab.main --config=configs/textcnn.py
Data: TREC (Li and Roth 2002), 5,452 questions to train on and 500 to test, as data/trec_{train,test}.tsv with a header
`label<TAB>text`; tfds:trec has the same. Others with --config.target.data.name=tsv:FILE.
Seen (seed 0, two CPU cores): test accuracy .894; 40 s beside other jobs.
"""

import ml_collections


def get_config(arg: str = ''):
  """Filters over 3, 4 and 5 words, 100 of each; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='textcnn', embedding=128, widths=[3, 4, 5], filters=100, dropout=0.5)
  tokens = dict(tokenizer='spaces', length=40, buckets=[] if smoke else [10, 20])
  config.target = dict(
    data=dict(name='tsv:data/trec_{train,test}.tsv', tokens=tokens, validation=0.1, batch_size=50),
  )
  # Kim's limit on the length of the weights of an output, 3.
  config.phases = [
    dict(steps=4 if smoke else 800, optimizer='adam', learning_rate=1e-3, max_norm=[('head/kernel', 3.0)]),
  ]
  config.evaluation = dict(every=4 if smoke else 100, batch_size=500)
  return config
