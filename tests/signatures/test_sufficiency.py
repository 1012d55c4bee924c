"""Sufficiency and necessity equal resampling written out, one input and one donor at a time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest

import causalmad as cm
from causalmad import open_model
from causalmad.errors import FitError
from causalmad.signatures import Sufficiency
from causalmad.signatures.base import State
from causalmad.testing.toys import toy
from tests.hypotheses.claimed import ATTENTION, FAMILIES, data_of, family
from tests.signatures.families import BLOCKS, HEADS, LAYERS, head_places
from tests.twins import sufficiency as twin
from tests.twins.scrubbing import Spot


def components(name):
    """Heads, then MLPs, in the order of the layers."""
    heads = [Spot(path, "input", range(part.start, part.stop)) for path, part in head_places(name)]
    return [*heads, *(Spot(f"{BLOCKS[name].format(layer)}.mlp") for layer in range(LAYERS))]


def donors_of(fitted):
    """A function from a datum to its donors: the first ones, or the spare in place of itself."""
    data, count = data_of(fitted.donors.inputs), fitted.donors.count

    def get(datum):
        return [data[-1] if donor.row.equal(datum.row) else donor for donor in data[:count]]

    return get


def require_same(fitted, inputs, slow, circuits, everything):
    expected = [twin.columns(slow, datum, donors_of(fitted)(datum), circuits, everything) for datum in data_of(inputs)]
    np.testing.assert_allclose(fitted.reduced(inputs).values, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_ranked_circuit_equals_the_twin(name):
    model, trusted, fresh, slow = family(name, trusted=8)
    fitted = Sufficiency(donors=2).fit(open_model(model, batch_size=3), trusted, seed=1)
    everything, donors = components(name), donors_of(fitted)
    used = [donor.row for donor in data_of(fitted.donors.inputs)]
    sample = [datum for datum in data_of(trusted) if not any(datum.row.equal(row) for row in used)]
    ranked, effects = twin.ranking(slow, sample, donors, everything)
    sizes = sorted(effects.values())
    assert min(b - a for a, b in pairwise(sizes)) > 1e-4  # no ties
    texts = [str(site) for site in fitted.ranked]
    assert [texts.index(text) for text in named(name, ranked)] == list(range(len(ranked)))
    assert fitted.sizes == (2, 3)
    # Also a donor among the inputs, which takes the spare.
    inputs = trusted[[trusted.digests.index(fitted.donors.inputs.digests[0])]]
    for some in (fresh, inputs):
        require_same(fitted, some, slow, [ranked[:2], ranked[:3]], everything)


def named(name, spots):
    projections = {path: i for i, (path, _) in enumerate(head_places(name))}
    for spot in spots:
        if spot.path in projections:
            yield f"{spot.path}:input#head={spot.features.start // len(spot.features)}"
        else:
            yield spot.path


@pytest.mark.parametrize("name", FAMILIES)
def test_given_circuits_equal_the_twin_and_keep_no_more_than_they_say(name):
    """A position of a head is kept, and the head's other positions are not; two heads as one site are both kept."""
    model, trusted, fresh, slow = family(name, trusted=8)
    first, second = BLOCKS[name].format(0), BLOCKS[name].format(1)
    everything = components(name)
    one = everything[1]._replace(position="S2")
    graph = nx.DiGraph()
    graph.add_node("a", at=[f"{first}.{ATTENTION[name]}#head=1@S2", f"{second}.mlp@-1"])
    graph.add_node("b", at=f"{second}.{ATTENTION[name]}#head=0,1")
    graph.add_edges_from([("a", "b"), ("b", cm.OUTPUT)])
    circuit = [one, everything[-1]._replace(position=-1), everything[HEADS], everything[HEADS + 1]]
    fitted = Sufficiency(cm.Hypothesis(graph), donors=2).fit(open_model(model), trusted)
    assert fitted.sizes == (3,)
    require_same(fitted, fresh, slow, [circuit], everything)


def test_texts_weights_and_modules_around_components():
    model, trusted, fresh, slow = family("gpt2", trusted=8)
    everything = components("gpt2")
    texts = ("transformer.h.1.mlp", "transformer.h.0.attn#head=1", "transformer.h.0.mlp")
    spots = [everything[-1], everything[1], everything[-2]]
    weights = nx.DiGraph()
    weights.add_nodes_from((text, {"weight": w}) for text, w in zip(texts, (-3.0, 2.0, 1.0), strict=True))
    named_otherwise = nx.DiGraph()
    named_otherwise.add_nodes_from((f"n{i}", {"weight": 3 - i, "at": text}) for i, text in enumerate(texts))
    named_otherwise.add_edges_from([("input", "n2"), ("n0", "logits")])
    for circuit in (texts, weights, named_otherwise):
        fitted = Sufficiency(circuit, sparsities=(0.01, 0.3, 0.34), donors=2).fit(open_model(model), trusted)
        assert fitted.sizes == (1, 2, 3) and len(fitted.ranked) == 6
        require_same(fitted, fresh, slow, [spots[:1], spots[:2], spots[:3]], everything)
    # The heads inside an attention module that is kept are kept as well.
    around = Sufficiency(("transformer.h.0.attn",), sparsities=(0.1,), donors=2).fit(open_model(model), trusted)
    assert len(around.ranked) == 1 + 2 + 2
    inside = [spot for spot in everything if not spot.path.startswith("transformer.h.0.attn")]
    found = around.reduced(fresh).values[:, :5]
    expected = []
    for datum in data_of(fresh):
        runs = [twin.sufficiency(slow, datum, donor, [], inside) for donor in donors_of(around)(datum)]
        expected.append(twin.statistics(twin.run(slow, datum.row), runs))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_modules_without_roles_on_vectors():
    made = toy("mlp", 12, 4)
    slow = made.model.eval()
    fitted = Sufficiency(("4", "1"), sparsities=(0.5,), donors=3).fit(open_model(made.model), made.trusted)
    require_same(fitted, made.fresh, slow, [[Spot("4")]], [Spot("1")])
    state = fitted.state()
    again = fitted.spec.restore(open_model(made.model), State(dict(state.tensors), state.data))
    assert np.array_equal(again(made.fresh).values, fitted(made.fresh).values)


def test_standing_edits_do_not_reach_the_donors():
    """A fitted signature that is moved to a view and one that is restored there have the same donors."""
    model, trusted, fresh, _ = family("gpt2", trusted=8)
    opened = open_model(model)
    fitted = Sufficiency(donors=2).fit(opened, trusted)
    view = replace(opened, standing=lambda _: {opened.sites("mlps")[0].place: lambda value: 0 * value})
    moved = replace(fitted, model=view).reduced(fresh).values
    assert np.abs(moved - fitted.reduced(fresh).values).max() > 1e-3
    assert np.array_equal(fitted.spec.restore(view, fitted.state()).reduced(fresh).values, moved)


def test_what_is_missing_is_named():
    made = toy("mlp", 6, 2)
    with pytest.raises(FitError, match="heads and MLPs of Sequential are not known"):
        Sufficiency(donors=2).fit(open_model(made.model), made.trusted)
    with pytest.raises(FitError, match="every trusted input is a donor"):
        Sufficiency(("1", "4"), donors=5).fit(open_model(made.model), made.trusted)
    for options in ({"sparsities": (1.0,)}, {"sparsities": ()}, {"donors": 0}):
        with pytest.raises(FitError):
            Sufficiency(**options)
