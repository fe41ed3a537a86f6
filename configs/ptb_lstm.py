"""A language model of words: the medium LSTM of Zaremba et al. 2014 with today's dropout (AWD-LSTM), on Penn Treebank.

python -m transferlab.main --config=configs/ptb_lstm.py
Published perplexity (validation, test): not regularised 120.7, 114.5; medium 86.2, 82.7 (Zaremba et al. 2014);
AWD-LSTM 60.0, 57.3 (Merity et al. 2018, with random lengths of windows, which are fixed here).
Data: the user's own ptb.train.txt, ptb.valid.txt and ptb.test.txt in data/, a sentence a line, 10,000 words.
Seen: not measured; the data are licensed, and this takes hours on a CPU.
"""

import ml_collections


def get_config(arg: str = ''):
  """Two layers of 650, tied; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'
  width = 8 if smoke else 650

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(
    name='lstm', embedding=width, hidden=[width, width], pool='none', tied=True,
    embed_dropout=0.1, input_dropout=0.4, hidden_dropout=0.25, dropout=0.4,
  )  # fmt: skip
  tokens = dict(tokenizer='spaces', vocabulary=10_000, length=5 if smoke else 35)
  config.target = dict(
    data=dict(
      name='text:data/ptb.{train,valid,test}.txt', train='train', validation='valid', tokens=tokens, batch_size=20
    ),
  )
  drop = dict(name='weight_drop', pattern=r'lstm\d+/forward/recurrent', p=0.5)
  config.objective = [
    dict(term='next_token'),
    dict(term='activation', stage='lstm2', weight=2.0),
    dict(term='temporal_activation', stage='lstm2', weight=1.0),
  ]
  length = dict(steps=4) if smoke else dict(epochs=40)
  config.phases = [
    dict(length, optimizer='adam', learning_rate=1e-3, schedule=dict(name='cosine'), clip=0.25, transform=[drop])
  ]
  config.evaluation = dict(every=4 if smoke else 1327)
  return config
