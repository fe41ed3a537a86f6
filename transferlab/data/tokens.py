"""Texts as numbers of tokens: what a config may say of them, tokenizers that are trained or read, and padded rows.

A tokenizer is one of the `tokenizers` library, held in the preprocessing record as that library's JSON, so that it
travels with the weights. Padding is −1, whatever the vocabulary is, so that no token can be taken for it.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from pydantic import Field

from transferlab.config import Positive, Schema
from transferlab.errors import UserError, unknown

PAD = -1
UNKNOWN, END = '<unk>', '<eos>'
ENDS = (END, '</s>', '<|endoftext|>', '[SEP]')
AT_ONCE = 1024  # texts that are encoded at a time: what the library gives for each takes memory


class Tokens(Schema):
  """How texts become numbers of tokens."""

  tokenizer: str = Field(
    'words',
    description='trained on the training split: words (and punctuation), spaces (what stands between them), wordpiece, '
    'bpe (of bytes), characters; bytes, which need no training; or a file, tokenizer.json or vocab.txt (WordPiece)',
  )
  vocabulary: Annotated[int, Field(ge=2, le=2**24)] = Field(
    10_000,
    description='tokens of a trained tokenizer, the most frequent ones; others are <unk>. The letters of wordpiece and '
    'the 256 bytes of bpe have their numbers in any case',
  )
  minimum: Positive = Field(
    1, description='how often a token (of bpe and wordpiece: a pair of them) has to occur to have a number'
  )
  lower: bool | None = Field(None, description='letters in lower case; None: for words, spaces and wordpiece')
  length: Annotated[int, Field(gt=0, le=2**20)] = Field(256, description='tokens of an example; longer texts are cut')
  cut: Literal['end', 'start'] = Field('end', description='which part of a long text is dropped')
  streams: Positive = Field(
    1,
    description='language models: parts in which what is evaluated is read, each from an empty state; 1: the whole '
    'split is one text, and takes as long as it is',
  )
  buckets: list[Positive] = Field(
    [], description='lengths below `length` that batches may have: texts of like lengths share a batch'
  )

  @pydantic.field_validator('tokenizer')
  @classmethod
  def _known(cls, name: str) -> str:
    if name not in (*TRAINED, 'bytes') and not name.endswith(('.json', '.txt')):
      raise ValueError(str(unknown('tokenizer', name, [*TRAINED, 'bytes', 'tokenizer.json', 'vocab.txt'])))
    return os.path.expanduser(name)

  @pydantic.model_validator(mode='after')
  def _increasing(self) -> 'Tokens':
    if sorted({*self.buckets, self.length}) != [*self.buckets, self.length]:
      raise ValueError(f'buckets should grow, and be less than the length, {self.length}')
    fields = type(self).model_fields
    fitted = [key for key in ('vocabulary', 'minimum', 'lower') if getattr(self, key) != fields[key].default]
    if self.tokenizer not in TRAINED and fitted:
      raise ValueError(f'{", ".join(fitted)}: for tokenizers that are trained, not for {self.tokenizer}')
    return self

  @property
  def file(self) -> Path | None:
    """Of the tokenizer, where it is read."""
    return None if self.tokenizer in (*TRAINED, 'bytes') else Path(self.tokenizer)


def fit(texts: Sequence[str], tokens: Tokens) -> dict[str, Any]:
  """What a record holds of tokens: 'tokenizer' (the library's JSON), 'length', 'cut', 'streams', 'buckets'.

  Args:
    texts: of the training split.

  Raises:
    UserError: a file that is none of a tokenizer, or no room for the tokens that it puts around every text.
  """
  if tokens.file is not None:
    made = _read(tokens.file)
  elif tokens.tokenizer == 'bytes':
    made = _bytes()
  else:
    made = TRAINED[tokens.tokenizer](tokens, [clean(text) for text in texts])
  if (around := made.num_special_tokens_to_add(False)) >= tokens.length:
    what = f'{tokens.length} leaves no room beside the {around} tokens that the tokenizer puts around every text'
    raise UserError(f'data.tokens.length: {what}')
  shape = tokens.model_dump(include={'length', 'cut', 'streams', 'buckets'})
  return {'tokenizer': made.to_str(), **shape}


def vocabulary(record: Mapping[str, Any]) -> list[str]:
  """The token of each number; '' for numbers that have none, as those of rows that an embedding has beyond them."""
  names = list(_vocabulary(record['tokenizer']))
  return names + [''] * (record.get('size', 0) - len(names))


@functools.lru_cache(maxsize=16)
def _vocabulary(text: str) -> tuple[str, ...]:
  numbers = _tokenizer(text).get_vocab(with_added_tokens=True)
  names = [''] * (max(numbers.values()) + 1)
  for name, number in numbers.items():
    names[number] = name
  return tuple(names)


def encode(texts: Sequence[str], record: Mapping[str, Any]) -> np.ndarray:
  """int32 [texts, length]: the numbers of each text's tokens, cut to the record's length; −1 behind its end."""
  ids = np.full((len(texts), record['length']), PAD, np.int32)
  tokenizer = _tokenizer(record['tokenizer'], record['length'], record['cut'])
  for start in range(0, len(texts), AT_ONCE):
    some = [clean(text) for text in texts[start : start + AT_ONCE]]
    for row, encoding in enumerate(tokenizer.encode_batch_fast(some), start):
      ids[row, : len(encoding.ids)] = encoding.ids
  return ids


def located(texts: Sequence[str], record: Mapping[str, Any]) -> Iterator[tuple[list[int], list[int], int]]:
  """Of each text the numbers of its tokens, all of them, where in the text each begins, and the text's length.

  Tokens that a tokenizer puts around every text are left out.
  """
  tokenizer = _tokenizer(record['tokenizer'])
  for start in range(0, len(texts), AT_ONCE):
    some = [clean(text) for text in texts[start : start + AT_ONCE]]
    for text, encoding in zip(some, tokenizer.encode_batch(some, add_special_tokens=False)):
      yield encoding.ids, [begin for begin, _ in encoding.offsets], len(text)


def end_of(record: Mapping[str, Any]) -> int:
  """The number of the token that ends a text in a stream. Raises `UserError` where a tokenizer read has none."""
  known = _tokenizer(record['tokenizer']).get_vocab(with_added_tokens=True)
  found = [known[name] for name in ENDS if name in known]
  if not found:
    raise UserError(f'data.tokens.tokenizer: its vocabulary has no token that ends a text: {", ".join(ENDS)}')
  return found[0]


def decode(ids: Iterable[int], record: Mapping[str, Any]) -> str:
  """The text of these tokens; padding is passed over."""
  return _tokenizer(record['tokenizer']).decode([int(number) for number in ids if number >= 0])


def clean(text: str) -> str:
  """The text without halves of surrogate pairs, which no encoding of Unicode has."""
  return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') if not text.isascii() else text


@functools.lru_cache(maxsize=32)
def _tokenizer(text: str, length: int | None = None, cut: str = 'end') -> Any:
  import tokenizers

  made = tokenizers.Tokenizer.from_str(text)
  made.no_padding()
  made.no_truncation()
  if length is not None:
    made.enable_truncation(length, direction='right' if cut == 'end' else 'left')
  return made


# ----------------------------------------------------------------------------------------------------- tokenizers
def _read(file: Path) -> Any:
  """A tokenizer in the library's JSON, or WordPiece with the vocabulary of a file of one token a line."""
  import tokenizers
  from tokenizers.implementations import BertWordPieceTokenizer

  if not file.is_file():
    raise UserError(f'data.tokens.tokenizer: no file {str(file)!r}')
  try:
    if file.suffix == '.json':
      made = tokenizers.Tokenizer.from_file(str(file))
    else:
      made = BertWordPieceTokenizer(str(file), lowercase=_lowercase(file))._tokenizer
    made.encode('\N{SNOWMAN} zqxj')  # what no vocabulary knows
    return made
  except Exception as error:  # the library raises nothing more special
    raise UserError(f'data.tokens.tokenizer: {file} is no tokenizer: {error}') from None


def _lowercase(file: Path) -> bool:
  """Whether a vocabulary has no word with a capital, special tokens such as [CLS] aside."""
  words = [line for line in file.read_text('utf-8').splitlines() if not line.startswith('[')]
  return not any(word != word.lower() for word in words)


def _word_level(tokens: Tokens, texts: Iterable[str], split: Any, words: bool = True) -> Any:
  """Numbers of the pieces that `split` gives; of words in Unicode's composed form and in lower case."""
  from tokenizers import Tokenizer, models, normalizers, trainers

  made = Tokenizer(models.WordLevel({}, unk_token=UNKNOWN))
  lower = words if tokens.lower is None else tokens.lower
  changes = [*([normalizers.NFC()] if words else []), *([normalizers.Lowercase()] if lower else [])]
  made.normalizer, made.pre_tokenizer = normalizers.Sequence(changes), split
  made.train_from_iterator(texts, trainers.WordLevelTrainer(**_limits(tokens, [UNKNOWN, END])))
  return made


def _limits(tokens: Tokens, special: list[str]) -> dict[str, Any]:
  return {
    'vocab_size': tokens.vocabulary,
    'min_frequency': tokens.minimum,
    'special_tokens': special,
    'show_progress': False,
  }


def _words(tokens: Tokens, texts: Iterable[str]) -> Any:
  from tokenizers import pre_tokenizers

  return _word_level(tokens, texts, pre_tokenizers.Whitespace())


def _spaces(tokens: Tokens, texts: Iterable[str]) -> Any:
  from tokenizers import pre_tokenizers

  return _word_level(tokens, texts, pre_tokenizers.WhitespaceSplit())


def _characters(tokens: Tokens, texts: Iterable[str]) -> Any:
  from tokenizers import Regex, decoders, pre_tokenizers

  made = _word_level(tokens, texts, pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated'), words=False)
  made.decoder = decoders.Fuse()
  return made


def _wordpiece(tokens: Tokens, texts: Iterable[str]) -> Any:
  from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

  made = Tokenizer(models.WordPiece({}, unk_token=UNKNOWN))
  made.normalizer = normalizers.BertNormalizer(lowercase=tokens.lower is not False)
  made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
  split = lambda text: made.pre_tokenizer.pre_tokenize_str(made.normalizer.normalize_str(text))
  pieces = _pieces([[word for word, _ in split(text)] for text in texts], tokens)
  made.model = models.WordPiece(pieces, unk_token=UNKNOWN)
  made.add_special_tokens([UNKNOWN, END])
  return made


def _pieces(texts: Sequence[Sequence[str]], tokens: Tokens) -> dict[str, int]:
  """The pieces of words by number, merged as BPE merges; '##' stands before those that begin no word.

  The library's own trainer numbers letters in the order of a hash table, another one in every process, and breaks ties
  by these numbers. So it is BPE's that is trained here, on words whose later letters are other signs than first ones.
  """
  from tokenizers import Tokenizer, models, pre_tokenizers, trainers

  letters = sorted({letter for words in texts for word in words for letter in word})
  later = {letter: chr(0xF0000 + place) for place, letter in enumerate(letters)}  # for private use
  back = {sign: letter for letter, sign in later.items()}
  made = Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.CharDelimiterSplit('\n')
  marked = ('\n'.join(word[0] + ''.join(map(later.__getitem__, word[1:])) for word in words) for words in texts)
  made.train_from_iterator(marked, trainers.BpeTrainer(**_limits(tokens, [UNKNOWN, END]), initial_alphabet=letters))
  named = lambda piece: ('##' if piece[0] in back else '') + ''.join(back.get(sign, sign) for sign in piece)
  return {named(piece): number for piece, number in made.get_vocab().items()}


def _bpe(tokens: Tokens, texts: Iterable[str]) -> Any:
  from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

  made = Tokenizer(models.BPE())
  made.normalizer = normalizers.Lowercase() if tokens.lower else None
  made.decoder = decoders.ByteLevel()
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  made.train_from_iterator(texts, trainers.BpeTrainer(**_limits(tokens, [END]), initial_alphabet=alphabet))
  return made


def _bytes() -> Any:
  """A token for each of the 256 bytes of UTF-8, and the end of a text."""
  from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  made.decoder = decoders.ByteLevel()
  made.add_special_tokens([AddedToken(END, special=True)])
  return made


# name in a config -> `(tokens, texts) -> tokenizer`, trained
TRAINED: dict[str, Callable[[Tokens, list[str]], Any]] = {
  'words': _words,
  'spaces': _spaces,
  'wordpiece': _wordpiece,
  'bpe': _bpe,
  'characters': _characters,
}
