"""Other networks, run on the target's inputs: the source as a network, and teachers (teachers.py).

What the source answers, what its weights matter to it, and what is left of it after training. The transplant
(transplant.py) moves values; here the source's own network is run. Reads no files but data.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from transferlab import config, paths, pretrained, transplant
from transferlab.data import preprocessing
from transferlab.errors import UserError
from transferlab.pretrained import Weights

if TYPE_CHECKING:
  from transferlab.networks.network import Network
  from transferlab.objectives.importance import FisherChoice
  from transferlab.preparation import Prepared
  from transferlab.settings import NetworkSpec, Source
  from transferlab.training.methods import Stretch

ASKED = "config.objective: a term asks the source's network"


@dataclasses.dataclass(frozen=True, eq=False)
class OtherNetwork:
  """A network beside the target's, ready to be run on the target's inputs.

  Attributes:
    record: the preprocessing that belongs to it, in the units of the target's inputs.
    source: the run that pretrains it; None where its weights exist.
    weights: those, as its own network has them.
    spec: what the config says of it.
  """

  network: 'Network'
  record: dict[str, Any]
  source: 'Prepared | None'
  weights: Weights | None
  spec: 'Source'


def of(
  spec: 'Source',
  usual: 'NetworkSpec',
  source: 'Prepared | None',
  weights: Weights | None,
  own: Mapping[str, Any],
  categories: Callable[[str, Mapping[str, Any]], dict[str, Any]],
  target: 'Network',
  held: Mapping[str, Any],
  where: str = ASKED,
) -> OtherNetwork:
  """Another network on the target's inputs.

  Args:
    usual: the target's network as the config has it, for weights that do not say of what network they are.
    source: the run that pretrains it, or None.
    weights: those there are where no run pretrains it.
    own: the target's own preprocessing, fitted on its training split.
    categories: `categories(network's name, preprocessing)`: the option by which it learns of embedded columns.
    target: the target's network, in whose terms a file of others is read.
    held: the preprocessing by which tables are encoded where the inputs are held.
    where: how messages begin.

  Raises:
    UserError: weights that are not those of a whole network, or inputs that are not the network's.
  """
  given = source.record if source is not None else weights.preprocessing if weights is not None else None
  try:
    record = preprocessing.reuse(given, own)[0] if given is not None else dict(own)
  except UserError as error:
    raise UserError(f'{where}: {error}') from None
  if given is not None and list(given.get('columns', [])) != list(record.get('columns', [])):
    raise UserError(f"{where}, and the target's columns are not its own")
  if given is not None and given.get('encoding', []) != held.get('encoding', []):
    raise UserError(f"{where}, and the values of the target's columns are numbered otherwise than its own")
  if given is not None and any(_read_by(given, way) != _read_by(held, way) for way in ('tokens', 'bag')):
    way = 'the same data.tokens (or bag) on the same training texts, or a tokenizer.json for both'
    raise UserError(f"{where}, which reads texts by other tokens than the target's; nearest: {way}")
  if source is not None:
    network = source.network
  else:
    assert weights is not None
    if spec.network is not None and weights.network is not None:
      raise UserError(f'{where}.network: the weights are of {weights.network!r} and bring its options; leave it out')
    usual = spec.network or usual
    weights = pretrained.as_network(weights, spec, target.shapes())
    options = categories(weights.network or usual.name, given or {})
    network = _rebuilt(usual, weights, tuple(record['input_shape']), options, where)
  _check_inputs(network, record['input_shape'], where)
  return OtherNetwork(network, record, source, weights, spec)


def _read_by(record: Mapping[str, Any], way: str) -> Any:
  """What makes numbers of texts, their length aside."""
  own = record.get(way)
  return own['tokenizer'] if own and way == 'tokens' else (own, own and record['columns'])


def _rebuilt(
  usual: 'NetworkSpec', weights: Weights, shape: tuple[int, ...], categories: Mapping[str, Any], where: str
) -> 'Network':
  """The network that weights are of: of the kind they name, else the usual one, with a head as large as theirs."""
  from transferlab.networks import network as networks

  name, options = usual.name, dict(usual.model_extra or {})
  if weights.network is not None:
    name, options = weights.network, dict(weights.options)
  if 'sharing' in options:
    raise UserError(f'{where}, and the weights are those of several tasks with {options["sharing"]["name"]!r} sharing')
  last = paths.flatten(weights.variables['params'].get('head', {}))
  if not last:
    raise UserError(f'{where}, and the weights have no head')
  network = networks.build(name, {**options, **categories}, shape, int(next(iter(last.values())).shape[-1]))
  for kind, tree in network.shapes().items():
    found = paths.flatten(weights.variables.get(kind, {}))
    for path, leaf in paths.flatten(tree).items():
      if path not in found or tuple(found[path].shape) != tuple(leaf.shape):
        raise UserError(f'{where}, and the weights are not those of a whole {name!r}: {path} {leaf.shape} is not there')
  return network


def _check_inputs(network: 'Network', shape: Sequence[int], where: str) -> None:
  """That the network runs on inputs of this shape."""
  import jax

  try:
    jax.eval_shape(network.apply, network.shapes(), network.example(2, shape))
  except (TypeError, ValueError) as error:
    raise UserError(
      f"{where}, which cannot be run on the target's inputs {list(shape)}: {str(error).splitlines()[0]}"
    ) from None


# ---------------------------------------------------------------------------------------------------------- checks
def check(prepared: 'Prepared') -> None:
  """That what terms, transformations and the evaluation want of the source is there.

  Raises:
    UserError: a transformation towards weights that nobody gave; Fisher information, or a test of what was forgotten,
      of a source without data; two kinds of Fisher information; outputs that cannot be compared.
  """
  copied = set(prepared.plan.copied()) if prepared.plan is not None else set()
  for each in [each for stretch in prepared.stretches for each in stretch.method.transforms]:
    if 'source' in each.arguments and not copied.intersection(each.selected):
      raise UserError(
        f'config.phases: transform {each.name!r} mixes with the source, which gave nothing of what it selects'
      )
  # From scratch there is nothing to forget: rows of an experiment that share their evaluation may do without a source.
  if prepared.run.evaluation.forgotten and prepared.weights is not None:
    raise UserError('config.evaluation.forgotten: the source is weights only, so that it has no test split')
  if fisher_choice(prepared.stretches) is not None and prepared.run.source is not None:
    if prepared.source is None:
      raise UserError(
        "config.objective: 'ewc' takes Fisher information from the source's training data, and the source is weights "
        "only; give config.source data in place of weights, or nearest: 'l2_sp'"
      )
    if prepared.source.loaded.info.tasks:
      raise UserError(
        "config.objective: 'ewc' takes Fisher information from a source of one label, and this has several"
      )
  for stretch in prepared.stretches:
    if stretch.method.asked:
      _check_term(prepared, stretch)


def fisher_choice(stretches: Sequence['Stretch']) -> 'FisherChoice | None':
  """Which Fisher information the phases' terms need. Raises `UserError` where they differ."""
  found = [stretch.method.objective.fisher for stretch in stretches]
  chosen = list(dict.fromkeys(choice for choice in found if choice is not None))
  if len(chosen) > 1:
    raise UserError('config.phases: two terms want Fisher information of different labels or examples; one is computed')
  return chosen[0] if chosen else None


def _check_term(prepared: 'Prepared', stretch: 'Stretch') -> None:
  """That a step can be traced: outputs of the same shape, a head that fits what comes before it."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from transferlab.training import report
  from transferlab.training.step import train_step
  from transferlab.training.terms import fitting

  info = prepared.source.loaded.info if prepared.source is not None else None
  if 'source_head' in stretch.method.objective.needs and info is not None and (info.tasks or info.task == 'regression'):
    raise UserError("config.objective: 'learning_without_forgetting' keeps the answers to one label of classes")
  arrays = prepared.loaded.arrays(prepared.loaded.splits['train'][:2], prepared.record)
  arrays = {**arrays, 'x': np.asarray(arrays['x'])}
  record = {name: jnp.zeros(len(prepared.record[name])) for name in ('shift', 'scale')}
  shapes = report.shapes_of(stretch, prepared.network.shapes(), arrays, 2, record)
  with fitting(stretch.method):
    jax.eval_shape(lambda *given: train_step(stretch.method, *given), *shapes)


# ------------------------------------------------------------------------------------------------- what training takes
def constants(other: OtherNetwork, weights: Weights) -> dict[str, Any]:
  """Variables and preprocessing of another network, as a step takes them."""
  import jax.numpy as jnp

  record = {name: jnp.asarray(other.record[name], jnp.float32) for name in ('shift', 'scale')}
  return {'variables': _whole(other.network, weights), 'preprocessing': record}


def _whole(network: 'Network', weights: Weights) -> dict[str, Any]:
  """The network's variables out of the weights, read where they stand in a file."""
  import jax.numpy as jnp

  given = {kind: paths.flatten(weights.variables.get(kind, {})) for kind in ('params', 'stats')}
  return {
    kind: paths.unflatten({path: jnp.asarray(given[kind][path]) for path in paths.flatten(tree)})
    for kind, tree in network.shapes().items()
  }


def fisher(prepared: 'Prepared', weights: Weights, params: Mapping[str, Any]) -> dict[str, Any] | None:
  """Fisher information of the source's weights on its training data, put where the transplant puts the weights.

  Args:
    params: the target's parameters, which say where that is.
  """
  choice, source = fisher_choice(prepared.stretches), prepared.source
  if choice is None or source is None or prepared.plan is None:
    return None
  drawn = prepared.seed if choice.examples is not None or choice.labels == 'sampled' else None
  which = prepared.run.source.which if prepared.run.source is not None else None
  key = config.digest(source.identity), which, choice, drawn
  if key not in _FISHER:
    while len(_FISHER) >= HELD:
      _FISHER.pop(next(iter(_FISHER)))
    _FISHER[key] = _information(source, weights, choice, prepared.seed)
  return transplant.carried(prepared.plan, _FISHER[key], params)


HELD = 4  # sources
# By the run that made the source and what is asked of it: runs of several rates and seeds share it.
_FISHER: dict[Any, Any] = {}


def _information(source: 'Prepared', weights: Weights, choice: 'FisherChoice', seed: int) -> dict[str, Any]:
  """Fisher information of the source's weights on its training data, a tree like its parameters."""
  import jax.numpy as jnp
  import numpy as np

  from transferlab.data import labels
  from transferlab.data.loader import permutation
  from transferlab.data.sources import centred
  from transferlab.objectives import importance

  if source.loaded.info.task == 'next_token':
    raise UserError('config.objective: ewc needs a source with labels, and this one is a language model')
  rows = source.loaded.splits['train']
  if choice.labels == 'empirical':
    rows = rows[labels.present(source.loaded.examples.arrays['label'])[rows]]
  rows = rows[np.sort(permutation(len(rows), 0, seed)[: choice.examples])]
  arrays = source.loaded.arrays(rows, source.record)
  record = {name: jnp.asarray(source.record[name], jnp.float32) for name in ('shift', 'scale')}
  return importance.fisher(
    source.network,
    weights.variables,
    record,
    centred(arrays['x'], source.loaded.crop),
    arrays['label'],
    task=cast(importance.Task, source.loaded.info.task),
    labels=choice.labels,
    seed=seed,
  )


# ------------------------------------------------------------------------------------------------- what is left of it
def remains(prepared: 'Prepared', weights: Weights, trained: Mapping[str, Any]) -> dict[str, Any]:
  """The source's variables after the target's training: its trained leaves where the transplant took them from.

  The head is the source's own, or the old head that a term has trained along.
  """
  from transferlab.training.state import old_heads

  assert prepared.plan is not None and prepared.source is not None
  left = transplant.returned(prepared.plan, weights.variables, trained)
  own = trained['params'].get('terms', {})
  if kept := [own[name] for name in old_heads(prepared.stretches) if name in own]:
    left['params'] = {**left['params'], prepared.source.network.stages[-1]: kept[0]}
  return left
