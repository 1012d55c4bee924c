"""What pyvene does with our configuration is what our own engine does."""

import copy

import networkx as nx
import numpy as np
import pytest
import torch

from causalmad.errors import HypothesisError
from causalmad.hypotheses import OUTPUT, Hypothesis
from causalmad.hypotheses.bench import Bench
from causalmad.hypotheses.pyvene import interchange_arguments
from causalmad.hypotheses.scrubbing import sites_of
from causalmad.models import open_model
from causalmad.sites import Site
from causalmad.subspaces import Subspace

PARTS = {
    "gpt2": ("transformer.h.{}", "attn", "mlp", "mlp.c_proj"),
    "neox": ("gpt_neox.layers.{}", "attention", "mlp", "mlp.dense_4h_to_h"),
    "llama": ("model.layers.{}", "self_attn", "mlp", "mlp.down_proj"),
}


def claim(*sites):
    graph = nx.DiGraph(name="claim")
    for i, site in enumerate(sites):
        graph.add_node(f"n{i}", at=site)
        graph.add_edge(f"n{i}", OUTPUT)
    return Hypothesis(graph)


def subspace(features, dimensions=3):
    return Subspace.spanning(torch.randn(features, dimensions, generator=torch.Generator().manual_seed(5)))


def sites_in(name):
    block, attention, mlp, down = PARTS[name]
    first, second = block.format(0), block.format(1)
    return {
        "block": (f"{first}@-1",),
        "block input": (f"{second}:input@1",),
        "whole block": (first,),
        "attention": (f"{first}.{attention}@S",),
        "mlp and attention": (f"{first}.{mlp}@0", f"{second}.{attention}@-1"),
        "mlp input": (f"{second}.{mlp}:input@-1",),
        "neurons": (f"{second}.{down}:input#neuron=1,5,7@-1",),
        "one head": (f"{first}.{attention}#head=2@-1",),
        "heads": (f"{first}.{attention}#head=3,1@S", f"{second}.{attention}#head=0@-1"),
        "heads everywhere": (f"{second}.{attention}#head=1,2",),
        "subspace": (Site(first, position=-1).within(subspace(32)),),
        "subspace everywhere": (Site(first).within(subspace(32)),),
        "subspace of heads": (Site(f"{first}.{attention}", heads=(0, 2), position="S").within(subspace(16)),),
    }


def rows(count, seed, same=False):
    draw = torch.Generator().manual_seed(seed)
    lengths = [6] * count if same else torch.randint(3, 7, (count,), generator=draw).tolist()
    return [{"input_ids": torch.randint(2, 50, (size,), generator=draw), "S": size // 2} for size in lengths]


@pytest.mark.parametrize("which", sites_in("gpt2"))
@pytest.mark.parametrize("name", PARTS)
def test_pyvene_runs_the_claims_as_we_do(model_of, name, which):
    import pyvene

    model, hypothesis = open_model(model_of(name)), claim(*sites_in(name)[which])
    same = any(site.position is None for sites in sites_of(model, hypothesis).values() for site in sites)
    base, source = rows(5, 1, same), rows(5, 2, same)

    every = [site for sites in sites_of(model, hypothesis).values() for site in sites]
    giving, receiving = (Bench.of(model, model.inputs(data)) for data in (source, base))
    _, values = giving.run(np.arange(5), read=every, output=False)
    ours, _ = receiving.run(np.arange(5), values)
    clean, _ = receiving.run(np.arange(5))
    assert (ours - clean).abs().max() > 1e-3

    plain = copy.deepcopy(model.module).eval()
    theirs = pyvene.IntervenableModel(hypothesis.to_pyvene(model), plain)
    with torch.no_grad():
        _, found = theirs(**interchange_arguments(hypothesis, model, base, source))
    torch.testing.assert_close(found.logits[:, -1], ours, rtol=1e-5, atol=1e-5)


def test_claims_may_keep_their_own_values(model_of):
    import pyvene

    model = open_model(model_of("gpt2"))
    hypothesis = claim(*sites_in("gpt2")["heads"])
    base, source = rows(4, 1), rows(4, 2)
    given = interchange_arguments(hypothesis, model, base, source)
    theirs = pyvene.IntervenableModel(hypothesis.to_pyvene(model), copy.deepcopy(model.module).eval())
    second = given["sources"][1]
    with torch.no_grad():
        _, found = theirs(**{**given, "sources": [None, second]})
    sites = sites_of(model, hypothesis)["n1"]
    giving, receiving = (Bench.of(model, model.inputs(data)) for data in (source, base))
    _, values = giving.run(np.arange(4), read=sites, output=False)
    ours, _ = receiving.run(np.arange(4), values)
    torch.testing.assert_close(found.logits[:, -1], ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "site", "message"),
    [
        ("bert", "bert.encoder.layer.0@0", "does not know BertForSequenceClassification"),
        ("gpt2", "transformer.h.0.attn:output[0]@0", "first tensor"),
        ("gpt2", "transformer.h.0@all", "is pooled"),
        ("gpt2", "transformer.h.0.ln_1:input@-1", "other modules may read"),
    ],
)
def test_what_pyvene_would_do_otherwise(model_of, name, site, message):
    with pytest.raises(HypothesisError, match=message):
        claim(site).to_pyvene(model_of(name))


def test_pairs_that_do_not_fit(model_of):
    model = model_of("gpt2")
    with pytest.raises(HypothesisError, match="4 bases and 3 sources"):
        interchange_arguments(claim("transformer.h.0@-1"), model, rows(4, 1), rows(3, 2))
    with pytest.raises(HypothesisError, match="whole sequences"):
        interchange_arguments(claim("transformer.h.0"), model, rows(1, 1, True), [{"input_ids": [2, 3], "S": 1}])
