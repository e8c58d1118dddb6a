"""
Convert checkpoints of LLaVA-Med, ExGra-Med and LLaVA into LoGra-Med, and LoGra-Med into a stock LLaVA:

    logramed-convert --from llava-med-v1.5 microsoft/llava-med-v1.5-mistral-7b runs/llava_med
    logramed-convert --to llava runs/mine runs/mine_llava

`python trainer/convert.py` does the same.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from logramed.eval.command_line import run_command
from logramed.trainer.checkpoints.interruption import TERMINATED_EXIT_CODE
from logramed.trainer.conversion.incoming import convert_to_logramed
from logramed.trainer.conversion.sources import KINDS
from logramed.trainer.conversion.stock import convert_to_llava


OPTIONS = ("dense_connector", "base", "vision_tower")  # only for --from


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="logramed-convert", description="Convert checkpoints into LoGra-Med, or LoGra-Med into a stock LLaVA."
    )
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--from", dest="kind", choices=list(KINDS), help="format of SOURCE")
    direction.add_argument("--to", choices=["llava"], help="format of OUTPUT; SOURCE is a LoGra-Med or an adapter")
    parser.add_argument("source", metavar="SOURCE", help="folder or Hub id")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder to write to, new or empty")
    parser.add_argument(
        "--dense_connector",
        choices=["none", "sti", "sci", "dci"],
        help="how the vision tower's layers are joined, if the checkpoint does not say",
    )
    parser.add_argument("--base", help="folder or Hub id of the LLaMA that a delta is added to")
    parser.add_argument(
        "--vision_tower",
        help="folder or Hub id of CLIP (default: the checkpoint's own, or the one that its config.json names)",
    )
    arguments = parser.parse_args(argv)
    given = [f"--{name}" for name in OPTIONS if getattr(arguments, name) is not None]
    if arguments.to and given:
        parser.error(f"{' and '.join(given)}: only for --from")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.to:
        written = convert_to_llava(arguments.source, arguments.output)
    else:
        options = {name: getattr(arguments, name) for name in OPTIONS}
        written = convert_to_logramed(arguments.kind, arguments.source, arguments.output, **options)
    print(f"Wrote {written}.")
    return 0


def command() -> int:
    # Removes partial output, as after Ctrl-C. Set here, since `main` may be called from a process that must go on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED_EXIT_CODE))
    return run_command(main)


if __name__ == "__main__":
    raise SystemExit(command())
