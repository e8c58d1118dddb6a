"""What a saved folder needs for the Auto classes to load it without `logramed` installed."""

import shutil
from pathlib import Path


# `register_for_auto_class` allows only one Auto class per class; a LoGra-Med folder needs several, so the whole map is
# written here.
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
    """Copy this package's `*_logramed.py` files to the folder `save_directory`, created if needed."""
    save_directory = Path(save_directory)
    save_directory.mkdir(parents=True, exist_ok=True)
    for source in sorted(Path(__file__).parent.glob("*_logramed.py")):
        destination = save_directory / source.name
        if source.resolve() != destination.resolve():
            shutil.copyfile(source, destination)
