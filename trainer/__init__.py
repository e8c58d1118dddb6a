"""Alignment, trainer, data and recipes."""

import logramed.eval  # noqa: F401  (before bitsandbytes is imported, whose warning it leaves out)
