import doctest

import pytest

from tests.hub_cards.space_app import MODULES, space_modules


def test_docstring_examples_of_the_demo_hold():
    pytest.importorskip("gradio", reason="needs gradio: pip install 'logramed[demo]'")
    with space_modules() as modules:
        assert sum(doctest.testmod(modules[name]).attempted for name in MODULES) > 1
        assert sum(doctest.testmod(modules[name]).failed for name in MODULES) == 0
