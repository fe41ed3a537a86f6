"""Ants and bees from ImageNet: probes and fine-tuning of published MobileNet v1 and SqueezeNet weights, five seeds.

python -m transferlab.main --config=experiments/hymenoptera.py

All choices were made within the 244 photos of the folder train, by the two files of experiments/choices; here every
photo of train is trained on, nothing is chosen, and the 153 photos of the folder val test the last step. A probe trains
a linear head on pooled features that stand still; the same with the network's random initialisation says what the
features are worth. Full fine-tuning goes on from the probe. Data: hymenoptera_data.zip of PyTorch's transfer-learning
tutorial, unpacked in data/. Weights, in weights/: MobileNet v1 0.25 of keras.applications (mobilenet_2_5_224_tf.h5) and
SqueezeNet 1.1 without its top of rcmalli/keras-squeezenet; others with
--config.axes.network.mobilenet.source.weights=FILE.
"""

import ml_collections


def get_config(arg: str = ''):
  """Two networks, four methods; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'
  adam = dict(optimizer='adam', statistics='frozen', schedule=dict(name='cosine'))
  # The penalty of a logistic regression with C = 0.03 on 244 photos: 1 / (0.03 · 244).
  decay = dict(weight_decay=[('head/kernel', 0.137)], weight_decay_form='coupled')
  probe = [dict(adam, **decay, train='head', learning_rate=3e-3, steps=2 if smoke else 100)]
  full = [*probe, dict(adam, **decay, train='.*', learning_rate=1e-5, steps=2 if smoke else 40)]

  config = ml_collections.ConfigDict(convert_dict=False)
  config.base = dict(
    transplant=[('head', 'init'), ('.*', 'copy')],
    target=dict(
      data=dict(
        name='folder:data/hymenoptera_data',
        resize=dict(size=32 if smoke else 288),
        augment=dict(flip=True),
        batch_size=32,
      )
    ),
    evaluation=dict(every=1000, batch_size=64),
  )
  config.axes = dict(
    network={
      'mobilenet': {
        'network': dict(name='mobilenet', width=0.25),
        'source': dict(weights='weights/mobilenet_2_5_224_tf.h5'),
      },
      'squeezenet': {
        'network': dict(name='squeezenet', head_type='linear', dropout=0.0),
        'source': dict(weights='weights/squeezenet_v1.1_weights_tf_dim_ordering_tf_kernels_notop.h5'),
      },
    },
    method={
      'probe': {'phases': probe},
      'full fine-tuning': {'phases': full},
      # The same probe to convergence, as the choice was made, but on each photo once: twice C for half the photos.
      'logistic regression': {
        'phases': [],
        'baseline': dict(name='logistic_regression', stage='pool', standardize=False, C=0.06),
      },
      # No weights bring preprocessing here, so it is named: that of torchvision's networks.
      'probe of random weights': {
        'source': None,
        'transplant': None,
        'target.data.statistics': 'imagenet',
        'phases': probe,
      },
    },
    seed=[0] if smoke else [0, 1, 2, 3, 4],
  )
  config.table = dict(baseline='probe')
  config.population = False
  return config
