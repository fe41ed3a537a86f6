"""MNIST beside few labels of USPS: one head for both, a head for each, or either alone.

python -m transferlab.main --config=experiments/digit_mixtures.py

10, 50 and 500 labels of USPS, and 6,000 images of MNIST brought to 16 x 16 pixels. Mixtures draw both sets alike, or by
their sizes. Every row trains a small convnet for 1,000 steps of 64 images; 200 images of USPS choose the rate and the
step, MNIST's alone too. The table shows the accuracy on USPS' test images, and on MNIST's where it was there.
Data: tfds:mnist; USPS as an npz file of its 11,000 images (S. Roweis's usps_all) in data/usps.npz, another with
--config.base.target.data.sets.usps.name=npz:FILE.
Seen (two cores, 10 min; digit_mixtures.md): at 10 labels .628 with MNIST and one head, .448 without; at 500 the same.
"""

import ml_collections


def get_config(arg: str = ''):
  """Five rows for each number of labels; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'
  usps = dict(name='npz:data/usps.npz', inputs='image', test=0.2, validation=20)
  mnist = dict(name='tfds:mnist', resize=dict(size=16), fraction=0.01 if smoke else 0.1)
  phase = dict(steps=4 if smoke else 1000, optimizer='adam', schedule=dict(name='cosine'), learning_rate=1e-3)

  def beside(heads: str, rates: str | dict[str, float]) -> dict:
    return {'target.data.sets.mnist': mnist, 'target.data.mixing': dict(heads=heads, rates=rates)}

  config = ml_collections.ConfigDict(convert_dict=False)  # axes have dotted keys
  config.base = dict(
    network=dict(name='convnet', width=8, features=64),
    target=dict(data=dict(name='mixture', sets=dict(usps=usps), mixing=dict(heads='common'), batch_size=64)),
    phases=[phase],
    choose={'phases.0.learning_rate': [1e-3] if smoke else [5e-4, 1e-3, 2e-3]},
    evaluation=dict(every=4 if smoke else 100, batch_size=1000),
  )
  config.axes = dict(
    method={
      'USPS alone': {},
      'MNIST alone': beside('common', {'mnist': 1.0, 'usps': 0.0}),
      'one head': beside('common', 'uniform'),
      'one head, by size': beside('common', 'proportional'),
      'a head each': beside('separate', 'uniform'),
    },
    labels={10 * shots: {'target.data.sets.usps.shots': shots} for shots in ([1] if smoke else [1, 5, 50])},
    seed=[0] if smoke else [0, 1, 2],
  )
  config.table = dict(baseline='USPS alone', split='test_usps', also=['test_mnist'], along='labels')
  return config
