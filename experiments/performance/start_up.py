"""How soon the program answers: a mistaken config, the cost of its imports, the first step with a warm cache.

python experiments/performance/start_up.py [--repeats=5]

Every figure is of a fresh process, from before its start to the line it prints; the median and the fastest of the
repeats are shown, since other work on the machine only ever adds. The imports are compared in turns. The first step is
that of a convnet (width 32) on the bundled digits, by the ordinary command, after a run that filled the cache.

Seen (two CPU cores, busy with other work; 9 processes):
                                              median  fastest  target
  a mistaken config, answered                   0.37     0.34       2
  imports on top of jax, flax.nnx and optax     0.20     0.19     0.6
  first step, cold compilation cache            9.85     9.85
  first step, warm compilation cache            3.47     2.99       5
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
def get_config(arg=''):
  data = dict(name='digits', validation=0.1, batch_size=64)
  return dict(network=dict(name='convnet'), target=dict(data=data), phases=[dict({length}=1)])
"""
# Ends the process when the loop says that the first step is done.
FIRST_STEP = """
import os, sys
from transferlab import main, screen
screen.Screen.advance = lambda self, steps: os._exit(0)
sys.exit(main.main(sys.argv[1:]))
"""
PACKAGES = 'import jax, flax.nnx, optax'
OURS = (
  'import transferlab, transferlab.commands, transferlab.model, transferlab.results, transferlab.training.loop, '
  'transferlab.networks.network, transferlab.networks.mlp, transferlab.networks.convnet, transferlab.networks.resnet'
)


def seconds(command: Sequence[str], expected: int = 0) -> float:
  """How long the command takes, from before its start to its end."""
  begun = time.monotonic()
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  taken = time.monotonic() - begun
  if done.returncode != expected:
    raise SystemExit(f'{" ".join(command[:4])} ended with {done.returncode}: {done.stderr[-500:]}')
  return taken


def main(repeats: int) -> None:
  """Measures and prints."""
  python = sys.executable
  with tempfile.TemporaryDirectory() as place:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{place}/cache'
    good, mistaken = Path(place, 'good.py'), Path(place, 'mistaken.py')
    good.write_text(CONFIG.format(length='steps'))
    mistaken.write_text(CONFIG.format(length='stepz'))
    command = ['-m', 'transferlab.main', f'--config={mistaken}']
    answers = [seconds([python, *command], expected=2) for _ in range(repeats)]
    bare, whole = [], []
    for _ in range(repeats):
      bare.append(seconds([python, '-c', PACKAGES]))
      whole.append(seconds([python, '-c', f'{PACKAGES}; {OURS}']))
    added = [b - a for a, b in zip(bare, whole)]
    start = [python, '-c', FIRST_STEP, f'--config={good}']
    steps = [seconds([*start, f'--workdir={place}/run{number}']) for number in range(repeats + 1)]
  print(f'{os.cpu_count()} CPU cores, Python {platform.python_version()}; seconds over {repeats} fresh processes')
  print(f'{"":<44}{"median":>8}{"fastest":>9}{"target":>8}')
  for name, median, fastest, target in [
    ('a mistaken config, answered', statistics.median(answers), min(answers), '2'),
    ('imports of transferlab on top of its packages', statistics.median(added), min(whole) - min(bare), '0.6'),
    ('  jax, flax.nnx and optax alone', statistics.median(bare), min(bare), ''),
    ('first step, cold compilation cache', steps[0], steps[0], ''),
    ('first step, warm compilation cache', statistics.median(steps[1:]), min(steps[1:]), '5'),
  ]:
    print(f'{name:<46}{median:>6.2f}{fastest:>9.2f}{target:>8}')


if __name__ == '__main__':
  given = [argument.partition('=')[2] for argument in sys.argv[1:] if argument.startswith('--repeats=')]
  main(int(given[0]) if given else 5)
