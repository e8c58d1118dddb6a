"""`AutoModelForVision2Seq` for both lines of transformers: version 5 no longer has it."""

from transformers import AutoModelForImageTextToText


try:
    from transformers import AutoModelForVision2Seq
except ImportError:

    class AutoModelForVision2Seq(AutoModelForImageTextToText):
        """`AutoModelForImageTextToText` under its former name, by which a folder's `auto_map` is read."""


__all__ = ["AutoModelForVision2Seq"]
