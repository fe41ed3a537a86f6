"""A language model of film reviews, fine-tuned to questions and to a hundred labelled reviews, in six ways.

python -m transferlab.main --config=experiments/text_transfer.py

A small LSTM reads about a million tokens of IMDB's training texts. Its layers then start classifiers (concat pooling,
Howard and Ruder 2018) of TREC's questions, at most 40 tokens each, and of IMDB, the first 128 tokens of 50 reviews of
each class: the head alone, everything, with rates that fall by 2.6 a layer, by chain-thaw, by gradual unfreezing with
falling rates; and each of these again after the language model has read on in the target's own texts (TREC's training
questions; 1,250 other reviews). All rates move in slanted triangles; each method chooses the largest from three on
validation data.
Published for all data, validation error in per cent on IMDb and TREC-6 (table 7; a language model of Wikipedia, read on
in the target's texts): from scratch 9.93, 13.36; last 6.49, 16.09; full 6.87, 6.86; full with falling rates 5.57, 6.21;
chain-thaw 5.39, 6.71; gradual unfreezing 6.37, 6.86, with falling rates and slanted triangles 5.00, 5.69.
The CPU profile measures on 2,000 reviews of the test split, with three seeds; ':full' reads all of IMDB, learns from
25,000 labels and measures on all, five seeds, for a GPU.
Data: tfds:imdb_reviews; TREC as data/trec_{train,test}.tsv with a header `label<TAB>text`.
Seen (CPU profile): no method beats training from scratch; see experiments/text_transfer.md.
"""

from typing import Any

import ml_collections

from transferlab import schedules

STAGES = ['embed', 'lstm1', 'lstm2', 'head']
MOVING = dict(optimizer='adam', schedule=dict(name='slanted_triangular'))
TREC = 'tsv:data/trec_{train,test}.tsv'


def language(data: dict[str, Any], width: int, steps: dict[str, Any], **more: Any) -> dict[str, Any]:
  """A source: a tied language model of these texts."""
  network = dict(name='lstm', embedding=width, hidden=[width, width], pool='none', tied=True, hidden_dropout=0.2)
  phases = [dict(steps, optimizer='adam', learning_rate=3e-3, schedule=dict(name='cosine'), clip=1.0)]
  return dict(data=dict(data, task='next_token', batch_size=32), network=network, phases=phases, seed=0, **more)


def methods(steps: int, rates: list[float]) -> dict[str, dict[str, Any]]:
  """Overrides of a run by method; all its phases together have `steps`."""
  whole = lambda rate: [dict(MOVING, steps=steps, train='.*', learning_rate=rate)]
  falling = lambda rate: schedules.discriminative(STAGES, rate)
  parts = len(STAGES) + 1
  thaw = lambda rate: schedules.chain_thaw(STAGES, **MOVING, steps=steps // parts, learning_rate=rate)
  gradual = lambda rate: [
    dict(phase, learning_rate=falling(rate))
    for phase in schedules.gradual_unfreezing(STAGES, **MOVING, steps=steps // len(STAGES))
  ]
  ways = {
    'last layer': lambda rate: [dict(MOVING, steps=steps, train='head', learning_rate=3 * rate)],
    'full': whole,
    'falling rates': lambda rate: whole(falling(rate)),
    'chain-thaw': thaw,
    'gradual unfreezing': gradual,
  }
  chosen = lambda way: {'choose': {'phases': [way(rate) for rate in rates]}}
  return {
    'from scratch': {**chosen(whole), 'source': None},
    **{name: chosen(way) for name, way in ways.items()},
  }


def get_config(arg: str = ''):
  """Eleven methods on two tasks; 'smoke': three of them in seconds; 'full': as the docstring says."""
  smoke, full = arg == 'smoke', arg == 'full'
  width = 4 if smoke else 400 if full else 100
  tokens = dict(vocabulary=60 if smoke else 20_000 if full else 6000, length=10 if smoke else 64, streams=64)
  reviews = dict(name='tfds:imdb_reviews', tokens=tokens, test='test[:50]' if smoke else 'test[:250]')
  part, other = ('train[:100]', 'train[100:150]') if smoke else ('train[:15%]', 'train[15%:20%]')
  general = language(dict(reviews, train='train' if full else part), width, length(smoke, full))

  questions = dict(name=TREC, tokens=dict(tokens, length=10 if smoke else 40), validation=0.1, batch_size=80)
  few = dict(name='tfds:imdb_reviews', tokens=dict(tokens, length=10 if smoke else 128), batch_size=20)
  if full:
    few |= dict(validation=0.1, batch_size=64)
  else:
    few |= dict(shots=5 if smoke else 50, validation=5 if smoke else 100, test='test[:50]' if smoke else 'test[:2000]')
  own = {'TREC': dict(name=TREC, tokens=tokens), 'IMDB': dict(reviews, train='train' if full else other)}

  def task(name: str, data: dict[str, Any], read_on: bool) -> dict[str, Any]:
    again = language(own[name], width, length(smoke, full), source=general, transplant=[('.*', 'copy')])
    return {'target.data': data, 'source': again if read_on else general}

  config = ml_collections.ConfigDict(convert_dict=False)  # axes have dotted keys
  config.base = dict(
    network=dict(name='lstm', embedding=width, hidden=[width, width], pool='concat', hidden_dropout=0.2, dropout=0.4),
    target=dict(data=questions),
    phases=[dict(steps=1)],
    evaluation=dict(every=5 if smoke else 40, batch_size=500),
  )
  config.axes = dict(
    task={
      'TREC': task('TREC', questions, False),
      'TREC, read on': task('TREC', questions, True),
      'IMDB': task('IMDB', few, False),
      'IMDB, read on': task('IMDB', few, True),
    },
    method=methods(10 if smoke else 4000 if full else 160, [1e-3] if smoke else [1e-3, 3e-3, 1e-2]),
    seed=[0] if smoke else list(range(5 if full else 3)),
  )
  if smoke:
    kept = ('from scratch', 'full', 'gradual unfreezing')
    config.axes['method'] = {name: config.axes['method'][name] for name in kept}
  config.table = dict(baseline='from scratch')
  return config


def length(smoke: bool, full: bool) -> dict[str, Any]:
  """Of a language model's training."""
  return dict(steps=2) if smoke else dict(epochs=15 if full else 3)
