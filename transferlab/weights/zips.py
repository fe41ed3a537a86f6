"""Members of a zip archive that are stored as they are, and can so be read where they lie. Reads files.

What the members mean is the affair of the reader of each format; compressed ones are zipfile's.
"""

import io
from typing import Any

# A member's local header (APPNOTE 4.3.7): a signature, and at its end the lengths of the name and the extra field that
# follow. They are its own: the list at the end of the archive may have others.
SIGNATURE, LENGTHS, HEADER = b'PK\3\4', 26, 30


def data_start(file: Any, header_offset: int) -> int:
  """The first byte of a stored member, given the open archive. Raises `ValueError` where no member begins there."""
  file.seek(header_offset)
  header = file.read(HEADER)
  if len(header) < HEADER or not header.startswith(SIGNATURE):
    raise ValueError('its entry of the archive is damaged')
  name, extra = (int.from_bytes(header[at : at + 2], 'little') for at in (LENGTHS, LENGTHS + 2))
  return header_offset + HEADER + name + extra


class Window(io.RawIOBase):
  """A stretch of a file as a file of its own."""

  def __init__(self, file: io.FileIO, start: int, size: int):
    self._file, self._start, self._size, self._place = file, start, size, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
    return self._place

  def tell(self) -> int:
    return self._place

  def readinto(self, buffer: Any) -> int:
    view = memoryview(buffer).cast('B')[: max(self._size - self._place, 0)]
    self._file.seek(self._start + self._place)
    count = self._file.readinto(view)
    self._place += count
    return count
