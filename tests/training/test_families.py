"""What the laboratory does with any network, done once with each family: none of it has code of their own."""

import numpy as np
import pytest

from transferlab import checkpoints, config, experiment, paths
from transferlab.settings import Run

pytestmark = pytest.mark.usefixtures('quick_compilation')
# Options, the frozen stages of the second phase, and the stage whose rate is lower in the third.
FAMILIES = {
  'vit': (dict(width=8, depth=2, heads=2, hidden=8, patch=4), 'embed|block1', 'block1'),
  'imagenet_resnet': (dict(depth=18, width=4, blocks=3), 'stem|block1', 'block2'),
  'mobilenet_v2': (dict(width=0.1, blocks=3), 'stem|block1', 'block2'),
  'convnext': (dict(depths=[1, 1], widths=[4, 8]), 'stem|block1', 'block2'),
  'bit': (dict(width=32, blocks=2), 'stem|block1', 'block2'),
}
TEXTS = {
  'bert': (dict(width=8, depth=2, heads=2, hidden=8, positions=8), 'embed|block1', 'block1'),
  'decoder': (dict(width=8, depth=2, heads=2, hidden=8, positions=8), 'embed|block1', 'block1'),
}
STEPS = dict(optimizer='momentum', steps=6)


@pytest.fixture(scope='module')
def questions(tmp_path_factory):
  path, random = tmp_path_factory.mktemp('texts') / 'questions.tsv', np.random.default_rng(0)
  words = {'place': 'where city country river', 'person': 'who man queen writer'}
  rows = [f'{label}\t{" ".join(random.choice(words[label].split(), 5))} ?' for label in words for _ in range(40)]
  path.write_text('label\ttext\n' + '\n'.join(rows) + '\n')
  return f'tsv:{path}'


def _run(name, options, data, phases, place, **more):
  values = dict(network=dict(name=name, **options), target=dict(data=data), phases=phases, **more)
  return experiment.run(config.validate(Run, {**values, 'evaluation': dict(every=6)}), place)


def _weights(place):
  return {
    path: np.asarray(leaf)
    for path, leaf in paths.flatten(checkpoints.weights(checkpoints.find(str(place)), 'last')['params']).items()
  }


def _data(name, questions):
  if name in TEXTS:
    return dict(name=questions, tokens=dict(length=8, vocabulary=20), test=0.2, validation=0.2, batch_size=16)
  return dict(name='digits', shots=8, validation=4, batch_size=16, test=0.1)


# Compiling all of these takes minutes: one in every run.
QUICK = [name if name == 'vit' else pytest.param(name, marks=pytest.mark.long) for name in (*FAMILIES, *TEXTS)]


@pytest.mark.parametrize('name', QUICK)
def test_a_family_is_pretrained_probed_frozen_by_stage_and_fine_tuned(name, questions, tmp_path):
  options, frozen, low = {**FAMILIES, **TEXTS}[name]
  data, rest = _data(name, questions), f'(?!({frozen})(/|$)).*'
  source = dict(data=data, phases=[dict(STEPS)])
  probe = dict(STEPS, name='probe', train='head', learning_rate=1e-2)
  upper = dict(STEPS, name='upper', train=rest, learning_rate=1e-2)
  whole = dict(STEPS, name='all', train='.*', learning_rate=[(low, 1e-3), ('.*', 1e-2)])
  _run(name, options, data, [probe, upper], tmp_path / 'a', source=source, feature_cache=dict(use='auto'))
  _run(name, options, data, [probe, upper], tmp_path / 'b', source=source, feature_cache=dict(use='never'))
  kept, plain = _weights(tmp_path / 'a'), _weights(tmp_path / 'b')
  for path, leaf in kept.items():  # outputs of frozen stages, kept or computed in every step
    np.testing.assert_allclose(leaf, plain[path], rtol=2e-3, atol=2e-4, err_msg=path)
  _run(name, options, data, [whole], tmp_path / 'c', source=dict(weights=str(tmp_path / 'a'), which='last'))
  moved = {path for path, leaf in _weights(tmp_path / 'c').items() if not np.array_equal(leaf, kept[path])}
  assert {paths.stage_of(path) for path in moved} == {paths.stage_of(path) for path in kept}
  pretrained = _weights(next((tmp_path / 'sources').glob('*')))
  same = {paths.stage_of(path) for path in kept if np.array_equal(kept[path], pretrained[path])}
  assert set(frozen.split('|')) <= same


@pytest.mark.parametrize('name', ['vit', 'bert'])
def test_every_depth_of_a_family_is_probed(name, questions, tmp_path):
  options, *_ = {**FAMILIES, **TEXTS}[name]
  baseline = dict(name='logistic_regression', stage='all')
  found = _run(name, options, _data(name, questions), [], tmp_path / 'a', baseline=baseline)
  assert list(found['probes']) == ['embed', 'block1', 'block2', 'pool', 'head']
  assert [probe['features'] for probe in found['probes'].values()][:4] == [8] * 4


@pytest.mark.long
def test_a_resnet_learns_from_a_vision_transformer(tmp_path):
  """Without labels: what it learns comes from the teacher's answers, and the hint from its pooled tokens."""
  data = dict(name='digits', fraction=0.2, validation=0.1, batch_size=16, test=0.2)
  steps = dict(optimizer='adam', learning_rate=1e-2, steps=60)
  teacher = dict(network=dict(name='vit', **FAMILIES['vit'][0]), data=data, phases=[steps])
  kd, hint = dict(term='kd', temperature=2.0), dict(term='hint', stages={'pool': 'pool'}, weight=0.1)
  options, found = FAMILIES['imagenet_resnet'][0], {}
  for name, objective, count in (('untaught', [kd], 1), ('taught', [kd], 60), ('hinted', [kd, hint], 60)):
    found[name] = _run(
      'imagenet_resnet', options, {**data, 'labelled': False}, [dict(steps, steps=count)], tmp_path / name,
      teachers=dict(large=teacher), objective=objective,
    )['last']['test']  # fmt: skip
  assert found['taught']['divergence'] < 0.8 * found['untaught']['divergence']
  assert found['hinted']['divergence'] != found['taught']['divergence']
