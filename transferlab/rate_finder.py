"""The learning-rate finder: the loss while the rate grows from very small to very large, and what it suggests.

The range test of Smith 2017 (section 3.3), with the rate growing geometrically, and stopped once the loss has grown by
far, as fastai made it usual. Trains in memory by the one loop; `find` writes rate_finder.json and rate_finder.png.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transferlab import config, experiment, folder
from transferlab.cells import candidates
from transferlab.errors import Diverged, Interrupted, UserError
from transferlab.preparation import prepare, start
from transferlab.screen import Screen
from transferlab.settings import Run
from transferlab.training.phases import names

SMOOTHING = 0.9  # of the running mean of losses
RISE = 4.0  # times its smallest value: where the smoothed loss is taken to have diverged
SKIPPED = 0.1  # share of the steps whose running mean is of too few losses to suggest anything
FEWEST = 10  # steps
WIDEST = 1e-30  # ratio of the smallest to the largest rate, as float32 can still count down to


def find(
  settings: Run | Mapping[str, Any],
  workdir: Path | str,
  *,
  steps: int = 100,
  smallest: float = 1e-7,
  largest: float = 10.0,
  screen: Screen | None = None,
  stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
  """Trains a run's first phase at rates from `smallest` to `largest`, and writes the curve into the run's folder.

  Parameters, optimizer, objective and relative rates are the phase's; its length and schedule are not used. Only
  training examples are seen. The folder is not claimed: a run may train in it afterwards, or have done so. A source
  that has to be pretrained is, and stands in `sources/` beside the folder, where the run will find it.

  Args:
    settings: the run; of values to choose from, the first.
    steps: how many, if the loss does not rise before.
    smallest, largest: the largest of the phase's rates in the first step, and after the last.
    stop: asked after every step whether to give up.

  Returns:
    What rate_finder.json holds: 'curve', a dict per step of 'rate' (before the step's update), 'loss' and 'smoothed';
    'suggestions', see `suggestions`, and the phase's 'learning_rate' as each would have it; 'stopped', why, or None.

  Raises:
    UserError: a mistake in the config, or rates of zero.
    Diverged: the very first loss is not finite.
    Interrupted: `stop` said so.
  """
  if not isinstance(settings, Run):
    settings = config.validate(Run, config.plain(settings))
  workdir, screen = Path(workdir), screen or Screen(quiet=True)
  settings = next(candidates(settings)).settings
  curve, stopped = measure(settings, workdir.parent, steps, smallest, largest, screen, stop)
  found = suggestions([point['rate'] for point in curve], [point['smoothed'] for point in curve])
  rates = settings.phases[_first(settings)].learning_rate
  record = {
    'phase': names(settings.phases)[_first(settings)],
    'steps': steps,
    'smallest': smallest,
    'largest': largest,
    'stopped': stopped,
    'suggestions': found,
    'learning_rate': {name: None if rate is None else scaled(rates, rate) for name, rate in found.items()},
    'curve': curve,
  }
  from transferlab import plots

  folder.make(workdir)
  folder.write_json(workdir / 'rate_finder.json', record)
  plots.rate_finder(record, workdir / 'rate_finder.png')
  return record


def measure(
  settings: Run,
  place: Path,
  steps: int,
  smallest: float,
  largest: float,
  screen: Screen,
  stop: Callable[[], bool],
) -> tuple[list[dict[str, float]], str | None]:
  """The curve, and why it stopped early.

  Args:
    place: where the sources of runs stand, in `sources/`; the other arguments are those of `find`.
  """
  from transferlab.training.loop import Loop

  prepared = prepare(trial(settings, steps, smallest, largest))
  fetch = (prepared, place / 'sources', screen, stop)
  member = start(prepared, experiment.source_weights(*fetch), experiment.teacher_weights(*fetch))
  curve, stopped = Curve(largest), None
  screen.expect(steps)
  screen.doing('learning rates')
  loop = Loop(
    [member],
    experiment.feed_of([prepared], [member]),
    experiment.cadence_of(prepared.run),
    cached=experiment.cached_feed([prepared], [member], place, screen.say),
    saver=curve,
    advance=screen.advance,
    stop=lambda: stop() or curve.rose(),
  )
  try:
    loop.run()
  except Diverged:
    if not curve.points:
      raise
    stopped = 'the loss, or a parameter, is not finite'
  except Interrupted:
    if stop():
      raise Interrupted('interrupted; the same command starts anew') from None
    stopped = f'the smoothed loss rose above {RISE:g} times its smallest'
  return curve.points, stopped


def _first(settings: Run) -> int:
  """The number of the first phase that trains."""
  return next((number for number, phase in enumerate(settings.phases) if phase.steps != 0), 0)


def trial(settings: Run, steps: int, smallest: float, largest: float) -> Run:
  """The run of a single phase that the finder trains: the first one of `settings` with growing rates.

  Raises:
    UserError: no phases, rates of zero, or limits that make no sense.
  """
  if not settings.phases:
    raise UserError('the learning-rate finder trains the first phase, and a baseline has none')
  if all(phase.steps == 0 for phase in settings.phases):
    raise UserError('the learning-rate finder trains the first phase that has steps, and there is none')
  if not 0 < smallest < largest or smallest / largest < WIDEST or steps < FEWEST:
    raise UserError(
      f'the learning-rate finder needs 0 < smallest < largest and at least {FEWEST} steps, not smallest={smallest}, '
      f'largest={largest}, steps={steps}; nearest: 1e-7, 10.0, 100'
    )
  values = config.resolved(settings)
  phase = values['phases'][_first(settings)] | {
    'steps': steps,
    'epochs': None,
    'examples': None,
    'learning_rate': scaled(settings.phases[_first(settings)].learning_rate, largest),
    'schedule': {'name': 'exponential', 'first': smallest / largest},
    'average': None,
    'interpolate': None,
  }
  own = {'phases': [phase], 'choose': {}, 'soup': None, 'evaluation': {}, 'logging': {'every': 1}}
  return config.validate(Run, {**values, **own})


def scaled(rates: float | Sequence[tuple[str, float]], largest: float) -> float | list[tuple[str, float]]:
  """One rate, or rules of rates, multiplied so that the largest is `largest`. Raises `UserError` where all are zero."""
  if isinstance(rates, float | int):
    rates = [('.*', rates)]
    return scaled(rates, largest)[0][1]  # type: ignore[index]
  before = max(rate for _, rate in rates)
  if not before:
    raise UserError('config.phases.0.learning_rate is zero, and the learning-rate finder multiplies it; nearest: 1e-3')
  return [(pattern, rate / before * largest) for pattern, rate in rates]


class Curve:
  """The loop's saver for the finder: keeps what is logged of every step, and saves nothing."""

  def __init__(self, largest: float):
    self.largest, self.points = largest, list[dict[str, float]]()
    self.mean, self.lowest = 0.0, math.inf

  def restore(self) -> None:
    """There is nothing to go on from."""

  def save(self, progress: Any, tree: Mapping[str, Any]) -> None:
    """Nothing is kept."""

  def line(
    self, step: int, phase: str, split: str, values: Mapping[str, Any], seconds: float, waited: float | None
  ) -> None:
    """Adds a step: its rate, its loss, and the running mean of losses, without the pull to its start at zero."""
    self.mean = SMOOTHING * self.mean + (1 - SMOOTHING) * values['loss']
    smoothed = self.mean / (1 - SMOOTHING ** (len(self.points) + 1))
    self.lowest = min(self.lowest, smoothed)
    self.points.append({'rate': self.largest * values['rate_factor'], 'loss': values['loss'], 'smoothed': smoothed})

  def rose(self) -> bool:
    """Whether the smoothed loss is above `RISE` times its smallest (above by as much, where that is negative)."""
    if not self.points:
      return False
    return self.points[-1]['smoothed'] > self.lowest + (RISE - 1) * abs(self.lowest)


def suggestions(rates: Sequence[float], smoothed: Sequence[float]) -> dict[str, float | None]:
  """Rates to train at, by two rules of thumb.

  'steepest': where the smoothed loss falls fastest over the logarithm of the rate. 'minimum_tenth': a tenth of the rate
  at which it is smallest. None where the loss does not fall. The first tenth of the steps is left out.

  Args:
    rates: [steps], growing geometrically.
    smoothed: [steps], the smoothed losses.
  """
  import numpy as np

  values, first = np.asarray(smoothed, np.float64), math.ceil(SKIPPED * len(rates))
  if first >= len(rates):
    return {'steepest': None, 'minimum_tenth': None}
  lowest = first + int(values[first:].argmin())
  slopes = np.gradient(values, np.log(rates))[first : lowest + 1] if lowest > first else np.zeros(1)
  steepest = first + int(slopes.argmin())
  if slopes.min() >= 0:
    return {'steepest': None, 'minimum_tenth': None}
  return {'steepest': float(rates[steepest]), 'minimum_tenth': float(rates[lowest]) / 10}


def lines(record: Mapping[str, Any], rows: int = 20) -> list[str]:
  """The curve as a table of at most `rows` steps and the last, and the suggestions."""
  curve = record['curve']
  every = math.ceil(len(curve) / rows)
  shown = [*range(0, len(curve) - 1, every), len(curve) - 1]
  table = [f'phase {record["phase"]}', '  step        rate        loss    smoothed']
  for number in shown:
    point = curve[number]
    table.append(f'{number + 1:6}  {point["rate"]:10.3g}  {point["loss"]:10.4g}  {point["smoothed"]:10.4g}')
  if record['stopped']:
    table.append(f'stopped: {record["stopped"]}')
  for name, title in TITLES.items():
    value = record['learning_rate'][name]
    table.append(f'{title}: ' + ('none, since the loss does not fall' if value is None else _override(value)))
  return table


TITLES = {'steepest': 'steepest descent', 'minimum_tenth': 'a tenth of the rate at the minimum'}


def _override(value: float | Sequence[Sequence[Any]]) -> str:
  """The rates, of two digits, as they are written on the command line."""
  short = lambda rate: float(f'{rate:.2g}')
  if isinstance(value, float | int):
    return f'--config.phases.0.learning_rate={short(value)!r}'
  return f'--config.phases.0.learning_rate="{[(pattern, short(rate)) for pattern, rate in value]!r}"'
