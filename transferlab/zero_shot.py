"""A head out of texts: what CLIP and SigLIP make of the names of classes (Radford et al. 2021, section 3.1).

Class c is the direction of its texts, w_c = mean over templates of t/‖t‖, brought to length 1 (section 3.1.4), where t
is what the text tower makes of 'a photo of a …'. The head of the image tower is then a linear one on features of
length 1, which is evaluated, fine-tuned and distilled as any other; CLIP has no bias (reads files):

  logits = exp(scale) · w_c · x/‖x‖ + bias
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from transferlab.data import tokens
from transferlab.errors import UserError
from transferlab.pretrained import Weights
from transferlab.settings import Texts
from transferlab.weights import mapping
from transferlab.weights.contents import Contents
from transferlab.weights.mapping import Recognised

TOWER = 'decoder'  # our network of the text towers
WHERE = 'config.source.texts'
AT_ONCE = 64  # texts that are read at a time
FLOAT = np.dtype(np.float32)
# What SigLIP's tokenizers fill texts up with, where no record says.
PADDING = ('<pad>', '</s>')


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
  """A leaf of the head, float32; the texts are read when NumPy or jax asks for its values.

  Attributes:
    origin: for the report.
  """

  shape: tuple[int, ...]
  origin: str
  read: Callable[[], Float[np.ndarray, '...']]
  dtype: np.dtype = FLOAT

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return np.array(self.read(), self.dtype if dtype is None else dtype)


def with_head(weights: Weights, texts: Texts, classes: Sequence[str]) -> Weights:
  """The weights of an image tower with a head that texts make of classes, as the data name them.

  Raises:
    UserError: see `head`.
  """
  if weights.contents is None or weights.network != 'vit':
    raise UserError(f'{WHERE}: {weights.origin} is no image tower of CLIP or SigLIP')
  made = head(weights.contents, texts, classes)
  return dataclasses.replace(weights, head=made, options={**weights.options, 'normalise': True})


def head(contents: Contents, texts: Texts, classes: Sequence[str]) -> dict[str, Leaf]:
  """The leaves of the head that texts make of classes: 'kernel' [embedding, classes] and 'bias' [classes].

  Args:
    classes: as the data name them.

  Raises:
    UserError: no text tower or no tokenizer in the file, other names than classes, or a text that is longer than the
      tower reads.
  """
  names = texts.names or [name.replace('_', ' ') for name in classes]
  if not classes:
    raise UserError(f'{WHERE}: a head is made of the names of one set of classes, and the data have none')
  if len(names) != len(classes):
    raise UserError(f'{WHERE}.names: {len(names)} names, and the data have {len(classes)} classes')
  tower = _tower(contents)
  ids = _ids([template.replace('{}', name) for name in names for template in texts.templates], contents, tower)
  number = lambda name: float(np.ravel(contents[name])[0]) if name in contents.tensors else 0.0
  first, count = texts.templates[0], len(texts.templates)
  shown = repr(first.replace('{}', names[0])) + (f' and {count - 1} more of each class' if count > 1 else '')
  kernel = lambda: np.exp(number('logit_scale')) * _directions(_embeddings(tower, ids), len(names)).T
  bias = lambda: np.full(len(names), number('logit_bias'))
  return {
    'kernel': Leaf((tower.outputs or 0, len(names)), f'text tower, {shown}', functools.cache(kernel)),
    'bias': Leaf((len(names),), 'logit_bias' if 'logit_bias' in contents.tensors else '0', bias),
  }


def _tower(contents: Contents) -> Recognised:
  found = mapping.recognise(contents, TOWER)
  if found is None or found.origin.name not in ('clip', 'siglip') or 'logit_scale' not in contents.tensors:
    raise UserError(
      f'{WHERE}: {contents.file} holds no text tower beside its image tower; nearest: CLIP or SigLIP as transformers '
      'writes it, whole'
    )
  if found.outputs is None:
    raise UserError(f'{WHERE}: {contents.file} has no text_projection, which makes embeddings of texts')
  if found.preprocessing is None:
    raise UserError(f'{WHERE}: {contents.file}: {"; ".join(found.mapped.notes)}; put its tokenizer.json beside it')
  return found


def _ids(texts: Sequence[str], contents: Contents, tower: Recognised) -> Int[np.ndarray, 'texts places']:
  """Numbers of tokens; −1 behind a text's end for CLIP, SigLIP's own padding, which it reads, for SigLIP."""
  assert tower.preprocessing is not None
  record, places = tower.preprocessing['tokens'], tower.options['positions']
  siglip = tower.origin.name == 'siglip'
  texts = [text.lower() for text in texts] if siglip else texts  # as it was trained
  ids = tokens.encode(texts, {**record, 'length': places + 1})
  if (long := np.flatnonzero(ids[:, places] != tokens.PAD)).size:
    raise UserError(f'{WHERE}: {texts[long[0]]!r} has more tokens than the {places} that the text tower reads')
  ids = ids[:, :places]
  return np.where(ids == tokens.PAD, _padding(contents, record), ids) if siglip else ids


def _padding(contents: Contents, record: Mapping[str, Any]) -> int:
  """The number of the token that fills texts up."""
  given = json.loads(record['tokenizer']).get('padding')
  if isinstance(given, Mapping):
    return given['pad_id']
  token = contents.metadata.get('tokenizer_config', {}).get('pad_token')
  token = token.get('content') if isinstance(token, Mapping) else token
  numbers = {name: number for number, name in enumerate(tokens.vocabulary(record))}
  found = next((name for name in (token, *PADDING) if name in numbers), None)
  if found is None:
    raise UserError(f'{WHERE}: the tokenizer of {contents.file} has no token that fills texts up: {", ".join(PADDING)}')
  return numbers[found]


def _embeddings(tower: Recognised, ids: Int[np.ndarray, 'texts places']) -> Float[np.ndarray, 'texts embedding']:
  import jax
  import jax.numpy as jnp

  from transferlab.networks import network as networks

  assert tower.outputs is not None
  network = networks.build(tower.origin.network, tower.options, ids.shape[1:], tower.outputs)
  variables = jax.tree.map(jnp.asarray, tower.mapped.variables, is_leaf=lambda leaf: isinstance(leaf, mapping.Leaf))

  @jax.jit
  def answers(variables: Mapping[str, Any], ids: Any) -> Any:
    return network.apply(variables, ids)[0][network.stages[-1]]

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
