import functools
import json
import operator
import sys
import types

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as draws

import causalmad as cm
from causalmad import catalogue
from causalmad.errors import HypothesisError, StoreError
from causalmad.hypotheses import OUTPUT, Hypothesis
from causalmad.hypotheses.written import from_data, to_data
from causalmad.names import detector_text
from causalmad.signatures.causal_scrubbing import CausalScrubbing
from causalmad.signatures.interchange import Interchange
from causalmad.signatures.sufficiency import Sufficiency
from causalmad.sites import Site
from causalmad.subspaces import Subspace
from causalmad.testing.toys import toy

MADE = toy("mlp", trusted=40, fresh=9)


def left(x):
    return int(x["input"][:4].sum() > 0)


def middle(x):
    return int(x["input"][4:9].sum() > 0)


def parity(x):
    return left(x) ^ middle(x)


def both(left, middle):
    return left ^ middle


def answer(both):
    return both


def subspace(features=16, dimensions=3):
    return Subspace.spanning(torch.randn(features, dimensions, generator=torch.Generator().manual_seed(5)))


def claim(**functions):
    graph = nx.DiGraph(name="parity")
    graph.add_node("left", at="1#neuron=0-3", value=functions.get("left", left))
    graph.add_node("middle", at=[Site("1").within(subspace())], value=middle, tolerance=0.5)
    graph.add_node("both", at=("4",), mechanism=both, value=parity)
    graph.add_edges_from([("left", "both"), ("middle", "both"), ("both", OUTPUT)])
    graph.add_node(OUTPUT, mechanism=answer)
    return Hypothesis(graph)


@pytest.fixture
def listed(monkeypatch):
    """The signatures that test hypotheses in the catalogue, wherever they stand by now."""
    known = {entry.name: entry for entry in catalogue.catalogue("signatures")}
    for cls in (CausalScrubbing, Interchange, Sufficiency):
        name = catalogue.kebab(cls.__name__)
        known.setdefault(name, catalogue.Entry("signatures", name, "", cls.__module__, cls.__name__))
    usual = catalogue.catalogue
    monkeypatch.setattr(catalogue, "catalogue", lambda kind: [*known.values()] if kind == "signatures" else usual(kind))


def test_a_hypothesis_is_its_text():
    again = Hypothesis.from_json(claim().to_json(), functions=claim())
    assert again == claim() and again.claims == claim().claims and again.name == "parity"
    assert again.claim("middle").at[0].subspace == subspace()
    assert json.loads(claim().to_json()) == json.loads(again.to_json())
    assert claim() != Hypothesis.from_circuit(["1"])


def test_functions_may_be_given_by_name():
    names = {f"{__name__}:{f.__name__}": f for f in (left, middle, parity, both, answer)}
    assert Hypothesis.from_json(claim().to_json(), names) == claim()
    with pytest.raises(HypothesisError, match="your own function"):
        Hypothesis.from_json(claim().to_json(), dict(list(names.items())[1:]))
    with pytest.raises(HypothesisError, match="is a int"):
        Hypothesis.from_json(claim().to_json(), {**names, next(iter(names)): 3})


@settings(deadline=None, max_examples=30)
@for_all(
    weights=draws.lists(draws.floats(allow_nan=False), min_size=1, max_size=6),
    dimensions=draws.integers(1, 4),
    double=draws.booleans(),
)
def test_circuits_keep_their_weights_and_subspaces(weights, dimensions, double):
    basis = subspace(5, dimensions).basis
    circuit = nx.DiGraph(name="circuit", sparsity=0.5)
    for i, weight in enumerate(weights):
        circuit.add_node(f"h.{i}", weight=np.float64(weight), layer=i)
        circuit.add_edge(f"h.{i}", OUTPUT, weight=weight)
    circuit.add_node(Site("h.0", subspace=Subspace(basis.double() if double else basis)), weight=torch.tensor(1.5))
    tensors, data = to_data(circuit)
    again = from_data(tensors, json.loads(json.dumps(data)))
    assert dict(again.nodes(data=True)) == dict(circuit.nodes(data=True))
    assert nx.utils.graphs_equal(again, circuit) and again.graph == circuit.graph


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: 1, "'left' is a lambda"),
        (functools.partial(operator.getitem, 1), "partial"),
        ([].count, "'left' is list.count"),
    ],
)
def test_functions_without_a_findable_name_are_refused(function, message):
    with pytest.raises(HypothesisError, match=message) as caught:
        claim(left=function).to_json()
    assert "def left_value(...)" in str(caught.value)


def test_local_functions_and_odd_attributes_are_refused():
    def local(x):
        return 1

    with pytest.raises(HypothesisError, match="the local function local"):
        claim(left=local).to_json()
    graph = claim().to_networkx()
    graph.nodes["left"]["weight"] = [1, 2]
    with pytest.raises(HypothesisError, match=r"weight= of node 'left' is a list"):
        to_data(graph)
    with pytest.raises(HypothesisError, match="is a int"):
        to_data(nx.DiGraph([(1, 2)]))


def test_a_file_never_imports_anything(monkeypatch, tmp_path):
    (tmp_path / "harmless.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = claim().to_json()
    for name in ("harmless:f", "os:system", "causalmad.store:save", "causalmad.tasks.cache:shutil.rmtree", "f", ":"):
        with pytest.raises(HypothesisError):
            Hypothesis.from_json(text.replace(f"{__name__}:left", name))
    assert "harmless" not in sys.modules


def test_functions_of_tasks_are_found(monkeypatch):
    task = types.ModuleType("causalmad.tasks.made_up")
    exec("def left(x):\n    return 1\ndef middle(x):\n    return 2\n", task.__dict__)
    task.borrowed = operator.itemgetter
    monkeypatch.setitem(sys.modules, task.__name__, task)
    graph = nx.DiGraph(name="made up")
    graph.add_node("a", at="1", value=task.left)
    graph.add_edge("a", OUTPUT)
    text = Hypothesis(graph).to_json()
    assert Hypothesis.from_json(text) == Hypothesis(graph)
    for name in ("borrowed", "absent", "left.__code__", "__loader__"):
        with pytest.raises(HypothesisError, match="which is not there"):
            Hypothesis.from_json(text.replace("made_up:left", f"made_up:{name}"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.remove_node("middle"), "no value= on node 'middle'"),
        (lambda g: g.add_edge("left", "middle"), "differ in"),
        (lambda g: g.nodes["left"].update(at="4"), "at= of node 'left' was 1#neuron=0,1,2,3 and is 4|at= of node"),
        (lambda g: g.nodes["left"].update(value=middle), "'middle' now"),
        (lambda g: g.nodes["middle"].update(tolerance=1.0), "tolerance= of node 'middle' was 0.5 and is 1.0"),
        (lambda g: g.nodes["middle"].update(at=Site("1")), "at= of node 'middle'"),
    ],
)
def test_another_hypothesis_lends_no_functions(change, message):
    graph = claim().to_networkx()
    change(graph)
    with pytest.raises(HypothesisError, match=message):
        from_data(*to_data(claim()), functions=graph)


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"subspaces": {}, "form": "hypothesis"}', '{"subspaces": []}'])
def test_what_is_no_hypothesis(text):
    with pytest.raises(HypothesisError, match="no hypothesis"):
        Hypothesis.from_json(text)


def test_a_circuit_is_no_hypothesis():
    tensors, data = to_data(nx.DiGraph([("1", OUTPUT)]))
    with pytest.raises(HypothesisError, match="a circuit"):
        Hypothesis.from_json(json.dumps({**data, "subspaces": tensors}))


SPECS = {
    "scrubbing": lambda: CausalScrubbing(claim(), draws=2),
    "interchange": lambda: Interchange(claim(), draws=2),
    "sufficiency of a claim": lambda: Sufficiency(claim(), donors=2),
    "sufficiency of sites": lambda: Sufficiency(("1", "4"), donors=2, sparsities=(0.5,)),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_detector_with_a_hypothesis_is_what_was_saved(name, listed, tmp_path):
    fitted = cm.Detector(SPECS[name]()).fit(MADE.model, MADE.trusted, seed=3)
    fitted.save(tmp_path / "a")
    again = cm.FittedDetector.load(tmp_path / "a", MADE.model, hypothesis=claim())
    np.testing.assert_array_equal(again.score(MADE.fresh), fitted.score(MADE.fresh))
    assert again.spec == fitted.spec
    again.save(tmp_path / "b")
    for file in ("detector.json", "state.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_detectors_are_named_after_their_hypothesis(listed):
    assert detector_text(cm.Detector(CausalScrubbing(claim()))) == "causal-scrubbing[hypothesis=parity]+mahalanobis"
    unnamed = CausalScrubbing(claim(left=lambda x: 1))
    assert detector_text(cm.Detector(unnamed)) == "CausalScrubbing+mahalanobis"


def test_loading_asks_for_the_functions(listed, tmp_path):
    fitted = cm.Detector(Interchange(claim(), draws=2)).fit(MADE.model, MADE.trusted)
    fitted.save(tmp_path / "a")
    with pytest.raises(HypothesisError, match="hypothesis=your_hypothesis"):
        cm.FittedDetector.load(tmp_path / "a", MADE.model)
    other = claim().to_networkx()
    other.nodes["both"]["at"] = "3"
    with pytest.raises(HypothesisError, match="not the saved one"):
        cm.FittedDetector.load(tmp_path / "a", MADE.model, hypothesis=Hypothesis(other))


def test_a_lambda_is_named_when_saving(listed, tmp_path):
    fitted = cm.Detector(Interchange(claim(left=lambda x: int(x["input"][0] > 0)), draws=2)).fit(
        MADE.model, MADE.trusted
    )
    with pytest.raises(StoreError, match=r"value= of node 'left' is a lambda"):
        fitted.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()


CLAIMS = """
import networkx as nx
from causalmad import OUTPUT, Hypothesis

graph = nx.DiGraph([("a", OUTPUT)], name="from a file")
graph.nodes["a"]["at"] = "1"
parity = Hypothesis(graph)
number = 3
class Kept:
    parity = parity
def make(): return parity
def needs(x): return parity
def fails(): raise RuntimeError("on purpose")
"""


@pytest.mark.parametrize("name", ["parity", "graph", "make", "Kept.parity"])
def test_hypotheses_are_loaded_by_name(name, tmp_path, monkeypatch):
    (tmp_path / "claims_in_a_file.py").write_text(CLAIMS)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert Hypothesis.load(f"claims_in_a_file:{name}").name == "from a file"
    assert sys.path == before
    sys.modules.pop("claims_in_a_file")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("claims_in_a_file", "names no hypothesis"),
        (":parity", "names no hypothesis"),
        ("no_such_module_here:parity", "could not be imported: ModuleNotFoundError"),
        ("./claims_in_a_file.py:parity", "claims_in_a_file:parity"),
        ("claims_in_a_file:partiy", "claims_in_a_file:parity"),
        ("claims_in_a_file:number", "is a int"),
        ("claims_in_a_file:needs", "without arguments"),
        ("claims_in_a_file:fails", "on purpose"),
    ],
)
def test_what_cannot_be_loaded(name, message, tmp_path, monkeypatch):
    (tmp_path / "claims_in_a_file.py").write_text(CLAIMS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HypothesisError, match=message):
        Hypothesis.load(name)
    sys.modules.pop("claims_in_a_file", None)


def test_circuits_may_name_sites_themselves():
    place = Site("1").within(subspace())
    found = Hypothesis.from_circuit([place, ("3", "4"), ("4", OUTPUT)])
    assert {claim.at for claim in found.claims} == {(place,), ("3",), ("4",)}
    graph = nx.DiGraph()
    graph.add_node(place, weight=2.0)
    assert Hypothesis.from_circuit(graph).claims[0].at == (place,)
    assert Hypothesis.from_json(found.to_json()) == found
