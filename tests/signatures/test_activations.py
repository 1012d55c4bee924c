import numpy as np
import pytest
import torch

from causalmad import open_model
from causalmad.errors import InputsError, SiteError
from causalmad.signatures import Activations
from tests.signatures.families import BLOCKS, small
from tests.twins.resampling_profile import read


def values_of(toy, spec, **options):
    fitted = spec.fit(open_model(toy.model, **options), toy.trusted)
    return fitted, fitted(toy.fresh).values


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_last_position_of_every_block_equals_plain_hooks(name, side):
    toy, model = small(name)
    fitted, values = values_of(toy, Activations(), side=side, batch_size=3)
    expected = [
        torch.cat([read(model, row, BLOCKS[name].format(i), "output")[-1] for i in (0, 1)]) for row in toy.fresh.main
    ]
    np.testing.assert_allclose(values, torch.stack(expected), atol=1e-5)
    assert fitted.columns[0].position == "-1" and fitted.columns[0].block == BLOCKS[name].format(0)


@pytest.mark.parametrize(
    ("positions", "pick"),
    [
        (0, lambda value: value[0]),
        (1, lambda value: value[1]),
        (-2, lambda value: value[-2]),
        ("all", lambda value: value.mean(0)),
        ("all:max", lambda value: value.max(0).values),
        ("all:sum", lambda value: value.sum(0)),
    ],
)
def test_positions_and_pools_see_real_tokens_only(positions, pick):
    toy, model = small("gpt2")
    _, values = values_of(toy, Activations("transformer.h.0.mlp", positions), batch_size=3)
    expected = [pick(read(model, row, "transformer.h.0.mlp", "output")) for row in toy.fresh.main]
    np.testing.assert_allclose(values, torch.stack(expected), atol=1e-5)


def test_heads_and_neurons_are_slices():
    toy, model = small("gpt2")
    sites = ("transformer.h.1.attn#head=1", "transformer.h.0.mlp.c_proj:input#neuron=3,5", "transformer.h.0@0")
    fitted, values = values_of(toy, Activations(sites))
    expected = []
    for row in toy.fresh.main:
        head = read(model, row, "transformer.h.1.attn.c_proj", "input")[-1, 8:]
        neurons = read(model, row, "transformer.h.0.mlp.c_proj", "input")[-1, [3, 5]]
        expected.append(torch.cat([head, neurons, read(model, row, "transformer.h.0", "output")[0]]))
    np.testing.assert_allclose(values, torch.stack(expected), atol=1e-5)
    assert len(fitted.columns) == 8 + 2 + 16


def test_other_modules_are_read_at_their_nonlinear_parts():
    toy, model = small("mlp")
    fitted, values = values_of(toy, Activations())
    expected = [torch.cat([read(model, row, path, "output") for path in ("1", "4")]) for row in toy.fresh.main]
    np.testing.assert_allclose(values, torch.stack(expected), atol=1e-5)
    assert fitted.columns[0].name == "1[0]" and not fitted.columns[0].position


def test_images_are_averaged_over_space():
    toy, model = small("conv")
    _, values = values_of(toy, Activations("2"))
    expected = [read(model, row, "2", "output").mean((1, 2)) for row in toy.fresh.main]
    np.testing.assert_allclose(values, torch.stack(expected), atol=1e-5)


def test_a_position_beyond_an_input_and_an_unknown_site_are_named():
    toy, _ = small("gpt2")
    with pytest.raises(InputsError, match="position @7 lies outside"):
        values_of(toy, Activations(positions=7))
    with pytest.raises(SiteError) as error:
        values_of(toy, Activations("transformer.h.5"))
    assert len(error.value.tries) == 3 and error.value.tries[0] == "transformer.h.1"
