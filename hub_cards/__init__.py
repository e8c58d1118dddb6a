"""Generate cards for the Hugging Face Hub from result files, and publish what they describe."""

import logramed.eval  # noqa: F401  (before bitsandbytes, to silence its warning)
