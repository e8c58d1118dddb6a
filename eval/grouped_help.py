"""Grouped `--help` for commands whose arguments are dataclasses, with our own arguments first."""

import dataclasses
import re
from argparse import SUPPRESS, Action, ArgumentParser, HelpFormatter
from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import HfArgumentParser


WIDTH, INDENT = 110, 30
BRIEF = 220  # characters of a description in `--help`; `--help_all` prints all of it


def add_grouped_help(parser: HfArgumentParser, groups: Mapping[str, str], usage: str, description: str) -> None:
    """
    Replace the help of `parser`, made with `add_help=False`.

    Args:
        parser (`HfArgumentParser`): Parser whose dataclasses hold the arguments.
        groups (`Mapping[str, str]`): The argument names of each group, separated by spaces, by title.
        usage (`str`): One usage line, without the name of the command.
        description (`str`): Printed below the usage.

    If some arguments are in no group, `--help` gives their number and `--help_all` lists them too.

    Raises:
        ValueError: If a group names an argument that the dataclasses do not have.
    """
    fields = {field.name: field for kind in parser.dataclass_types for field in dataclasses.fields(kind) if field.init}
    shown = {title: names.split() for title, names in groups.items()}
    named = {name for names in shown.values() for name in names}
    unknown = sorted(named - set(fields))
    if unknown:
        raise ValueError(f"The help groups name arguments that do not exist: {', '.join(unknown)}.")
    others = [name for name in fields if name not in named]
    write = partial(_write_help, f"{parser.prog} {usage}", description, fields)
    note = f"\n--help_all lists {len(others)} further arguments, those of transformers and TRL.\n" if others else ""
    parser.add_argument("-h", "--help", action=_PrintHelp, write=lambda: write(shown, BRIEF) + note)
    if others:
        everything = shown | {"Further arguments of transformers and TRL": others}
        parser.add_argument("--help_all", action=_PrintHelp, write=lambda: write(everything, None))


class _PrintHelp(Action):
    def __init__(self, option_strings, dest, write, **_):
        super().__init__(option_strings, dest=SUPPRESS, default=SUPPRESS, nargs=0)
        self.write = write

    def __call__(self, parser, *_):
        print(self.write(), end="")
        parser.exit()


def _write_help(
    usage: str,
    description: str,
    fields: Mapping[str, dataclasses.Field],
    groups: Mapping[str, list[str]],
    longest: int | None,
) -> str:
    layout = partial(HelpFormatter, width=WIDTH, max_help_position=INDENT)
    page = ArgumentParser(usage=usage, description=description, add_help=False, formatter_class=layout)
    for title, names in groups.items():
        group = page.add_argument_group(title)
        for name in names:
            group.add_argument(f"--{name}", **_describe(fields[name], longest))
    return page.format_help()


def _describe(field: dataclasses.Field, longest: int | None) -> dict[str, Any]:
    """Metavar and help text of a field."""
    text = " ".join(str(field.metadata.get("help", "")).replace("%%", "%").split())
    default = getattr(field.default, "value", field.default)
    if default is dataclasses.MISSING:
        note = " (required)" if field.default_factory is dataclasses.MISSING else ""
    elif default is None:
        note = ""
    else:
        note = f" (default: {default if default != '' else repr(default)})"
    choices = field.metadata.get("choices")
    kind = "{" + ",".join(choices) + "}" if choices else _kind(field, default)
    return {"metavar": kind, "help": (first_sentences(text, longest) + note).replace("%", "%%")}


def _kind(field: dataclasses.Field, default: Any) -> str:
    """The metavar of a field: `TEXT`, `NUMBER` or `true|false`."""
    declared = str(field.type)
    if isinstance(default, bool) or "bool" in declared:
        return "true|false"
    return "NUMBER" if ("int" in declared or "float" in declared) and "str" not in declared else "TEXT"


def first_sentences(text: str, longest: int | None) -> str:
    """
    The first sentences of `text` that fit into `longest` characters, at least one; all of them for `None`.

    Example:
        >>> first_sentences("Folder for the answers. It is created if it is missing.", 40)
        'Folder for the answers.'
    """
    if longest is None or len(text) <= longest:
        return text
    first, *others = re.split(r"(?<=[.!?]) (?=[A-Z`])", text)
    for sentence in others:
        if len(first) + 1 + len(sentence) > longest:
            break
        first += f" {sentence}"
    return first
