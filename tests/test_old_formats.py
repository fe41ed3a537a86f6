"""Runs that earlier versions made are read for ever: one of each format is kept, with what it answered then."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

import transferlab
from transferlab import checkpoints, config, folder
from transferlab.preparation import prepare
from transferlab.settings import Run

FIXTURES = Path(__file__).parent / 'fixtures'
# By format: the outputs of the run for INPUTS, as the version that made it gave them.
ANSWERS = {
  1: [
    [0.226394385099411, 0.9063630700111389, -1.2250255346298218],
    [0.001994890859350562, -0.0019996939226984978, 0.0019999686628580093],
  ]
}
INPUTS = np.array([[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]])


@pytest.fixture(params=ANSWERS)
def old(request, tmp_path):
  """(format, folder) of a run on iris, of an mlp with two hidden units."""
  with zipfile.ZipFile(FIXTURES / f'run_format_{request.param}.zip') as archive:
    archive.extractall(tmp_path / 'old')
  return request.param, tmp_path / 'old'


def test_every_format_up_to_this_one_is_kept():
  assert set(ANSWERS) == set(range(1, checkpoints.FORMAT + 1))


def test_an_old_run_answers_as_it_did(old):
  number, place = old
  np.testing.assert_allclose(transferlab.load(place).outputs(INPUTS), ANSWERS[number], rtol=1e-5)


def test_an_old_run_is_a_source_of_new_ones(old, tmp_path):
  number, place = old
  data = dict(name='iris', shots=5, validation=3, batch_size=15)
  run = dict(network=dict(name='mlp', hidden=[2]), source=dict(weights=str(place)), target=dict(data=data))
  run |= dict(transplant=[('.*', 'copy')], phases=[dict(steps=1, learning_rate=0.0)])
  transferlab.run(run, tmp_path / 'new')
  np.testing.assert_allclose(transferlab.load(tmp_path / 'new').outputs(INPUTS), ANSWERS[number], rtol=1e-5)


def test_an_old_run_has_the_identity_it_had_so_the_same_command_finds_it_finished(old, command, write_config, tmp_path):
  _, place = old
  saved = folder.read_record(place / 'config.json', 'config', 'identity')
  again = prepare(config.validate(Run, saved['config'])).identity
  assert again == saved['identity']
  done = command(f'--config={write_config(tmp_path / "c.py", saved["config"])}', f'--workdir={place}')
  assert done.status == 0, done.err
  assert 'is finished' in done.out + done.err
