"""Embeddings of categories: numbers pass, categories become the rows of their tables, in a network and in a run."""

import jax
import numpy as np
import pytest

from transferlab import config
from transferlab.errors import UserError
from transferlab.networks import network as networks
from transferlab.preparation import prepare, start
from transferlab.pretrained import Weights
from transferlab.settings import Run

pytestmark = pytest.mark.usefixtures('quick_compilation')


def test_numbers_pass_and_categories_become_rows_of_their_tables():
  network = networks.build('mlp', {'hidden': [4], 'categories': [[1, 3], [2, 6]]}, (4,), 2)
  assert network.stages == ('embed', 'layer1', 'head')
  variables = network.init(jax.random.key(0))
  x = np.array([[0.5, 2, 5, -1], [1.5, 0, 1, 7]], np.float32)
  outputs, _ = network.apply(variables, x)
  first, second = (np.asarray(variables['params']['embed'][f'column{c}']['embedding']) for c in (1, 2))
  assert first.shape == (3, 2) and second.shape == (6, 3)
  expected = [[*row[[0, 3]], *first[int(row[1])], *second[int(row[2])]] for row in x]
  np.testing.assert_allclose(outputs['embed'], expected)


@pytest.mark.parametrize('categories', [[[4, 3]], [[1]]])
def test_categories_that_the_inputs_do_not_have_are_refused(categories):
  with pytest.raises(UserError, match='categories'):
    networks.build('mlp', {'categories': categories}, (4,), 2)


def _run(tmp_path, network):
  rows = [f'{color},{size},{"yes" if size > 4 else "no"}' for size in range(10) for color in ('red', 'green', 'blue')]
  (tmp_path / 'table.csv').write_text('color,size,label\n' + '\n'.join(rows) + '\n')
  data = {'name': f'csv:{tmp_path}/table.csv', 'categorical': 'embedding'}
  values = {'network': {'name': network}, 'target': {'data': data}, 'phases': [{'steps': 1}]}
  return config.validate(Run, values)


def test_a_run_on_a_table_with_categories_embeds_them(tmp_path):
  prepared = prepare(_run(tmp_path, 'mlp'))
  table = prepared.network.shapes()['params']['embed']['column0']['embedding']
  assert table.shape == (4, 2)  # three colours, and one row for what is missing or was never seen
  x = prepared.loaded.evaluated('train', prepared.record)[0]
  assert sorted(set(x[:, 0])) == [1, 2, 3]


def test_a_network_without_embeddings_is_refused_by_name(tmp_path):
  with pytest.raises(UserError, match="'convnet' embeds no categories; nearest: mlp"):
    prepare(_run(tmp_path, 'convnet'))


PEOPLE = {
  'source': {'job': ['cook', 'smith', 'clerk'], 'age': [20, 30, 40], 'town': ['Ulm', 'Bonn', 'Ulm']},
  'target': {'sex': ['f', 'm', 'f'], 'job': ['pilot', 'clerk', 'cook'], 'age': [35, 25, 45]},
}


def _moved(tmp_path, **network):
  """A network of people whose jobs it embeds, and where it came from: other columns, another order, another job."""
  for name, table in PEOPLE.items():
    rows = [[values[i % 3] for values in table.values()] + [i % 2] for i in range(24)]
    lines = [[*table, 'label'], *rows]
    (tmp_path / f'{name}.csv').write_text('\n'.join(','.join(map(str, line)) for line in lines))
  data = lambda name: {'name': f'csv:{tmp_path}/{name}.csv', 'categorical': 'embedding'}
  values = {
    'network': {'name': 'mlp', 'hidden': [4], **network},
    'source': {'data': data('source'), 'phases': [{'steps': 1}]},
    'target': {'data': data('target')},
    'transplant': [('embed', 'columns'), ('layer1/linear/kernel', 'columns'), ('.*', 'copy')],
    'phases': [{'steps': 1}],
  }
  return prepare(config.validate(Run, values))


def test_categories_and_columns_keep_their_weights_by_name_in_a_table_with_others(tmp_path):
  prepared = _moved(tmp_path, embedding=2)
  theirs = prepared.source.network.init(jax.random.key(1))
  own = start(prepared, None).variables
  found = start(prepared, Weights(theirs, {}, '')).variables['params']
  # Codes are in the source's order: missing or unseen, clerk, cook, smith; then what only the target has: pilot.
  theirs, own = theirs['params'], own['params']
  jobs, here = (tree['embed'][f'column{place}']['embedding'] for tree, place in ((theirs, 0), (own, 1)))
  np.testing.assert_array_equal(found['embed']['column1']['embedding'], [*jobs, here[4]])
  np.testing.assert_array_equal(found['embed']['column0']['embedding'], own['embed']['column0']['embedding'])
  # The source's first layer reads age, 2 features of job, 2 of town; the target's age, 2 features of sex, 2 of job.
  first, here = (tree['layer1']['linear']['kernel'] for tree in (theirs, own))
  np.testing.assert_array_equal(found['layer1']['linear']['kernel'], [first[0], here[1], here[2], first[1], first[2]])
  assert 'embed/column0/embedding: the source has no such column: initialised' in prepared.plan.notes


def test_embeddings_of_other_widths_are_refused_with_the_way_out(tmp_path):
  with pytest.raises(UserError, match=r'embed/column1/embedding.*give network.embedding'):
    _moved(tmp_path)
