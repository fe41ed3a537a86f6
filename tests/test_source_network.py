"""Terms and transformations that look at the source, in whole runs; and what a run says was forgotten.

Values are worked out in float64 NumPy from the weights in the checkpoints, for networks of one hidden layer or none.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from outcomes import assert_a_stop_changes_nothing

import transferlab
from transferlab import checkpoints, commands, comparison, config, experiment, paths, study, tables, transplant
from transferlab.data.sources import load
from transferlab.errors import UserError
from transferlab.preparation import prepare, start
from transferlab.screen import Screen
from transferlab.settings import Run
from transferlab.training.feed import Held
from transferlab.training.loop import Loop
from transferlab.training.state import Cadence

pytestmark = pytest.mark.usefixtures('quick_compilation')
SOURCE_DATA = {'name': 'digits', 'classes': [0, 1, 2, 3, 4], 'shots': 8, 'batch_size': 16}
DATA = {'name': 'digits', 'classes': [5, 6, 7], 'shots': 8, 'validation': 4, 'batch_size': 16}
SOURCE = {'data': SOURCE_DATA, 'phases': [{'steps': 30, 'learning_rate': 1e-2}]}
MLP = {'name': 'mlp', 'hidden': [12]}
SGD = {'optimizer': 'sgd', 'learning_rate': 0.05}
LABELS = {'term': 'cross_entropy'}
DELTA = {'term': 'delta', 'stages': ['layer1'], 'beta': 0.01}
SHRINK = {'term': 'batch_spectral_shrinkage', 'stage': 'layer1', 'weight': 1e-2}
EWC = {'term': 'ewc', 'weight': 10.0}
KEEP = {'term': 'learning_without_forgetting'}
MIXOUT = {'name': 'mixout', 'p': 0.5}


def settings(*objective, steps=12, phase=None, **more):
  values = {
    'network': MLP,
    'source': SOURCE,
    'target': {'data': DATA},
    'phases': [{'steps': steps, **SGD, **(phase or {})}],
    'objective': [LABELS, *objective],
    'evaluation': {'every': 6},
    'checkpoint': {'every': 4},
    'logging': {'every': 1},
    **more,
  }
  return config.validate(Run, values)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder whose runs share their pretrained sources."""
  return tmp_path_factory.mktemp('runs')


def source_weights(run, place):
  return experiment.source_weights(prepare(run), place / 'sources', Screen(quiet=True), lambda: False)


def logged(folder, name):
  """{step: a training metric}, as metrics.jsonl has it."""
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return {line['step']: line['values'][name] for line in lines if line['split'] == 'train'}


def hidden(variables, x):
  """Features and logits of a perceptron with one hidden layer."""
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables['params'])
  features = np.maximum(x @ params['layer1']['linear']['kernel'] + params['layer1']['linear']['bias'], 0)
  return features, features @ params['head']['kernel'] + params['head']['bias']


def softmax(z):
  powers = np.exp(z - z.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def preprocessed(x, record):
  flat = np.asarray(x, np.float64) - np.asarray(record['shift'], np.float64)
  return (flat / np.asarray(record['scale'], np.float64)).reshape(len(x), -1)


def first_batch(prepared):
  rows = prepared.order().batches(0, 1)['row'][0]
  arrays = prepared.loaded.arrays(prepared.loaded.splits['train'][rows], prepared.record)
  return preprocessed(arrays['x'], prepared.record)


# ------------------------------------------------------------------------------------------------ each term in a run
@pytest.mark.long
def test_delta_is_zero_until_the_features_leave_the_sources(place):
  run = settings({**DELTA, 'beta': 0.0, 'weight': 0.3})
  transferlab.run(config.resolved(run), place / 'delta')
  values = logged(place / 'delta', 'delta')
  assert values[1] < 1e-9
  assert values[12] > 1e-5
  # The value of the second step: Σ_j 1/12 (f_j − f⁰_j)² of its batch, the new weights after one step of known gradient
  # being those that the checkpoint of a run of one step holds.
  prepared, weights = prepare(run), source_weights(run, place)
  transferlab.run(config.resolved(settings({**DELTA, 'beta': 0.0, 'weight': 0.3}, steps=1)), place / 'delta_one')
  moved = checkpoints.weights(checkpoints.find(str(place / 'delta_one')), 'last')
  rows = prepared.order().batches(1, 1)['row'][0]
  arrays = prepared.loaded.arrays(prepared.loaded.splits['train'][rows], prepared.record)
  x = preprocessed(arrays['x'], prepared.record)
  away = hidden(moved, x)[0] - hidden(weights.variables, x)[0]
  assert values[2] == pytest.approx((away**2).mean(1).mean(), rel=1e-3)


def test_what_is_recorded_for_the_old_head_are_the_sources_answers(place):
  """At the start the old head answers as the source does, so −Σ y' log ŷ' is the entropy of the softened answers."""
  run = settings(KEEP)
  transferlab.run(config.resolved(run), place / 'keep')
  weights = source_weights(run, place)
  kept = softmax(hidden(weights.variables, first_batch(prepare(run)))[1] / 2)
  entropy = -(kept * np.log(kept)).sum(1).mean()
  assert logged(place / 'keep', 'learning_without_forgetting')[1] == pytest.approx(entropy, rel=1e-4)
  tree = checkpoints.load(checkpoints.find(str(place / 'keep')))
  own = tree['params']['terms']['learning_without_forgetting']
  assert own['kernel'].shape == (12, 5)
  difference = np.abs(own['kernel'] - np.asarray(weights.variables['params']['head']['kernel'])).max()
  assert 1e-5 < difference < 0.5
  assert (
    'terms' in tree['selected']['params']
    and 'terms' not in checkpoints.weights(checkpoints.find(str(place / 'keep')))['params']
  )


def test_ewc_takes_fisher_information_of_the_source_on_its_own_training_data(place):
  """Softmax regression: F of W_ic is E x_i² p_c (1 − p_c), of b_c E p_c (1 − p_c), over the source's training split."""
  run = settings(
    EWC,
    network={'name': 'mlp', 'hidden': []},
    source={**SOURCE, 'data': {'name': 'wine', 'classes': [0, 1], 'batch_size': 16}},
    target={'data': {'name': 'wine', 'classes': [1, 2], 'shots': 8, 'batch_size': 16}},
    transplant=[('head', 'copy')],
  )
  weights, prepared = source_weights(run, place), prepare(run)
  fisher = start(prepared, weights).fisher
  source = prepared.source
  arrays = source.loaded.arrays(source.loaded.splits['train'], source.record)
  x, head = preprocessed(arrays['x'], source.record), weights.variables['params']['head']
  p = softmax(x @ np.asarray(head['kernel'], np.float64) + np.asarray(head['bias'], np.float64))
  np.testing.assert_allclose(fisher['head']['kernel'], (x**2).T @ (p * (1 - p)) / len(x), rtol=1e-4, atol=1e-9)
  np.testing.assert_allclose(fisher['head']['bias'], (p * (1 - p)).mean(0), rtol=1e-4, atol=1e-9)
  transferlab.run(config.resolved(run), place / 'ewc')
  values = logged(place / 'ewc', 'ewc')
  assert values[1] == 0 and values[12] > 0


def test_fisher_information_of_some_examples_is_of_those_and_of_the_runs_seed(place):
  run = settings({**EWC, 'labels': 'empirical', 'examples': 5})
  weights = source_weights(run, place)
  some, others = (
    start(prepare(settings({**EWC, 'labels': 'empirical', 'examples': n})), weights).fisher for n in (5, None)
  )
  kernel = lambda tree: np.asarray(tree['layer1']['linear']['kernel'])
  assert (kernel(some) != kernel(others)).any()
  assert some['head'] == {'kernel': None, 'bias': None}


@pytest.mark.parametrize('own', [DELTA, SHRINK, EWC, KEEP, None], ids=lambda own: own['term'] if own else 'mixout')
def test_the_source_stays_as_it_is_outside_of_state_and_checkpoint(own, place):
  never = {'feature_cache': {'use': 'never'}}
  run = settings(*([own] if own else []), phase=None if own else {'transform': [MIXOUT]}, **never)
  prepared, weights = prepare(run), source_weights(run, place)
  before = jax.tree.map(np.array, weights.variables)
  member = start(prepared, weights)
  (fitted,) = Loop([member], Held([member.arrays], [member.order], None, 6), Cadence(6, 6, 6)).run()
  jax.tree.map(np.testing.assert_array_equal, weights.variables, before)
  assert bool(member.asked) == (own in (DELTA, KEEP))
  for asked in member.asked.values():
    jax.tree.map(np.testing.assert_array_equal, asked['variables'], before)
  owned = {path for path in paths.flatten(fitted.tree['params']) if path.startswith('terms/')}
  assert bool(owned) == (own is KEEP)
  moments = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(fitted.tree['optimizer'])}
  assert not any('source' in path for path in moments)
  assert {'params', 'stats', 'term_stats', 'optimizer', 'step'} >= set(fitted.tree)
  moved = [np.abs(np.asarray(new) - old).max() for new, old in zip(
    jax.tree.leaves(fitted.last['params']['layer1']), jax.tree.leaves(before['params']['layer1'])
  )]  # fmt: skip
  assert max(moved) > 0


def test_a_term_changes_where_training_goes(place):
  """Each against plain fine-tuning: the pull is towards the source's features, weights or answers."""
  weights = source_weights(settings(), place)
  start_kernel = np.asarray(weights.variables['params']['layer1']['linear']['kernel'])

  def distance(name, *objective):
    transferlab.run(config.resolved(settings(*objective, steps=40)), place / name)
    last = checkpoints.weights(checkpoints.find(str(place / name)), 'last')
    return np.linalg.norm(np.asarray(last['params']['layer1']['linear']['kernel']) - start_kernel)

  plain = distance('go_plain')
  assert distance('go_delta', {**DELTA, 'weight': 3.0}) < 0.8 * plain
  assert distance('go_ewc', {**EWC, 'weight': 300.0}) < 0.8 * plain


# ------------------------------------------------------------------------------------------- weights without data
@pytest.mark.parametrize('form', ['folder', 'file'])
def test_terms_ask_the_network_of_weights(form, place, tmp_path):
  """The source's network is rebuilt from a folder or a file, with a head of its own size, and gives the same losses."""
  run = settings(DELTA, KEEP)
  prepared = prepare(run)
  source_weights(run, place)
  where = experiment.source_folder(prepared.source, place / 'sources')
  if form == 'file':
    commands.export(where, str(tmp_path / 'source.safetensors'))
    where = tmp_path / 'source.safetensors'
  again = run.model_copy(update={'source': config.validate(type(run.source), {'weights': str(where)})})
  transferlab.run(config.resolved(run), place / 'data')
  transferlab.run(config.resolved(again), place / form)
  for name in ('delta', 'learning_without_forgetting', 'loss'):
    one, other = (logged(place / each, name) for each in ('data', form))
    np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-6, atol=1e-9)


def test_weights_alone_have_no_fisher_information_and_no_test_split(trained):
  again = settings(network={'name': 'mlp', 'hidden': [16]}, source={'weights': str(trained)})
  with pytest.raises(UserError, match=r"'ewc' takes Fisher information from the source's training data.*weights only"):
    prepare(again.model_copy(update={'objective': [LABELS, EWC]}))
  evaluation = again.evaluation.model_copy(update={'forgotten': True})
  with pytest.raises(UserError, match=r'evaluation\.forgotten: the source is weights only'):
    prepare(again.model_copy(update={'evaluation': evaluation, 'objective': None}))


def test_a_finished_run_is_loaded_without_its_source(place, command, write_config):
  """Its weights answer as results.json has it, and what was forgotten stands on the screen."""
  rules = [('terms/.*', 0.1), ('.*', 0.05)]
  phase = {'transform': [MIXOUT], 'learning_rate': rules, 'weight_decay': rules}
  run = settings(DELTA, EWC, KEEP, phase=phase, evaluation={'every': 6, 'forgotten': True})
  written = write_config(place / 'configs' / 'loaded.py', config.resolved(run))
  shown = command(f'--config={written}', f'--workdir={place / "loaded"}')
  results = json.loads((place / 'loaded' / 'results.json').read_text())
  after = results['source_test']['after']['accuracy']
  assert shown.status == 0 and any(
    line.strip().startswith('after') and f'{after:.4f}' in line for line in shown.out.splitlines()
  )
  model = transferlab.load(place / 'loaded')
  assert model.evaluate(run.target.data)['accuracy'] == results['selected']['test']['accuracy']


# ----------------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'objective': [LABELS, DELTA], 'source': None}, "'delta' asks the source's network, but config.source is missing"),
    ({'objective': [LABELS, KEEP], 'source': None}, "'learning_without_forgetting' asks the source's network"),
    ({'objective': [LABELS, EWC], 'source': None}, 'pulls towards the source .* config.source is missing'),
    (
      {'phases': [{'steps': 1, 'transform': [MIXOUT]}], 'objective': None, 'source': None},
      'pulls towards the source .*mixout',
    ),
    ({'phases': [{'steps': 1, 'transform': [{**MIXOUT, 'pattern': 'head'}]}]}, "'mixout' mixes with the source"),
    (
      {'objective': [LABELS, {**DELTA, 'stages': ['head']}]},
      r"delta: stage 'head' has outputs \[3\], in the source \[5\]",
    ),
    (
      {'objective': [LABELS, KEEP], 'source': {**SOURCE, 'network': {'name': 'mlp', 'hidden': [12, 7]}}},
      "asks the source's network, which does not fit the target's",
    ),
    (
      {'phases': [{'steps': 1, 'objective': [EWC]}, {'steps': 1, 'objective': [{**EWC, 'name': 'b', 'examples': 3}]}]},
      'config.phases: two terms want Fisher information of different',
    ),
    ({'parallel': {'compile': 'pmap'}, 'objective': [LABELS, SHRINK]}, "pmap.*'batch_spectral_shrinkage'"),
  ],
)
def test_mistakes_end_in_one_message(changes, message, place):
  with pytest.raises(UserError, match=message) as caught:
    run = config.validate(Run, {**config.resolved(settings()), **changes})
    prepare(run)
    experiment.run(run, place / 'mistake')
  assert len(str(caught.value).splitlines()) == 1


def test_a_dry_run_counts_the_sources_forward_pass():
  """16 examples through 64 × 12 weights are 24,576 operations, and little else is added: no backward pass."""

  def operations(*objective):
    run = settings(*objective, feature_cache={'use': 'never'})  # else it is asked before, and once
    (line,) = [line for line in commands.dry_run(run) if '12 steps of sgd' in line]
    return float(line.split(' MFLOP')[0].split()[-1]) * 1e6

  assert 24_000 < operations({**DELTA, 'beta': 0.0}) - operations() < 35_000


def test_old_runs_keep_their_identity():
  values = config.identity(settings())
  assert 'forgotten' not in values['evaluation'] and 'transform' not in values['phases'][0]
  asked = config.identity(settings(phase={'transform': [MIXOUT]}, evaluation={'forgotten': True}))
  assert asked['evaluation']['forgotten'] is True and asked['phases'][0]['transform']


def test_frozen_stages_run_anew_where_the_source_is_asked_in_every_step(place):
  """The outputs of frozen stages are no inputs for another network, but its answers may be kept as well."""
  phase = {'train': 'head', 'steps': 12}
  kept = lambda *objective, **more: [
    type(own).__name__ for own in prepare(settings(*objective, phase=phase, **more)).stretches[0].kept
  ]
  assert kept() == kept(SHRINK, EWC) == ['Prefix']
  assert kept(KEEP) == ['Recording', 'Prefix']
  assert kept(KEEP, target={'data': {**DATA, 'augment': {'shift': 1}}}) == []


def test_a_head_that_reads_the_inputs_reads_them_preprocessed(tmp_path):
  """One stage, all of it copied: the old head answers as the source, so that the term starts as an entropy."""
  data = {'name': 'wine', 'validation': 3, 'batch_size': 16}
  for use in ('auto', 'never'):
    run = config.validate(Run, {
      'network': {'name': 'mlp', 'hidden': []},
      'source': {'data': data, 'phases': [{'steps': 5, 'learning_rate': 1e-2}]},
      'target': {'data': data}, 'transplant': [['.*', 'copy']], 'objective': [LABELS, KEEP],
      'phases': [{'steps': 12, **SGD}], 'logging': {'every': 1}, 'feature_cache': {'use': use},
    })  # fmt: skip
    experiment.run(run, tmp_path / use)
    assert 0 < logged(tmp_path / use, 'learning_without_forgetting')[1] < np.log(3) + 0.01


def test_answers_of_the_source_that_are_kept_train_the_same(tmp_path):
  found = {}
  for use in ('auto', 'never'):
    run = settings(DELTA, KEEP, phase={'train': 'head'}, feature_cache={'use': use})
    found[use] = experiment.run(run, tmp_path / use)
  assert "asks the source's network once" in found['auto']['frozen_stages'][0] and not found['never']['frozen_stages']
  for one, other in zip(found['auto']['curve'], found['never']['curve'], strict=True):
    assert one['train']['loss'] == pytest.approx(other['train']['loss'], rel=1e-4)


# ------------------------------------------------------------------------------------------------------ stop and go
EVERYTHING = [DELTA, SHRINK, EWC, {**EWC, 'name': 'again', 'weight': 0.1}, KEEP, {'term': 'l2_sp', 'weight': 0.01}]
ALL_OF_IT = {
  'every term and mixout': (EVERYTHING, {'transform': [MIXOUT]}, {}),
  'sampled Fisher information': ([{**EWC, 'labels': 'sampled', 'examples': 9}], {}, {}),
  'under pmap': ([DELTA, EWC, KEEP], {'transform': [MIXOUT]}, {'parallel': {'compile': 'pmap'}}),
  'streaming': (EVERYTHING, {'transform': [MIXOUT]}, {'target': {'data': {**DATA, 'hold': 'stream'}}}),
}


@pytest.mark.parametrize('case', ALL_OF_IT)
def test_a_stop_changes_nothing(case, place, tmp_path):
  objective, phase, more = ALL_OF_IT[case]
  run = settings(*objective, phase=phase, **more)
  assert_a_stop_changes_nothing(run, 4, tmp_path)
  assert (tmp_path / 'sources').is_dir()


# ------------------------------------------------------------------------------------------------------ many at once
def test_a_population_trains_as_each_run_does_alone(place):
  """Members differ in seed, so in the source's weights, Fisher information and draws of mixout."""
  runs = [settings(*EVERYTHING, phase={'transform': [MIXOUT]}, seed=seed) for seed in (0, 1)]
  prepared, weights = [prepare(run) for run in runs], [source_weights(run, place) for run in runs]
  assert study._structure(prepared[0]) == study._structure(prepared[1])
  quiet = (place, Screen(quiet=True), lambda: False)
  together = study.train(prepared, weights, [{}, {}], *quiet)
  for one, own, found in zip(prepared, weights, together):
    (alone,) = study.train([one], [own], [{}], *quiet)
    assert jax.tree.structure(found.last) == jax.tree.structure(alone.last)
    for mine, theirs in zip(jax.tree.leaves(found.last), jax.tree.leaves(alone.last)):
      np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-5)
  first, second = (np.asarray(each.last['params']['layer1']['linear']['kernel']) for each in together)
  assert np.abs(first - second).max() > 0.01


def test_runs_whose_transplants_differ_are_no_population_where_a_term_looks_back():
  rules = [[('head', 'init'), ('.*', 'copy')], [('head|layer2', 'init'), ('.*', 'copy')]]
  deep = {'network': {'name': 'mlp', 'hidden': [6, 6]}}
  plain, looking = (
    [study._structure(prepare(settings(*own, transplant=rule, **deep))) for rule in rules]
    for own in ((), ({'term': 'l2_sp'},))
  )
  assert plain[0] == plain[1]
  assert looking[0] != looking[1]


# --------------------------------------------------------------------------------------------------------- devices
def measure():
  """Prints the losses of three steps on 1 and 2 devices, held and under pmap, in float64."""
  import tempfile

  jax.config.update('jax_num_cpu_devices', 2)
  jax.config.update('jax_enable_x64', True)
  from transferlab.training import feed, parallel
  from transferlab.training.partition import split
  from transferlab.training.step import begin
  from transferlab.training.terms import with_terms

  found = {}
  with tempfile.TemporaryDirectory() as folder:
    more = {'target': {'data': {**DATA, 'batch_size': 9}}, 'feature_cache': {'use': 'never'}}
    run = settings(DELTA, EWC, KEEP, SHRINK, phase={'transform': [MIXOUT]}, **more)
    pmapped = settings(DELTA, EWC, KEEP, phase={'transform': [MIXOUT]}, **more)
    weights = source_weights(run, Path(folder))
    for kind, count in (('held', 1), ('held', 2), ('mapped', 1), ('mapped', 2)):
      prepared = prepare(run if kind == 'held' else pmapped)
      member = start(prepared, weights)
      order = dataclasses.replace(member.order, rows=-(-9 // count) * count)
      chosen = jax.devices()[:count]
      held = feed.Held([member.arrays], [order], parallel.make_mesh(chosen), 3)
      way = held if kind == 'held' else feed.Mapped(member.arrays, order, chosen)
      stretch = member.stretches[0]
      method, given = stretch.method, {name: own['variables'] for name, own in member.asked.items()}
      full = with_terms(method.network, [method.objective], member.variables, stretch.example, 0, method.asked, given)
      state = begin(stretch.method, full['params'], full['stats'], full['term_stats'], 0)
      frozen = split(full['params'], stretch.method.trainable)[1]
      constants = {**stretch.constants(member, 0), 'frozen': frozen}
      _, metrics = way.train(stretch.method, way.place(state), way.place(constants), 0, 3)
      found[f'{kind} {count}'] = {name: values.tolist() for name, values in metrics.items()}
  print(json.dumps(found))


@pytest.mark.long
def test_losses_are_the_same_on_any_devices():
  """Nine examples on two devices are ten rows, one of them padding; mixout draws once for the whole step."""
  here = Path(__file__)
  folders = os.pathsep.join([os.fspath(here.parents[1]), os.fspath(here.parent)])
  flags = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_backend_optimization_level=0'}
  environment = {**os.environ, 'PYTHONPATH': folders, **flags}
  done = subprocess.run([sys.executable, here], env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  for one, other in (('held 1', 'held 2'), ('mapped 1', 'mapped 2')):
    for name, values in found[one].items():
      np.testing.assert_allclose(found[other][name], values, rtol=2e-5, atol=1e-7, err_msg=f'{name}, {other}')
  for name in ('delta', 'ewc', 'learning_without_forgetting', 'cross_entropy'):
    assert found['held 1'][name][0] == pytest.approx(found['mapped 2'][name][0], rel=1e-5, abs=1e-9)


# ------------------------------------------------------------------------------------------------ what was forgotten
def by_hand(run, place, folder, which, head):
  """Accuracy of the source's network on its test split: layer1 as the target left it, the head as told."""
  prepared, weights = prepare(run), source_weights(run, place)
  loaded = load(config.validate(type(run.target.data), SOURCE_DATA), run.seed)
  x, label, _ = loaded.evaluated('test', prepared.source.record)
  trained = checkpoints.weights(checkpoints.find(str(folder)), which)
  params = {'layer1': trained['params']['layer1'], 'head': head or weights.variables['params']['head']}
  logits = hidden({'params': params}, preprocessed(x, prepared.source.record))[1]
  return float((logits.argmax(1) == label).mean())


def test_what_was_forgotten_is_the_source_with_the_trained_leaves_put_back(place):
  run = settings(steps=60, evaluation={'every': 7, 'forgotten': True})
  results = transferlab.run(config.resolved(run), place / 'forgotten')
  found = {when: values['accuracy'] for when, values in results['source_test'].items()}
  source = experiment.source_folder(prepare(run).source, place / 'sources')
  saved = json.loads((source / 'results.json').read_text())
  assert found['before'] == (saved['selected'] or saved['last'])['test']['accuracy']
  assert found['after'] == by_hand(run, place, place / 'forgotten', 'selected', None)
  assert found['last'] == by_hand(run, place, place / 'forgotten', 'last', None)
  assert found['last'] < found['before'] - 0.1


def test_what_the_old_head_remembers_is_measured_with_the_old_head(place):
  run = settings({**KEEP, 'weight': 2.0}, steps=60, evaluation={'every': 7, 'forgotten': True})
  results = transferlab.run(config.resolved(run), place / 'kept')
  tree = checkpoints.load(checkpoints.find(str(place / 'kept')))
  for when, params in (('after', tree['selected']['params']), ('last', tree['params'])):
    which = {'after': 'selected', 'last': 'last'}[when]
    own = params['terms']['learning_without_forgetting']
    assert results['source_test'][when]['accuracy'] == by_hand(run, place, place / 'kept', which, own)
  plain = transferlab.run(
    config.resolved(settings(steps=60, evaluation={'every': 7, 'forgotten': True})), place / 'lost'
  )
  assert results['source_test']['last']['accuracy'] > plain['source_test']['last']['accuracy'] + 0.1


def test_a_probe_forgets_nothing_and_only_who_asks_is_told(place):
  run = settings(phase={'train': 'head'}, evaluation={'every': 6, 'forgotten': True})
  results = transferlab.run(config.resolved(run), place / 'probe')
  assert results['source_test']['after'] == results['source_test']['before'] == results['source_test']['last']
  assert 'source_test' not in transferlab.run(config.resolved(settings()), place / 'plain')


def test_what_an_experiment_forgot_stands_in_its_table(place):
  values = config.resolved(settings(evaluation={'every': 6, 'forgotten': True}))
  methods = {'full': {}, 'probe': {'phases.0.train': 'head'}, 'scratch': {'source': None}}
  values = {
    'base': values,
    'axes': {'method': methods, 'seed': [0, 1]},
    'table': {'baseline': 'full'},
  }
  table = transferlab.run(values, place / 'study')
  rows = {row['name']: row for row in table['blocks'][0]['rows']}
  assert rows['probe']['forgotten'] == 0 and rows['full']['forgotten'] > 0
  assert rows['scratch']['forgotten'] is None and rows['scratch']['n'] == 2
  records = [json.loads(file.read_text()) for file in (place / 'study' / 'cells').glob('*.json')]
  lost = [
    record['source_test']['before']['accuracy'] - record['source_test']['after']['accuracy']
    for record in records
    if record['cell']['method'] == 'full'
  ]
  assert rows['full']['forgotten'] == pytest.approx(np.mean(lost))
  head = (place / 'study' / 'table.md').read_text().splitlines()[0]
  assert 'forgotten' in head


def record_of(seed, before, after, last, metric='accuracy'):
  measured = {'test': {metric: 0.5}}
  return {
    'cell': {'method': 'full', 'seed': seed}, 'status': 'done', 'last': measured, 'selected': measured,
    'source_test': {'before': {metric: before}, 'after': {metric: after}, 'last': {metric: last}},
  }  # fmt: skip


def test_the_column_is_the_mean_loss_with_its_interval_positive_where_worse():
  records = [record_of(0, 0.9, 0.7, 0.5), record_of(1, 0.8, 0.5, 0.5)]
  (row,) = comparison.summarise(records, tables.Table()).blocks[0].rows
  assert row.forgotten == pytest.approx(0.25)
  # Student's t for two values: 12.706 · 0.0707 / √2.
  assert row.forgotten_half_width == pytest.approx(12.706 * 0.0707107 / 2**0.5, rel=1e-3)
  (row,) = comparison.summarise(records, tables.Table(which='last')).blocks[0].rows
  assert row.forgotten == pytest.approx(0.35)
  assert '| +0.250 ± 0.635 |' in tables.markdown(tables.summarise(records, tables.Table()))
  worse = [record_of(0, 0.2, 0.5, 0.5, 'log_loss')]
  (row,) = comparison.summarise(worse, tables.Table(metric='log_loss')).blocks[0].rows
  assert row.forgotten == pytest.approx(0.3)
  none = tables.markdown(tables.summarise([{**record_of(0, 0, 0, 0), 'source_test': None}], tables.Table()))
  assert 'forgotten' not in none


# ------------------------------------------------------------------------------------------- the plan, both ways
def test_values_travel_as_the_weights_do_and_come_back():
  """Rows by name and chosen classes; what is new is 0, and None where nothing was copied."""
  random = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
  source = {'params': {'in': {'w': draw(3, 2)}, 'mid': {'w': draw(2, 2)}, 'head': {'w': draw(2, 4)}}, 'stats': {}}
  target = {'params': {'in': {'w': draw(4, 2)}, 'mid': {'w': draw(2, 2)}, 'head': {'w': draw(2, 2)}}, 'stats': {}}
  plan = transplant.plan(
    source, target, [('in', 'columns'), ('mid', 'init'), ('head', 'classes:3,1')],
    source_names={'': ['a', 'b', 'c']}, target_names={'': ['c', 'x', 'a', 'y']},
  )  # fmt: skip
  carried = transplant.carried(plan, source['params'], target['params'])
  given = np.asarray(source['params']['in']['w'])
  np.testing.assert_array_equal(carried['in']['w'], np.stack([given[2], 0 * given[0], given[0], 0 * given[0]]))
  np.testing.assert_array_equal(carried['head']['w'], np.asarray(source['params']['head']['w'])[:, [3, 1]])
  assert carried['mid'] == {'w': None}
  back = transplant.returned(plan, source, target)['params']
  new = np.asarray(target['params']['in']['w'])
  np.testing.assert_array_equal(back['in']['w'], np.stack([new[2], given[1], new[0]]))
  wanted = np.asarray(source['params']['head']['w']).copy()
  wanted[:, [3, 1]] = np.asarray(target['params']['head']['w'])
  np.testing.assert_array_equal(back['head']['w'], wanted)
  np.testing.assert_array_equal(back['mid']['w'], source['params']['mid']['w'])


if __name__ == '__main__':
  measure()
