"""Language models: files of texts, their splits from end to end, windows that follow one another, and their batches."""

import numpy as np
import pytest
import tokenizers

from transferlab.config import validate
from transferlab.data import loader, tokens, windows
from transferlab.data.loader import Order
from transferlab.data.sources import Data, load
from transferlab.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')

LETTERS = [
  'a',
  'B',
  ' ',
  '.',
  '\n',
  'é',
  'e\u0301',
  '東',
  '😀',
  'İ',
  'ß',
  '\u0327\u0301',
  '\ufeff',
  '\u200d',
  '\0',
  'ﬁ',
]
RANDOM = np.random.default_rng(0)
TEXTS = [''.join(RANDOM.choice(LETTERS, RANDOM.integers(0, 30))) for _ in range(60)] + ['', ' ', '\n \t', ' a', 'a ']


def _fit(texts, tokenizer='words', **options):
  return tokens.fit(texts, validate(tokens.Tokens, {'tokenizer': tokenizer, **options}))


def _named(ids, record):
  return [tokens.vocabulary(record)[number] for number in ids]


# -------------------------------------------------------------------------------------------------------------- cut
@pytest.mark.parametrize('length', [1, 2, 3, 7, 50])
@pytest.mark.parametrize('streams', [1, 2, 3, 5, 8])
def test_every_value_but_the_first_follows_exactly_once_and_in_order(streams, length):
  for count in [streams + 1, streams + 2, 2 * streams, 2 * streams + 1, 17, 40, 41]:
    if count <= streams:
      continue
    values = np.arange(count) * 3  # zero is a number as any other
    x, following = windows.cut(values, streams, length)
    each = -(-(count - 1) // streams)
    assert x.shape == following.shape == (streams, -(-each // length), length)
    flat_x, flat = x.reshape(streams, -1), following.reshape(streams, -1)
    np.testing.assert_array_equal(flat_x >= 0, flat >= 0)
    np.testing.assert_array_equal(flat[flat >= 0], values[1:])
    np.testing.assert_array_equal(flat_x[flat_x >= 0], values[:-1])
    for row in flat:  # nothing stands before what is there, and −1 where nothing does
      held = int((row >= 0).sum())
      assert held <= each and (row[:held] >= 0).all() and set(row[held:].tolist()) <= {-1}
      assert held == each or row is not flat[0]


def test_windows_of_a_stream_follow_one_another():
  x, following = windows.cut(np.arange(10, 20), 2, 3)
  assert x.tolist() == [[[10, 11, 12], [13, 14, -1]], [[15, 16, 17], [18, -1, -1]]]
  assert following.tolist() == [[[11, 12, 13], [14, 15, -1]], [[16, 17, 18], [19, -1, -1]]]


@pytest.mark.parametrize(('count', 'streams'), [(1, 1), (4, 4), (4, 5), (2, 64)])
def test_fewer_tokens_than_streams_are_refused(count, streams):
  with pytest.raises(UserError, match=f'{count} tokens are too few for {streams} streams'):
    windows.cut(np.arange(count), streams, 8)
  windows.cut(np.arange(streams + 1), streams, 8)


# ----------------------------------------------------------------------------------------------------------- streams
def test_a_stream_is_every_token_of_every_text_and_an_end_behind_each():
  given = ['The cat, the', '', '  dog\t', 'unheard cat']
  record = _fit(given[:3], length=2)  # which cuts no stream
  ids, characters = windows.stream(given, record)
  assert _named(ids, record) == [
    'the', 'cat', ',', 'the', '<eos>', '<eos>', 'dog', '<eos>', '<unk>', 'cat', '<eos>',
  ]  # fmt: skip
  assert characters.tolist() == [4, 3, 2, 3, 1, 1, 6, 1, 8, 3, 1]
  assert (ids.dtype, characters.dtype) == (np.int32, np.int32)


@pytest.mark.parametrize('lower', [None, True, False])
@pytest.mark.parametrize('name', [*tokens.TRAINED, 'bytes'])
def test_characters_of_the_tokens_add_up_to_the_text_and_its_end(name, lower):
  record = _fit(TEXTS[::2], name, **({} if name == 'bytes' or lower is None else {'lower': lower}))
  lengths = [len(text) + 1 for text in TEXTS]
  for text, length in zip(TEXTS, lengths):
    ids, characters = windows.stream([text], record)
    assert (characters.sum(), characters.min() >= 0, len(ids)) == (length, True, len(characters)), repr(text)
    assert ids[-1] == tokens.end_of(record) and ids.min() >= 0
  together, counted = windows.stream(TEXTS, record)
  assert counted.sum() == sum(lengths)
  ends = np.flatnonzero(together == tokens.end_of(record))
  assert np.diff([0, *np.cumsum(counted)[ends]]).tolist() == lengths


def test_a_byte_begins_where_its_letter_does():
  _, characters = windows.stream(['aé😀'], _fit([], 'bytes'))
  assert characters.tolist() == [1, 0, 1, 0, 0, 0, 1, 1]


def test_tokens_that_a_tokenizer_puts_around_texts_are_in_no_stream(tmp_path):
  lines = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'cat', '##s']
  (tmp_path / 'vocab.txt').write_text('\n'.join(lines))
  record = _fit([], str(tmp_path / 'vocab.txt'))
  ids, characters = windows.stream(['the cats', 'the'], record)
  assert (ids.tolist(), characters.tolist()) == ([5, 6, 7, 3, 5, 3], [4, 3, 1, 1, 3, 1])


def test_a_tokenizer_without_an_end_of_texts_makes_no_stream(tmp_path):
  tokenizers.Tokenizer(tokenizers.models.WordLevel({'<unk>': 0}, unk_token='<unk>')).save(str(tmp_path / 'a.json'))
  with pytest.raises(UserError, match=r'no token that ends a text: <eos>'):
    windows.stream(['a'], _fit([], str(tmp_path / 'a.json')))


def test_training_reads_each_streams_windows_one_after_another():
  given = ['a b c d e f g', 'h i']
  record = _fit(given, length=2)
  made = windows.training(given, record, 2)
  told = [[[''if number < 0 else _named([number], record)[0] for number in row] for row in made[key]]
          for key in ('x', 'label')]  # fmt: skip
  assert told[0] == [['a', 'b'], ['c', 'd'], ['e', ''], ['f', 'g'], ['<eos>', 'h'], ['i', '']]
  assert told[1] == [['b', 'c'], ['d', 'e'], ['f', ''], ['g', '<eos>'], ['h', 'i'], ['<eos>', '']]
  assert made['id'].tolist() == list(range(6))


@pytest.mark.parametrize('streams', [1, 3])
def test_evaluation_knows_how_many_characters_each_token_stands_for_that_is_predicted(streams):
  given = ['word ' * 400, 'and é so on', ''] * 3
  record = _fit(given, streams=streams, length=4)
  inputs, counted = windows.evaluated(given, record)
  ids, characters = windows.stream(given, record)
  assert inputs['x'].shape == inputs['next'].shape == counted.shape == (streams, *counted.shape[1:])
  np.testing.assert_array_equal(inputs['next'][inputs['next'] >= 0], ids[1:])
  np.testing.assert_array_equal(inputs['x'][inputs['x'] >= 0], ids[:-1])
  np.testing.assert_array_equal(counted[inputs['next'] >= 0], characters[1:])
  assert set(counted[inputs['next'] < 0].tolist()) == {-1}
  assert counted[counted >= 0].sum() == sum(len(text) + 1 for text in given) - characters[0]


# ----------------------------------------------------------------------------------------------------------- batches
@pytest.mark.parametrize(('batch_size', 'rows'), [(1, 1), (3, 3), (3, 4), (5, 8)])
@pytest.mark.parametrize('each', [1, 4])
def test_a_place_of_a_batch_goes_on_where_it_stood_in_the_one_before(batch_size, rows, each):
  order = Order(batch_size * each, batch_size, rows, seed=3, streams=True)
  for start in (0, 1, 7):
    picks = order.batches(start, 2 * each + 1)
    for step in range(start, start + 2 * each + 1):
      own = {name: None if value is None else value[step - start].tolist() for name, value in picks.items()}
      padding = rows - batch_size
      assert own['row'] == [place * each + step % each for place in range(batch_size)] + [0] * padding
      assert own['place'] == list(range(rows))
      assert own['view'] == [step // each] * rows
      assert own['fresh'] == [int(step % each == 0)] * rows
      assert own['mask'] == ([True] * batch_size + [False] * padding if padding else None)


def test_the_batches_of_an_epoch_are_the_text_read_from_end_to_end(tmp_path):
  lines = [' '.join(f'w{RANDOM.integers(9)}' for _ in range(7)) for _ in range(14)]
  (tmp_path / 'a.txt').write_text('\n'.join(lines))
  data = validate(Data, {'name': f'text:{tmp_path}/a.txt', 'tokens': {'length': 4}, 'batch_size': 3, 'test': 0.5})
  loaded = load(data, 0)
  record = loaded.preprocessing
  arrays = loaded.arrays(loaded.splits['train'], record)
  expected = [word for line in lines[:7] for word in [*line.split(), '<eos>']]
  assert loaded.streams == 3 and loaded.count(record) == len(arrays['x']) == 3 * 5  # of ⌈55 / 3⌉ = 19 tokens each
  batch = loader.gather(arrays, Order(15, 3, 4, 0, streams=True).batches(10, 5))
  for key, words in [('x', expected[:-1]), ('label', expected[1:])]:
    read = np.concatenate([batch[key][:, place].reshape(-1) for place in range(3)])
    assert _named(read[read >= 0], record['tokens']) == words


# ------------------------------------------------------------------------------------------------------------- files
def _language(name, **options):
  return validate(Data, {'name': f'text:{name}', 'tokens': {'length': 4}, 'batch_size': 1, **options})


def _split(loaded):
  return {name: loaded.examples.arrays['x'][rows].tolist() for name, rows in loaded.splits.items()}


@pytest.mark.parametrize(
  ('contents', 'lines'),
  [
    (b'a\nb\nc\nd\n', ['a', 'b', 'c', 'd']),
    (b'a\nb\nc\nd', ['a', 'b', 'c', 'd']),
    (b'a\r\n\r\nb\r\n', ['a', '', 'b']),
    (b'\na  \n\n', ['', 'a  ', '']),
    ('\ufeffé\x0ca\u2028b\x85c\n東 d e'.encode(), ['é\x0ca\u2028b\x85c', '東 d e']),
  ],
)
def test_the_lines_of_a_file_are_texts_in_their_order(tmp_path, contents, lines):
  (tmp_path / 'a.txt').write_bytes(contents)
  loaded = load(_language(tmp_path / 'a.txt'), 0)
  assert loaded.examples.arrays['x'].tolist() == lines
  assert (loaded.info.kind, loaded.info.task) == ('text', 'next_token')
  assert _split(loaded) == {'train': lines[:-1], 'test': lines[-1:]}


def test_files_by_part_are_splits(tmp_path):
  for part, lines in [('train', 'one two\nthree'), ('valid', 'four five'), ('test', 'six\n\nseven\n')]:
    (tmp_path / f'ptb.{part}.txt').write_text(lines)
  name = tmp_path / 'ptb.{train,valid,test}.txt'
  loaded = load(_language(name, validation='valid'), 0)
  expected = {'train': ['one two', 'three'], 'validation': ['four five'], 'test': ['six', '', 'seven']}
  assert _split(loaded) == expected
  record = loaded.preprocessing
  assert set(tokens.vocabulary(record['tokens'])) == {'<unk>', '<eos>', 'one', 'two', 'three'}
  inputs, counted, rows = loaded.evaluated('validation', record)
  assert (inputs['next'][inputs['next'] >= 0].tolist(), counted[counted >= 0].tolist()) == ([0, 1], [4, 1])
  np.testing.assert_array_equal(rows, loaded.splits['validation'])
  assert load(_language(name), 0).digest == loaded.digest
  (tmp_path / 'ptb.test.txt').write_text('six\n\neight\n')
  assert load(_language(name, validation='valid'), 0).digest != loaded.digest


def test_the_test_split_is_the_end_of_the_text_and_validation_the_end_of_what_remains(tmp_path):
  (tmp_path / 'a.txt').write_text('\n'.join(f'line {number}' for number in range(20)))
  for options, validation, test in [
    ({}, 0, 5),
    ({'test': 0.1}, 0, 2),
    ({'test': 0.01}, 0, 1),
    ({'test': 0.5, 'validation': 0.2}, 2, 10),
    ({'test': 0.1, 'validation': 3}, 3, 2),
    ({'test': 0.1, 'validation': 0.01}, 1, 2),
    ({'test': 0.1, 'validation': 1000}, 17, 2),
  ]:
    train = 20 - test - validation
    for seed in (0, 1):
      own = load(_language(tmp_path / 'a.txt', **options, split_seed=seed), seed).splits
      expected = {'train': range(train), 'validation': range(train, 20 - test), 'test': range(20 - test, 20)}
      assert {name: rows.tolist() for name, rows in own.items()} == {
        name: list(rows) for name, rows in expected.items() if validation or name != 'validation'
      }
  own = load(_language(tmp_path / 'a.txt', test=0.25, fraction=0.2), 0).splits
  assert (own['train'].tolist(), own['test'].tolist()) == ([0, 1, 2], [15, 16, 17, 18, 19])


@pytest.mark.parametrize(
  ('name', 'contents', 'says'),
  [
    ('a.txt', b'', r'a\.txt is empty'),
    ('a.txt', b'ab\ncd \xff e\n', r'a\.txt line 2: byte 4 of the line, 0xff, is not UTF-8'),
    ('a.txt', b'one line', 'the training split is empty'),
    ('a.txt', b'\n\n', 'tokens are too few'),
    ('gone/b.txt', b'a\nb\n', 'there is no folder'),
    ('b.txt', b'a\nb\n', r"no file '.*b\.txt'; nearest in '.*': a\.txt"),
    ('{train,test}.txt', b'a\nb\n', r"no file '.*train\.txt'; nearest in '.*': a\.txt"),
  ],
)
def test_a_file_that_is_unfit_or_missing_ends_in_one_message(tmp_path, name, contents, says):
  (tmp_path / 'a.txt').write_bytes(contents)
  with pytest.raises(UserError, match=says):
    loaded = load(_language(tmp_path / name), 0)
    loaded.count(loaded.preprocessing)


def test_a_text_too_short_for_its_splits_ends_in_one_message(tmp_path):
  (tmp_path / 'a.txt').write_text('a b c\nd e f\n')
  with pytest.raises(UserError):
    loaded = load(_language(tmp_path / 'a.txt', test=0.5, validation=1), 0)
    loaded.evaluated('validation', loaded.preprocessing)


def test_too_few_tokens_are_answered_with_the_key_that_asks_for_more(tmp_path):
  (tmp_path / 'a.txt').write_text('a b c\nd e f\ng h i\n')
  few = load(_language(tmp_path / 'a.txt', batch_size=64), 0)
  with pytest.raises(UserError, match=r'too few for 64 streams; nearest: data\.batch_size'):
    few.count(few.preprocessing)
  few = load(_language(tmp_path / 'a.txt', tokens={'streams': 64}), 0)
  with pytest.raises(UserError, match=r'too few for 64 streams; nearest: data\.tokens\.streams'):
    few.evaluated('test', few.preprocessing)


@pytest.mark.parametrize(
  ('options', 'says'),
  [
    ({'tokens': None}, r"next_token needs tokens, .* nearest: tokens=\{'length': 64\}"),
    ({'tokens': None, 'bag': {}}, 'next_token needs tokens'),
    ({'task': 'classification'}, "its task is next_token, not 'classification'"),
    ({'shots': 3}, 'shots: next_token reads texts from end to end'),
    ({'half': 1, 'last_batch': 'pad'}, 'half, last_batch: next_token reads'),
    ({'classes': [0, 1], 'train_classes': [1]}, 'classes, train_classes: next_token reads'),
    ({'keep_labels': 0.5}, 'keep_labels: next_token reads'),
    ({'sampling': 'balanced'}, 'balanced sampling: next_token reads'),
    ({'label': 'a'}, 'label is for npz, tfds'),
    ({'hash': 8}, 'hash is for tfds, csv'),
  ],
)
def test_what_a_language_model_cannot_have_is_one_message(options, says):
  with pytest.raises(UserError, match=says) as raised:
    _language('a.txt', **options)
  assert '\n' not in str(raised.value)


def test_texts_of_a_table_are_read_without_their_labels(tmp_path):
  rows = [f'{row % 3}\tfilm {row}' for row in range(8)]
  (tmp_path / 'a.tsv').write_text('\n'.join(['label\ttext', *rows]))
  options = {'columns': {'text': 'text'}, 'tokens': {'length': 3}, 'task': 'next_token', 'batch_size': 1}
  loaded = load(validate(Data, {'name': f'tsv:{tmp_path}/a.tsv', **options}), 0)
  assert _split(loaded) == {'train': [f'film {row}' for row in range(6)], 'test': ['film 6', 'film 7']}
  assert (loaded.info.classes, loaded.info.task, loaded.streams) == ((), 'next_token', 1)
  (tmp_path / 'b.tsv').write_text('\n'.join(['label\tz', *(f'{row % 3}\t{row}' for row in range(8))]))
  with pytest.raises(UserError, match=r"data\.task='next_token' is for texts"):
    load(validate(Data, {'name': f'tsv:{tmp_path}/b.tsv', **options, 'columns': {}}), 0)
