"""Labels of further data in the numbers of a run's classes."""

import dataclasses

import numpy as np
import pytest

from transferlab.data.examples import Info, matched
from transferlab.errors import UserError


def _classes(*names):
  return Info('table', 'classification', names)


@pytest.mark.parametrize(
  ('theirs', 'mine', 'expected'),
  [
    ('abc', 'abc', [0, 1, 2]),
    ('cab', 'abc', [2, 0, 1]),
    ('bd', 'abcd', [1, 3]),
    ('57', '3579', [1, 2]),
    ('012', 'abc', [0, 1, 2]),
    ('abc', '012', [0, 1, 2]),
  ],
)
def test_classes_of_further_data_are_matched_by_name_or_by_number(theirs, mine, expected):
  label = np.arange(len(theirs)).astype(np.int32)
  assert matched(label, _classes(*theirs), _classes(*mine), 'other').tolist() == expected
  tasks = [dataclasses.replace(_classes(*names), tasks={'one': _classes(*names)}) for names in (theirs, mine)]
  assert matched({'one': label}, *tasks, 'other')['one'].tolist() == expected


@pytest.mark.parametrize(
  ('theirs', 'mine', 'message'),
  [
    (_classes('cat', 'dog', 'fox'), _classes('cat', 'dog', 'emu'), "unknown class of other 'fox'; nearest: cat"),
    (_classes('0', '1'), _classes('1', '2'), "unknown class of other '0'"),
    (_classes('0', '1'), _classes('a', 'b', 'c'), "unknown class of other '0'"),
    (_classes('a', 'b'), Info('table', 'regression', targets=('y',)), 'other is for classification with 2 outputs'),
    (_classes('a', 'b'), dataclasses.replace(_classes('a', 'b'), tasks={'one': _classes('a')}), 'other has the labels'),
  ],
)
def test_further_data_of_other_classes_or_tasks_are_refused(theirs, mine, message):
  with pytest.raises(UserError, match=message):
    matched(np.zeros(1, np.int32), theirs, mine, 'other')
