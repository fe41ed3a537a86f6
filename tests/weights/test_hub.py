"""Weights of the Hugging Face hub: which file, out of a cache in the library's own layout, and what fails at once."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest
import safetensors.numpy

from transferlab.errors import UserError
from transferlab.weights import hub, readers

huggingface_hub = pytest.importorskip('huggingface_hub')
constants, errors = (pytest.importorskip(f'huggingface_hub.{name}') for name in ('constants', 'errors'))

ROOT = str(Path(__file__).parents[2])
COMMIT = '0123456789abcdef0123456789abcdef01234567'
ARRAYS = {'conv.weight': np.arange(6, dtype=np.float32).reshape(2, 3), 'conv.bias': np.ones(2, np.float32)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """`cache(repository, {file: content})` fills a cache; the library is offline and looks there."""
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)

  def fill(repository, files, revision='main'):
    root = tmp_path / 'cache' / f'models--{repository.replace("/", "--")}'
    (root / 'refs').mkdir(parents=True)
    (root / 'refs' / revision).write_text(COMMIT)
    for number, (name, content) in enumerate(files.items()):
      place = root / 'snapshots' / COMMIT / name
      blob = root / 'blobs' / str(number)
      for folder in (place.parent, blob.parent):
        folder.mkdir(parents=True, exist_ok=True)
      blob.write_bytes(content if isinstance(content, bytes) else content.encode())
      place.symlink_to(os.path.relpath(blob, place.parent))
    return tmp_path / 'cache'

  return fill


@pytest.mark.parametrize(
  'spec, expected',
  [
    ('hf:org/name', hub.Spec('org/name')),
    ('hf:org/name.v1@main', hub.Spec('org/name.v1', 'main')),
    ('hf:org/name/a/b.npz', hub.Spec('org/name', None, 'a/b.npz')),
    ('hf:org/name@refs/pr/3/b.npz', hub.Spec('org/name', 'refs/pr/3', 'b.npz')),
    ('hf:org/name@v1.0/b@2.npz', hub.Spec('org/name', 'v1.0', 'b@2.npz')),
  ],
)
def test_names_are_taken_apart(spec, expected):
  assert hub.parse(spec) == expected


@pytest.mark.parametrize('spec', ['hf:', 'hf:name', 'hf:org/', 'hf:org/name@', 'hf:org/na me', 'hf:org/name/../../x'])
def test_other_forms_are_refused_with_the_right_ones(spec):
  with pytest.raises(UserError, match='the form is hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME/FILE'):
    hub.parse(spec)


def test_a_cached_repository_is_read_without_network(cache):
  content = {'model.safetensors': safetensors.numpy.save(ARRAYS), 'config.json': '{"depth": 18}', 'notes.md': 'x'}
  cache('org/name', {**content, 'preprocessor_config.json': '{"size": 224}'})
  found = readers.read('hf:org/name')
  assert found.file == 'hf:org/name' and found.format == 'safetensors'
  assert found.metadata['config'] == {'depth': 18} and found.metadata['preprocessor_config'] == {'size': 224}
  assert f'model.safetensors of revision {COMMIT}' in found.notes
  assert any('read from the cache' in note for note in found.notes)
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(found[name], array)


def test_the_environment_variables_of_the_library_are_enough(cache):
  folder = cache('org/name', {'model.safetensors': safetensors.numpy.save(ARRAYS)})
  program = "from transferlab.weights import readers; print(readers.read('hf:org/name')['conv.weight'].sum())"
  environment = {**os.environ, 'HF_HUB_OFFLINE': '1', 'HF_HUB_CACHE': str(folder), 'PYTHONPATH': ROOT}
  assert subprocess.check_output([sys.executable, '-c', program], env=environment, text=True) == '15.0\n'


def test_a_damaged_config_is_noted(cache):
  cache('org/name', {'model.safetensors': safetensors.numpy.save(ARRAYS), 'config.json': '{"depth"'})
  found = readers.read('hf:org/name')
  assert 'config' not in found.metadata and any('config.json beside the weights is damaged' in n for n in found.notes)


def test_a_file_and_a_revision_can_be_named(cache):
  one, two = ({name: factor * array for name, array in ARRAYS.items()} for factor in (1, 2))
  files = {'model.safetensors': safetensors.numpy.save(one), 'other/weights.bin': safetensors.numpy.save(two)}
  cache('org/name', files, 'v2')
  np.testing.assert_array_equal(readers.read('hf:org/name@v2')['conv.bias'], np.ones(2))
  for revision in ('v2', COMMIT):
    np.testing.assert_array_equal(readers.read(f'hf:org/name@{revision}/other/weights.bin')['conv.bias'], [2, 2])
  with pytest.raises(UserError, match=r"there is no file 'model\.safetensor' in org/name; nearest: model\.safetensors"):
    readers.read('hf:org/name@v2/model.safetensor')


def test_all_shards_of_an_index_are_read(cache):
  shards = {
    f'model-0000{number}-of-00002.safetensors': {f'layer{number}.weight': np.full(2, number)} for number in (1, 2)
  }
  index = {'weight_map': {name: shard for shard, arrays in shards.items() for name in arrays}}
  files = {shard: safetensors.numpy.save(arrays) for shard, arrays in shards.items()}
  cache('org/name', {'model.safetensors.index.json': json.dumps(index), **files})
  found = readers.read('hf:org/name')
  assert {name: array[0] for name, array in found.items()} == {'layer1.weight': 1, 'layer2.weight': 2}


@pytest.mark.parametrize(
  'files, expected',
  [
    (['pytorch_model.bin', 'flax_model.msgpack', 'model.safetensors'], 'model.safetensors'),
    (['model.safetensors.index.json', 'pytorch_model.bin'], 'model.safetensors.index.json'),
    (['flax_model.msgpack', 'pytorch_model.bin.index.json', 'tf_model.h5'], 'pytorch_model.bin.index.json'),
    (['flax_model.msgpack', 'tf_model.h5'], 'flax_model.msgpack'),
    (['README.md', 'vit_b16.npz'], 'vit_b16.npz'),
    (['tf_model.h5', 'unet/diffusion.safetensors'], 'tf_model.h5'),
    (['README.md', 'unet/diffusion.safetensors'], 'unet/diffusion.safetensors'),
    (['unet/diffusion.safetensors', 'x.safetensors'], 'x.safetensors'),
    (['a.npz', 'b.npz'], r'several files of weights: a\.npz, b\.npz; name one'),
    (['x.safetensors', 'resnet20.th'], r'several files of weights: resnet20\.th, x\.safetensors; name one'),
    (['x-1-of-2.bin', 'x-2-of-2.bin', 'x.bin.index.json'], 'x.bin.index.json'),
    (['README.md', 'model.onnx'], r'no weights of a known name, but README\.md, model\.onnx; name a file'),
    ([], 'no weights of a known name, but nothing'),
  ],
)
def test_the_file_is_chosen_by_what_the_repository_has(monkeypatch, tmp_path, files, expected):
  """The hub's answers are made up here; what is asked of it is recorded."""
  asked = []

  def answer(self, repository, revision, timeout):
    assert timeout < 30
    return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files], sha=COMMIT)

  def download(repository, file, revision, local_files_only=False, etag_timeout=None):
    if local_files_only:
      raise FileNotFoundError
    asked.append((repository, file, revision))
    (tmp_path / 'file').write_text('{"weight_map": {"a": "one.bin"}}')
    return str(tmp_path / 'file')

  monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', answer)
  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
  if expected not in files:
    with pytest.raises(UserError, match=expected):
      hub.fetch('hf:org/name')
    return
  found = hub.fetch('hf:org/name')
  shards = [('org/name', 'one.bin', COMMIT)] if expected.endswith('.index.json') else []
  assert asked == [('org/name', expected, COMMIT), *shards] and found.revision == COMMIT


def _refused(name, status=404):
  error = getattr(errors, name)
  made = error.__new__(error)
  Exception.__init__(made, f'{status} from the hub')
  made.response = SimpleNamespace(status_code=status)
  return made


@pytest.mark.parametrize(
  'error, message',
  [
    (_refused('RepositoryNotFoundError'), 'the hub has no org/name, or it is private'),
    (_refused('GatedRepoError', 403), 'org/name is gated; ask for access at https://huggingface.co/org/name'),
    (_refused('RevisionNotFoundError'), "org/name has no revision 'v9'"),
    (_refused('HfHubHTTPError', 401), 'the hub refuses'),
    (_refused('HfHubHTTPError', 503), 'cannot be reached .*and the cache does not hold it'),
    (ConnectionError('no route'), r'cannot be reached \(ConnectionError: no route\), and the cache does not hold it'),
  ],
)
def test_what_the_hub_refuses_is_one_message(cache, monkeypatch, error, message):
  def answer(*_, **__):
    raise error

  monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', answer)
  with pytest.raises(UserError, match=f'^hf:org/name@v9: .*{message}'):
    readers.read('hf:org/name@v9')


def test_without_network_the_message_comes_at_once(tmp_path):
  program = "from transferlab.weights import hub; hub.fetch('hf:org/name')"
  environment = {**os.environ, 'HF_ENDPOINT': 'http://127.0.0.1:9', 'HF_HUB_CACHE': str(tmp_path)}
  environment = {**environment, 'HF_HUB_OFFLINE': '0', 'PYTHONPATH': ROOT}
  start = time.monotonic()
  failed = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True)
  assert time.monotonic() - start < 15
  assert 'UserError: hf:org/name: the hub cannot be reached' in failed.stderr


def test_without_the_library_its_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(UserError, match=r"pip install 'transferlab\[hf\]'"):
    readers.read('hf:org/name')


def test_a_flax_repository_is_read(cache):
  array = msgpack.ExtType(1, msgpack.packb(((2,), 'float32', np.ones(2, np.float32).tobytes())))
  cache('org/name', {'flax_model.msgpack': msgpack.packb({'dense': {'bias': array}})})
  found = readers.read('hf:org/name')
  assert list(found) == ['dense/bias'] and (found['dense/bias'] == 1).all()
