"""Tokens: numbers against counts and merges made by hand, the way back to texts, records, and files of tokenizers."""

import collections
import itertools
import json
import re
import subprocess
import sys
import time
import unicodedata

import numpy as np
import pytest
import tokenizers

from transferlab.config import validate
from transferlab.data import tokens
from transferlab.errors import UserError

LETTERS = list('ab AB .,!? éÉ東京😀\n\tß<')
ODD = [*LETTERS, 'İ', '\u0301', '\u200d', '\ufffd']  # what Python's regular expressions see otherwise


def _drawn(letters):
  return [''.join(np.random.default_rng(row).choice(letters, 40)) for row in range(30)]


TEXTS, ODDITIES = _drawn(LETTERS), _drawn(ODD)
PLAIN = ['the cat sat on the mat', 'the mat is the hat of that cat', 'a cat', 'what hat is that']
NAMES = [*tokens.TRAINED, 'bytes']


def _fit(texts, tokenizer='words', **options):
  return tokens.fit(texts, validate(tokens.Tokens, {'tokenizer': tokenizer, **options}))


def _padded(rows, length):
  return [[*row[:length], *[-1] * (length - len(row))] for row in rows]


def _most_frequent(pieces, vocabulary=10_000, minimum=1):
  """<unk>, <eos>, then by how often they occur; equally frequent ones in alphabetical order."""
  ranked = sorted(((-times, piece) for piece, times in collections.Counter(pieces).items() if times >= minimum))
  return ['<unk>', '<eos>', *(piece for _, piece in ranked)][:vocabulary]


def _words(text, lower=True):
  text = unicodedata.normalize('NFC', text)
  return re.findall(r'\w+|[^\w\s]+', text.lower() if lower else text)


# ------------------------------------------------------------------------------------------- numbers against a count
SPLIT = {
  'words': (lambda text: _words(text), {}),
  'words as written': (lambda text: _words(text, lower=False), {'lower': False}),
  'spaces': (lambda text: unicodedata.normalize('NFC', text).lower().split(), {}),
  'characters': (list, {}),
}


@pytest.mark.parametrize('limits', [{}, {'vocabulary': 7}, {'minimum': 4}, {'vocabulary': 2}], ids=str)
@pytest.mark.parametrize('name', SPLIT)
def test_pieces_are_numbered_by_how_often_they_occur_in_training_and_others_are_unknown(name, limits):
  split, options = SPLIT[name]
  texts, unseen = TEXTS, ['zebra a ! ', '']
  record = _fit(texts, name.split()[0], length=64, **options, **limits)
  expected = _most_frequent([piece for text in texts for piece in split(text)], **limits)
  assert tokens.vocabulary(record) == expected
  numbers = {piece: number for number, piece in enumerate(expected)}
  rows = [[numbers.get(piece, 0) for piece in split(text)] for text in texts + unseen]
  assert tokens.encode(texts + unseen, record).tolist() == _padded(rows, 64)


def test_words_written_with_combining_accents_are_those_with_composed_ones():
  record = _fit(['caf\u00e9 cafe\u0301 NA\u0308IV'], length=3)
  assert tokens.vocabulary(record) == ['<unk>', '<eos>', 'café', 'näiv']
  assert tokens.encode(['Cafe\u0301 na\u0308iv cafe'], record).tolist() == [[2, 3, 0]]


def test_bytes_have_a_number_each_for_every_byte_of_utf8():
  record, numbers = _fit([], 'bytes', length=200), {}
  for text in [*TEXTS, ''.join(map(chr, range(1, 0x800))), '\0 東 😀']:
    for start in range(0, len(text), 40):
      part = text[start : start + 40]
      ids = [number for number in tokens.encode([part], record)[0].tolist() if number >= 0]
      assert len(ids) == len(part.encode())
      for byte, number in zip(part.encode(), ids):
        assert numbers.setdefault(byte, number) == number
  assert len(set(numbers.values())) == len(numbers) > 180
  assert len(tokens.vocabulary(record)) == 257 and tokens.end_of(record) not in numbers.values()


def _byte_pairs(texts, size):
  """Merges of the most frequent neighbours (equally frequent: of the lowest numbers), and each word's numbers."""
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())  # how the library writes bytes; a space is Ġ
  number = {letter: place for place, letter in enumerate(['<eos>', *letters])}
  spelt = lambda word: [number[letter] for letter in word.replace(' ', 'Ġ')]
  words = collections.Counter(word for text in texts for word in re.findall(r' ?[a-z]+', text))
  parts, merges = {word: spelt(word) for word in words}, {}
  while len(number) + len(merges) < size:
    pairs = collections.Counter()
    for word, own in parts.items():
      for pair in itertools.pairwise(own):
        pairs[pair] += words[word]
    if not pairs:
      break
    best = min(pairs, key=lambda pair: (-pairs[pair], pair))
    merges[best] = len(number) + len(merges)
    parts = {word: _merged(own, best, merges[best]) for word, own in parts.items()}

  def encoded(text):
    ids = []
    for own in map(spelt, re.findall(r' ?[a-z]+', text)):
      for pair, merged in merges.items():
        own = _merged(own, pair, merged)
      ids += own
    return ids

  return encoded, len(number) + len(merges)


def _merged(ids, pair, new):
  result = []
  for each in ids:
    if result and (result[-1], each) == pair:
      result[-1] = new
    else:
      result.append(each)
  return result


@pytest.mark.parametrize('size', [257, 260, 265, 400])
def test_byte_pairs_merge_the_most_frequent_neighbours(size):
  record = _fit(PLAIN, 'bpe', vocabulary=size, length=40)
  encoded, known = _byte_pairs(PLAIN, size)
  assert len(tokens.vocabulary(record)) == known
  texts = [*PLAIN, 'that thatch', 'zoo on the cat', '']
  assert tokens.encode(texts, record).tolist() == _padded([encoded(text) for text in texts], 40)


def test_word_pieces_are_the_longest_ones_known_from_the_left():
  record = _fit(PLAIN, 'wordpiece', vocabulary=26, length=30)
  names = tokens.vocabulary(record)
  number = {name: place for place, name in enumerate(names)}
  words = {word for text in PLAIN for word in text.split()}
  letters = {letter for word in words for letter in (*word, *(f'##{later}' for later in word[1:]))}
  assert (len(number), names[:2]) == (26, ['<unk>', '<eos>'])
  assert letters < set(names) and '##at' in names

  def pieces(word):
    ids, start = [], 0
    while start < len(word):
      ends = [end for end in range(len(word), start, -1) if ('##' * (start > 0) + word[start:end]) in number]
      if not ends:
        return [0]
      ids.append(number['##' * (start > 0) + word[start : ends[0]]])
      start = ends[0]
    return ids

  texts = [*PLAIN, 'The CAT hats, what?', 'chat thesis zoo', 'thé']
  plain = [re.findall(r'\w+|[^\w\s]', text.lower().replace('é', 'e')) for text in texts]
  assert tokens.encode(texts, record).tolist() == _padded(
    [list(itertools.chain(*map(pieces, words))) for words in plain], 30
  )


# ---------------------------------------------------------------------------------------------- shape, and the way back
@pytest.mark.parametrize('name', ['bytes', 'bpe', 'characters'])
def test_texts_survive_the_way_to_numbers_and_back(name):
  record = _fit(ODDITIES, name, length=200)
  unseen = ['😀\r\n\t naïve  cafe\u0301 ', '\u2028\ufeff\0', 'zebra'] if name != 'characters' else ['😀😀\n\n ab']
  for text in [*ODDITIES, *unseen, '   ', '']:
    assert tokens.decode(tokens.encode([text], record)[0], record) == text


@pytest.mark.parametrize('name', NAMES)
def test_rows_end_in_padding_and_long_texts_lose_their_end_or_their_start(name):
  texts, record = ['', *ODDITIES, ' '.join(PLAIN * 9)], _fit(ODDITIES, name)
  whole = [ids for ids, _, _ in tokens.located(texts, record)]
  for cut, kept in [('end', slice(None, 9)), ('start', slice(-9, None))]:
    rows = tokens.encode(texts, {**record, 'length': 9, 'cut': cut})
    assert (rows.dtype, rows.shape) == (np.int32, (32, 9))
    assert rows.tolist() == _padded([ids[kept] for ids in whole], 9)
  assert set(rows[0].tolist()) == {-1}
  rows = tokens.encode(texts * 60, {**record, 'length': 300})  # in several parts
  assert rows.tolist() == _padded(whole, 300) * 60


@pytest.mark.long
@pytest.mark.parametrize('name', NAMES)
def test_a_text_of_a_million_tokens_is_encoded_in_seconds(name):
  record = _fit(PLAIN, name, length=16, cut='start')
  expected = tokens.encode(['cat the ' * 100], record)
  start = time.process_time()
  np.testing.assert_array_equal(tokens.encode(['cat the ' * 500_000], record), expected)
  assert (tokens.encode(['c' * 1_000_000], record)[0, -2:] == -1).all() == (name in ('words', 'spaces', 'wordpiece'))
  assert time.process_time() - start < 20


def test_special_tokens_written_in_a_text_are_these_tokens():
  record = _fit(['a < unk b > eos'], length=6)
  assert tokens.encode(['a <unk> b', 'a<eos>b'], record).tolist() == [[4, 0, 5, -1, -1, -1], [4, 1, 5, -1, -1, -1]]
  assert tokens.encode(['<eos>'], _fit([], 'bytes', length=3)).tolist() == [[256, -1, -1]]


@pytest.mark.parametrize('name', ['words', 'characters', 'bytes', 'bpe'])
def test_halves_of_surrogate_pairs_are_replaced_and_whole_pairs_are_their_letter(name):
  record = _fit(['x \ufffd y', '😀 z', '\udfff'], name, length=20)
  odd, even = ['x \ud800 y', '\ud83d\ude00 z', 'z\udc00'], ['x \ufffd y', '😀 z', 'z\ufffd']
  np.testing.assert_array_equal(tokens.encode(odd, record), tokens.encode(even, record))
  assert tokens.encode(odd, record)[:, 0].min() > 0


def test_padding_is_passed_over_on_the_way_back():
  record = _fit(PLAIN)
  assert tokens.decode([-1, *tokens.encode(['the cat'], record)[0], -1], record) == 'the cat'


# ------------------------------------------------------------------------------------------------------------ record
ALIKE = [' '.join(f'{a}{b}{a}' for b in 'xyzuvw') for a in 'abcdefgh']  # many pieces that are equally frequent
LIMITS = {'words': 30, 'spaces': 30, 'characters': 9, 'bpe': 280, 'wordpiece': 40}


@pytest.fixture(scope='module')
def another_process():
  """What a process of its own makes of `ALIKE`, by tokenizer: the record, and the numbers."""
  code = (
    'import json, sys; from transferlab.data import tokens; texts, limits = json.load(sys.stdin); made = {}\n'
    'for name, size in limits.items():\n'
    '  own = tokens.fit(texts, tokens.Tokens(tokenizer=name, vocabulary=size, length=60))\n'
    '  made[name] = [own, tokens.encode(texts, own).tolist()]\n'
    'print(json.dumps(made))'
  )
  given = json.dumps([ALIKE, LIMITS])
  done = subprocess.run([sys.executable, '-c', code], input=given, capture_output=True, text=True, check=True)
  return json.loads(done.stdout)


@pytest.mark.parametrize('name', LIMITS)
def test_a_tokenizer_is_trained_to_the_same_record_in_every_process(name, another_process):
  record, ids = another_process[name]
  own = _fit(ALIKE, name, vocabulary=LIMITS[name], length=60)
  assert tokens.vocabulary(own) == tokens.vocabulary(record)
  assert own == record
  assert tokens.encode(ALIKE, own).tolist() == ids


@pytest.mark.parametrize('name', LIMITS)
def test_a_record_from_json_gives_the_numbers_that_it_gave_in_another_process(name, another_process):
  record, ids = another_process[name]
  assert tokens.encode(ALIKE, record).tolist() == ids


def test_a_record_holds_lengths_and_buckets_as_they_were_asked_for():
  record = _fit([], 'bytes', length=32, cut='start', streams=3, buckets=[4, 8])
  assert {**record, 'tokenizer': None} == {
    'tokenizer': None, 'length': 32, 'cut': 'start', 'streams': 3, 'buckets': [4, 8],
  }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- files
BERT = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'cat', '##s', '##ting', 'e']


def _vocabulary_file(folder, lines, name='vocab.txt'):
  (folder / name).write_text('\n'.join(lines) + '\n')
  return str(folder / name)


def _json_file(folder, numbers, **options):
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, **{'unk_token': '<unk>', **options}))
  made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  made.enable_truncation(2)
  made.enable_padding(length=2)
  made.save(str(folder / 'tokenizer.json'))
  return str(folder / 'tokenizer.json')


def test_a_tokenizer_in_the_librarys_json_is_read_without_its_own_padding_and_truncation(tmp_path):
  record = _fit(PLAIN, _json_file(tmp_path, {'The': 7, 'cat': 2, '</s>': 4, '<unk>': 0}), length=4)
  assert tokens.encode(['cat The the cat cat', 'cat', ''], record).tolist() == [[2, 7, 0, 2], [2, -1, -1, -1], [-1] * 4]
  assert tokens.vocabulary(record) == ['<unk>', '', 'cat', '', '</s>', '', '', 'The']
  assert tokens.end_of(record) == 4
  assert [*tokens.located(['cat  The cat'], record)] == [([2, 7, 2], [0, 5, 9], 12)]


def test_a_vocabulary_file_is_word_pieces_between_cls_and_sep(tmp_path):
  record = _fit([], _vocabulary_file(tmp_path, BERT), length=6)
  rows = tokens.encode(['The cats é dog', 'CAT', '', 'cat ' * 9], record)
  assert rows.tolist() == [[2, 5, 6, 7, 9, 3], [2, 6, 3, -1, -1, -1], [2, 3, -1, -1, -1, -1], [2, 6, 6, 6, 6, 3]]
  assert tokens.end_of(record) == 3
  assert [*tokens.located(['the cats'], record)] == [([5, 6, 7], [0, 4, 7], 8)]


def test_a_vocabulary_file_with_capitals_reads_texts_as_written(tmp_path):
  record = _fit([], _vocabulary_file(tmp_path, [*BERT, 'The']), length=6)
  assert tokens.encode(['The the THE é'], record).tolist() == [[2, 10, 5, 1, 1, 3]]


def test_the_end_of_a_text_is_that_of_the_file_or_missing(tmp_path):
  with pytest.raises(UserError, match=r'data\.tokens\.tokenizer: .* no token that ends a text: <eos>, </s>'):
    tokens.end_of(_fit([], _json_file(tmp_path, {'<unk>': 0})))
  numbers = {'<unk>': 0, '[SEP]': 1, '<|endoftext|>': 2, '</s>': 3}
  assert tokens.end_of(_fit([], _json_file(tmp_path, numbers))) == 3


@pytest.mark.parametrize(
  ('name', 'contents', 'says'),
  [
    ('gone.json', None, "no file '.*gone.json'"),
    ('gone.txt', None, "no file '.*gone.txt'"),
    ('tokenizer.json', b'{"version": "1.0", ', 'tokenizer.json is no tokenizer: EOF'),
    ('tokenizer.json', b'[]', 'is no tokenizer: invalid type'),
    ('tokenizer.json', b'\xff\xfe\0', 'is no tokenizer: .*UTF-8'),
    ('vocab.txt', b'\xff\xfe\0', 'is no tokenizer: .*utf-8'),
    ('vocab.txt', b'the\ncat\n', 'is no tokenizer: .*not found in the vocabulary'),
    ('vocab.txt', b'', 'is no tokenizer: .*not found in the vocabulary'),
  ],
)
def test_a_file_that_is_missing_or_damaged_is_named(tmp_path, name, contents, says):
  if contents is not None:
    (tmp_path / name).write_bytes(contents)
  with pytest.raises(UserError, match=rf'^data\.tokens\.tokenizer: .*{says}'):
    _fit(PLAIN, str(tmp_path / name))


@pytest.mark.parametrize('kind', ['json', 'txt'])
def test_a_file_without_a_token_for_unknown_words_is_refused_before_it_meets_one(tmp_path, kind):
  lines = [line for line in BERT if line != '[UNK]']
  path = _json_file(tmp_path, {'the': 0}) if kind == 'json' else _vocabulary_file(tmp_path, lines)
  with pytest.raises(UserError, match=r'data\.tokens'):
    tokens.encode(['the dog'], _fit([], path))


# ------------------------------------------------------------------------------------------------------------ config
@pytest.mark.parametrize(
  ('options', 'says'),
  [
    ({'tokenizer': 'wordpeice'}, "unknown tokenizer 'wordpeice'; nearest: wordpiece"),
    ({'tokenizer': 'char'}, 'nearest: characters'),
    ({'tokenizer': 'vocab.tx'}, 'nearest: vocab.txt'),
    ({'buckets': [8, 4], 'length': 16}, 'buckets should grow, and be less than the length, 16'),
    ({'buckets': [4, 4], 'length': 16}, 'buckets should grow'),
    ({'buckets': [4, 16], 'length': 16}, 'buckets should grow'),
    ({'tokenizer': 'mine.json', 'vocabulary': 100}, 'for tokenizers that are trained, not for mine.json'),
    ({'tokenizer': 'vocab.txt', 'lower': False}, 'for tokenizers that are trained, not for vocab.txt'),
    ({'tokenizer': 'bytes', 'minimum': 2}, 'for tokenizers that are trained, not for bytes'),
    ({'vocabulary': 1}, 'vocabulary: .*greater than or equal to 2'),
    ({'length': 0}, 'length: .*greater than 0'),
    ({'cut': 'middle'}, "cut: .*'end' or 'start'"),
  ],
)
def test_mistakes_in_a_config_of_tokens_are_named(options, says):
  with pytest.raises(UserError, match=says):
    validate(tokens.Tokens, options)
