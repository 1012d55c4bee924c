"""Donors depend on the seed, the input and the purpose, and on nothing else."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from scipy import stats

import causalmad as cm
from causalmad import Inputs
from causalmad.errors import HypothesisError
from causalmad.hypotheses.pool import NOBODY, Jobs, Pool, values_of


def hypothesis():
    graph = nx.DiGraph()
    graph.add_node("sign", at="0", value=lambda row: bool(row["input"][0] > 0))
    graph.add_node("place", at="1")
    graph.add_edges_from([("sign", cm.OUTPUT), ("place", cm.OUTPUT)])
    return cm.Hypothesis(graph)


X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
TRUSTED = Inputs.of(X)
FRESH = Inputs.of(torch.randn(8, 3, generator=torch.Generator().manual_seed(1)))
CLAIM = hypothesis()


def pool(inputs=TRUSTED, seed=0):
    return Pool.of(CLAIM, inputs, seed)


def wanted(inputs, draws):
    return [value for value in values_of(CLAIM, inputs)["sign"] for _ in range(draws)]


def test_draws_are_those_of_seed_input_purpose_and_number():
    jobs = Jobs.of(FRESH, 5)
    assert len(jobs) == 40 and jobs.draws[:6] == (0, 1, 2, 3, 4, 0)
    once = pool().any(jobs, "here")
    assert np.array_equal(once, pool().any(jobs, "here"))
    assert not np.array_equal(once, pool(seed=1).any(jobs, "here"))
    assert not np.array_equal(once, pool().any(jobs, "there"))
    assert len(set(once[:5])) > 1
    state = torch.get_rng_state()
    pool().matched(jobs, "sign", wanted(FRESH, 5), "here")
    assert torch.equal(state, torch.get_rng_state())


def test_draws_do_not_depend_on_other_inputs_or_their_order():
    rows = [6, 2, 3]
    together = pool().matched(Jobs.of(FRESH, 3), "sign", wanted(FRESH, 3), "x").reshape(8, 3)
    some = FRESH[rows]
    alone = pool().matched(Jobs.of(some, 3), "sign", wanted(some, 3), "x").reshape(3, 3)
    assert np.array_equal(alone, together[rows])


def test_draws_are_uniform():
    drawn = pool().any(Jobs.of(FRESH, 400), "x")
    assert stats.chisquare(np.bincount(drawn, minlength=30)).pvalue > 0.001


def test_nobody_is_its_own_donor_also_under_another_id():
    doubled = Inputs.of(torch.cat([X, X[:10]]))
    found = pool(doubled)
    for draw in (
        found.any(Jobs.of(TRUSTED, 40), "x"),
        found.matched(Jobs.of(TRUSTED, 40), "sign", wanted(TRUSTED, 40), "x"),
    ):
        owner = np.repeat(np.arange(30), 40)
        assert (draw != NOBODY).all()
        assert not any(doubled.digests[row] == TRUSTED.digests[i] for row, i in zip(draw, owner, strict=True))


def test_matched_agree_and_mismatched_do_not():
    jobs, values = Jobs.of(FRESH, 20), wanted(FRESH, 20)
    known = pool().values["sign"]
    assert [known[row] for row in pool().matched(jobs, "sign", values, "x")] == values
    assert [not known[row] for row in pool().mismatched(jobs, "sign", values, "x")] == values


def test_values_that_nobody_has_find_nobody():
    jobs = Jobs(("other",), (0,))
    assert pool().matched(jobs, "sign", ["neither"], "x").tolist() == [NOBODY]
    assert pool().mismatched(jobs, "sign", ["neither"], "x")[0] != NOBODY
    single = pool(Inputs.of(X[X[:, 0] > 0]))
    assert single.mismatched(jobs, "sign", [True], "x").tolist() == [NOBODY]
    one = TRUSTED[:1]
    alone = Pool.of(CLAIM, one, 0)
    assert alone.matched(Jobs.of(one, 1), "sign", wanted(one, 1), "x").tolist() == [NOBODY]
    with pytest.raises(HypothesisError, match="cannot be its own donor"):
        alone.any(Jobs.of(one, 1), "x")


def test_claims_without_values_are_left_out():
    assert set(pool().values) == {"sign"} and set(pool().members["sign"]) == {True, False}
