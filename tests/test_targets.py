from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as draws
from torch import Tensor

from causalmad.errors import ModelError
from causalmad.models import open_model
from causalmad.signatures import AttributionPatching
from causalmad.targets import (
    ClassLogit,
    Divergence,
    LogitDifference,
    TopMargin,
    as_target,
    divergence,
    margin,
    two_logits,
)
from causalmad.testing.toys import toy

ROWS = draws.integers(2, 6).flatmap(
    lambda k: draws.lists(draws.lists(draws.floats(-20, 20, width=32), min_size=k, max_size=k), min_size=1, max_size=3)
)


@for_all(ROWS)
@settings(deadline=None)
def test_top_margin_is_the_plain_formula(rows: list[list[float]]) -> None:
    clean = torch.tensor(rows, dtype=torch.float64)
    read = TopMargin().bind(clean)
    for logits in (clean, clean.flip(-1), clean + 3):
        for i, row in enumerate(logits.tolist()):
            top = max(range(len(row)), key=lambda k: rows[i][k])
            others = math.log(sum(math.exp(value) for k, value in enumerate(row) if k != top))
            assert float(read(logits)[i]) == pytest.approx(row[top] - others, abs=1e-9)


@for_all(ROWS)
@settings(deadline=None)
def test_divergence_is_the_plain_formula(rows: list[list[float]]) -> None:
    clean = torch.tensor(rows, dtype=torch.float64)
    read = Divergence().bind(clean)
    other = clean.roll(1, -1) * 0.5
    for i in range(len(rows)):
        p, q = (torch.tensor(x[i].tolist()).double().softmax(-1).tolist() for x in (clean, other))
        wanted = sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)
        assert float(read(other)[i]) == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    assert read(other).min() >= 0 and read(clean).abs().max() < 1e-12


def test_divergence_is_flat_at_the_clean_output() -> None:
    clean = torch.randn(5, 7, dtype=torch.float64)
    logits = clean.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(Divergence().bind(clean)(logits).sum(), logits)
    assert slope.abs().max() < 1e-12


def test_the_question_is_frozen_at_the_clean_run() -> None:
    clean = torch.tensor([[3.0, 0.0], [0.0, 3.0]], requires_grad=True)
    read = TopMargin().bind(clean)
    assert read(clean).tolist() == [3.0, 3.0] and read(clean.flip(-1)).tolist() == [-3.0, -3.0]
    # The clean run is a constant, also where it was computed with a graph.
    logits = clean.detach().clone().requires_grad_(True)
    Divergence().bind(clean)(logits).sum().backward()
    assert clean.grad is None


def test_classes() -> None:
    clean = torch.randn(4, 3)
    assert LogitDifference(2, 0).bind(clean)(clean).equal(clean[:, 2] - clean[:, 0])
    assert ClassLogit(-1).bind(clean)(clean).equal(clean[:, 2])
    for target in (LogitDifference(0, 3), ClassLogit(3), ClassLogit(-4)):
        with pytest.raises(ModelError, match="the model has 3"):
            target.bind(clean)


def test_any_function_is_a_target() -> None:
    clean = torch.randn(4, 3)
    assert as_target(lambda logits: logits[:, 1]).bind(clean)(clean).equal(clean[:, 1])
    target = TopMargin()
    assert as_target(target) is target

    def total(logits: Tensor) -> Tensor:
        return logits.sum()

    with pytest.raises(ModelError, match=r"one number per input, shape \(4,\)"):
        as_target(total).bind(clean)(clean)
    with pytest.raises(ModelError, match="the target gave float"):
        as_target(lambda logits: 3.0).bind(clean)(clean)  # type: ignore[arg-type,return-value]
    with pytest.raises(ModelError, match="is no target"):
        as_target(3)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"TopMargin is a class"):
        as_target(TopMargin)  # type: ignore[arg-type]


def test_specs_are_values() -> None:
    assert TopMargin() == TopMargin() and LogitDifference(1, 2) != LogitDifference(2, 1)
    assert len({TopMargin(), TopMargin(), Divergence()}) == 2


def test_extremes_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    assert margin(logits, torch.tensor([0])).tolist() == [1e4]
    same = logits.log_softmax(-1)
    assert divergence(same, same).tolist() == [0.0]
    assert two_logits(torch.tensor([[2.0]])).tolist() == [[0.0, 2.0]] and two_logits(logits) is logits


def test_a_target_that_raises_is_blamed_and_not_the_model() -> None:
    made = toy("mlp", trusted=20)

    def ninth(logits: Tensor) -> Tensor:
        return logits[:, 99]

    with pytest.raises(ModelError, match=r"^the target .*ninth raised IndexError on logits \(\d+, 3\)") as caught:
        AttributionPatching(target=ninth).fit(open_model(made.model), made.trusted)
    assert isinstance(caught.value.__cause__, IndexError)
