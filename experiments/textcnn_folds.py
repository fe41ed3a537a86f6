"""Convolutions over words (Kim 2014) from random embeddings: film reviews by ten folds, and questions.

python -m transferlab.main --config=experiments/textcnn_folds.py

The same network, rate and length of training for both; a tenth of the training texts chooses the step, as in the paper.
Movie reviews are cut into ten folds of equal classes, each tested on once; TREC has a test split, and ten seeds.
Published (CNN-rand): movie reviews .761, TREC .912.
Data: movie reviews (Pang and Lee 2005) as data/movie_reviews.tsv, TREC as data/trec_{train,test}.tsv, with headers
`label<TAB>text`; others with --config.axes.task.TREC.target.data.name=tsv:FILE.
Seen (two cores, 33 min of CPU time): movie reviews .767, TREC .904.
"""

import ml_collections


def get_config(arg: str = ''):
  """Two tasks, ten repeats of each; 'smoke': two repeats in seconds."""
  smoke = arg == 'smoke'
  repeats = range(1, 3 if smoke else 11)

  config = ml_collections.ConfigDict(convert_dict=False)  # axes have dotted keys
  data = dict(tokens=dict(tokenizer='spaces', vocabulary=20_000, length=60), validation=0.1, batch_size=50)
  config.base = dict(
    network=dict(name='textcnn', embedding=300, widths=[3, 4, 5], filters=100, dropout=0.5),
    target=dict(data=dict(data, name='tsv:data/movie_reviews.tsv')),
    # Kim's limit on the length of the weights of an output.
    phases=[dict(steps=4 if smoke else 800, optimizer='adam', learning_rate=1e-3, max_norm=[('head/kernel', 3.0)])],
    evaluation=dict(every=4 if smoke else 100, batch_size=500),
  )
  trec = dict(data, name='tsv:data/trec_{train,test}.tsv', tokens=dict(data['tokens'], length=40))
  config.axes = dict(
    fold={str(k): {'target.data.test': f'fold:{k}/10', 'seed': k} for k in repeats},
    task={'movie reviews': {}, 'TREC': {'target.data': trec}},
  )
  config.table = dict(rows='task', repeats='fold')
  return config
