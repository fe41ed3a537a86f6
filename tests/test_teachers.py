"""Teachers in whole runs: asked in every step or once, and never part of what trains, is saved or is exported."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from outcomes import assert_a_stop_changes_nothing
from scipy.special import log_softmax

import transferlab
from transferlab import checkpoints, commands, config, experiment, paths, study, teachers
from transferlab.errors import UserError
from transferlab.preparation import prepare, start
from transferlab.results import split
from transferlab.screen import Screen
from transferlab.settings import Run
from transferlab.training import feature_store

pytestmark = pytest.mark.usefixtures('quick_compilation')
DATA = {'name': 'digits', 'shots': 8, 'validation': 3, 'batch_size': 16}
MLP = {'name': 'mlp', 'hidden': [12]}
BIG = {'name': 'mlp', 'hidden': [24, 20]}
TEACHER = {'data': DATA, 'network': BIG, 'phases': [{'steps': 30, 'learning_rate': 1e-2}]}
LABELS = {'term': 'cross_entropy'}
KD = {'term': 'kd', 'temperature': 3.0}
HINT = {'term': 'hint', 'stages': {'layer1': 'layer2'}, 'weight': 0.01}
MEMORY = {'term': 'contrastive', 'stage': {'layer1': 'layer2'}, 'negatives': 9, 'width': 5, 'weight': 0.1}
VIEWS = {'augment': {'shift': 1, 'views': 2}}


def settings(*objective, use='auto', data=None, phases=None, **more):
  values = {
    'network': MLP,
    'teachers': {'big': TEACHER},
    'target': {'data': {**DATA, **(data or {})}},
    'phases': phases or [{'steps': 20, 'learning_rate': 1e-2}],
    'objective': [LABELS, *objective],
    'evaluation': {'every': 10},
    'checkpoint': {'every': 5},
    'logging': {'every': 5},
    'feature_cache': {'use': use},
    **more,
  }
  return config.validate(Run, values)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder whose runs share their pretrained teachers."""
  return tmp_path_factory.mktemp('runs')


def weights(prepared, place):
  return experiment.teacher_weights(prepared, place / 'sources', Screen(quiet=True), lambda: False)


def last(place):
  return paths.flatten(checkpoints.weights(checkpoints.find(str(place)), 'last'))


def forward(variables, x):
  """Logits of a perceptron, in float64."""
  layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables['params'])
  for name in sorted(set(layers) - {'head'}):
    x = np.maximum(x @ layers[name]['linear']['kernel'] + layers[name]['linear']['bias'], 0)
  return x @ layers['head']['kernel'] + layers['head']['bias']


# ------------------------------------------------------------------------------------------------- what it comes out as
def test_a_run_says_who_taught_it_and_how_like_them_it_has_become(place):
  results = transferlab.run(config.resolved(settings(KD)), place / 'who')
  prepared = prepare(settings(KD))
  kept, taught = results['teachers']['big'], weights(prepared, place)
  source = place / kept['from']
  assert json.loads((source / 'results.json').read_text())['status'] == 'done'
  assert kept['parameters'] == 64 * 24 + 24 + 24 * 20 + 20 + 20 * 10 + 10
  assert kept['digests'] == {'digits': prepared.loaded.digest}
  record = prepared.asked['big'].record
  x, label, _ = split(prepared, 'test')
  x = ((np.asarray(x, np.float64) - record['shift']) / record['scale']).reshape(len(x), -1)
  theirs = forward(taught['big'].variables, x)
  mine = forward(checkpoints.weights(checkpoints.find(str(place / 'who')), 'selected'), x)
  assert kept['test']['accuracy'] == pytest.approx((theirs.argmax(1) == label).mean(), abs=1e-9)
  log_p, log_q = log_softmax(theirs, 1), log_softmax(mine, 1)
  found = results['selected']['test']
  assert found['agreement'] == pytest.approx((theirs.argmax(1) == mine.argmax(1)).mean(), abs=1e-9)
  assert found['divergence'] == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(1).mean(), rel=1e-4)
  assert 0 < kept['test']['calibration_error'] < 1


def test_the_loss_of_the_first_step_is_that_of_the_teachers_answers(place):
  run = settings(KD, logging={'every': 1})
  transferlab.run(config.resolved(run), place / 'first')
  line = json.loads((place / 'first' / 'metrics.jsonl').read_text().splitlines()[0])
  prepared = prepare(run)
  rows = prepared.order().batches(0, 1)['row'][0]
  arrays = prepared.loaded.arrays(prepared.loaded.splits['train'][rows], prepared.record)
  x = (np.asarray(arrays['x'], np.float64) - prepared.record['shift']) / prepared.record['scale']
  theirs, mine = (
    log_softmax(forward(own, x.reshape(len(x), -1)) / 3, 1)
    for own in (weights(prepared, place)['big'].variables, start(prepared, None).variables)
  )
  wanted = 9 * (np.exp(theirs) * (theirs - mine)).sum(1).mean()
  assert line['values']['kd'] == pytest.approx(wanted, rel=1e-4)


def test_a_teacher_stays_as_it_is_outside_of_state_checkpoint_and_export(place):
  run = settings(KD, HINT, MEMORY)
  prepared = prepare(run)
  before = jax.tree.map(np.array, weights(prepared, place)['big'].variables)
  transferlab.run(config.resolved(run), place / 'outside')
  jax.tree.map(np.testing.assert_array_equal, weights(prepared, place)['big'].variables, before)
  tree = checkpoints.load(checkpoints.find(str(place / 'outside')))
  own = {path.split('/')[1] for path in paths.flatten(tree['params']) if path.startswith('terms/')}
  assert own == {'hint', 'contrastive'}
  shapes = {np.shape(leaf) for leaf in jax.tree.leaves(tree)}
  assert (64, 24) not in shapes and (24, 20) not in shapes
  commands.export(place / 'outside', str(place / 'student.npz'))
  with np.load(place / 'student.npz') as file:
    names = {name for name in file.files if not name.startswith('_')}
    arrays = {name: file[name] for name in names}
  assert not any('terms' in name or 'big' in name for name in names)
  student = {f'params/{path}' for path in paths.flatten(prepared.network.shapes()['params'])}
  assert {name for name in names if 'kernel' in name or 'bias' in name} <= student | {n[7:] for n in student}
  assert sum(array.size for array in arrays.values() if array.dtype == np.float32) == 64 * 12 + 12 + 12 * 10 + 10
  model = transferlab.load(place / 'outside')
  assert model.predict(split(prepared, 'test')[0][:4]).shape == (4,)


# ------------------------------------------------------------------------------------------------- asked once, or anew
CASES = {
  'answers': ([KD], {}, None),
  'answers and stages': ([KD, HINT], {}, None),
  'two views': ([KD, HINT], VIEWS, None),
  'a memory of all examples': ([MEMORY], VIEWS, None),
  'padded batches': ([KD], {'last_batch': 'pad', 'batch_size': 14}, None),
  'frozen stages kept too': ([KD, HINT], VIEWS, [{'train': 'head', 'steps': 20, 'learning_rate': 1e-2}]),
}


LONG = ('answers', 'padded batches', 'two views', 'a memory of all examples')  # others hold what these show, and more


@pytest.mark.parametrize('case', [pytest.param(c, marks=pytest.mark.long if c in LONG else ()) for c in CASES])
def test_a_teacher_that_is_asked_once_teaches_the_same(case, tmp_path):
  objective, data, phases = CASES[case]
  found = {}
  for use in ('auto', 'never'):
    found[use] = experiment.run(settings(*objective, use=use, data=data, phases=phases), tmp_path / use)
  said = found['auto']['frozen_stages']
  assert any("asks teacher 'big' once" in line for line in said)
  assert any('runs up to layer1 once' in line for line in said) == (case == 'frozen stages kept too')
  assert found['never']['frozen_stages'] == []
  one, other = last(tmp_path / 'auto'), last(tmp_path / 'never')
  for path, leaf in one.items():
    np.testing.assert_allclose(leaf, other[path], rtol=2e-4, atol=2e-5, err_msg=path)
  for one, other in zip(found['auto']['curve'], found['never']['curve'], strict=True):
    assert one['train']['loss'] == pytest.approx(other['train']['loss'], rel=1e-4)


def test_only_what_terms_look_at_is_kept_of_a_teacher():
  kept = lambda *objective: [r.stages for r in prepare(settings(*objective)).stretches[0].recordings]
  assert kept(KD) == [('head',)]
  assert kept(HINT) == [('layer2',)]
  assert kept(KD, HINT) == [('layer2', 'head')]


@pytest.mark.parametrize(
  'data, steps, reason',
  [
    ({'augment': {'shift': 1}}, 20, 'draws a new view in every epoch'),
    ({'augment': {'mixup': 0.2}}, 20, 'mix inputs anew'),
    ({}, 4, 'sees fewer examples than there are'),
  ],
)
def test_a_teacher_is_asked_in_every_step_where_its_answers_change(data, steps, reason):
  run = settings(KD, data=data, phases=[{'steps': steps}])
  prepared = prepare(run)
  assert prepared.stretches[0].recordings == ()
  assert any("asks teacher 'big' in every step" in line and reason in line for line in prepared.caching)


def test_answers_of_other_weights_data_or_views_are_not_taken_for_these(tmp_path, monkeypatch):
  keys = []
  monkeypatch.setattr(feature_store, 'key', lambda inputs, own=feature_store.key: keys.append(own(inputs)) or keys[-1])
  changes = [
    {},
    {'teachers': {'big': {**TEACHER, 'seed': 7}}},
    {'data': {'noise': 0.1}},
    {'data': VIEWS},
    {'teachers': {'big': {**TEACHER, 'dtype': 'bfloat16'}}},
  ]
  for number, change in enumerate(changes):
    experiment.run(settings(KD, **change), tmp_path / str(number))
  assert len(set(keys)) == len(changes)
  experiment.run(settings(KD, phases=[{'steps': 30, 'learning_rate': 1e-3}]), tmp_path / 'again')
  assert keys[-1] == keys[0]


def test_answers_in_bfloat16_are_near_those_in_float32(place, tmp_path):
  whole = settings(KD)
  half = settings(KD, teachers={'big': {**TEACHER, 'dtype': 'bfloat16'}})
  found = [experiment.run(run, tmp_path / run.teachers['big'].dtype) for run in (whole, half)]
  one, other = (results['curve'][0]['train']['kd'] for results in found)
  assert one != other
  assert one == pytest.approx(other, rel=0.05)


# -------------------------------------------------------------------------------------------------------- stop and go
@pytest.mark.parametrize(
  'objective, more',
  [
    ([KD, HINT, MEMORY], {}),
    pytest.param([KD, HINT, MEMORY], {'data': {'augment': {'shift': 1}}}, marks=pytest.mark.long),
    pytest.param([KD, HINT], {'parallel': {'compile': 'pmap'}}, marks=pytest.mark.long),
    ([KD, MEMORY], {'data': {'hold': 'stream', **VIEWS}}),
  ],
  ids=['asked once', 'asked in every step', 'under pmap', 'streaming'],
)
def test_a_stop_changes_nothing(objective, more, tmp_path):
  run = settings(*objective, **more)
  assert_a_stop_changes_nothing(run, 10, tmp_path)


@pytest.mark.parametrize('use', ['auto', pytest.param('never', marks=pytest.mark.long)])
def test_a_population_learns_as_each_student_does_alone(use, place):
  runs = [settings(KD, HINT, MEMORY, use=use, seed=seed) for seed in (0, 1)]
  prepared = [prepare(run) for run in runs]
  assert study._structure(prepared[0]) == study._structure(prepared[1])
  taught = [weights(run, place) for run in prepared]
  quiet = (place, Screen(quiet=True), lambda: False)
  together = study.train(prepared, [None, None], taught, *quiet)
  for one, own, found in zip(prepared, taught, together):
    (alone,) = study.train([one], [None], [own], *quiet)
    for mine, theirs in zip(jax.tree.leaves(found.last), jax.tree.leaves(alone.last), strict=True):
      np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-5)


# ------------------------------------------------------------------------------------------ generations, and mistakes
def test_generations_are_trained_in_order_and_once(tmp_path):
  first = {'data': DATA, 'phases': [{'steps': 6}]}
  second = {**first, 'objective': [KD], 'teachers': {'previous': first}}
  rows = {
    'second': {'teachers': {'previous': first}},
    'third': {'teachers': {'previous': second}},
    'none': {'teachers': {}, 'objective': None},
  }
  base = {'network': MLP, 'target': {'data': DATA}, 'phases': [{'steps': 6}], 'objective': [KD]}
  table = transferlab.run({'base': base, 'axes': {'method': rows, 'seed': [0]}}, tmp_path / 'study')
  assert [record['status'] for record in table['records']] == ['done'] * 3
  names = [record.get('teachers', {}).get('previous', {}).get('from') for record in table['records']]
  assert len(set(names)) == 3 and names[2] is None
  assert {f'sources/{path.name}' for path in (tmp_path / 'sources').iterdir()} == set(names[:2])
  inner = json.loads((tmp_path / names[1] / 'results.json').read_text())
  assert inner['teachers']['previous']['from'] == names[0]
  assert 'agreement' in table['records'][1]['last']['test'] and 'agreement' not in table['records'][2]['last']['test']


def test_generations_of_a_single_run_stand_beside_one_another(tmp_path):
  first = {'data': DATA, 'phases': [{'steps': 6}]}
  second = {**first, 'objective': [KD], 'teachers': {'previous': first}}
  results = experiment.run(settings(KD, teachers={'big': second}), tmp_path / 'run')
  assert not list((tmp_path / 'sources').glob('sources'))
  inner = json.loads((tmp_path / results['teachers']['big']['from'] / 'results.json').read_text())
  assert (tmp_path / inner['teachers']['previous']['from']).is_dir()


def test_a_teacher_of_other_classes_lends_its_features_and_is_not_judged(tmp_path):
  few = {**TEACHER, 'data': {**DATA, 'classes': [0, 1, 2]}}
  results = experiment.run(settings(HINT, teachers={'big': few}), tmp_path / 'run')
  assert set(results['teachers']['big']) == {'from', 'digests', 'parameters', 'dtype'}
  assert 'agreement' not in results['last']['test']


def test_values_that_are_numbered_otherwise_are_refused(tmp_path):
  for name, colours in (('teacher', ['blue', 'amber', 'red', 'green']), ('student', ['red', 'green', 'blue'])):
    rows = [f'{colours[i % len(colours)]},{i % 2}' for i in range(60)]
    (tmp_path / f'{name}.csv').write_text('\n'.join(['colour,label', *rows]))
  data = {
    'label': 'label',
    'columns': {'colour': 'category'},
    'categorical': 'embedding',
    'task': 'classification',
    'batch_size': 8,
  }
  taught = {'big': {'data': {**data, 'name': f'csv:{tmp_path / "teacher.csv"}'}, 'phases': [{'steps': 2}]}}
  target = {'data': {**data, 'name': f'csv:{tmp_path / "student.csv"}'}}
  with pytest.raises(UserError, match="the values of the target's columns are numbered otherwise"):
    prepare(config.validate(Run, {**config.resolved(settings(KD)), 'teachers': taught, 'target': target}))


def test_a_finished_run_teaches_and_its_weights_are_part_of_the_identity(place):
  """By folder: other weights make another run, the same weights elsewhere the same."""
  for name, seed in (('one', 0), ('other', 1)):
    transferlab.run({'network': BIG, 'target': {'data': DATA}, 'phases': TEACHER['phases'], 'seed': seed}, place / name)
  taught = lambda name: prepare(settings(KD, teachers={'big': {'weights': str(place / name)}}))
  assert taught('one').identity != taught('other').identity
  (place / 'moved').mkdir()
  (place / 'one').rename(place / 'moved' / 'one')
  assert (
    taught('moved/one').identity
    == prepare(settings(KD, teachers={'big': {'weights': str(place / 'moved' / 'one')}})).identity
  )
  results = transferlab.run(
    config.resolved(settings(KD, teachers={'big': {'weights': str(place / 'moved' / 'one')}})), place / 'by_folder'
  )
  assert results['teachers']['big']['parameters'] == 64 * 24 + 24 + 24 * 20 + 20 + 20 * 10 + 10


MISTAKES = [
  ({'teachers': {}}, 'asks a teacher, and config.teachers is empty'),
  ({'teachers': {'a': TEACHER, 'b': TEACHER}}, 'there are several teachers; teacher= is one of a, b'),
  ({'objective': [{**KD, 'teacher': 'bgi'}]}, "teacher 'bgi'.*nearest: big"),
  ({'objective': [LABELS]}, "config.teachers.big: no term asks this teacher; nearest: dict\\(term='kd'"),
  ({'objective': [{**LABELS, 'teacher': 'big'}, KD]}, 'cross_entropy: asks no teacher'),
  ({'objective': [{**HINT, 'stages': {'layer1': 'layer9'}}]}, "stage of teacher 'big' 'layer9'.*nearest: layer"),
  ({'objective': [{**HINT, 'stages': {'layer9': 'layer1'}}]}, "stage 'layer9'.*nearest: layer1"),
  ({'objective': [{**KD, 'temperature': 0.0}]}, 'temperature'),
  ({'objective': [{**KD, 'temperature': [4.0, 2.0, 1.0]}]}, 'temperature'),
  ({'teachers': {'source': TEACHER}}, "'source' is the name of config.source"),
  (
    {'teachers': {'big': {**TEACHER, 'data': {**DATA, 'classes': [0, 1, 2]}}}},
    'answers 3 classes, the student 10',
  ),
  ({'teachers': {'a/b': TEACHER}}, 'teachers'),
  ({'teachers': {'big': {}}}, 'teachers.big: give either data'),
  ({'teachers': {'big': {**TEACHER, 'teachers': {'source': TEACHER}}}}, "'source' is the name of config.source"),
  (
    {'target': {'data': {'name': 'diabetes'}}, 'teachers': {'big': {**TEACHER, 'data': {'name': 'diabetes'}}}},
    "term 'kd' is for classification and binary, and this is regression",
  ),
  (
    {'objective': [{'term': 'dkd'}], 'target': {'data': {**DATA, 'augment': {'mixup': 0.2}}}},
    "'dkd' needs class numbers",
  ),
  ({'objective': [{**MEMORY, 'negatives': None}], 'target': {'data': {**DATA, 'batch_size': 1}}}, 'a batch of one'),
  (
    {
      'teachers': {},
      'objective': None,
      'phases': [],
      'baseline': {'name': 'logistic_regression'},
      'network': None,
      'target': {'data': {'name': 'digits', 'labelled': False}},
    },
    'a baseline looks at the training labels',
  ),
  ({'teachers': {'big': {**TEACHER, 'data': {'name': 'iris'}}}}, 'config.teachers.big'),
  ({'teachers': {'big': {'weights': 'nowhere/x'}}}, 'config.teachers.big: .*nowhere/x'),
  ({'objective': [MEMORY], 'parallel': {'compile': 'pmap'}}, 'pmap'),
]


@pytest.mark.parametrize('change, message', MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_end_in_one_message(change, message, tmp_path):
  values = {**config.resolved(settings(KD)), **change}
  with pytest.raises(UserError, match=message):
    transferlab.run(values, tmp_path / 'run')


def test_a_dry_run_names_the_teachers(place, capsys):
  lines = commands.dry_run(settings(KD))
  assert any('big: 2,270 parameters in float32, from sources/' in line for line in lines)
  assert any("asks teacher 'big' once" in line for line in lines)


def test_old_runs_keep_their_identity():
  plain = dataclasses.replace(prepare(settings(KD)), run=settings(KD, teachers={}))
  assert 'teachers' not in config.identity(plain.run)
  assert teachers.compared({'a': np.zeros(3)}, {'big': np.zeros(3)}, 'classification') == {}
