"""The joint with every calibrator and with references that ask for more than rows: fit, detect, save, load."""

from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest

from causalmad import Detector, FittedDetector, Inputs, audit, catalogue
from causalmad.calibration import CalibrationConditional, Conformal, CrossConformal, Mondrian, Weighted, reject
from causalmad.errors import CalibrationError, FitError, InputsError, SpecError
from causalmad.explanation import OWN
from causalmad.references import Mahalanobis, PerSite, QuantumEntropy
from causalmad.references.estimators import fit_reference
from causalmad.signatures import Activations, ResamplingProfile
from causalmad.splits import by_content
from causalmad.testing.toys import toy
from tests.asking import Asking

MADE = toy("mlp", trusted=90, fresh=12)
POOL = toy("mlp", trusted=90, fresh=40).fresh[12:]
SOURCES = np.resize(["a", "b"], 200)


def named(inputs):
    return replace(inputs, columns={"source": SOURCES[: len(inputs)], "size": np.arange(len(inputs)) % 7})


CALIBRATORS = [
    Conformal(),
    CalibrationConditional("simes"),
    Mondrian("source"),
    Mondrian("size", CalibrationConditional("simes"), bins=2),
    Weighted(("source", "size")),
    CrossConformal(4),
]
REFERENCES = [Mahalanobis(), IsolationForest(n_estimators=10)]


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("calibrator", CALIBRATORS, ids=str)
def test_fit_detect_save_load(calibrator, reference, tmp_path):
    detector = Detector(Activations(), reference, calibrator)
    fitted = detector.fit(MADE.model, named(MADE.trusted), named(POOL) if detector.compares else None, seed=1)
    fresh = named(MADE.fresh)
    found = fitted.detect(fresh, alpha=0.4)
    assert ((found.p_values > 0) & (found.p_values <= 1)).all()
    np.testing.assert_array_equal(found.scores, fitted.score(fresh))
    for row, reason in enumerate(fitted.explain(fresh)[:3]):
        assert sum(part.amount for part in reason.contributions) == pytest.approx(found.scores[row])
        assert reason.p_value == found.p_values[row]
        assert (reason.method == OWN) == isinstance(reference, Mahalanobis)
    assert len(fitted.detect(fresh[:0], alpha=0.4, fdr="bh")) == 0
    fitted.save(tmp_path / "a")
    again = FittedDetector.load(tmp_path / "a", MADE.model)
    twice = again.detect(fresh, alpha=0.4)
    np.testing.assert_array_equal(twice.scores, found.scores)
    np.testing.assert_array_equal(twice.p_values, found.p_values)
    again.save(tmp_path / "b")
    for name in ("detector.json", "state.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_strata_are_those_of_the_inputs():
    fitted = Detector(Activations(), calibrator=Mondrian("source")).fit(MADE.model, named(MADE.trusted))
    fresh = named(MADE.fresh)
    scores = fitted.score(fresh)
    for source, one in fitted.calibrator.strata.items():
        rows = fresh.columns["source"] == source
        np.testing.assert_array_equal(fitted.detect(fresh, 0.4).p_values[rows], one.p_values(scores[rows]))
    with pytest.raises(InputsError, match="no covariate 'source'"):
        fitted.detect(MADE.fresh, 0.4)


def test_the_predicted_class_is_a_stratum():
    fitted = Detector(Activations(), calibrator=Mondrian(), calibration_share=0.6).fit(MADE.model, MADE.trusted)
    with torch.no_grad():
        classes = set(MADE.model.eval()(MADE.trusted.main).argmax(-1).tolist())
    MADE.model.train()
    assert set(fitted.calibrator.strata) <= set(map(str, classes))


def test_cross_conformal_scores_every_held_out_input_by_a_reference_that_has_not_seen_it():
    fitted = Detector(Activations(), calibrator=CrossConformal(3)).fit(MADE.model, MADE.trusted, seed=2)
    ids = fitted.provenance["ids"]
    assert len(ids["signature"]) == 30 and len(ids["calibration"]) == 60 == fitted.calibrator.count
    assert len(ids["reference"]) == 90 and list(fitted.trusted.ids) == ids["reference"]
    folds, values = fitted.context["folds"], fitted.trusted.values
    assert sorted(np.unique(folds, return_counts=True)[1]) == [20, 20, 20, 30]
    for fold, own in enumerate(fitted.calibrator.folds):
        reference = fit_reference(Mahalanobis(), values[folds != fold])
        np.testing.assert_allclose(np.sort(-reference.score_samples(values[folds == fold])), own, rtol=1e-9)
    each = np.stack([-one.score_samples(fitted.signature(MADE.fresh).values) for one in fitted.reference.members], 1)
    np.testing.assert_allclose(fitted.score(MADE.fresh), each.mean(axis=1))
    count = sum((own[None] >= each[:, [k]]).sum(axis=1) for k, own in enumerate(fitted.calibrator.folds))
    np.testing.assert_array_equal(fitted.detect(MADE.fresh, 0.1).p_values, (1 + count) / 61)


def test_copies_share_a_fold():
    doubled = Inputs.of(torch.cat([MADE.trusted.main, MADE.trusted.main[:30]]))
    fitted = Detector(Activations(), calibrator=CrossConformal(3)).fit(MADE.model, doubled)
    by_id = dict(zip(doubled.ids, doubled.digests, strict=True))
    seen: dict = {}
    for key, fold in zip(fitted.trusted.ids, fitted.context["folds"], strict=True):
        assert seen.setdefault(by_id[key], fold) == fold


def test_weights_need_untrusted_inputs():
    with pytest.raises(FitError, match="Weighted weighs by how untrusted inputs differ"):
        Detector(Activations(), calibrator=Weighted()).fit(MADE.model, MADE.trusted)


@pytest.fixture
def asking(monkeypatch):
    """``asking`` as a plug-in's reference."""
    monkeypatch.setattr(
        catalogue,
        "entry_points",
        lambda group: [EntryPoint("asking", "tests.asking:Asking", group)] if group == "causalmad.references" else [],
    )
    catalogue.catalogue.cache_clear()
    yield
    catalogue.catalogue.cache_clear()


@pytest.mark.usefixtures("asking")
@pytest.mark.parametrize("calibrator", [Conformal(), CrossConformal(3)], ids=str)
def test_references_get_what_their_fit_names_and_are_fitted_again_on_load(calibrator, tmp_path):
    fitted = Detector(Activations(), Asking(), calibrator).fit(MADE.model, MADE.trusted, POOL, seed=3)
    known = getattr(fitted.reference, "members", [fitted.reference])[-1].known
    columns = fitted.signature.columns
    assert known["names"] == tuple(column.name for column in columns) and known["seed"] == 3
    assert known["groups"] == tuple(column.block or column.site for column in columns)
    np.testing.assert_array_equal(known["untrusted"], fitted.signature(POOL[by_content(POOL)]).values)
    kept = fitted.context.get("folds", np.full(len(fitted.trusted), -1)) != 2  # all but the last fold
    rows = [MADE.trusted.ids.index(key) for key, one in zip(fitted.trusted.ids, kept, strict=True) if one]
    with torch.no_grad():
        expected = MADE.model.eval()(MADE.trusted.main[rows]).argmax(-1)
    MADE.model.train()
    assert known["classes"].tolist() == expected.tolist()

    fitted.save(tmp_path / "d")
    again = FittedDetector.load(tmp_path / "d", MADE.model)
    np.testing.assert_array_equal(again.score(MADE.fresh), fitted.score(MADE.fresh))
    np.testing.assert_array_equal(again.detect(MADE.fresh, 0.4).p_values, fitted.detect(MADE.fresh, 0.4).p_values)
    loaded = getattr(again.reference, "members", [again.reference])[-1].known
    assert loaded["groups"] == known["groups"]
    np.testing.assert_array_equal(loaded["classes"], known["classes"])


def test_references_that_cannot_do_without_untrusted_inputs_are_refused_before_any_work():
    class Never(Activations):
        def fit(self, model, trusted, seed=0):
            raise AssertionError("no work was to be done")

    with pytest.raises(FitError, match="Asking compares with untrusted inputs, and there are none"):
        Detector(Never(), Asking()).fit(MADE.model, MADE.trusted)


def test_inputs_of_the_pool_are_told_from_trusted_ones():
    class Comparing:
        def fit(self, X, untrusted=None):
            return Mahalanobis().fit(X)

    fitted = Detector(Activations(), Comparing()).fit(MADE.model, MADE.trusted, POOL)
    mixed = Inputs.of(torch.cat([MADE.fresh.main, POOL.main[:2], MADE.trusted.main[:1]]))
    found = fitted.detect(mixed, alpha=0.4)
    assert found.provenance["also trusted"] == mixed.ids[-1:] and found.provenance["also untrusted"] == mixed.ids[12:14]
    assert "2 are of the untrusted pool" in " ".join(str(found).split())
    plain = Detector(Activations(), calibrator=Weighted(("source",)))
    weighed = plain.fit(MADE.model, named(MADE.trusted), named(POOL))
    assert weighed.detect(named(mixed), alpha=0.9).provenance["also untrusted"] == ()


@pytest.mark.parametrize("pool", [POOL, np.zeros(len(MADE.trusted))], ids=["inputs", "labels"])
@pytest.mark.parametrize(
    "reference", [Mahalanobis(), IsolationForest(n_estimators=10), PerSite(), PerSite(PerSite(Mahalanobis()))]
)
def test_untrusted_inputs_at_which_nothing_looks_are_refused(reference, pool):
    detector = Detector(Activations(), reference)
    assert not detector.compares
    for fit in (detector.fit, lambda *args: audit(detector, *args)):
        with pytest.raises(SpecError, match=r"neither .* nor Conformal looks"):
            fit(MADE.model, MADE.trusted, pool)
    assert Detector(Activations(), PerSite(QuantumEntropy())).compares
    assert Detector(Activations(), calibrator=Weighted(("source",))).compares


@pytest.mark.parametrize("method", ["bh", "by", "storey", "e-bh"])
def test_many_inputs_at_once(method):
    fitted = Detector(Activations()).fit(MADE.model, MADE.trusted)
    far = Inputs.of(torch.cat([MADE.fresh.main, MADE.fresh.main * 30]))
    found = fitted.detect(far, alpha=0.3, fdr=method)
    np.testing.assert_array_equal(found.flags, reject(found.p_values, 0.3, method))
    assert found.fdr == method and f"false discovery rate 0.3 ({method})" in str(found)
    assert [row["p_adjusted"] for row in found.rows()] == found.adjusted.tolist()
    with pytest.raises(CalibrationError, match="no method 'bhh'"):
        fitted.detect(far, alpha=0.3, fdr="bhh")


def test_what_the_calibration_inputs_rule_out_is_said():
    fitted = Detector(Activations()).fit(MADE.model, MADE.trusted)
    calm = fitted.detect(MADE.fresh, alpha=0.05, fdr="bh")
    assert "unless at least 6 of them" in calm.note  # 45 calibration inputs: 12/46/0.05 = 5.2
    assert calm.note in " ".join(str(calm).split())
    assert "ever" in fitted.detect(MADE.fresh, alpha=0.05, fdr="e-bh").note
    assert fitted.detect(MADE.fresh, alpha=0.05).note == ""


def test_repair_compares_like_with_like():
    profile = Detector(ResamplingProfile(donors=2), calibrator=CrossConformal(3))
    fitted = profile.fit(MADE.model, MADE.trusted)
    odd = Inputs.of(MADE.fresh.main[:1] * 20, blocks=MADE.fresh.blocks)
    found = fitted.repair(odd, MADE.trusted, alpha=0.1)
    assert found.before == fitted.detect(odd, 0.1).p_values[0]
