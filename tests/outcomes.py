"""Two runs' folders compared: what has to agree to the bit, and what does not (times)."""

import json

import jax
import numpy as np
import pytest

from transferlab import checkpoints, experiment
from transferlab.errors import Interrupted
from transferlab.screen import Screen
from transferlab.training import feature_store


class Stopper(Screen):
  """A quiet screen that counts steps, and asks to stop at one of them."""

  def __init__(self, at):
    super().__init__(quiet=True)
    self.at, self.steps = at, 0

  def advance(self, steps):
    self.steps += steps

  def __call__(self):
    return self.steps >= self.at


def outcome(place):
  """What has to agree to the bit: arrays of the last checkpoint, its record, metrics, results and predictions."""
  newest = checkpoints.find(str(place))
  arrays = {
    path: (leaf.dtype.str, leaf.shape, leaf.tobytes()) for path, leaf in leaves(checkpoints.load(newest)).items()
  }
  lines = [json.loads(line) for line in (place / 'metrics.jsonl').read_text().splitlines()]
  results = json.loads((place / 'results.json').read_text())
  predictions = {file.name: file.read_text() for file in (place / 'predictions').glob('*')}
  for record in (*lines, results):
    del record['seconds']
    record.pop('waited', None)
  return {
    'arrays': arrays,
    # Where frozen leaves lie is no part of what was learnt.
    'progress': {**checkpoints.progress(newest), 'frozen': None},
    'metrics': lines,
    'results': results,
    'predictions': predictions,
  }


def assert_a_stop_changes_nothing(run, at, place):
  """A run that stops at a step, and is taken up as another process would, ends as one that does not."""
  experiment.run(run, place / 'whole')
  stopper = Stopper(at)
  with pytest.raises(Interrupted):
    experiment.run(run, place / 'parts', screen=stopper, stop=stopper)
  assert checkpoints.steps(place / 'parts' / 'checkpoints')[-1] == at
  feature_store.forget()
  experiment.run(run, place / 'parts')
  assert_same(place / 'parts', place / 'whole')


def leaves(tree):
  """Leaves by path, those in the tuples of an optimizer too."""
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(place, reference):
  found, wanted = outcome(place), outcome(reference)
  for part in wanted:
    assert found[part] == wanted[part], part
  assert wanted['metrics'] and wanted['arrays']
