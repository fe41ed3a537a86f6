"""The program's loop against a hand-written one, and PyTorch beside them: examples per second, as ratios of one run.

python experiments/performance/train_loop.py [--repeats=7]

Same model, data, optimizer (Adam), batch (128) and logging interval (100 steps of the MLP, 10 of the slower convnet);
both log loss and accuracy. Held on the device, a scan is compared with a scan; streamed, the program takes blocks of
batches from grain, and the hand-written Python loop a batch at a time from the same iterator. The two take turns after
every logging interval, so that what else the machine does meets both. The ratio is of their total times; its median
over the repeats is printed.
"""

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from transferlab.data.augmentation import Augment
from transferlab.data.examples import Info
from transferlab.data.loader import Order, stream
from transferlab.networks import network as networks
from transferlab.training import feed, methods
from transferlab.training.loop import Loop
from transferlab.training.phases import Phase
from transferlab.training.state import Cadence, Member

BATCH, EXAMPLES = 128, 6000
# Name and options of each, and the steps to train and to log.
NETWORKS = {
  'MLP 784-128-10': ('mlp', {'hidden': [128]}, 5000, 100),
  'convnet 28x28': ('convnet', {'width': 32, 'features': 128}, 100, 10),
}


def data() -> dict[str, np.ndarray]:
  """Random images and labels: speed does not depend on what they show."""
  random = np.random.default_rng(0)
  return {
    'x': random.integers(0, 256, (EXAMPLES, 28, 28, 1), dtype=np.uint8),
    'label': random.integers(0, 10, EXAMPLES).astype(np.int32),
    'id': np.arange(EXAMPLES),
  }


def ours(
  network: Any, variables: Any, arrays: dict, order: Order, steps: int, log: int, streaming: bool
) -> Callable[..., Any]:
  """The program's loop, set up once; each call trains `steps` steps, and tells `advance` of every logging interval."""
  info = Info('image', 'classification', tuple(map(str, range(10))), high=255.0)
  example = methods.example_of((28, 28, 1), arrays['label'], Augment(), info)
  phase = Phase(steps=steps, optimizer='adam', learning_rate=1e-3)
  stretches = methods.stretches(network, [phase], [steps], None, info, Augment(), example)
  record = {'shift': jnp.zeros(1), 'scale': jnp.full(1, 255.0)}
  member = Member(stretches, variables, None, arrays, order, record, 0)
  cadence = Cadence(evaluate=steps, log=log, checkpoint=steps)
  way = (
    feed.Streamed(arrays, order, None, 0, cadence.log) if streaming else feed.Held([arrays], [order], None, cadence.log)
  )

  def train(advance: Callable[[int], None]) -> Any:
    return Loop([member], way, cadence, advance=advance).run()[0].last

  return train


def hand_written(
  network: Any, variables: Any, arrays: dict, order: Order, steps: int, log: int, streaming: bool
) -> Callable[[], Iterator[None]]:
  """What a researcher writes: value_and_grad, optax, a scan (or a jitted step), loss and accuracy every `log` steps."""
  optimizer = optax.adam(1e-3)

  def step(params: Any, slots: Any, x: jax.Array, y: jax.Array) -> Any:
    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
      outputs, _ = network.apply({'params': params, 'stats': {}}, x.astype(jnp.float32) / 255, train=True)
      logits = outputs['head']
      value = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
      return value, jnp.stack([value, (logits.argmax(-1) == y).mean()])

    (_, measured), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    updates, slots = optimizer.update(gradients, slots, params)
    return optax.apply_updates(params, updates), slots, measured

  @jax.jit
  def scanned(params: Any, slots: Any, x: jax.Array, y: jax.Array, rows: jax.Array) -> Any:
    def body(carry: Any, row: jax.Array) -> Any:
      params, slots, value = step(*carry, x[row], y[row])
      return (params, slots), value

    (params, slots), values = jax.lax.scan(body, (params, slots), rows)
    return params, slots, values

  single = jax.jit(step, donate_argnums=(0, 1))
  x, y = jax.device_put(arrays['x']), jax.device_put(arrays['label'])

  def held() -> Iterator[None]:
    params, slots = variables['params'], optimizer.init(variables['params'])
    for start in range(0, steps, log):
      rows = order.batches(start, log)['row']
      params, slots, values = scanned(params, slots, x, y, rows)
      np.asarray(values).mean(axis=0)
      yield

  def streamed() -> Iterator[None]:
    params = jax.tree.map(jnp.copy, variables['params'])
    slots, values = optimizer.init(params), []
    iterator = stream(arrays, order, 0, 1, 0)
    for number in range(1, steps + 1):
      batch = next(iterator)
      params, slots, value = single(params, slots, batch['x'][0], batch['label'][0])
      values.append(value)
      if number % log == 0:
        np.mean(jax.device_get(values), axis=0)
        values = []
        yield

  return streamed if streaming else held


def torch_model(name: str) -> Any:
  """The same architecture in PyTorch."""
  from torch import nn

  if name == 'mlp':
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
  return nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
    nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 10),
  )  # fmt: skip


def with_torch(name: str, arrays: dict, order: Order, steps: int, log: int) -> Callable[[], Any]:
  """PyTorch's loop on the same batches, held in memory."""
  import torch

  model = torch_model(name)
  optimizer, loss = torch.optim.Adam(model.parameters(), 1e-3), torch.nn.CrossEntropyLoss()
  x, y = torch.from_numpy(arrays['x']).permute(0, 3, 1, 2), torch.from_numpy(arrays['label']).long()

  def train() -> None:
    values = []
    for start in range(0, steps, log):
      for row in torch.from_numpy(order.batches(start, log)['row']):
        value = loss(model(x[row].float() / 255), y[row])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.detach())
      float(torch.stack(values).mean())

  return train


def timed(train: Callable[[], Any]) -> float:
  """Seconds of one call."""
  begun = time.perf_counter()
  jax.block_until_ready(train())
  return time.perf_counter() - begun


def alternated(mine: Callable[..., Any], theirs: Callable[[], Iterator[None]]) -> tuple[float, float]:
  """Seconds of the program's loop and of the hand-written one, which trains an interval after each of the other's."""
  other, spent = theirs(), 0.0

  def advance(steps: int) -> None:
    nonlocal spent
    begun = time.perf_counter()
    next(other, None)
    spent += time.perf_counter() - begun

  total = timed(lambda: mine(advance))
  return total - spent, spent


def main(repeats: int) -> None:
  """Prints a row per network and way of feeding."""
  arrays = data()
  print(f'{"network":16} {"data":9} {"ours":>10} {"by hand":>10} {"PyTorch":>10}   ours / by hand (each repeat)')
  for label, (name, options, steps, log) in NETWORKS.items():
    network = networks.build(name, options, (28, 28, 1), 10)
    variables = jax.jit(network.init)(jax.random.key(0))
    order = Order(EXAMPLES, BATCH, BATCH, 0)
    for way in ('held', 'streamed'):
      mine, theirs = (
        make(network, variables, arrays, order, steps, log, way == 'streamed') for make in (ours, hand_written)
      )
      alternated(mine, theirs)
      seconds: list[list[float]] = [list(alternated(mine, theirs)) for _ in range(repeats)]
      with contextlib.suppress(ImportError):
        torch = with_torch(name, arrays, order, steps, log)
        timed(torch)
        seconds = [[*row, timed(torch)] for row in seconds]
      speeds = [f'{steps * BATCH / statistics.median(column):10,.0f}' for column in zip(*seconds)]
      ratios = sorted(row[1] / row[0] for row in seconds)
      print(
        f'{label:16} {way:9} {" ".join(speeds):32}   {statistics.median(ratios):.3f} '
        f'({" ".join(f"{ratio:.2f}" for ratio in ratios)})',
        flush=True,
      )


if __name__ == '__main__':
  main(int(next((a.partition('=')[2] for a in sys.argv[1:] if a.startswith('--repeats=')), 7)))
