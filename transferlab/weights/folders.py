"""Which file of a folder, or of a repository on the hub, is its weights. Pure: only names are looked at.

A well-known name decides; else there must be one file of weights, or one index and its shards. Nothing is guessed.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# The names under which hubs keep a network, in the order of preference.
NAMES = (
  'model.safetensors',
  'model.safetensors.index.json',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
  'flax_model.msgpack',
  'flax_model.msgpack.index.json',
)
# Records that lie beside weights of such a name; each becomes an entry of the metadata, named without its suffix.
RECORDS = ('config.json', 'preprocessor_config.json', 'tokenizer.json', 'tokenizer_config.json')
SUFFIXES = (
  *('.safetensors', '.pt', '.pth', '.pth.tar', '.th', '.bin', '.ckpt', '.h5', '.hdf5', '.keras', '.npz', '.msgpack'),
  *('.index.json', '.weights.json'),
)
# Those of others, and those of Keras: the index has the same name without the number.
SHARDS = {
  re.compile(r'(.+)-\d+-of-\d+(\.\w+)'): r'\1\2.index.json',
  re.compile(r'(.+)_\d+\.weights\.h5'): r'\1.weights.json',
}
# As flax counts the steps of a run; the newest stands for all.
NUMBERED = re.compile(r'checkpoint_(\d+)')


def records(read: Mapping[str, Callable[[], bytes]]) -> tuple[dict[str, Any], list[str]]:
  """(the metadata of a folder, notes on records that are damaged).

  Args:
    read: gives the bytes of each file of the folder.
  """
  metadata, notes = {}, []
  for record in RECORDS:
    if record in read:
      try:
        metadata[record.removesuffix('.json')] = json.loads(read[record]())
      except (ValueError, RecursionError):
        notes.append(f'{record} beside the weights is damaged, and is not used')
  return metadata, notes


def weights_among(names: Sequence[str]) -> list[str]:
  """The file to read: [] where there are no weights, several where nothing says which."""
  known = [name for name in NAMES if name in names]
  if known:
    return known[:1]
  found = [name for name in names if name.endswith(SUFFIXES) and not _index_of(name) & set(names)]
  numbered = sorted((name for name in names if NUMBERED.fullmatch(name)), key=lambda name: int(name.split('_')[1]))
  return sorted(found) + numbered[-1:]


def _index_of(name: str) -> set[str]:
  """The index to which a file belongs that is named like a shard, whether or not it is there."""
  return {match.expand(index) for pattern, index in SHARDS.items() if (match := pattern.fullmatch(name))}
