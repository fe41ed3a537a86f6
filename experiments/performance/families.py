"""Seconds of a training step, of inference and of compilation of the families researchers start from, beside PyTorch.

python experiments/performance/families.py [--repeats=5] [--only=NAME] [--batch=8] [--dtype=float32] [--compile=no]

Needs torch, torchvision, timm and transformers. The same architecture, batch, precision and SGD with momentum on both
sides; random inputs. PyTorch runs eagerly, or with --compile=yes by torch.compile; --dtype=bfloat16 is autocast there.
Both run on a GPU where their packages see one. The two take turns step by step, and the ratio is of neighbouring steps:
its median and quartiles are printed, above 1 where ours is faster. Compilation is that of our training step, from
nothing, cache off. ViT-B/16 is compared on a GPU, and compiled only on a CPU.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parents[2] / 'tests'))
import peers

from transferlab.networks import layers
from transferlab.networks import network as networks

CLASSES = 1000
# Our network, its options, the shape of an input, and PyTorch's model.
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...], Callable[[], Any]]] = {
  'ResNet-50': (
    'imagenet_resnet', dict(depth=50), (224, 224, 3), lambda: peers.torchvision().resnet50(),
  ),
  'MobileNet v2': (
    'mobilenet_v2', dict(dropout=0.0), (224, 224, 3), lambda: peers.torchvision().mobilenet_v2(dropout=0.0),
  ),
  'ViT-Ti/16': ('vit', dict(size='Ti'), (224, 224, 3), lambda: _timm('vit_tiny_patch16_224')),
  'BERT-small': (
    'bert',
    dict(vocabulary=30522, width=512, depth=4, heads=8, hidden=2048, positions=512, dropout=0.0, attention_dropout=0.0),
    (128,),
    lambda: _bert(),
  ),
  'ViT-B/16': ('vit', dict(size='B'), (224, 224, 3), lambda: _timm('vit_base_patch16_224')),
}  # fmt: skip
SLOW = ('ViT-B/16',)  # on a CPU


@dataclasses.dataclass(frozen=True)
class Setting:
  """How both sides run."""

  batch: int = 8
  dtype: str = 'float32'
  compile: bool = False


def _timm(name: str) -> Any:
  peers.torchvision()
  import timm

  return timm.create_model(name)


def _bert() -> Any:
  transformers = peers.transformers()
  config = transformers.BertConfig(
    hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048, num_labels=CLASSES,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
  )  # fmt: skip
  return transformers.BertForSequenceClassification(config)


def inputs_of(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """Random images, or tokens, and labels."""
  random = np.random.default_rng(0)
  texts = len(shape) == 2
  x = random.integers(0, 30522, shape).astype(np.int32) if texts else random.normal(size=shape).astype(np.float32)
  return x, random.integers(0, CLASSES, shape[0])


def ours(
  name: str, options: dict[str, Any], shape: tuple[int, ...], setting: Setting
) -> tuple[Callable, Callable, float, float]:
  """(a training step, inference, seconds to trace and lower the step, seconds to compile it)."""
  network = networks.configured(networks.build(name, options, shape[1:], CLASSES), setting.dtype, None)
  variables = jax.jit(network.init)(jax.random.key(0))
  optimizer = optax.sgd(1e-3, momentum=0.9)
  x, labels = map(jnp.asarray, inputs_of(shape))

  def loss(params: Any, stats: Any, x: Any) -> tuple[Any, Any]:
    outputs, stats = network.apply({'params': params, 'stats': stats}, x, train=True, key=jax.random.key(0))
    return optax.softmax_cross_entropy_with_integer_labels(outputs['head'], labels).mean(), stats

  def step(state: tuple[Any, Any, Any], x: Any) -> Any:
    params, stats, slots = state
    (_, stats), slopes = jax.value_and_grad(loss, has_aux=True)(params, stats, x)
    updates, slots = optimizer.update(slopes, slots)
    return optax.apply_updates(params, updates), stats, slots

  state = (variables['params'], variables['stats'], optimizer.init(variables['params']))
  begun = time.perf_counter()
  lowered = jax.jit(layers.unlooped(step), donate_argnums=0).lower(state, x)
  traced = time.perf_counter()
  compiled = lowered.compile()
  done = time.perf_counter()
  held = {'state': state}
  infer = jax.jit(layers.unlooped(lambda variables, x: network.apply(variables, x)[0]['head']))

  def train() -> None:
    held['state'] = jax.block_until_ready(compiled(held['state'], x))

  def answer() -> None:
    jax.block_until_ready(infer({'params': held['state'][0], 'stats': held['state'][1]}, x))

  return train, answer, traced - begun, done - traced


def theirs(model: Any, shape: tuple[int, ...], setting: Setting) -> tuple[Callable, Callable]:
  """(a training step, inference) of PyTorch."""
  import torch

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  x, labels = (torch.tensor(value).to(device) for value in inputs_of(shape))
  # On a GPU channels stand last, as PyTorch advises for convolutions.
  form = torch.channels_last if device == 'cuda' else torch.contiguous_format
  x = x.long() if len(shape) == 2 else x.permute(0, 3, 1, 2).contiguous(memory_format=form)
  model = model.to(device, memory_format=form)
  optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
  run = torch.compile(model) if setting.compile else model
  done = torch.cuda.synchronize if device == 'cuda' else lambda: None

  def logits() -> Any:
    with torch.autocast(device, torch.bfloat16, enabled=setting.dtype == 'bfloat16'):
      out = run(x)
    return (out.logits if hasattr(out, 'logits') else out).float()

  def train() -> None:
    model.train()
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(logits(), labels).backward()
    optimizer.step()
    done()

  def answer() -> None:
    model.eval()
    with torch.no_grad():
      logits()
    done()

  return train, answer


def timed(call: Callable) -> float:
  """Seconds of one call."""
  begun = time.perf_counter()
  call()
  return time.perf_counter() - begun


def compared(mine: Callable, other: Callable, repeats: int) -> tuple[float, str]:
  """(median seconds of ours, the ratio as text), warmed up, in turns."""
  mine(), other()
  pairs = [(timed(mine), timed(other)) for _ in range(repeats)]
  low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
  return statistics.median(a for a, _ in pairs), f'{middle:.2f} ({low:.2f} to {high:.2f})'


def main() -> None:
  """Prints the table, a row as soon as it is there."""
  flags = dict(argument.removeprefix('--').split('=', 1) for argument in sys.argv[1:])
  repeats, only = int(flags.get('repeats', 5)), flags.get('only', '')
  setting = Setting(int(flags.get('batch', 8)), flags.get('dtype', 'float32'), flags.get('compile') == 'yes')
  print('| network | step (s) | PyTorch / ours | inference (s) | PyTorch / ours | trace (s) | compile (s) |')
  print('| :-- | --: | --: | --: | --: | --: | --: |')
  for what, (name, options, shape, make) in CASES.items():
    if only not in what:
      continue
    shape = (setting.batch, *shape)
    train, answer, traced, compiled = ours(name, options, shape, setting)
    shown = ['', '', '', '']
    if what not in SLOW or jax.default_backend() == 'gpu':
      their_train, their_answer = theirs(make(), shape, setting)
      for place, pair in ((0, (train, their_train)), (2, (answer, their_answer))):
        seconds, shown[place + 1] = compared(*pair, repeats)
        shown[place] = f'{seconds:.3f}'
    inputs = 'images' if len(shape) == 4 else f'texts of {shape[1]} tokens'
    print(f'| {what}, {setting.batch} {inputs} | {" | ".join(shown)} | {traced:.1f} | {compiled:.1f} |', flush=True)


if __name__ == '__main__':
  main()
