"""
Merge an adapter into its base model. Every command accepts the resulting folder, which needs no PEFT.

    logramed-merge runs/mine --output runs/mine_merged
"""

import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from logramed.eval.command_line import run_command
from logramed.eval.files import require_empty, whole_folder
from logramed.eval.model_names import naming_base_model, processor_source, resolve_adapter
from logramed.trainer.build_model import PARTS_NAME
from logramed.trainer.checkpoints.provenance import RECORD_NAME


# Records of the training that produced the adapter.
RECORDS = (RECORD_NAME, "train_metrics.json", "curves.png")


def merge_adapter(adapter: str, output: str | Path) -> Path:
    """
    Write an adapter's base model with the adapter's weights added.

    Args:
        adapter (`str`): Folder of a PEFT adapter, whose configuration names its base.
        output (`str` or `Path`): A folder that does not exist yet, or is empty.

    Returns:
        `Path`: The folder, with the model in the base's dtype, its processor, the base's origin, and the records of
        the training.

    Raises:
        ValueError: If `adapter` is not an adapter, its base is quantized, or `output` is not empty.
    """
    output = Path(output)
    base, found = resolve_adapter(adapter)
    if found is None:
        raise ValueError(f"{adapter} is not an adapter folder: it has no adapter_config.json.")
    require_empty(output)
    with naming_base_model(adapter, base):
        model = AutoModelForImageTextToText.from_pretrained(base, dtype="auto")
        processor = AutoProcessor.from_pretrained(processor_source(base, adapter))
    if getattr(model, "is_quantized", False):
        raise ValueError(f"The base {base} is quantized: adapters can only be merged into unquantized weights.")
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
    with whole_folder(output) as unfinished:
        merged.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        for folder, names in ((base, (PARTS_NAME,)), (adapter, RECORDS)):
            for name in names:
                if (Path(folder) / name).is_file():
                    shutil.copyfile(Path(folder) / name, unfinished / name)
    return output


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(prog="logramed-merge", description="Merge an adapter into its base model.")
    parser.add_argument("adapter", help="folder of the adapter")
    parser.add_argument("--output", required=True, type=Path, help="folder to write the merged model to")
    arguments = parser.parse_args(argv)
    print(f"Wrote {merge_adapter(arguments.adapter, arguments.output)}.")
    return 0


def command() -> int:
    return run_command(main)


if __name__ == "__main__":
    raise SystemExit(command())
