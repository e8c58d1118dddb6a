"""The error for unusable files, and reading without leaking tag values into messages."""

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


INSTALL = "pip install 'logramed[volumes]'"
# Loggers of the reading libraries, whose warnings and log lines may quote tag values.
LOGGERS = ("pydicom", "pylibjpeg", "nibabel", "nibabel.global")


class VolumeError(ValueError):
    """Raised for an unusable file or folder; names it and the tag at fault, but never the tag's value."""


def import_optional(name: str) -> ModuleType:
    """
    Import a module of the extra `volumes`.

    Raises:
        ImportError: If its package is not installed, naming the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"DICOM and NIfTI files need {package}: {INSTALL}") from error


@contextmanager
def reading(path: str, what: str = "it") -> Iterator[None]:
    """
    Context manager that silences warnings and log lines, and turns any error into a `VolumeError`.

    The message and context of the original error are dropped, since they may quote tag values.
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    states = [logger.disabled for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.disabled = True
        try:
            yield
            problem = None
        except (VolumeError, ImportError):
            raise
        except OSError as error:
            problem = error.strerror or type(error).__name__
        except Exception as error:  # the parsers and decoders raise dozens of types on damaged files
            problem = type(error).__name__
        finally:
            for logger, state in zip(loggers, states, strict=True):
                logger.disabled = state
    if problem is not None:  # raised here: inside `except`, the original error would be its context
        raise VolumeError(f"{path}: {what} cannot be read ({problem})")
