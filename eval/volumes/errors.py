"""The one error of a file that cannot be used, and reading without a trace of what its tags hold."""

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


INSTALL = "pip install 'logramed[volumes]'"
# Of the libraries that read: their warnings and log lines may quote the values of tags.
LOGGERS = ("pydicom", "pylibjpeg", "nibabel", "nibabel.global")


class VolumeError(ValueError):
    """A file or folder that cannot be used: names it and the tag at fault, never a tag's value."""


def import_optional(name: str) -> ModuleType:
    """
    A module of the extra `volumes`.

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
    Read inside without warnings and log lines; whatever goes wrong is one `VolumeError`.

    The words and the context of the library's own error are dropped: they may quote the values of tags.
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
    if problem is not None:  # raised here: inside, the library's error would be its context
        raise VolumeError(f"{path}: {what} cannot be read ({problem})")
