"""VGG16 as a feature extractor: a frozen base, global average pooling, Dense 1024, a new head; then the last block.

The recipe of the textbooks, on a folder of photos: RMSprop trains the dense layer and the head on top of ImageNet's
convolutions, which then let their last block move at a hundredth of the rate.

python -m transferlab.main --config=configs/vgg16_features.py
Seen: not measured, since the weights were not at hand; the run was tried with weights of random values.
Data: cats_and_dogs_filtered.zip of the Keras tutorials, unpacked in data/ (train and validation, two classes).
Weights: vgg16-397923af.pth of torchvision, in weights/; vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5 of
keras.applications does as well: --config.source.weights=FILE.
"""

import ml_collections


def get_config(arg: str = ''):
  """Two phases; 'smoke': a run of seconds, at 32×32 pixels."""
  smoke = arg == 'smoke'
  size = 32 if smoke else 224
  rmsprop = dict(optimizer='rmsprop', steps=2 if smoke else 200)

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='vgg', depth=16, pool='average', features=[1024])
  config.source = dict(weights='weights/vgg16-397923af.pth')
  config.transplant = [('dense1|head', 'init'), ('.*', 'copy')]
  config.target = dict(
    data=dict(
      name='folder:data/cats_and_dogs_filtered',
      resize=dict(size=size),
      augment=dict(flip=True, views=2),  # of each photo and its mirror image the base is run once
      validation=0.2,
      batch_size=32,
    )
  )
  config.phases = [
    dict(rmsprop, name='dense', train='dense1|head', learning_rate=1e-3),
    dict(rmsprop, name='last block', train='block5|dense1|head', learning_rate=1e-5),
  ]
  config.evaluation = dict(every=50, batch_size=32)
  return config
