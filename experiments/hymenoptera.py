"""Ants and bees from ImageNet: probes and fine-tuning of published MobileNet v1 and SqueezeNet weights, five seeds.

python -m transferlab.main --config=experiments/hymenoptera.py

244 photos to learn from, a quarter of which choose the weight decay of the head (probes) or the rate of the trunk; the
153 photos of the folder val are for testing. A probe trains a linear head on pooled features that stand still; the same
with the network's random initialisation says what the features are worth. Data: hymenoptera_data.zip of PyTorch's
transfer-learning tutorial, unpacked in data/. Weights, in weights/: MobileNet v1 0.25 of keras.applications
(mobilenet_2_5_224_tf.h5) and SqueezeNet 1.1 of rcmalli/keras-squeezenet without its top; others with
--config.axes.network.mobilenet.source.weights=FILE.
"""

import ml_collections


def get_config(arg: str = ''):
  """Two networks, three methods; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'
  size = 32 if smoke else 224
  adam = dict(optimizer='adam', statistics='frozen', weight_decay_form='coupled', schedule=dict(name='cosine'))
  probe = [dict(adam, train='head', learning_rate=3e-3, steps=2 if smoke else 100)]
  full = [dict(adam, train='.*', steps=2 if smoke else 60, weight_decay=[('head/kernel', 0.1)])]
  decays = {'phases.0.weight_decay': [[('head/kernel', decay)] for decay in (0.01, 0.1, 0.3)]}
  rates = {'phases.0.learning_rate': [[('head', 3e-3), ('.*', rate)] for rate in (1e-5, 1e-4)]}

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
    # Validation chooses a value at the end, and no step: 61 photos are few.
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
      'probe': {'phases': probe, 'choose': decays},
      'full fine-tuning': {'phases': full, 'choose': rates},
      # No weights bring preprocessing here, so it is named: that of torchvision's networks.
      'probe of random weights': {
        'source': None,
        'transplant': None,
        'target.data.statistics': 'imagenet',
        'phases': probe,
        'choose': decays,
      },
    },
    seed=[0] if smoke else [0, 1, 2, 3, 4],
  )
  config.table = dict(baseline='probe')
  config.population = False
  return config
