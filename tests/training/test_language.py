"""Language models in the loop: streams, what is carried, exact perplexity, and from one text to another."""

import itertools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from outcomes import assert_a_stop_changes_nothing

import transferlab
from transferlab import checkpoints, commands, config, sampling
from transferlab.data import tokens
from transferlab.errors import UserError
from transferlab.evaluation import evaluate
from transferlab.networks import network as networks
from transferlab.preparation import prepare, start
from transferlab.settings import Run

pytestmark = pytest.mark.usefixtures('quick_compilation')

WORDS = ['the', 'cat', 'sat', 'on', 'a', 'mat', 'and', 'dog', 'ran', 'by', 'old', 'house']


def lines(count, seed=0, words=WORDS):
  random = np.random.default_rng(seed)
  return [' '.join(random.choice(words, random.integers(1, 9))) for _ in range(count)]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """Three texts, and one of other words; and labelled texts."""
  folder = tmp_path_factory.mktemp('texts')
  for part, count in (('train', 60), ('valid', 12), ('test', 12)):
    (folder / f'own.{part}.txt').write_text('\n'.join(lines(count, count)) + '\n')
  (folder / 'other.txt').write_text('\n'.join(lines(60, 5, [*WORDS[:6], 'bird', 'sky', 'sang', 'high', 'low', 'far'])))
  rows = [f'{int("cat" in line.split())}\t{line}' for line in lines(120, 7)]
  (folder / 'labelled.tsv').write_text('label\ttext\n' + '\n'.join(rows) + '\n')
  return folder


def settings(place, **changes):
  data = {
    'name': f'text:{place}/own.{{train,valid,test}}.txt',
    'train': 'train',
    'validation': 'valid',
    'tokens': {'length': 6},
    'batch_size': 4,
  }
  values = {
    'network': {'name': 'lstm', 'embedding': 8, 'hidden': [8, 8], 'pool': 'none', 'tied': True, 'hidden_dropout': 0.2},
    'target': {'data': {**data, **changes.pop('data', {})}},
    'phases': [{'steps': 12, 'optimizer': 'adam', 'learning_rate': 1e-2}],
    'evaluation': {'every': 6},
    'logging': {'every': 1},
    **changes,
  }
  return config.validate(Run, values)


def test_a_stop_in_the_middle_of_a_text_changes_nothing(place, tmp_path):
  run = settings(place)
  assert_a_stop_changes_nothing(run, 7, tmp_path)
  kept = checkpoints.load(checkpoints.find(str(tmp_path / 'whole')))
  assert {'lstm1', 'lstm2'} == set(kept['carry']) and np.abs(kept['carry']['lstm2']['c']).max() > 0


def by_hand(prepared, variables, rows):
  """(nats of every next token of all rows as one text, its characters), one token after the other in float64."""
  texts, record = prepared.loaded.examples.arrays['x'][rows], prepared.record['tokens']
  names = tokens.vocabulary(record)
  ids = [names.index(word) for text in texts for word in [*text.split(), tokens.END]]
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables['params'])
  states = {stage: (np.zeros(8), np.zeros(8)) for stage in ('lstm1', 'lstm2')}
  nats = []
  sigmoid = lambda values: 1 / (1 + np.exp(-values))
  for token, following in itertools.pairwise(ids):
    x = params['embed']['embedding'][token]
    for stage, (h, c) in states.items():
      own = params[stage]['forward']
      i, f, g, o = np.split(x @ own['kernel'] + h @ own['recurrent'] + own['bias'], 4)
      c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
      h = sigmoid(o) * np.tanh(c)
      states[stage] = h, c
      x = h
    logits = params['embed']['embedding'] @ x + params['head']['bias']
    nats.append(np.log(np.exp(logits).sum()) - logits[following])
  return np.array(nats), sum(len(text) + 1 for text in texts)


def test_perplexity_is_that_of_the_whole_text_read_once(place, tmp_path):
  done = transferlab.run(config.resolved(settings(place)), tmp_path / 'run')
  model = transferlab.load(tmp_path / 'run')
  for split in ('validation', 'test'):
    nats, characters = by_hand(model.prepared, model.variables, model.prepared.loaded.splits[split])
    first = len(model.prepared.loaded.examples.arrays['x'][model.prepared.loaded.splits[split][0]].split()[0])
    found = done['selected'][split]
    assert found['perplexity'] == pytest.approx(np.exp(nats.mean()), rel=1e-5)
    # The first word is given: neither its nats nor its characters, up to the next word, count.
    assert found['bits_per_character'] == pytest.approx(nats.sum() / np.log(2) / (characters - first - 1), rel=1e-5)


def test_the_length_of_windows_and_the_devices_do_not_change_what_is_measured(place):
  prepared = prepare(settings(place))
  variables = prepared.network.init(jax.random.key(1))
  ids = np.arange(40, dtype=np.int32)[None] % 13
  scores = []
  for length in (39, 13, 3):
    x = {'x': ids[:, :-1].reshape(1, -1, length), 'next': ids[:, 1:].reshape(1, -1, length)}
    scores.append(evaluate.next_tokens(prepared.network, variables, x).reshape(39, 2))
  np.testing.assert_allclose(scores[1], scores[0], atol=1e-6)
  np.testing.assert_allclose(scores[2], scores[0], atol=1e-6)


def test_training_goes_on_where_the_window_before_ended(place):
  """The losses of an epoch, at rate 0, are those of each stream read from its start to its end."""
  run = settings(
    place,
    phases=[{'steps': 20, 'optimizer': 'sgd', 'learning_rate': 0.0}],
    evaluation={'every': 100},
    logging={'every': 20},
  )
  network = {**run.network.model_dump(exclude_none=True), 'hidden_dropout': 0.0}
  run = config.validate(Run, {**config.resolved(run), 'network': network})
  from transferlab.experiment import feed_of

  prepared = prepare(run)
  member = start(prepared, None)
  stretch, per_epoch = prepared.stretches[0], prepared.order().count // 4
  assert per_epoch == 15
  feed = feed_of([prepared], [member])
  from transferlab.training.step import begin

  state = begin(stretch.method, member.variables['params'], member.variables['stats'], {}, 0)
  constants = {**stretch.constants(member, 0), 'frozen': jax.tree.map(lambda leaf: None, state['trainable'])}
  _, metrics = feed.train(stretch.method, feed.place(state), feed.place(constants), 0, 20)
  x, label = (member.arrays[name].reshape(4, per_epoch, 6) for name in ('x', 'label'))
  scores = evaluate.next_tokens(prepared.network, member.variables, {'x': x, 'next': label})[..., 0]
  expected = [-(scores[:, w] * (label[:, w] >= 0)).sum() / (label[:, w] >= 0).sum() for w in range(per_epoch)]
  np.testing.assert_allclose(metrics['loss'], np.resize(expected, 20), rtol=1e-5)


def test_streams_give_the_same_on_several_devices(place):
  if jax.device_count() < 2:
    pytest.skip('needs several devices')
  losses = []
  for devices in (1, 2):
    run = settings(place, parallel={'devices': devices}, data={'batch_size': 3}, logging={'every': 6})
    from transferlab.experiment import feed_of
    from transferlab.training import parallel

    prepared = prepare(run)
    member, stretch = start(prepared, None), prepared.stretches[0]
    feed = feed_of([prepared], [member])
    state = parallel.beginning(stretch.method, False)({**member.variables, 'term_stats': {}}, np.int32(0))
    frozen = jax.tree.map(lambda leaf: None, state['trainable'])
    constants = feed.place({**stretch.constants(member, 0), 'frozen': frozen})
    losses.append(feed.train(stretch.method, feed.place(state), constants, 0, 6)[1]['loss'])
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@pytest.mark.long
@pytest.mark.skipif(jax.device_count() > 1, reason='this is the process with two devices')
def test_what_needs_two_devices_passes_on_two():
  """JAX takes its number of devices at the start: in a process of its own."""
  environment = {
    **os.environ,
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    'PYTHONPATH': os.pathsep.join(sys.path),
  }
  command = [sys.executable, '-m', 'pytest', '-q', '-n0', '-rs', __file__, '-k', 'several_devices or number_of_devices']
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0 and done.stdout.startswith('.. '), done.stdout  # neither was skipped


def test_pmap_says_that_it_cannot_carry_a_state(place, tmp_path):
  with pytest.raises(UserError, match="'pmap' cannot carry the state of a language model"):
    transferlab.run(config.resolved(settings(place, parallel={'compile': 'pmap'})), tmp_path / 'run')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'network': {'name': 'lstm', 'embedding': 8, 'hidden': [8]}}, 'answers at every place; nearest: lstm, gru'),
    ({'network': {'name': 'mlp'}}, "'mlp' reads no texts"),
    ({'data': {'batch_size': 5000}}, 'too few for 5,000 streams'),
    ({'objective': [{'term': 'activation', 'stage': 'head'}, {'term': 'next_token'}]}, "'head' has no places"),
  ],
)  # fmt: skip
def test_mistakes_end_in_one_message(place, change, message):
  with pytest.raises(UserError, match=message):
    prepare(settings(place, **change))


# ------------------------------------------------------------------------------------------------ without any state
TRANSFORMER = {'name': 'decoder', 'width': 8, 'depth': 2, 'heads': 2, 'hidden': 12, 'positions': 12, 'pool': 'none'}


def test_a_network_without_a_state_reads_windows_as_long_as_in_training_each_by_itself(place, tmp_path):
  """Every token but the first is predicted once, from those before it in its window."""
  done = transferlab.run(config.resolved(settings(place, network=TRANSFORMER)), tmp_path / 'run')
  model = transferlab.load(tmp_path / 'run')
  prepared, record = model.prepared, model.prepared.record['tokens']
  apply = jax.jit(lambda variables, x: jax.nn.log_softmax(prepared.network.apply(variables, x)[0]['head']))
  for split in ('validation', 'test'):
    texts = prepared.loaded.examples.arrays['x'][prepared.loaded.splits[split]]
    names = tokens.vocabulary(record)
    ids = [names.index(word) for text in texts for word in [*text.split(), tokens.END]]
    nats = []
    for start_ in range(0, len(ids) - 1, 6):
      window = ids[start_ : min(start_ + 6, len(ids) - 1)]
      found = apply(model.variables, np.array([window + [-1] * (6 - len(window))], np.int32))[0]
      nats += [-float(found[place, ids[start_ + place + 1]]) for place in range(len(window))]
    assert len(nats) == len(ids) - 1
    assert done['selected'][split]['perplexity'] == pytest.approx(np.exp(np.mean(nats)), rel=1e-5)


def test_windows_in_several_batches_give_what_one_batch_gives(place, monkeypatch):
  prepared = prepare(settings(place, network=TRANSFORMER))
  variables = prepared.network.init(jax.random.key(1))
  x, _, _ = prepared.loaded.evaluated('test', prepared.record, prepared.window)
  assert x['x'].shape[-1] == prepared.window == 6
  whole = evaluate.next_tokens(prepared.network, variables, x)
  monkeypatch.setattr(evaluate, 'LOGITS', 6 * 14 * 5)  # several windows at a time, and some left over
  np.testing.assert_allclose(evaluate.next_tokens(prepared.network, variables, x), whole, atol=1e-6)
  both = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), variables)
  twice = {name: np.stack([value, value]) for name, value in x.items()}
  members = evaluate.next_tokens(prepared.network, both, twice, population=True)
  np.testing.assert_allclose(members[0], whole, atol=1e-5)
  assert members.shape == (2, *whole.shape) and np.abs(members[1] - whole).max() > 1e-3


def test_windows_that_carry_nothing_are_drawn_in_another_order_each_epoch_and_a_stop_changes_nothing(place, tmp_path):
  run = settings(place, network={**TRANSFORMER, 'dropout': 0.1})
  order = prepare(run).order()
  drawn = order.batches(0, 2 * order.count // 4)
  epochs = drawn['row'].reshape(2, order.count)
  assert not np.array_equal(*epochs) and all(sorted(epoch) == list(range(order.count)) for epoch in epochs)
  assert 'fresh' not in drawn
  assert_a_stop_changes_nothing(run, 7, tmp_path)
  assert 'carry' not in checkpoints.load(checkpoints.find(str(tmp_path / 'whole')))


def test_windows_longer_than_the_learned_positions_are_one_message(place):
  with pytest.raises(UserError, match=r'texts of 13 tokens, and it has 12 positions; nearest: data\.tokens\.length=12'):
    prepare(settings(place, network=TRANSFORMER, data={'tokens': {'length': 13}}))


# ------------------------------------------------------------------------------------------- from one text to another
def classifier(place, **changes):
  values = {
    'network': {'name': 'lstm', 'embedding': 8, 'hidden': [8, 8], 'pool': 'concat'},
    'target': {
      'data': {'name': f'tsv:{place}/labelled.tsv', 'tokens': {'length': 9}, 'batch_size': 10, 'validation': 3}
    },
    'phases': [{'steps': 3, 'optimizer': 'adam', 'learning_rate': 1e-2}],
    'evaluation': {'every': 3},
    **changes,
  }
  return config.validate(Run, values)


def language(place, name, **changes):
  network = {'name': 'lstm', 'embedding': 8, 'hidden': [8, 8], 'pool': 'none', 'tied': True}
  data = {'name': f'text:{place}/{name}', 'tokens': {'length': 6}, 'batch_size': 4}
  return {'data': data, 'network': network, 'phases': [{'steps': 3, 'learning_rate': 1e-2}], **changes}


def test_general_texts_then_the_targets_texts_then_its_labels(place, tmp_path):
  """Each reads with the tokenizer of the first, and starts from what the one before it has learnt."""
  general = language(place, 'other.txt')
  middle = language(place, 'own.train.txt', source=general, transplant=[('.*', 'copy')])
  run = classifier(place, source=middle)
  transferlab.run(config.resolved(run), tmp_path / 'run')
  prepared = prepare(run)
  assert prepared.source.source is not None
  vocabulary = [prepared.source.source.record, prepared.source.record, prepared.record]
  assert len({tuple(tokens.vocabulary(record['tokens'])) for record in vocabulary}) == 1
  assert 'bird' in tokens.vocabulary(prepared.record['tokens'])
  folders = {config.digest(one.identity): one for one in (prepared.source, prepared.source.source)}
  weights = {name: transferlab.load(tmp_path / 'sources' / name).variables['params'] for name in folders}
  first, second = (weights[config.digest(one.identity)] for one in (prepared.source.source, prepared.source))
  moved = np.abs(first['embed']['embedding'] - second['embed']['embedding']).max()
  assert 0 < moved < 0.1  # three small steps away, where another start would be far
  taken = json.loads((tmp_path / 'run' / 'transplant.json').read_text())
  assert {origin['path']: origin['action'] for origin in taken['origins']}['embed/embedding'] == 'copy'


@pytest.mark.parametrize('way', ['', ':mean', ':zero'])
def test_another_vocabulary_takes_the_rows_of_the_tokens_that_both_know(place, tmp_path, way):
  target = {**classifier(place).target.model_dump(mode='json', exclude_unset=True), 'preprocessing': 'refit'}
  rules = [('embed', f'tokens{way}'), ('head', 'init'), ('.*', 'copy')]
  run = classifier(place, source=language(place, 'other.txt'), target=target, transplant=rules)
  transferlab.run(config.resolved(run), tmp_path / 'run')
  prepared = prepare(run)
  theirs, mine = (tokens.vocabulary(one.record['tokens']) for one in (prepared.source, prepared))
  source = transferlab.load(tmp_path / 'sources' / config.digest(prepared.source.identity)).variables['params']
  from transferlab.experiment import finished_weights
  from transferlab.preparation import initial
  from transferlab.training.step import NETWORK

  weights = finished_weights(tmp_path / 'sources' / config.digest(prepared.source.identity), 'selected')
  begun = start(prepared, weights).variables['params']['embed']['embedding']
  own = initial(prepared.network, jax.random.fold_in(jax.random.key(0), NETWORK))['params']['embed']['embedding']
  table = np.asarray(source['embed']['embedding'])
  new = {'': own, ':mean': np.broadcast_to(table.mean(axis=0), own.shape), ':zero': np.zeros_like(own)}[way]
  for row, token in enumerate(mine):
    expected = table[theirs.index(token)] if token in theirs else new[row]
    np.testing.assert_allclose(begun[row], expected, atol=1e-7)
  shared = set(mine) & set(theirs)
  assert shared and set(mine) - shared
  note = next(note for note in prepared.plan.notes if note.startswith('embed/embedding'))
  assert note.startswith(f'embed/embedding: {len(shared)} of {len(mine)} tokens from the source')


@pytest.mark.parametrize('header', [False, True])
def test_vectors_of_words_are_weights_of_the_embedding(place, tmp_path, header):
  random = np.random.default_rng(0)
  vectors = {word: random.normal(size=8).round(4) for word in ['cat', 'mat', 'zebra', 'new york', 'cat']}
  file = tmp_path / 'glove.txt'
  body = [f'{word} ' + ' '.join(map(str, values)) for word, values in vectors.items()]
  file.write_text('\n'.join([*(['4 8'] if header else []), *body]) + '\n')
  rules = [('embed', 'tokens:zero'), ('.*', 'init')]
  prepared = prepare(classifier(place, source={'weights': str(file)}, transplant=rules))
  begun = start(prepared, prepared.weights).variables['params']['embed']['embedding']
  names = tokens.vocabulary(prepared.record['tokens'])
  np.testing.assert_allclose(begun[names.index('cat')], vectors['cat'], rtol=1e-6)
  np.testing.assert_allclose(begun[names.index('mat')], vectors['mat'], rtol=1e-6)
  assert not np.any(begun[names.index('dog')])
  assert any(note.startswith('embed/embedding: 2 of') for note in prepared.plan.notes)
  assert commands.inspect(str(file))


def test_a_damaged_file_of_vectors_names_the_line(place, tmp_path):
  file = tmp_path / 'glove.txt'
  file.write_text('cat 1 2 3\ndog 1 2 3\nmat 1 x 3\n')
  rules = [('embed', 'tokens'), ('.*', 'init')]
  network = {'name': 'lstm', 'embedding': 3, 'hidden': [4]}
  with pytest.raises(UserError, match='line 3'):
    prepared = prepare(classifier(place, source={'weights': str(file)}, transplant=rules, network=network))
    start(prepared, prepared.weights)


def test_buckets_change_which_batches_are_drawn_and_nothing_of_what_is_measured(place, tmp_path):
  data = classifier(place).target.data.model_dump(mode='json', exclude_unset=True)
  plain = classifier(place)
  cut = classifier(place, target={'data': {**data, 'tokens': {'length': 9, 'buckets': [3, 6]}}})
  order, lengths = prepare(cut).order(), (prepare(cut).order()).lengths
  picks = order.batches(0, 30)
  longest = lengths[picks['row']].max(axis=1)
  assert set(picks['length']) == {3, 6, 9} and (picks['length'] >= longest).all()
  assert all(length == 3 or longest[i] > {6: 3, 9: 6}[length] for i, length in enumerate(picks['length']))
  seen = np.bincount(picks['row'].ravel()[: order.count], minlength=order.count)
  assert (seen == 1).all()
  assert_a_stop_changes_nothing(cut, 3, tmp_path)
  # The same weights answer the same, whatever the batches of evaluation are.
  model = transferlab.load(tmp_path / 'whole')
  texts = plain and list(model.prepared.loaded.examples.arrays['x'][:40])
  together, alone = model.outputs(texts), np.concatenate([model.outputs([text]) for text in texts])
  np.testing.assert_allclose(together, alone, atol=1e-5)


def test_padding_that_is_left_is_logged(place, tmp_path):
  run = classifier(place, logging={'every': 1})
  transferlab.run(config.resolved(run), tmp_path / 'run')
  logged = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  shares = [line['values']['padding'] for line in logged if line['split'] == 'train']
  prepared = prepare(run)
  x = prepared.loaded.arrays(prepared.loaded.splits['train'], prepared.record)['x']
  rows = prepared.order().batches(0, 3)['row']
  np.testing.assert_allclose(shares, [(x[own] < 0).mean() for own in rows], rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------- sampling
def test_what_is_left_to_draw_from():
  logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.2, 0.1]))
  left = lambda **how: np.flatnonzero(np.isfinite(sampling.restricted(logits, 1.0, **how))).tolist()
  assert left(top_k=1) == [1] and left(top_k=2) == [1, 2] and left(top_k=9) == [0, 1, 2, 3, 4]
  assert left(top_p=0.3) == [1] and left(top_p=0.5) == [1, 2] and left(top_p=0.79) == [1, 2, 3] and left(top_p=1.0)
  assert left(top_k=3, top_p=0.75) == [1, 2]  # .5, .25, .25 of what k leaves
  np.testing.assert_allclose(
    jax.nn.softmax(sampling.restricted(logits, 0.5)), np.array([1, 16, 4, 4, 1]) / 26, rtol=1e-5
  )


def test_greedy_texts_are_the_likeliest_token_after_the_other():
  network = networks.build('gru', {'embedding': 6, 'hidden': [7], 'pool': 'none', 'vocabulary': 9}, (4,), 9)
  variables = network.init(jax.random.key(0))
  prompt = [3, 1, 4]
  taken = sampling.sample(network, variables, np.array(prompt), sampling.Sampling(length=12, temperature=0.0))
  text = list(prompt)
  apply = jax.jit(lambda tokens: network.apply(variables, tokens)[0]['head'])
  for _ in range(12):  # without any state: the whole text anew for every token
    padded = [*text, *[-1] * (15 - len(text))]
    text.append(int(apply(jnp.array([padded], jnp.int32))[0, len(text) - 1].argmax()))
  assert taken.tolist() == text[3:]


def test_tokens_are_drawn_as_often_as_they_are_likely():
  network = networks.build('lstm', {'embedding': 3, 'hidden': [3], 'pool': 'none', 'vocabulary': 4}, (4,), 4)
  variables = network.init(jax.random.key(0))
  shares = np.array([0.1, 0.2, 0.3, 0.4])
  variables['params']['head'] = {'kernel': jnp.zeros((3, 4)), 'bias': jnp.log(jnp.array(shares))}
  drawn = sampling.sample(network, variables, np.array([0]), sampling.Sampling(length=20_000, seed=3))
  np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 20_000, shares, atol=0.015)
  again = sampling.sample(network, variables, np.array([0]), sampling.Sampling(length=50, seed=4))
  assert again.tolist() != drawn[:50].tolist()


def test_the_command_line_goes_on_with_a_text(place, tmp_path):
  transferlab.run(config.resolved(settings(place)), tmp_path / 'run')
  text = commands.sample(tmp_path / 'run', 'the cat', 'length=5,temperature=0')
  assert text.startswith('the cat') and len(text) > len('the cat')
  assert text == commands.sample(tmp_path / 'run', 'the cat', 'length=5,top_k=1,seed=7')
  with pytest.raises(UserError, match='nearest: top_k'):
    commands.sample(tmp_path / 'run', 'the cat', 'topk=5')
  with pytest.raises(UserError, match="'length' is not key=value"):
    commands.sample(tmp_path / 'run', 'the cat', 'length')


def test_frozen_layers_of_texts_run_once_and_change_nothing(place, tmp_path):
  """A head on a frozen network: from outputs that are kept, the same weights as from the texts."""
  weights = []
  for use in ('always', 'never'):
    phases = [{'steps': 20, 'train': 'head', 'optimizer': 'adam', 'learning_rate': 1e-2}]
    run = classifier(place, phases=phases, feature_cache={'use': use})
    transferlab.run(config.resolved(run), tmp_path / use)
    weights.append(transferlab.load(tmp_path / use, 'last').variables['params']['head']['kernel'])
  assert any('once' in line for line in prepare(classifier(place, phases=phases)).caching)
  np.testing.assert_allclose(weights[0], weights[1], atol=1e-6)


def test_a_language_model_goes_on_with_another_number_of_devices(place, tmp_path):
  """What is carried belongs to the rows of the batch, and not to those that pad it."""
  run = settings(place, data={'batch_size': 3})
  transferlab.run(config.resolved(run), tmp_path / 'run')
  kept = checkpoints.load(checkpoints.find(str(tmp_path / 'run')))
  assert kept['carry']['lstm1']['h'].shape == (3, 8)
  if jax.device_count() > 1:
    longer = {
      **config.resolved(run),
      'parallel': {'devices': 2},
      'phases': [{**run.phases[0].model_dump(), 'steps': 16}],
    }
    from transferlab import experiment

    done = experiment.run(config.validate(Run, longer), tmp_path / 'run', extend=True)
    assert done['steps'] == 16


def test_frozen_layers_run_once_with_buckets_too(place, tmp_path):
  data = classifier(place).target.data.model_dump(mode='json', exclude_unset=True)
  phases = [{'steps': 20, 'train': 'head', 'optimizer': 'adam', 'learning_rate': 1e-2}]
  run = classifier(place, phases=phases, target={'data': {**data, 'tokens': {'length': 9, 'buckets': [3, 6]}}})
  assert any('once' in line for line in prepare(run).caching)
  done = transferlab.run(config.resolved(run), tmp_path / 'run')
  assert done['status'] == 'done'


def test_a_teacher_of_other_words_is_refused(place):
  other = {'name': f'tsv:{place}/strange.tsv', 'tokens': {'length': 9}, 'batch_size': 10}
  rows = '\n'.join(f'{i % 2}\tsome thing else number {i % 7}' for i in range(60))
  (place / 'strange.tsv').write_text(f'label\ttext\n{rows}\n')
  teachers = {'big': {'data': other, 'phases': [{'steps': 1, 'learning_rate': 1e-2}]}}
  terms = [{'term': 'cross_entropy'}, {'term': 'kd'}]
  with pytest.raises(UserError, match="reads texts by other tokens than the target's"):
    prepare(classifier(place, teachers=teachers, objective=terms))
  same = {'big': {**teachers['big'], 'data': classifier(place).target.data.model_dump(mode='json', exclude_unset=True)}}
  assert prepare(classifier(place, teachers=same, objective=terms)).teachers


def test_rows_of_other_tokens_are_not_copied_for_having_the_same_number(place, tmp_path):
  for name, words in (('one', 'a b c d'), ('two', 'e f g h')):
    rows = '\n'.join(f'{i % 2}\t{words}' for i in range(40))
    (tmp_path / f'{name}.tsv').write_text(f'label\ttext\n{rows}\n')
  data = lambda name: {'name': f'tsv:{tmp_path}/{name}.tsv', 'tokens': {'length': 4}, 'batch_size': 4}
  source = {'data': data('one'), 'phases': [{'steps': 1, 'learning_rate': 1e-2}]}
  run = classifier(place, source=source, target={'data': data('two'), 'preprocessing': 'refit'})
  with pytest.raises(UserError, match='stands for other tokens in the source than in the target'):
    prepare(run)


def test_a_loaded_model_has_the_network_of_its_sources_vocabulary(place, tmp_path):
  run = classifier(place, source=language(place, 'other.txt'))
  transferlab.run(config.resolved(run), tmp_path / 'run')
  model = transferlab.load(tmp_path / 'run')
  wanted = model.variables['params']['embed']['embedding'].shape
  assert model.prepared.network.shapes()['params']['embed']['embedding'].shape == wanted
  assert model.predict({'text': ['the cat', 'a dog']}).shape == (2,)
  for texts, message in (([], 'no texts'), ({'words': ['a']}, 'the column text'), ([3], 'trained on texts, and 3')):
    with pytest.raises(UserError, match=message):
      model.predict(texts)


def test_a_language_model_says_what_it_cannot_be_used_for(place, tmp_path):
  transferlab.run(config.resolved(settings(place)), tmp_path / 'run')
  with pytest.raises(UserError, match='is for classification, the run for next_token'):
    commands.use(tmp_path / 'run', f'tsv:{place}/labelled.tsv', None)
  with pytest.raises(UserError, match='see --evaluate and --sample'):
    commands.use(tmp_path / 'run', None, 'test')
  assert 'perplexity' in commands.use(tmp_path / 'run', f'text:{place}/other.txt,split=all', None)
  words = commands.sample(tmp_path / 'run', 'the cat', 'length=3,temperature=0')
  assert words.startswith(('the cat ', 'the cat\n'))


def test_the_smallest_temperature_is_as_greedy_as_none():
  logits = jnp.array([[3.0, -2.0, 3.5, 0.0]])
  left = sampling.restricted(logits, 1e-45)
  assert left.argmax() == 2 and not jnp.isnan(left).any()
