"""A small recurrent network learns six kinds of questions from the answers of convolutions over words, without labels.

Teacher and student read the same tokens: the same texts and the same seed give one tokenizer.

python -m transferlab.main --config=configs/trec_distillation.py
Data: TREC as data/trec_{train,test}.tsv with a header `label<TAB>text`.
Seen (seeds 0, 1, 2; two CPU cores, beside other jobs): test accuracy .868 .886 .872, the teacher's .890
.902 .906; the same student from the labels (--config.target.data.labelled=True --config.objective=None
--config.teachers={}) .870 .886 .884. 49 to 105 s.
"""

import ml_collections


def get_config(arg: str = ''):
  """A TextCNN of 300 filters; a GRU of 32 units that sees its answers at temperature 2; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'
  tokens = dict(tokenizer='spaces', vocabulary=8000, length=40)
  data = dict(name='tsv:data/trec_{train,test}.tsv', tokens=tokens, validation=0.1, batch_size=50)
  method = dict(optimizer='adam', steps=4 if smoke else 800)

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='gru', embedding=32, hidden=[32], pool='max', dropout=0.2)
  teacher = dict(name='textcnn', embedding=128, widths=[3, 4, 5], filters=100, dropout=0.5)
  limit = [('head/kernel', 3.0)]
  config.teachers = dict(
    convolutions=dict(network=teacher, data=data, phases=[dict(method, learning_rate=1e-3, max_norm=limit)])
  )
  config.target = dict(data=dict(data, labelled=False))
  config.phases = [dict(method, learning_rate=3e-3, schedule=dict(name='cosine', warmup=0.1))]
  config.objective = [dict(term='kd', temperature=2.0)]
  config.evaluation = dict(every=4 if smoke else 100, batch_size=500)
  return config
