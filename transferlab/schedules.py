"""Published ways to train as lists of phases, for config files. Pure; JAX only where a network's names are looked up.

    config.phases = schedules.gradual_unfreezing(config.network, steps=200, learning_rate=1e-3, factor=2.6)

Each function returns phases as plain dicts. What it is given beyond its own arguments are keys of a phase (`steps`,
`epochs` or `examples`, `learning_rate`, `optimizer`, `schedule`, …) and go into every phase; where there are several
phases, `steps`, `epochs`, `examples` and `learning_rate` may be lists with a number for each. `name` is put before the
names that the phases have.

A network is what a config says of it (`config.network`, or a name), or the names of its stages that have parameters, in
order. Options that a config leaves to a file of weights (`depth`) are not known here: there, give the names.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transferlab import config
from transferlab.errors import UserError, nearest
from transferlab.training.phases import Phase

Phases = list[dict[str, Any]]
Rules = list[tuple[str, float]]
# `{'name': 'resnet', 'depth': 20}`, a ConfigDict of that form, 'resnet', or ['stem', 'block1', …, 'head'].
NetworkOrStages = Any
ONE_EACH = ('steps', 'epochs', 'examples', 'learning_rate')
# Names do not depend on the inputs, as long as the network takes them: images, else rows of a table.
INPUT_SHAPES = ((224, 224, 3), (64,))


def probe(**phase: Any) -> Phases:
  """The head alone, on frozen features."""
  return _phases([('probe', 'head')], phase)


def full(**phase: Any) -> Phases:
  """All parameters."""
  return _phases([('full', '.*')], phase)


def top_stages(network: NetworkOrStages, k: int, **phase: Any) -> Phases:
  """The last `k` stages that have parameters; the head is the first of them.

  Raises:
    UserError: the network does not have so many.
  """
  names = stages(network)
  if not 1 <= k <= len(names):
    raise UserError(
      f'top_stages: k={k}, and the network has {len(names)} stages with parameters ({", ".join(names)}); '
      f'nearest: {min(max(k, 1), len(names))}'
    )
  return _phases([(f'top{k}', names[-k:])], phase)


def gradual_unfreezing(network: NetworkOrStages, *, factor: float | None = None, **phase: Any) -> Phases:
  """The head, then in each phase the next stage below it as well, until all train (Howard and Ruder 2018, section 3.3).

  The last phase trains '.*'. In the paper every phase but the last takes one epoch: `epochs=[1.0, 1.0, 10.0]`.

  Args:
    factor: `learning_rate` is that of the head, and each stage's is that of the one above divided by `factor`
      (`discriminative`; 2.6 in the paper). None: as `learning_rate` says.

  Raises:
    UserError: a list that has not one entry for each stage; a `factor` with rates that are rules.
  """
  names = stages(network)
  parts: list[tuple[str, str | list[str]]] = [
    (f'unfreeze_{stage}', names[place:]) for place, stage in reversed(list(enumerate(names)))
  ]
  made = _phases([*parts[:-1], (parts[-1][0], '.*')], phase)
  if factor is not None:
    for own in made:
      rate = own.get('learning_rate')
      if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise UserError(f'gradual_unfreezing: factor={factor} needs learning_rate as a number, not {rate!r}')
      own['learning_rate'] = discriminative(names, rate, factor)
  return made


def chain_thaw(network: NetworkOrStages, **phase: Any) -> Phases:
  """The head, then every other stage by itself from the first on, then all (Felbo et al. 2017, figure 2).

  The paper's rates are 1e-3 in the first phase and 1e-4 in all others.

  Raises:
    UserError: a list that has not one entry for each stage and one more.
  """
  *below, head = stages(network)
  return _phases([*((f'thaw_{stage}', stage) for stage in (head, *below)), ('thaw_all', '.*')], phase)


def probe_then_full(**phase: Any) -> Phases:
  """The head, then all parameters from there, so that a random head distorts no features (Kumar et al. 2022, LP-FT).

  Two of each, as in `steps=[100, 300], learning_rate=[1e-2, 1e-4]`.

  Raises:
    UserError: a list that has not two entries.
  """
  return _phases([('probe', 'head'), ('full', '.*')], phase)


def bitfit(**phase: Any) -> Phases:
  """All biases, those of normalisation layers too, and the head (Ben Zaken et al. 2022, section 3)."""
  return _phases([('bitfit', ['.*/bias', 'head'])], phase)


def norm_only(network: NetworkOrStages, **phase: Any) -> Phases:
  """Scales and biases of all normalisation layers, and the head (as in Frankle et al. 2021, where features are random).

  Running statistics move in stages that train partly too; `statistics='frozen'` keeps them.

  Args:
    network: as a config says it; names of stages do not tell of layers.

  Raises:
    UserError: the network has no normalisation layers.
  """
  if isinstance(config.plain(network), list):
    raise UserError('norm_only looks for the layers of a network: give config.network, not names of stages')
  # Of all layers here, only those that normalise have a scale.
  layers = sorted({path.split('/')[-2] for path in _leaves(network) if path.endswith('/scale')})
  if not layers:
    raise UserError(
      f'norm_only: network {_described(network)} has no normalisation layers; nearest: bitfit, which trains all '
      'biases (convnet and vgg have them with batch_norm=True)'
    )
  chosen = '|'.join(re.escape(layer) for layer in layers)
  return _phases([('norm_only', [f'(.*/)?({chosen})/(scale|bias)', 'head'])], phase)


def first_stage(network: NetworkOrStages, *, head: bool = False, **phase: Any) -> Phases:
  """The first stage alone: 'surgical' fine-tuning to inputs that have changed (Lee et al. 2023, section 2).

  Args:
    head: train the head too. The paper keeps it, since the classes stay what they were and the head is copied; a new
      head has to train.

  Raises:
    UserError: the network has a single stage.
  """
  names = stages(network)
  if len(names) < 2:
    raise UserError(f'first_stage: the network has one stage with parameters, {names[0]!r}; nearest: full')
  return _phases([('first_stage', [names[0], names[-1]] if head else names[0])], phase)


def discriminative(network: NetworkOrStages, rate: float, factor: float = 2.6) -> Rules:
  """A learning rate for each stage: `rate` for the last, η_{l−1} = η_l / factor below (Howard and Ruder 2018, 3.2).

  Raises:
    UserError: a factor that is not positive.
  """
  if not factor > 0:
    raise UserError(f'discriminative: factor={factor} should be positive; nearest: 2.6')
  names = stages(network)
  return [(stage, rate / factor**depth) for stage, depth in zip(names, reversed(range(len(names))))]


def layer_decay(network: NetworkOrStages, rate: float, decay: float = 0.75) -> Rules:
  """A learning rate for each stage: rate · decay^(stages with parameters above it) (Clark et al. 2020, section 3.1).

  A phase's own `layer_decay` counts the stages without parameters too (pool).

  Raises:
    UserError: a decay that is not positive.
  """
  if not decay > 0:
    raise UserError(f'layer_decay: decay={decay} should be positive; nearest: 0.75')
  return discriminative(network, rate, 1 / decay)


def stages(network: NetworkOrStages) -> list[str]:
  """The names of the stages that have parameters, in order.

  Raises:
    UserError: no such network, or option of it; or names that are none.
  """
  given = config.plain(network)
  if not isinstance(given, list):
    return list(dict.fromkeys(path.partition('/')[0] for path in _leaves(network)))
  if not given or not all(isinstance(name, str) and name.isidentifier() for name in given):
    raise UserError(f'stages are names, as in [stem, block1, head], not {given!r}')
  if doubled := [name for name in given if given.count(name) > 1]:
    raise UserError(f'stages: {doubled[0]!r} stands there twice')
  return given


def _leaves(network: NetworkOrStages) -> list[str]:
  """Paths of all parameters of a network that a config describes."""
  from transferlab import paths
  from transferlab.networks import network as networks

  given = config.plain(network)
  given = {'name': given} if isinstance(given, str) else given
  if not isinstance(given, Mapping) or 'name' not in given:
    raise UserError(f'a network is its name and options, or the names of its stages, not {given!r}')
  options = {name: value for name, value in given.items() if name != 'name'}
  refusals = []
  for shape in INPUT_SHAPES:
    try:
      return list(paths.flatten(networks.build(given['name'], options, shape, 2).shapes()['params']))
    except UserError as refusal:
      refusals.append(refusal)
  raise refusals[0]


def _described(network: NetworkOrStages) -> str:
  given = config.plain(network)
  return repr(given if isinstance(given, str) else given['name'])


def _phases(parts: Sequence[tuple[str, str | list[str]]], phase: Mapping[str, Any]) -> Phases:
  """A phase for each (name, train), with the keys of `phase`.

  Raises:
    UserError: no such key, a key that is not for the caller to choose, or a list of another length.
  """
  given = config.plain(phase)
  _check_keys(given)
  prefix = given.pop('name', None)
  for key in ONE_EACH:
    if _one_each(given.get(key)) and len(given[key]) != len(parts):
      names = ', '.join(name for name, _ in parts)
      raise UserError(f'{key} has {len(given[key])} entries for {len(parts)} phases ({names}); nearest: one number')
  made = []
  for number, (name, train) in enumerate(parts):
    own = {key: value[number] if key in ONE_EACH and _one_each(value) else value for key, value in given.items()}
    whole = name if prefix is None else prefix if len(parts) == 1 else f'{prefix}_{name}'
    # Phases share nothing, so that changing one of them changes no other.
    made.append(copy.deepcopy({'name': whole, 'train': train, **own}))
  return made


def _one_each(value: Any) -> bool:
  """Whether a value is a list with an entry for each phase; rules of rates are pairs."""
  return isinstance(value, list) and not any(isinstance(item, list) and _is_rule(item) for item in value)


def _is_rule(item: list[Any]) -> bool:
  return len(item) == 2 and isinstance(item[0], str)


def _check_keys(given: Mapping[str, Any]) -> None:
  for key in given:
    if key == 'train':
      raise UserError('train is what these functions choose; for other patterns write the phase itself')
    if key not in Phase.model_fields:
      raise UserError(f'a phase has no key {key!r}; nearest: {", ".join(nearest(key, Phase.model_fields))}')
