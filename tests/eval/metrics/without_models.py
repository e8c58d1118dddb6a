"""
A pytest plugin (`-p tests.eval.metrics.without_models`): torch, transformers and logramed are as if not installed.

They are hidden from every finder of modules, so that importing one raises `ModuleNotFoundError`, and libraries that
ask whether torch is there hear no.
"""

import sys


HIDDEN = ("torch", "transformers", "logramed", "gradio")


class HidingFinder:
    """A finder of `sys.meta_path` that does not find the hidden packages, and is `finder` otherwise."""

    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            return None
        return self._finder.find_spec(name, path, target)


def pytest_configure(config):
    already = [name for name in HIDDEN if name in sys.modules]
    assert not already, f"imported before anything could be hidden: {already}"
    sys.meta_path[:] = [HidingFinder(finder) for finder in sys.meta_path]


def pytest_unconfigure(config):
    assert not [name for name in HIDDEN if name in sys.modules]
