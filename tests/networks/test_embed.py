"""Embeddings of categories: numbers pass, categories become the rows of their tables, in a network and in a run."""

import jax
import numpy as np
import pytest

from transferlab import config
from transferlab.errors import UserError
from transferlab.networks import network as networks
from transferlab.preparation import Run, prepare


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
