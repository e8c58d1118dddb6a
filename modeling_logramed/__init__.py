"""
LoGra-Med: medical vision-language models trained with multi-graph alignment.

Importing this package registers the classes with transformers' Auto classes. If it is imported before torch, it also
shortens how long waiting threads spin, unless the environment already sets this.
"""

import os


# Read by libgomp when torch is imported. By default, waiting threads spin so long that they take time from the threads
# they wait for, on a busy machine (measured in trainer/README.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# isort: split
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from .auto_logramed import AutoModelForVision2Seq
from .configuration_logramed import LoGraMedConfig
from .image_processing_logramed import LoGraMedImageProcessor
from .modeling_logramed import LoGraMedForConditionalGeneration, LoGraMedModel
from .processing_logramed import LoGraMedProcessor


__version__ = "0.1.0"

AutoConfig.register("logramed", LoGraMedConfig)
AutoImageProcessor.register(LoGraMedConfig, slow_image_processor_class=LoGraMedImageProcessor)
AutoProcessor.register(LoGraMedConfig, LoGraMedProcessor)
# `exist_ok`: on transformers 5 the last two share one mapping.
for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForVision2Seq):
    auto_class.register(LoGraMedConfig, LoGraMedForConditionalGeneration, exist_ok=True)
del auto_class

__all__ = [
    "AutoModelForVision2Seq",
    "LoGraMedConfig",
    "LoGraMedForConditionalGeneration",
    "LoGraMedImageProcessor",
    "LoGraMedModel",
    "LoGraMedProcessor",
]
