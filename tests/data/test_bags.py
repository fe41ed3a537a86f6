"""Bags of words against scikit-learn and counts by hand; and what `load` gives of tables of texts, read in any way."""

import collections
import json
import math
import re

import numpy as np
import pytest
import tokenizers
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from transferlab.config import validate
from transferlab.data import preprocessing, sources, texts, tokens
from transferlab.data.columns import Column
from transferlab.data.sources import Data, load
from transferlab.errors import UserError
from transferlab.preparation import prepare
from transferlab.settings import Run

WORDS = [f'{letter}{number}' for number in range(5) for letter in 'AbcdÉ'] + ['東京', '7', 'x']
RATES = np.arange(1, len(WORDS) + 1.0) ** 2 / np.sum(np.arange(1, len(WORDS) + 1.0) ** 2)


def _drawn(count, seed):
  random = np.random.default_rng(seed)
  return [' '.join(random.choice(WORDS, random.integers(0, 30), p=RATES)) for _ in range(count)]


TRAIN, TEST = _drawn(60, 0), [*_drawn(20, 1), '', 'only unseen', 'x, X! x']


def _bag(**options):
  return validate(texts.Bag, options)


def _of(given):
  return np.array(given, object)


def _counts(text, columns, lower=True):
  words = collections.Counter(re.findall(r'\w+', text.lower() if lower else text))
  return [words[column] for column in columns]


# ----------------------------------------------------------------------------------------------------- numbers of words
@pytest.mark.parametrize('limits', [{}, {'words': 9}, {'minimum': 20}, {'lower': False}], ids=str)
@pytest.mark.parametrize('weights', ['binary', 'counts', 'tfidf'])
def test_rows_are_those_of_scikit_learns_vectorizers(weights, limits):
  kind = TfidfVectorizer if weights == 'tfidf' else CountVectorizer
  own = {
    'max_features': limits.get('words'),
    'min_df': limits.get('minimum', 1),
    'lowercase': limits.get('lower', True),
  }
  expected = kind(token_pattern=r'(?u)\b\w+\b', **own).fit(TRAIN)
  record = texts.fit_bag(TRAIN, _bag(weights=weights, **limits))
  assert record['columns'] == expected.get_feature_names_out().tolist()
  for some in (TRAIN, TEST):
    x = texts.bags(_of(some), record)
    assert (x.dtype, x.shape) == (np.float32 if weights == 'tfidf' else np.uint8, (len(some), len(record['columns'])))
    rows = expected.transform(some).toarray()
    np.testing.assert_allclose(np.asarray(x), rows > 0 if weights == 'binary' else rows, rtol=1e-6)


def test_columns_are_the_most_frequent_words_of_training_and_rows_how_often_they_occur():
  """Counted by hand; equally frequent words stand beyond the limit."""
  total = collections.Counter(word for text in TRAIN for word in text.lower().split())
  ranked = sorted(total.values(), reverse=True)
  size = next(size for size in range(8, 20) if ranked[size - 1] > ranked[size])
  record = texts.fit_bag(TRAIN, _bag(words=size, weights='counts'))
  assert record['columns'] == sorted(sorted(total, key=total.get)[-size:])
  expected = [_counts(text, record['columns']) for text in TEST]
  assert np.asarray(texts.bags(_of(TEST), record)).tolist() == expected
  binary = {**record, 'bag': {**record['bag'], 'weights': 'binary'}}
  assert np.asarray(texts.bags(_of(TEST), binary)).tolist() == [[int(n > 0) for n in row] for row in expected]


def test_tfidf_is_counts_times_the_logarithm_of_rarity_at_length_one():
  record = texts.fit_bag(TRAIN, _bag(weights='tfidf'))
  columns = record['columns']
  rarity = [1 + math.log((1 + len(TRAIN)) / (1 + sum(column in text.lower().split() for text in TRAIN)))
            for column in columns]  # fmt: skip
  rows = np.array([_counts(text, columns) for text in TEST]) * rarity
  lengths = np.sqrt((rows**2).sum(1, keepdims=True))
  expected = rows / np.where(lengths > 0, lengths, 1)
  np.testing.assert_allclose(np.asarray(texts.bags(_of(TEST), record)), expected, rtol=1e-6)
  assert (expected[-3:-1] == 0).all()


def test_counts_stop_at_255_and_tfidf_goes_on():
  given = ['a ' * 254 + 'b ' * 255, 'a ' * 256 + 'b ' * 70_000]
  x = np.asarray(texts.bags(_of(given), texts.fit_bag(given, _bag(weights='counts'))))
  assert (x.dtype, x.tolist()) == (np.uint8, [[254, 255], [255, 255]])
  x = np.asarray(texts.bags(_of(given), texts.fit_bag(given, _bag(weights='tfidf'))))
  np.testing.assert_allclose(x[:, 1] / x[:, 0], [255 / 254, 70_000 / 256], rtol=1e-6)


def test_only_the_rows_that_are_asked_for_are_counted(monkeypatch):
  seen = []
  transform = CountVectorizer.transform
  monkeypatch.setattr(CountVectorizer, 'transform', lambda self, some: seen.extend(some) or transform(self, some))
  record = texts.fit_bag(TRAIN, _bag(weights='counts'))
  x = texts.bags(_of(TEST), record)
  assert isinstance(x, Column) and not seen
  rows = x.take(np.array([4, 2, 4]))
  assert not seen
  assert rows[1:].tolist() == [_counts(TEST[row], record['columns']) for row in (2, 4)]
  assert seen == [TEST[2], TEST[4]]


def test_the_digest_follows_texts_words_and_weights():
  record = texts.fit_bag(TRAIN, _bag())
  others = [texts.fit_bag(TRAIN, _bag(**how)) for how in ({'weights': 'counts'}, {'words': 5}, {'weights': 'tfidf'})]
  changed = {**others[2], 'bag': {**others[2]['bag'], 'idf': [2 * own for own in others[2]['bag']['idf']]}}
  digests = [texts.bags(_of(TEST), own).digest for own in (record, *others, changed)]
  digests += [texts.bags(_of([*TEST[:-1], given]), record).digest for given in ('x, X! y', 'x, X! \ud800')]
  assert len(set(digests)) == 7 and texts.bags(_of(TEST), json.loads(json.dumps(record))).digest == digests[0]


def test_texts_without_any_word_end_in_one_message():
  with pytest.raises(UserError, match=r'data\.bag: empty vocabulary.* \(of 2 training texts\)'):
    texts.fit_bag(['?', ''], _bag())


# -------------------------------------------------------------------------------------------------------------- load
FILMS = [f'{"good" if row % 2 else "bad"} film number {row} word{row}' for row in range(24)]


@pytest.fixture
def films(tmp_path):
  """`films(**options)`: settings of a table of texts, a third of them for testing."""
  for name, rows in [('train', range(16)), ('test', range(16, 24))]:
    lines = [f'{row % 2}\t{FILMS[row]}\n' for row in rows]
    (tmp_path / f'films-{name}.tsv').write_text('label\ttext\n' + ''.join(lines))
  base = {'name': f'tsv:{tmp_path}/films-{{train,test}}.tsv', 'columns': {'text': 'text'}}
  return lambda **options: validate(Data, {**base, **options})


def _json_file(folder, words):
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel({'<unk>': 0, **words}, unk_token='<unk>'))
  made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  made.save(str(folder / 'tokenizer.json'))
  return str(folder / 'tokenizer.json')


@pytest.mark.parametrize('hold', ['device', 'stream'])
def test_a_loaded_bag_has_the_words_of_the_training_split_alone_and_is_not_scaled(films, hold):
  loaded = load(films(bag={'weights': 'counts'}, hold=hold), 0)
  columns = sorted({word for text in FILMS[:16] for word in text.split()})
  record = loaded.preprocessing
  assert (record['columns'], record['input_shape'], record['kind']) == (columns, [len(columns)], 'table')
  for split, rows in [('train', range(16)), ('test', range(16, 24))]:
    x, label, ids = loaded.evaluated(split, record)
    assert (ids.tolist(), label.tolist()) == (list(rows), [row % 2 for row in rows])
    assert np.asarray(x).tolist() == [_counts(FILMS[row], columns) for row in rows]
    scaled = preprocessing.apply(np.asarray(x), record['shift'], record['scale'])
    assert scaled.dtype == np.float32 and scaled.tolist() == np.asarray(x).tolist()


def test_a_target_counts_the_words_of_its_source(films):
  source = texts.fit_bag(['word20 film', 'film'], _bag(weights='tfidf'))
  loaded = load(films(bag={'weights': 'counts'}), 0)
  record, said = preprocessing.reuse(source, loaded.preprocessing)
  assert record == source and '2 words' in ''.join(said)
  x = np.asarray(loaded.evaluated('test', record)[0])
  expected = TfidfVectorizer().fit(['word20 film', 'film']).transform(FILMS[16:]).toarray()
  np.testing.assert_allclose(x, expected, rtol=1e-6)


def test_the_vocabulary_is_that_of_the_training_split_alone(films):
  loaded = load(films(tokens={'length': 6}), 0)
  times = collections.Counter(word for text in FILMS[:16] for word in text.split())
  expected = ['<unk>', '<eos>', *sorted(times, key=lambda word: (-times[word], word))]
  assert tokens.vocabulary(loaded.preprocessing['tokens']) == expected
  assert loaded.preprocessing['input_shape'] == [6]
  number = {word: place for place, word in enumerate(expected)}
  for split, rows in [('train', range(16)), ('test', range(16, 24))]:
    x, label, ids = loaded.evaluated(split, loaded.preprocessing)
    assert (ids.tolist(), label.tolist()) == (list(rows), [row % 2 for row in rows])
    assert x.tolist() == [[*(number.get(word, 0) for word in FILMS[row].split()), -1] for row in rows]
    np.testing.assert_array_equal(loaded.arrays(loaded.splits[split], loaded.preprocessing)['x'], x)
  assert (x[:, 3:5] == 0).all() and (x[:, :3] > 0).all()


@pytest.mark.parametrize('name', ['bytes', 'tokenizer.json'])
def test_tokenizers_that_are_not_trained_are_loaded_too(films, tmp_path, name):
  given = _json_file(tmp_path, {'film': 5}) if name != 'bytes' else name
  loaded = load(films(tokens={'tokenizer': given, 'length': 4}), 0)
  x = loaded.evaluated('test', loaded.preprocessing)[0]
  if name == 'bytes':
    assert [tokens.decode(row, loaded.preprocessing['tokens']) for row in x] == [text[:4] for text in FILMS[16:]]
  else:
    assert x.tolist() == [[0, 5, 0, 0]] * 8


@pytest.mark.parametrize('kind', ['table', 'mixture'])
def test_a_changed_tokenizer_file_is_read_anew_and_changes_the_digest(films, tmp_path, kind):
  one = films().model_dump(include={'name', 'columns'})
  mixture = {'name': 'mixture', 'sets': {'a': one, 'b': {**one, 'train': 'train[:8]'}}}

  def seen(word):
    how = {'tokens': {'tokenizer': _json_file(tmp_path, {word: 1}), 'length': 3}}
    loaded = load(validate(Data, {**(one if kind == 'table' else mixture), **how}), 0)
    return loaded.digest, tokens.vocabulary(loaded.preprocessing['tokens'])[1]

  first, other, again = (seen(word) for word in ('film', 'numbers', 'film'))
  assert (first[1], other[1]) == ('film', 'numbers')
  assert first == again and first[0] != other[0]


def test_a_target_takes_its_sources_tokenizer_and_keeps_its_own_length(films):
  source = load(films(tokens={'length': 6}), 0).preprocessing
  own = {'length': 9, 'cut': 'start', 'streams': 2, 'buckets': [4]}
  options = validate(tokens.Tokens, {'tokenizer': 'characters', **own})
  target = preprocessing.fit_texts(['other words'], None, options)
  record, said = preprocessing.reuse(source, target)
  assert record['tokens'] == {**own, 'tokenizer': source['tokens']['tokenizer']}
  assert (record['input_shape'], record['kind']) == ([9], 'text')
  example = preprocessing.example(record, 5)
  assert (example.shape, example.dtype) == ((5, 9), np.int32)
  assert f'{len(tokens.vocabulary(source["tokens"]))} tokens' in ''.join(said)


def test_texts_read_in_another_way_than_the_sources_cannot_reuse_its_preprocessing(films):
  by_tokens, by_bag = (load(films(**how), 0).preprocessing for how in ({'tokens': {}}, {'bag': {}}))
  table = preprocessing.fit(np.zeros((2, 1), np.float32), sources.Info('table', 'regression', columns=('a',)), False)
  for one, other in [(by_tokens, by_bag), (by_tokens, table), (by_bag, table)]:
    for source, target in [(one, other), (other, one)]:
      with pytest.raises(UserError, match='preprocessing cannot be reused'):
        preprocessing.reuse(source, target)


def test_numbers_of_tokens_pass_the_scaling_of_inputs_as_they_are():
  ids = np.array([[3, 300_000_001, -1]], np.int32)
  result = preprocessing.apply(ids, [], [])
  assert (result.dtype, result.tolist()) == (np.int32, [[3, 300_000_001, -1]])


@pytest.mark.parametrize(
  ('options', 'says'),
  [
    ({'tokens': {}, 'noise': 0.1}, r'data\.noise is for numbers, and tsv:.* holds texts'),
    ({'bag': {}, 'noise': 0.1}, r'data\.noise is for numbers'),
    ({'tokens': {}, 'standardize': True}, r'data\.standardize is for numbers'),
    ({'bag': {}, 'standardize': True}, r'data\.standardize is for numbers'),
    ({'tokens': {}, 'rotation': 3.0}, r'data\.rotation is for images'),
    ({'tokens': {}, 'columns': {'text': 'category'}}, r'data\.tokens is for texts'),
    ({'bag': {}, 'columns': {'text': 'category'}}, r'data\.bag is for texts'),
    ({'tokens': {}, 'hash': 4}, 'hash and tokens are ways to read texts that exclude each other'),
    ({'tokens': {}, 'bag': {}}, 'bag and tokens are ways to read texts that exclude each other'),
    ({'hash': 4, 'bag': {}}, 'hash and bag are ways to read texts that exclude each other'),
    ({'name': 'digits', 'columns': {}, 'tokens': {}}, 'tokens is for tfds, text, csv.*none in .digits'),
    ({'name': 'digits', 'columns': {}, 'bag': {}}, 'bag is for tfds, text, csv.*none in .digits'),
  ],
)
def test_what_texts_cannot_have_and_what_needs_texts_is_refused(films, options, says):
  with pytest.raises(UserError, match=says):
    load(films(**options), 0)


@pytest.mark.parametrize('how', ['tokens', 'bag', 'hash'])
def test_half_a_surrogate_pair_is_read_in_every_way_as_the_sign_for_what_is_no_letter(tmp_path, how):
  def rows(odd):
    lines = [json.dumps({'label': row % 2, 'text': f'aa {odd} b{row}'}) for row in range(16)]
    (tmp_path / 'odd.jsonl').write_text('\n'.join(lines))
    options = {how: 8 if how == 'hash' else {}, 'columns': {'text': 'text'}}
    loaded = load(validate(Data, {'name': f'jsonl:{tmp_path}/odd.jsonl', **options}), 0)
    return np.asarray(loaded.evaluated('train', loaded.preprocessing)[0])

  assert rows('\ufffd').any()
  np.testing.assert_array_equal(rows('\ud800'), rows('\ufffd'))


def test_texts_that_nothing_reads_are_answered_with_the_ways_there_are(films, tiny):
  with pytest.raises(UserError, match=r'films-.*tsv holds texts: data\.tokens .*data\.bag or data\.hash'):
    prepare(validate(Run, tiny(target={'data': films().model_dump(exclude_defaults=True)})))
