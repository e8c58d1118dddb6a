"""
What holds for every test: no Hub but those of the tests, no token, no telemetry, one thread, one seed, and a state of
the process as the test before found it.

In another order: `python -m pytest --random-order-bucket=global --random-order-seed=1`.
"""

import os
import shutil
import tempfile

import pytest

from tests.isolation import close_environment, kept_state, seed_everything


HOME = tempfile.mkdtemp(prefix="logramed-tests-")
NEEDS_CHROMIUM = "needs Chromium, in the path or as LOGRAMED_CHROMIUM"

# Before anything that reads them is imported.
close_environment(os.environ, HOME)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _kept_state():
    with kept_state():
        yield


@pytest.fixture(scope="session")
def default_text_encoder():
    """A tiny stand-in for the sentence encoder that alignment uses by default, where the Hub's cache would have it."""
    from logramed.trainer.alignment.config import PRESETS
    from tests.tiny import cache_sentence_encoder

    cache_sentence_encoder(PRESETS["answer_states"]["alignment_text_encoder"], f"{HOME}/hub")


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    seed_everything()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    seed_everything()


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    num_skipped = sum(NEEDS_CHROMIUM in str(report.longrepr) for report in skipped)
    if num_skipped:
        terminalreporter.write_line(
            f"{num_skipped} tests of the demo were left out: they need Chromium. `make install-browser` installs it "
            "on Debian, as root; elsewhere name it in LOGRAMED_CHROMIUM."
        )


def pytest_unconfigure(config):
    shutil.rmtree(HOME, ignore_errors=True)
