"""Every signature of the catalogue, on every toy, through both engines."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from causalmad import open_model
from causalmad.catalogue import catalogue
from causalmad.errors import CausalmadError
from causalmad.signatures import (
    Activations,
    AttributionPatching,
    Captum,
    GradientNorms,
    RelevancePatching,
    ResamplingProfile,
)
from causalmad.testing import signature_laws as laws
from causalmad.testing.law import EXCUSED, hold
from causalmad.testing.toys import toy

ENTRIES = {entry.name: entry for entry in catalogue("signatures")}

# Options other than the defaults, each on the toy where it matters most.
VARIANTS: list[tuple[str, Any]] = [
    ("mlp", AttributionPatching(baseline="donors", normalise=True)),
    ("mlp", AttributionPatching(baseline="zero", steps=3, units=("positions", "blocks"))),
    ("gpt2", AttributionPatching(baseline="donors", steps=2, units=("heads", "mlps", "positions", "residual"))),
    ("gpt2", AttributionPatching(units=("neurons", "positions"), normalise=True, log=False)),
    ("llama", AttributionPatching()),
    ("gpt2", AttributionPatching(baseline="positions", steps=2, units=("heads", "positions", "residual"))),
    ("llama", AttributionPatching(baseline="components", components=3, units=("heads", "neurons", "positions"))),
    ("conv", AttributionPatching(baseline="components", units="positions")),
    ("llama", RelevancePatching(("heads", "mlps", "positions"), baseline="donors")),
    ("neox", RelevancePatching("residual", baseline="positions")),
    ("gpt2", RelevancePatching(("heads", "mlps"), baseline="components")),
    ("llama", GradientNorms(("heads", "mlps", "positions", "residual", "neurons"))),
    ("mlp", Captum("LayerDeepLift", sites=("1", "4"), baseline="mean")),
    ("mlp", Captum("LayerConductance", sites=("1", "4"), baseline="donors")),
    ("conv", Captum("InternalInfluence", sites="layers", steps=3)),
    ("mlp", Captum("LayerGradientXActivation")),
    ("neox", Captum("FeatureAblation", baseline="mean")),
    ("gpt2", Captum("ShapleyValueSampling", baseline="donors", donors=1, samples=2)),
    ("llama", Captum(units=("residual", "mlps"), baseline="positions", steps=2)),
    ("gpt2", ResamplingProfile(units=("residual", "mlps", "heads", "positions"), donors=2)),
    ("neox", ResamplingProfile(donors=2, by="rank", top=9)),
    ("mlp", ResamplingProfile(units=("positions", "blocks"), by="place", donors=1)),
    ("gpt2", Activations("*.h.*.attn", "all:max")),
    ("llama", Activations(("heads", "mlps"), 0)),
]


# What the laws need no more of than this.
LIGHT: dict[str, dict[str, Any]] = {
    "functional-coupling": {"draws": 6},
    "exact-ablation": {"donors": 2},
    "sparse-code": {"steps": 40},
    "captum": {"steps": 3},
    "locally-consistent-abstraction": {"steps": 40},
}
FIRST = (laws.law_rows_stand_alone, laws.law_nothing_is_left, laws.law_columns_are_named)


def spec_of(part: str) -> Any:
    """A part of the catalogue, with its defaults but for what only makes it slower."""
    return replace(ENTRIES[part].load()(), **LIGHT.get(part, {}))


def cases() -> Iterator[Any]:
    """Every part on every toy: all laws on three of them, the first laws on more and through the other engine."""
    for part in ENTRIES:
        for name in ("mlp", "conv", "gpt2", "llama", "bert"):
            for engine in ("hooks", "nnsight"):
                for law in laws.SIGNATURE_LAWS:
                    usual = engine == "hooks" and name in ("mlp", "conv", "gpt2")
                    first = law in FIRST and (engine == "hooks" or name == "gpt2")
                    marks = [] if usual or first else [pytest.mark.slow]
                    label = f"{part}-{name}-{law.__name__}-{engine}"
                    yield pytest.param(part, name, law, engine, id=label, marks=marks)


@pytest.mark.parametrize(("part", "name", "law", "engine"), cases())
def test_every_signature_keeps_every_law(part, name, law, engine):
    made = toy(name, trusted=16, fresh=7)
    hold(law, f"{part} on {name}", made.ready(spec_of(part)), made, engine)


REFUSED = sorted(key.split(" on ") for law, key in EXCUSED if law == "*" and "does not have" in EXCUSED[law, key])


@pytest.mark.parametrize(("part", "name"), REFUSED)
def test_what_does_not_apply_is_refused_before_any_work(part, name):
    made, runs = toy(name, trusted=16, fresh=7), []
    with made.model.register_forward_pre_hook(lambda *_: runs.append(1)):
        with pytest.raises(CausalmadError) as refusal:
            made.ready(spec_of(part)).fit(open_model(made.model), made.trusted, seed=0)
    assert not runs
    assert "Needed" in str(refusal.value) or "Try" in str(refusal.value)


@pytest.mark.parametrize("law", laws.SIGNATURE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(("name", "spec"), VARIANTS, ids=lambda value: str(value)[:60])
def test_with_other_options_as_well(name, spec, law):
    hold(law, type(spec).__name__, spec, toy(name, trusted=16, fresh=7))


# Whatever is exact to first order.
FIRST_ORDER: list[Any] = [
    AttributionPatching(),
    AttributionPatching(steps=3),
    RelevancePatching(),
    Captum(steps=2),
    Captum("FeatureAblation"),
    Captum("ShapleyValueSampling", samples=2),
]


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
@pytest.mark.parametrize("spec", FIRST_ORDER, ids=lambda spec: str(spec)[:50])
def test_attribution_is_exact_on_a_linear_model(spec, engine):
    laws.law_first_order_is_exact_on_a_linear_model(spec, toy("linear"), engine)


@pytest.mark.parametrize(
    "spec",
    [Activations(), AttributionPatching(steps=2), RelevancePatching(), GradientNorms(), ResamplingProfile(donors=2)],
)
@pytest.mark.parametrize("name", ["mlp", "conv", "gpt2", "llama", "neox"])
def test_both_engines_give_the_same_signatures(name, spec):
    laws.law_engines_agree(spec, toy(name, trusted=16, fresh=7))


@pytest.mark.parametrize("name", ["mlp", "conv", "gpt2"])
@pytest.mark.parametrize("spec", [Activations(), AttributionPatching(), ResamplingProfile()])
def test_the_same_batch_gives_the_same_bits_alone_and_among_others(spec, name):
    made = toy(name, trusted=16, fresh=12)
    fitted = spec.fit(open_model(made.model, batch_size=5), made.trusted)
    values = fitted(made.fresh).values
    for start in (0, 5, 10):
        np.testing.assert_array_equal(fitted(made.fresh[start : start + 5]).values, values[start : start + 5])


@pytest.mark.parametrize("part", ["donor-moments", "exact-ablation", "resampling-profile", "edge-attribution"])
def test_donors_are_named_so_that_the_reference_leaves_them_out(part):
    made = toy("gpt2", trusted=16, fresh=2)
    fitted = spec_of(part).fit(open_model(made.model), made.trusted, seed=0)
    assert fitted.state().data["donors"]
    assert fitted.donor_digests
    assert set(fitted.donor_digests) < set(made.trusted.digests)
