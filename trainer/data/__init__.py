"""Training data: rows read from wherever they stand, checked, in one form."""

from .rows import RowError, TrainingRows
from .sources import load_training_rows


__all__ = ["RowError", "TrainingRows", "load_training_rows"]
