"""Load a metric's modules as a Space has them: from the files of its folder, without `logramed`, torch or a model."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


METRICS_FOLDER = Path(__file__).parents[3] / "eval" / "metrics"


def load_metric_module(metric: str, module: str) -> ModuleType:
    """
    The module `eval/metrics/METRIC/MODULE.py`, loaded by path; its imports of siblings (`from .x import y`) work.

    Asked twice, it is the same module object, whose classes and errors are then the same too.

    Example:
        >>> load_metric_module("medical_vqa", "vqa_scoring").yes_or_no("Yes.")
        'yes'
    """
    package_name = f"metric_by_path_{metric}"
    if package_name not in sys.modules:
        folder = METRICS_FOLDER / metric
        spec = importlib.util.spec_from_file_location(
            package_name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        package = importlib.util.module_from_spec(spec)
        sys.modules[package_name] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"{package_name}.{module}")


def load_by_path(name: str, path: Path) -> ModuleType:
    """The module in the file `path`, under `name`."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
