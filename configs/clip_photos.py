"""A folder of photos, from CLIP's two towers: answers without training, and fine-tuning from them.

The text tower makes the head of the names of the classes (Radford et al. 2021, section 3.1), so that the network
answers before it has seen a photo of them; the names are those of the folders. Then everything is fine-tuned, and the
network goes back part of the way to where it began, as far as validation data say (WiSE-FT, Wortsman et al. 2022, with
their AdamW, rate 3e-5 and cosine). --config=configs/clip_photos.py:zero_shot measures what it begins with.

python -m transferlab.main --config=configs/clip_photos.py
Seen: not measured, since the weights were not at hand; the run was tried with weights of random values.
Data: class folders in data/photos/train and data/photos/val; val is what the program tests on.
Weights: a folder with model.safetensors, config.json, preprocessor_config.json and tokenizer.json of
openai/clip-vit-base-patch32, or of a SigLIP (then tokenizer_config.json, too); or
--config.source.weights=hf:openai/clip-vit-base-patch32
"""

import ml_collections


def get_config(arg: str = ''):
  """Photos at 224×224; 'zero_shot': nothing trains; 'smoke': a run of seconds, at 32×32."""
  smoke = arg == 'smoke'

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='vit')
  config.source = dict(
    weights='weights/clip-vit-base-patch32', texts=dict(templates=['a photo of a {}.', 'a close-up photo of a {}.'])
  )
  config.transplant = [('embed/position', 'resize'), ('.*', 'copy')]
  config.target = dict(
    data=dict(
      name='folder:data/photos',
      resize=dict(size=32 if smoke else 224),
      augment=dict(flip=True),
      validation=0.2,
      batch_size=8 if smoke else 64,
    )
  )
  fine_tune = dict(
    name='fine-tune',
    train='.*',
    steps=2 if smoke else 500,
    optimizer='adamw',
    learning_rate=3e-5,
    weight_decay=0.1,
    schedule=dict(name='cosine', warmup=0.1),
    interpolate=[0.0, 0.25, 0.5, 0.75, 1.0],
  )
  config.phases = [dict(name='zero_shot', steps=0)] if arg == 'zero_shot' else [fine_tune]
  config.evaluation = dict(every=50, batch_size=64)
  return config
