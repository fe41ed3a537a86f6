"""Tables and texts: what is read equals an independent reading, and unfit files end with one clear message."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

from transferlab.data.tables import read_table
from transferlab.errors import UserError

PLAIN = 'size,colour,label\n1,red,yes\n2.5,blue,no\n,red,no\n'


def _read(folder, text, kind='csv', **options):
  file = folder / f'mine.{kind}'
  file.write_bytes(text if isinstance(text, bytes) else text.encode())
  return read_table(str(file), kind, **options)


def _parts(folder, kind='csv', **texts):
  for part, text in texts.items():
    (folder / f'my_{part}.{kind}').write_text(text)
  return str(folder / f'my_{{{",".join(texts)}}}.{kind}')


def _refused(message, function, *args, **options):
  """The message is part of what is raised, which is one line."""
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    function(*args, **options)
  assert '\n' not in str(caught.value)


def _real(*names):
  folder = os.environ.get('TRANSFERLAB_TEST_DATA')
  if not folder:
    pytest.skip('TRANSFERLAB_TEST_DATA is unset')
  return str(Path(folder, *names))


def test_a_table_holds_numbers_numbers_of_categories_and_nan(tmp_path):
  examples = _read(tmp_path, PLAIN)
  arrays, info = examples.arrays, examples.info
  np.testing.assert_array_equal(arrays['x'], np.float32([[1, 1], [2.5, 0], [np.nan, 1]]))
  np.testing.assert_array_equal(arrays['label'], [1, 0, 0])
  np.testing.assert_array_equal(arrays['id'], [0, 1, 2])
  assert (arrays['x'].dtype, arrays['label'].dtype) == (np.float32, np.int32)
  assert (info.kind, info.task, info.classes) == ('table', 'classification', ('no', 'yes'))
  assert (info.columns, info.categories) == (('size', 'colour'), {'colour': ('blue', 'red')})
  assert (info.file, info.origin) == (str(tmp_path / 'mine.csv'), 'csv file mine.csv')
  assert examples.official is None


def test_csv_tsv_and_jsonl_of_one_table_are_read_alike(tmp_path):
  lines = [{'size': 1, 'colour': 'red', 'label': 'yes'}, {'size': 2.5, 'label': 'no', 'colour': 'blue'}]
  jsonl = ''.join(json.dumps(line) + '\n' for line in [*lines, {'colour': 'red', 'size': None, 'label': 'no'}])
  expected = _read(tmp_path, PLAIN)
  for text, kind in [(PLAIN.replace(',', '\t'), 'tsv'), (jsonl, 'jsonl')]:
    found = _read(tmp_path, text, kind)
    np.testing.assert_array_equal(found.arrays['x'], expected.arrays['x'])
    np.testing.assert_array_equal(found.arrays['label'], expected.arrays['label'])
    assert (found.info.columns, found.info.categories) == (expected.info.columns, expected.info.categories)


@pytest.mark.parametrize(
  'change',
  [
    lambda text: b'\xef\xbb\xbf' + text.encode(),
    lambda text: text.replace('\n', '\r\n'),
    lambda text: text + '\n\r\n  \n',
    lambda text: text.rstrip('\n'),
    lambda text: text.replace(',', ' ,  '),
    lambda text: text.replace('red', '"red"').replace('size', '"size"'),
    lambda text: text.replace('\n,red', '\nN/A,red'),
  ],
)
def test_how_a_table_was_written_does_not_matter(tmp_path, change):
  expected, found = _read(tmp_path, PLAIN), _read(tmp_path, change(PLAIN))
  np.testing.assert_array_equal(found.arrays['x'], expected.arrays['x'])
  assert (found.info.columns, found.info.classes) == (expected.info.columns, expected.info.classes)
  assert found.info.categories == expected.info.categories


def test_quotes_are_rfc_4180_in_csv_and_plain_characters_in_tsv(tmp_path):
  csv = 'label,text\n0,"a, ""b""\r\nc"\n1, " d, e "\n'
  assert _read(tmp_path, csv).arrays['x'].tolist() == ['a, "b"\r\nc', 'd, e']
  tsv = 'label\ttext\n0\t"a, ""b""\n1\t d\x85\x0ce \n'
  assert _read(tmp_path, tsv, 'tsv').arrays['x'].tolist() == ['"a, ""b""', ' d\x85\x0ce ']
  assert _read(tmp_path, 'label\ttext\r\n0\ta\r\n1\tb \r\n', 'tsv').arrays['x'].tolist() == ['a', 'b ']


def test_lines_are_counted_in_the_file_and_not_in_records(tmp_path):
  _refused("line 4: 'inf' in column 'a' is not a finite number", _read, tmp_path, 'a,b,y\n1,"x\nx",0\ninf,z,1\n')


def test_a_very_long_text_is_read(tmp_path):
  text = 'word ' * 40_000
  assert _read(tmp_path, f'label,text\n0,{text}\n1,b\n').arrays['x'][0] == text.strip()


def test_parts_come_one_after_another_under_their_names(tmp_path):
  texts = {'train': PLAIN, 'dev': 'colour,label,size\ngreen,no,7\n', 'test': 'size,colour,label\n8,blue,yes\n9,?,no\n'}
  examples = read_table(_parts(tmp_path, **texts), 'csv')
  assert {name: rows.tolist() for name, rows in examples.official.items()} == {
    'train': [0, 1, 2],
    'dev': [3],
    'test': [4, 5],
  }
  np.testing.assert_array_equal(examples.arrays['x'][:, 0], np.float32([1, 2.5, np.nan, 7, 8, 9]))
  np.testing.assert_array_equal(examples.arrays['x'][:, 1], np.float32([2, 0, 2, 1, 0, np.nan]))
  np.testing.assert_array_equal(examples.arrays['label'], [1, 0, 0, 0, 1, 0])
  assert examples.info.categories == {'colour': ('blue', 'green', 'red')}


def test_a_folder_holds_parts_by_the_names_of_its_files(tmp_path):
  for name in ('train', 'test', 'dev', 'other'):
    (tmp_path / f'{name}.csv').write_text(PLAIN)
  examples = read_table(str(tmp_path), 'csv')
  assert [(name, rows.tolist()) for name, rows in examples.official.items()] == [
    ('train', [0, 1, 2]),
    ('dev', [3, 4, 5]),
    ('test', [6, 7, 8]),
  ]
  (tmp_path / 'train.csv').unlink()
  _refused("without a file 'train.csv'; it holds dev.csv, other.csv, test.csv", read_table, str(tmp_path), 'csv')


def test_a_key_that_a_line_lacks_is_missing_even_in_a_whole_part(tmp_path):
  text = '{"a": 1, "b": "x", "y": true}\n{"a": 2, "y": false}\n'
  spec = _parts(tmp_path, 'jsonl', train=text, test='{"b": "x", "y": true}\n')
  examples = read_table(spec, 'jsonl')
  np.testing.assert_array_equal(examples.arrays['x'], np.float32([[1, 0], [2, np.nan], [np.nan, 0]]))
  assert examples.info.classes == ('false', 'true')


def test_inputs_choose_and_order_the_columns(tmp_path):
  text = 'a,b,c,target\n1,2,3,0\n4,5,6,1\n'
  examples = _read(tmp_path, text, inputs=['c', 'a'])
  assert examples.info.columns == ('c', 'a')
  np.testing.assert_array_equal(examples.arrays['x'], [[3, 1], [6, 4]])
  assert _read(tmp_path, text, columns={'b': 'ignore'}).info.columns == ('a', 'c')


def test_what_is_a_missing_value_can_be_said(tmp_path):
  text = 'a,b,y\n-9,NA,0\n3,x,1\n'
  examples = _read(tmp_path, text, missing=['-9'])
  np.testing.assert_array_equal(examples.arrays['x'], np.float32([[np.nan, 0], [3, 1]]))
  assert examples.info.categories == {'b': ('NA', 'x')}


def test_numbers_can_be_categories_and_a_wrong_number_can_be_pointed_out(tmp_path):
  text = 'a,b,y\n10,1,0\n9,2,1\n10,oops,1\n'
  assert _read(tmp_path, text, columns={'a': 'category'}).info.categories['a'] == ('10', '9')
  _refused("line 4: 'oops' in column 'b' is not a finite number", _read, tmp_path, text, columns={'b': 'numeric'})


@pytest.mark.parametrize('value', ['inf', '-Infinity', '1e999', '1e39', 'NAN'])
def test_a_number_that_is_not_finite_is_refused(tmp_path, value):
  _refused(f"mine.csv line 3: {value!r} in column 'a'", _read, tmp_path, f'a,b,y\n1,1,0\n{value},1,1\n')


def test_digits_with_underscores_are_no_number(tmp_path):
  assert _read(tmp_path, 'a,b,y\n1_000,1,0\n1,1,1\n').info.categories == {'a': ('1', '1_000')}


def test_one_column_of_words_is_text_as_it_stands(tmp_path):
  examples = _read(tmp_path, 'label\ttext\n0\tNone\n1\t\n1\tso\n', 'tsv')
  assert (examples.info.kind, examples.info.columns, examples.info.categories) == ('text', ('text',), {})
  assert (examples.arrays['x'].dtype, examples.arrays['x'].tolist()) == (object, ['None', '', 'so'])
  assert _read(tmp_path, '{"y": 0, "t": "a"}\n{"y": 1}\n', 'jsonl').arrays['x'].tolist() == ['a', '']
  assert _read(tmp_path, 'label,word\n0,a\n1,b\n', columns={'word': 'category'}).info.kind == 'table'
  assert _read(tmp_path, 'label,word\n0,1\n1,2\n', columns={'word': 'text'}).arrays['x'].tolist() == ['1', '2']
  assert _read(tmp_path, 'label,number\n0,1\n1,2\n').info.kind == 'table'


def test_text_beside_other_columns_must_be_the_only_input(tmp_path):
  text = 'title,text,stars,label\na,b c,5,0\nd,e f,4,1\n'
  said = "a text is the only input, and title, stars would be beside 'text': set data.inputs=['text']"
  _refused(said, _read, tmp_path, text, columns={'text': 'text'})
  for options in ({'inputs': ['text']}, {'columns': {'text': 'text', 'title': 'ignore', 'stars': 'ignore'}}):
    assert _read(tmp_path, text, **options).arrays['x'].tolist() == ['b c', 'e f']


@pytest.mark.parametrize(
  ('rows', 'different', 'refused'),
  [(100, 51, True), (100, 50, False), (99, 99, False), (4000, 1001, True), (4000, 1000, False)],
)
def test_words_that_are_hardly_categories_are_refused_unless_called_so(tmp_path, rows, different, refused):
  text = 'number,word,y\n' + ''.join(f'1,w{i % different},{i % 2}\n' for i in range(rows))
  if refused:
    said = f"column 'word' has {different:,} different values in {rows:,} rows ('w0', {tmp_path / 'mine.csv'} line 2, "
    _refused(said + "is no number): set data.columns={'word': 'text'}, 'category' or 'ignore'", _read, tmp_path, text)
  examples = _read(tmp_path, text, columns={'word': 'category'} if refused else {})
  assert len(examples.info.categories['word']) == different


@pytest.mark.parametrize(
  ('values', 'task', 'classes', 'label'),
  [
    (['b', 'a', 'b'], None, ('a', 'b'), [1, 0, 1]),
    (['10', '9', '10'], None, ('9', '10'), [1, 0, 1]),
    (['-1', '1', '+1'], 'binary', ('-1', '1'), [0, 1, 1]),
    (['2.0', '1.0', '2.0'], 'classification', ('1', '2'), [1, 0, 1]),
    (['1', 'x', '2.5'], None, ('1', '2.5', 'x'), [0, 2, 1]),
    ([' a', 'a ', 'b'], None, ('a', 'b'), [0, 0, 1]),
  ],
)
def test_words_and_whole_numbers_are_classes(tmp_path, values, task, classes, label):
  for kind, between in (('csv', ','), ('tsv', '\t')):
    text = f'a{between}y\n' + ''.join(f'1{between}{value}\n' for value in values)
    examples = _read(tmp_path, text, kind, task=task)
    assert (examples.info.task, examples.info.classes) == ('classification', classes)
    assert examples.arrays['label'].tolist() == label


@pytest.mark.parametrize(('values', 'task'), [(['1.5', '2'], None), (['1.0', '2.0'], None), (['1', '2'], 'regression')])
def test_decimals_are_for_regression_and_whole_numbers_where_it_is_said(tmp_path, values, task):
  examples = _read(tmp_path, f'a,y\n1,{values[0]}\n2,{values[1]}\n', task=task)
  assert (examples.info.task, examples.info.targets, examples.info.classes) == ('regression', ('y',), ())
  assert examples.arrays['label'].dtype == np.float32
  np.testing.assert_array_equal(examples.arrays['label'], [[float(value)] for value in values])


def test_many_classes_are_read_where_the_task_is_said(tmp_path):
  text = 'number,y\n' + ''.join(f'1,{i}\n' for i in range(200))
  assert _read(tmp_path, text, task='classification').arrays['label'].tolist() == list(range(200))


def test_several_labels_are_several_tasks(tmp_path):
  text = 'a,kind,size\n1,x,0.5\n2,y,1.5\n'
  examples = _read(tmp_path, text, label=['kind', 'size'])
  info, label = examples.info, examples.arrays['label']
  assert (list(info.tasks), info.columns, info.classes) == (['kind', 'size'], ('a',), ('x', 'y'))
  assert (info.tasks['kind'].task, info.tasks['size'].task) == ('classification', 'regression')
  assert (info.tasks['size'].targets, info.tasks['size'].columns) == (('size',), ('a',))
  np.testing.assert_array_equal(label['kind'], [0, 1])
  np.testing.assert_array_equal(label['size'], [[0.5], [1.5]])
  alone = _read(tmp_path, text, label=['kind'], columns={'size': 'ignore'})
  assert (list(alone.arrays['label']), list(alone.info.tasks)) == (['kind'], ['kind'])


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'mine.csv is empty'),
    (' \n\n', 'mine.csv is empty'),
    ('a,b,y\n', 'mine.csv has a header and no rows'),
    ('a,b,a,y\n1,2,3,4\n', "mine.csv: the header names the column 'a' 2 times"),
    (',b,y\n1,2,3\n', 'mine.csv: column 1 of 3 has no name in the header'),
    ('a b y\n1 2 3\n', "mine.csv: the header is one column, 'a b y'; needed are inputs and a label, with commas"),
    ('a,b,y\n1,2,0\n1,2\n', 'mine.csv line 3 has 2 values, and the header names 3 columns'),
    ('a,b,y\n1,2,0\n1,2,3,1\n', 'mine.csv line 3 has 4 values, and the header names 3 columns'),
    ('a,b,y\n1,2,0\n\n1,2,1\n', 'mine.csv line 3 has 0 values, and the header names 3 columns'),
    ('a,b,y\n1,2,0\n1,"2,1\n3,4,1\n', 'mine.csv line 3: wrongly quoted (unexpected end of data)'),
    (b'a,b,y\n1,2,0\n1,caf\xe9,1\n', 'mine.csv line 3: byte 6 of the line, 0xe9, is not UTF-8'),
    (b'\xef\xbb\xbfa,b\xe9,y\n1,2,0\n', 'mine.csv line 1: byte 4 of the line, 0xe9, is not UTF-8'),
    ('a,b,y\n1,,0\n2,?,1\n', "mine.csv: column 'b' has no value at all; set data.columns={'b': 'ignore'}"),
    ('a,b,c\n1,2,3\n', 'no column label, target, class, y; its columns are a, b, c: name one with data.label'),
    ('a,y,label\n1,2,3\n', 'several columns could be the label (label, y); its columns are a, y, label'),
    (
      'a,y\n1,0\n2,?\n3,\n',
      "line 3: the label 'y' is missing ('?', see data.missing), the first of 2 such rows",
    ),
    ('a,y\n1,0\n2,\n', "mine.csv line 3: no label 'y', the first of 1 such rows"),
    ('a,y\n1,0\n2,0\n', "the label 'y' is '0' in every row, so there is nothing to tell apart"),
    ('number,y\n' + ''.join(f'1,{i}\n' for i in range(200)), "set data.task='regression' or 'classification' if"),
    ('number,y\n' + ''.join(f'1,w{i}\n' for i in range(200)), "set data.task='classification' if that is meant"),
  ],
)
def test_an_unfit_csv_file_is_refused(tmp_path, text, message):
  _refused(message, _read, tmp_path, text)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'label': 'lable'}, "mine.csv: data.label: unknown column 'lable'; nearest: label (also: size, colour)"),
    ({'inputs': ['sise']}, "mine.csv: data.inputs: unknown column 'sise'; nearest: size"),
    ({'columns': {'color': 'category'}}, "mine.csv: data.columns: unknown column 'color'; nearest: colour"),
    ({'inputs': ['size', 'label']}, "data.inputs names 'label', which is the label; data.task says how to learn it"),
    ({'columns': {'label': 'category'}}, "data.columns names 'label', which is the label"),
    ({'inputs': ['size', 'size']}, 'data.inputs names a column twice'),
    ({'inputs': ['size'], 'columns': {'size': 'ignore'}}, "'size' is one of data.inputs, and data.columns ignores it"),
    ({'columns': {'size': 'ignore', 'colour': 'ignore'}}, "no input column is left beside 'label'"),
    ({'task': 'regression'}, "mine.csv line 2: 'yes' in column 'label' for regression is not a finite number"),
    ({'label': 'size', 'task': 'classification'}, "mine.csv line 4: no label 'size'"),
  ],
)
def test_a_config_that_does_not_fit_the_columns_is_refused(tmp_path, options, message):
  _refused(message, _read, tmp_path, PLAIN, **options)


def test_decimals_are_no_classes(tmp_path):
  text = 'a,y\n1,1.0\n2,0.5\n'
  _refused("mine.csv line 3: the label 'y' is '0.5'", _read, tmp_path, text, task='classification')
  _refused("line 3: the label 'y' is 'inf'", _read, tmp_path, 'a,y\n1,1\n2,inf\n', task='classification')
  _refused("line 3: 'inf' in column 'y' for regression is not", _read, tmp_path, 'a,y\n1,1\n2,inf\n')


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{"a": 1, "y": 1', 'mine.jsonl line 2 is not JSON: '),
    ('[1, 2]', 'mine.jsonl line 2 is an array; needed: an object, {"column": value, …}'),
    ('17', 'mine.jsonl line 2 is the value 17; needed: an object'),
    ('', 'mine.jsonl line 2 is not JSON: '),
    ('{"a": [1], "y": 1}', "mine.jsonl line 2: 'a' holds an array, not a value"),
    ('{"a": {"b": 1}, "y": 1}', "mine.jsonl line 2: 'a' holds an object, not a value"),
    ('{"a": 1, "a": 2, "y": 1}', 'mine.jsonl line 2 gives a key twice'),
    ('{"a": Infinity, "y": 1}', "mine.jsonl line 2: 'Infinity' in column 'a' is not a finite number"),
    ('{"a": 1}', "mine.jsonl line 2: no label 'y'"),
    ('{"": 1, "y": 1}', 'mine.jsonl: column 3 of 3 has no name in the header'),
  ],
)
def test_an_unfit_line_of_jsonl_is_refused(tmp_path, line, message):
  text = '{"a": 1, "y": 0}\n' + line + '\n{"a": 1, "y": 1}\n'
  _refused(message, _read, tmp_path, text, 'jsonl')


def test_a_ragged_line_of_tsv_is_refused(tmp_path):
  _refused('mine.tsv line 2 has 3 values, and the header names 2', _read, tmp_path, 'label\ttext\n0\ta\tb\n', 'tsv')


def test_a_class_without_training_examples_is_refused(tmp_path):
  spec = _parts(tmp_path, train='a,y\n1,u\n2,v\n', dev='a,y\n1,u\n', test='a,y\n1,w\n2,v\n3,w\n')
  said = "my_test.csv: class 'w' of 'y' is in 2 rows of part 'test' and in none of 'train', so it was never trained on"
  _refused(said, read_table, spec, 'csv')
  assert read_table(_parts(tmp_path, red='a,y\n1,u\n', white='a,y\n1,w\n'), 'csv').info.classes == ('u', 'w')


def test_parts_must_have_the_same_columns_but_for_those_not_used(tmp_path):
  spec = _parts(tmp_path, train='aa,b,y\n1,2,0\n3,4,1\n', test='ab,b,y\n1,2,0\n')
  said = f"my_test.csv: unknown column 'aa'; nearest: ab (also: b, y); {tmp_path / 'my_train.csv'} has it"
  _refused(said, read_table, spec, 'csv')
  assert read_table(spec, 'csv', inputs=['b']).arrays['x'].tolist() == [[2], [4], [2]]
  _refused("my_train.csv: unknown column 'ab'", read_table, spec, 'csv', columns={'aa': 'ignore'})


def test_a_file_that_is_not_there_names_the_nearest(tmp_path):
  spec = _parts(tmp_path, train=PLAIN, test=PLAIN)
  missing = str(Path(spec).parent / 'my_{train,tset}.csv')
  _refused(f"my_tset.csv'; nearest in {str(tmp_path)!r}: my_test.csv", read_table, missing, 'csv')
  _refused("there is no folder 'nowhere'", read_table, 'nowhere/mine.csv', 'csv')
  _refused('no .tsv file at all', read_table, str(tmp_path / 'mine.tsv'), 'tsv')


@pytest.mark.parametrize(
  'spec', ['my_{train}.csv', 'my_{}.csv', 'my_{a,a}.csv', 'my_{a,}.csv', 'my_{a,b.csv', 'a}.csv']
)
def test_braces_name_at_least_two_parts(spec):
  _refused(f'{spec!r}: braces name the parts, at least two, each once, with commas', read_table, spec, 'csv')
  _refused("as in 'adult-{train,test}.csv'", read_table, spec, 'csv')


def test_reading_imports_neither_jax_nor_pandas(tmp_path):
  (tmp_path / 'mine.csv').write_text(PLAIN)
  code = (
    'import sys; from transferlab.data.tables import read_table; import transferlab.data.encoding; '
    f'read_table({str(tmp_path / "mine.csv")!r}, "csv"); '
    'print([m for m in ("jax", "sklearn", "pandas") if m in sys.modules])'
  )
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '[]\n'


def _frame(*paths, **options):
  return pandas.concat([pandas.read_csv(path, **options) for path in paths], ignore_index=True)


@pytest.mark.parametrize(
  ('spec', 'files', 'label', 'rows'),
  [
    ('adult-{train,test}.csv', ['adult-train.csv', 'adult-test.csv'], 'income', [32561, 16281]),
    ('winequality-{red,white}.csv', ['winequality-red.csv', 'winequality-white.csv'], 'quality', [1599, 4898]),
    ('abalone.csv', ['abalone.csv'], 'rings', None),
  ],
)
def test_real_tables_are_as_pandas_reads_them(spec, files, label, rows):
  examples = read_table(_real('tabular', spec), 'csv', label=label)
  frame = _frame(*(_real('tabular', file) for file in files), na_values='?', skipinitialspace=True)
  assert [len(part) for part in (examples.official or {}).values()] == (rows or [])
  assert examples.info.columns == tuple(frame.columns.drop(label))
  for name, values in zip(examples.info.columns, examples.arrays['x'].T):
    if name in examples.info.categories:
      codes, categories = pandas.factorize(frame[name], sort=True)
      assert examples.info.categories[name] == tuple(categories)
      np.testing.assert_array_equal(np.nan_to_num(values, nan=-1), codes)
    else:
      np.testing.assert_array_equal(values, frame[name].to_numpy(np.float32))
  codes, classes = pandas.factorize(frame[label], sort=True)
  np.testing.assert_array_equal(examples.arrays['label'], codes)
  assert examples.info.classes == tuple(map(str, classes))
  if label != 'income':
    target = read_table(_real('tabular', spec), 'csv', label=label, task='regression').arrays['label']
    np.testing.assert_array_equal(target[:, 0], frame[label].to_numpy(np.float32))


def test_adult_has_its_published_counts():
  examples = read_table(_real('tabular', 'adult-{train,test}.csv'), 'csv', label='income')
  train = examples.official['train']
  assert np.bincount(examples.arrays['label'][train]).tolist() == [24720, 7841]  # adult.names: 24.08 % earn more
  assert (~np.isnan(examples.arrays['x'][train]).any(axis=1)).sum() == 30162  # adult.names: rows with all values known


def test_trec_is_the_lines_of_its_files():
  examples = read_table(_real('text', 'trec_{train,test}.tsv'), 'tsv')
  lines = []
  for part in ('train', 'test'):
    lines += Path(_real('text', f'trec_{part}.tsv')).read_text(encoding='utf-8').rstrip('\n').split('\n')[1:]
  labels, texts = zip(*(line.split('\t') for line in lines))
  assert examples.arrays['x'].tolist() == list(texts)
  assert examples.arrays['label'].tolist() == list(map(int, labels))
  assert {name: len(rows) for name, rows in examples.official.items()} == {'train': 5452, 'test': 500}
  assert np.bincount(examples.arrays['label'][:5452]).tolist() == [1162, 1250, 86, 1223, 835, 896]  # Li and Roth (2002)


def test_a_csv_file_may_have_semicolons_where_its_header_has_no_comma(tmp_path):
  """As the wine files of the UCI repository have, with a quoted header."""
  (tmp_path / 'commas.csv').write_text('"a","b x","y"\n1,2.5,u\n3,4.5,v\n')
  (tmp_path / 'semicolons.csv').write_text('"a";"b x";"y"\n1;2.5;u\n3;4.5;v\n')
  commas, semicolons = (read_table(str(tmp_path / f'{name}.csv'), 'csv') for name in ('commas', 'semicolons'))
  assert semicolons.info.columns == commas.info.columns == ('a', 'b x')
  np.testing.assert_array_equal(semicolons.arrays['x'], commas.arrays['x'])


@pytest.mark.parametrize(
  ('values', 'columns', 'note'),
  [
    (['1', '2', '3', 'unknown'], {}, "column 'a' is categories because of 'unknown'"),
    (['1', '2', '3', 'unknown'], {'a': 'category'}, None),
    (['red', 'blue', '3', 'red'], {}, None),
    (['1700000000', '1700000001', '1700000002', '1'], {}, "column 'a': 4 numbers become 2 in single precision"),
    (['0.1', '0.2', '0.3', '0.4'], {}, None),
  ],
)
def test_what_may_be_meant_otherwise_is_noted(tmp_path, values, columns, note):
  rows = [f'{value},{i},{"xy"[i % 2]}' for i, value in enumerate(values)]
  (tmp_path / 'mine.csv').write_text('\n'.join(['a,b,y', *rows]))
  notes = read_table(str(tmp_path / 'mine.csv'), 'csv', columns=columns).info.notes
  assert len(notes) == (note is not None)
  assert note is None or notes[0].startswith(note)


def test_an_array_of_objects_is_told_from_lines_of_them(tmp_path):
  (tmp_path / 'mine.jsonl').write_text('[\n{"a": 1, "y": 2}\n]\n')
  _refused('line 1 begins an array; needed: an object on every line', read_table, str(tmp_path / 'mine.jsonl'), 'jsonl')
