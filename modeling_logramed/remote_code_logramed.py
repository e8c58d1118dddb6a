"""What a saved folder needs so that the Auto classes load it where `logramed` is not installed."""

import shutil
from pathlib import Path


# `register_for_auto_class` keeps one Auto class for each of ours; a LoGra-Med folder serves several, so the whole map
# is written here once.
MODEL_AUTO_MAP = {
    "AutoConfig": "configuration_logramed.LoGraMedConfig",
    "AutoModel": "modeling_logramed.LoGraMedForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_logramed.LoGraMedForConditionalGeneration",
    "AutoModelForVision2Seq": "modeling_logramed.LoGraMedForConditionalGeneration",
}
PROCESSOR_AUTO_MAP = {
    "AutoImageProcessor": "image_processing_logramed.LoGraMedImageProcessor",
    "AutoProcessor": "processing_logramed.LoGraMedProcessor",
}


def copy_code_files(save_directory) -> None:
    """Copy this package's `*_logramed.py` files to the folder `save_directory`, made if it is not there."""
    save_directory = Path(save_directory)
    save_directory.mkdir(parents=True, exist_ok=True)
    for source in sorted(Path(__file__).parent.glob("*_logramed.py")):
        destination = save_directory / source.name
        if source.resolve() != destination.resolve():
            shutil.copyfile(source, destination)
