"""What several tests stand on: a data home of their own, layers with real statistics, tiny models."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from backend.host import Host
from tests import pace

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# More processes than this need more memory than they save time.
_MOST_PROCESSES = 8

# A busy machine is slow, not wrong.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_xdist_auto_num_workers() -> int:
    """Processes for `-n auto`."""
    return min(_MOST_PROCESSES, os.cpu_count() or 1)


class _OneBrowser(LoadScopeScheduling):
    """Each test to the process that is free; those in a browser, which share it and a served app, to one."""

    def _split_scope(self, nodeid: str) -> str:
        return "browser" if nodeid.startswith("tests/browser/") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _OneBrowser(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that takes long without saying so fails."""
    report = yield
    if call.when == "call" and report.passed and item.get_closest_marker("slow") is None:
        problem = pace.too_long(call.duration)
        if problem:
            report.outcome, report.longrepr = "failed", f"{item.nodeid} {problem}"
    return report


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
