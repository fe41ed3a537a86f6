"""Averages of parameters: along a run (exponential, SWA), between two ends (WiSE-FT), over several runs (soups). Pure.

Trees are plain nested dicts, with or without holes. Averaged networks that have running statistics need them computed
anew (adapt.py); that is the caller's affair.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tree = Any


def begin(params: Tree) -> dict[str, Any]:
  """The average before the first step: the parameters themselves, and how many were taken into it since."""
  return {'params': jax.tree.map(jnp.copy, params), 'count': jnp.zeros((), jnp.int32)}


def exponential(average: Tree, params: Tree, decay: Float[Array, ''] | float) -> Tree:
  """decay · average + (1 − decay) · params; after t steps decay^t θ_0 + (1 − decay) Σ_s decay^(t−s) θ_s."""
  return jax.tree.map(lambda old, new: (decay * old + (1 - decay) * new).astype(old.dtype), average, params)


def uniform(average: Tree, params: Tree, count: Array | int) -> Tree:
  """The mean of `count` trees and one more: (count · average + params) / (count + 1) (Izmailov et al. 2018, alg. 1)."""
  share = 1 / (jnp.asarray(count, jnp.float32) + 1)
  return jax.tree.map(lambda old, new: (old + share * (new - old)).astype(old.dtype), average, params)


def update(name: str, average: Mapping[str, Any], params: Tree, hyper: Mapping[str, Array], done: Array) -> Any:
  """The running average after a step: the parameters themselves until `first` steps are done, averages from there.

  Args:
    name: 'exponential' or 'uniform'.
    average: see `begin`.
    params: what trains, after the step.
    hyper: 'decay', 'first' (steps of the phase after which a uniform average begins) and 'every'.
    done: steps of the phase that are done, this one included.
  """
  early = done <= hyper['first']
  taken = ~early & ((done - hyper['first']) % hyper['every'] == 0)
  if name == 'exponential':
    new = exponential(average['params'], params, hyper['decay'])
  else:
    new = uniform(average['params'], params, average['count'])
  choose = lambda old, other, now: jnp.where(early, now, jnp.where(taken, other, old))
  kept = jax.tree.map(choose, average['params'], new, params)
  return {'params': kept, 'count': average['count'] + taken}


def interpolate(start: Tree, end: Tree, alpha: float) -> Tree:
  """(1 − α) θ_start + α θ_end, the ends exactly (WiSE-FT, Wortsman et al. 2022, eq. 1)."""
  if alpha in (0, 1):
    return end if alpha else start
  mix = lambda one, other: ((1 - alpha) * one + alpha * other).astype(one.dtype)
  # What is the same at both ends, as frozen weights are, stays so to the bit.
  return jax.tree.map(lambda one, other: jnp.where(one == other, one, mix(one, other)), start, end)


def soup(trees: Sequence[Tree]) -> Tree:
  """The mean of the trees (uniform soup; Wortsman et al. 2022, Model soups, section 2)."""

  def mean(*leaves: Array) -> Array:
    # What is the same in all of them, as frozen weights are, stays so to the bit.
    same = functools.reduce(jnp.logical_and, (leaf == leaves[0] for leaf in leaves))
    return jnp.where(same, leaves[0], sum(leaves[1:], leaves[0]) / len(leaves)).astype(leaves[0].dtype)

  return jax.tree.map(mean, *trees)


def greedy_soup(
  trees: Sequence[Tree], scores: Sequence[float], judge: Callable[[Tree], float]
) -> tuple[Tree, list[int], float]:
  """Adds one after the other, the best first, whatever does not lower the score (Model soups, recipe 1).

  Args:
    scores: of each tree, larger is better.
    judge: the score of an average.

  Returns:
    The soup, the numbers of what went in, and its score.
  """
  order = sorted(range(len(trees)), key=lambda number: -scores[number])
  chosen, best = order[:1], scores[order[0]]
  for number in order[1:]:
    score = judge(soup([trees[n] for n in [*chosen, number]]))
    if score >= best:
      chosen, best = [*chosen, number], score
  return soup([trees[number] for number in chosen]), chosen, best
