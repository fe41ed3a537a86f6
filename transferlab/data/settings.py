"""What a config may say of data: the schema of one data set, and which sources there are.

Readers are in sources.py and the files it lists. Nothing is imported here that takes time, so that a mistyped key is
answered at once. Looks at files only to answer a name that is none.
"""

import os
import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from transferlab.config import LATER, OUTSIDE, Fraction, NonNegative, Positive, Schema, Seed
from transferlab.data.augmentation import Augment
from transferlab.data.decoding import Resize
from transferlab.data.overlay import Overlay
from transferlab.data.preprocessing import STATISTICS
from transferlab.data.texts import Bag
from transferlab.data.tokens import Tokens
from transferlab.errors import UserError, unknown

Share = Annotated[float, Field(gt=0, le=1)]
MIXTURE = 'mixture'
BUNDLED = ('digits', 'iris', 'wine', 'breast_cancer', 'diabetes', 'linnerud')
TABLES = ('csv', 'tsv', 'jsonl')
FILES = {'npz': 'npz:FILE', **{kind: f'{kind}:FILE' for kind in TABLES}, 'text': 'text:FILE'}
FILES |= {'folder': 'folder:DIR', 'tfds': 'tfds:NAME'}
# Keys that only some sources have.
ONLY = {
  ('inputs', 'label'): ('npz', 'tfds', *TABLES),
  ('columns', 'missing'): TABLES,
  ('where',): ('npz', 'tfds', *TABLES),
  ('categorical',): ('tfds', *TABLES),
  ('hash',): ('tfds', *TABLES),
  ('bag', 'tokens'): ('tfds', 'text', *TABLES, MIXTURE),
  ('resize',): ('folder', 'tfds'),
  ('channels', 'corrupt'): ('folder',),
  ('folder',): ('tfds',),
}


def check_name(name: str) -> None:
  """Raises `UserError` where a name is that of no source, or lacks what the source needs."""
  kind, colon, rest = name.partition(':')
  if not (name in (*BUNDLED, MIXTURE) or (kind in FILES and colon and rest)):
    place, ending = os.path.expanduser(name), name.rpartition('.')[2]
    if os.path.exists(place) and (os.path.isdir(place) or ending in FILES):
      meant = 'folder' if os.path.isdir(place) else ending
      raise UserError(f'data set {name!r} does not say what it is; nearest: {meant}:{name}')
    raise unknown('data set', name, [*BUNDLED, MIXTURE, *FILES.values()])


def fold_of(test: str) -> tuple[int, int]:
  """(k, n) of 'fold:k/n', from 1. Raises `ValueError` where that is no fold."""
  found = re.fullmatch(r'fold:([0-9]{1,6})/([0-9]{1,6})', test)
  if not found or not 1 <= int(found[1]) <= int(found[2]) or int(found[2]) < 2:
    raise ValueError(f'{test!r} is no fold; fold:1/10 to fold:10/10 are those of ten')
  return int(found[1]), int(found[2])


SetName = Annotated[str, Field(pattern=r'^[\w.-]*\w$')]


class Mixing(Schema):
  """How often each set of a mixture is drawn, and what its labels have to do with those of the others."""

  rates: Literal['proportional', 'uniform'] | dict[SetName, Annotated[float, Field(ge=0, le=1e9)]] = Field(
    'proportional',
    description='shares of the examples: by the sizes of the sets, all alike, or as given; a set at 0 is validated and '
    'tested, and not trained on',
  )
  temperature: Annotated[float, Field(ge=1, le=1e6)] = Field(
    1.0, description='T of proportional rates, size^(1/T): 1 is by size, large T nearly uniform (Raffel et al. 2020)'
  )
  epoch: SetName | None = Field(
    None, description='the set of which an epoch holds every example once; None: as many examples as all sets have'
  )
  heads: Literal['separate', 'common'] = Field(
    'separate',
    description='separate: a task for each set, called as the set (sets of several label columns keep their names, and '
    'equal names share a head); common: one task, whose classes are matched by name',
  )


class Data(Schema):
  """One data set: where it comes from, which part of it, how it is split, changed and fed."""

  name: str = Field(
    description='digits, iris, wine, breast_cancer, diabetes, linnerud; npz:FILE, csv:FILE, tsv:FILE, jsonl:FILE '
    "(several parts: 'csv:adult-{train,test}.csv'); text:FILE, a text a line; folder:DIR of images in class folders; "
    'tfds:NAME; mixture of sets.'
  )
  sets: dict[SetName, 'Data'] = Field(
    default={},
    description='Mixtures: data sets by name, each read, split and worsened as it says itself; inputs of one form.',
    json_schema_extra=LATER,
  )
  mixing: Mixing = Field(default=Mixing(), description='Mixtures: how.', json_schema_extra=LATER)
  auxiliary: list[str] = Field(
    default=[],
    description='Tasks (label columns, or sets of a mixture) that only help to train: no mean counts them.',
    json_schema_extra=LATER,
  )
  folder: str | None = Field(
    default=None, description="tfds: where prepared data sets stand; None: TFDS's own place.", json_schema_extra=OUTSIDE
  )
  inputs: str | list[str] | None = Field(
    default=None,
    description='npz: key of the inputs (None: x, image, images, data, inputs); tfds: a feature (None: as the data set '
    'says); tables: the columns to learn from (None: all but the labels).',
  )
  label: str | list[str] | None = Field(
    default=None,
    description='What to learn: key (npz), feature (tfds) or column (tables), or a list with one task each; '
    'None: y, label, labels, target, class, or as the data set says.',
  )
  columns: dict[str, Literal['numeric', 'category', 'text', 'ignore']] = Field(
    default={}, description='Tables: what columns are, where it does not show.'
  )
  missing: list[str] | None = Field(
    default=None,
    description="Tables: what stands for a missing value; None: '', '?', NA, N/A, NaN, nan, NULL, null, None.",
  )
  categorical: Literal['one_hot', 'embedding'] = Field(
    default='one_hot', description='Tables: a column for each value of a categorical column, or its number.'
  )
  hash: Annotated[int, Field(gt=0, le=2**20)] | None = Field(
    default=None,
    description='Texts: counts of words, hashed into this many columns (Weinberger et al. 2009).',
  )
  bag: Bag | None = Field(
    default=None, description='Texts: a table of the words that occur, for dense networks.', json_schema_extra=LATER
  )
  tokens: Tokens | None = Field(
    default=None, description='Texts: numbers of tokens, for networks that read texts.', json_schema_extra=LATER
  )
  resize: Resize | None = Field(default=None, description='Images of folders and TFDS: the size to bring them to.')
  channels: Literal[1, 3] | None = Field(default=None, description='Images of folders; None: 3 if any has colours.')
  corrupt: Literal['refuse', 'skip'] = Field(
    default='refuse', description='Folders: what becomes of files that are damaged or no images.'
  )
  train: str | None = Field(
    default=None, description="What to train on, as in TFDS: 'train[:80%]', 'train+validation'. None: 'train'."
  )
  task: Literal['classification', 'binary', 'regression', 'next_token'] | None = Field(
    default=None,
    description="What to learn; 'binary' is two classes and one output, 'next_token' a language model of texts. None: "
    'as the data say (npz: whole numbers are classes, floats are for regression; text: next_token).',
  )
  half: Literal[0, 1] | None = Field(default=None, description='Use one of two disjoint halves, each of all classes.')
  classes: list[int] | None = Field(default=None, description='Use only these classes, by their original numbers.')
  where: dict[str, list[str | int | float | bool]] = Field(
    default={}, description='Tables: use only rows in which a column has one of these values, for every column named.'
  )
  train_classes: list[int] | None = Field(
    default=None,
    description='Train on these classes alone, by their original numbers; validation, test and the head keep all.',
    json_schema_extra=LATER,
  )
  labelled: bool = Field(
    default=True,
    description='False: training looks at no labels, and counts none: a transfer set for distillation.',
    json_schema_extra=LATER,
  )
  unlabelled: Literal['refuse', 'keep'] = Field(
    default='refuse',
    description='What becomes of examples without a label (tables: a missing value; npz: a negative class, NaN): keep: '
    'terms and metrics that need the label leave them out; those without any label are for training only.',
    json_schema_extra=LATER,
  )
  keep_labels: Share | dict[str, Share] | None = Field(
    default=None,
    description='The share of the training labels that stays, of all or by label column, drawn within each class; the '
    'others count as missing.',
    json_schema_extra=LATER,
  )
  relabel: bool = Field(
    default=True, description='Number the classes used 0, 1, … in the order given; False: as they were.'
  )
  test: Fraction | str = Field(
    default=0.25,
    description='Fraction of each class cut off for testing, unused where data bring a test split (or, for want of '
    "one, a validation split); the part to test on: 'validation', 'train[80%:]'; or a fold of a cross-validation, "
    "'fold:3/10', the third of ten parts of each class.",
  )
  validation: Fraction | Positive | str | None = Field(
    default=None,
    description='To choose with: a fraction of each class outside test, a number of examples of each class '
    "(regression: in all), or a part: 'validation', 'train[90%:]'. None: no validation.",
  )
  shots: Positive | None = Field(default=None, description='Train on this many examples of each class.')
  fraction: Share | None = Field(default=None, description='Train on this fraction of what would be trained on.')
  noise: Annotated[float, Field(ge=0, le=1000)] = Field(
    default=0.0,
    description='Standard deviation of Gaussian noise: in input ranges, clipped to the range, for images; '
    "in each column's standard deviations for tables.",
  )
  rotation: Annotated[float, Field(ge=0, le=180)] = Field(
    default=0.0, description='Images: turn each by an angle drawn from ± this many degrees.'
  )
  contrast: Annotated[float, Field(gt=0, le=1000)] = Field(
    default=1.0, description="Images: factor around the image's own mean."
  )
  overlay: Overlay | None = Field(
    default=None,
    description="Images: each laid over another of its split; both classes are to be told, 'left' and 'right'.",
    json_schema_extra=LATER,
  )
  split_seed: Seed = Field(default=0, description='Fixes halves and test split: the same for every run.')
  corruption_seed: Seed | None = Field(
    default=None, description="Draws noise and rotation, fixed per example. None: the run's seed."
  )
  seed: Seed | None = Field(default=None, description="Draws validation and training examples. None: the run's seed.")
  standardize: bool | None = Field(
    default=None,
    description='Mean 0 and deviation 1 per column or channel, by the training split. None: tables only.',
  )
  statistics: str | None = Field(
    default=None, description=f"Images: named mean and deviation in place of the data's: {', '.join(STATISTICS)}."
  )
  augment: Augment = Field(default=Augment(), description='Random changes to training images.')
  sampling: Literal['uniform', 'balanced'] = Field(
    default='uniform', description='balanced: every class equally often, however many examples it has.'
  )
  batch_size: Annotated[int, Field(gt=0, le=2**20)] = Field(default=64, description='Examples in a global batch.')
  last_batch: Literal['carry', 'pad'] = Field(
    default='carry', description='A last batch that is not full: fill it from the next epoch, or pad and mask.'
  )
  hold: Literal['device', 'stream'] = Field(
    default='device',
    description='Keep all examples on the device, or stream them, for data larger than memory, in the same batches. '
    'Without workers, what takes at most 256 MiB stays in memory once it is read.',
    json_schema_extra={**OUTSIDE},
  )
  workers: NonNegative = Field(
    default=0, description='Processes that prepare streamed batches; 0: none.', json_schema_extra={**OUTSIDE}
  )

  @pydantic.field_validator('name')
  @classmethod
  def _known(cls, name: str) -> str:
    try:
      check_name(name)
    except UserError as error:
      raise ValueError(str(error)) from None
    kind, colon, place = name.partition(':')
    return f'{kind}:{os.path.expanduser(place)}' if colon else name

  @pydantic.field_validator('folder')
  @classmethod
  def _expanded(cls, folder: str | None) -> str | None:
    return None if folder is None else os.path.expanduser(folder)

  @pydantic.field_validator('test')
  @classmethod
  def _fold(cls, test: float | str) -> float | str:
    if isinstance(test, str) and test.startswith('fold:'):
      fold_of(test)
    return test

  @pydantic.field_validator('statistics')
  @classmethod
  def _named(cls, name: str | None) -> str | None:
    if name is not None and name not in STATISTICS:
      raise ValueError(str(unknown('statistics', name, STATISTICS)))
    return name

  @pydantic.field_validator('classes', 'train_classes', 'label', 'inputs')
  @classmethod
  def _distinct(cls, values: Any) -> Any:
    if isinstance(values, list) and (not values or len(set(values)) < len(values)):
      raise ValueError('should name at least one, and none twice')
    return values

  @pydantic.model_validator(mode='after')
  def _consistent(self) -> 'Data':
    self._check_mixture()
    if self.shots is not None and self.fraction is not None:
      raise ValueError('shots and fraction exclude each other: give one of them')
    kind = self.name.partition(':')[0]
    for keys, kinds in ONLY.items():
      for key in keys:
        if getattr(self, key) != type(self).model_fields[key].default and kind not in kinds:
          raise ValueError(f'{key} is for {", ".join(kinds)}, and there is none in {self.name!r}')
    ways = [key for key in ('hash', 'bag', 'tokens') if getattr(self, key) is not None]
    if self.tokens is not None and self.tokens.buckets and self.hold == 'stream':
      raise ValueError("tokens.buckets are for texts that are held: nearest: hold='device'")
    if len(ways) > 1:
      raise ValueError(f'{" and ".join(ways)} are ways to read texts that exclude each other: give one of them')
    if not self.labelled and (self.shots is not None or self.sampling == 'balanced'):
      raise ValueError('labelled=False: shots and balanced sampling draw by label; nearest: fraction')
    if self.keep_labels is not None and (not self.labelled or self.sampling == 'balanced'):
      raise ValueError('keep_labels leaves labels out: neither with labelled=False nor with balanced sampling')
    if self.unlabelled == 'keep' and self.sampling == 'balanced':
      raise ValueError("unlabelled='keep': balanced sampling draws by label; nearest: sampling='uniform'")
    if self.unlabelled == 'keep' and (self.classes is not None or self.train_classes is not None):
      raise ValueError("unlabelled='keep': classes and train_classes choose by label, and leave no example without one")
    if 'next_token' in (self.task, {'text': 'next_token'}.get(kind)):
      self._check_language(kind)
    if self.statistics is not None and self.standardize:
      raise ValueError('statistics and standardize exclude each other: give one of them')
    if self.classes is not None and self.relabel and len(self.classes) < 2:
      raise ValueError('classes should name at least two, unless relabel=False')
    return self

  def _check_language(self, kind: str) -> None:
    if self.task not in (None, 'next_token'):
      raise ValueError(f'a plain text has no labels: its task is next_token, not {self.task!r}')
    if self.tokens is None:
      raise ValueError("next_token needs tokens, which say what is predicted; nearest: tokens={'length': 64}")
    if isinstance(self.test, str) and self.test.startswith('fold:'):
      raise ValueError('test: next_token reads texts from end to end, and folds are drawn at random')
    odd = {'shots', 'classes', 'train_classes', 'half', 'keep_labels', 'where', 'last_batch'} & self._chosen()
    if odd or self.sampling == 'balanced':
      raise ValueError(f'{", ".join(sorted(odd)) or "balanced sampling"}: next_token reads texts from end to end')

  def _chosen(self) -> set[str]:
    """The keys that do not have their default."""
    return {key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default}

  def _check_mixture(self) -> None:
    if (self.name == MIXTURE) != bool(self.sets):
      raise ValueError("sets is for the name 'mixture', and that name needs sets")
    if not self.sets and self.mixing != Mixing():
      raise ValueError("mixing is for the name 'mixture'")
    own = self._chosen() - {'name', 'sets', *FED}
    if self.sets and own:
      raise ValueError(f'{", ".join(sorted(own))}: each set of a mixture says this for itself')
    for name, data in self.sets.items():
      if fed := data._chosen() & FED:
        raise ValueError(f'sets.{name}: {", ".join(sorted(fed))}: the mixture says this for all its sets')
    if self.sets and self.sampling == 'balanced':
      raise ValueError('sampling: a mixture draws as mixing says')
    for key, names in (('epoch', [self.mixing.epoch or '']), ('rates', self.mixing.rates)):
      for name in names if isinstance(names, (list, dict)) else []:
        if name and name not in self.sets:
          raise ValueError(str(unknown(f'mixing.{key}', name, self.sets)))
    if isinstance(self.mixing.rates, dict) and set(self.mixing.rates) != set(self.sets):
      raise ValueError(f'mixing.rates: give one for each of {", ".join(self.sets)}')
    drawn = self.sets if isinstance(self.mixing.rates, str) else [n for n, rate in self.mixing.rates.items() if rate]
    if self.sets and not drawn:
      raise ValueError('mixing.rates: some set has to be trained on')
    if self.mixing.epoch and self.mixing.epoch not in drawn:
      raise ValueError(f'mixing.epoch: {self.mixing.epoch} is not trained on; nearest: {", ".join(drawn)}')


# What a mixture says for all of its sets.
FED = {'mixing', 'auxiliary', 'standardize', 'statistics', 'augment', 'sampling', 'batch_size', 'last_batch', 'hold'}
FED |= {'workers', 'bag', 'tokens'}
