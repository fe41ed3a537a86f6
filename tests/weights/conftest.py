"""What the tests of several file formats share: the memory that reading takes, in a process of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


@pytest.fixture
def peak_of_reading():
  """`peak_of_reading(module, path)`: bytes by which a fresh process grew at most while all arrays were read."""
  return _peak_of_reading


def _peak_of_reading(module, path):
  program = f"""
    import importlib, re, threading
    reader = importlib.import_module('transferlab.weights.{module}')
    private = lambda: 1024 * sum(map(int, re.findall(r'Private_.*?(\\d+)', open('/proc/self/smaps_rollup').read())))
    contents = reader.read({str(path)!r})
    contents[min(contents, key=lambda name: contents.tensors[name].shape)]
    before, seen, done = private(), [], threading.Event()
    def watch():
      while not done.wait(0.0005):
        seen.append(private())
    thread = threading.Thread(target=watch)
    thread.start()
    held = dict(contents)
    done.set()
    thread.join()
    print(max([*seen, private()]) - before)
  """
  environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])}
  return int(subprocess.check_output([sys.executable, '-c', textwrap.dedent(program)], env=environment))
