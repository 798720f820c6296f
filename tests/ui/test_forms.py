"""Forms are made from schemas and read back without loss."""

import gradio as gr
import pytest

from backend.errors import UserError
from backend.recipe import Calibration, Evaluation
from backend.registry import discover
from ui import forms

METHODS = discover().methods
BITS = forms.Parameter("bits", "integer", 4, low=2, high=8)
SHARE = forms.Parameter("sparsity", "number", 0.5, low=0.0, high=1.0)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_form_of_every_method_gives_its_defaults_back(method):
    fields = forms.parameters(method.params)
    with gr.Blocks():
        components = [forms.field(parameter) for parameter in fields]
    read = forms.read_all(fields, [component.value for component in components])
    assert method.params.model_validate(read) == method.params()
    assert [parameter.help for parameter in fields].count("") == 0


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_choice_and_every_bound_survives_the_form(method):
    for parameter in forms.parameters(method.params):
        values = {
            "choice": list(parameter.choices), "switch": [True, False],
            "integer": [parameter.low, parameter.high], "number": [parameter.low, 0.25],
            "text": [parameter.default, "-1, 0.5"],
        }[parameter.kind]  # fmt: skip
        for value in (value for value in values if value is not None):
            assert forms.read(parameter, forms.shown(parameter, value)) == value


def test_the_settings_of_calibration_and_evaluation_have_forms_too():
    assert [p.name for p in forms.parameters(Calibration, without=("text",))] == [
        "samples", "length", "seed", "order",
    ]  # fmt: skip
    assert [p.kind for p in forms.parameters(Evaluation, without=("text", "metrics"))] == ["integer"] * 2


def test_a_type_without_a_field_is_refused_aloud():
    with pytest.raises(RuntimeError, match="metrics"):
        forms.parameters(Evaluation)


@pytest.mark.parametrize(
    ("parameter", "text", "values"),
    [
        (BITS, "4", 4), (BITS, " 2, 3,4 ", [2, 3, 4]), (BITS, "2..4", [2, 3, 4]),
        (BITS, "2..8 step 3", [2, 5, 8]),
        (BITS, "-1", -1), (BITS, "2..3, 8", [2, 3, 8]), (SHARE, "0.3..0.6 step 0.1", [0.3, 0.4, 0.5, 0.6]),
        (SHARE, ".5", 0.5), (SHARE, "1e-2", 0.01), (BITS, "3.5", 3.5),
    ],
)  # fmt: skip
def test_a_number_field_takes_one_value_a_list_or_a_range(parameter, text, values):
    assert forms.read(parameter, text) == values


@pytest.mark.parametrize(
    "text", ["", "  ", "four", "2,,3", "4..2", "2..4 step 0", "1..1e9", "nan", "inf", "2...4", "0x4"]
)
def test_what_is_no_number_is_refused_with_the_name_of_the_field(text):
    with pytest.raises(UserError, match=r"stage 1, quantize\.rtn: bits"):
        forms.read(BITS, text, "stage 1, quantize.rtn")


def test_lists_are_shown_as_they_are_typed():
    assert forms.shown(BITS, [2, 3]) == "2, 3"
    assert forms.shown(SHARE, 0.1) == "0.1"
    assert forms.shown(SHARE, None) == "0.5"
