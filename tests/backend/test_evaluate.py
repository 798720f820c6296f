"""Metrics with known answers, and independent computations of the others."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from backend import evaluate as evaluate_module
from backend.artifacts import open_artifact
from backend.evaluate import Subject, compare_logits, evaluate
from backend.generate import greedy, write
from backend.metrics.sanity import repeated_share, unigram_perplexity
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import parse_recipe
from backend.registry import discover
from backend.sampling import Sampling
from tests.tiny import make_model, make_text

RTN = {"method": "quantize.rtn", "params": {"bits": 3, "group_size": 16}}


class Stopped(Exception):
    pass


@pytest.fixture
def make_subject(tmp_path, host):
    def make(*stages, name="run", progress=silent, folder=None, metrics=("perplexity", "divergence")):
        folder = folder or make_model(tmp_path / "model")
        recipe = parse_recipe(
            {
                "model": str(folder),
                "stages": list(stages),
                "evaluation": {
                    "text": f"file:{make_text(tmp_path / 'text.txt')}",
                    "length": 96,
                    "windows": 5,
                    "metrics": list(metrics),
                },
            }
        )
        artifact = tmp_path / f"{name}.safetensors"
        compress(recipe, host, artifact, tmp_path / f"scratch-{name}", silent)
        return Subject(recipe, host, artifact, tmp_path / f"scratch-{name}", progress)

    return make


def values(result):
    return {found.metric: found.value for found in result.measurements}


def test_uniform_predictions_have_the_vocabulary_as_perplexity(make_subject, tmp_path):
    folder = make_model(tmp_path / "uniform", tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found = evaluate("perplexity", make_subject(folder=folder))
    assert found.measurements[0].value == pytest.approx(260, rel=1e-5)
    assert found.measurements[0].stderr == pytest.approx(0, abs=1e-3)


def test_perplexity_is_exp_of_the_mean_window_loss_with_the_error_over_windows(make_subject):
    found = evaluate("perplexity", make_subject(RTN))
    losses = torch.tensor(found.series[0].values, dtype=torch.float64)
    measured = found.measurements[0]
    assert len(losses) == 5
    assert measured.value == pytest.approx(math.exp(losses.mean()))
    assert measured.stderr == pytest.approx(measured.value * float(losses.std()) / math.sqrt(5))
    assert measured.n == 5 * 95


def test_divergence_equals_a_float64_computation_from_both_models(make_subject, tmp_path, host):
    subject = make_subject(RTN)
    found = values(evaluate("divergence", subject))
    dense = AutoModelForCausalLM.from_pretrained(subject.recipe.model).eval()
    ours = open_artifact(subject.artifact, host).model
    forward, backward, agree, flips = [], [], [], []
    with torch.inference_mode():
        for ids in subject.tokens.ids:
            p = dense(ids[None]).logits[0, :-1].double().log_softmax(-1)
            q = ours(ids[None]).logits[0, :-1].double().log_softmax(-1)
            forward.append((p.exp() * (p - q)).sum(-1))
            backward.append((q.exp() * (q - p)).sum(-1))
            agree.append(p.argmax(-1) == q.argmax(-1))
            flips.append((p.argmax(-1) == ids[1:]) != (q.argmax(-1) == ids[1:]))
    forward, backward = torch.cat(forward), torch.cat(backward)
    assert found["divergence.kl"] == pytest.approx(float(forward.mean()), rel=1e-4)
    assert found["divergence.kl_reverse"] == pytest.approx(float(backward.mean()), rel=1e-4)
    assert found["divergence.kl_median"] == pytest.approx(float(forward.median()), rel=1e-3)
    assert found["divergence.kl_p99"] == pytest.approx(float(forward.quantile(0.99)), rel=1e-3)
    assert found["divergence.agreement"] == pytest.approx(float(torch.cat(agree).double().mean()))
    assert found["divergence.flips"] == pytest.approx(float(torch.cat(flips).double().mean()))


def test_a_divergence_worked_out_by_hand():
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.4, 0.4, 0.2]])
    scores = compare_logits(q.log() + 3, p.log() - 1, torch.tensor([1]))
    assert float(scores["kl"]) == pytest.approx(0.5 * math.log(1.25) + 0.3 * math.log(0.75), rel=1e-5)
    assert float(scores["kl_reverse"]) == pytest.approx(0.4 * math.log(0.8) + 0.4 * math.log(4 / 3), rel=1e-4)
    assert float(scores["nll"]) == pytest.approx(-math.log(0.4), rel=1e-5)


def test_a_model_does_not_diverge_from_itself(make_subject):
    found = values(evaluate("divergence", make_subject()))
    assert found["divergence.kl"] == 0
    assert found["divergence.agreement"] == 1
    assert found["divergence.flips"] == 0


@pytest.fixture
def passes(monkeypatch):
    """How many tokens each pass read."""
    seen, run = [], evaluate_module.final_states

    def counted(opened, ids):
        seen.append(len(ids))
        return run(opened, ids)

    monkeypatch.setattr(evaluate_module, "final_states", counted)
    return seen


def test_a_dense_artifact_is_scored_in_one_pass_with_the_numbers_of_two(make_subject, passes, monkeypatch):
    subject = make_subject()
    once = subject.scores
    # The dense model's five windows, and a few tokens that both must read alike.
    assert passes == [96] * 5 + [64] * 2
    again = make_subject(name="again", folder=subject.recipe.model)
    monkeypatch.setitem(vars(again), "_is_dense", False)
    twice = again.scores
    assert passes == [96] * 5 + [64] * 2 + [96] * 5
    assert once.values.keys() == twice.values.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once.values)


def test_an_artifact_that_computes_another_function_is_scored_by_itself(make_subject, passes):
    """The same tensors under another configuration are another model."""
    subject = make_subject()
    with safe_open(subject.artifact, "pt") as opened:
        told = dict(opened.metadata())
    config = json.loads(told["config"])
    config["rope_parameters"]["rope_theta"] = 100.0
    save_file(load_file(subject.artifact), subject.artifact, told | {"config": json.dumps(config)})
    found = values(evaluate("divergence", subject))
    assert passes == [96] * 5 + [64] * 2 + [96] * 5
    assert found["divergence.kl"] > 1e-4


def test_sizes_are_those_of_the_tensors_in_the_file(make_subject):
    subject = make_subject(RTN)
    found = values(evaluate("size", subject))
    tensors = load_file(subject.artifact)
    assert found["size.packed"] == sum(tensor.nbytes for tensor in tensors.values())
    assert found["size.packed"] == found["size.embeddings"] + found["size.linears"] + found["size.rest"]
    assert found["size.file"] == subject.artifact.stat().st_size
    assert found["size.bits_per_weight"] == pytest.approx(3 + (16 + 3) / 16)
    dense = values(evaluate("size", make_subject(name="dense")))
    assert dense["size.bits_per_weight"] == dense["size.bits_per_parameter"] == 32


def test_windows_scored_before_an_interruption_are_not_scored_again(make_subject):
    def stop(update):
        if update.stage == "evaluate" and update.done == 3:
            raise Stopped

    subject = make_subject(RTN, progress=stop)
    with pytest.raises(Stopped):
        evaluate("perplexity", subject)
    files = {file: file.stat().st_mtime_ns for file in subject.scratch.glob("scores-*")}
    assert len(files) == 3
    told = []
    subject.progress = told.append
    whole = evaluate("perplexity", subject)
    # Three windows were there: only the other two were read now.
    assert [update.tokens for update in told if update.stage == "evaluate"] == [0, 0, 0, 0, 96, 192]
    assert all(file.stat().st_mtime_ns == time for file, time in files.items())
    assert (
        whole.measurements[0].value
        == evaluate("perplexity", make_subject(RTN, name="b")).measurements[0].value
    )


def test_the_dense_side_is_computed_once_per_model_and_protocol(make_subject):
    evaluate("divergence", make_subject(RTN))
    stages = []
    second = make_subject(
        {**RTN, "params": {"bits": 2, "group_size": 16}}, name="b", progress=lambda u: stages.append(u.stage)
    )
    evaluate("divergence", second)
    assert "evaluate" in stages
    assert "dense reference" not in stages


def test_memory_and_speed_are_measured_and_speed_says_when_it_is_simulated(make_subject):
    subject = make_subject(RTN)
    peak = evaluate("memory", subject).measurements[0]
    assert peak.value > 0
    assert peak.protocol["weights"] == "kept packed"
    speed = evaluate("speed", subject)
    assert all(found.value > 0 and found.protocol["simulated"] for found in speed.measurements)
    dense = evaluate("speed", make_subject(name="dense"))
    assert not any(found.protocol["simulated"] for found in dense.measurements)


def test_a_model_without_any_knowledge_is_marked_as_collapsed(make_subject, tmp_path):
    folder = make_model(tmp_path / "noise", tie_word_embeddings=False)
    result = evaluate("sanity", make_subject(folder=folder))
    assert "collapsed" in result.broken
    assert "token frequencies" in result.broken


def test_infinite_weights_in_an_artifact_are_named(make_subject):
    subject = make_subject(RTN)
    name = next(n for n in load_file(subject.artifact) if n.endswith("q_proj#0.scales"))
    subject.opened.model.get_submodule(name.split("#")[0]).parts[0].scales[0, 0] = float("inf")
    result = evaluate("sanity", subject)
    assert name.split("#")[0] in result.broken
    assert values(result)["sanity.finite"] == 0


def test_repetition_and_unigram_figures_are_what_they_say():
    assert repeated_share([1, 2, 3, 4] * 12, 4) == pytest.approx(1 - 4 / 45)
    assert repeated_share(list(range(48)), 4) == 0
    assert unigram_perplexity(torch.tensor([[0, 1, 2, 3] * 5])) == pytest.approx(4)


def test_greedy_writing_is_the_argmax_at_every_step(make_subject):
    subject = make_subject()
    told = []
    answer = write(subject.opened, subject.tokenizer, "the scale of", Sampling(max_tokens=12), told.append)
    assert answer == told
    ids = subject.tokenizer("the scale of", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        for token in answer:
            assert int(subject.opened.model(ids).logits[0, -1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_answers_written_together_are_those_written_alone(make_subject):
    subject = make_subject()
    prompts = ["the scale of", "a", "codes and zero"]
    together = greedy(subject.opened, subject.tokenizer, prompts, 10)
    alone = [greedy(subject.opened, subject.tokenizer, [prompt], 10)[0] for prompt in prompts]
    assert together == alone


def test_sampling_with_one_seed_is_repeatable_and_another_seed_differs(make_subject):
    subject = make_subject()
    drawn = [
        write(
            subject.opened,
            subject.tokenizer,
            "the",
            Sampling(temperature=1.5, seed=seed, max_tokens=20),
            lambda _: None,
        )
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_every_metric_has_a_docstring_and_yields_stamped_numbers(make_subject):
    subject = make_subject(RTN)
    for name, metric in discover().metrics.items():
        assert len(metric.doc.strip().splitlines()) >= 3, name
        for found in evaluate(name, subject).measurements:
            assert found.metric.split(".")[0] == name
            assert math.isfinite(found.value)
            assert found.protocol


def test_a_perplexity_does_not_depend_on_what_else_is_measured():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(5, 4000, generator=generator) * 4 for _ in range(2))
    targets = torch.randint(0, 4000, (5,), generator=generator)
    found = compare_logits(ours, theirs, targets)
    for name, logits in (("nll", ours), ("dense_nll", theirs)):
        alone = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        assert torch.equal(found[name], alone)
