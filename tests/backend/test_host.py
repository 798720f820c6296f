"""What the environment says, and paths that may be read."""

from dataclasses import fields
from pathlib import Path

import pytest

from backend.errors import UserError
from backend.host import VARIABLES, Host, check_local


def test_defaults_live_in_the_users_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    host = Host.from_environment({"HOME": "/people/ada"})
    assert host.home == Path("/people/ada/.local/share/paretoscope")
    assert host.database_url == "sqlite:////people/ada/.local/share/paretoscope/results.sqlite"
    assert host.queue_url == "sqlite:////people/ada/.local/share/paretoscope/queue.sqlite"
    assert (host.device, host.journal, host.quota, host.starter, host.auth) == ("auto", "wal", 0, True, ())
    assert not host.trust_remote_code


def test_postgresql_serves_the_queue_too() -> None:
    host = Host.from_environment({"PARETOSCOPE_DATABASE_URL": "postgresql://ada@server/lab"})
    assert host.queue_url == "postgresql://ada@server/lab"


def test_every_setting_has_a_documented_variable() -> None:
    # `roots` and `home` have one each, and so has every other field; the names are the operators' words.
    assert len(VARIABLES) == len(fields(Host))
    assert all(
        name.startswith("PARETOSCOPE_") and default and meaning for name, default, meaning in VARIABLES
    )


def test_log_ins_are_pairs() -> None:
    host = Host.from_environment({"PARETOSCOPE_AUTH": "ada:se:cret, bob:x"})
    assert host.auth == (("ada", "se:cret"), ("bob", "x"))


def test_the_pages_speak_english_unless_told_otherwise() -> None:
    assert Host.from_environment({}).language == "en"
    assert Host.from_environment({"PARETOSCOPE_LANGUAGE": "nl"}).language == "nl"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("PARETOSCOPE_QUOTA", "many", "takes a number of at least 0"),
        ("PARETOSCOPE_QUOTA", "-1", "takes a number of at least 0"),
        ("PARETOSCOPE_STALE_AFTER", "nan", "takes a number of at least 1"),
        ("PARETOSCOPE_JOURNAL", "memory", "takes one of wal, delete"),
        ("PARETOSCOPE_STARTER", "maybe", "takes one of 0, 1"),
        ("PARETOSCOPE_AUTH", "ada", "user:password pairs"),
    ],
)
def test_a_value_that_makes_no_sense_is_an_error(variable: str, value: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Host.from_environment({variable: value})


def test_only_paths_below_the_roots_are_read(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "inside-not"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    host = Host.from_environment({"PARETOSCOPE_ROOTS": str(inside), "PARETOSCOPE_HOME": str(tmp_path)})
    assert check_local(inside / "model", host) == inside / "model"
    for path in (outside, inside / "link", inside / ".." / "inside-not", "/etc/passwd", "~/x", "a\x00b"):
        with pytest.raises(UserError):
            check_local(path, host)
