"""How like its teacher a student is: plain functions of complete outputs, in float64 (Stanton et al. 2021)."""

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax

Logits = Float[np.ndarray, 'examples classes']


def agreement(student: Logits, teacher: Logits) -> float:
  """Share of the examples on which both predict the same class (Stanton et al. 2021, eq. 2)."""
  return float((student.argmax(axis=-1) == teacher.argmax(axis=-1)).mean())


def divergence(student: Logits, teacher: Logits) -> float:
  """Mean KL(teacher ‖ student) of their predictions, in nats (Stanton et al. 2021, eq. 3)."""
  log_p, log_q = (log_softmax(np.asarray(logits, np.float64), axis=-1) for logits in (teacher, student))
  return float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean())


def compared(student: np.ndarray, teacher: np.ndarray, task: str) -> dict[str, float]:
  """Both measures by name; of one logit as of two classes. For regression the mean squared difference alone."""
  if task == 'regression':
    return {'divergence': float(np.square(np.asarray(student, np.float64) - teacher).mean())}
  if task == 'binary':
    student, teacher = (np.concatenate([np.zeros_like(z), z], axis=1) for z in (_column(student), _column(teacher)))
  return {'agreement': agreement(student, teacher), 'divergence': divergence(student, teacher)}


def _column(logits: np.ndarray) -> np.ndarray:
  return np.reshape(logits, (len(logits), -1))
