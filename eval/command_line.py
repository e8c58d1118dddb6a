"""How commands report user errors: one short message on stderr and exit code 2."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from huggingface_hub.errors import StrictDataclassError


DEBUG = "LOGRAMED_DEBUG"
USAGE_ERROR, INTERRUPTED = 2, 130


class UserError(RuntimeError):
    """An error whose message is meant for the user of a command."""


# Errors that a wrong file, folder, name or value raises, here or in a library. Anything else is a bug.
MISTAKES = (UserError, ValueError, OSError, ImportError, yaml.YAMLError, StrictDataclassError)


def run_command(main: Callable[[], int | None]) -> int:
    """
    Run `main` and return its exit code (`None` is 0). User errors are printed as one message; set the environment
    variable `LOGRAMED_DEBUG=1` to see the traceback.
    """
    try:
        return main() or 0
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get(DEBUG, "") not in ("", "0") or not isinstance(error, MISTAKES):
            raise
        print(f"{Path(sys.argv[0]).name}: {describe_mistake(error)}", file=sys.stderr)
        return USAGE_ERROR


def describe_mistake(error: Exception) -> str:
    """
    Example:
        >>> describe_mistake(FileNotFoundError(2, "No such file or directory", "my.json"))
        'my.json: No such file or directory'
    """
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1} is not YAML: {error.problem}."
    return str(error).strip() or type(error).__name__


def refuse_unknown(parser: ArgumentParser, args: Sequence[str]) -> None:
    """
    Raise `ValueError` for unknown arguments. Called before a parser of transformers or TRL builds the dataclasses,
    which would only complain that the misspelt argument is missing.

    Example:
        >>> refuse_unknown(ArgumentParser(), ["--modle", "x"])
        Traceback (most recent call last):
        ValueError: Unknown arguments: --modle.
    """
    _, unknown = parser.parse_known_args(args)
    names = [word for word in unknown if word.startswith("--") and word != "--config"]
    if names:
        raise ValueError(f"Unknown arguments: {', '.join(names)}.")
