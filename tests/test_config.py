"""What a config may say: reading, overriding, validation messages, and the identity of a run."""

import copy

import pydantic
import pytest

from transferlab import config
from transferlab.config import OUTSIDE, Positive, Schema
from transferlab.errors import UserError
from transferlab.settings import Run

VALUES = {
  'network': {'name': 'mlp', 'hidden': [64]},
  'target': {'data': {'name': 'digits'}},
  'phases': [
    {'name': 'probe', 'train': 'head', 'steps': 10, 'learning_rate': 1e-2},
    {'name': 'tune', 'steps': 20, 'learning_rate': [['head', 1e-3], ['.*', 1e-4]], 'schedule': {'name': 'cosine'}},
  ],
}


def _run(**changes):
  values = copy.deepcopy(VALUES)
  for key, value in changes.items():
    values = config.override(values, key.replace('__', '.'), value)
  return config.validate(Run, values)


# ------------------------------------------------------------------------------------------------ config files
def _file(folder, text):
  file = folder / 'some.py'
  file.write_text(text)
  return str(file)


def test_read_gives_plain_values_the_argument_and_the_docstring(tmp_path):
  spec = _file(
    tmp_path,
    '"""What it shows."""\n'
    'import ml_collections\nimport numpy as np\n'
    'def get_config(arg):\n'
    '  config = ml_collections.ConfigDict()\n'
    "  config.rules = [('head', np.float64(0.5))]\n"
    '  config.inner = dict(arg=arg, none=None)\n'
    '  return config\n',
  )
  values, docstring = config.read(f'{spec}:smoke')
  assert values == {'rules': [['head', 0.5]], 'inner': {'arg': 'smoke', 'none': None}}
  assert type(values['rules'][0][1]) is float
  assert docstring == 'What it shows.'
  assert config.read(spec)[0]['inner']['arg'] == ''
  assert not (tmp_path / '__pycache__').exists()


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('def get_config(arg):\n  return 1 / 0\n', 'some.py failed with ZeroDivisionError: division by zero'),
    ('def get_config(arg):\n  return [1]\n', 'get_config returned list, not a config'),
    ('def config(arg):\n  return {}\n', 'defines no function get_config'),
    ('def get_config(:\n', 'failed with SyntaxError'),
    ('import no_such_module\n', "failed with ModuleNotFoundError: No module named 'no_such_module'"),
  ],
)
def test_a_bad_config_file_says_what_is_wrong_with_it(tmp_path, text, message):
  with pytest.raises(UserError, match=message):
    config.read(_file(tmp_path, text))


def test_a_missing_config_file_names_the_nearest(tmp_path):
  _file(tmp_path, '')
  with pytest.raises(UserError, match=r'no config file .*nearest: .*/some\.py'):
    config.read(str(tmp_path / 'soem.py'))


# --------------------------------------------------------------------------------------------------- overrides
def test_override_sets_present_and_absent_keys_and_list_elements_and_leaves_the_original_alone():
  before = copy.deepcopy(VALUES)
  assert config.override(VALUES, 'network.name', 'convnet')['network'] == {'name': 'convnet', 'hidden': [64]}
  assert config.override(VALUES, 'source.data.name', 'digits')['source'] == {'data': {'name': 'digits'}}
  assert config.override(VALUES, 'phases.1.steps', 7)['phases'][1]['steps'] == 7
  assert config.override(VALUES, 'phases.-1.steps', 8)['phases'][1]['steps'] == 8
  assert config.override(VALUES, 'phases.1.learning_rate.0.1', 0.5)['phases'][1]['learning_rate'][0] == ['head', 0.5]
  assert config.override(VALUES, 'phases.0', None)['phases'][0] is None
  assert config.override({'source': None}, 'source.seed', 3) == {'source': {'seed': 3}}
  assert before == VALUES


@pytest.mark.parametrize(
  ('key', 'message'),
  [
    ('phases.2.steps', r"--config.phases.2: '2' is no index into a list of 2"),
    ('phases.-3', r"'-3' is no index into a list of 2"),
    ('phases.first.steps', r"'first' is no index"),
    ('phases.--1.steps', r"'--1' is no index"),
    ('network.name.length', r"network.name is 'mlp', which has no keys"),
  ],
)
def test_override_refuses_what_leads_nowhere(key, message):
  with pytest.raises(UserError, match=message):
    config.override(VALUES, key, 1)


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    ('None', None),
    ('0.1', 0.1),
    ('1e-3', 1e-3),
    ('-3', -3),
    ('True', True),
    ('false', False),
    ("[('head', 1)]", [['head', 1]]),
    ("{'a': (1, 2)}", {'a': [1, 2]}),
    ('convnet', 'convnet'),
    ('head|block5', 'head|block5'),
    ("'3'", '3'),
    ('{{}}', '{{}}'),
    ('', ''),
  ],
)
def test_an_override_is_a_python_literal_where_it_is_one_and_else_text(text, value):
  found = config.literal(text)
  assert found == value
  assert type(found) is type(value)


# -------------------------------------------------------------------------------------------------- validation
@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('sed', 1, 'config.sed: no such key; nearest: seed'),
    ('target.data.nmae', 'x', 'config.target.data.nmae: no such key; nearest: name'),
    ('phases.1.learning_rat', 0.1, 'config.phases.1.learning_rat: no such key; nearest: learning_rate'),
    ('phases.1.schedule.warmpu', 0.1, 'config.phases.1.schedule.warmpu: no such key; nearest: warmup'),
    ('phases.0.steps', -1, 'config.phases.0.steps: input should be greater than or equal to 0, not -1'),
    ('phases.0.steps', '10', "config.phases.0.steps: input should be a valid integer, not '10'"),
    ('phases.0.train', 3, 'config.phases.0.train: input should be a valid string, not 3'),
    ('phases.0.learning_rate', float('nan'), 'config.phases.0.learning_rate: '),
    ('phases.0.epochs', 2.0, 'exactly one of steps, epochs and examples; given: steps, epochs'),
    ('network.name', None, 'config.network.name: input should be a valid string, not None'),
    ('transplant', [['.*', 'copy']], 'a transplant needs a source'),
  ],
)
def test_a_mistake_is_answered_with_its_key_and_the_nearest_valid_one(key, value, message):
  with pytest.raises(UserError) as caught:
    config.validate(Run, config.override(VALUES, key, value))
  assert message in str(caught.value)


def test_every_mistake_is_told_at_once_and_a_missing_key_is_named():
  values = config.override(config.override(VALUES, 'sed', 1), 'target', {})
  with pytest.raises(UserError) as caught:
    config.validate(Run, values)
  assert str(caught.value).splitlines() == [
    'config.target.data: is missing',
    'config.sed: no such key; nearest: seed',
  ]


def test_rules_may_be_lists_of_lists():
  assert _run().phases[1].learning_rate == [('head', 1e-3), ('.*', 1e-4)]


def test_options_are_checked_against_the_keyword_arguments_of_a_function():
  def some(logits, *, smoothing: config.Fraction = 0.1, classes: list[Positive] | None = None):
    del logits, smoothing, classes

  assert config.check_options(some, {'classes': [2]}, 'term some') == {'smoothing': 0.1, 'classes': [2]}
  with pytest.raises(UserError, match=r'term some.smothing: no such key; nearest: smoothing'):
    config.check_options(some, {'smothing': 0.2}, 'term some')
  with pytest.raises(UserError, match=r'term some.logits: no such key'):
    config.check_options(some, {'logits': 0.2}, 'term some')
  with pytest.raises(UserError, match=r'term some.smoothing: input should be less than 1, not 1.5'):
    config.check_options(some, {'smoothing': 1.5}, 'term some')

  def needy(*, stage: str):
    del stage

  with pytest.raises(UserError, match=r'x.stage: is missing'):
    config.check_options(needy, {}, 'x')


# ---------------------------------------------------------------------------------------------------- identity
OUTSIDE_KEYS = [
  ('logging__every', 7),
  ('checkpoint__every', 7),
  ('checkpoint__keep', 7),
  ('parallel__devices', 7),
  ('parallel__compile', 'pmap'),
]
INSIDE_KEYS = [
  ('seed', 1),
  ('network__name', 'convnet'),
  ('network__hidden', [65]),
  ('network__hidden__0', 65),
  ('network__dropout', 0.5),
  ('target__data__name', 'wine'),
  ('target__data__batch_size', 3),
  ('phases__0__steps', 11),
  ('phases__0__train', ['head']),
  ('phases__1__learning_rate__0__1', 2e-3),
  ('phases__1__schedule__final', 0.5),
  ('phases__0__optimizer_options', {'b1': 0.5}),
  ('objective', [{'term': 'cross_entropy', 'smoothing': 0.1}]),
]


def _identity(run):
  return config.digest(config.identity(run))


@pytest.mark.parametrize(('key', 'value'), OUTSIDE_KEYS)
def test_cadence_and_devices_are_outside_the_identity(key, value):
  assert _identity(_run(**{key: value})) == _identity(_run())
  assert config.resolved(_run(**{key: value})) != config.resolved(_run())


@pytest.mark.parametrize(('key', 'value'), INSIDE_KEYS)
def test_every_other_value_changes_the_identity(key, value):
  assert _identity(_run(**{key: value})) != _identity(_run())


def test_identity_leaves_marked_fields_out_at_any_depth():
  class Inner(Schema):
    value: int = 1
    cadence: int = pydantic.Field(2, json_schema_extra=OUTSIDE)

  class Outer(Schema):
    one: Inner = Inner()
    many: list[Inner]
    named: dict[str, Inner]
    optional: Inner | None = None

  expected = {'one': {'value': 1}, 'many': [{'value': 1}, {'value': 3}], 'named': {'a': {'value': 1}}, 'optional': None}
  outer = Outer(many=[Inner(), Inner(value=3)], named={'a': Inner()})
  assert config.identity(outer) == expected


def test_the_digest_does_not_depend_on_the_order_of_keys():
  assert config.digest({'a': 1, 'b': [1, {'c': 2}]}) == config.digest({'b': [1, {'c': 2}], 'a': 1})
  assert config.digest([1, 2]) != config.digest([2, 1])
  assert len(config.digest({})) == 16


def test_differences_names_each_value_that_differs():
  old, new = config.resolved(_run()), config.resolved(_run(seed=3, phases__1__learning_rate__0__1=0.5))
  assert config.differences(old, new) == [
    'config.seed: 0 there, 3 here',
    'config.phases.1.learning_rate.0.1: 0.001 there, 0.5 here',
  ]
  assert config.differences(old, old) == []
  assert config.differences({'a': 1}, {'a': 1, 'b': 2}) == ['config.b: None there, 2 here']
  assert config.differences([1, 2], [1]) == ['config: [1, 2] there, [1] here']


# ------------------------------------------------------------------------------------------------ documentation
def _fields(schema, where, seen=()):
  """(key, description) of every field, found by walking the schemas with pydantic alone."""
  for name, field in schema.model_fields.items():
    yield f'{where}.{name}', field.description
    todo = [field.annotation]
    while todo:
      annotation = todo.pop()
      if isinstance(annotation, type) and issubclass(annotation, Schema) and annotation not in (*seen, schema):
        listed = '.0' if str(field.annotation).startswith('list') else ''
        yield from _fields(annotation, f'{where}.{name}{listed}', (*seen, schema))
      todo.extend(getattr(annotation, '__args__', ()))


def test_help_names_every_key_of_a_run_with_its_meaning():
  text = config.document(Run)
  lines = text.splitlines()
  fields = list(_fields(Run, 'config'))
  assert len(fields) > 60
  for key, description in fields:
    assert any(line.startswith(f'{key}  (') for line in lines), key
    assert description, f'{key} has no description'
    assert f'    {description}' in lines, key
  assert 'config.seed  (int; default 0)' in lines
  assert "config.parallel.compile  ('jit' | 'pmap'; default 'jit')" in lines
