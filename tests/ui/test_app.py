"""All pages are built, served, and safe."""

import socket
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from dataclasses import replace

import pytest
import torch

from backend import precision
from backend.errors import UserError
from ui import app
from ui.pages import about
from ui.visitor import user_of


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def served(host, jobs, filled):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        demo = app.build(jobs)
        address = app.launch(demo, jobs, server_name="127.0.0.1", server_port=free_port())
    yield address.rstrip("/")
    demo.close()


def fetched(address):
    with urllib.request.urlopen(address, timeout=20) as answer:
        return answer.status, answer.read().decode()


def test_every_page_answers_and_needs_nothing_from_outside(served):
    for _, path, _ in app.PAGES:
        status, body = fetched(f"{served}/{path}")
        assert status == 200
        assert "Paretoscope" in body
        for place in ("fonts.googleapis", "cdn.", "unpkg", "jsdelivr"):
            assert place not in body


def test_the_plot_library_comes_from_here_and_other_files_do_not(served, host):
    _, body = fetched(f"{served}/")
    library = body.split("gradio_api/file=")[1].split("plotly.min.js")[0] + "plotly.min.js"
    assert fetched(f"{served}/gradio_api/file={library}")[0] == 200
    with pytest.raises(urllib.error.HTTPError, match="403"):
        fetched(f"{served}/gradio_api/file={host.home / 'results.sqlite'}")
    with pytest.raises(urllib.error.HTTPError):
        fetched(f"{served}/monitoring")


def test_an_address_that_is_no_page_leads_home_and_tells_programs_plainly(served):
    asked = urllib.request.Request(f"{served}/a/%3Cb%3Enonesuch", headers={"Accept": "text/html"})
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        urllib.request.urlopen(asked, timeout=20)
    body = refused.value.read().decode()
    assert 'href="/compress"' in body
    assert "<b>nonesuch" not in body
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        fetched(f"{served}/nonesuch")
    assert refused.value.headers["Content-Type"] == "application/json"


def test_the_mark_in_the_tab_is_our_own(served):
    assert "<svg" in fetched(f"{served}/favicon.ico")[1]


def test_nothing_but_the_pages_can_be_called_by_name(served):
    _, body = fetched(f"{served}/gradio_api/info")
    assert '"named_endpoints":{}' in body.replace(" ", "")


def test_where_a_log_in_is_required_nobody_acts_without_one(host, visitor):
    assert user_of(visitor, host) == "anonymous"
    with pytest.raises(UserError, match="log in"):
        user_of(visitor, replace(host, auth=(("ada", "secret"),)))


def test_about_lists_every_method_and_metric(jobs):
    table = about.methods_table() + about.metrics_table()
    for name in (*about.discover().methods, *about.discover().metrics):
        assert name in table
    assert "CC BY-SA 4.0" in about.sources(jobs)
    assert "transformers" in about.machine(jobs)


def test_about_says_what_models_are_computed_in_and_how_fast_the_processor_is(jobs, monkeypatch):
    assert "auto (measured at the first run)" in about.machine(jobs)
    monkeypatch.setattr(precision, "_measured", {torch.bfloat16: 4.3, torch.float32: 23.5}.__getitem__)
    precision.compute_dtype(torch.bfloat16, torch.device("cpu"), jobs.host)
    assert "auto (float32 24 GFLOP/s, bfloat16 4 GFLOP/s)" in about.machine(jobs)


def test_the_pages_do_no_model_work_and_know_no_database_engine():
    told = subprocess.run(
        [sys.executable, "-c", "import sys, ui.charts; print({'gradio', 'torch'} & set(sys.modules))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == "set()"


def test_a_port_that_is_taken_is_said_in_one_sentence(jobs):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 cannot be used .*GRADIO_SERVER_PORT"):
            app.launch(app.build(jobs), jobs, server_name="127.0.0.1", server_port=port)
