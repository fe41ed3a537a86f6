"""How experiments/hymenoptera.py fine-tunes, chosen within its training photos: from a new head or from the probe.

python -m transferlab.main --config=experiments/choices/hymenoptera_fine_tuning.py

Every seed holds back another quarter of the 244 photos of train and tests on it; the folder val is not read. Seen (five
quarters; two CPU cores, beside other jobs): probe .875, 40 steps .836, 100 steps .862, the probe and then all .882.
"""

import runpy
from pathlib import Path


def get_config(arg: str = ''):
  """MobileNet; the probe, and three ways to move its trunk."""
  config = runpy.run_path(str(Path(__file__).parent.parent / 'hymenoptera.py'))['get_config'](arg)
  probe = config.axes['method']['probe']['phases'][0]
  tuning = dict(probe, train='.*', learning_rate=[('head', 3e-3), ('.*', 1e-5)])
  config.base['target']['data'].update(name='folder:data/hymenoptera_data/train', test=0.25)
  config.base.update(config.axes['network']['mobilenet'])
  config.axes = dict(
    method={
      'probe': {'phases': [probe]},
      'full, 40 steps': {'phases': [dict(tuning, steps=40)]},
      'full, 100 steps': {'phases': [dict(tuning, steps=100)]},
      'probe, then full': {'phases': [probe, dict(tuning, steps=40, learning_rate=1e-5)]},
    },
    seed={str(seed): {'seed': seed, 'target.data.split_seed': seed} for seed in range(5)},
  )
  return config
