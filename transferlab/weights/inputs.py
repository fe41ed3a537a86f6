"""What a repository on the hub says of the images, or texts, that its weights were trained on. Pure.

Two habits are understood of images, the preprocessor_config.json of transformers and the pretrained_cfg of timm; of
texts the tokenizer.json of transformers.
"""

import json
from collections.abc import Mapping
from typing import Any

from transferlab.data import tokens
from transferlab.weights.origin import Inputs


def stated(metadata: Mapping[str, Any]) -> Inputs | None:
  """Mean, deviation and size as values 0 … 255 see them; None where the metadata do not say.

  transformers: x' = (x · rescale_factor − image_mean) / image_std. timm: the same with 1/255.
  """
  config = metadata.get('config')
  timm = config.get('pretrained_cfg') if isinstance(config, Mapping) else None
  given = metadata.get('preprocessor_config')
  if isinstance(given, Mapping) and 'image_mean' in given and 'image_std' in given:
    factor = given.get('rescale_factor', 1 / 255) if given.get('do_rescale', True) else 1.0
    normal = given.get('do_normalize', True)
    mean, deviation = (given['image_mean'], given['image_std']) if normal else ([0.0] * 3, [1.0] * 3)
    size = _side(given.get('crop_size') if given.get('do_center_crop') else given.get('size'))
    return _inputs(mean, deviation, factor, size, 'as preprocessor_config.json says')
  if isinstance(timm, Mapping) and 'mean' in timm and 'std' in timm:
    return _inputs(timm['mean'], timm['std'], 1 / 255, _side(timm.get('input_size')), 'as pretrained_cfg says')
  return None


def _side(size: Any) -> int:
  """The side of a square image, however it is written; 224 where it is not."""
  if isinstance(size, Mapping):
    size = size.get('height', size.get('shortest_edge'))
  if isinstance(size, list) and size:
    size = size[-1]
  return size if isinstance(size, int) and size > 0 else 224


def _inputs(mean: Any, deviation: Any, factor: Any, size: int, note: str) -> Inputs | None:
  """None where what is stated are no numbers."""
  try:
    shift, scale = (tuple(float(value) / float(factor) for value in values) for values in (mean, deviation))
  except (TypeError, ValueError, ZeroDivisionError):
    return None
  return Inputs(shift, scale, size, note) if len(shift) == len(scale) and all(scale) else None


def of_texts(tokenizer: Any, vocabulary: int, length: int) -> tuple[dict[str, Any] | None, list[str]]:
  """(the preprocessing record of texts that a tokenizer.json reads, sentences for the report).

  None where there is none, or none that fits the weights.

  Args:
    tokenizer: what the file holds.
    vocabulary: rows of the embedding; there may be more of them than tokens.
    length: of texts.
  """
  if not isinstance(tokenizer, Mapping):
    return None, ['no tokenizer.json lies beside the weights: which tokens the rows of the embedding are is not known']
  shape = tokens.Tokens(length=length).model_dump(include={'length', 'cut', 'streams', 'buckets'})
  numbers = {'tokenizer': json.dumps(tokenizer), 'size': vocabulary, **shape}
  try:
    known = len(tokens.vocabulary({'tokenizer': numbers['tokenizer']}))
  except Exception as error:  # the library raises nothing more special
    return None, [f'tokenizer.json beside the weights is not used: {error}']
  if known > vocabulary:
    return None, [f'tokenizer.json beside the weights is not used: it has {known:,} tokens, they {vocabulary:,}']
  return {'kind': 'text', 'shift': [], 'scale': [], 'columns': [], 'input_shape': [length], 'tokens': numbers}, []
