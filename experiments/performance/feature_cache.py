"""A head on a frozen VGG16: an epoch that runs all stages in every step, and one from outputs that were kept.

python experiments/performance/feature_cache.py

Random images of 224×224 pixels and random weights: the work is that of real ones. Both ways train the same head for
the same steps; an epoch is timed after the first, which compiles. The last line says how far
weights moved at most, and how far those of the two ways are apart.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from transferlab import config, experiment, paths
from transferlab.preparation import prepare, start
from transferlab.settings import Run
from transferlab.training import feature_store
from transferlab.training.loop import Loop

IMAGES, SIZE, BATCH, CLASSES = 64, 224, 16, 4
STEPS = IMAGES // BATCH  # of an epoch


def settings(file: Path, use: str, epochs: int) -> Run:
  """A run of a new head on a frozen trunk."""
  values = {
    'network': {'name': 'vgg', 'depth': 16, 'pool': 'average', 'features': [1024]},
    'target': {'data': {'name': f'npz:{file}', 'batch_size': BATCH, 'test': 'test'}},
    'phases': [{'train': 'dense1|head', 'steps': epochs * STEPS, 'learning_rate': 1e-3}],
    'logging': {'every': STEPS},
    'feature_cache': {'use': use},
  }
  return config.validate(Run, values)


def train(file: Path, use: str, epochs: int) -> tuple[list[float], float, dict[str, np.ndarray]]:
  """Seconds of each epoch after the first, seconds for the outputs of frozen stages, and by how much weights moved."""
  prepared = prepare(settings(file, use, epochs))
  member = start(prepared, None)
  times, spent = [], [0.0]
  before = {path: np.array(leaf) for path, leaf in paths.flatten(member.variables['params']).items()}
  make = experiment.cached_feed([prepared], [member], file.parent, lambda line: None)

  def timed(index: int, variables: list[Any]) -> Any:
    begun = time.perf_counter()
    feed = make(index, variables)
    spent[0] += time.perf_counter() - begun
    return feed

  loop = Loop(
    [member],
    experiment.feed_of([prepared], [member]),
    experiment.cadence_of(prepared.run),
    cached=timed,
    advance=lambda steps: times.append(time.perf_counter()),
  )
  (fitted,) = loop.run()
  after = paths.flatten(fitted.last['params'])
  return list(np.diff(times)), spent[0], {path: np.asarray(after[path]) - leaf for path, leaf in before.items()}


def main() -> None:
  """Prints the table."""
  random = np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / 'images.npz'
    x = random.integers(0, 256, (IMAGES + CLASSES, SIZE, SIZE, 3), np.uint8)
    y = np.arange(len(x)) % CLASSES
    np.savez(file, x_train=x[:IMAGES], y_train=y[:IMAGES], x_test=x[IMAGES:], y_test=y[IMAGES:])
    plain, _, all_stages = train(file, 'never', 3)
    _, _, kept = train(file, 'always', 3)
    feature_store.forget()
    cached, once, _ = train(file, 'always', 101)
  largest = max(float(np.abs(leaf).max()) for leaf in all_stages.values())
  difference = max(float(np.abs(kept[path] - leaf).max()) for path, leaf in all_stages.items())
  print('| an epoch of a head on a frozen VGG16 | seconds |')
  print('|---|---:|')
  print(f'| all stages in every step | {np.median(plain):.2f} |')
  print(f'| from kept outputs | {np.median(cached):.4f} |')
  print(f'| the outputs, once, compilation included | {once:.2f} |')
  print(f'\nfaster by {np.median(plain) / np.median(cached):,.0f} times')
  print(f'weights that moved by up to {largest:.1e} differ by up to {difference:.1e}')


if __name__ == '__main__':
  main()
