"""A head out of texts: what CLIP and SigLIP make of the names of classes (Radford et al. 2021, section 3.1).

Reads weights. Class c is the direction of its texts, w_c = mean over templates of t/‖t‖, brought to length 1 (section
3.1.4), where t is what the text tower makes of 'a photo of a …'. The head of the image tower is then a linear one on
features of length 1, which is evaluated, fine-tuned and distilled as any other; CLIP has no bias:

  logits = exp(scale) · w_c · x/‖x‖ + bias
"""

import dataclasses
import functools
import json
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from transferlab import config, paths
from transferlab.data import tokens
from transferlab.data.examples import Info
from transferlab.errors import UserError
from transferlab.pretrained import Weights
from transferlab.settings import Texts
from transferlab.weights import mapping
from transferlab.weights.contents import Contents
from transferlab.weights.mapping import Recognised

TOWER = 'decoder'  # our network of the text towers
AT_ONCE = 64  # texts that are read at a time
FLOAT = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
  """A leaf of the head, float32; the texts are read when NumPy or jax asks for its values.

  Attributes:
    origin: for the report.
    cause: a digest of what the values are made of, which no compiler changes.
  """

  shape: tuple[int, ...]
  origin: str
  read: Callable[[], Float[np.ndarray, '...']]
  cause: Callable[[], str]
  dtype: np.dtype = FLOAT

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return np.array(self.read(), self.dtype if dtype is None else dtype)


def with_head(weights: Weights, texts: Texts, info: Info, where: str) -> Weights:
  """The weights of an image tower with a head that texts make of the data's classes.

  Args:
    where: `texts` stand in the config.

  Raises:
    UserError: other data than those of one set of classes; no text tower or no tokenizer in the file; or see `head`.
  """
  if weights.contents is None or weights.network != 'vit':
    raise UserError(f'{where}: {weights.origin} is no image tower of CLIP or SigLIP')
  if info.tasks or info.task != 'classification':
    raise UserError(f"{where}: a head is made of the names of one set of classes; nearest: data.task='classification'")
  tower = _tower(weights.contents, where)
  if tower.origin.name == 'clip' and weights.options.get('projection') != tower.outputs:
    raise UserError(f'{where}: {weights.contents.file} has no visual_projection to {tower.outputs} features')
  made = head(tower, weights.contents, texts, info.classes, where)
  notes = (*weights.notes, *(f'text tower: {note}' for note in tower.mapped.notes))
  return dataclasses.replace(weights, head=made, options={**weights.options, 'normalise': True}, notes=notes)


def head(tower: Recognised, contents: Contents, texts: Texts, classes: Sequence[str], where: str) -> dict[str, Leaf]:
  """The leaves of the head that texts make of classes: 'kernel' [embedding, classes] and 'bias' [classes].

  Args:
    tower: of the texts, in the file.
    classes: as the data name them; where: `texts` stand in the config.

  Raises:
    UserError: other names than classes, a text that is longer than the tower reads, padding that is not known, or a
      scale that is no number.
  """
  names = texts.names or [name.replace('_', ' ') for name in classes]
  if len(names) != len(classes):
    raise UserError(f'{where}.names: {len(names)} names, and the data have {len(classes)} classes')
  if len(set(names)) < len(names):
    raise UserError(f'{where}.names: each class needs a name of its own')
  ids = _ids([template.replace('{}', name) for name in names for template in texts.templates], contents, tower, where)
  scale, bias = (_number(contents, name, where) for name in ('logit_scale', 'logit_bias'))
  first, count = texts.templates[0], len(texts.templates)
  shown = repr(first.replace('{}', names[0])) + (f' and {count - 1} more of each class' if count > 1 else '')
  cause = functools.cache(lambda: _cause(tower, ids))
  kernel = lambda: np.exp(scale) * _directions(_embeddings(tower, ids, cause()), len(names)).T
  return {
    'kernel': Leaf(
      (tower.outputs or 0, len(names)),
      f'text tower, {shown}',
      functools.cache(kernel),
      lambda: config.digest([cause(), scale, len(names)]),
    ),
    'bias': Leaf(
      (len(names),), 'logit_bias', lambda: np.full(len(names), bias), lambda: config.digest([bias, len(names)])
    ),
  }


def _number(contents: Contents, name: str, where: str) -> float:
  """A single number of the file; 0 for one that is not there."""
  value = float(np.ravel(contents[name])[0]) if name in contents.tensors else 0.0
  if not np.isfinite(value):
    raise UserError(f'{where}: {contents.file}: {name} is {value}')
  return value


def _tower(contents: Contents, where: str) -> Recognised:
  found = mapping.recognise(contents, TOWER)
  if found is None or (found.origin.network, found.origin.name) not in ((TOWER, 'clip'), (TOWER, 'siglip')):
    raise UserError(
      f'{where}: {contents.file} holds no text tower beside its image tower; nearest: CLIP or SigLIP as transformers '
      'writes it, whole'
    )
  there = {'text_projection': found.outputs is not None, 'logit_scale': 'logit_scale' in contents.tensors}
  if missing := [name for name, known in there.items() if not known]:
    raise UserError(f'{where}: {contents.file} has no {missing[0]}, which a head is made of')
  if found.preprocessing is None:
    raise UserError(f'{where}: {contents.file}: {"; ".join(found.mapped.notes)}; put its tokenizer.json beside it')
  return found


# ----------------------------------------------------------------------------------------------------------- tokens
def _ids(texts: Sequence[str], contents: Contents, tower: Recognised, where: str) -> Int[np.ndarray, 'texts places']:
  """Numbers of tokens; −1 behind a text's end for CLIP, SigLIP's own padding, which it reads, for SigLIP."""
  assert tower.preprocessing is not None
  record, places = tower.preprocessing['tokens'], tower.options['positions']
  settings = contents.metadata.get('tokenizer_config')
  settings = settings if isinstance(settings, Mapping) else {}
  siglip = tower.origin.name == 'siglip'
  given = [_as_trained(text, str(settings.get('tokenizer_class', ''))) for text in texts] if siglip else texts
  ids = tokens.encode(given, {**record, 'length': places + 1})
  if (long := np.flatnonzero(ids[:, places] != tokens.PAD)).size:
    raise UserError(f'{where}: {texts[long[0]]!r} has more tokens than the {places} that the text tower reads')
  return _filled(ids[:, :places], contents, settings, record, where) if siglip else ids[:, :places]


def _as_trained(text: str, kind: str) -> str:
  """As SigLIP was trained: in lower case, and the first one without punctuation."""
  text = text.lower()
  if kind.startswith('SiglipTokenizer'):
    text = text.translate(str.maketrans('', '', string.punctuation))
  return ' '.join(text.split())


def _filled(
  ids: Int[np.ndarray, 'texts places'],
  contents: Contents,
  settings: Mapping[str, Any],
  record: Mapping[str, Any],
  where: str,
) -> Int[np.ndarray, 'texts places']:
  """Texts filled up with the tokenizer's own padding, on its side.

  Args:
    settings: the tokenizer_config.json.
  """
  own = json.loads(record['tokenizer']).get('padding')
  own = own if isinstance(own, Mapping) else {}
  token = settings.get('pad_token')
  token = token.get('content') if isinstance(token, Mapping) else token
  numbers = {name: number for number, name in enumerate(tokens.vocabulary(record))}
  config_json = contents.metadata.get('config')
  part = config_json.get('text_config') if isinstance(config_json, Mapping) else None
  stated = part.get('pad_token_id') if isinstance(part, Mapping) else None
  known = [own.get('pad_id'), numbers.get(token) if isinstance(token, str) else None, stated]
  number = next((value for value in known if isinstance(value, int) and 0 <= value < len(numbers)), None)
  if number is None:
    raise UserError(
      f'{where}: with which token {contents.file} fills texts up is not known; put its tokenizer_config.json beside it'
    )
  if 'left' in (str(own.get('direction', '')).lower(), settings.get('padding_side')):
    ids = np.stack([np.roll(row, (row == tokens.PAD).sum()) for row in ids])
  return np.where(ids == tokens.PAD, number, ids)


# ------------------------------------------------------------------------------------------------------- embeddings
HELD = 4  # sets of texts
# By their cause: runs of several methods and seeds share them.
_EMBEDDINGS: dict[str, np.ndarray] = {}


def _cause(tower: Recognised, ids: Int[np.ndarray, 'texts places']) -> str:
  from transferlab.training import partition

  leaves = paths.flatten(tower.mapped.variables['params'])
  own = [value for path in sorted(leaves) for value in partition.digests({path: leaves[path]}).values()]
  return config.digest([tower.options, ids.tolist(), own])


def _embeddings(
  tower: Recognised, ids: Int[np.ndarray, 'texts places'], cause: str
) -> Float[np.ndarray, 'texts embedding']:
  """What the text tower makes of texts. Args: cause: a digest of both."""
  if cause not in _EMBEDDINGS:
    while len(_EMBEDDINGS) >= HELD:
      _EMBEDDINGS.pop(next(iter(_EMBEDDINGS)))
    _EMBEDDINGS[cause] = _answers(tower, ids)
  return _EMBEDDINGS[cause]


def _answers(tower: Recognised, ids: Int[np.ndarray, 'texts places']) -> Float[np.ndarray, 'texts embedding']:
  import jax
  import jax.numpy as jnp

  from transferlab.networks import network as networks

  assert tower.outputs is not None
  network = networks.build(tower.origin.network, tower.options, ids.shape[1:], tower.outputs)
  variables = jax.tree.map(jnp.asarray, tower.mapped.variables, is_leaf=lambda leaf: isinstance(leaf, mapping.Leaf))
  answers = jax.jit(lambda variables, ids: network.apply(variables, ids)[0][network.stages[-1]])
  filled = np.resize(ids, (-(-len(ids) // AT_ONCE) * AT_ONCE, ids.shape[1])) if len(ids) > AT_ONCE else ids
  with jax.default_matmul_precision('highest'):
    parts = [np.asarray(answers(variables, part)) for part in np.split(filled, max(len(filled) // AT_ONCE, 1))]
  return np.concatenate(parts)[: len(ids)]


def _directions(
  embeddings: Float[np.ndarray, 'texts embedding'], classes: int
) -> Float[np.ndarray, 'classes embedding']:
  """Of length 1, the mean of those of each class's texts, which stand together."""
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  own = unit(embeddings.astype(np.float64)).reshape(classes, -1, embeddings.shape[-1])
  return unit(own.mean(axis=1))
