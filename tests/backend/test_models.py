"""Models of the hub: looked at without fetching weights, the same before and after."""

import json
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import NotASafetensorsRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

import backend.models
from backend import checkpoint_files
from backend.artifacts import load_model
from backend.errors import UserError
from backend.facts import facts
from backend.host import Host
from backend.identity import run_digest
from backend.models import fingerprint, fingerprint_of
from backend.recipe import parse_recipe
from tests.tiny import make_model, make_text

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
            _, entries = checkpoint_files.read_header(snapshot / "model.safetensors", model)
            tensors = {name: SimpleNamespace(**entry) for name, entry in entries.items()}
            return SimpleNamespace(files_metadata={"model.safetensors": SimpleNamespace(tensors=tensors)})

    def no_download(model, **settings):
        if settings.get("local_files_only"):
            raise backend.models.LocalEntryNotFoundError("not here")
        raise AssertionError("weights were fetched")

    monkeypatch.setattr(backend.models, "HfApi", Api)
    monkeypatch.setattr(backend.models, "snapshot_download", no_download)
    monkeypatch.setattr(backend.models, "hf_hub_download", lambda model, name, revision: str(snapshot / name))
    backend.models.hub_layout.cache_clear()
    yield snapshot
    backend.models.hub_layout.cache_clear()


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


def test_a_missing_tensor_is_named_and_not_made_up(tmp_path, host):
    folder = make_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.input_layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"tensor model.layers.1.input_layernorm.weight is missing"):
        load_model(facts(str(folder), host), host)


@pytest.mark.parametrize("told", [1, 3])
def test_blocks_that_the_configuration_does_not_tell_of_are_refused(told, tmp_path, host):
    folder = make_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": told}))
    with pytest.raises(UserError, match=f"tells of {told} blocks, the weights hold 2"):
        facts(str(folder), host)


def test_only_files_that_transformers_would_load_count(tmp_path, host):
    folder = make_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    with pytest.raises(UserError, match="no safetensors file"):
        facts(str(folder), host)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ('{"weight_map": {"a": "../../outside.safetensors"}}', "is no index"),
        ('{"weight_map": {"a": "part.safetensors"}}', "part.safetensors is missing"),
        ('{"weight_map": []}', "is no index"),
        ("[" * 100_000, "is no index"),
    ],
)
def test_an_index_names_files_of_its_own_folder_only(index, words, tmp_path, host):
    folder = make_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=words):
        facts(str(folder), host)


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": 5},
        {"shape": ["a", "b"]},
        {"shape": [0, 0]},
        {"data_offsets": ["0", 4]},
        {"data_offsets": [-4, 0]},
        {"dtype": "F8_E4M3"},
    ],
)
def test_a_hostile_header_is_refused_in_one_sentence(entry, tmp_path, host):
    folder = make_model(tmp_path / "model")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["model.norm.weight"] |= entry
    changed = json.dumps(header).encode()
    file.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])
    with pytest.raises(UserError, match=r"not a whole safetensors file|is stored as F8_E4M3"):
        facts(str(folder), host)


@pytest.mark.parametrize("value", ['"abc"', "0", "-1", "true"])
def test_counts_in_the_configuration_must_be_counts(value, tmp_path, host):
    folder = make_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": json.loads(value)}))
    with pytest.raises(UserError, match=r"vocab_size in config.json"):
        facts(str(folder), host)


def test_names_that_no_file_can_have_are_refused(host):
    with pytest.raises(UserError, match="too long"):
        facts("x" * 300, host)


def test_the_dense_model_answers_by_the_same_rules_as_a_run(tmp_path, host):
    folder = make_model(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.5, "eos_token_id": 1}')
    assert load_model(facts(str(folder), host), host).model.generation_config.repetition_penalty in (
        None,
        1.0,
    )


def test_a_changed_text_or_tokenizer_makes_another_run(tmp_path, host):
    folder, text = make_model(tmp_path / "model"), make_text(tmp_path / "text.txt")
    recipe = parse_recipe({"model": str(folder), "evaluation": {"text": f"file:{text}", "length": 64}})
    seen = {run_digest(recipe, host)}
    text.write_text(text.read_text() + " more")
    seen.add(run_digest(recipe, host))
    (folder / "tokenizer_config.json").write_text('{"changed": true}')
    seen.add(run_digest(recipe, host))
    assert len(seen) == 3
    assert run_digest(recipe, host) in seen


def test_the_estimate_counts_the_type_that_is_loaded(tmp_path, host):
    folder = make_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    before = sum(size for _, size in facts(str(folder), host).tensors.values())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert sum(size for _, size in facts(str(folder), host).tensors.values()) == before // 2
