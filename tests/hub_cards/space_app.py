"""The demo's modules, which lie flat as in a Space."""

import importlib
import sys
from contextlib import contextmanager
from pathlib import Path


FOLDER = Path(__file__).parents[2] / "hub_cards" / "space"
MODULES = ("images", "conversation", "relevance", "app")


@contextmanager
def space_modules():
    """While this holds, the modules can be imported by their plain names, as the page itself does."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)
