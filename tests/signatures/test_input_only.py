import numpy as np
import pytest
import torch

from causalmad import open_model
from causalmad.errors import FitError, InputsError
from causalmad.inputs import Inputs
from causalmad.signatures.input_only import InputOnly
from causalmad.testing.traces import failing
from tests.signatures.families import small
from tests.twins import input_only as twin


@pytest.mark.parametrize("most", [4096, 9, 3, 2])
def test_tokens_are_counted(most):
    toy, _ = small("gpt2", 12, 6)
    fitted = InputOnly(most).fit(open_model(toy.model), toy.trusted)
    kept, expected = twin.counts(toy.fresh.main, toy.trusted.main, most)
    np.testing.assert_array_equal(fitted(toy.fresh).values, expected)
    assert [column.unit for column in fitted.columns] == [*(f"token {word}" for word in kept), "other tokens", "length"]
    assert len(fitted.columns) <= most


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_numbers_stay_as_they_are(name):
    toy, _ = small(name)
    fitted = InputOnly().fit(open_model(toy.model), toy.trusted)
    np.testing.assert_array_equal(fitted(toy.fresh).values, toy.fresh.main.flatten(1))
    assert fitted.columns[-1].name == {"mlp": "input[11]", "conv": "input[7,7]"}[name]


@pytest.mark.parametrize(("shape", "most"), [((3, 8, 8), 50), ((2, 7, 9), 40), ((1, 5, 3), 4), ((3, 6, 6), 3)])
def test_wide_images_are_averaged_over_the_patches_that_the_columns_name(shape, most):
    model = open_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(2)))
    images = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    fitted = InputOnly(most).fit(model, Inputs.of(images))
    values = fitted(Inputs.of(images)).values
    assert most / 3 <= values.shape[1] <= most
    for column, value in zip(fitted.columns, values.T, strict=True):
        spans = [s.split(":") for s in column.name.removeprefix("input[").removesuffix("]").split(",")]
        cut = tuple(slice(int(s[0]), int(s[-1]) + (len(s) == 1)) for s in spans)
        cut = (slice(0, 1),) * (3 - len(cut)) + cut
        np.testing.assert_allclose(value, images[(slice(None), *cut)].mean((1, 2, 3)), atol=1e-6)


def test_patches_equal_the_twin_and_wide_vectors_are_averaged_over_stretches():
    model = open_model(torch.nn.Linear(10, 2))
    images = torch.randn(4, 2, 7, 9, generator=torch.Generator().manual_seed(1))
    values = InputOnly(40).fit(model, Inputs.of(images))(Inputs.of(images)).values
    np.testing.assert_allclose(values, [twin.patches(image, 3, 6) for image in images], atol=1e-6)
    vectors = torch.arange(20.0).reshape(2, 10)
    fitted = InputOnly(5).fit(model, Inputs.of(vectors))
    np.testing.assert_allclose(fitted(Inputs.of(vectors)).values[0], [0.5, 2.5, 4.5, 6.5, 8.5])
    assert fitted.columns[1].name == "input[2:4]"


def test_all_fields_of_several_have_columns():
    model = open_model(torch.nn.Bilinear(3, 2, 2))
    x, y = torch.arange(6.0).reshape(2, 3), torch.ones(2, 2)
    both = Inputs(("a", "b"), {0: x, 1: y})
    fitted = InputOnly().fit(model, both)
    assert [column.name for column in fitted.columns] == [
        *(f"input[{i}]" for i in range(3)),
        "input 1[0]",
        "input 1[1]",
    ]
    np.testing.assert_array_equal(fitted(both).values, torch.cat([x, y], 1))
    with pytest.raises(InputsError, match="inputs of 1 fields"):
        fitted(Inputs.of(x))


def test_the_model_is_never_run():
    toy, _ = small("gpt2")
    with failing(toy.model, 0):
        fitted = InputOnly().fit(open_model(toy.model), toy.trusted)
        assert fitted(toy.fresh).values.any()


def test_other_inputs_than_the_trusted_ones_and_bad_options_are_named():
    toy, _ = small("mlp")
    fitted = InputOnly().fit(open_model(toy.model), toy.trusted)
    with pytest.raises(InputsError, match=r"shape \(5,\)"):
        fitted(torch.zeros(3, 5))
    tokens, _ = small("gpt2")
    with pytest.raises(InputsError, match="shape of the trusted inputs"):
        fitted(tokens.fresh)
    with pytest.raises(InputsError, match="where tokens were trusted"):
        InputOnly().fit(open_model(tokens.model), tokens.trusted)(toy.fresh)
    with pytest.raises(FitError, match="most=1"):
        InputOnly(1)
