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

from transferlab import checks, identity, paths, pretrained, rows, source_network, teachers, transplant, zero_shot
from transferlab.data import encoding, labels, preprocessing, tokens
from transferlab.data.loader import Order
from transferlab.data.sources import Loaded, load
from transferlab.errors import UserError
from transferlab.evaluation import metrics
from transferlab.evaluation.settings import Evaluation
from transferlab.objectives import SOURCE
from transferlab.pretrained import Weights
from transferlab.settings import Run, Source, Target, Teacher
from transferlab.source_network import OtherNetwork
from transferlab.training.phases import length


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
    asked: the networks that terms ask, by name: the source's, and all teachers.
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
  asked: Mapping[str, OtherNetwork] = dataclasses.field(default_factory=dict)

  @property
  def seed(self) -> int:
    """The run's seed."""
    return self.run.seed

  @property
  def teachers(self) -> dict[str, OtherNetwork]:
    """Those of the config, by name."""
    return {name: self.asked[name] for name in self.run.teachers if name in self.asked}

  @property
  def pretrained(self) -> list['Prepared']:
    """The runs that have to be over before this one: those of its source and of its teachers."""
    own = [self.source, *(teacher.source for teacher in self.teachers.values())]
    return [run for run in own if run is not None]

  @functools.cached_property
  def identity(self) -> dict[str, Any]:
    """What determines the results; see identity.py."""
    return identity.of(self)

  @property
  def rows(self) -> int:
    """Of a batch, as many as the devices divide."""
    return _rows(self.run)

  @property
  def window(self) -> int | None:
    """Tokens that a language model reads at once in evaluation: without a state to carry as many as in training."""
    numbers = self.record.get('tokens')
    return None if numbers is None or self.network is None or self.network.carry else numbers['length']

  def order(self) -> Order:
    """Which training example stands where."""
    data, rows = self.run.target.data, self.loaded.splits['train']
    if self.loaded.streams and self.network.carry:
      return Order(self.loaded.count(self.record), data.batch_size, self.rows, self.seed, streams=True)
    classes = self.loaded.examples.strata[rows].astype('int32') if data.sampling == 'balanced' else None
    sets, quotas = self.loaded.groups, self.loaded.quotas
    order = Order(sum(quotas) or len(rows), data.batch_size, self.rows, self.seed, data.last_batch, classes)
    if sets is not None:
      order = dataclasses.replace(order, groups=sets[rows], quotas=quotas)
    if (numbers := self.record.get('tokens')) and numbers['buckets']:
      lengths = (self.loaded.arrays(rows, self.record)['x'] >= 0).sum(axis=1)
      order = dataclasses.replace(order, lengths=lengths, buckets=(*numbers['buckets'], numbers['length']))
    return order

  def trained_parameters(self) -> int | None:
    """How many numbers of the network the optimizer may move, in any phase."""
    if self.network is None:
      return None
    shapes = paths.flatten(self.network.shapes()['params'])
    moved = set().union(*(stretch.method.trainable for stretch in self.stretches if stretch.steps))
    return sum(math.prod(leaf.shape) for path, leaf in shapes.items() if path in moved)

  def select_metric(self) -> str:
    """The validation metric that chooses."""
    info = self.loaded.info
    kinds = [own.task for task, own in info.tasks.items() if task not in info.auxiliary] or [info.task]
    return self.run.evaluation.select or metrics.SELECT.get(kinds[0], 'accuracy')

  def score(self, values: Mapping[str, Any]) -> float:
    """That metric among measured ones, so that larger is better; minus infinity where it has no value."""
    name = self.select_metric()
    value = values.get(name)
    if value is None:
      return float('-inf')
    return value if metrics.higher_is_better(name) else -value


def _rows(run: Run) -> int:
  from transferlab.training import parallel

  chosen = parallel.devices(run.parallel)
  return -(-run.target.data.batch_size // len(chosen)) * len(chosen)


def source_run(run: Run, spec: Source) -> Run:
  """The run that pretrains a run's source, or one of its teachers."""
  assert spec.data is not None
  return Run(
    seed=run.seed if spec.seed is None else spec.seed,
    network=spec.network or run.network,
    source=spec.source,
    teachers=spec.teachers if isinstance(spec, Teacher) else {},
    target=Target(data=spec.data),
    transplant=spec.transplant,
    phases=spec.phases,
    objective=spec.objective,
    balancing=spec.balancing,
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
  if not record:
    raise UserError(
      f'{run.target.data.name} holds texts: data.tokens makes numbers of their words for networks that read texts, and '
      'data.bag or data.hash a table for dense ones'
    )
  if run.baseline is not None:
    checks.baseline(run, loaded)
    if run.baseline.stage is None:
      checks.sets(run, loaded, record)
      return Prepared(run, loaded, record)
  source, weights = _origin(run, run.source, loaded, 'config.source') if run.source is not None else (None, None)
  notes: list[str] = []
  if weights is not None:
    run, notes = pretrained.completed(run, weights)
  record, said = _taken_over(run, record, source, weights)
  notes += said
  network = network_of(run, loaded, record)
  if run.network is not None and run.network.sharing is not None and not loaded.info.tasks:
    notes.append('network: sharing is among several tasks, and these data have one: it has no effect')
  others = _others(run, loaded, record, network, source, weights)
  stretches, caching = _phases(run, loaded, record, network, others)
  if run.baseline is not None:
    checks.probe(run, network, loaded, record)
  checks.sets(run, loaded, record)
  if weights is not None and run.source is not None:
    weights = pretrained.as_network(weights, run.source, network.shapes())
    notes = [*weights.notes, *notes]
  plan = _plan(run, network, record, source, weights, notes)
  names = dict.fromkeys(one.name for stretch in stretches for one in stretch.method.asked)
  asked = {name: others[name]() for name in names}
  made = Prepared(run, loaded, record, network, stretches, plan, source, weights, tuple(notes), tuple(caching), asked)
  source_network.check(made)
  teachers.check(made)
  checks.labels(loaded, stretches)
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
  words = weights.words if weights is not None else ()
  try:
    made = transplant.plan(
      shapes,
      network.shapes(),
      run.transplant or (transplant.ALL if weights and weights.head else transplant.DEFAULT_RULES),
      stages=network.stages,
      places=network.positions,
      source_names=rows.of_tokens(words, shapes['params']) if words else rows.of_record(given, shapes),
      target_names=rows.of_record(record, network.shapes()),
    )
  except UserError as error:
    if weights is None or weights.contents is None:
      raise
    about = [f'the weights: {weights.origin}', *(note for note in notes if note.startswith('network: '))]
    raise UserError('\n  '.join([str(error), *about])) from None
  if weights is not None and weights.head and 'head/kernel' not in made.copied():
    raise UserError("config.source.texts makes a head, and config.transplant does not take it; nearest: ('.*', 'copy')")
  return made


@functools.lru_cache(maxsize=64)
def _prepared_source(run: str) -> Prepared:
  """The runs of an experiment share their sources."""
  return prepare(Run.model_validate_json(run))


def _origin(run: Run, spec: Source, loaded: Loaded, where: str) -> tuple[Prepared | None, Weights | None]:
  """The run that pretrains a source or teacher, or the weights that exist."""
  if spec.data is not None:
    return _prepared_source(source_run(run, spec).model_dump_json()), None
  try:
    usual = spec.network or run.network
    weights = pretrained.read(spec, where, usual.name if usual else None)
    return None, zero_shot.with_head(weights, spec.texts, loaded.info, f'{where}.texts') if spec.texts else weights
  except UserError as error:
    raise (error if where in str(error) or not isinstance(spec, Teacher) else UserError(f'{where}: {error}')) from None


def _others(
  run: Run,
  loaded: Loaded,
  record: Mapping[str, Any],
  network: Any,
  source: Prepared | None,
  weights: Weights | None,
) -> dict[str, Callable[[], OtherNetwork]]:
  """The networks that terms may ask, by name, made where they do: the source's, and teachers."""
  assert run.network is not None
  made: dict[str, Callable[[], OtherNetwork]] = {}
  own, usual = loaded.preprocessing, run.network
  if run.source is not None:
    of = functools.partial(source_network.of, run.source, usual, source, weights, own, from_data, network, record)
    made[SOURCE] = functools.cache(of)
  for name, spec in run.teachers.items():
    place = f'config.teachers.{name}'

    def teacher(spec: Teacher = spec, place: str = place) -> OtherNetwork:
      like = (
        network if spec.network is None else network_of(run.model_copy(update={'network': spec.network}), loaded, own)
      )
      return source_network.of(spec, usual, *_origin(run, spec, loaded, place), own, from_data, like, record, place)

    made[name] = functools.cache(teacher)
  return made


def network_of(run: Run, loaded: Loaded, record: Mapping[str, Any]) -> Any:
  """The network of a run, with a head for its labels."""
  from transferlab.networks import network as networks

  assert run.network is not None
  options = {**(run.network.model_extra or {}), **from_data(run.network.name, record)}
  outputs: int | dict[str, int] = {task: own.outputs for task, own in loaded.info.tasks.items()}
  if not outputs:
    outputs = options['vocabulary'] if loaded.streams else loaded.info.outputs
  shared = None if run.network.sharing is None else run.network.sharing.model_dump()
  try:
    network = networks.build(run.network.name, options, tuple(record['input_shape']), outputs, shared)
    network = networks.configured(network, run.network.dtype, run.network.rematerialise)
  except UserError as error:
    raise (error if shared is None else UserError(f'config.network.sharing: {error}')) from None
  checks.size(run.network.name, network)
  checks.places(network, record, bool(loaded.streams))
  return network


def _phases(
  run: Run, loaded: Loaded, record: Mapping[str, Any], network: Any, others: Mapping[str, Callable[[], OtherNetwork]]
) -> tuple[list[Any], list[str]]:
  """The phases, and what is said of frozen stages."""
  from transferlab.training import feature_plan, methods
  from transferlab.training.step import Asked

  info, data = loaded.info, run.target.data
  rows, compile_ = loaded.count(record), run.parallel.compile
  epoch = sum(loaded.quotas) or rows
  lengths = [length(phase, epoch, data.batch_size, data.last_batch) for phase in run.phases]
  example = methods.example_of(record, loaded.examples.arrays['label'], data.augment, info)

  def asked(name: str) -> Asked:
    other = others[name]()
    return Asked(name, other.network, other.spec.dtype if isinstance(other.spec, Teacher) else 'float32')

  given = {name: functools.partial(asked, name) for name in others}
  stretches = methods.stretches(
    network,
    run.phases,
    lengths,
    run.objective,
    info,
    data.augment,
    example,
    others=given,
    examples=rows,
    labelled=loaded.labels['train'] > 0,
    gaps=labels.gaps(loaded.examples.arrays['label'], loaded.splits['train']),
    balancing=run.balancing,
    streams=loaded.streams if network.carry else 0,
  )
  checks.representation(network, stretches)
  stretches, said = feature_plan.cached(stretches, run.feature_cache, rows, data.batch_size, compile_)
  if run.source is None and any(methods.needs_start(stretch.method) for stretch in stretches):
    raise UserError(
      'config.objective: a term or transform pulls towards the source (l2_sp, mixout), but config.source is missing'
    )
  return stretches, said


def from_data(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
  """The options by which a network learns of columns that hold numbers of categories, or of texts' vocabulary."""
  from transferlab.networks import network as networks

  known = inspect.signature(networks.network_function(name)).parameters
  codes = encoding.codes(record.get('encoding', []))
  if ('vocabulary' in known) != ('tokens' in record):
    ways = 'nearest: lstm, bert, decoder' if 'tokens' in record else 'data.tokens makes numbers of the words of texts'
    what = 'reads no texts' if 'tokens' in record else 'reads texts, and the inputs are none'
    raise UserError(f'config.network: {name!r} {what}; {ways}')
  if 'tokens' in record:
    return {'vocabulary': len(tokens.vocabulary(record['tokens']))}
  if not codes:
    return {}
  if 'categories' not in known:
    raise UserError(f"data.categorical='embedding': network {name!r} embeds no categories; nearest: mlp")
  return {'categories': [[place, 1 + len(values)] for place, values in codes.items()]}


def start(prepared: Prepared, weights: Weights | None, taught: Mapping[str, Weights] = {}) -> Any:
  """The run as the loop takes it: initialised, transplanted, with its data.

  Args:
    weights: the source's; None from scratch.
    taught: its teachers', by name.
  """
  import jax
  import jax.numpy as jnp

  from transferlab.training.state import Member
  from transferlab.training.step import NETWORK

  variables = initial(prepared.network, jax.random.fold_in(jax.random.key(prepared.seed), NETWORK))
  start_point = fisher = None
  asked = {name: source_network.constants(prepared.asked[name], own) for name, own in taught.items()}
  if weights is not None and prepared.plan is not None:
    variables = transplant.apply(prepared.plan, weights.variables, variables)
    start_point = transplant.start_point(prepared.plan, variables['params'])
    if SOURCE in prepared.asked:
      asked[SOURCE] = source_network.constants(prepared.asked[SOURCE], weights)
    fisher = source_network.fisher(prepared, weights, variables['params'])
  record: Mapping[str, Any] = {name: jnp.asarray(prepared.record[name], jnp.float32) for name in ('shift', 'scale')}
  arrays = prepared.loaded.arrays(prepared.loaded.splits['train'], prepared.record)
  order = prepared.order()
  return Member(prepared.stretches, variables, start_point, arrays, order, dict(record), prepared.seed, asked, fisher)


def initial(network: Any, key: Any) -> dict[str, Any]:
  """`network.init`, compiled once for each network."""
  import jax

  if network not in _INITIAL:
    _INITIAL[network] = jax.jit(network.init)
  return _INITIAL[network](key)


_INITIAL: dict[Any, Any] = {}
