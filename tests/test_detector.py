import contextlib
import importlib
import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import KernelDensity

from causalmad import Detector, FittedDetector, Inputs, Monitor, audit
from causalmad.calibration import CalibrationConditional, Conformal, CrossConformal, Mondrian, Weighted
from causalmad.catalogue import catalogue
from causalmad.config import require_options
from causalmad.errors import CalibrationError, CausalmadError, FitError, InputsError, ModelError, SiteError, SpecError
from causalmad.references import Mahalanobis, PerSite, TrustedVersusUntrusted
from causalmad.signatures import Activations, AttributionPatching, Concat, ResamplingProfile
from causalmad.signatures.base import Column, Signatures
from causalmad.testing.toys import toy
from causalmad.testing.traces import failing, untouched
from tests.stub_task import Stub

PROFILE = Detector(ResamplingProfile(donors=2))


def contents(inputs, ids):
    by_id = dict(zip(inputs.ids, inputs.digests, strict=True))
    return {by_id[key] for key in ids}


@pytest.mark.parametrize(
    "detector", [PROFILE, Detector(Activations()), Detector(AttributionPatching(baseline="donors"))]
)
def test_the_parts_of_the_trusted_inputs_share_no_content(detector):
    made = toy("mlp", trusted=40)
    doubled = Inputs.of(torch.cat([made.trusted.main, made.trusted.main[:15]]), blocks=made.trusted.blocks)
    fitted = detector.fit(made.model, doubled, seed=1)
    ids = fitted.provenance["ids"]
    assert contents(doubled, ids["signature"] + ids["calibration"]) == set(doubled.digests)
    assert len(ids["calibration"]) == len(contents(doubled, ids["calibration"]))
    assert not contents(doubled, ids["signature"]) & contents(doubled, ids["calibration"])
    assert set(ids["reference"]) <= set(ids["signature"])
    donors = set(getattr(fitted.signature, "donor_digests", ()))
    assert not donors & contents(doubled, ids["reference"])
    assert donors | contents(doubled, ids["reference"]) == contents(doubled, ids["signature"])
    assert list(fitted.trusted.ids) == ids["reference"]
    assert len(fitted.calibrator.scores) == len(ids["calibration"])
    assert fitted.seen == set(doubled.digests)


def test_the_split_does_not_depend_on_the_order_of_the_inputs_and_does_on_the_seed():
    made = toy("mlp", trusted=30)
    shuffled = made.trusted[np.random.default_rng(0).permutation(30)]
    held = [
        set(Detector(Activations()).fit(made.model, inputs, seed=seed).provenance["ids"]["calibration"])
        for inputs, seed in ((made.trusted, 0), (shuffled, 0), (made.trusted, 1))
    ]
    assert held[0] == held[1] != held[2]


def test_what_comes_with_the_inputs_comes_along_whatever_their_order():
    """Columns, ids and copies of the trusted inputs, and an unlabelled pool: p-values have the same bits."""
    made = toy("mlp", trusted=80, fresh=20)
    copies = torch.cat([made.trusted.main, made.trusted.main[:30]])
    kind = [("one", "two")[row % 2] for row in range(110)]
    named = Inputs.of(copies, ids=[f"t{i}" for i in range(110)], columns={"kind": kind}, blocks=made.trusted.blocks)
    fresh = Inputs.of(made.fresh.main, columns={"kind": ["one", "two"] * 10}, blocks=made.fresh.blocks)
    random = np.random.default_rng(1)
    for calibrator in (Mondrian("kind"), Weighted(("kind",))):
        for reference in (PerSite(Mahalanobis("low-rank", two_sided=True, rank=3)), TrustedVersusUntrusted()):
            detector = Detector(Activations(), reference, calibrator)
            pool = (fresh, fresh[random.permutation(20)]) if detector.compares else (None, None)
            first = detector.fit(made.model, named, pool[0], seed=2)
            again = detector.fit(made.model, named[random.permutation(110)], pool[1], seed=2)
            for one, other in zip(first.measure(*measured(first, fresh)), again.measure(*measured(again, fresh))):
                np.testing.assert_array_equal(one, other)
            assert first.provenance["ids"] == again.provenance["ids"]
            own = named[[named.ids.index(key) for key in first.trusted.ids]]
            np.testing.assert_allclose(first.trusted.values, first.signature(own).values, rtol=1e-5, atol=1e-6)


def measured(fitted, inputs):
    return fitted.signature(inputs), inputs


@pytest.mark.parametrize(
    ("calibrator", "count"), [(Conformal(), 30), (CalibrationConditional(), 30), (CrossConformal(), 40)], ids=str
)
def test_copies_are_no_further_calibration_inputs(calibrator, count):
    """60 contents ten times each; new inputs are drawn as the contents were."""
    model, flagged = toy("mlp").model, []
    for seed in range(12):
        draw = torch.Generator().manual_seed(seed)
        contents, fresh = torch.randn(60, 12, generator=draw), torch.randn(300, 12, generator=draw)
        fitted = Detector(Activations(("1",)), calibrator=calibrator).fit(model, contents.repeat(10, 1), seed=seed)
        assert fitted.calibrator.smallest >= 1 / (count + 1)
        with pytest.raises(CalibrationError, match="of each content one counts"):
            fitted.detect(fresh, alpha=0.01)
        flagged.append((fitted.detect(fresh, alpha=0.2).p_values <= 0.05).mean())
    assert np.mean(flagged) <= 0.05 + 3 * max(np.std(flagged), 0.02) / np.sqrt(12)


@pytest.mark.parametrize(("share", "count"), [(0.5, 20), (0.25, 10), (0.8, 32)])
def test_the_calibration_share_is_kept(share, count):
    made = toy("mlp", trusted=40)
    fitted = Detector(Activations(), calibration_share=share).fit(made.model, made.trusted)
    assert len(fitted.calibrator.scores) == count


def test_scores_p_values_and_flags_belong_together():
    made = toy("mlp", trusted=60, fresh=20)
    fitted = Detector(Activations()).fit(made.model, made.trusted, seed=2)
    far = Inputs.of(torch.cat([made.fresh.main, made.fresh.main * 30]), blocks=made.fresh.blocks)
    detection = fitted.detect(far, alpha=0.05)
    values = fitted.signature(far).values
    np.testing.assert_array_equal(detection.scores, -fitted.reference.score_samples(values))
    np.testing.assert_array_equal(detection.scores, fitted.score(far))
    np.testing.assert_array_equal(detection.p_values, fitted.calibrator.p_values(detection.scores))
    np.testing.assert_array_equal(detection.flags, detection.p_values <= 0.05)
    assert detection.ids == far.ids and detection.flags[20:].all() and detection.flags[:20].mean() < 0.3
    assert fitted.detect(far, alpha=0.5).flags.sum() >= detection.flags.sum()


def test_inputs_that_are_trusted_as_well_are_listed():
    made = toy("mlp", trusted=40, fresh=5)
    fitted = Detector(Activations()).fit(made.model, made.trusted)
    mixed = Inputs.of(torch.cat([made.fresh.main, made.trusted.main[:3]]))
    assert fitted.detect(mixed, alpha=0.1).provenance["also trusted"] == made.trusted.ids[:3]
    assert fitted.detect(made.fresh, alpha=0.1).provenance["also trusted"] == ()


def test_scikit_learn_estimators_are_references_as_they_are():
    made = toy("mlp", trusted=40)
    estimator = IsolationForest(n_estimators=10)
    first = Detector(Activations(), estimator).fit(made.model, made.trusted, seed=5)
    again = Detector(Activations(), IsolationForest(n_estimators=10)).fit(made.model, made.trusted, seed=5)
    assert not hasattr(estimator, "estimators_")
    np.testing.assert_array_equal(first.score(made.fresh), again.score(made.fresh))
    assert Detector(Activations(), KernelDensity()).fit(made.model, made.trusted).score(made.fresh).shape == (12,)


class Offline:
    """A reference that compares with unlabelled rows, and is fitted in place as scikit-learn's estimators are."""

    shapes: ClassVar = []

    def fit(self, X, untrusted=None):
        self.fitted_ = Mahalanobis().fit(X)
        self.shapes.append(None if untrusted is None else np.asarray(untrusted).shape)
        return self.fitted_


def test_untrusted_inputs_reach_references_that_take_them():
    made = toy("mlp", trusted=40, fresh=7)
    reference = Offline()
    Detector(Activations(), reference).fit(made.model, made.trusted, made.fresh)
    Detector(Activations(), reference).fit(made.model, made.trusted)
    assert Offline.shapes == [(7, 32), None]
    assert not vars(reference)  # a copy was fitted


def test_strings_arrays_dicts_and_inputs_are_taken_alike():
    made = toy("gpt2", trusted=24, fresh=4)
    fitted = Detector(Activations()).fit(made.model, made.trusted)
    rows = [{"input_ids": row.tolist()} for row in made.fresh.main]
    np.testing.assert_array_equal(fitted.score(rows), fitted.score(made.fresh))
    vectors = toy("mlp", trusted=24)
    fitted = Detector(Activations()).fit(vectors.model, vectors.trusted.main.numpy())
    np.testing.assert_array_equal(fitted.score(vectors.fresh.main), fitted.score(vectors.fresh.main.double().numpy()))


def test_what_cannot_be_fitted_is_named_and_leaves_nothing():
    made = toy("mlp", trusted=40)
    bad = made.trusted.main.clone()
    bad[3, 2] = float("nan")
    cases = {
        "3 distinct trusted inputs": (FitError, made.trusted[:3]),
        "no inputs at all": (InputsError, torch.zeros(0, 12)),
        "1 distinct trusted input": (FitError, made.trusted.main[:1].expand(30, 12)),
        "NaN": (CausalmadError, bad),
    }
    for text, (error, trusted) in cases.items():
        with untouched(made.model, text), pytest.raises(error, match=text):
            Detector(Activations()).fit(made.model, trusted)
    with pytest.raises(FitError, match="2 of them for calibration"):
        PROFILE.fit(made.model, made.trusted[:4])
    with pytest.raises(FitError, match="every trusted input is a donor"):
        PROFILE.fit(made.model, made.trusted[:6])


def test_a_large_calibration_share_never_takes_every_input():
    made = toy("mlp", trusted=4)
    for share in (0.01, 0.99):
        try:
            fitted = Detector(Activations(), calibration_share=share).fit(made.model, made.trusted)
        except FitError:
            continue
        assert fitted.provenance["ids"]["reference"] and fitted.provenance["ids"]["calibration"]


def test_odd_parts_are_named():
    with pytest.raises(SpecError, match="calibration_share=1"):
        Detector(Activations(), calibration_share=1.0)
    with pytest.raises(SpecError, match="with its brackets"):
        Detector(Activations)
    with pytest.raises(SpecError, match="has no fit"):
        Detector("activations")
    made = toy("mlp", trusted=20)
    with pytest.raises(SpecError):
        Detector(Activations(), Mahalanobis).fit(made.model, made.trusted)


def test_bad_inputs_to_score_are_named_and_leave_nothing():
    made = toy("mlp", trusted=40)
    fitted = Detector(Activations()).fit(made.model, made.trusted)
    with untouched(made.model, "an alpha out of reach"), pytest.raises(CalibrationError, match="at least 99"):
        fitted.detect(made.fresh, alpha=0.01)
    with untouched(made.model, "NaN"), pytest.raises(CausalmadError, match="NaN"):
        fitted.score(torch.full((2, 12), float("nan")))
    with untouched(made.model, "another width"), pytest.raises(ModelError, match="mat1 and mat2"):
        fitted.score(torch.zeros(2, 5))
    with (
        failing(made.model, 0),
        untouched(made.model, "a failure"),
        pytest.raises(ModelError, match="raised ToyFailure"),
    ):
        Detector(ResamplingProfile(donors=2)).fit(made.model, made.trusted)


def test_a_detector_is_reached_from_the_top():
    assert FittedDetector.load is not None and Detector.__module__ == "causalmad.detector"


def test_scores_hardly_depend_on_the_other_inputs():
    made = toy("gpt2", trusted=40, fresh=9)
    for detector in (PROFILE, Detector(Activations()), Detector(AttributionPatching())):
        fitted = detector.fit(made.model, made.trusted)
        one_by_one = np.concatenate([fitted.score(made.fresh[i]) for i in range(9)])
        np.testing.assert_allclose(fitted.score(made.fresh), one_by_one, rtol=1e-4)


@pytest.mark.parametrize("how", ["step", "half", "loaded"])
def test_weights_that_changed_after_the_fit_are_noticed(how, tmp_path):
    made = toy("mlp", trusted=40)
    fitted = Detector(Activations()).fit(made.model, made.trusted)
    if how == "loaded":
        fitted.save(tmp_path / "saved")
        fitted = FittedDetector.load(tmp_path / "saved", made.model)
    before = fitted.score(made.fresh)
    # Moving values about changes nothing.
    made.model.load_state_dict({name: value.clone() for name, value in made.model.state_dict().items()})
    np.testing.assert_array_equal(fitted.score(made.fresh), before)
    if how == "half":
        made.model.half()
    else:
        loss = made.model(made.fresh.main).square().sum()
        optimizer = torch.optim.SGD(made.model.parameters(), lr=1e-3)
        loss.backward()
        optimizer.step()
    for work in (fitted.score, fitted.detect, fitted.explain, Monitor(fitted, alpha=0.2)):
        with pytest.raises(ModelError, match="have changed since the detector was fitted"):
            work(made.fresh)
    with pytest.raises(ModelError, match="have changed"):
        fitted.save(tmp_path / "detector")
    assert not (tmp_path / "detector").exists()


@pytest.mark.parametrize("part", [{"signature": Activations}, {"signature": Activations(), "calibrator": Mondrian}])
def test_a_part_without_brackets_is_told_where_it_lives(part):
    with pytest.raises(SpecError, match="has no fit") as caught:
        Detector(**part)
    (said,) = re.findall(r"causalmad\.\w+", caught.value.tries[0])
    assert said == ("causalmad.calibration" if "calibrator" in part else "causalmad.signatures")
    importlib.import_module(said)


@pytest.mark.parametrize("seed", [None, -1, "a", 1.5])
def test_a_seed_is_a_whole_number(seed):
    made = toy("mlp", trusted=30)
    for fit in (Detector(Activations()).fit, lambda *args, seed: audit(Detector(Activations()), *args, seed=seed)):
        with pytest.raises(SpecError, match=r"^seed="):
            fit(made.model, made.trusted, seed=seed)


def test_a_seed_may_be_one_of_numpy(tmp_path):
    made = toy("mlp", trusted=30)
    fitted = Detector(Activations()).fit(made.model, made.trusted, seed=np.int64(3))
    np.testing.assert_array_equal(
        fitted.score(made.fresh), Detector(Activations()).fit(made.model, made.trusted, seed=3).score(made.fresh)
    )
    fitted.save(tmp_path / "det")
    assert type(fitted.provenance["seed"]) is int


@pytest.mark.parametrize("part", [Mahalanobis(), IsolationForest()])
def test_a_reference_in_the_signatures_place_is_told(part):
    with pytest.raises(SpecError, match=r"whose fit.* takes no \(model, trusted, seed\)"):
        Detector(part)


class Gives:
    """A signature of somebody's own, whose fit returns what it is told to."""

    def __init__(self, given):
        self.given = given

    def fit(self, model, trusted, seed=0):
        return self.given


class Rows:
    """A fitted signature whose call returns what it is told to."""

    columns = (Column("a"), Column("b"))

    def __init__(self, given):
        self.given = given

    def __call__(self, inputs):
        return self.given(inputs)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "Gives.fit gave a NoneType"),
        (lambda inputs: np.zeros((len(inputs), 2)), "Gives.fit gave a function"),
        (Rows(lambda inputs: None), "Gives gave a NoneType for"),
        (Rows(lambda inputs: np.zeros((len(inputs), 2))), "Gives gave a ndarray for"),
        (
            Rows(lambda inputs: Signatures(inputs.ids, Rows.columns, np.zeros((len(inputs), 3), np.float32))),
            r"Gives gave a Signatures with values \(\d+, 3\) for",
        ),
    ],
)
def test_a_signature_of_ones_own_that_gives_something_else_is_told(given, said):
    made = toy("mlp", trusted=30)
    with pytest.raises(SpecError, match=said):
        Detector(Gives(given)).fit(made.model, made.trusted)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Detector(Activations(), calibration_share="0.3"), "calibration_share='0.3'"),
        (lambda: Detector(AttributionPatching(None)), r"AttributionPatching\(units=None\)"),
        (lambda: Detector(ResamplingProfile(donors="4")), r"ResamplingProfile\(donors='4'\)"),
        (lambda: Concat((Activations(), ResamplingProfile(donors=None))), r"ResamplingProfile\(donors=None\)"),
        (lambda: Detector(Activations(positions=None)), r"Activations\(positions=None\)"),
        (lambda: Detector(Activations(), PerSite(Mahalanobis(rank="8"))), r"Mahalanobis\(rank='8'\)"),
        (lambda: Detector(Activations(), calibrator=CalibrationConditional(delta="x")), "delta='x'"),
    ],
)
def test_an_option_of_another_kind_is_told_when_the_detector_is_made(make, said):
    with pytest.raises(SpecError, match=said) as caught:
        make()
    assert caught.value.needed


def test_every_part_with_its_usual_options_can_be_in_a_detector():
    for kind in ("signatures", "references", "calibrators", "targets"):
        for entry in catalogue(kind):
            with contextlib.suppress(TypeError):  # a part that cannot be made from nothing
                require_options(entry.load()(**entry.defaults))


def test_a_module_in_place_of_its_path_is_told_its_path():
    made = toy("mlp", trusted=30)
    for sites in (made.model[3], [made.model[3]]):
        with pytest.raises(SiteError, match="a Linear is no site") as caught:
            Detector(Activations(sites)).fit(made.model, made.trusted)
        assert caught.value.tries == ("'3'",)


def test_what_is_fitted_and_what_is_not_are_told_apart():
    made = toy("mlp", trusted=30)
    detector = Detector(Activations())
    with pytest.raises(SpecError, match="a Detector cannot watch a stream"):
        Monitor(detector)
    with pytest.raises(SpecError, match="a FittedDetector to audit with") as caught:
        audit(detector.fit(made.model, made.trusted), made.model, made.trusted)
    assert "fitted.spec" in caught.value.tries[0]


def test_what_is_large_has_a_short_name():
    made = toy("gpt2", trusted=60)
    fitted = Detector(Activations()).fit(made.model, made.trusted)
    found = fitted.signature(made.trusted)
    assert repr(made.trusted) == "Inputs(60 inputs: 'input_ids' int64 (3 to 8))"
    assert repr(toy("mlp", trusted=30).trusted) == (
        "Inputs(30 inputs: 0 float32 (12,); blocks 'left', 'middle', 'idle')"
    )
    assert repr(found).startswith(f"Signatures(60 inputs, {len(found.columns)} columns: transformer")
    assert "\n" not in repr(found) and len(repr(found)) < 200
    assert repr(Inputs.of({"input_ids": [[1, 2]]})[:0]) and repr(found.__class__((), (), np.zeros((0, 0))))
    assert repr(Stub().load(3)) == (
        "TaskData(stub[shift=4], seed 3, Sequential: 240 trusted, 60 test (30 anomalous), 100 normal)"
    )
