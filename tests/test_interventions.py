from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from causalmad import interventions

EDITS = [
    interventions.keep,
    interventions.zero,
    interventions.mean,
    interventions.interchange,
    interventions.resample,
    interventions.add,
    interventions.interpolate,
]


@pytest.mark.parametrize("edit", EDITS)
def test_edits_are_pure_and_keep_the_shape_and_type(edit: Callable[[Tensor, Tensor], Tensor]) -> None:
    activation, donor = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    copies = activation.clone(), donor.clone()
    new = edit(activation, donor)
    assert new.shape == activation.shape and new.dtype == activation.dtype
    assert activation.equal(copies[0]) and donor.equal(copies[1])
    for other in (edit(activation.half(), donor), edit(activation.double(), donor)):
        assert other.shape == activation.shape


def test_each_edit_is_what_it_says() -> None:
    activation, donor = torch.randn(3, 5), torch.randn(3, 5)
    assert interventions.keep(activation, donor) is activation
    assert not interventions.zero(activation, donor).any()
    assert interventions.mean(activation, torch.randn(7, 5)).unique(dim=0).shape == (1, 5)
    assert interventions.mean(activation, donor).allclose(donor.mean(0))
    assert interventions.interchange(activation, donor).equal(donor)
    assert interventions.interchange(activation, donor[:1]).equal(donor[:1].expand(3, 5))
    assert interventions.add(activation, donor[0]).equal(activation + donor[0])
    assert interventions.interpolate(activation, donor, 0).equal(activation)
    assert interventions.interpolate(activation, donor, 1).allclose(donor)
    assert interventions.interpolate(activation, donor, 0.25).allclose(0.75 * activation + 0.25 * donor, atol=1e-6)


@pytest.mark.parametrize("edit", [interventions.interchange, interventions.interpolate, interventions.keep])
def test_an_activation_as_its_own_donor_changes_no_bit(edit: Callable[[Tensor, Tensor], Tensor]) -> None:
    activation = torch.randn(3, 4, 5)
    assert edit(activation, activation).equal(activation)


def test_projecting_out() -> None:
    activation = torch.randn(3, 4, 5, dtype=torch.float64)
    for directions in (torch.randn(5).double(), torch.randn(2, 5).double(), 100 * torch.randn(1, 5).double()):
        new = interventions.project_out(activation, directions)
        assert (new @ torch.atleast_2d(directions).T).abs().max() < 1e-10
        assert interventions.project_out(new, directions).allclose(new)
        # What goes away lies in the directions.
        gone = (activation - new).reshape(-1, 5)
        assert torch.linalg.matrix_rank(gone) <= len(torch.atleast_2d(directions))
