"""Which parameters to move, when, and how fast: nineteen ways to fine-tune, on three pairs of tasks.

python -m transferlab.main --config=experiments/finetuning_methods.py

Clean to noisy digits and MNIST to USPS from 5 and 20 examples of each class, and ImageNet (MobileNet v1 0.25) to 20
photos of ants and 20 of bees. Every method has the same number of steps and chooses among three learning rates on the
same validation data; all are also measured on test inputs that are worse than those they learnt from ('shifted'). The
CPU profile takes a subset of MNIST, photos of 128 pixels and three seeds; ':full' all of MNIST, 224 pixels, five seeds,
and from 5 and 60 photos as well.

Data: tfds:mnist; usps_all of S. Roweis's page as data/usps.npz (image [11000, 16, 16, 1], label); hymenoptera_data.zip
of PyTorch's transfer-learning tutorial, unpacked in data/. Weights, in weights/: mobilenet_2_5_224_tf.h5 of
keras.applications. Other places: --config.axes.task.photos_20.source.weights=FILE.
"""

from typing import Any

import ml_collections

from transferlab import schedules

ADAM = dict(optimizer='adam', schedule=dict(name='cosine', warmup=0.1))
# The last block of the ResNet or of the MobileNet, and the one before it.
LAST, BEFORE = r'block3/(conv|norm).*|block13', r'block2/(conv|norm).*|block12'


def methods(steps: int, rates: list[float]) -> dict[str, dict[str, Any]]:
  """Overrides of a run by method.

  Args:
    steps: of every method, all its phases together.
    rates: to choose from, for what was copied and trains; what is new may be faster.
  """
  whole, half = dict(ADAM, steps=steps), dict(ADAM, steps=steps // 2)
  probe = dict(half, name='probe', train='head', learning_rate=1e-2)
  full, after = dict(whole, train='.*'), dict(half, name='full', train='.*')
  falling = [[('head', rate), (LAST, rate / 2.6), (BEFORE, rate / 2.6**2), ('.*', rate / 2.6**3)] for rate in rates]
  quarters = [('head', ['head']), ('last', ['head', LAST]), ('before', ['head', LAST, BEFORE]), ('all', ['.*'])]
  gradual = [dict(ADAM, name=name, train=train, steps=steps // 4) for name, train in quarters]
  shares = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]

  def chosen(*phases: dict, values: list | None = None, **more: Any) -> dict[str, Any]:
    return {'phases': list(phases), 'choose': {f'phases.{len(phases) - 1}.learning_rate': values or rates}, **more}

  def beside(**term: Any) -> dict[str, Any]:
    return {'objective': [dict(term='cross_entropy'), term]}

  return {
    'from scratch': chosen(full, values=[3 * rate for rate in rates], source=None, transplant=None),
    'logistic regression': {
      'phases': [],
      'baseline': dict(name='logistic_regression', stage='pool', penalties=[0.1, 1.0, 10.0]),
    },
    'linear probe': chosen(dict(whole, train='head'), values=[1e-3, 3e-3, 1e-2]),
    'last block': chosen(dict(whole, train=['head', LAST])),
    'probe, adapted statistics': chosen(dict(whole, train='head', statistics='adapt'), values=[1e-3, 3e-3, 1e-2]),
    'full': chosen(full),
    'full, frozen statistics': chosen(dict(full, statistics='frozen')),
    'full, falling rates': chosen(full, values=falling),
    'probe, then full': chosen(probe, after),
    'probe, then full, WiSE-FT': chosen(probe, dict(after, interpolate=shares)),
    'gradual unfreezing': chosen(*gradual),
    'biases and head': chosen(*schedules.bitfit(**whole)),
    'normalisation and head': chosen(dict(whole, train=[r'.*norm.*/(scale|bias)', 'head'])),
    'first stage and head': chosen(dict(whole, train=['stem', 'head'])),
    'L2-SP': chosen(full, **beside(term='l2_sp', weight=0.1, beta=0.1)),
    'spectral shrinkage': chosen(full, **beside(term='batch_spectral_shrinkage', weight=0.01, stage='pool')),
    'mixout': chosen(dict(full, transform=[dict(name='mixout', p=0.5)])),
    'weight averaging': chosen(dict(full, average=dict(name='uniform', first=0.5))),
    'greedy soup after a probe': chosen(probe, after, soup='greedy'),
  }


def get_config(arg: str = ''):
  """The comparison; 'smoke': digits and three methods in seconds; 'full': as the docstring says."""
  smoke, whole = arg == 'smoke', arg == 'full'
  source = [dict(ADAM, train='.*', steps=20 if smoke else 1000, learning_rate=3e-3)]
  digits = dict(name='digits', validation=10, test=0.5, batch_size=32)
  usps = dict(name='npz:data/usps.npz', validation=10, batch_size=32)
  photos = dict(
    name='folder:data/hymenoptera_data', resize=dict(size=224 if whole else 128), validation=10, batch_size=16
  )
  resnet = dict(name='resnet', depth=8)
  pairs = {
    'digits': {
      'network': resnet,
      'source': dict(data=dict(digits, half=0), phases=source),
      'target': dict(data=dict(digits, half=1, noise=0.4)),
      'evaluation.sets': dict(shifted=dict(digits, half=1, noise=0.4, rotation=20, contrast=0.6)),
    },
    'usps': {
      'network': resnet,
      'source': dict(
        data=dict(name='tfds:mnist', resize=dict(size=16), fraction=1.0 if whole else 0.1, batch_size=64),
        phases=source,
      ),
      'target': dict(data=usps),
      'evaluation.sets': dict(shifted=dict(usps, noise=0.3, rotation=20)),
    },
    'photos': {
      'network': dict(name='mobilenet', width=0.25),
      'source': dict(weights='weights/mobilenet_2_5_224_tf.h5'),
      'target': dict(data=photos),
      'evaluation.sets': dict(shifted=dict(photos, noise=0.1, contrast=0.5)),
    },
  }
  shots = {'digits': [5, 20], 'usps': [5, 20], 'photos': [5, 20, 60] if whole else [20]}
  if smoke:
    shots = {'digits': [5]}

  config = ml_collections.ConfigDict(convert_dict=False)  # axes have dotted keys
  config.base = dict(transplant=[('head', 'init'), ('.*', 'copy')], evaluation=dict(every=25))
  config.axes = dict(
    task={f'{pair}_{k}': {**pairs[pair], 'target.data.shots': k} for pair, counts in shots.items() for k in counts},
    method=methods(8 if smoke else 100, [1e-4, 3e-4, 1e-3]),
    seed=[0] if smoke else [0, 1, 2, 3, 4] if whole else [0, 1, 2],
  )
  if smoke:
    config.axes['method'] = {name: config.axes['method'][name] for name in ('full', 'gradual unfreezing', 'mixout')}
  config.table = dict(baseline='full', also=['shifted'])
  return config
