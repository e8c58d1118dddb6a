"""Alignment, trainer, data and recipes."""

import logramed.eval  # noqa: F401  (before bitsandbytes, to filter one of its warnings)
