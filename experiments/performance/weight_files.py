"""Reading a file of VGG16's size (138,357,544 parameters, 528 MiB): seconds and memory, beside torch and safetensors.

python experiments/performance/weight_files.py [--repeats=5]

Needs PyTorch. The files are made anew, of random values, in a temporary folder, and read from the page cache: what is
compared is the reading and not the disk. Every variant reads all arrays in a process of its own, once to take the time
and once to watch how much its private memory (/proc/self/smaps_rollup) rises above what it was once everything was
imported: at most while reading, and at the end. The variants take turns; seconds are medians.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MIB = 2**20
SHARED = """
import json, sys, threading, time
def private():
  with open('/proc/self/smaps_rollup') as lines:
    return sum(int(line.split()[1]) for line in lines if line.startswith('Private')) * 1024
class Peak(threading.Thread):
  def __init__(self):
    super().__init__(daemon=True)
    self.most, self.over = private(), False
  def run(self):
    while not self.over:
      self.most = max(self.most, private())
      time.sleep(0.005)
path, watch = sys.argv[1], sys.argv[2] == 'watch'
"""
MEASURE = """
before = private()
peak = Peak()
if watch:
  peak.start()
start = time.perf_counter()
held = read(path)
total = sum(float(array.reshape(-1)[0]) for array in held.values())  # the first of each: nothing stays unread
seconds = time.perf_counter() - start
peak.over = True
if watch:
  peak.join()
print(json.dumps([seconds, max(peak.most, private()) - before, private() - before]))
"""
VARIANTS = {
  'pth': {
    'transferlab': 'from transferlab.weights import readers, torch_files\nread = lambda path: dict(readers.read(path))',
    'torch.load': "import torch\nread = lambda path: torch.load(path, map_location='cpu', weights_only=True)",
    'torch.load, mmap': 'import torch\nread = lambda path: torch.load(path, mmap=True, weights_only=True)',
  },
  'safetensors': {
    'transferlab': 'from transferlab.weights import readers\nread = lambda path: dict(readers.read(path))',
    'safetensors.numpy': 'from safetensors.numpy import load_file as read',
    'safetensors.torch': 'from safetensors.torch import load_file as read',
  },
}


def make(folder: Path) -> dict[str, Path]:
  """VGG16 as torchvision names it, in both formats."""
  import torch
  from safetensors.torch import save_file

  channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
  places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
  state = {}
  for place, inputs, outputs in zip(places, channels, channels[1:]):
    state[f'features.{place}.weight'] = torch.randn(outputs, inputs, 3, 3)
    state[f'features.{place}.bias'] = torch.randn(outputs)
  for place, inputs, outputs in ((0, 25088, 4096), (3, 4096, 4096), (6, 4096, 1000)):
    state[f'classifier.{place}.weight'] = torch.randn(outputs, inputs)
    state[f'classifier.{place}.bias'] = torch.randn(outputs)
  files = {'pth': folder / 'vgg16.pth', 'safetensors': folder / 'vgg16.safetensors'}
  torch.save(state, files['pth'])
  save_file(state, files['safetensors'])
  return files


def measured(code: str, path: Path) -> list[float]:
  """[seconds, peak bytes, bytes at the end], the first of one process, the others of another."""
  program, found = SHARED + code + MEASURE, []
  for how in ('time', 'watch'):
    command = [sys.executable, '-c', program, str(path), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found.append(json.loads(done.stdout.splitlines()[-1]))
  return [found[0][0], *found[1][1:]]


def main() -> None:
  """Prints one table."""
  repeats = int(next((a.partition('=')[2] for a in sys.argv[1:] if a.startswith('--repeats=')), '5'))
  with tempfile.TemporaryDirectory() as folder:
    files = make(Path(folder))
    found: dict[tuple[str, str], list[list[float]]] = {}
    for turn in range(repeats + 1):
      for kind, variants in VARIANTS.items():
        for name, code in variants.items():
          result = measured(code, files[kind])
          if turn:  # the first brings the file into the page cache
            found.setdefault((kind, name), []).append(result)
    sizes = {kind: path.stat().st_size for kind, path in files.items()}
  largest = 25088 * 4096 * 4
  print(f'largest array {largest / MIB:.0f} MiB; medians of {repeats}')
  print('| file | reader | seconds | range | peak private MiB | at the end MiB | file MiB |')
  print('|---|---|---:|---|---:|---:|---:|')
  for (kind, name), results in found.items():
    seconds, peak, end = zip(*results)
    print(
      f'| {kind} | {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} | '
      f'{statistics.median(peak) / MIB:.0f} | {statistics.median(end) / MIB:.0f} | {sizes[kind] / MIB:.0f} |'
    )


if __name__ == '__main__':
  main()
