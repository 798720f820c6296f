"""What tests of the backend stand on: a data home of their own, on the CPU."""

from pathlib import Path

import pytest

from backend.host import Host


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
