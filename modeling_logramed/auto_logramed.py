"""`AutoModelForVision2Seq` for transformers 4.57 and 5, which no longer has it."""

from transformers import AutoModelForImageTextToText


try:
    from transformers import AutoModelForVision2Seq
except ImportError:

    class AutoModelForVision2Seq(AutoModelForImageTextToText):
        """`AutoModelForImageTextToText` under its former name, which a folder's `auto_map` uses."""


__all__ = ["AutoModelForVision2Seq"]
