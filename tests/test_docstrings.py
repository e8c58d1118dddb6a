import doctest
import importlib
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).parents[1]
PACKAGES = {
    "modeling_logramed": "logramed",
    "trainer": "logramed.trainer",
    "eval": "logramed.eval",
    "hub_cards": "logramed.hub_cards",
}


def modules_with_examples():
    for folder, package in PACKAGES.items():
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            place = path.relative_to(REPOSITORY / folder)
            of_the_demo = place.parts[0] == "space"  # no package; tests/hub_cards/test_docstrings.py has it
            if ">>> " in path.read_text(encoding="utf-8") and not of_the_demo:
                parts = place.with_suffix("").parts
                yield ".".join((package, *(part for part in parts if part != "__init__")))


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_docstring_examples_hold(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
