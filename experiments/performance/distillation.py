"""What a teacher costs a step: asked once, or in every step, against a step without one; as ratios of one run.

python experiments/performance/distillation.py [--repeats=15]

Two students (a perceptron 784-800-800-10, a ResNet-8 on 32x32) with batches of 128 images, `kd` beside cross-entropy.
The three ways take turns interval by interval, so that what else the machine does meets all; the ratio is of the times
of neighbouring intervals, and its median and quartiles are printed.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transferlab import config, experiment
from transferlab.preparation import prepare, start
from transferlab.screen import Screen
from transferlab.settings import Run
from transferlab.training.partition import split
from transferlab.training.step import begin
from transferlab.training.terms import with_terms

EXAMPLES = 4000
# The student, its teacher, the side and channels of an image, and the steps of an interval.
PAIRS = {
  'MLP 784-800-800-10, teacher 784-1200-1200-10': (
    {'name': 'mlp', 'hidden': [800, 800]},
    {'name': 'mlp', 'hidden': [1200, 1200]},
    (28, 1),
    20,
  ),
  'ResNet-8, teacher ResNet-20': ({'name': 'resnet', 'depth': 8}, {'name': 'resnet', 'depth': 20}, (32, 3), 2),
}


def images(place: Path, side: int, channels: int) -> str:
  """A file of random images and labels: speed does not depend on what they show."""
  random = np.random.default_rng(0)
  x = random.integers(0, 256, (EXAMPLES, side, side, channels), dtype=np.uint8)
  np.savez(place / f'{side}.npz', x=x, y=np.arange(EXAMPLES) % 10)
  return f'npz:{place / f"{side}.npz"}'


def way(values: dict[str, Any], place: Path, count: int) -> Callable[[], float]:
  """Trains `count` steps at each call, and gives their seconds."""
  run = config.validate(Run, values)
  prepared = prepare(run)
  taught = experiment.teacher_weights(prepared, place / 'sources', Screen(quiet=True), lambda: False)
  member = start(prepared, None, taught)
  stretch = member.stretches[0]
  method, given = stretch.method, {name: own['variables'] for name, own in member.asked.items()}
  full = with_terms(method.network, [method.objective], member.variables, stretch.example, 0, method.asked, given)
  if stretch.kept:
    feed = experiment.cached_feed([prepared], [member], place, lambda line: None)(0, [member.variables])
  else:
    feed = experiment.feed_of([prepared], [member])
  state = feed.place(begin(method, full['params'], full['stats'], full['term_stats'], 0))
  constants = feed.place({**stretch.constants(member, 0), 'frozen': split(full['params'], method.trainable)[1]})
  held = {'state': state, 'step': 0}

  def train() -> float:
    begun = time.perf_counter()
    held['state'], _ = feed.train(method, held['state'], constants, held['step'], count)
    jax.block_until_ready(held['state'])
    held['step'] += count
    return time.perf_counter() - begun

  return train


def compared(place: Path, student: dict, teacher: dict, image: tuple[int, int], count: int, repeats: int) -> list[str]:
  """A table row for each way to ask a teacher."""
  data = {'name': images(place, *image), 'batch_size': 128, 'standardize': True}
  values = {
    'network': student,
    'target': {'data': data},
    'phases': [{'steps': 10_000, 'learning_rate': 1e-3}],
    'logging': {'every': count},
  }
  teachers = {'large': {'network': teacher, 'data': data, 'phases': [{'steps': 1}]}}
  taught = {**values, 'teachers': teachers, 'objective': [{'term': 'cross_entropy'}, {'term': 'kd'}]}
  ways = {
    'none': way(values, place, count),
    'asked once': way(taught, place, count),
    'asked in every step': way({**taught, 'feature_cache': {'use': 'never'}}, place, count),
  }
  for train in ways.values():
    train()
  seconds = np.array([[train() for train in ways.values()] for _ in range(repeats)])
  rows = []
  for number, name in enumerate(ways):
    low, middle, high = np.percentile(seconds[:, number] / seconds[:, 0], [25, 50, 75])
    rows.append(
      f'{name} | {1000 * np.median(seconds[:, number]) / count:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) |'
    )
  return rows


def main() -> None:
  """Prints the table."""
  repeats = next((int(flag.split('=')[1]) for flag in sys.argv[1:] if flag.startswith('--repeats=')), 15)
  print('| student and teacher | the teacher is | ms a step | without a teacher (median; quartiles) |')
  print('|---|---|---:|---:|')
  for name, pair in PAIRS.items():
    with tempfile.TemporaryDirectory() as place:
      for row in compared(Path(place), *pair, repeats):
        print(f'| {name} | {row}')


if __name__ == '__main__':
  main()
