"""A language model of characters on a megabyte of Shakespeare, and a sample of what it writes.

python -m transferlab.main --config=configs/tinyshakespeare_lstm.py --workdir=runs/shakespeare
python -m transferlab.main --workdir=runs/shakespeare --sample='ROMEO:' --sample_with=length=300,temperature=0.8
Data: data/tinyshakespeare.txt of Karpathy's char-rnn, 1,115,394 characters: 90 % to train on, then 5 % to choose by and
5 % to test. Bits per character are of every character but the first, the state carried from the first to the last.
Seen (seed 0, two CPU cores): 2.41 bits per character on test, 2.21 on validation; 7 min beside other jobs.
"""

import ml_collections


def get_config(arg: str = ''):
  """One layer of 256; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='lstm', embedding=64, hidden=[8 if smoke else 256], pool='none', dropout=0.2)
  config.target = dict(
    data=dict(
      name='text:data/tinyshakespeare.txt',
      train='train[:2%]' if smoke else 'train[:90%]',
      validation='train[90%:91%]' if smoke else 'train[90%:95%]',
      test='train[95%:96%]' if smoke else 'train[95%:]',
      tokens=dict(tokenizer='characters', length=64),
      batch_size=32,
    ),
  )
  config.phases = [
    dict(steps=4 if smoke else 3000, optimizer='adam', learning_rate=3e-3, schedule=dict(name='cosine'), clip=1.0)
  ]
  config.evaluation = dict(every=4 if smoke else 500)
  return config
