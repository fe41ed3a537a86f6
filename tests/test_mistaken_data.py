"""Data that are unfit, through the command line: one message that says what to do, exit status 2, nothing written."""

import cv2
import numpy as np
import pytest

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8)


def _folder(place, **classes):
  """Class folders with so many images each."""
  for name, count in classes.items():
    (place / name).mkdir(parents=True)
    for number in range(count):
      cv2.imwrite(str(place / name / f'{number}.jpg'), IMAGE + number)
  return place


def _truncated(place):
  file = _folder(place, ant=4, bee=4) / 'ant' / '2.jpg'
  file.write_bytes(file.read_bytes()[:200])


def _no_image(place):
  (_folder(place, ant=4, bee=4) / 'bee' / 'notes.jpg').write_text('not an image')


def _single(place):
  _folder(place, ant=1, bee=4)


def _none(place):
  _folder(place, ant=0, bee=0)


FOLDERS = {
  'no images': (_none, 'no image in any class folder'),
  'a class with one image': (_single, "'ant'"),
  'a truncated photo': (_truncated, 'ant/2.jpg'),
  'a file that is no image': (_no_image, 'bee/notes.jpg'),
}
FILES = {
  'ragged rows': ('a.csv', b'x,y\n1,u\n2,v,3\n', 'line 3 has 3 values, and the header names 2 columns'),
  'a missing label column': ('a.csv', b'x,z,u\n1,2,3\n2,3,4\n', 'no column label, target, class, y'),
  'a misspelt label column': ('a.csv,label=lable', b'x,label\n1,u\n2,v\n', "'lable'; nearest: label"),
  'text that is not UTF-8': ('a.tsv', b'label\ttext\nu\tcaf\xe9\nv\ttea\n', 'is not UTF-8; convert the file'),
  'a line that is no object': ('a.jsonl', b'{"x": 1, "y": 2}\n[1, 2]\n', 'line 2 is an array; needed: an object'),
  'a file that is not there': ('b.csv', b'', "no file '"),
}


@pytest.fixture
def answered(command, tiny, write_config, tmp_path):
  """`answered(spec, message)`: asserts the answer to a config on these data, with options behind commas."""

  def check(spec, message):
    name, *options = spec.split(',')
    data = {'name': name, **dict(option.split('=') for option in options)}
    file = write_config(tmp_path / 'mine.py', tiny(target=dict(data=data)))
    done = command(f'--config={file}', f'--workdir={tmp_path / "run"}')
    assert done.status == 2
    assert done.err.startswith('error: ') and done.err.count('\n') == 1, done.err
    assert message in done.err
    assert not (tmp_path / 'run').exists()

  return check


@pytest.mark.parametrize('case', FOLDERS)
def test_folders_of_images_that_are_unfit(case, answered, tmp_path):
  make, message = FOLDERS[case]
  make(tmp_path / 'photos')
  answered(f'folder:{tmp_path / "photos"}', message)


@pytest.mark.parametrize('case', FILES)
def test_files_of_tables_that_are_unfit(case, answered, tmp_path):
  name, content, message = FILES[case]
  kind = name.partition(',')[0].rpartition('.')[2]
  (tmp_path / f'a.{kind}').write_bytes(content)
  answered(f'{kind}:{tmp_path}/{name}', message)


def test_a_label_that_only_the_test_part_has(answered, tmp_path):
  (tmp_path / 'train.csv').write_text('x,y\n1,u\n2,v\n')
  (tmp_path / 'test.csv').write_text('x,y\n1,u\n2,w\n')
  answered(f'csv:{tmp_path}', "class 'w' of 'y' is in 1 rows of part 'test' and in none of 'train'")


def test_data_sets_of_tfds_that_do_not_exist(answered):
  answered('tfds:minst', "unknown TFDS data set 'minst'; nearest: mnist")
