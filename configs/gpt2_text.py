"""GPT-2 reads on: a language model that learnt from the web learns one text, and goes on in its manner.

python -m transferlab.main --config=configs/gpt2_text.py --workdir=runs/gpt2
python -m transferlab.main --workdir=runs/gpt2 --sample='ROMEO:' --sample_with=length=100,temperature=0.8,top_k=40
Weights: openai-community/gpt2, its model.safetensors, config.json and tokenizer.json in weights/gpt2/, or from the hub
with --config.source.weights=hf:openai-community/gpt2.
Data: one's own, with --config.target.data.name=text:FILE; as it stands data/tinyshakespeare.txt of Karpathy's char-rnn.
Perplexity is that of windows of 256 tokens, each read by itself.
Seen: not measured; 124 million parameters take hours on a CPU.
"""

import ml_collections


def get_config(arg: str = ''):
  """Windows of 256 tokens at 5e-5; 'smoke': four steps on short ones."""
  smoke = arg == 'smoke'

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='decoder', dropout=0.1, attention_dropout=0.1)
  config.source = dict(weights='weights/gpt2')
  config.transplant = [('.*', 'copy')]
  config.target = dict(
    data=dict(
      name='text:data/tinyshakespeare.txt',
      train='train[:2%]' if smoke else 'train[:90%]',
      validation='train[90%:91%]' if smoke else 'train[90%:95%]',
      test='train[95%:96%]' if smoke else 'train[95%:]',
      tokens=dict(length=16 if smoke else 256),
      batch_size=4 if smoke else 8,
    ),
  )
  length = dict(steps=4) if smoke else dict(epochs=3)
  config.phases = [
    dict(
      length, optimizer='adamw', learning_rate=5e-5, clip=1.0, weight_decay=[('.*/(bias|scale)', 0.0), ('.*', 0.01)],
      schedule=dict(name='cosine', warmup=0.05),
    )
  ]  # fmt: skip
  config.evaluation = dict(every=4 if smoke else 100)
  return config
