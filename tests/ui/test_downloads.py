"""The model of a run as a file: who may ask for what, and what the card says of it."""

import urllib.error
import urllib.request

import pytest

from backend.errors import UserError
from backend.export import packed_path
from store import results, tasks
from tests.ui import made_up
from tests.ui.test_app import free_port
from ui import app, downloads


def task_of(jobs, run_id, form):
    run = results.run(jobs.database, run_id)
    asked = {"run": run_id, "artifact": run["artifact"], "form": form}
    return results.task(jobs.database, jobs.task_id("export", run["model"], asked))


@pytest.fixture
def run(jobs, tiny):
    run_id = made_up.add_run(jobs.database, made_up.RUNS[2], recipe={"model": tiny.model})
    with jobs.database.write() as connection:
        connection.exec_driver_sql("UPDATE runs SET model = ? WHERE id = ?", (tiny.model, run_id))
    return run_id


def offered(jobs, run_id):
    return downloads.offers(jobs, results.run(jobs.database, run_id))


def test_a_format_is_prepared_then_offered_and_prepared_again_when_it_is_gone(jobs, run):
    assert "Prepare safetensors for download" in offered(jobs, run)
    downloads.ask(jobs, run, "safetensors", "ada")
    assert "safetensors is being prepared (queued)" in offered(jobs, run)
    task = task_of(jobs, run, "safetensors")
    assert tasks.start(jobs.database, task["id"], 1, "local")
    tasks.finish(jobs.database, task["id"], 1, "failed", error="Traceback\n<b>no space</b>")
    assert "&lt;b&gt;no space&lt;/b&gt;" in offered(jobs, run)
    downloads.ask(jobs, run, "safetensors", "ada")
    packed = packed_path(jobs.host, run, "safetensors")
    packed.parent.mkdir(parents=True)
    packed.write_bytes(b"x" * 2_000_000)
    tasks.start(jobs.database, task["id"], 2, "local")
    tasks.finish(jobs.database, task["id"], 2, "done", result={"file": packed.name})
    assert f'href="download/{packed.name}"' in offered(jobs, run)
    assert "2.0 MB" in offered(jobs, run) or "2 MB" in offered(jobs, run)
    # The cache has been trimmed since.
    packed.unlink()
    assert "Prepare safetensors for download" in offered(jobs, run)
    downloads.ask(jobs, run, "safetensors", "ada")
    assert task_of(jobs, run, "safetensors")["status"] == "queued"


def test_what_cannot_be_exported_is_refused_in_one_sentence(jobs, run):
    for name, form in ((run, "gguf"), ("nonesuch", "safetensors"), (run, "../../etc")):
        with pytest.raises(UserError, match="has no model that could be exported as this; formats: safe"):
            downloads.ask(jobs, name, form, "ada")
    waiting = made_up.add_run(jobs.database, made_up.RUNS[3], status="queued")
    with pytest.raises(UserError, match="has no model"):
        downloads.ask(jobs, waiting, "safetensors", "ada")


def test_only_what_was_packed_is_served(jobs, run):
    packed = packed_path(jobs.host, run, "safetensors")
    packed.parent.mkdir(parents=True)
    packed.write_bytes(b"all of it")
    demo = app.build(jobs)
    address = app.launch(demo, jobs, server_name="127.0.0.1", server_port=free_port())
    with urllib.request.urlopen(f"{address}download/{packed.name}", timeout=20) as answer:
        assert answer.read() == b"all of it"
        assert packed.name in answer.headers["Content-Disposition"]
    for name in (
        "results.sqlite",
        f"{run}-transformers.zip",
        "..%2F..%2Fresults.sqlite",
        f"..%2F{packed.name}",
    ):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}download/{name}", timeout=20)
    demo.close()


def test_removing_a_run_removes_its_exports(jobs, run):
    packed = packed_path(jobs.host, run, "transformers")
    packed.parent.mkdir(parents=True)
    packed.write_bytes(b"x")
    jobs.remove(run)
    assert not packed.parent.exists()
