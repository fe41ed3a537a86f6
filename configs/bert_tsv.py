"""Texts with labels, told apart by a BERT that is fine-tuned: sizes and tokenizer come with its weights.

python -m transferlab.main --config=configs/bert_tsv.py --workdir=runs/bert
Weights: google-bert/bert-base-uncased, its model.safetensors, config.json and tokenizer.json in
weights/bert-base-uncased, or from the hub, with --config.source.weights=hf:google-bert/bert-base-uncased. DistilBERT
and RoBERTa will do as well; where weights bring no dense layer before the head, their network has none.
Data: one's own, with --config.target.data.name=tsv:FILE, a header `label<TAB>text` and a text a line; as it stands
sentences of film reviews, positive and negative (Pang and Lee 2005), data/movie_reviews.tsv.
Seen: not measured; three epochs of 110 million parameters take hours on a CPU.
"""

import ml_collections


def get_config(arg: str = ''):
  """Three epochs at 3e-5, as Devlin et al. 2019, appendix A.3; 'smoke': four steps."""
  smoke = arg == 'smoke'

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='bert', dropout=0.1, attention_dropout=0.1)
  config.source = dict(weights='weights/bert-base-uncased')
  config.transplant = [('head', 'init'), ('.*', 'copy')]
  tokens = dict(length=16, buckets=[]) if smoke else dict(length=128, buckets=[32, 64])
  config.target = dict(
    data=dict(name='tsv:data/movie_reviews.tsv', tokens=tokens, validation=0.1, test=0.1, batch_size=32)
  )
  # Rates fall by a twentieth with each stage below the head (Sun et al. 2019, section 5.3.3).
  length = dict(steps=4) if smoke else dict(epochs=3)
  config.phases = [
    dict(
      length, optimizer='adamw', learning_rate=3e-5, layer_decay=0.95, clip=1.0,
      weight_decay=[('.*/(bias|scale)', 0.0), ('.*', 0.01)], schedule=dict(name='linear', warmup=0.1),
    )
  ]  # fmt: skip
  config.evaluation = dict(every=4 if smoke else 250, batch_size=64)
  return config
