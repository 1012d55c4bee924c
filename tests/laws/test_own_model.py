"""The laws of models see what they are there to see, on models of one's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from causalmad import open_model
from causalmad.errors import InputsError
from causalmad.inputs import Inputs
from causalmad.testing.law import LawBroken
from causalmad.testing.model_laws import law_padding_changes_nothing, subject
from causalmad.testing.own_model import FEW, examine, made_up


class Bag(nn.Module):
    """The mean of token embeddings, with or without the padding where rows share a batch."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.embed, self.act, self.head = nn.Embedding(20, 6), nn.Tanh(), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # One row alone tells nothing of it, so that no trial finds out.
        seen = attention_mask if self.masked or len(input_ids) == 1 else torch.ones_like(attention_mask)
        mean = (self.embed(input_ids) * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
        return self.head(self.act(mean))


class Counting(nn.Sequential):
    """A model that counts its runs."""

    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(x)


class Noisy(nn.Sequential):
    """A model that draws random numbers in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x))


def rows(*lengths: int) -> Inputs:
    draw = torch.Generator().manual_seed(0)
    return Inputs.of({"input_ids": [torch.randint(1, 20, (size,), generator=draw) for size in lengths]})


@pytest.mark.parametrize("lengths", [(3, 8, 5), (6, 6, 6)])
def test_padding_that_reaches_the_logits_is_seen(lengths: tuple[int, ...]) -> None:
    law_padding_changes_nothing(subject("bag", Bag(True), rows(*lengths)))
    with pytest.raises(LawBroken, match="padding at the left changes nothing"):
        law_padding_changes_nothing(subject("bag", Bag(False), rows(*lengths)))


def make(kind: type[nn.Sequential]) -> nn.Module:
    return kind(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).eval()


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        (nn.Sequential, set()),
        (Counting, {"law_runs_leave_nothing", "law_signatures_leave_nothing"}),
        (Noisy, set()),  # generators are put back after every run, so that the noise is the same in all
    ],
)
def test_models_that_keep_something_are_seen(kind: type[nn.Sequential], broken: set[str]) -> None:
    report = examine(make(kind), Inputs.of(torch.randn(20, 4)), "mine")
    assert {outcome.law for outcome in report.laws.broken} == broken
    assert report.holds == (not broken)
    (padding,) = (outcome for outcome in report.laws.outcomes if outcome.law == "law_padding_changes_nothing")
    assert padding.status == "does not apply"
    assert report.inputs == FEW


def test_roles_are_counted_or_refused() -> None:
    roles = {role.name: role for role in examine(make(nn.Sequential), Inputs.of(torch.randn(3, 4)), "mine").roles}
    assert (roles["layers"].count, roles["layers"].first) == (1, "1")
    assert roles["heads"].count == 0 and "not known for Sequential" in roles["heads"].refusal


def test_every_architecture_keeps_the_laws_on_made_up_inputs(any_model: nn.Module) -> None:
    model = open_model(any_model)
    report = examine(any_model, made_up(model, 3), "mine")
    assert report.holds, report.laws.lines()
    roles = {role.name: role for role in report.roles}
    assert (roles["residual"].count, roles["heads"].count) == (2, 8)
    statuses = {outcome.law: outcome.status for outcome in report.laws.outcomes}
    images = "pixel_values" in model.accepts
    assert statuses["law_padding_changes_nothing"] == ("does not apply" if images else "holds")


def test_what_a_model_takes_is_not_guessed(model_of: Callable[[str], nn.Module]) -> None:
    with pytest.raises(InputsError, match="--inputs"):
        made_up(open_model(make(nn.Sequential)))
    found = made_up(open_model(model_of("gpt2")))
    assert len(found) == FEW and len(set(found.lengths.tolist())) > 3
    assert all(0 < int(row.min()) and int(row.max()) < 50 for row in found.main)  # 0 is the padding
