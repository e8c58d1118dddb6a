"""What several metric tests need."""

import json
from pathlib import Path

import pytest


FIXTURE = Path(__file__).parents[4] / "shared" / "fixtures" / "evaluation_parity.json"


@pytest.fixture(scope="session")
def parity() -> dict:
    """Recorded outputs of the release's evaluation."""
    if not FIXTURE.is_file():
        pytest.skip(f"needs the recorded outputs of the release, {FIXTURE}")
    return json.loads(FIXTURE.read_text(encoding="utf-8"))
