"""What a config may say of a run: the schema `Run`, and of its parts those that belong to no other room. Pure."""

from typing import Annotated, Any, Literal

import pydantic

from transferlab import config
from transferlab.config import LATER, OUTSIDE, Positive, Schema, Seed
from transferlab.data.settings import Data
from transferlab.evaluation.baselines import Baseline
from transferlab.evaluation.settings import Evaluation
from transferlab.objectives import SOURCE
from transferlab.objectives.settings import Balancing
from transferlab.training.phases import Phase
from transferlab.training.settings import FeatureCache, Parallel

Terms = Annotated[list[dict[str, Any]], pydantic.Field(min_length=1)]
TeacherName = Annotated[str, pydantic.Field(pattern=r'^[\w.-]+$')]
NameRules = Annotated[list[tuple[str, str, str]], pydantic.BeforeValidator(config.tuples)]
TransplantRules = Annotated[
  list[tuple[str, str]], pydantic.BeforeValidator(config.tuples), pydantic.Field(min_length=1)
]


class Sharing(Schema):
  """What several tasks share of a network (networks/sharing.py)."""

  name: Literal['branched', 'mmoe', 'cross_stitch'] = pydantic.Field(
    description='branched: a branch for each task from `stage` on; mmoe: experts from `stage` to the head, which gates '
    'weigh for each task (Ma et al. 2018); cross_stitch: a column for each task, mixed after stages (Misra et al. 2016)'
  )
  stage: str | None = pydantic.Field(None, description='where branches, or experts, begin')
  experts: Positive = pydantic.Field(4, description='how many (mmoe)')
  stages: list[str] | None = pydantic.Field(
    None, description='those that a unit follows (cross_stitch); None: all that have parameters, but the head'
  )
  same: Annotated[float, pydantic.Field(ge=0, le=1)] = pydantic.Field(
    0.9, description="a column's share of itself at the start (cross_stitch)"
  )

  @pydantic.model_validator(mode='after')
  def _placed(self) -> 'Sharing':
    if (self.stage is None) != (self.name == 'cross_stitch'):
      raise ValueError('stage is where branches and experts begin; cross_stitch has stages')
    return self


class NetworkSpec(Schema):
  """A network by name; keys beside it are arguments of the network's function."""

  model_config = pydantic.ConfigDict(extra='allow', frozen=True, strict=True, allow_inf_nan=False)
  name: str = pydantic.Field(description='name of a network (--list=networks), or module.path.function of your own')
  sharing: Sharing | None = pydantic.Field(
    None, description='what several tasks share of it; None: all but the head', json_schema_extra=LATER
  )
  dtype: Literal['float32', 'bfloat16'] = pydantic.Field(
    'float32', description='in which it computes; parameters and their updates stay float32', json_schema_extra=LATER
  )
  rematerialise: str | None = pydantic.Field(
    None,
    description="stages (a pattern, 'block.*') whose inner values the backward pass computes again instead of keeping "
    'them: less memory, more time',
    json_schema_extra=LATER,
  )


class Texts(Schema):
  """The texts that stand for classes, where a text tower makes the head (zero_shot.py)."""

  templates: Annotated[list[str], pydantic.Field(min_length=1)] = pydantic.Field(
    ['a photo of a {}.'], description='texts, {} for the name of a class; of several, the mean of their directions'
  )
  names: Annotated[list[str], pydantic.Field(min_length=1)] | None = pydantic.Field(
    None, description="of the classes, in the order of the data's; None: the data's, with spaces for underscores"
  )

  @pydantic.field_validator('templates')
  @classmethod
  def _with_a_place(cls, templates: list[str]) -> list[str]:
    for template in templates:
      if template.count('{}') != 1:
        raise ValueError(f"{template!r} should have one {{}}, where the name of a class stands: 'a photo of a {{}}.'")
    return templates


class Source(Schema):
  """Where knowledge comes from: a network pretrained here, or weights that exist."""

  data: Data | None = pydantic.Field(None, description='data to pretrain on; or give weights')
  phases: list[Phase] = pydantic.Field([], description='the phases of pretraining')
  objective: Terms | None = pydantic.Field(None, description='terms of pretraining; None: the usual loss of the task')
  balancing: Balancing | None = pydantic.Field(
    None, description='how the losses of several tasks combine; None: they are added', json_schema_extra=LATER
  )
  source: 'Source | None' = pydantic.Field(
    None, description='where it starts itself, where it is pretrained here', json_schema_extra=LATER
  )
  transplant: TransplantRules | None = pydantic.Field(
    None, description='rules for what it takes from there; None: all but the head', json_schema_extra=LATER
  )
  network: NetworkSpec | None = pydantic.Field(None, description="None: the target's network, with a head of its own")
  seed: Seed | None = pydantic.Field(None, description="None: the run's seed")
  weights: str | None = pydantic.Field(
    None,
    description='folder of a run or of one checkpoint; a file of PyTorch, safetensors, Keras, npz, msgpack; '
    'a folder of orbax; hf:ORG/NAME',
  )
  part: str | None = pydantic.Field(
    None,
    description="a file's entry to take: 'ema', 'model.state_dict'; None: the network's own",
    json_schema_extra=LATER,
  )
  names: NameRules = pydantic.Field(
    [],
    description='what is what in a file of no known family: (their pattern, our path, layout), for arrays or for whole '
    "layers; layouts: 'same', 'linear', 'conv', or a pattern 'o i -> i o'",
    json_schema_extra=LATER,
  )
  match: Literal['names', 'shapes'] = pydantic.Field(
    'names',
    description='shapes: take what no rule names by its shape, where that leaves no choice',
    json_schema_extra=LATER,
  )
  which: Literal['selected', 'last'] = pydantic.Field('selected', description='which weights of a run')
  texts: Texts | None = pydantic.Field(
    None,
    description='weights of CLIP or SigLIP with both towers: the head is made of the names of the classes, '
    'for answers without training (a phase of 0 steps) or as the start of it; {} for a photo of a …',
    json_schema_extra=LATER,
  )

  @pydantic.model_validator(mode='after')
  def _one_origin(self) -> 'Source':
    if (self.data is None) == (self.weights is None):
      raise ValueError('give either data (and phases) or weights')
    if self.data is not None and not self.phases:
      raise ValueError('with data it needs phases')
    if self.weights is not None and (self.phases or self.objective or self.balancing or self.source):
      raise ValueError('what has weights has no phases, no objective, no balancing and no source')
    if self.transplant is not None and self.source is None:
      raise ValueError('a transplant needs a source')
    if self.weights is not None and self.network and not isinstance(self, Teacher):
      raise ValueError("a source with weights has no network of its own: they go into the target's")
    if self.weights is None and (self.part or self.names or self.match != 'names' or self.texts):
      raise ValueError('part, names, match and texts are for weights, and this source has none')
    if self.texts and (self.names or self.match != 'names'):
      raise ValueError('texts are read by a text tower that is recognised; names and match are for other files')
    return self


class Teacher(Source):
  """A network to learn from: its outputs are what distillation terms look at."""

  dtype: Literal['float32', 'bfloat16'] = pydantic.Field('float32', description='in which it is run')
  teachers: dict[TeacherName, 'Teacher'] = pydantic.Field(
    {}, description='those it has learnt from itself, where it is pretrained here: generations'
  )

  @pydantic.model_validator(mode='after')
  def _taught(self) -> 'Teacher':
    if self.weights is not None and self.teachers:
      raise ValueError('a teacher with weights has no teachers of its own')
    if SOURCE in self.teachers:
      raise ValueError(f'teachers: {SOURCE!r} is the name of config.source; give this one another')
    return self


class Target(Schema):
  """What is to be learnt."""

  data: Data = pydantic.Field(description='the target data')
  preprocessing: Literal['source', 'refit'] = pydantic.Field(
    'source',
    description="source: the source's, since it belongs to the weights; refit: fitted on the target's training split",
  )


class Checkpoint(Schema):
  """When a run is saved."""

  every: Positive = pydantic.Field(
    500, description='steps between checkpoints (each phase also ends with one)', json_schema_extra=OUTSIDE
  )
  keep: Positive = pydantic.Field(2, description='how many are kept', json_schema_extra=OUTSIDE)


class Logging(Schema):
  """When the training loss is logged."""

  every: Positive = pydantic.Field(50, description='steps over which a logged mean is taken', json_schema_extra=OUTSIDE)


class Run(Schema):
  """One run: data -> network -> transplant -> phases -> evaluation."""

  seed: Seed = pydantic.Field(0, description='draws shots, validation split, noise, initialisation, order, dropout')
  network: NetworkSpec | None = pydantic.Field(None, description='what is trained, or probed; None only for a baseline')
  source: Source | None = pydantic.Field(None, description='what is transferred; None: from scratch')
  teachers: dict[TeacherName, Teacher] = pydantic.Field(
    {}, description='networks to learn from, by name; terms such as kd ask them', json_schema_extra=LATER
  )
  target: Target = pydantic.Field(description='what is to be learnt')
  transplant: TransplantRules | None = pydantic.Field(
    None,
    description="rules (pattern, 'copy' | 'copy:SOURCE PATH' | 'partial' | 'classes:3,7' | 'channels:sum|tile|zero' | "
    "'columns' | 'tokens[:mean|zero]' | 'init'); None: all but the head",
  )
  phases: list[Phase] = pydantic.Field([], description='what moves, when, and how fast')
  objective: Terms | None = pydantic.Field(None, description='weighted terms; None: the usual loss of each task')
  balancing: Balancing | None = pydantic.Field(
    None, description='how the losses of several tasks combine; None: they are added', json_schema_extra=LATER
  )
  baseline: Baseline | None = pydantic.Field(
    None, description="a classical method in place of phases: on raw inputs, or a probe of the network's stages"
  )
  choose: dict[str, Annotated[list[Any], pydantic.Field(min_length=1)]] = pydantic.Field(
    {}, description='values of a key to try; validation data choose'
  )
  soup: Literal['uniform', 'greedy'] | None = pydantic.Field(
    None,
    description="average the candidates' weights instead of taking the best: all of them, or greedily those that help "
    'on validation data (Wortsman et al. 2022, Model soups)',
    json_schema_extra=LATER,
  )
  evaluation: Evaluation = pydantic.Field(Evaluation(), description='what is measured, and when')
  parallel: Parallel = pydantic.Field(Parallel(), description='devices and compilation')
  feature_cache: FeatureCache = pydantic.Field(
    FeatureCache(), description='outputs of frozen stages, computed once', json_schema_extra=OUTSIDE
  )
  checkpoint: Checkpoint = pydantic.Field(Checkpoint(), description='when the run is saved')
  logging: Logging = pydantic.Field(Logging(), description='when the training loss is logged')

  @pydantic.model_validator(mode='after')
  def _trained_or_baseline(self) -> 'Run':
    probe = self.baseline is not None and self.baseline.stage is not None
    if self.baseline is not None and self.phases:
      raise ValueError('a baseline has no phases: nothing trains' + (' but its source' if probe else ''))
    if self.baseline is not None and self.source and not probe:
      raise ValueError('a baseline has neither phases nor a source; one with a stage, a probe, has a source')
    if probe and self.network is None:
      raise ValueError('baseline.stage needs a network, whose features it names')
    if self.baseline is None and self.network is None:
      raise ValueError('a run needs a network (or a baseline)')
    if self.baseline is None and not self.phases:
      raise ValueError('a run needs at least one phase')
    if self.soup is not None and (not self.choose or self.baseline is not None):
      raise ValueError('a soup is made of the candidates of choose, which have to be networks that train')
    if self.transplant is not None and self.source is None:
      raise ValueError('a transplant needs a source')
    if self.teachers and self.baseline is not None:
      raise ValueError('a baseline has no teachers')
    if SOURCE in self.teachers:
      raise ValueError(f'teachers: {SOURCE!r} is the name of config.source; give this one another')
    if self.baseline is not None and self.balancing:
      raise ValueError('a baseline has no balancing')
    if self.baseline is not None and not self.target.data.labelled:
      raise ValueError('a baseline looks at the training labels, and data.labelled=False says that there are none')
    return self
