"""Models of the hub: looked at without fetching weights, the same before and after."""

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import NotASafetensorsRepoError, RepositoryNotFoundError

import backend.models
from backend.errors import UserError
from backend.host import Host
from backend.models import facts, fingerprint, fingerprint_of
from tests.tiny import make_model

COMMIT = "0123456789abcdef"


@pytest.fixture
def host(tmp_path):
    return Host.from_environment(
        {"PARETOSCOPE_HOME": str(tmp_path / "home"), "PARETOSCOPE_ROOTS": str(tmp_path)}
    )


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub that serves one tiny model, and keeps it from being fetched."""
    snapshot = tmp_path / "models--lab--tiny" / "snapshots" / COMMIT
    make_model(snapshot, "gpt2")

    class Api:
        def model_info(self, model, timeout):
            if model != "lab/tiny":
                raise RepositoryNotFoundError(
                    "404", response=SimpleNamespace(headers={}, request=None, status_code=404)
                )
            return SimpleNamespace(sha=COMMIT)

        def get_safetensors_metadata(self, model, revision):
            entries = backend.models._header(snapshot / "model.safetensors", model)
            tensors = {name: SimpleNamespace(**entry) for name, entry in entries.items()}
            return SimpleNamespace(files_metadata={"model.safetensors": SimpleNamespace(tensors=tensors)})

    def no_download(model, **settings):
        if settings.get("local_files_only"):
            raise backend.models.LocalEntryNotFoundError("not here")
        raise AssertionError("weights were fetched")

    monkeypatch.setattr(backend.models, "HfApi", Api)
    monkeypatch.setattr(backend.models, "snapshot_download", no_download)
    monkeypatch.setattr(backend.models, "hf_hub_download", lambda model, name, revision: str(snapshot / name))
    backend.models._hub_layout.cache_clear()
    yield snapshot
    backend.models._hub_layout.cache_clear()


def test_a_hub_model_is_looked_at_without_fetching_its_weights(hub, host):
    remote = facts("lab/tiny", host)
    local = facts(str(hub), host)
    assert remote.layers == local.layers
    assert remote.layers["transformer.h.0.attn.c_attn"] == (96, 32)
    assert remote.tensors == local.tensors
    assert remote.positions == 256


def test_a_hub_model_has_one_fingerprint_before_and_after_it_is_fetched(hub, host):
    assert fingerprint("lab/tiny", host) == facts("lab/tiny", host).fingerprint == fingerprint_of(hub, host)


def test_a_model_the_hub_does_not_know_is_said_to_be_unknown(hub, host):
    with pytest.raises(UserError, match="the hub knows no public model of that name"):
        facts("lab/other", host)


def test_a_hub_model_without_safetensors_is_refused(hub, host, monkeypatch):
    def refuse(self, model, revision):
        raise NotASafetensorsRepoError("no safetensors")

    monkeypatch.setattr(backend.models.HfApi, "get_safetensors_metadata", refuse)
    with pytest.raises(UserError, match="pickled weights are not loaded"):
        facts("lab/tiny", host)


def test_parameters_are_counted_once_when_head_and_embedding_are_tied(tmp_path, host):
    tied = facts(str(make_model(tmp_path / "tied", "llama", tie_word_embeddings=True)), host)
    apart = facts(str(make_model(tmp_path / "apart", "llama", tie_word_embeddings=False)), host)
    assert apart.parameters - tied.parameters == 260 * 32
    assert tied.blocks == apart.blocks == 2
