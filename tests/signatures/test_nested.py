"""A fitted signature on another view of its model reads that view, with whatever is inside it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from causalmad import open_model
from causalmad.config import parse_spec
from causalmad.signatures.nested import on
from causalmad.testing.toys import toy

INSIDE = (
    "activations",
    "concat[signatures=layer-transitions;gram-deviation]",
    "conditional[signature=activations]",
    "conditional[signature=output-only,on=topological-trajectory]",
    "functional-coupling[draws=4]",
    "gram-deviation[width=1]",
    "layer-transitions",
    "logit-lens",
    "output-only",
    "probe-logits",
    "sparse-code[steps=5]",
    "topological-trajectory",
)


@pytest.mark.parametrize("text", INSIDE)
def test_standing_edits_reach_every_column(text):
    made = toy("gpt2", trusted=40, fresh=8)
    model = open_model(made.model)
    fitted = parse_spec("signatures", text).fit(model, made.trusted)
    place = model.sites("residual")[0].place
    wave = torch.sin(torch.arange(16.0))
    moved = on(fitted, replace(model, standing=lambda batch: {place: lambda value: 0.3 * value + wave}))
    before, after = fitted(made.fresh).values, moved(made.fresh).values
    changed = ~np.isclose(before, after).all(0)
    still = {column.name for column, moves in zip(fitted.columns, changed, strict=True) if not moves}
    # A latent, or a neighbour's rank, can be where it was; whole sites cannot.
    assert len(still) < len(fitted.columns) / 2, still
    np.testing.assert_array_equal(on(moved, model)(made.fresh).values, before)
