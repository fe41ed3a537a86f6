"""Data larger than memory: what a streamed run holds does not grow with the data."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

RUN = """
import json, resource, sys

import transferlab

settings = json.loads(sys.argv[1])
transferlab.run(settings, sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
SIDE, BYTES = 192, 192 * 192 * 3


def _photos(place, count):
  """A folder of two classes; few files, under many names."""
  random = np.random.default_rng(0)
  for name in ('left', 'right'):
    (place / name).mkdir(parents=True)
    first = place / name / '0.jpg'
    cv2.imwrite(str(first), random.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8))
    for number in range(1, count // 2):
      (place / name / f'{number}.jpg').hardlink_to(first)
  return f'folder:{place}'


def _peak(tmp_path, count):
  """The most memory, in bytes, that a process holds which trains on so many images, and tests on a quarter of them."""
  data = {'name': _photos(tmp_path / f'photos{count}', count), 'hold': 'stream', 'batch_size': 16}
  network = {'name': 'convnet', 'width': 1, 'features': 2, 'blocks': 4}
  phases = [{'steps': 12, 'optimizer': 'sgd', 'learning_rate': 0.01}]
  settings = {'network': network, 'target': {'data': data}, 'phases': phases, 'evaluation': {'batch_size': 16}}
  command = [sys.executable, '-c', RUN, json.dumps(settings), str(tmp_path / f'run{count}')]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return int(done.stdout) * (1 if sys.platform == 'darwin' else 1024)


@pytest.mark.long
def test_the_memory_of_a_streamed_run_does_not_grow_with_its_data(tmp_path):
  few, many = 400, 4000
  grown = _peak(tmp_path, many) - _peak(tmp_path, few)
  assert grown < 0.25 * (many - few) * BYTES, f'{grown / 2**20:.0f} MiB more'
