"""Tokens per second in training on texts, beside PyTorch: a language model, an LSTM and a TextCNN classifier.

python experiments/performance/text.py [--repeats=9]       (needs torch)

The same sizes, Adam, float32 and no dropout on both sides; random tokens, no padding. Ours is the whole loop's feed
(held data, compiled steps), PyTorch's an eager loop over batches that are tensors already. The two take turns interval
by interval; the ratio is of neighbouring intervals, its median and quartiles are printed.
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
from transferlab.settings import Run
from transferlab.training.partition import split
from transferlab.training.step import begin

WORDS = 6000
# What it is, our network, the tokens of a batch [rows, length], and the steps of an interval.
CASES = {
  'language model, LSTM 2 x 128, 6,000 words': (
    {'name': 'lstm', 'embedding': 128, 'hidden': [128, 128], 'pool': 'none', 'tied': True},
    (32, 64),
    8,
  ),
  'classifier, LSTM 128, mean over places': (
    {'name': 'lstm', 'embedding': 128, 'hidden': [128], 'pool': 'mean'},
    (64, 128),
    8,
  ),
  'classifier, TextCNN 3 x 100': ({'name': 'textcnn', 'embedding': 128, 'dropout': 0.0}, (50, 40), 20),
}


def ours(place: Path, network: dict[str, Any], shape: tuple[int, int], count: int) -> Callable[[], float]:
  """Trains `count` steps at each call, and gives their seconds."""
  (rows, length), random = shape, np.random.default_rng(0)
  language = network.get('pool') == 'none'
  texts = [' '.join(map(str, random.integers(0, WORDS, length))) for _ in range(rows * 20)]
  if language:
    (place / 'text.txt').write_text('\n'.join(texts) + '\n')
  else:
    lines = [f'{number % 2}\t{text}' for number, text in enumerate(texts)]
    (place / 'text.tsv').write_text('label\ttext\n' + '\n'.join(lines) + '\n')
  name = f'text:{place}/text.txt' if language else f'tsv:{place}/text.tsv'
  tokens = {'tokenizer': 'spaces', 'vocabulary': WORDS, 'length': length}
  run = config.validate(
    Run,
    {
      'network': network,
      'target': {'data': {'name': name, 'tokens': tokens, 'batch_size': rows, 'test': 0.05}},
      'phases': [{'steps': 10_000, 'optimizer': 'adam', 'learning_rate': 1e-3}],
      'logging': {'every': count},
    },
  )
  prepared = prepare(run)
  member, feed = start(prepared, None), None
  feed = experiment.feed_of([prepared], [member])
  stretch = member.stretches[0]
  state = feed.place(begin(stretch.method, member.variables['params'], member.variables['stats'], {}, 0))
  frozen = split(member.variables['params'], stretch.method.trainable)[1]
  constants = feed.place({**stretch.constants(member, 0), 'frozen': frozen})
  held = {'state': state, 'step': 0}

  def train() -> float:
    begun = time.perf_counter()
    held['state'], _ = feed.train(stretch.method, held['state'], constants, held['step'], count)
    jax.block_until_ready(held['state'])
    held['step'] += count
    return time.perf_counter() - begun

  return train


def torch_model(network: dict[str, Any]) -> Any:
  """The same network in PyTorch: token numbers to logits."""
  import torch
  from torch import nn

  class Model(nn.Module):
    def __init__(self) -> None:
      super().__init__()
      width = network['embedding']
      self.embed = nn.Embedding(WORDS, width)
      self.language = network.get('pool') == 'none'
      if network['name'] == 'textcnn':
        self.windows = nn.ModuleList([nn.Conv1d(width, 100, size, padding=size - 1) for size in (3, 4, 5)])
        self.head: nn.Module = nn.Linear(300, 2)
      else:
        self.lstm = nn.LSTM(width, network['hidden'][0], len(network['hidden']), batch_first=True)
        self.head = nn.Linear(network['hidden'][-1], WORDS if self.language else 2)
        if self.language:
          self.head.weight = self.embed.weight

    def forward(self, tokens: Any, state: Any = None) -> Any:
      x = self.embed(tokens)
      if network['name'] == 'textcnn':
        found = [torch.relu(conv(x.transpose(1, 2))).amax(dim=2) for conv in self.windows]
        return self.head(torch.cat(found, dim=1)), None
      x, state = self.lstm(x, state)
      return self.head(x if self.language else x.mean(dim=1)), state

  return Model()


def theirs(network: dict[str, Any], shape: tuple[int, int], count: int) -> Callable[[], float]:
  """As `ours`, in PyTorch."""
  import torch

  model, random = torch_model(network), np.random.default_rng(0)
  optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
  batches = [torch.from_numpy(random.integers(0, WORDS, shape)) for _ in range(4)]
  labels = [batch if model.language else batch[:, 0] % 2 for batch in batches]

  def train() -> float:
    begun, state = time.perf_counter(), None
    for step in range(count):
      logits, state = model(batches[step % 4], state)
      state = None if state is None or not model.language else tuple(part.detach() for part in state)
      loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels[step % 4].flatten())
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
    return time.perf_counter() - begun

  return train


def main() -> None:
  """Prints the table."""
  repeats = next((int(flag.split('=')[1]) for flag in sys.argv[1:] if flag.startswith('--repeats=')), 9)
  print('| network | tokens of a batch | ours, tokens a second | PyTorch | ours / PyTorch (median; quartiles) |')
  print('|---|---:|---:|---:|---:|')
  for name, (network, shape, count) in CASES.items():
    with tempfile.TemporaryDirectory() as place:
      ways = ours(Path(place), network, shape, count), theirs(network, shape, count)
      for train in ways:
        train()
      seconds = np.array([[train() for train in ways] for _ in range(repeats)])
    rates = shape[0] * shape[1] * count / np.median(seconds, axis=0)
    low, middle, high = np.percentile(seconds[:, 1] / seconds[:, 0], [25, 50, 75])
    sizes = f'{shape[0]} x {shape[1]}'
    print(f'| {name} | {sizes} | {rates[0]:,.0f} | {rates[1]:,.0f} | {middle:.2f} ({low:.2f} to {high:.2f}) |')


if __name__ == '__main__':
  main()
