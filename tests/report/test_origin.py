import torch

from causalmad import Detector
from causalmad.report.origin import fingerprint, origin
from causalmad.signatures import Activations
from causalmad.testing.toys import toy


def fitted_on(weight=0.0):
    toys = toy("linear", trusted=40, fresh=3)
    with torch.no_grad():
        toys.model[0].bias[0] += weight
    fitted = Detector(Activations()).fit(toys.model, toys.trusted)
    return fitted, fitted.detect(toys.fresh, alpha=0.2), toys.fresh


def test_seed_versions_sizes_and_fingerprints_are_listed():
    fitted, detection, inputs = fitted_on()
    lines = dict(origin(detection, fitted, inputs))
    assert lines["seed"] == "0" and "Activations(" in lines["signature"] and "torch" in lines["versions at the fit"]
    assert lines["trusted inputs for the calibration"].startswith("20, ids ")
    assert lines["inputs"].startswith("3, contents ")
    assert "versions at this report" not in lines
    alone = dict(origin(detection))
    assert alone["inputs"].startswith("3, ids ") and "model fingerprint" not in alone
    assert alone["columns of the signature"] == lines["columns of the signature"] == "6"


def test_other_weights_and_other_inputs_have_other_fingerprints():
    (one, first, inputs), (other, second, _) = fitted_on(), fitted_on(0.5)
    ours, theirs = dict(origin(first, one, inputs)), dict(origin(second, other, inputs))
    assert ours["model fingerprint"] != theirs["model fingerprint"]
    assert ours["inputs"] == theirs["inputs"] != dict(origin(first, one, inputs[::-1]))["inputs"]
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])


def test_a_large_model_is_not_hashed_and_the_page_says_so(monkeypatch):
    monkeypatch.setattr("causalmad.report.origin._HASHED", 10)
    fitted, detection, _ = fitted_on()
    assert "not taken of 99 parameters" in dict(origin(detection, fitted))["model fingerprint"]
