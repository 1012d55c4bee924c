import numpy as np
import pytest
import torch

from causalmad import open_model
from causalmad.errors import FitError
from causalmad.signatures.logit_lens import LogitLens
from causalmad.signatures.output_only import OutputOnly
from tests.signatures.families import BLOCKS, small
from tests.twins import logit_lens as twin


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_it_equals_norm_and_head_by_hand(name, side):
    toy, model = small(name, 12, 6)
    fitted = LogitLens().fit(open_model(toy.model, batch_size=4, side=side), toy.trusted)
    expected = [twin.trajectory(model, row, name) for row in toy.fresh.main]
    np.testing.assert_allclose(fitted(toy.fresh).values, expected, atol=1e-5)
    assert [column.unit for column in fitted.columns[:5]] == [
        *("divergence", "log probability", "margin", "entropy"),
        "log probability",
    ]


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
def test_the_last_layer_is_the_output_to_the_last_bit(name, engine):
    toy, _ = small(name)
    model = open_model(toy.model, engine=engine)
    fitted = LogitLens().fit(model, toy.trusted)
    (batch,) = model.batches(toy.fresh)
    last = fitted.sites[-1].place
    run = model.run(batch, read=[last])
    # Whatever is put before the norm is what the lens reads: the last layer's own residual changes no bit.
    assert torch.equal(model.logits(batch, {fitted.norm: lambda _: run.values[last]}), run.logits)
    output = OutputOnly().fit(model, toy.trusted)(toy.fresh).values
    np.testing.assert_array_equal(fitted(toy.fresh).values[:, -3:], output[:, [0, 2, 3]])


def test_a_layer_that_does_nothing_changes_nothing():
    toy, _ = small("gpt2")
    block = toy.model.transformer.h[1]
    with torch.no_grad():
        for part in (block.attn.c_proj, block.mlp.c_proj):
            part.weight.zero_()
            part.bias.zero_()
    values = LogitLens().fit(open_model(toy.model), toy.trusted)(toy.fresh).values
    np.testing.assert_allclose(values[:, 0], 0, atol=1e-9)
    np.testing.assert_allclose(values[:, 1:4], values[:, 4:], atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "conv", "bert"])
def test_models_without_a_known_final_norm_are_refused_by_name(name):
    toy, _ = small(name)
    with pytest.raises(FitError, match="a logit lens on") as error:
        LogitLens().fit(open_model(toy.model), toy.trusted)
    assert "OutputOnly()" in error.value.tries
