"""Weights combined after training: a soup of several candidates, and the line between the two ends of a phase.

The averages are training/averaging.py's; here running statistics are computed anew, and validation data judge.
Runs networks; writes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transferlab import paths, results
from transferlab.data.sources import centred
from transferlab.errors import UserError
from transferlab.preparation import Prepared
from transferlab.training import adapt, averaging
from transferlab.training.state import Fitted


def _recomputed(prepared: Prepared, variables: Any, stages: Any) -> Any:
  """The variables with the running statistics of these stages as the training inputs give them."""
  if not stages:
    return variables
  x = centred(prepared.loaded.arrays(prepared.loaded.splits['train'], prepared.record)['x'], prepared.loaded.crop)
  return adapt.adapt(prepared.network, variables, results.arrays_of(prepared.record), x, stages)


def curve(prepared: Prepared, fitted: Fitted, test: bool = True) -> dict[str, Any]:
  """What is measured on the way from the start of the last phase to its end (Wortsman et al. 2022, figure 1).

  Args:
    test: False leaves out all but training and validation data.

  Returns:
    'interpolation': 'phase', 'chosen', and 'points', [{'share': α, name: {metric: value}}]; nothing where the last
    phase does not interpolate.
  """
  if fitted.line is None:
    return {}
  (chosen,), (start, end), points = fitted.progress.points, fitted.line, []
  assert chosen is not None
  everything = results.sets(prepared, test)
  for share in chosen['shares']:
    variables = averaging.interpolate(start, end, share)
    if share not in (0, 1):
      variables = _recomputed(prepared, variables, prepared.stretches[-1].method.moving)
    points.append({'share': share, **_measured(prepared, variables, everything)})
  return {'interpolation': {'phase': chosen['phase'], 'chosen': chosen['chosen'], 'points': points}}


def _measured(prepared: Prepared, variables: Any, everything: Mapping[str, Any]) -> dict[str, Any]:
  asked, info = prepared.run.evaluation.metrics, prepared.loaded.info
  outputs = {name: results.outputs_on(prepared, variables, x) for name, (x, _, _) in everything.items()}
  return {name: results.measure(asked, outputs[name], label, info) for name, (_, label, _) in everything.items()}


def soup(
  recipe: str, runs: Sequence[Prepared], candidates: Sequence[Any], scores: Sequence[float]
) -> tuple[Any, dict[str, Any]]:
  """The average of the candidates' weights, and what is to be said of it.

  Args:
    runs: of the candidates.
    recipe: 'uniform': all of them; 'greedy': the best, and whatever does not harm it on validation data.
    candidates: variables of one structure.
    scores: of each on validation data, the larger the better.

  Raises:
    UserError: candidates of different shapes, or some that trained on what others were validated on.
  """
  prepared = runs[0]
  if any(not np.array_equal(run.loaded.splits['validation'], prepared.loaded.splits['validation']) for run in runs):
    raise UserError(
      f'soup={recipe!r}: the candidates have other validation data each, so some learnt what would judge the soup; '
      'config.target.data.seed fixes the split'
    )
  shapes = [{path: leaf.shape for path, leaf in paths.flatten(each).items()} for each in candidates]
  if any(own != shapes[0] for own in shapes):
    raise UserError(f'soup={recipe!r}: the candidates have parameters of different shapes, which have no average')
  stages = frozenset().union(*(stretch.method.moving for stretch in prepared.stretches))
  judge = lambda variables: _score(prepared, _recomputed(prepared, variables, stages))
  if recipe == 'greedy':
    mixed, numbers, score = averaging.greedy_soup(candidates, scores, judge)
  else:
    mixed, numbers = averaging.soup(candidates), list(range(len(candidates)))
  # A soup of one is that one, statistics included.
  variables = _recomputed(prepared, mixed, stages) if len(numbers) > 1 else mixed
  if recipe != 'greedy':
    score = _score(prepared, variables)
  return variables, {'recipe': recipe, 'ingredients': numbers, 'score': score}


def _score(prepared: Prepared, variables: Any) -> float:
  """The metric that chooses, on validation data, the larger the better."""
  x, label, _ = results.split(prepared, 'validation')
  outputs = results.outputs_on(prepared, variables, x)
  return prepared.score(results.measure([prepared.select_metric()], outputs, label, prepared.loaded.info))
