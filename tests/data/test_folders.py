"""Folders of photos: which files are read, in which order, as which class; and what is wrong with the others."""

import concurrent.futures
import io
import itertools
import multiprocessing
import os
import pickle
import shutil
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from transferlab.data.columns import Column
from transferlab.data.decoding import Resize
from transferlab.data.examples import digest
from transferlab.data.folders import read_folder
from transferlab.errors import UserError

FOLDER = os.environ.get('TRANSFERLAB_TEST_DATA')


def _pixels(number, height=6, width=8, channels=3):
  return np.random.default_rng(number).integers(0, 256, (height, width, channels)).astype(np.uint8)


def _encoded(image, form='PNG', **options):
  stream = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, form, **options)
  return stream.getvalue()


def _write(root, files):
  """Files by path: images as PNG, bytes as they are."""
  for path, contents in files.items():
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(_encoded(contents) if isinstance(contents, np.ndarray) else contents)
  return root


def _two_classes(root, **others):
  return _write(
    root, {f'{name}/{n}.png': _pixels(n + 10 * c) for c, name in enumerate('ab') for n in range(3)} | others
  )


def _read(root, resize=None, channels=None, corrupt='refuse'):
  return read_folder(str(root), resize, channels, corrupt)


def _refused(root, *, resize=None, corrupt='refuse'):
  with pytest.raises(UserError) as caught:
    _read(root, resize, None, corrupt)
  assert '\n' not in str(caught.value)
  return str(caught.value)


# ------------------------------------------------------------------------------------------------------- what is read
def test_images_and_labels_are_those_of_the_files_by_class_and_then_by_name(tmp_path):
  root = _write(tmp_path, {'b/2.png': _pixels(0), 'a/9.png': _pixels(1), 'b/1.png': _pixels(2), 'a/10.png': _pixels(3)})
  examples = _read(root)
  np.testing.assert_array_equal(np.asarray(examples.arrays['x']), [_pixels(n) for n in (3, 1, 2, 0)])
  assert examples.arrays['label'].tolist() == [0, 0, 1, 1]
  assert examples.arrays['id'].tolist() == [0, 1, 2, 3]
  info = examples.info
  assert (info.kind, info.classes, info.low, info.high, examples.official) == ('image', ('a', 'b'), 0, 255, None)
  assert isinstance(examples.arrays['x'], Column)


def test_parts_are_found_by_name_and_share_their_classes(tmp_path):
  parts = {'train': 'train', 'Val': 'val', 'testing': 'testing'}
  files = {f'{part}/{c}/{n}.png': _pixels(n) for part in parts for n, c in enumerate('aabb')}
  del files['Val/a/0.png']
  examples = _read(_write(tmp_path, files))
  assert set(examples.official) == set(parts.values())
  for part, name in parts.items():
    numbers = [n for n in range(4) if f'{part}/{"aabb"[n]}/{n}.png' in files]
    np.testing.assert_array_equal(examples.arrays['x'][examples.official[name]], [_pixels(n) for n in numbers])
    assert examples.arrays['label'][examples.official[name]].tolist() == [n // 2 for n in numbers]
  assert sorted(np.concatenate(list(examples.official.values()))) == list(range(len(examples)))


def test_a_single_part_and_classes_named_like_parts_are_no_official_split(tmp_path):
  assert _read(_two_classes(tmp_path / 'one' / 'train').parent).official is None
  named = _write(tmp_path / 'two', {f'{name}/{n}.png': _pixels(n) for name in ('train', 'test') for n in range(2)})
  assert (_read(named).official, _read(named).info.classes) == (None, ('test', 'train'))


def test_names_of_classes_and_files_are_free(tmp_path):
  classes = ('1_one', 'Émile et Zoé', 'with space', '東京', "quote'd [x]*")
  names = ('no_extension', 'a.JPG', 'b.jpeg', 'c.txt', 'ü ñ.png', 'x' * 200)
  root = _write(tmp_path, {f'{c}/{n}': _pixels(i * 10 + j) for i, c in enumerate(classes) for j, n in enumerate(names)})
  examples = _read(root)
  assert examples.info.classes == tuple(sorted(classes))
  for number, name in enumerate(sorted(classes)):
    expected = [_pixels(classes.index(name) * 10 + names.index(file)) for file in sorted(names)]
    np.testing.assert_array_equal(examples.arrays['x'][examples.arrays['label'] == number], expected)


def test_hidden_files_and_folders_are_ignored_and_nested_ones_read(tmp_path):
  hidden = {'a/.DS_Store': b'x', '.git/c/1.png': b'x', 'b/.thumbs/1.png': b'x', '.DS_Store': b'x', 'readme.txt': b'x'}
  root = _two_classes(tmp_path, **hidden, **{'a/deep/er/0.png': _pixels(77)})
  examples = _read(root)
  expected = [_pixels(n) for n in (0, 1, 2, 77, 10, 11, 12)]
  np.testing.assert_array_equal(np.asarray(examples.arrays['x']), expected)


def test_a_class_is_one_however_its_accents_are_written(tmp_path):
  files = {}
  for number, (part, form) in enumerate([('train', 'NFC'), ('val', 'NFD')]):
    for name in ('café', 'thé'):
      files[f'{part}/{unicodedata.normalize(form, name)}/1.png'] = _pixels(number)
  examples = _read(_write(tmp_path, files))
  assert examples.info.classes == ('café', 'thé')
  assert examples.arrays['label'].tolist() == [0, 1, 0, 1]


def test_names_that_are_no_unicode_are_read(tmp_path):
  odd = Path(os.fsdecode(os.fsencode(tmp_path) + b'/\xff\xfe'))
  _write(_two_classes(tmp_path), {str(odd / os.fsdecode(b'\xff.png')): _pixels(5), str(odd / '2.png'): _pixels(6)})
  examples = _read(tmp_path)
  assert examples.info.classes[2] == '\ufffd\ufffd'
  np.testing.assert_array_equal(examples.arrays['x'][6:], [_pixels(6), _pixels(5)])
  digest(examples).encode('ascii')


def test_links_to_files_and_folders_are_followed_once(tmp_path):
  root = _two_classes(tmp_path / 'mine')
  _write(tmp_path / 'elsewhere', {'1.png': _pixels(50), 'deep/2.png': _pixels(51)})
  (root / 'c').symlink_to(tmp_path / 'elsewhere')
  (root / 'c' / 'loop').symlink_to(root / 'c')
  (root / 'c' / 'deep' / 'up').symlink_to('..')
  (root / 'a' / '7.png').symlink_to(tmp_path / 'elsewhere' / '1.png')
  examples = _read(root)
  expected = [_pixels(n) for n in (0, 1, 2, 50, 10, 11, 12, 50, 51)]
  np.testing.assert_array_equal(np.asarray(examples.arrays['x']), expected)


def test_pipes_are_not_waited_for(tmp_path):
  root = _two_classes(tmp_path)
  os.mkfifo(root / 'a' / 'pipe')
  assert len(_read(root)) == 6


# ------------------------------------------------------------------------------------------------------- pixels
def test_channels_are_those_of_the_most_colourful_image_or_as_told(tmp_path):
  grey = {f'{name}/{n}.png': _pixels(n, channels=1) for name in 'ab' for n in range(2)}
  plain = _read(_write(tmp_path / 'grey', grey))
  np.testing.assert_array_equal(plain.arrays['x'][:2], [_pixels(n, channels=1) for n in range(2)])
  as_colour = {path: np.repeat(image, 3, axis=-1) for path, image in grey.items()}
  np.testing.assert_array_equal(
    np.asarray(_read(_write(tmp_path / 'rgb', as_colour)).arrays['x']), plain.arrays['x'][:]
  )
  mixed = _write(tmp_path / 'grey', {'b/9.png': _pixels(9)})
  x = np.asarray(_read(mixed).arrays['x'])
  np.testing.assert_array_equal(x[4], _pixels(9))
  np.testing.assert_array_equal(x[0], np.repeat(_pixels(0, channels=1), 3, axis=-1))
  forced = np.asarray(_read(mixed, channels=1).arrays['x'])
  np.testing.assert_array_equal(forced[0], _pixels(0, channels=1))
  assert np.abs(forced[4, ..., 0] - _pixels(9) @ [0.299, 0.587, 0.114]).max() <= 1.5
  np.testing.assert_array_equal(_read(_write(tmp_path / 'g', grey), channels=3).arrays['x'][0], x[0])


def test_images_of_different_sizes_are_brought_to_one(tmp_path):
  root = _write(tmp_path, {f'{n % 2}/{n}.png': np.full((9 + n, 30 - n, 3), [40 * n, 0, 9], np.uint8) for n in range(4)})
  x = _read(root, Resize(size=[5, 7])).arrays['x']
  assert x.shape == (4, 5, 7, 3)
  np.testing.assert_array_equal(np.asarray(x)[..., 0], np.repeat([0, 80, 40, 120], 35).reshape(4, 5, 7))
  message = _refused(root)
  assert '9×30 (0.png) and 11×28 (2.png)' in message and 'resize=dict(size=224)' in message


@pytest.mark.parametrize(('height', 'width'), [(12, 10), (17, 16), (9, 8), (1, 1), (40, 80)])
@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'TIFF'])
@pytest.mark.parametrize('orientation', [1, 6])
def test_images_of_one_size_need_no_resizing_turned_or_not(tmp_path, height, width, form, orientation):
  exif = Image.Exif()
  exif[0x112] = orientation
  options = {'tiffinfo': {0x112: orientation}} if form == 'TIFF' else {'exif': exif}
  files = {f'{name}/{n}': _encoded(_pixels(n, height, width), form, **options) for name in 'ab' for n in range(2)}
  x = _read(_write(tmp_path, files)).arrays['x']
  assert x.shape[1:3] == ((height, width) if orientation == 1 else (width, height))
  if form != 'JPEG':
    turned = np.rot90(_pixels(1, height, width), -1) if orientation == 6 else _pixels(1, height, width)
    np.testing.assert_array_equal(np.asarray(x)[1], turned)


@pytest.mark.skipif(not FOLDER, reason='TRANSFERLAB_TEST_DATA is unset')
def test_hymenoptera_is_read_as_opencv_reads_it():
  root = Path(FOLDER) / 'images' / 'hymenoptera'
  examples = _read(root, Resize(size=64))
  assert examples.info.classes == ('ants', 'bees')
  assert {name: len(rows) for name, rows in examples.official.items()} == {'train': 244, 'val': 153}
  for name, rows in examples.official.items():
    files = [sorted((root / name / each).iterdir()) for each in ('ants', 'bees')]
    assert np.bincount(examples.arrays['label'][rows]).tolist() == list(map(len, files))
    for row, file in list(zip(rows, itertools.chain(*files)))[::25]:
      # Reduced to a quarter, as its shorter side of 256 allows; then the shorter side to 64, and the longer's centre.
      width, height = Image.open(file).size
      image = cv2.imread(str(file), cv2.IMREAD_REDUCED_COLOR_4)[: round(height / 4), : round(width / 4), ::-1]
      size = round(width * 64 / min(height, width)), round(height * 64 / min(height, width))
      image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
      above, left = (size[1] - 64) // 2, (size[0] - 64) // 2
      np.testing.assert_array_equal(examples.arrays['x'][row], image[above : above + 64, left : left + 64], str(file))


# ------------------------------------------------------------------------------------------------------- identity
def test_the_digest_changes_with_a_byte_and_not_with_the_place_or_the_time(tmp_path):
  first = digest(_read(_two_classes(tmp_path / 'here')))
  moved = shutil.copytree(tmp_path / 'here', tmp_path / 'elsewhere' / 'there', copy_function=shutil.copyfile)
  assert digest(_read(moved)) == first
  file = moved / 'a' / '1.png'
  whole = file.read_bytes()
  file.write_bytes(whole + b'\0')  # the same pixels, in another file
  assert digest(_read(moved)) != first
  file.write_bytes(whole)
  assert digest(_read(moved)) == first
  os.rename(moved / 'a' / '2.png', moved / 'a' / '3.png')  # still the last of its class
  assert digest(_read(moved)) == first
  os.rename(moved / 'a' / '3.png', moved / 'a' / '0a.png')  # now the second
  assert digest(_read(moved)) != first
  os.rename(moved / 'a' / '0a.png', moved / 'b' / '0a.png')
  assert digest(_read(moved)) != first


def test_the_digest_changes_with_how_images_are_decoded(tmp_path):
  root = _two_classes(tmp_path)
  ways = [(), (Resize(size=4),), (Resize(size=4, mode='pad'),), (Resize(size=5),), (None, 1), (None, 3)]
  digests = [digest(_read(root, *way)) for way in ways]
  assert len(set(digests)) == 5 and digests[0] == digests[5]  # there are colours, so 3 is what None means


def _rows_of(column, rows):
  return column[rows]


def test_a_column_of_files_reads_the_same_in_another_process_and_in_many_threads(tmp_path):
  x = _read(_two_classes(tmp_path)).arrays['x']
  whole = np.asarray(x)
  np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(x))), whole)
  with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
    np.testing.assert_array_equal(pool.submit(_rows_of, x.take(np.array([5, 0])), slice(None)).result(), whole[[5, 0]])
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for row, found in enumerate(pool.map(lambda row: x[[row, 0]], range(6))):
      np.testing.assert_array_equal(found, whole[[row, 0]])


# ------------------------------------------------------------------------------------------------------- what is not
DAMAGED = {
  'a/empty.png': (b'', 'is empty'),
  'a/notes.png': (b'words', 'is no image'),
  'b/short.jpg': (_encoded(_pixels(3), 'JPEG')[:-40], 'is a JPEG that was cut short'),
  'b/short.png': (_encoded(_pixels(3))[:-30], 'is a PNG that was cut short'),
  'b/broken.bmp': (_encoded(_pixels(3), 'BMP')[:80], 'cannot be decoded: it is damaged'),
}


def test_damaged_files_are_refused_by_name_with_the_way_out(tmp_path):
  for path, (contents, says) in DAMAGED.items():
    root = _two_classes(tmp_path / path.replace('/', '_'), **{path: contents})
    message = _refused(root)
    assert message.startswith(f'{root / path} {says}') and "data.corrupt='skip'" in message
  everything = _two_classes(tmp_path / 'all', **{path: contents for path, (contents, _) in DAMAGED.items()})
  assert '(and 4 more)' in _refused(everything)


def test_damaged_files_that_are_skipped_are_noted_and_leave_the_others_as_they_are(tmp_path):
  plain = _read(_two_classes(tmp_path / 'plain'))
  root = _two_classes(tmp_path / 'more', **{path: contents for path, (contents, _) in DAMAGED.items()})
  examples = _read(root, corrupt='skip')
  np.testing.assert_array_equal(np.asarray(examples.arrays['x']), np.asarray(plain.arrays['x']))
  np.testing.assert_array_equal(examples.arrays['label'], plain.arrays['label'])
  assert len(examples.info.notes) == 5 and not plain.info.notes
  for path, (_, says) in DAMAGED.items():
    assert any(note.startswith(f'skipped: {root / path} {says}') for note in examples.info.notes)
  assert digest(examples) == digest(plain)


def test_rows_of_parts_move_up_where_files_are_skipped(tmp_path):
  files = {f'{part}/{c}/{n}.png': _pixels(n) for part in ('test', 'train') for n, c in enumerate('aabb')}
  files['test/a/0.png'] = b''
  examples = _read(_write(tmp_path, files), corrupt='skip')
  np.testing.assert_array_equal(examples.arrays['x'][examples.official['train']], [_pixels(n) for n in range(4)])
  np.testing.assert_array_equal(examples.arrays['x'][examples.official['test']], [_pixels(n) for n in range(1, 4)])


def test_links_that_lead_nowhere_and_files_that_may_not_be_read_are_damaged_files(tmp_path, monkeypatch):
  root = _two_classes(tmp_path)
  (root / 'a' / 'lost.png').symlink_to('nowhere.png')
  (root / 'b' / 'ring.png').symlink_to('ring.png')
  assert f'{root}/a/lost.png cannot be read (No such file or directory) (and 1 more)' in _refused(root)
  assert any('ring.png cannot be read (Too many levels' in note for note in _read(root, corrupt='skip').info.notes)
  for link in ('a/lost.png', 'b/ring.png'):
    (root / link).unlink()

  def forbidden(file):
    raise PermissionError(13, 'Permission denied', str(file))

  monkeypatch.setattr(Path, 'read_bytes', forbidden)
  assert f'no image in any class folder ({root}/a/0.png cannot be read (Permission denied))' in _refused(root)


def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch):
  root = _two_classes(tmp_path)
  listed = os.scandir

  def forbidden(place):
    if str(place).endswith('/b'):
      raise PermissionError(13, 'Permission denied', str(place))
    return listed(place)

  monkeypatch.setattr(os, 'scandir', forbidden)
  assert _refused(root) == f'the folder {root}/b cannot be read (Permission denied)'
  monkeypatch.setattr(os, 'listdir', lambda place: forbidden(f'{place}/b'))  # as pathlib lists
  monkeypatch.setattr(os, 'scandir', lambda place: forbidden(f'{place}/b'))
  assert 'cannot be read (Permission denied)' in _refused(root)


def test_a_missing_folder_names_the_nearest_that_is_there(tmp_path):
  (tmp_path / 'flowers').mkdir()
  (tmp_path / 'birds').mkdir()
  assert _refused(tmp_path / 'flower') == f"no folder '{tmp_path}/flower'; nearest in '{tmp_path}': flowers"
  assert f"nearest in '{tmp_path}': birds" in _refused(tmp_path / 'bird' / 'train')
  assert 'no folder at all' in _refused(tmp_path / 'birds' / 'train')


def test_a_file_in_place_of_a_folder_is_called_one(tmp_path):
  _write(tmp_path, {'photos.zip': b'PK'})
  assert 'photos.zip is a file; needed: a folder' in _refused(tmp_path / 'photos.zip')


@pytest.mark.parametrize(
  ('files', 'says'),
  [
    ({'1.png': _pixels(0)}, 'holds no class folders; needed: {root}/CLASS/FILE or {root}/PART/CLASS/FILE'),
    ({'a/.keep': b'', 'b/.keep': b''}, 'no image in any class folder'),
    ({'a/1.txt': b'x', 'b/.keep': b''}, 'no image in any class folder ({root}/a/1.txt is no image'),
    ({'a/1.png': _pixels(0), 'a/2.png': _pixels(1), 'b/.keep': b''}, "class folder 'b' holds no image"),
    ({'a/1.png': _pixels(0), 'a/2.png': _pixels(1)}, "has one class folder ('a'), so there is nothing to tell apart"),
    ({'a/1.png': _pixels(0), 'a/2.png': _pixels(1), 'b/1.png': _pixels(0)}, "class 'b' has one image"),
    (
      {'train/a/1.png': _pixels(0), 'train/b/1.png': _pixels(0), 'test/c/1.png': _pixels(0)},
      "class 'c' occurs in 'test' and never in 'train'",
    ),
    ({'train/a/1.png': _pixels(0), 'more/1.png': _pixels(0)}, "holds parts (train) beside a folder 'more'"),
    ({'train/a/1.png': _pixels(0), 'Train/a/1.png': _pixels(0)}, 'differ in capitals only (Train, train)'),
  ],
)
def test_folders_of_another_form_end_with_one_message(tmp_path, files, says):
  assert says.format(root=tmp_path) in _refused(_write(tmp_path, files))


def test_only_skipped_files_make_a_class_empty(tmp_path):
  root = _write(tmp_path, {'a/1.png': _pixels(0), 'a/2.png': _pixels(1), 'b/1.png': b'', 'b/2.png': b'x'})
  assert "class folder 'b' holds no image" in _refused(root, corrupt='skip')


def test_files_that_go_or_change_after_loading_are_named_when_they_are_read(tmp_path):
  root = _two_classes(tmp_path)
  x = _read(root).arrays['x']
  (root / 'a' / '1.png').unlink()
  _write(root, {'b/0.png': _pixels(0, 3, 3), 'b/1.png': b'short'})
  np.testing.assert_array_equal(x[[0, 5]], [_pixels(0), _pixels(12)])
  for row, says in (
    (1, r'a/1.png can no longer be read \(No such file'),
    (3, 'b/0.png is no longer 6×8'),
    (4, 'damaged'),
  ):
    with pytest.raises(UserError, match=says):
      x[row]
  with pytest.raises(UserError, match=r'a/1\.png'):
    np.asarray(x)
