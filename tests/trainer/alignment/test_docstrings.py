import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["gradients", "losses", "matching", "retrieval"])
def test_docstring_examples_say_what_comes_out(name):
    result = doctest.testmod(importlib.import_module(f"logramed.trainer.alignment.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
