"""Model folders as people have them: measured is what transformers loads, or one sentence says why not."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from backend.artifacts import load_model, open_artifact
from backend.errors import UserError
from backend.estimate import estimate
from backend.evaluate import Subject, evaluate
from backend.export import export
from backend.facts import facts
from backend.pipeline import compress
from backend.progress import silent
from backend.proof import prove_walk
from backend.recipe import parse_recipe
from tests.tiny import make_model, make_text

RTN = {"method": "quantize.rtn", "params": {"bits": 8, "group_size": 16}}
GPTQ = {"method": "quantize.gptq", "params": {"bits": 4, "group_size": 16}}


def configured(folder, **changes):
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **changes}))
    return folder


def with_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def recipe_for(folder, *stages, length=64):
    text = make_text(folder.parent / "text.txt")
    return parse_recipe(
        {
            "model": str(folder),
            "stages": list(stages),
            "calibration": {"text": f"file:{text}", "samples": 6, "length": length},
            "evaluation": {"text": f"file:{text}", "length": length, "windows": 4},
        }
    )


def numbers_of(recipe, host, tmp_path, *names):
    artifact = tmp_path / "artifact.safetensors"
    compress(recipe, host, artifact, tmp_path / "scratch", silent)
    subject = Subject(recipe, host, artifact, tmp_path / "scratch", silent)
    found = [evaluate(name, subject) for name in names or ("perplexity", "divergence", "size")]
    return {one.metric: one.value for result in found for one in result.measurements}, subject


def plain_perplexity(folder, windows):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        losses = [model(ids[None], labels=ids[None]).loss for ids in windows]
    return float(torch.stack(losses).mean().exp())


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "opt", "gpt2"])
def test_a_head_of_its_own_is_kept_where_the_configuration_says_it_is_tied(model_type, tmp_path, host):
    folder = make_model(tmp_path / "model", model_type)
    whole = facts(str(folder), host)
    embedding = whole.family.embeddings[0]
    rows = whole.tables[embedding]

    def own_head(tensors):
        tensors["lm_head.weight"] = torch.randn(rows, generator=torch.Generator().manual_seed(9)) * 0.3

    with_tensors(folder, own_head)
    recipe = recipe_for(folder)
    numbers, subject = numbers_of(recipe, host, tmp_path)
    assert numbers["perplexity"] == pytest.approx(plain_perplexity(folder, subject.tokens.ids), rel=1e-5)
    assert numbers["divergence.kl"] == 0
    assert numbers["size.packed"] == estimate(recipe, host).packed_bytes
    assert (
        estimate(recipe, host).dense_bytes
        == sum(size for _, size in whole.tensors.values()) + 4 * rows[0] * rows[1]
    )
    export(tmp_path / "artifact.safetensors", "transformers", tmp_path / "out", host)
    theirs, ours = (AutoModelForCausalLM.from_pretrained(at).eval() for at in (folder, tmp_path / "out"))
    ids = torch.arange(40)[None] + 5
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, ours(ids).logits, atol=1e-5)


def test_a_head_equal_to_the_embedding_is_stored_once(tmp_path, host):
    folder = make_model(tmp_path / "model", "llama")
    before = facts(str(folder), host).tensors

    def twice(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    assert facts(str(with_tensors(folder, twice)), host).tensors == before


def test_a_head_alone_is_the_embedding_as_well(tmp_path, host):
    folder = make_model(tmp_path / "model", "llama")
    before = facts(str(folder), host).tensors

    def renamed(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    layout = facts(str(with_tensors(folder, renamed)), host)
    assert layout.tensors == before
    assert load_model(layout, host).model.config.tie_word_embeddings


def test_an_untied_model_without_a_head_is_refused_by_the_name_of_the_tensor(tmp_path, host):
    folder = make_model(tmp_path / "model", "llama", tie_word_embeddings=False)
    with_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"tensor lm_head\.weight is missing"):
        facts(str(folder), host)


@pytest.mark.parametrize(
    ("model_type", "extra"),
    [
        ("llama", "model.layers.0.self_attn.q_proj.bias"),
        ("llama", "model.layers.1.self_attn.q_norm.weight"),
        ("gpt2", "transformer.h.0.attn.c_attn.lora_A"),
        ("opt", "model.decoder.layers.0.fc1.scale"),
    ],
)
def test_a_tensor_that_the_model_does_not_take_is_named_and_not_counted(model_type, extra, tmp_path, host):
    folder = make_model(tmp_path / "model", model_type)
    before = facts(str(folder), host).tensors
    with_tensors(folder, lambda tensors: tensors.__setitem__(extra, torch.ones(32)))
    recipe = recipe_for(folder, RTN)
    assert facts(str(folder), host).tensors == before
    assert any(extra in note for note in estimate(recipe, host).notes)
    artifact = tmp_path / "artifact.safetensors"
    report = compress(recipe, host, artifact, tmp_path / "scratch", silent)
    assert extra in report.notes["model"]["not part of what is measured"]


def test_masks_and_rotary_tables_of_old_checkpoints_are_no_news(tmp_path, host):
    folder = make_model(tmp_path / "model", "gpt2")

    def old(tensors):
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 256, 256).bool()
        tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)

    assert facts(str(with_tensors(folder, old)), host).notes == ()


def test_a_missing_tensor_and_one_of_another_shape_are_named_before_anything_is_queued(tmp_path, host):
    folder = make_model(tmp_path / "missing", "qwen2")
    with_tensors(folder, lambda tensors: tensors.pop("model.layers.1.self_attn.v_proj.bias"))
    with pytest.raises(UserError, match=r"layers.1.self_attn.v_proj.bias is missing"):
        estimate(recipe_for(folder, RTN), host)
    folder = configured(make_model(tmp_path / "narrow", "llama"), vocab_size=300)
    with pytest.raises(UserError, match=r"embed_tokens.weight is 260 x 32, config.json asks for 300 x 32"):
        estimate(recipe_for(folder, RTN), host)


@pytest.mark.parametrize(
    "broken",
    [
        {"num_attention_heads": 5}, {"hidden_act": "nonsense"}, {"pad_token_id": 10**6}, {"head_dim": "x"},
        {"rope_parameters": 3}, {"rms_norm_eps": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_configuration_that_makes_no_model_is_refused_in_one_sentence(broken, tmp_path, host):
    folder = configured(make_model(tmp_path / "model", "llama"), **broken)
    with pytest.raises(UserError, match=r"config\.json|nonsense"):
        facts(str(folder), host)


def test_what_lies_beside_the_base_is_said(tmp_path, host):
    folder = make_model(tmp_path / "model", "llama")
    assert facts(str(folder), host).notes == ()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    save_file({"lora_A": torch.ones(4, 32)}, folder / "adapter_model.safetensors")
    save_file({"w": torch.ones(4)}, folder / "consolidated.safetensors")
    adapter, beside = facts(str(folder), host).notes
    assert "adapter lies beside the model and is not applied" in adapter
    assert "consolidated.safetensors" in beside
    assert "adapter_model" not in beside


def test_an_adapter_alone_is_no_model(tmp_path, host):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match="an adapter alone; merge it into its base model"):
        facts(str(folder), host)


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"quant_method": "fp8"}},
        {"compression_config": {"format": "int-quantized"}},
        {"quantization": {"group_size": 64, "bits": 4}},
    ],
    ids=str,
)
def test_a_quantized_checkpoint_is_refused_by_its_configuration(config, tmp_path, host):
    folder = configured(make_model(tmp_path / "model", "llama"), **config)
    with pytest.raises(UserError, match="quantized already"):
        estimate(recipe_for(folder, RTN), host)


@pytest.mark.parametrize(
    ("suffix", "values"),
    [
        ("weight", torch.ones(32, 32, dtype=torch.int8)),
        ("qweight", torch.ones(4, 32, dtype=torch.int32)),
        ("weight", torch.ones(32, 32).to(torch.float8_e4m3fn)),
        ("SCB", torch.ones(32)),
    ],
    ids=["int8", "gptq", "fp8", "bitsandbytes"],
)
def test_a_quantized_checkpoint_is_refused_by_its_tensors(suffix, values, tmp_path, host):
    name = f"model.layers.0.self_attn.q_proj.{suffix}"
    folder = make_model(tmp_path / "model", "llama")
    with_tensors(folder, lambda tensors: tensors.__setitem__(name, values))
    with pytest.raises(UserError, match=rf"quantized already \(tensor {name}|quantized already \({name}"):
        estimate(recipe_for(folder, RTN), host)


def test_weights_of_mixed_types_are_loaded_in_one_that_is_told(tmp_path, host):
    folder = configured(make_model(tmp_path / "model", "llama", torch.bfloat16), dtype=None)

    def wider(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].float()

    layout = facts(str(with_tensors(folder, wider)), host)
    assert layout.stored_dtype == "bfloat16"
    assert layout.notes == ("stored in bfloat16 and float32, loaded in bfloat16",)
    assert load_model(layout, host).model.model.norm.weight.dtype == torch.bfloat16


def test_a_token_without_a_row_is_said_before_and_refused_with_the_text(tmp_path, host):
    folder = make_model(tmp_path / "model", "llama", vocab_size=80)
    recipe = recipe_for(folder, GPTQ)
    (note,) = estimate(recipe, host).notes
    assert "knows tokens up to 99, the embedding has 80 rows" in note
    with pytest.raises(UserError, match=r"text file:.*text.txt: token \d+ \('\w'\) has no row in this model"):
        compress(recipe, host, tmp_path / "a.safetensors", tmp_path / "scratch", silent)


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_answers_that_a_model_has_no_positions_for_are_left_out_with_a_note(model_type, tmp_path, host):
    places = {"gpt2": "n_positions", "opt": "max_position_embeddings"}[model_type]
    folder = make_model(tmp_path / "model", model_type, **{places: 64})
    numbers, subject = numbers_of(recipe_for(folder, RTN), host, tmp_path, "perplexity", "sanity", "speed")
    assert "sanity.repetition" not in numbers
    (finite,) = evaluate("sanity", subject).measurements
    assert finite.text == "no greedy answers: this model reads at most 64 tokens"
    assert numbers["perplexity"] > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_computes_more_than_the_walk_knows_is_refused(dtype, tmp_path, host, monkeypatch):
    folder = make_model(tmp_path / "model", "llama", dtype)
    layout = facts(str(folder), host)
    opened = load_model(layout, host)
    whole = type(opened.model).forward

    def scaling(self, *given, **named):
        out = whole(self, *given, **named)
        out.logits = out.logits * 1.01
        return out

    with monkeypatch.context() as patch:
        patch.setattr(type(opened.model), "forward", scaling)
        with pytest.raises(UserError, match=r"more than a Llama model's blocks.*logits differ by 1\.0%"):
            prove_walk(opened, layout, host)
    prove_walk(opened, layout, host)
    assert len(list((host.cache / "proofs").iterdir())) == 1


def overflowing(folder, dtype=torch.float16):
    make_model(folder, "llama", dtype)

    def big(tensors):
        name = "model.layers.1.mlp.{}_proj.weight"
        tensors[name.format("up")] *= 3000
        tensors[name.format("gate")] *= 300

    return with_tensors(folder, big)


@pytest.mark.parametrize("stages", [(), (GPTQ,), (RTN,)], ids=["dense", "gptq", "rtn"])
@pytest.mark.parametrize("metrics", [("perplexity",), ("perplexity", "divergence")], ids=["ppl", "kl"])
def test_a_dense_model_that_overflows_is_told_as_its_own_trouble(
    stages, metrics, tmp_path, monkeypatch, host
):
    folder = overflowing(tmp_path / "model")
    recipe = recipe_for(folder, *stages)
    wanted = recipe.evaluation.model_copy(update={"metrics": metrics})
    recipe = recipe.model_copy(update={"evaluation": wanted})
    as_stored, wide = ({"compute": name} for name in ("bfloat16", "float32"))
    says = r"the dense model itself gives values that are no numbers, in block 2 in float16"
    if stages != (RTN,) or "divergence" in metrics:
        with pytest.raises(UserError, match=says):
            numbers_of(recipe, dataclasses.replace(host, **as_stored), tmp_path, *metrics)
    found, _ = numbers_of(recipe, dataclasses.replace(host, **wide), tmp_path, *metrics)
    assert found["perplexity"] > 1


def test_a_model_that_answers_in_no_numbers_is_not_exported_as_plain_weights(tmp_path, host):
    folder = overflowing(tmp_path / "model")
    narrow = dataclasses.replace(host, compute="bfloat16")
    artifact = tmp_path / "artifact.safetensors"
    compress(recipe_for(folder, RTN), narrow, artifact, tmp_path / "scratch", silent)
    with pytest.raises(UserError, match="answers in values that are no numbers, computed in float16"):
        export(artifact, "transformers", tmp_path / "out", narrow)
    export(artifact, "transformers", tmp_path / "out", dataclasses.replace(host, compute="float32"))


RULES = {
    "bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 2, "do_sample": False, "temperature": 0.6,
    "top_p": 0.9, "repetition_penalty": 1.05,
}  # fmt: skip
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


@pytest.mark.parametrize("name", ["transformers", "safetensors"])
def test_an_export_is_the_whole_model_of_the_run(name, tmp_path, host):
    folder = make_model(tmp_path / "model", "phi3")
    configured(folder, auto_map={"AutoConfig": "configuration_phi3.Phi3Config"})
    (folder / "generation_config.json").write_text(json.dumps(RULES))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told["auto_map"] = {"AutoTokenizer": ["tokenization_phi3.Phi3Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    artifact = tmp_path / "artifact.safetensors"
    compress(recipe_for(folder, RTN), host, artifact, tmp_path / "scratch", silent)
    out = tmp_path / "out"
    export(artifact, name, out, host)
    assert json.loads((out / "generation_config.json").read_text()) == RULES
    assert GenerationConfig.from_pretrained(out).repetition_penalty == 1.05
    for file in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((out / file).read_text())
        assert str(tmp_path) not in (out / file).read_text()
    again = AutoTokenizer.from_pretrained(out)
    assert again("the scale of 7")["input_ids"] == tokenizer("the scale of 7")["input_ids"]
    assert again.chat_template == TEMPLATE
    if name == "transformers":
        ids = torch.arange(20)[None] + 5
        with torch.no_grad():
            ours, theirs = open_artifact(artifact, host).model, AutoModelForCausalLM.from_pretrained(out)
            assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-5)


def test_a_model_that_changed_since_its_run_is_not_exported_with_another_tokenizer(tmp_path, host):
    folder = make_model(tmp_path / "model", "llama")
    artifact = tmp_path / "artifact.safetensors"
    compress(recipe_for(folder, RTN), host, artifact, tmp_path / "scratch", silent)
    shutil.copy(folder / "tokenizer.json", folder / "tokenizer-old.json")
    with pytest.raises(UserError, match="has changed since the run, and with it its tokenizer"):
        export(artifact, "transformers", tmp_path / "out", host)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["[1", "[1]", "7", "[" * 100_000], ids=["torn", "list", "number", "deep"])
def test_generation_rules_that_cannot_be_read_are_refused_before_anything_is_queued(content, tmp_path, host):
    folder = make_model(tmp_path / "model", "llama")
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=r"generation_config.json (cannot be read|holds no JSON object)"):
        estimate(recipe_for(folder, RTN), host)


def test_an_end_token_without_a_row_is_said(tmp_path, host):
    folder = configured(make_model(tmp_path / "model", "llama"), eos_token_id=[1, 99_999])
    (note,) = facts(str(folder), host).notes
    assert note == "eos_token_id 99999 of config.json has no row in the embedding of 260 rows"


def test_shards_that_hold_a_head_of_their_own_are_one_model(tmp_path, host):
    folder = make_model(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(260, 32, generator=torch.Generator().manual_seed(9)) * 0.3
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    shards = {"model-1-of-2.safetensors": names[:8], "model-2-of-2.safetensors": names[8:]}
    for file, some in shards.items():
        save_file({name: tensors[name] for name in some}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, some in shards.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    numbers, subject = numbers_of(recipe_for(folder), host, tmp_path)
    assert numbers["perplexity"] == pytest.approx(plain_perplexity(folder, subject.tokens.ids), rel=1e-5)
    assert facts(str(folder), host).tensors["lm_head.weight"] == ((260, 32), 260 * 32 * 4)
