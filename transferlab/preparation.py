"""From a config to a run that could start: data, network, phases, and the plan of the transplant.

Everything a user can get wrong is found here, before weights are made or read and before anything is compiled.
Reads data; writes nothing.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transferlab import checks, config, paths, pretrained, source_network, transplant
from transferlab.data import encoding, preprocessing
from transferlab.data.loader import Order
from transferlab.data.settings import FILES
from transferlab.data.sources import Loaded, load
from transferlab.errors import UserError
from transferlab.evaluation import metrics
from transferlab.evaluation.settings import Evaluation
from transferlab.pretrained import Weights
from transferlab.settings import Run, Target
from transferlab.training.phases import length

FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """A run that could start.

  Attributes:
    record: preprocessing of the inputs.
    network, stretches, plan: None for a baseline on raw inputs; a probe has no stretches; plan is None from scratch.
    source: the run that pretrains the source, prepared; None without one.
    weights: the source's, where they exist already.
    notes: sentences for the report.
    caching: a sentence for each phase that has frozen stages: computed once, or why not.
    origin: the source's network, where a term asks it.
  """

  run: Run
  loaded: Loaded
  record: dict[str, Any]
  network: Any = None
  stretches: list[Any] = dataclasses.field(default_factory=list)
  plan: transplant.Plan | None = None
  source: 'Prepared | None' = None
  weights: Weights | None = None
  notes: tuple[str, ...] = ()
  caching: tuple[str, ...] = ()
  origin: source_network.SourceNetwork | None = None

  @property
  def seed(self) -> int:
    """The run's seed."""
    return self.run.seed

  @functools.cached_property
  def identity(self) -> dict[str, Any]:
    """What determines the results: values, contents of the data, format. Where files lie is outside it."""
    data = {self.loaded.info.file or self.run.target.data.name: self.loaded.digest}
    for name, further in self.run.evaluation.sets.items():
      data[f'evaluation.sets.{name}: {further.name}'] = load(further, self.seed).digest
    if self.source is not None:
      data |= {f'source: {name}': digest for name, digest in self.source.identity['data'].items()}
    if self.weights is not None:
      data |= {'source weights': self._digest_weights(self.weights)}
    named = {_basename(name): digest for name, digest in data.items()}
    values = _without_folders(config.identity(self.run))
    if self.weights is not None and self.weights.contents is not None:
      values['source'] = 'a file: its digest says which'
    return {'format': FORMAT, 'config': values, 'data': named}

  def _digest_weights(self, weights: Weights) -> str:
    taken: dict[str, set[str]] = {'params': set(), 'stats': set()}
    for origin in self.plan.origins if self.plan else ():
      taken[origin.kind] |= {origin.source} if origin.source else set()
    return pretrained.digest(weights, taken)

  def order(self) -> Order:
    """Which training example stands where."""
    from transferlab.training import parallel

    data, rows = self.run.target.data, self.loaded.splits['train']
    labels = self.loaded.examples.strata[rows].astype('int32') if data.sampling == 'balanced' else None
    chosen = parallel.devices(self.run.parallel)
    padded = -(-data.batch_size // len(chosen)) * len(chosen)
    return Order(len(rows), data.batch_size, padded, self.seed, data.last_batch, labels)

  def trained_parameters(self) -> int | None:
    """How many numbers of the network the optimizer may move, in any phase."""
    if self.network is None:
      return None
    shapes = paths.flatten(self.network.shapes()['params'])
    moved = set().union(*(stretch.method.trainable for stretch in self.stretches))
    return sum(math.prod(leaf.shape) for path, leaf in shapes.items() if path in moved)

  def select_metric(self) -> str:
    """The validation metric that chooses."""
    default = 'mean_squared_error' if self.loaded.info.task == 'regression' else 'accuracy'
    return self.run.evaluation.select or default

  def score(self, values: Mapping[str, Any]) -> float:
    """That metric among measured ones, so that larger is better; minus infinity where it has no value."""
    name = self.select_metric()
    value = next((v for k, v in values.items() if k == name or k.endswith(f'/{name}')), None)
    if value is None:
      return float('-inf')
    return value if metrics.higher_is_better(name) else -value


def _basename(name: str) -> str:
  return name.rpartition('/')[2]


def _without_folders(values: Any) -> Any:
  """Values with 'npz:FOLDER/FILE' as 'npz:FILE', and weights by their last part: digests tell them apart."""
  if isinstance(values, dict):
    return {
      key: _basename(value) if key == 'weights' and isinstance(value, str) else _without_folders(value)
      for key, value in values.items()
    }
  if isinstance(values, list):
    return [_without_folders(value) for value in values]
  kind, colon, path = values.partition(':') if isinstance(values, str) else ('', '', '')
  return f'{kind}:{_basename(path)}' if colon and kind in FILES and kind != 'tfds' else values


def source_run(run: Run) -> Run:
  """The run that pretrains a run's source."""
  assert run.source is not None and run.source.data is not None
  seed = run.seed if run.source.seed is None else run.source.seed
  return Run(
    seed=seed,
    network=run.source.network or run.network,
    target=Target(data=run.source.data),
    phases=run.source.phases,
    objective=run.source.objective,
    evaluation=Evaluation(every=run.evaluation.every),
    parallel=run.parallel,
    feature_cache=run.feature_cache,
    checkpoint=run.checkpoint,
    logging=run.logging,
  )


def prepare(run: Run) -> Prepared:
  """Everything of a run but its weights.

  Raises:
    UserError: any mistake in the config that its data, network or source reveal.
  """
  loaded = load(run.target.data, run.seed)
  checks.choices(run, loaded)
  record = loaded.preprocessing
  if loaded.info.kind == 'text':
    raise UserError(f'{run.target.data.name} holds texts, which no network reads yet; see data.hash')
  if run.baseline is not None:
    checks.baseline(run, loaded)
    if run.baseline.stage is None:
      checks.sets(run, loaded, record)
      return Prepared(run, loaded, record)
  source = (
    _prepared_source(source_run(run).model_dump_json())
    if run.source is not None and run.source.data is not None
    else None
  )
  weights = pretrained.read(run.source) if run.source is not None and run.source.weights is not None else None
  notes: list[str] = []
  if weights is not None:
    run, notes = pretrained.completed(run, weights)
  record, said = _taken_over(run, record, source, weights)
  notes += said
  origin = functools.partial(source_network.of, run, source, weights, loaded.preprocessing, _categories)
  asked = origin if run.source is not None else None
  network, stretches, caching = _network_and_phases(run, loaded, record, asked)
  if run.baseline is not None:
    checks.probe(run, network, loaded, record)
  checks.sets(run, loaded, record)
  if weights is not None and run.source is not None:
    weights = pretrained.as_network(weights, run.source, network.shapes())
    notes = [*weights.notes, *notes]
  plan = _plan(run, network, record, source, weights, notes)
  theirs = asked(network) if asked and any(stretch.method.source for stretch in stretches) else None
  made = Prepared(run, loaded, record, network, stretches, plan, source, weights, tuple(notes), tuple(caching), theirs)
  source_network.check(made)
  return made


def _taken_over(
  run: Run, own: Mapping[str, Any], source: Prepared | None, weights: Weights | None
) -> tuple[dict[str, Any], list[str]]:
  """The preprocessing that a run's inputs get, its source's unless told otherwise, and what is to be said of it."""
  given = source.record if source is not None else weights.preprocessing if weights is not None else None
  if given is not None and run.target.preprocessing == 'source':
    record, said = preprocessing.reuse(given, own)
    return record, [*said, *_unused_statistics(run)]
  if given is not None:
    return dict(own), ["preprocessing: the target's own, as target.preprocessing='refit' has it"]
  if weights is not None:
    return dict(own), ["preprocessing: the target's own, since the weights bring none (data.statistics names others)"]
  return dict(own), []


def _unused_statistics(run: Run) -> list[str]:
  """What the data say of preprocessing, and the source's overrules."""
  data = run.target.data
  asked = [f'data.{name}={value!r}' for name in ('statistics', 'standardize') if (value := getattr(data, name))]
  way = "target.preprocessing='refit' uses it"
  return [f'preprocessing: {", ".join(asked)} is not used, since the source brings its own; {way}'] if asked else []


def _plan(
  run: Run,
  network: Any,
  record: Mapping[str, Any],
  source: Prepared | None,
  weights: Weights | None,
  notes: Sequence[str],
) -> transplant.Plan | None:
  """What the target takes from its source; None from scratch."""
  if source is not None:
    shapes, given = source.network.shapes(), source.record
  elif weights is not None:
    shapes, given = weights.variables, weights.preprocessing or {'columns': []}
  else:
    return None
  try:
    return transplant.plan(
      shapes,
      network.shapes(),
      run.transplant or transplant.DEFAULT_RULES,
      stages=network.stages,
      source_names=_row_names(given, shapes),
      target_names=_row_names(record, network.shapes()),
    )
  except UserError as error:
    if weights is None or weights.contents is None:
      raise
    about = [f'the weights: {weights.origin}', *(note for note in notes if note.startswith('network: '))]
    raise UserError('\n  '.join([str(error), *about])) from None


@functools.lru_cache(maxsize=64)
def _prepared_source(run: str) -> Prepared:
  """The runs of an experiment share their sources."""
  return prepare(Run.model_validate_json(run))


def _network_and_phases(
  run: Run,
  loaded: Loaded,
  record: Mapping[str, Any],
  asked: Callable[[Any], source_network.SourceNetwork] | None,
) -> tuple[Any, list[Any], list[str]]:
  """The network, the phases, and what is said of frozen stages; `asked(network)` gives the source's network."""
  from transferlab.networks import network as networks
  from transferlab.training import feature_cache, methods

  assert run.network is not None
  info, data = loaded.info, run.target.data
  outputs = {task: own.outputs for task, own in info.tasks.items()} or info.outputs
  options = {**(run.network.model_extra or {}), **_categories(run.network.name, record)}
  network = networks.build(run.network.name, options, tuple(record['input_shape']), outputs)
  checks.size(run.network.name, network)
  lengths = [length(phase, len(loaded.splits['train']), data.batch_size, data.last_batch) for phase in run.phases]
  example = methods.example_of(record['input_shape'], loaded.examples.arrays['label'], data.augment, info)
  source = None if asked is None else lambda: asked(network).network
  stretches = methods.stretches(network, run.phases, lengths, run.objective, info, data.augment, example, source=source)
  rows, compile_ = len(loaded.splits['train']), run.parallel.compile
  stretches, said = feature_cache.cached(stretches, run.feature_cache, rows, data.batch_size, compile_)
  if run.source is None and any(methods.needs_start(stretch.method) for stretch in stretches):
    raise UserError(
      'config.objective: a term or transform pulls towards the source (l2_sp, mixout), but config.source is missing'
    )
  return network, stretches, said


def _categories(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
  """The option by which a network learns of columns that hold numbers of categories."""
  from transferlab.networks import network as networks

  codes = encoding.codes(record.get('encoding', []))
  if not codes:
    return {}
  if 'categories' not in inspect.signature(networks.network_function(name)).parameters:
    raise UserError(f"data.categorical='embedding': network {name!r} embeds no categories; nearest: mlp")
  return {'categories': [[place, 1 + len(values)] for place, values in codes.items()]}


def _row_names(record: Mapping[str, Any], shapes: Mapping[str, Any]) -> transplant.Names:
  """What rows of a network on these inputs stand for; nothing where they are no tables."""
  columns = record['columns']
  return transplant.row_names(columns, encoding.codes(record.get('encoding', [])), shapes['params']) if columns else {}


def start(prepared: Prepared, weights: Weights | None) -> Any:
  """The run as the loop takes it: initialised, transplanted, with its data.

  Args:
    weights: the source's; None from scratch.
  """
  import jax
  import jax.numpy as jnp

  from transferlab.training.state import Member
  from transferlab.training.step import NETWORK

  variables = initial(prepared.network, jax.random.fold_in(jax.random.key(prepared.seed), NETWORK))
  start_point = origin = fisher = None
  if weights is not None and prepared.plan is not None:
    variables = transplant.apply(prepared.plan, weights.variables, variables)
    start_point = transplant.start_point(prepared.plan, variables['params'])
    origin = source_network.constants(prepared, weights)
    fisher = source_network.fisher(prepared, weights, variables['params'])
  record: Mapping[str, Any] = {name: jnp.asarray(prepared.record[name], jnp.float32) for name in ('shift', 'scale')}
  arrays = prepared.loaded.arrays(prepared.loaded.splits['train'], prepared.record)
  order = prepared.order()
  return Member(prepared.stretches, variables, start_point, arrays, order, dict(record), prepared.seed, origin, fisher)


def initial(network: Any, key: Any) -> dict[str, Any]:
  """`network.init`, compiled once for each network."""
  import jax

  if network not in _INITIAL:
    _INITIAL[network] = jax.jit(network.init)
  return _INITIAL[network](key)


_INITIAL: dict[Any, Any] = {}
