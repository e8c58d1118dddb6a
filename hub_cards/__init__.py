"""Cards for the Hugging Face Hub, generated from result files, and pushing what they describe."""

import logramed.eval  # noqa: F401  (before bitsandbytes is imported, whose warning it leaves out)
