"""Recipes: what is refused and in which words, defaults written out, digests, sweeps."""

import json

import pytest

from backend.errors import UserError
from backend.recipe import parse_recipe
from backend.rules import check_layers, overruled
from backend.sweep import parse_sweep

LAYERS = {
    "model.layers.0.self_attn.q_proj": (576, 576),
    "model.layers.0.self_attn.k_proj": (192, 576),
    "model.layers.0.mlp.down_proj": (576, 1536),
}


def recipe(*stages, **more):
    return {"model": "smollm2-135m-instruct", "stages": list(stages), **more}


def stage(method, only=None, **params):
    return {"method": method, "params": params, **({"only": only} if only else {})}


RTN, GPTQ, WANDA, EORA = "quantize.rtn", "quantize.gptq", "prune.wanda", "compensate.eora"

# Each with the words that its one sentence must hold: where, what, and what is allowed.
MALFORMED = [
    ("{", ["not valid JSON"]),
    ('{"model": "a", "model": "b"}', ["model is given twice"]),
    ("[" * 100_000, ["recipe:"]),
    ("[]", ["JSON object", "found an array"]),
    ("null", ["JSON object", "found null"]),
    ({}, ["model is missing"]),
    ({"model": ""}, ["model", "at least 1 character"]),
    ({"model": 7}, ["model is 7", "string"]),
    (recipe(colour="red"), ["unknown field colour", "version, model, stages"]),
    (recipe(version=2), ["version is 2", "1"]),
    (recipe(seed=-1), ["seed is -1", "from 0"]),
    (recipe(seed="x"), ["seed", "a whole number"]),
    ({"model": "m", "stages": {"a": 1}}, ["stages", "array"]),
    ({"model": "m", "stages": ["rtn"]}, ["stage 1", "rtn"]),
    (recipe({"params": {}}), ["stage 1", "method is missing"]),
    (recipe(stage("quantize.magic")), ["stage 1, quantize.magic", "no such method", RTN]),
    (recipe(stage(RTN, bits=1)), ["stage 1, quantize.rtn", "bits is 1", "from 2 to 8"]),
    (recipe(stage(RTN, bits=9)), ["bits is 9", "from 2 to 8"]),
    (recipe(stage(RTN, bits=2.5)), ["bits is 2.5", "a whole number"]),
    (recipe(stage(RTN, bits="4")), ["bits", "a whole number"]),
    (recipe(stage(RTN, bits=True)), ["bits is true", "a whole number"]),
    (recipe(stage(RTN, bits=None)), ["bits is null"]),
    (recipe(stage(RTN, group=64)), ["unknown field group", "bits, group_size, symmetric"]),
    (recipe(stage(RTN, group_size=0)), ["group_size is 0", "-1"]),
    (recipe(stage(RTN, symmetric="yes")), ["symmetric", "boolean"]),
    (recipe(stage(GPTQ, damping=2)), ["damping is 2", "from 0.0 to 1.0"]),
    (recipe(stage(WANDA, sparsity=1.0)), ["sparsity is 1.0", "below 1.0"]),
    (recipe(stage(WANDA, sparsity=-0.1)), ["sparsity is -0.1", "from 0.0"]),
    (recipe(stage(WANDA, sparsity=float("nan"))), ["sparsity is NaN"]),
    (recipe(stage(WANDA, pattern="3:4")), ["pattern", "'free', '2:4' or '4:8'"]),
    (recipe(stage(WANDA, pattern="2:4", sparsity=0.7)), ["sparsity is 0.7", "sparsity 0.5, or pattern free"]),
    (recipe(stage(EORA)), ["stage 1, compensate.eora", "nothing to compensate", "prune or quantize"]),
    (recipe(stage(RTN), stage(EORA, rank=-1)), ["stage 2", "rank is -1", "from 0"]),
    (recipe(stage(RTN), stage(GPTQ)), ["stage 2, quantize.gptq", "already on a grid", "one quantize stage"]),
    (recipe(stage(RTN), stage(RTN)), ["stage 2, quantize.rtn", "already on a grid"]),
    (
        recipe(stage("prune.wanda"), stage("factorize.svd")),
        ["stage 2, factorize.svd", "prune.wanda", "first stage of a layer"],
    ),
    (recipe(stage("factorize.svd"), stage(RTN)), ["stage 2, quantize.rtn", "two factors", "compensate"]),
    (recipe(stage(RTN), stage(WANDA)), ["stage 2, prune.wanda", "cannot follow", "prune, then quantize"]),
    (recipe(stage(RTN), stage(EORA), stage(GPTQ)), ["stage 3", "cannot follow compensate"]),
    (recipe({**stage(RTN), "when": "later"}), ["stage 1", "unknown field when", "method, params, only"]),
    (recipe(calibration={"samples": 0}), ["calibration.samples is 0", "from 1 to 4096"]),
    (
        recipe(calibration={"order": "random"}),
        ["calibration.order", "'sequential', 'true_sequential' or 'dense'"],
    ),
    (recipe(calibration={"batch": 4}), ["unknown field", "batch", "samples, length, seed, order"]),
    (recipe(calibration=[]), ["calibration"]),
    (recipe(evaluation={"windows": 0}), ["evaluation.windows is 0"]),
    (recipe(evaluation={"length": 4}), ["evaluation.length is 4", "from 8"]),
    (recipe(evaluation={"metrics": ["bleu"]}), ["'bleu'", "perplexity"]),
    (recipe(evaluation={"metrics": "perplexity"}), ["metrics"]),
    (recipe(evaluation={"metrics": []}), ["metrics is []", "one or more of", "perplexity"]),
]


@pytest.mark.parametrize(("data", "words"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_recipe_is_refused_in_one_sentence(data, words):
    with pytest.raises(UserError) as caught:
        parse_recipe(data if isinstance(data, str) else json.dumps(data))
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence
    assert len(sentence) < 400


def test_there_are_forty_malformed_recipes():
    assert len(MALFORMED) >= 40


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (
            [stage("quantize.hlq", group_size=128)],
            ["stage 1", "is 128", "576 inputs of model.layers.0", "64, 96, 192"],
        ),
        ([stage(RTN, only="*.nothing")], ["only '*.nothing' matches no linear", "model.layers.0"]),
        ([stage(RTN, only="*.q_proj"), stage(EORA)], ["stage 2", "nothing to compensate"]),
        (
            [stage(RTN, only="*_proj"), stage(GPTQ, only="*.down_proj")],
            ["stage 2", "already on a grid", "down_proj"],
        ),
    ],
)  # fmt: skip
def test_what_the_model_cannot_take_is_refused_with_the_layer_named(stages, words):
    with pytest.raises(UserError) as caught:
        check_layers(parse_recipe(recipe(*stages)), LAYERS, 2048)
    assert all(word in str(caught.value) for word in words), str(caught.value)


FISHER, DP, OWL = "allocate.fisher", "allocate.dp", "allocate.owl"
Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("stages", "more", "words"),
    [
        (
            [stage(FISHER), stage(GPTQ)], {"plan": {Q_PROJ: {"bits": 8}}},
            ["stage 1, allocate.fisher", "plans the bits of", Q_PROJ, "plan of the recipe", "one of the two"],
        ),
        (
            [stage(FISHER, bits=3), stage(DP, bits=4), stage(GPTQ)], {},
            ["stage 2, allocate.dp", "plans the bits again", "stage 1, allocate.fisher"],
        ),
        (
            [stage(OWL), stage(OWL, sparsity=0.6), stage(WANDA)], {},
            ["stage 2, allocate.owl", "plans the sparsity again"],
        ),
        (
            [stage(DP, only="*.q_proj"), stage(GPTQ)], {},
            ["stage 1, allocate.dp", "only is '*.q_proj'", "no only here"],
        ),
    ],
)  # fmt: skip
def test_nothing_that_was_asked_for_is_silently_given_up_for_a_plan(stages, more, words):
    made = parse_recipe(recipe(*stages, **more))
    with pytest.raises(UserError) as caught:
        check_layers(made, LAYERS, 2048)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_plans_of_different_parameters_and_of_other_linears_stand_beside_each_other():
    check_layers(parse_recipe(recipe(stage(OWL), stage(FISHER), stage(WANDA), stage(GPTQ))), LAYERS, 2048)
    apart = {"plan": {Q_PROJ: {"bits": 8}}}
    stages = [stage(GPTQ, only="*.q_proj"), stage(FISHER), stage(RTN, only="*.mlp.*")]
    check_layers(parse_recipe(recipe(*stages, **apart)), LAYERS, 2048)


def test_a_table_that_became_shared_rows_is_not_decoded_to_be_rounded():
    tables = {"model.embed_tokens": (100, 576), "lm_head": (100, 576)}
    for stages in ([stage("head.vq_logits"), stage(RTN, only="lm_head")],):
        with pytest.raises(
            UserError, match=r"stage 2, quantize.rtn: only names lm_head, which head.vq_logits"
        ):
            check_layers(parse_recipe(recipe(*stages)), LAYERS, 2048, tables)
    untied = recipe(stage("head.untie"), stage(RTN, only="lm_head"))
    check_layers(parse_recipe(untied), LAYERS, 2048, tables)
    embedding = recipe(stage("head.vq_logits"), stage(RTN, only="model.embed_tokens"))
    check_layers(parse_recipe(embedding), LAYERS, 2048, tables)


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([stage(OWL, sparsity=0.6), stage(WANDA, sparsity=0.3)], "owl 0.6 → wanda"),
        ([stage(FISHER, bits=3), stage(GPTQ, bits=4)], "fisher 3-bit → gptq g64"),
        ([stage(GPTQ, bits=4)], "gptq 4-bit g64"),
        ([stage("quantize.shiftadd")], "shiftadd 2-bit block"),
        ([stage("quantize.shiftadd", scales="row")], "shiftadd 2-bit row"),
        ([stage("quantize.shiftadd", scales="column")], "shiftadd 2-bit column"),
        ([stage("quantize.shiftadd", scales="column", group_size=64)], "shiftadd 2-bit g64 scales column"),
    ],
    ids=str,
)
def test_chains_tell_the_numbers_that_count(stages, told):
    assert parse_recipe(recipe(*stages)).chain() == told


def test_a_number_that_a_plan_overrules_is_said():
    made = parse_recipe(recipe(stage(OWL, sparsity=0.6), stage(WANDA, sparsity=0.3), stage(GPTQ, bits=3)))
    (said,) = overruled(made)
    assert "prune.wanda: its sparsity of 0.3 does not count" in said
    assert "stage 1, allocate.owl, plans 0.6 on average" in said
    assert overruled(parse_recipe(recipe(stage(OWL, sparsity=0.6), stage(WANDA)))) == []


def test_patterns_must_divide_the_inputs():
    with pytest.raises(UserError, match="pattern 2:4 does not divide the 6 inputs of a"):
        check_layers(parse_recipe(recipe(stage(WANDA, pattern="2:4"))), {"a": (4, 6)})


def test_windows_longer_than_the_model_reads_are_refused():
    with pytest.raises(UserError, match="evaluation: length is 2048; this model reads at most 1024 tokens"):
        check_layers(parse_recipe(recipe()), LAYERS, 1024)


def test_two_quantizers_may_share_a_model_when_their_layers_differ():
    made = parse_recipe(recipe(stage(RTN, only="*.down_proj"), stage(GPTQ, only="*.self_attn.*")))
    check_layers(made, LAYERS, 4096)


def test_defaults_are_written_out_so_that_equal_recipes_are_equal():
    short = parse_recipe(recipe(stage(RTN)))
    long = parse_recipe(recipe(stage(RTN, bits=4, group_size=64, symmetric=False), seed=0))
    assert short.to_json() == long.to_json()
    assert short.digest("f") == long.digest("f")


def test_the_digest_depends_on_every_field_and_on_the_weights():
    base = parse_recipe(recipe(stage(WANDA)))
    others = [
        parse_recipe(recipe(stage(WANDA, sparsity=0.4))),
        parse_recipe(recipe(stage(WANDA), seed=1)),
        parse_recipe(recipe(stage(WANDA), calibration={"samples": 32})),
        parse_recipe(recipe(stage(WANDA), evaluation={"windows": 12})),
    ]
    digests = {base.digest("a"), base.digest("b"), *(other.digest("a") for other in others)}
    assert len(digests) == 6


def test_json_survives_a_round_trip():
    made = parse_recipe(recipe(stage(WANDA, pattern="2:4"), stage(GPTQ, bits=3), stage(EORA, rank=16)))
    assert parse_recipe(made.to_json()) == made


def test_a_chain_reads_like_a_sentence():
    made = parse_recipe(recipe(stage(WANDA, pattern="2:4"), stage(GPTQ, bits=3), stage(EORA, rank=16)))
    assert made.chain() == "wanda 2:4 → gptq 3-bit g64 → eora r16"
    assert parse_recipe(recipe()).chain() == "dense"
    told = {
        "gptq 4-bit g64 act order damping 0.1": stage(GPTQ, act_order=True, damping=0.1),
        "svdllm 0.8": stage("factorize.svdllm"),
        "codebook g32 nf3 double": stage("quantize.codebook", table="nf3", group_size=32, double=True),
        "rtn 4-bit row zero float": stage(RTN, group_size=-1, zero="float"),
    }
    assert [parse_recipe(recipe(one)).chain() for one in told.values()] == list(told)


def test_a_sweep_is_the_grid_of_its_lists_without_doubles():
    sweep = parse_sweep(
        recipe(stage(RTN, bits=[2, 3, 3], group_size=[32, 64]), evaluation={"windows": [4, 8]})
    )
    chains = [made.chain() for made in sweep.expand()]
    assert len(chains) == 8
    assert chains[0] == "rtn 2-bit g32"


def test_a_sweep_may_list_whole_chains_and_methods():
    sweep = parse_sweep(
        {"model": "m", "stages": [[], [stage(WANDA)], [{"method": [RTN, GPTQ], "params": {"bits": [2, 3]}}]]}
    )
    assert [made.chain() for made in sweep.expand()] == [
        "dense", "wanda 0.5", "rtn 2-bit g64", "rtn 3-bit g64", "gptq 2-bit g64", "gptq 3-bit g64",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (recipe(stage(RTN, bits=[])), "empty list"),
        (recipe(stage(RTN, bits=[3, 11])), "bits is 11"),
        ({"model": "m", "stages": 3}, "stages is 3"),
        (recipe(stage(RTN, bits=[2] * 200, group_size=[32] * 200)), "40000 recipes"),
    ],
)
def test_a_sweep_that_cannot_be_expanded_is_refused(template, words):
    with pytest.raises(UserError, match=words):
        parse_sweep(template)


def test_chains_tell_methods_of_one_name_apart():
    stages = [
        {"method": "prune.blocks", "params": {"blocks": 2}}, stage(RTN), {"method": "recover.blocks"},
    ]  # fmt: skip
    chain = parse_recipe(json.dumps(recipe(*stages))).chain()
    assert chain == "prune.blocks 2 → rtn 4-bit g64 → recover.blocks"


def test_a_chain_says_that_rounded_activations_are_simulated():
    def chain(**stage):
        method = {"method": "quantize.activations", **stage}
        recipe = {"model": "m", "stages": [method, {"method": "quantize.rtn", "params": {"bits": 4}}]}
        return parse_recipe(recipe).chain()

    assert chain() == "activations (simulated) → rtn 4-bit g64"
    four = chain(params={"input_bits": 4}, only="*.mlp.*")
    assert four == "activations input bits 4 (simulated) on *.mlp.* → rtn 4-bit g64"
