"""Transplants: where every leaf comes from, what is refused, and that applying a plan changes values only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transferlab import paths, transplant
from transferlab.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')


def _variables(depth=3, classes=3, columns=4, seed=0, norm=True):
  """layer1 … layerN with BatchNorm, and a head; every number is different."""
  random = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
  params, stats, width = {}, {}, columns
  for number in range(1, depth + 1):
    params[f'layer{number}'] = {'linear': {'kernel': draw(width, 5), 'bias': draw(5)}}
    if norm:
      params[f'layer{number}']['norm'] = {'scale': draw(5)}
      stats[f'layer{number}'] = {'norm': {'mean': draw(5), 'var': draw(5)}}
    width = 5
  params['head'] = {'kernel': draw(5, classes), 'bias': draw(classes)}
  return {'params': params, 'stats': stats}


SOURCE, TARGET = _variables(seed=0), _variables(seed=1)


def _flat(variables):
  return {**paths.flatten(variables['params']), **paths.flatten(variables['stats'])}


def _transplanted(rules, source=SOURCE, target=TARGET, **options):
  made = transplant.plan(source, target, rules, **options)
  return made, _flat(transplant.apply(made, source, target))


def _came_from(found, expected):
  """Compares every leaf with the leaf that `expected(path)` names: ('source' | 'target', path)."""
  given = {'source': _flat(SOURCE), 'target': _flat(TARGET)}
  for path, value in found.items():
    where, name = expected(path)
    np.testing.assert_array_equal(value, given[where][name], err_msg=path)


def test_by_default_everything_but_the_head_is_copied_and_statistics_travel_with_it():
  made, found = _transplanted(transplant.DEFAULT_RULES)
  _came_from(found, lambda path: ('target' if path.startswith('head') else 'source', path))
  assert set(made.copied()) == {path for path in paths.flatten(SOURCE['params']) if not path.startswith('head')}
  assert made.unused == ('head/kernel', 'head/bias')


def test_a_source_of_other_depth_and_classes_gives_what_its_rules_name():
  source = _variables(depth=2, classes=10, seed=0)
  made, found = _transplanted([('layer[12]', 'copy'), ('.*', 'init')], source)
  given = {'source': _flat(source), 'target': _flat(TARGET)}
  for path, value in found.items():
    where = 'source' if path.startswith(('layer1', 'layer2')) else 'target'
    np.testing.assert_array_equal(value, given[where][path], err_msg=path)
  assert made.unused == ('head/kernel', 'head/bias')


def test_a_head_of_another_class_count_must_be_given_another_origin():
  source = _variables(classes=10)
  with pytest.raises(
    UserError, match=r"head/kernel has shape \(5, 3\), .* \(5, 10\); .*for example \('head', 'init'\)"
  ):
    transplant.plan(source, TARGET, [('.*', 'copy')])


def test_a_renamed_leaf_takes_the_value_that_its_template_names():
  rules = [(r'layer3/linear/(.*)', r'copy:layer2/linear/\1'), ('head', 'init'), ('.*', 'copy')]
  made, found = _transplanted(rules)

  def expected(path):
    if path.startswith('layer3/linear'):
      return 'source', path.replace('layer3', 'layer2')
    return ('target' if path.startswith('head') else 'source'), path

  _came_from(found, expected)
  assert set(made.unused) == {'head/kernel', 'head/bias', 'layer3/linear/kernel', 'layer3/linear/bias'}


def test_a_template_on_the_stage_renames_the_whole_stage_with_its_statistics():
  made, found = _transplanted([('layer3', 'copy:layer2'), ('head', 'init'), ('.*', 'copy')])
  _came_from(
    found,
    lambda path: ('target' if path.startswith('head') else 'source', path.replace('layer3', 'layer2')),
  )
  assert 'layer3/norm/mean' in made.unused
  _, found = _transplanted([(r'layer(2|3)', r'copy:layer\1'), ('.*', 'init')])
  _came_from(found, lambda path: ('source' if path[:6] in ('layer2', 'layer3') else 'target', path))


def test_a_template_that_does_not_fit_its_pattern_is_explained():
  with pytest.raises(UserError, match=r"template 'layer1/\\\\1' does not fit pattern"):
    transplant.plan(SOURCE, TARGET, [('layer2', r'copy:layer1/\1'), ('.*', 'copy')])


def test_statistics_follow_the_first_rule_that_matches_them_and_stay_where_none_does():
  _, found = _transplanted([('layer1', 'init'), ('.*', 'copy')])
  _came_from(found, lambda path: ('target' if path.startswith('layer1') else 'source', path))
  _, found = _transplanted([('.*kernel', 'copy'), (r'.*/(bias|scale)', 'init')])
  _came_from(found, lambda path: ('source' if path.endswith('kernel') else 'target', path))


# --------------------------------------------------------------------------------------------------------- columns
def test_rows_of_a_table_are_matched_by_the_names_of_their_columns():
  source, target = _variables(columns=3, seed=0), _variables(columns=4, seed=1)
  rules = [('layer1/linear/kernel', 'columns'), ('head', 'init'), ('.*', 'copy')]
  names = {'source_names': {'': ['age', 'weight', 'height']}, 'target_names': {'': ['height', 'income', 'age', 'sex']}}
  made, found = _transplanted(rules, source, target, **names)
  theirs, own = (np.asarray(tree['params']['layer1']['linear']['kernel']) for tree in (source, target))
  expected = np.stack([theirs[2], own[1], theirs[0], own[3]])
  np.testing.assert_array_equal(found['layer1/linear/kernel'], expected)
  np.testing.assert_array_equal(found['layer1/linear/bias'], _flat(source)['layer1/linear/bias'])
  assert made.notes == (
    'layer1/linear/kernel: rows matched by name: 2',
    'layer1/linear/kernel: new in the target, initialised: income, sex',
    'layer1/linear/kernel: of the source not used: weight',
  )


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    ({}, "'columns' needs tables with column names on both sides"),
    ({'source_names': {'': 'abcd'}, 'target_names': {'': 'wxyz'}}, 'no column in common'),
    ({'source_names': {'': 'abc'}, 'target_names': {'': 'abcd'}}, r"'columns' is for a first layer"),
  ],
)
def test_columns_that_cannot_be_matched_are_refused(names, message):
  rules = [('layer1/linear/kernel', 'columns'), ('.*', 'copy')]
  with pytest.raises(UserError, match=message):
    transplant.plan(SOURCE, TARGET, rules, **names)


# -------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
  ('rules', 'message'),
  [
    ([('haed', 'init'), ('.*', 'copy')], "pattern 'haed' matches no parameter; nearest: head"),
    ([('head', 'init')], 'no rule matches layer1/linear/kernel'),
    ([('.*', 'cpoy')], r"unknown action 'cpoy' for '\.\*'; there are 'copy'"),
    ([('.*', 'init')], 'copies nothing'),
    ([('layer1', 'copy:layer9'), ('.*', 'copy')], 'layer1/linear/kernel would copy layer9/linear/kernel, which the'),
    ([('.*', 'copy'), ('head', 'init')], "rule 'head' never applies"),
    ([('pool', 'init'), ('.*', 'copy')], "stage 'pool', which exists but has no parameters"),
  ],
)
def test_a_mistaken_rule_is_refused_before_anything_is_copied(rules, message):
  with pytest.raises(UserError, match=message):
    transplant.plan(SOURCE, TARGET, rules, stages=['layer1', 'layer2', 'layer3', 'pool', 'head'])


def test_a_leaf_the_source_does_not_have_names_the_nearest():
  source = _variables(depth=2)
  with pytest.raises(UserError, match=r'layer3/linear/kernel, which the source does not have; nearest: layer\d/linear'):
    transplant.plan(source, TARGET, [('head', 'init'), ('.*', 'copy')])


def test_statistics_the_source_does_not_have_are_an_error_too():
  source = {**SOURCE, 'stats': {}}
  with pytest.raises(UserError, match='layer1/norm/mean would copy'):
    transplant.plan(source, TARGET, transplant.DEFAULT_RULES)


def test_another_dtype_is_refused():
  source = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), SOURCE)
  with pytest.raises(UserError, match='layer1/linear/kernel is float32, layer1/linear/kernel of the source bfloat16'):
    transplant.plan(source, TARGET, transplant.DEFAULT_RULES)


# ----------------------------------------------------------------------------------------------------------- apply
def test_applying_a_plan_changes_values_only_and_never_the_target_itself():
  before = jax.tree.map(np.array, TARGET)
  made = transplant.plan(SOURCE, TARGET, transplant.DEFAULT_RULES)
  changed = transplant.apply(made, jax.tree.map(np.asarray, SOURCE), TARGET)
  assert jax.tree.structure(changed) == jax.tree.structure(TARGET)
  for new, old in zip(jax.tree.leaves(changed), jax.tree.leaves(TARGET)):
    assert (new.shape, new.dtype, new.sharding) == (old.shape, old.dtype, old.sharding)
  jax.tree.map(np.testing.assert_array_equal, TARGET, before)


def test_a_plan_is_made_from_shapes_alone():
  shapes = jax.eval_shape(lambda: (SOURCE, TARGET))
  by_shapes, by_values = (transplant.plan(*pair, transplant.DEFAULT_RULES) for pair in (shapes, (SOURCE, TARGET)))
  assert set(by_shapes.origins) == set(by_values.origins)
  assert set(by_shapes.unused) == set(by_values.unused)


def test_the_report_has_a_line_for_every_leaf_and_for_what_is_not_used():
  made = transplant.plan(SOURCE, TARGET, transplant.DEFAULT_RULES)
  lines = made.lines()
  assert len(lines) == len(_flat(TARGET)) + 3
  assert 'layer1/linear/kernel  (4, 5)  copy  layer1/linear/kernel' in lines
  assert lines[-3:-1] == ['not used: head/kernel', 'not used: head/bias']
  assert made.as_json()['origins'][0]['source'] == 'layer1/linear/kernel'


def test_the_start_point_holds_what_was_copied_and_holes_elsewhere():
  made = transplant.plan(SOURCE, TARGET, [('layer1', 'copy'), ('.*', 'init')])
  moved = transplant.apply(made, SOURCE, TARGET)
  start = paths.flatten(transplant.start_point(made, moved['params']))
  assert start.keys() == paths.flatten(TARGET['params']).keys()
  for path, value in start.items():
    if path.startswith('layer1'):
      np.testing.assert_array_equal(value, _flat(SOURCE)[path])
    else:
      assert value is None


# ------------------------------------------------------------------------------------------------- learned positions
def _tables(rows, seed=0):
  random = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
  return {
    'params': {'embed': {'positions': draw(rows, 3), 'norm': draw(3)}, 'head': {'kernel': draw(3, 2)}},
    'stats': {},
  }


@pytest.mark.parametrize(('rows', 'wanted', 'before'), [(5, 9, 0), (5, 8, 0), (9, 5, 0), (7, 11, 2), (3, 9, 2)])
def test_positions_are_interpolated_between_the_ends_of_the_table(rows, wanted, before):
  source, target = _tables(rows), _tables(wanted, 1)
  rules = [('embed/positions', 'positions:linear'), ('.*', 'copy')]
  made, found = _transplanted(rules, source, target, places=wanted - before)
  given = np.float64(source['params']['embed']['positions'])
  at, known = np.linspace(0, rows - before - 1, wanted - before), np.arange(rows - before)
  expected = np.stack([np.interp(at, known, column) for column in given[before:].T], axis=1)
  np.testing.assert_allclose(found['embed/positions'], np.concatenate([given[:before], expected]), atol=1e-6)
  np.testing.assert_array_equal(found['embed/norm'], source['params']['embed']['norm'])
  assert any(line.startswith('embed/positions') and 'positions:linear' in line for line in made.lines())


@pytest.mark.parametrize('wanted', [9, 4])
def test_the_first_positions_stay_and_new_ones_begin_as_they_are(wanted):
  source, target = _tables(5), _tables(wanted, 1)
  _, found = _transplanted([('embed/positions', 'positions:first'), ('.*', 'copy')], source, target)
  kept = min(wanted, 5)
  np.testing.assert_array_equal(found['embed/positions'][:kept], source['params']['embed']['positions'][:kept])
  np.testing.assert_array_equal(found['embed/positions'][kept:], target['params']['embed']['positions'][kept:])


def test_positions_of_the_same_number_are_copied():
  _, found = _transplanted([('embed/positions', 'positions:linear'), ('.*', 'copy')], _tables(5), _tables(5, 1))
  np.testing.assert_array_equal(found['embed/positions'], _tables(5)['params']['embed']['positions'])


@pytest.mark.parametrize(
  ('rule', 'message'),
  [
    ('copy', r"for example \('embed/positions', 'positions:linear'\)"),
    ('positions:cubic', "unknown way of positions for 'embed/positions': 'cubic'; nearest: "),
    ('positions', "unknown action 'positions'"),
  ],
)
def test_mistaken_positions_are_one_message(rule, message):
  with pytest.raises(UserError, match=message):
    transplant.plan(_tables(5), _tables(9), [('embed/positions', rule), ('.*', 'copy')])
