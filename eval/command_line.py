"""What every command does about a mistake of its user: one short message on stderr, and exit code 2."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError


DEBUG = "LOGRAMED_DEBUG"
USAGE_ERROR, INTERRUPTED = 2, 130


class UserError(RuntimeError):
    """An error whose words are for the person at the command line."""


# What a wrong file, folder, name or value comes out as, here or in a library. All else is a fault of the program.
MISTAKES = (UserError, ValueError, OSError, ImportError, yaml.YAMLError, StrictDataclassError)


def run_command(main: Callable[[], int | None]) -> int:
    """
    The exit code of `main`; a mistake of its user is printed as one message, without a traceback.

    `LOGRAMED_DEBUG=1` in the environment shows the traceback.

    Args:
        main (`Callable`): The command, which returns its exit code, or `None` for 0.
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
    return str(error).strip() or type(error).__name__


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that names the nearest of an unknown argument, before it asks for missing ones."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        self.refuse_unknown(sys.argv[1:] if args is None else args)
        return super().parse_args(args, namespace)

    def refuse_unknown(self, args: Iterable[str]) -> None:
        unknown = find_unknown(args, self._option_string_actions)
        if unknown:
            self.error(describe_unknown(unknown, self._option_string_actions))


def find_unknown(args: Iterable[str], known: Iterable[str]) -> list[str]:
    """
    The words of a command line that look like arguments and are none, nor the beginning of one.

    Example:
        >>> find_unknown(["--otput", "x", "--dat", "y", "--", "--z"], ["--output", "--data"])
        ['--otput']
    """
    unknown = []
    for word in args:
        if word == "--":
            break
        name = word.split("=")[0]
        if name.startswith("--") and not any(option.startswith(name) for option in known):
            unknown.append(name)
    return unknown


def describe_unknown(unknown: Sequence[str], known: Iterable[str]) -> str:
    """
    Example:
        >>> describe_unknown(["--otput"], ["--output", "--data"])
        'there is no argument --otput. The nearest is --output.'
    """
    sentences = []
    for name in unknown:
        dashed = name if name.startswith("-") else f"--{name}"
        sentences.append(f"there is no argument {name}.{describe_nearest(dashed, known)}")
    return " ".join(sentences)


def describe_nearest(name: str, known: Iterable[str]) -> str:
    """
    Example:
        >>> describe_nearest("quickstrat.yaml", ["quickstart.yaml", "other.yaml"])
        ' The nearest is quickstart.yaml.'
    """
    return "".join(f" The nearest is {nearest}." for nearest in difflib.get_close_matches(name, list(known), n=1))


def parse_into_dataclasses(parser: Any, args: Sequence[str]) -> tuple:
    """
    What a parser of transformers or TRL makes of a command line (and, of TRL's, of a recipe).

    Args:
        parser (`HfArgumentParser` or `TrlParser`): The parser.
        args (`Sequence[str]`): The command line; `--config FILE` names a recipe.

    Raises:
        ValueError: If an argument does not exist; the nearest is named.
    """
    known = [option for option in parser._option_string_actions if option.startswith("--")]
    unknown = find_unknown(args, [*known, "--config"])
    if unknown:
        raise ValueError(_capitalize(describe_unknown(unknown, known)))
    parse = getattr(parser, "parse_args_and_config", parser.parse_args_into_dataclasses)
    *parsed, remaining = parse(args, return_remaining_strings=True)
    if remaining:
        names = [word for word in remaining if word.startswith("--")] or remaining
        raise ValueError(_capitalize(describe_unknown(names, known)))
    return tuple(parsed)


def _capitalize(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
