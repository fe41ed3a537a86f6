"""Which of a file's names are the weights, and what they are called without what was wrapped around them. Pure.

Two habits are undone here: prefixes that training wrappers put before every name ('module.conv1.weight'), and the
trees in which JAX programs save weights beside optimizers, averages and counts. Which of our parameters a name stands
for is mapping.py's affair.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from transferlab.errors import UserError, unknown
from transferlab.weights.contents import Contents, Tensor

# What stands before every name where a network was wrapped, for training on several devices or by a trainer.
WRAPPERS = (
  *('module.', '_forward_module.', 'state_dict.', 'model_state_dict.', 'model.', 'net.', 'network.', 'ema_model.'),
)
# What compilation and sharding leave, anywhere in a name; no layer is called so.
INSIDE = re.compile(r'(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.')

# Top-level entries of a JAX program's checkpoint.
PARAMS = 'params'
STATISTICS = ('batch_stats', 'model_state', 'state', 'stats')
OTHERS = ('opt_state', 'opt', 'optimizer', 'optimizer_state', 'step', 'ema', 'ema_params', 'ema_state', 'rng', 'rngs')
# Where optimizers once held the parameters: flax before 2021, and the first big_vision.
TARGETS = ('optimizer/target', 'opt/target')
# What NNX calls the array inside a variable.
BOXES = ('/value', '/raw_value')


def strip_wrappers(names: Iterable[str], scalars: Collection[str] = ()) -> tuple[dict[str, str], str | None]:
  """Names without the prefixes that all of them share with other names of the same network.

  Args:
    scalars: those of the names that need not share it: `AveragedModel` counts its steps beside the network it wraps.

  Returns:
    {name in the file: name without wrappers}, and a sentence for the report where any was taken off.
  """
  stripped = {name: INSIDE.sub('', name) for name in names}
  gone = sorted({found.rstrip('.') for name in stripped for found in INSIDE.findall(name)})
  while prefix := _shared([short for name, short in stripped.items() if name not in scalars]):
    shorter = {name: short.removeprefix(prefix) for name, short in stripped.items()}
    if len(set(shorter.values())) < len(shorter):
      break
    stripped = shorter
    gone.append(prefix.rstrip('.'))
  if len(set(stripped.values())) < len(stripped):
    return {name: name for name in stripped}, None
  return stripped, f'taken off the names: {", ".join(gone)}' if gone else None


def _shared(names: Sequence[str]) -> str | None:
  """The wrapper that stands before all of the names, with something behind it."""
  return next((p for p in WRAPPERS if names and all(n.startswith(p) and len(n) > len(p) for n in names)), None)


@dataclasses.dataclass(frozen=True)
class Choice:
  """The weights among the names of a JAX tree.

  Attributes:
    names: {name in the tree: name of the result}.
    part: where the parameters were found; None where the tree is nothing but parameters.
    others: {entry: number of arrays} of what was not chosen.
  """

  names: dict[str, str]
  part: str | None
  others: dict[str, int]


def choose(names: Sequence[str], part: str | None = None) -> Choice:
  """Finds the weights in a tree whose paths are joined by '/'.

  Parameters lose what stands before them ('params/', 'optimizer/target/params/'), statistics keep their collection's
  name ('batch_stats/…'). A tree without a known entry is all parameters.

  Args:
    part: another entry of the tree ('ema_params', 'optimizer/target'), with everything below it.

  Raises:
    UserError: there is no such entry, or the tree holds no weights.
  """
  found = _default(names)
  if part is None or part == found.part:
    if not found.names:
      shown = ', '.join(f'{entry} ({count} arrays)' for entry, count in found.others.items())
      raise UserError(f'holds no weights under a known name; name a part of it: {shown or "it is empty"}')
    return found
  part = part.strip('/')
  chosen = [name for name in names if name.startswith(f'{part}/')]
  if not chosen:
    raise unknown('part', part, _entries(names))
  return Choice(_renamed(chosen, f'{part}/'), part, _counts(names, chosen))


def _entries(names: Sequence[str]) -> list[str]:
  """What can be named as a part: the entries of the two uppermost levels."""
  upper = {name.split('/')[0]: None for name in names if '/' in name}
  return [*upper, *{'/'.join(name.split('/')[:2]): None for name in names if name.count('/') > 1}]


def _default(names: Sequence[str]) -> Choice:
  root = _root(names)
  if root is None:
    chosen = [name for name in names if name.split('/')[0] not in OTHERS]
    return Choice(_renamed(chosen, ''), None, _counts(names, chosen))
  within = [name for name in names if name.startswith(root)]
  aside = [name for name in names if name not in set(within) and name.split('/')[0] in STATISTICS]
  target = root.rstrip('/') in TARGETS
  kept = within if target else [n for n in within if n.removeprefix(root).split('/')[0] in (PARAMS, *STATISTICS)]
  has_params = any(name.startswith(f'{root}{PARAMS}/') for name in kept)
  part = f'{root}{PARAMS}' if has_params else root.rstrip('/')
  renamed = {**_renamed(kept, root), **_renamed(aside, '')}
  return Choice({name: renamed[name] for name in names if name in renamed}, part, _counts(names, renamed))


def _root(names: Sequence[str]) -> str | None:
  """What stands before 'params/', with a '/' at its end; None where there is no such entry, or more than one."""
  if any(name.startswith(f'{PARAMS}/') for name in names):
    return ''
  for target in TARGETS:
    if any(name.startswith(f'{target}/') for name in names):
      return f'{target}/'
  parts = (name.split('/') for name in names)
  wrapped = {p[0]: None for p in parts if len(p) > 2 and p[1] == PARAMS and p[0] not in OTHERS}
  return f'{next(iter(wrapped))}/' if len(wrapped) == 1 else None


def _renamed(names: Sequence[str], root: str) -> dict[str, str]:
  """Names without the root, without 'params/' before parameters, and without NNX's boxes."""
  short = {name: name.removeprefix(root) for name in names}
  while any(name.startswith(f'{PARAMS}/') for name in short.values()):
    # Variables saved as the parameters of a train state stand one level deeper: statistics lose that level too.
    deeper = all(name.split('/')[1] in (PARAMS, *STATISTICS) for name in short.values() if name.startswith('params/'))
    short = {name: value.removeprefix(f'{PARAMS}/') for name, value in short.items()}
    if not deeper:
      break
  if all(n.startswith('model_state/batch_stats/') for n in short.values() if n.startswith('model_state/')):
    short = {name: value.removeprefix('model_state/') for name, value in short.items()}
  box = next((box for box in BOXES if short and all(name.endswith(box) for name in short.values())), '')
  return {name: value.removesuffix(box) for name, value in short.items()}


def _counts(names: Iterable[str], chosen: Iterable[str]) -> dict[str, int]:
  """How many arrays every entry has that are not chosen."""
  gone = set(chosen)
  return dict(Counter(name.split('/')[0] for name in names if name not in gone))


def tree_contents(
  file: str,
  format: str,
  tensors: Mapping[str, Tensor],
  part: str | None,
  metadata: Mapping[str, Any] | None = None,
  notes: Sequence[str] = (),
) -> Contents:
  """The contents of a file in which a JAX program saved a tree, by paths joined by '/'.

  Single numbers on the uppermost level (steps, best accuracies) are metadata: integers always, others where the
  parameters stand in an entry of their own.

  Raises:
    UserError: as `choose`, naming the file; two arrays of one name.
  """
  single = [name for name, tensor in tensors.items() if not tensor.shape and '/' not in name and '.' not in name]
  counts = {name for name in single if tensors[name].dtype.kind in 'biu'}
  try:
    choice = choose([name for name in tensors if name not in counts], part)
  except UserError as error:
    raise UserError(f'{file}: {error}') from None
  values = {name: tensors[name].read().item() for name in single if name not in choice.names}
  chosen = {short: tensors[name] for name, short in choice.names.items()}
  if len(chosen) < len(choice.names):
    raise UserError(f'{file}: two arrays would have the same name; choose a part of it')
  others = {entry: count for entry, count in choice.others.items() if entry not in values}
  return Contents(file, format, chosen, choice.part, others, {**(metadata or {}), **values}, tuple(notes))
