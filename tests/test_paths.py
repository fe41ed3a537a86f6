"""The pattern dialect: what a pattern selects, which rule wins, and what a mistaken one says."""

import pytest

from transferlab import paths
from transferlab.errors import UserError

LEAVES = [
  'stem/conv/kernel',
  'block1/conv/kernel',
  'block1/conv/bias',
  'block10/conv/kernel',
  'head/kernel',
  'head/bias',
  'terms/block1/kernel',
]
STAGES = ['stem', 'block1', 'block10', 'pool', 'head']


def _select(*patterns):
  return paths.select(list(patterns), LEAVES, what='train', stages=STAGES)


def test_a_pattern_matches_the_whole_path_or_the_whole_name_of_the_stage():
  assert _select('block1') == ['block1/conv/kernel', 'block1/conv/bias']
  assert _select('head|stem') == ['stem/conv/kernel', 'head/kernel', 'head/bias']
  assert _select('.*/bias') == ['block1/conv/bias', 'head/bias']
  assert _select('block1.*') == ['block1/conv/kernel', 'block1/conv/bias', 'block10/conv/kernel']
  with pytest.raises(UserError, match='matches no parameter'):
    _select('lock1')  # a part of a name is not enough
  with pytest.raises(UserError, match='matches no parameter'):
    _select('block1/conv')  # nor the beginning of a path


def test_selection_keeps_the_order_of_the_leaves_and_counts_none_twice():
  assert _select('head', 'stem', 'head/kernel') == ['stem/conv/kernel', 'head/kernel', 'head/bias']


def test_leaves_of_terms_are_reached_only_by_patterns_that_begin_with_terms():
  assert _select('.*') == LEAVES[:-1]
  assert _select('terms/.*') == ['terms/block1/kernel']
  with pytest.raises(UserError, match='matches no parameter'):
    _select('(terms)/.*')


def test_the_first_rule_that_matches_wins():
  rules = [('head/bias', 1), ('head', 2), ('.*', 3)]
  assert paths.assign(rules, LEAVES[:-1], what='rates') == {
    'stem/conv/kernel': 3,
    'block1/conv/kernel': 3,
    'block1/conv/bias': 3,
    'block10/conv/kernel': 3,
    'head/kernel': 2,
    'head/bias': 1,
  }
  assert list(paths.assign(rules, LEAVES[:-1], what='rates')) == LEAVES[:-1]


def test_a_pattern_without_a_match_names_the_nearest():
  with pytest.raises(UserError, match=r"train: pattern 'blok1' matches no parameter; nearest: block1"):
    _select('blok1')
  with pytest.raises(UserError, match='nearest: head/kernel'):
    paths.assign([('head/kernl', 1), ('.*', 2)], LEAVES, what='rates')


def test_a_stage_without_parameters_is_told_from_a_mistyped_one():
  with pytest.raises(UserError, match=r"selects stage 'pool', which exists but has no parameters"):
    _select('pool')


def test_a_rule_that_earlier_rules_leave_nothing_to_is_an_error():
  rules = [('head', 1), ('stem', 2), ('.*kernel', 3), ('stem/conv/.*', 4), ('.*', 5)]
  with pytest.raises(UserError, match=r"'stem/conv/\.\*' never applies, since the earlier rule 'stem' takes"):
    paths.assign(rules, LEAVES[:-1], what='rates')
  with pytest.raises(UserError, match='never applies'):
    paths.assign([('.*', 1), ('head', 2)], LEAVES[:-1], what='rates')


def test_a_closing_default_may_be_idle_but_only_at_the_end():
  leaves = ['head/kernel', 'head/bias']
  assert paths.assign([('head', 1), ('.*', 2)], leaves, what='rates') == dict.fromkeys(leaves, 1)
  with pytest.raises(UserError, match='never applies'):
    paths.assign([('head', 1), ('.*', 2), ('.*', 3)], leaves, what='rates')


def test_a_leaf_that_no_rule_matches_is_an_error_that_shows_it():
  with pytest.raises(
    UserError, match='no rule matches stem/conv/kernel, block1/conv/kernel, block1/conv/bias, block10/conv/kernel; end'
  ):
    paths.assign([('head', 1)], LEAVES[:-1], what='rates')


@pytest.mark.parametrize('pattern', ['head(', '*', '[a'])
def test_an_invalid_regular_expression_is_named(pattern):
  with pytest.raises(UserError, match='is not a regular expression'):
    _select(pattern)


def test_a_pattern_that_is_no_string_is_refused():
  with pytest.raises(UserError, match='a pattern is a string, not 3'):
    paths.compiled(3)


def test_flatten_and_unflatten_are_inverse():
  tree = {'b': {'y': {'0': 1, '1': None}}, 'a': {'x': (2, 3)}}
  flat = {'b/y/0': 1, 'b/y/1': None, 'a/x': (2, 3)}
  assert paths.flatten(tree) == flat
  assert list(paths.flatten(tree)) == list(flat)
  assert paths.unflatten(flat) == tree
  assert paths.flatten({'a': {}, 'b': {'c': {}}}) == {}
