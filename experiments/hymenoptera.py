"""Ants and bees from ImageNet: probes and fine-tuning of published MobileNet v1 and SqueezeNet weights, five seeds.

python -m transferlab.main --config=experiments/hymenoptera.py

244 photos to learn from, a quarter of which choose the rate and the step; the 153 photos of the folder val are for
testing, and are touched once. A probe trains a linear head on pooled features that stand still; the same with the
network's random initialisation says what the features are worth. Data: hymenoptera_data.zip of PyTorch's
transfer-learning tutorial, unpacked in data/. Weights, in weights/: MobileNet v1 0.25 of keras.applications
(mobilenet_2_5_224_tf.h5) and SqueezeNet 1.1 of rcmalli/keras-squeezenet without its top; others with
--config.axes.network.mobilenet.source.weights=FILE.
"""

import ml_collections


def get_config(arg: str = ''):
  """Two networks, four methods; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'
  size = 32 if smoke else 224
  adam = dict(optimizer='adam', statistics='frozen')
  probe = [dict(adam, train='head', steps=2 if smoke else 60)]
  full = [dict(adam, train='.*', steps=2 if smoke else 40, schedule=dict(name='cosine', warmup=0.1))]
  # No weights bring preprocessing here, so it is named: that of torchvision's networks.
  scratch = {'source': None, 'transplant': None, 'target.data.statistics': 'imagenet'}
  rate = 'phases.0.learning_rate'

  config = ml_collections.ConfigDict(convert_dict=False)
  config.base = dict(
    transplant=[('head', 'init'), ('.*', 'copy')],
    target=dict(
      data=dict(
        name='folder:data/hymenoptera_data',
        resize=dict(size=size * 8 // 7),
        augment=dict(crop=size, flip=True),
        validation=0.25,
        batch_size=32,
      )
    ),
    evaluation=dict(every=20, batch_size=64),
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
      'probe of random weights': {**scratch, 'phases': probe, 'choose': {rate: [3e-3, 1e-2]}},
      'from scratch': {**scratch, 'phases': [dict(full[0], statistics='auto')], 'choose': {rate: [1e-3, 3e-3]}},
      'probe': {'phases': probe, 'choose': {rate: [3e-3, 1e-2]}},
      'full fine-tuning': {'phases': full, 'choose': {rate: [1e-4, 3e-4]}},
    },
    seed=[0] if smoke else [0, 1, 2, 3, 4],
  )
  config.table = dict(baseline='probe')
  config.population = False
  return config
