import doctest
import importlib
from pathlib import Path

import pytest

from tests.hub_cards.space_app import MODULES, space_modules


FOLDER = Path(__file__).parents[2] / "hub_cards"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_docstring_examples_hold(name):
    module = importlib.import_module("logramed.hub_cards" if name == "__init__" else f"logramed.hub_cards.{name}")
    assert doctest.testmod(module).failed == 0


def test_docstring_examples_of_the_demo_hold():
    pytest.importorskip("gradio", reason="needs gradio: pip install 'logramed[demo]'")
    with space_modules() as modules:
        assert sum(doctest.testmod(modules[name]).attempted for name in MODULES) > 1
        assert sum(doctest.testmod(modules[name]).failed for name in MODULES) == 0
