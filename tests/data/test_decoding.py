"""Decoding: the pixels Pillow finds, geometry by integrals written out here, and files that are cut short are known."""

import io
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from transferlab.config import validate
from transferlab.data.decoding import Resize, decode, fault, jpeg_size, read_image, reduction, resize
from transferlab.errors import UserError

FOLDER = os.environ.get('TRANSFERLAB_TEST_DATA')
needs_data = pytest.mark.skipif(not FOLDER, reason='TRANSFERLAB_TEST_DATA is unset')


def _smooth(height=48, width=80, channels=3, seed=0):
  """A picture that JPEG keeps well: a few random waves."""
  small = np.random.default_rng(seed).uniform(0, 255, (4, 6, channels)).astype(np.float32)
  large = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
  return large.clip(0, 255).astype(np.uint8)


def _file(image, form='PNG', **options):
  stream = io.BytesIO()
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, form, **options)
  return stream.getvalue()


def _exif(data, orientation):
  """The JPEG with an orientation, in an APP1 segment put behind its first marker (EXIF 2.3, 4.5.4 and 4.6.2)."""
  entry = struct.pack('<H', 1) + struct.pack('<HHIHH', 0x112, 3, 1, orientation, 0) + struct.pack('<I', 0)
  contents = b'Exif\0\0' + b'II*\0' + struct.pack('<I', 8) + entry
  return data[:2] + b'\xff\xe1' + struct.pack('>H', len(contents) + 2) + contents + data[2:]


def _thumbnail(data, thumbnail):
  """The JPEG with another one inside an APP1 segment."""
  return data[:2] + b'\xff\xe1' + struct.pack('>H', len(thumbnail) + 2) + thumbnail + data[2:]


# ------------------------------------------------------------------------------------------------------- geometry
def _averages(before, after):
  """[after, before]: the share of each old pixel in each new one, by the overlap of their intervals."""
  edges = np.arange(after + 1) * before / after
  low, high = np.maximum(edges[:-1, None], np.arange(before)), np.minimum(edges[1:, None], np.arange(before) + 1)
  return np.maximum(high - low, 0) * after / before


def _lines(before, after):
  """[after, before]: linear interpolation between the centres of pixels, constant beyond the outermost."""
  centres = ((np.arange(after) + 0.5) * before / after - 0.5).clip(0, before - 1)
  return np.maximum(1 - np.abs(centres[:, None] - np.arange(before)), 0)


def _weights(before, after):
  return (_averages if after <= before else _lines)(before, after)


def _expected(image, height, width, mode):
  """float64: shrinking sides averaged over areas, growing ones interpolated, then the middle or a frame of zeros."""
  if mode == 'exact':
    inner = height, width
  else:
    scales = height / image.shape[0], width / image.shape[1]
    scale = max(scales) if mode == 'shorter' else min(scales)
    inner = round(image.shape[0] * scale), round(image.shape[1] * scale)
  rows, columns = _weights(image.shape[0], inner[0]), _weights(image.shape[1], inner[1])
  result = np.einsum('ih,hwc,jw->ijc', rows, image.astype(np.float64), columns)
  canvas = np.zeros((height, width, image.shape[2]))
  if mode == 'pad':
    above, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas[above : above + inner[0], left : left + inner[1]] = result
    return canvas
  above, left = (inner[0] - height) // 2, (inner[1] - width) // 2
  return result[above : above + height, left : left + width]


@pytest.mark.parametrize('mode', ['shorter', 'exact', 'pad'])
@pytest.mark.parametrize('size', [16, 33, 48, [20, 96], [96, 20], [100, 100], [1, 7]], ids=str)
@pytest.mark.parametrize('shape', [(48, 80, 3), (61, 37, 1), (9, 9, 3), (1, 5, 1)], ids=str)
def test_every_size_and_mode_equals_integrals_over_pixels(shape, size, mode):
  image = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
  to = Resize(size=size, mode=mode)
  found = resize(image, to)
  assert (found.shape, found.dtype) == ((*to.sides, shape[2]), np.uint8)
  # Rounded once or, where one side shrinks and the other grows, twice; OpenCV's interpolation has 11-bit weights.
  assert np.abs(found - _expected(image, *to.sides, mode)).max() <= 1.6


def test_shrinking_by_whole_factors_is_the_mean_of_blocks_as_in_pillow():
  image = _smooth(48, 96)
  found = resize(image, Resize(size=[12, 24], mode='exact'))
  boxes = np.asarray(Image.fromarray(image).resize((24, 12), Image.Resampling.BOX))
  assert np.abs(found.astype(int) - boxes).max() <= 1


def test_shorter_keeps_the_centre_and_pad_keeps_everything():
  """A horizontal ramp: what is kept shows which columns it came from."""
  ramp = np.broadcast_to(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (40, 120, 1))
  cut = resize(ramp, Resize(size=40))[0, :, 0]
  np.testing.assert_array_equal(cut, np.arange(40, 80) * 2)
  padded = resize(ramp, Resize(size=60, mode='pad'))[..., 0]
  np.testing.assert_array_equal(padded[20:40], np.broadcast_to(np.arange(60) * 4 + 1, (20, 60)))
  assert not padded[:20].any() and not padded[40:].any()


@pytest.mark.parametrize('turned', [False, True])
def test_a_line_of_20000_pixels_takes_the_memory_of_what_is_kept_of_it(turned, monkeypatch):
  line = (np.arange(20000) % 251).astype(np.uint8).reshape(1, -1, 1)
  image = np.ascontiguousarray(line.swapaxes(0, 1)) if turned else line
  sizes, scale = [], cv2.resize
  monkeypatch.setattr(cv2, 'resize', lambda image, size, **way: sizes.append(size) or scale(image, size, **way))
  found = resize(image, Resize(size=64))
  assert max(map(max, sizes)) <= 64 * 17  # and not 64 * 20000
  found = found.swapaxes(0, 1) if turned else found
  places = (np.arange(64) - 32 + 0.5) / 64 + 20000 / 2 - 0.5
  expected = np.interp(places, np.arange(20000), line[0, :, 0])
  assert np.abs(found[..., 0] - expected).max() <= 1
  assert resize(image, Resize(size=64, mode='pad')).max() > 0
  assert resize(image, Resize(size=64, mode='exact')).shape == (64, 64, 1)


@pytest.mark.parametrize('size', [0, [5], [5, 5, 5], 2**15, 2.5])
def test_sizes_that_are_none_are_refused_in_the_config(size):
  with pytest.raises(UserError, match='size'):
    validate(Resize, {'size': size})


# ------------------------------------------------------------------------------------------------------- JPEG
def test_a_reduced_jpeg_looks_like_the_whole_one_averaged():
  """Within 1 grey level in the mean and 12 anywhere, at every factor (its inverse cosine transform is cut short)."""
  data = _file(_smooth(640, 800), 'JPEG', quality=95)
  for size, factor in ((640, 1), (320, 2), (150, 4), (60, 8)):
    to = Resize(size=size)
    assert reduction(data, to.sides) == factor
    for channels in (1, 3):
      difference = np.abs(read_image(data, channels, to, '').astype(int) - resize(decode(data, channels), to))
      assert difference.mean() <= 1 and difference.max() <= 12


@pytest.mark.parametrize(
  ('height', 'width', 'sides', 'factor'),
  [(64, 64, (8, 8), 8), (63, 64, (8, 8), 4), (64, 63, (8, 8), 4), (64, 64, (9, 9), 4), (31, 500, (8, 8), 2),
   (15, 500, (8, 8), 1), (640, 80, (20, 10), 4), (640, 80, (10, 20), 4), (7, 7, (1, 1), 4),
   (65, 67, (8, 8), 8), (68, 69, (8, 8), 8)],
)  # fmt: skip
def test_the_reduction_is_the_largest_that_still_covers(height, width, sides, factor):
  data = _file(_smooth(height, width), 'JPEG')
  assert reduction(data, sides) == factor
  reduced = decode(data, 3, sides)
  assert reduced.shape[:2] == (round(height / factor), round(width / factor))
  assert min(reduced.shape[:2]) >= max(sides) or factor == 1
  assert reduction(_file(_smooth(height, width)), sides) == 1  # a PNG cannot be reduced


@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'quality': 100, 'subsampling': 0}, {'restart': 1}])
@pytest.mark.parametrize('shape', [(48, 80), (17, 5), (1, 1)])
def test_the_size_in_a_jpegs_header_is_that_of_its_pixels(shape, options):
  interval = {'restart_marker_blocks': options['restart']} if 'restart' in options else options
  data = _file(_smooth(*shape), 'JPEG', **interval)
  for version in (data, _exif(data, 1), _thumbnail(data, _file(_smooth(8, 8), 'JPEG')), data + b'\xff\xd8' * 9):
    assert jpeg_size(version) == cv2.imdecode(np.frombuffer(version, np.uint8), cv2.IMREAD_UNCHANGED).shape[:2] == shape
    assert fault(version) is None
  # A table of Huffman codes, whose marker is like one of a frame, may come first (T.81, B.2.4).
  start = data.index(b'\xff\xc4')
  table = data[start : start + 2 + int.from_bytes(data[start + 2 : start + 4], 'big')]
  assert jpeg_size(data[:2] + table + data[2:]) == shape
  # Padding before a marker is allowed (T.81, B.1.1.2).
  assert jpeg_size(data[:2] + b'\xff' * 5 + data[2:]) == shape


def test_what_is_no_jpeg_has_no_size():
  for data in (b'', b'\xff\xd8', b'\xff\xd8\xff', _file(_smooth()), b'\xff\xd8\xff\xc0\0', b'text' * 99):
    assert jpeg_size(data) is None


@needs_data
def test_every_real_photo_is_whole_and_has_the_size_its_header_says():
  files = sorted((Path(FOLDER) / 'images' / 'hymenoptera').glob('*/*/*'))
  assert len(files) == 397
  for file in files:
    data = file.read_bytes()
    assert fault(data) is None, file
    height, width = jpeg_size(data)
    assert Image.open(file).size == (width, height), file
    assert fault(data[: len(data) * 9 // 10]) == 'is a JPEG that was cut short', file


@needs_data
@pytest.mark.parametrize('mode', ['shorter', 'exact', 'pad'])
def test_real_photos_reduced_are_close_to_whole_ones_averaged(mode):
  """Each within 10 of 255 grey levels in the mean, half of them within 3.5; a cut one pixel off makes 20."""
  files = sorted((Path(FOLDER) / 'images' / 'hymenoptera').glob('val/*/*'))[::5]
  for size in (16, 40, 64, 120):
    differences = []
    for file in files:
      data, to = file.read_bytes(), Resize(size=size, mode=mode)
      assert reduction(data, to.sides) > 1
      differences.append(np.abs(read_image(data, 3, to, '').astype(int) - resize(decode(data, 3), to)).mean())
    assert max(differences) < 10 and np.median(differences) < 3.5


@pytest.mark.parametrize('width', range(80, 97))
@pytest.mark.parametrize('orientation', [1, 6])
def test_what_is_cut_off_does_not_depend_on_the_reduction(width, orientation):
  """A ramp, 40 high and so reduced by four, whose left and right ends are cut off: the same columns stay."""
  ramp = np.broadcast_to(np.linspace(20, 235, width)[None, :, None], (40, width, 3)).round().astype(np.uint8)
  data = _exif(_file(ramp, 'JPEG', quality=98), orientation)
  to = Resize(size=10)
  assert reduction(data, to.sides) == 4
  found = read_image(data, 3, to, '').astype(int)
  slope = 215 / (width - 1) * width / round(width / 4)  # grey levels in a pixel of the result
  assert np.abs(found - resize(decode(data, 3), to)).max() <= 0.5 * slope + 2


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('sides', [None, (10, 10)], ids=['whole', 'reduced'])
def test_pictures_are_turned_as_their_exif_says(orientation, sides):
  data = _exif(_file(_smooth(48, 80), 'JPEG', quality=95), orientation)
  upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  if sides:
    upright = upright.resize((upright.width // 4, upright.height // 4), Image.Resampling.BOX)
  found = decode(data, 3, sides)
  assert found.shape[:2] == (upright.height, upright.width)
  assert np.abs(found.astype(int) - np.asarray(upright)).mean() < 2
  assert (found.shape[0] > found.shape[1]) == (orientation >= 5)
  assert decode(data, 1, sides).shape == (upright.height, upright.width, 1)


# ------------------------------------------------------------------------------------------------------- formats
def _variants():
  colour, grey = _smooth(), _smooth(channels=1)[..., 0]
  picture = Image.fromarray(colour)
  alpha = np.dstack([colour, np.full(colour.shape[:2], 200, np.uint8)])
  return {
    'grey': (_file(grey), np.dstack([grey] * 3)),
    'colour': (_file(colour), colour),
    'alpha': (_file(alpha), colour),
    'grey and alpha': (_file(np.dstack([grey, grey]), 'PNG'), np.dstack([grey] * 3)),
    'palette': (_file(picture.quantize(16)), np.asarray(picture.quantize(16).convert('RGB'))),
    'black and white': (_file(Image.fromarray(grey > 99)), np.dstack([(grey > 99) * np.uint8(255)] * 3)),
    '16 bit': (_file(grey.astype(np.uint16) * 257), np.dstack([grey] * 3)),
    'gif': (_file(picture.quantize(16), 'GIF'), np.asarray(picture.quantize(16).convert('RGB'))),
    'webp': (_file(picture, 'WEBP', lossless=True), colour),
    'bmp': (_file(picture, 'BMP'), colour),
    'tiff': (_file(picture, 'TIFF', compression='tiff_lzw'), colour),
    'ppm': (_file(picture, 'PPM'), colour),
    'cmyk tiff': (_file(picture.convert('CMYK'), 'TIFF'), colour),
  }


VARIANTS = _variants()


@pytest.mark.parametrize('name', VARIANTS)
def test_every_format_is_decoded_to_8_bit_rgb_exactly_and_to_grey_by_its_luma(name):
  data, expected = VARIANTS[name]
  assert fault(data) is None
  found = decode(data, 3)
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found, expected)
  luma = expected @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
  grey = decode(data, 1)
  assert grey.shape == (*expected.shape[:2], 1)
  assert np.abs(grey[..., 0] - luma).max() <= 1.5


@pytest.mark.parametrize('mode', ['L', 'RGB', 'CMYK'])
def test_jpegs_of_any_number_of_colours_are_close_to_what_pillow_finds(mode):
  """Within a mean of 3 grey levels: conversions from CMYK differ in their rounding."""
  data = _file(Image.fromarray(_smooth()).convert(mode), 'JPEG', quality=95)
  expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB')).astype(int)
  assert np.abs(decode(data, 3) - expected).mean() < 3
  assert decode(data, 3, (10, 10)).shape == (12, 20, 3)


# ------------------------------------------------------------------------------------------------------- faults
@pytest.mark.parametrize(
  ('data', 'expected'),
  [
    (b'', 'is empty'),
    (b'not an image at all', 'is no image'),
    (b'%PDF-1.7 ...', 'is no image'),
    (b'\0\0\0\x18ftypheic' + bytes(99), 'is no image that can be read'),
    (b'\xff\xd8\xff', 'is a JPEG that was cut short'),
    (b'\x89PNG\r\n\x1a\n', 'is a PNG that was cut short'),
  ],
)
def test_files_that_are_no_images_are_known_by_how_they_begin(data, expected):
  assert fault(data).startswith(expected)


@pytest.mark.parametrize('share', [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize(
  ('form', 'options'),
  [('JPEG', {}), ('JPEG', {'progressive': True}), ('PNG', {}), ('WEBP', {}), ('GIF', {}), ('BMP', {}), ('TIFF', {}),
   ('PPM', {}), ('JPEG2000', {})],
)  # fmt: skip
def test_a_file_that_was_cut_short_is_known_by_its_end_or_not_decoded(form, options, share):
  data = _file(_smooth(), form, **options)
  cut = data[: int(len(data) * share)]
  assert fault(data) is None
  if form in ('JPEG', 'PNG', 'WEBP') and len(cut) > 12:
    assert fault(cut).endswith('that was cut short')
  else:
    assert fault(cut) or decode(cut, 3) is None


def test_a_jpeg_cut_short_behind_its_thumbnail_is_known_and_one_with_a_film_behind_it_is_whole():
  thumbnail = _file(_smooth(24, 40), 'JPEG')
  data = _thumbnail(_file(_smooth(), 'JPEG'), thumbnail)
  assert fault(data) is None
  assert fault(data[: len(thumbnail) + 300]) == 'is a JPEG that was cut short'
  for whole in (data, _file(_smooth())):
    assert fault(whole + b'\0' * 10_000) is None
    np.testing.assert_array_equal(decode(whole + b'\0' * 10_000, 3), decode(whole, 3))


def test_damaged_pixels_of_a_png_are_not_decoded_and_nothing_is_written_about_it(capfd):
  data = bytearray(_file(_smooth()))
  data[len(data) // 2] ^= 255
  assert decode(bytes(data), 3) is None
  assert decode(b'II*\0 no tiff', 3) is None
  with pytest.raises(UserError, match=r'^photo\.png is damaged, or no image$'):
    read_image(bytes(data), 3, None, 'photo.png')
  assert 'ERROR' not in ''.join(capfd.readouterr())
