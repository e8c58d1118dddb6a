"""Training data: reads and checks rows from any source, in one form."""

from .rows import RowError, TrainingRows
from .sources import load_training_rows
from .streaming import open_stream
from .turns import SetEpochCallback, TurnShuffler, questions_of_rows


__all__ = [
    "RowError",
    "SetEpochCallback",
    "TrainingRows",
    "TurnShuffler",
    "load_training_rows",
    "open_stream",
    "questions_of_rows",
]
