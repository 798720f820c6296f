"""What several tests stand on: a data home of their own, layers with real statistics, tiny models."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from backend.host import Host

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A busy machine is slow, not wrong.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Settings of a fresh home; models and texts may lie below the test's folder."""
    return Host.from_environment(
        {
            "PARETOSCOPE_HOME": str(tmp_path / "home"),
            "PARETOSCOPE_ROOTS": str(tmp_path),
            "PARETOSCOPE_DEVICE": "cpu",
        }
    )
