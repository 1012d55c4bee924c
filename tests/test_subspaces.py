import copy
import pickle

import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as draws

from causalmad.errors import SiteError
from causalmad.inputs import Inputs
from causalmad.models import open_model
from causalmad.sites import Site
from causalmad.subspaces import Subspace


def subspace(features, dimensions, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return Subspace.spanning(torch.randn(features, dimensions, generator=draw, dtype=dtype))


def batch_of(lengths, side="left"):
    rows = [{"input_ids": torch.arange(1, size + 1)} for size in lengths]
    return next(Inputs.of(rows).batches(9, side=side, accepts=("attention_mask",)))


SITES = [
    Site("x"),
    Site("x", position=-1),
    Site("x", heads=(2, 0), head_count=4),
    Site("x", neurons=(1, 7, 3, 4), position=0),
]


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@settings(deadline=None, max_examples=20)
@for_all(seed=draws.integers(0, 1000), dimensions=draws.integers(1, 4), double=draws.booleans())
def test_an_edit_changes_the_subspace_and_nothing_else(site, side, seed, dimensions, double):
    kind = torch.float64 if double else torch.float32
    draw = torch.Generator().manual_seed(seed)
    batch = batch_of((3, 5, 2), side)
    value, other = torch.randn(2, 3, 5, 12, generator=draw, dtype=kind)
    width = site.take(value, batch).shape[-1]
    found = site.within(subspace(width, dimensions, seed, kind))

    assert torch.equal(found.put(value, found.take(value, batch), batch), value)
    new = found.take(other, batch)
    edited = found.put(value, new, batch)
    torch.testing.assert_close(found.take(edited, batch), new, rtol=1e-4, atol=1e-5)
    inside = found.subspace.basis @ found.subspace.basis.T
    rest = torch.eye(width, dtype=kind) - inside
    torch.testing.assert_close(site.take(edited, batch) @ rest, site.take(value, batch) @ rest, rtol=1e-4, atol=1e-5)
    elsewhere = site.put(torch.zeros_like(value), torch.ones_like(site.take(value, batch)), batch) == 0
    assert torch.equal(edited[elsewhere], value[elsewhere])


def test_all_of_the_directions_are_the_whole_site():
    batch, value, new = batch_of((4, 4)), torch.randn(2, 4, 6), torch.randn(2, 6)
    site = Site("x", position=-1)
    whole = site.within(Subspace(torch.eye(6)))
    torch.testing.assert_close(whole.put(value, new, batch), site.put(value, new, batch))
    torch.testing.assert_close(whole.put(value, new[:, None], batch), site.put(value, new, batch))


def test_pooled_positions_are_read_and_never_edited():
    batch, value = batch_of((4, 2)), torch.randn(2, 4, 6)
    site = Site("x", position="all").within(subspace(6, 2))
    torch.testing.assert_close(
        site.take(value, batch), Site("x", position="all").take(value, batch) @ site.subspace.basis
    )
    with pytest.raises(SiteError, match="pooled"):
        site.put(value, torch.zeros(2, 2), batch)


def test_equal_numbers_are_equal_subspaces():
    one, same, other = subspace(5, 2), subspace(5, 2), subspace(5, 2, seed=1)
    assert one == same and hash(one) == hash(same) and one != other and one != 3
    assert len({Site("x").within(one), Site("x").within(same), Site("x").within(other), Site("x")}) == 3
    assert Subspace.unpack(one.pack(), one.digest) == one
    assert pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one)
    basis = torch.eye(3)[:, :1].clone()
    kept = Subspace(basis)
    basis.zero_()
    assert kept.basis[0, 0] == 1


def test_an_orthonormal_basis_spans_itself():
    basis = subspace(7, 3, dtype=torch.float64).basis
    torch.testing.assert_close(Subspace.spanning(basis).basis, basis)


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        (torch.ones(4, 2), "not orthonormal"),
        (torch.full((4, 2), float("nan")), "not orthonormal"),
        (torch.eye(3)[:2], "shape"),
        (torch.ones(3), "shape"),
        (torch.zeros(3, 0), "shape"),
    ],
)
def test_what_is_no_basis(basis, message):
    with pytest.raises(SiteError, match=message):
        Subspace(basis)


def test_other_errors_say_what_was_passed():
    found = subspace(6, 2)
    with pytest.raises(SiteError, match="do not span"):
        Subspace.spanning(torch.ones(4, 2))
    with pytest.raises(SiteError, match="2 of 6"):
        found.coordinates(torch.zeros(3, 5))
    with pytest.raises(SiteError, match="cannot be put"):
        Site("x").within(found).put(torch.zeros(2, 6), torch.zeros(2, 3), batch_of((1, 1)))
    with pytest.raises(SiteError, match="missing"):
        Subspace.unpack({}, found.digest)
    with pytest.raises(SiteError, match="not what was saved"):
        Subspace.unpack({found.digest: subspace(6, 2, seed=1).basis}, found.digest)
    with pytest.raises(SiteError, match="no text form"):
        Site.parse(str(Site("x", position=-1).within(found)))


def test_resolving_keeps_the_subspace(model_of):
    found = subspace(8, 2)
    model = open_model(model_of("gpt2"))
    (site,) = model.sites(Site("transformer.h.1.attn", heads=(2,), position=-1, subspace=found))
    assert site.subspace == found and site.path.endswith("c_proj") and site.head_count == 4
