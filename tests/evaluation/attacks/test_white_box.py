"""What an attacker differentiates is the detector itself: its own scores, and their true slopes."""

import numpy as np
import pytest
import torch

from causalmad import open_model
from causalmad.config import parse_spec
from causalmad.detector import Detector
from causalmad.detectors import detector
from causalmad.errors import SpecError
from causalmad.evaluation.attacks import WhiteBox
from causalmad.evaluation.attacks.columns import columns
from causalmad.evaluation.attacks.graphs import GraphModel, twice_differentiable
from causalmad.inputs import Inputs
from causalmad.references import PerSite
from causalmad.signatures import AttributionPatching, GramDeviation, RelevancePatching, ResamplingProfile
from causalmad.sites import Place
from causalmad.targets import TopMargin
from causalmad.testing.toys import toy

DETECTORS = (
    "activations",
    "activations-two-sided",
    "activations-relative",
    "beatrix",
    "attribution-mean",
    "attribution-patching",
    "relevance-patching",
    "resampling-profile",
    "views-mean",
    "views-harmonic",
    "views-and-gram-fisher",
)


def whole(model, inputs):
    (batch,) = model.batches(inputs, size=len(inputs))
    return batch


@pytest.mark.parametrize(
    "name", ["mlp", "conv", "gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("neox", "llama"))]
)
def test_scores_are_those_of_the_detector(name):
    made = toy(name, trusted=60, fresh=6)
    made.model.eval()
    for text in DETECTORS:
        fitted = detector(text).fit(made.model, made.trusted)
        box = WhiteBox.of(fitted)
        with twice_differentiable(made.model):
            found = box.score(whole(box.model, made.fresh)).detach().numpy()
        np.testing.assert_allclose(found, fitted.score(made.fresh), rtol=2e-3, atol=1e-4, err_msg=text)


@pytest.mark.parametrize("rank", ["rank", "place", "both"])
def test_columns_of_a_profile_by_rank_and_by_place(rank):
    made = toy("gpt2")
    made.model.eval()
    model = open_model(made.model)
    fitted = ResamplingProfile(("positions", "heads"), by=rank).fit(model, made.trusted)
    graph = GraphModel.of(model)
    found = columns(fitted, graph, whole(graph, made.fresh)).detach().numpy()
    np.testing.assert_allclose(found, fitted(made.fresh).values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "spec",
    [
        AttributionPatching(("positions", "heads")),
        RelevancePatching(("positions", "heads")),
        ResamplingProfile(("positions", "heads"), donors=2),
        GramDeviation(),
    ],
    ids=lambda spec: type(spec).__name__,
)
def test_slopes_in_parameters_are_those_of_the_signature(spec):
    """The signature's own columns, with a parameter moved a little either way, say what the slope has to be."""
    made = toy("gpt2", fresh=4)
    made.model.double().eval()
    made.model.set_attn_implementation("eager")
    model = open_model(made.model)
    fitted = spec.fit(model, made.trusted)
    graph = GraphModel.of(model)
    step = 3e-4 if not isinstance(spec, ResamplingProfile) else 3e-3
    weights = torch.randn(len(made.fresh), len(fitted.columns), generator=torch.Generator().manual_seed(0)).double()
    for path in ("transformer.h.0.mlp.c_fc.weight", "transformer.h.1.attn.c_attn.weight", "transformer.ln_f.weight"):
        value = made.model.get_parameter(path)
        total = (columns(fitted, graph, whole(graph, made.fresh)) * weights).sum()
        (slope,) = torch.autograd.grad(total, value, materialize_grads=True)  # some see no last norm
        way = torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).double()
        way /= way.norm()
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                value += sign * step * way
            sides.append(float((torch.from_numpy(fitted(made.fresh).values).double() * weights).sum()))
            with torch.no_grad():
                value -= sign * step * way
        expected = (sides[0] - sides[1]) / (2 * step)
        assert float((slope * way).sum()) == pytest.approx(expected, rel=0.03, abs=0.03 * float(slope.norm())), path


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_units_that_are_off_have_no_slope_in_a_gram_deviation_and_break_none(name):
    """The root in a Gram matrix has an infinite slope at zero, where ReLUs are off; finite differences say the rest."""
    made = toy(name, trusted=80, fresh=5)
    made.model.double().eval()
    fitted = GramDeviation().fit(open_model(made.model), made.trusted)
    graph = GraphModel.of(open_model(made.model))
    batch = whole(graph, made.fresh)
    values = batch.main.double().requires_grad_()
    weights = torch.randn(len(fitted.columns), generator=torch.Generator().manual_seed(0)).double()

    def total(main):
        return (columns(fitted, graph, batch.with_main(main)) * weights).sum()

    (slope,) = torch.autograd.grad(total(values), values)
    assert bool(torch.isfinite(slope).all())
    assert float(slope.norm()) > 0
    way = torch.randn(values.shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        sides = [float(total(values + sign * 1e-6 * way)) for sign in (1, -1)]
    assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(float((slope * way).sum()), rel=1e-3)


def test_excess_is_zero_up_to_the_median_and_rises_above():
    made = toy("mlp", trusted=200)
    made.model.eval()
    box = WhiteBox.of(detector("activations").fit(made.model, made.trusted))
    batch = whole(box.model, made.fresh)
    near, far = (box.excess(batch.with_main(size * batch.main)).detach() for size in (1.0, 30.0))
    below = box.parts(batch)[:, 0].detach() < box.centre[0]
    assert bool((near[below] == 0).all())
    assert bool(below.any())
    assert bool((far > near).all())


def test_excess_of_fishers_method_is_its_score_without_steps():
    made = toy("mlp", trusted=300)
    made.model.eval()
    fitted = Detector(parse_spec("signatures", "activations"), PerSite(combine="fisher")).fit(made.model, made.trusted)
    box = WhiteBox.of(fitted)
    batch = whole(box.model, made.fresh)
    parts = box.parts(batch).detach().numpy()
    unseen = fitted.reference.unseen
    inside = ((parts > unseen[0]) & (parts < unseen[-1])).all(1)
    assert inside.sum() > 5
    wanted = fitted.score(made.fresh)
    found = box.excess(batch).detach().numpy()
    assert np.corrcoef(found[inside], wanted[inside])[0, 1] > 0.99
    assert np.abs(found - wanted)[inside].max() < 0.2
    far = box.excess(batch.with_main(30 * batch.main)).detach().numpy()
    assert (far > found).all(), "beyond the trusted scores it still falls for who comes nearer"


def test_no_gradient_is_a_named_error():
    made = toy("mlp")
    made.model.eval()
    with pytest.raises(SpecError, match="searched"):
        WhiteBox.of(Detector(parse_spec("signatures", "gradient-norms")).fit(made.model, made.trusted)).score(
            whole(open_model(made.model), made.fresh)
        )


def test_soft_tokens_stand_in_for_their_embeddings_alone():
    made = toy("gpt2", fresh=3)
    made.model.eval()
    graph = GraphModel.of(open_model(made.model))
    rows = Inputs.of({"input_ids": torch.randint(1, 20, (3, 6), generator=torch.Generator().manual_seed(0))})
    batch = whole(graph, rows)
    own = made.model.transformer.wte.weight.detach()[batch.main]
    soft = GraphModel.of(graph)
    soft = type(graph)(**{**graph.__dict__, "soft": own, "tokens": batch.main})
    torch.testing.assert_close(soft.logits(batch), graph.logits(batch))
    moved = type(graph)(**{**graph.__dict__, "soft": 2 * own, "tokens": batch.main})
    assert not torch.allclose(moved.logits(batch), graph.logits(batch))
    # Where an edit put other tokens, their own embeddings count.
    other = batch.with_main((batch.main % 19) + 1)
    torch.testing.assert_close(moved.logits(other), graph.logits(other))


def test_a_run_with_its_graph_has_the_slopes_of_one_without():
    made = toy("gpt2")
    model = open_model(made.model)
    (batch,) = model.batches(model.inputs(made.trusted)[:4])
    # A layer's input is also where the residual stream goes on, which is no part of its slope.
    places = [Place("transformer.wte"), Place("transformer.h.1.ln_2", "input"), Place("transformer.h.1.mlp")]
    plain = model.run(batch, read=places, target=TopMargin())
    with model.quiet(), twice_differentiable(model.module):
        graph = GraphModel.of(model).run(batch, read=places, target=TopMargin())
    torch.testing.assert_close(graph.logits.detach(), plain.logits)
    for place in places:
        torch.testing.assert_close(graph.grads[place].detach(), plain.grads[place], atol=1e-5, rtol=1e-4)
