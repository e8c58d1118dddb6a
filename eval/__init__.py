"""Metrics, benchmarks, evaluation and comparison."""

import logging


# On CPUs that could use it, bitsandbytes warns at every start that a kernel of another package is missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "gemm_4bit_forward" not in record.getMessage()
)
