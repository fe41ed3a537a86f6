"""What the host costs: images per second from files to batches, beside PyTorch's DataLoader on the same files.

python experiments/performance/streaming.py --folder=DIR --tfds=DIR [--repeats=3]

--folder: photos in class folders, to augmented 224x224 batches. Ours: decoded and resized by OpenCV in threads, the
random crop and flip on the device. PyTorch: what torchvision's ImageFolder does, with Pillow, in two worker processes.
--tfds: prepared mnist and cifar10_jpeg (array_record), to batches of 128; PyTorch reads them through TFDS. Then
an MLP 784-128-10 is trained on mnist: held on the device, streamed from memory, and streamed from files in every epoch.
Every figure is the median of the repeats, after one that is not counted; the variants take turns.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transferlab.config import validate
from transferlab.data import augmentation, loader, sources
from transferlab.data.augmentation import Augment
from transferlab.data.loader import Order
from transferlab.data.settings import Data
from transferlab.data.sources import load
from transferlab.preparation import prepare
from transferlab.screen import Screen
from transferlab.settings import Run
from transferlab.study import train

AUGMENT = Augment(crop=224, resized_crop=(0.08, 1.0), flip=True)


def ours(values: dict, batch: int, count: int, augment: Augment | None = None) -> Callable[[], int]:
  """Streams `count` batches, as training does, and returns how many images they held."""
  loaded = load(validate(Data, {**values, 'hold': 'stream'}), 0)
  arrays = loaded.arrays(loaded.splits['train'], loaded.preprocessing)
  steps = max(1, 2**22 // (batch * int(np.prod(arrays['x'].shape[1:]))))
  order = Order(len(arrays['id']), batch, batch, 0)
  change = jax.jit(lambda x, keys: augmentation.apply(x, keys, AUGMENT, 0.0, 255.0))
  keys = jax.random.split(jax.random.key(0), batch)

  def read() -> int:
    for number, block in enumerate(loader.stream(arrays, order, 0, steps, 0), 1):
      x = jax.device_put(block['x'])
      if augment is not None:
        x = change(x[0], keys)
      x.block_until_ready()
      if number * steps >= count:
        return number * steps * batch
    return 0

  return read


def batches_of(dataset: Any, batch: int, count: int) -> Callable[[], int]:
  """The same by PyTorch's DataLoader with two worker processes."""
  from torch.utils.data import DataLoader

  made = DataLoader(dataset, batch, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)

  def endless() -> Iterator[Any]:
    while True:
      yield from made

  source = endless()

  def read() -> int:
    return sum(len(next(source)[0]) for _ in range(count))

  return read


class Photos:
  """Photos as torchvision's ImageFolder with RandomResizedCrop, flip and ToTensor gives them."""

  def __init__(self, folder: str):
    self.files = sorted(file for file in Path(folder).rglob('*') if file.suffix.lower() in ('.jpg', '.jpeg'))

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> tuple[Any, int]:
    import torch
    from PIL import Image

    image = Image.open(self.files[index]).convert('RGB')
    random, (width, height) = np.random.default_rng(), image.size
    area, aspect = width * height * random.uniform(0.08, 1), np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
    wide, tall = min(width, round((area * aspect) ** 0.5)), min(height, round((area / aspect) ** 0.5))
    left, top = random.integers(width - wide + 1), random.integers(height - tall + 1)
    image = image.resize((224, 224), Image.Resampling.BILINEAR, (left, top, left + wide, top + tall))
    values = np.asarray(image)[:, :: -1 if random.random() < 0.5 else 1]
    return torch.from_numpy(values.transpose(2, 0, 1).astype(np.float32) / 255), 0


class Records:
  """A prepared TFDS data set, decoded by TFDS."""

  def __init__(self, name: str, folder: str):
    import tensorflow_datasets as tfds

    self.source = tfds.builder(name, data_dir=folder).as_data_source(split='train')

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> tuple[Any, int]:
    import torch

    record = self.source[index]
    return torch.from_numpy(np.ascontiguousarray(record['image'].transpose(2, 0, 1))), int(record['label'])


def rate(read: Callable[[], int]) -> float:
  """Images per second of one call."""
  begun = time.perf_counter()
  return read() / (time.perf_counter() - begun)


def training(folder: str, hold: str) -> Callable[[], int]:
  """Trains an MLP for three epochs of MNIST, and returns how many images it saw."""
  data = dict(name='tfds:mnist', folder=folder, hold=hold, batch_size=128)
  phases = [dict(epochs=3, learning_rate=1e-3)]
  prepared = prepare(validate(Run, dict(network=dict(name='mlp'), target=dict(data=data), phases=phases)))

  def run() -> int:
    (fitted,) = train([prepared], [None], Screen(quiet=True), lambda: False)
    return fitted.steps * 128

  return run


def mlp(folder: str, repeats: int) -> None:
  """Prints what it costs an MLP not to have its images on the device."""
  print(f'{"training an MLP on mnist":28} {"images per second":>17}')
  for name, hold, small in (
    ('held', 'device', 0),
    ('streamed', 'stream', 2**28),
    ('streamed, from files', 'stream', 0),
  ):
    sources.SMALL = small
    run = training(folder, hold)
    rate(run)
    print(f'{name:28} {statistics.median(rate(run) for _ in range(repeats)):17,.0f}', flush=True)
    sources._read.cache_clear(), sources._remembered.cache_clear()


def main(folder: str | None, tfds: str | None, repeats: int) -> None:
  """Prints a row for each data set."""
  sources.SMALL = 0  # every image from its file
  rows: list[tuple[str, Callable[[], int], Callable[[], int]]] = []
  if folder:
    values = dict(name=f'folder:{folder}', resize=dict(size=256))
    photos = batches_of(Photos(folder), 32, 12)
    rows.append(('photos, augmented 224x224', ours(values, 32, 12, AUGMENT), photos))
  for name in ('mnist', 'cifar10_jpeg') if tfds else ():
    values = dict(name=f'tfds:{name}', folder=tfds)
    rows.append((f'{name}, array_record', ours(values, 128, 160), batches_of(Records(name, tfds), 128, 160)))
  print(f'{"images per second":28} {"ours":>9} {"PyTorch":>9}   ours / PyTorch')
  for name, mine, theirs in rows:
    rate(mine), rate(theirs)
    pairs = [(rate(mine), rate(theirs)) for _ in range(repeats)]
    speeds = [statistics.median(column) for column in zip(*pairs)]
    print(
      f'{name:28} {speeds[0]:9,.0f} {speeds[1]:9,.0f}   {statistics.median(a / b for a, b in pairs):.2f}', flush=True
    )
  if tfds:
    mlp(tfds, repeats)


if __name__ == '__main__':
  given = dict(argument.removeprefix('--').split('=', 1) for argument in sys.argv[1:])
  main(given.get('folder'), given.get('tfds'), int(given.get('repeats', 3)))
