import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from causalmad.calibration.multiple import fewest
from causalmad.detectors import detector
from causalmad.errors import InputsError
from causalmad.evaluation.attacks import drift, flood, poison
from causalmad.evaluation.metrics import auroc
from causalmad.inputs import Inputs
from causalmad.testing.toys import toy


@pytest.fixture(scope="module")
def made():
    toy_made = toy("mlp", trusted=900, fresh=500)
    toy_made.model.eval()
    return toy_made


def loud(inputs, size):
    return Inputs.of(size * inputs.main, blocks=inputs.blocks)


@given(some.integers(1, 40), some.integers(1, 3000), some.sampled_from(["bh", "by", "storey", "e-bh"]))
def test_a_flood_blinds_exactly_where_the_formula_says(attack, normal, method):
    """All attack inputs have the smallest p-value of 399 calibration inputs, the others are perfectly usual."""
    least = fewest(np.full(attack + normal, 1 / 400), 0.05, method)
    found = flood(np.full(attack, 1 / 400), np.ones(normal), alpha=0.05, fdr=method)
    assert found.attack == (1.0 if least is not None and attack >= least else 0.0)
    assert found.normal == 0


def test_by_itself_an_input_cannot_be_drowned():
    assert flood([1 / 400], np.ones(10**5), alpha=0.05, fdr=None).attack == 1.0


def test_decoys_buy_flags_on_normal_inputs():
    usual = (1 + np.arange(400)) / 401
    quiet, noisy = (flood([], usual, np.full(decoys, 1 / 401), alpha=0.1, fdr="bh") for decoys in (0, 400))
    assert quiet.normal == 0
    assert noisy.decoys == 1.0
    assert 15 < noisy.normal < 30  # about a twentieth of the inputs, since half of the batch is flagged


def test_a_drift_under_the_threshold_is_never_flagged_and_raises_the_alarm(made):
    fitted = detector("activations").fit(made.model, made.trusted)
    odd = loud(made.fresh[:250], 2.0)
    found = drift(fitted, made.fresh[250:], odd, rise=1 / 100)
    assert found.flagged == 0.0
    assert found.alarm is not None
    assert found.passed <= found.sent <= found.length
    asked = drift(fitted, made.fresh[250:], odd, rise=1 / 100, asks=False)
    assert asked.flagged > 0.1
    assert drift(fitted, made.fresh[:100], made.fresh[100:], rise=1 / 100, alpha=0.05, asks=False).alarm is None


def test_where_nothing_passes_there_is_no_drift(made):
    fitted = detector("activations").fit(made.model, made.trusted)
    with pytest.raises(InputsError, match="none of 50"):
        drift(fitted, made.fresh, loud(made.fresh[:50], 50), rise=0.1, alpha=0.05)


def test_poison_hides_its_like_and_a_little_of_it_is_named(made):
    draw = torch.Generator().manual_seed(0)
    odd = Inputs.of(made.fresh.main + 20 * torch.eye(12)[0] + 0.1 * torch.randn(500, 12, generator=draw))
    test = Inputs.of(torch.cat([made.fresh.main[250:], odd.main[250:]]))
    labels = np.arange(500) >= 250
    found = {
        share: poison(detector("activations"), made.model, made.trusted[:300], odd[:250], test, share=share)
        for share in (0.0, 0.02, 0.3)
    }
    area = {share: auroc(labels, one.scores) for share, one in found.items()}
    assert area[0.0] > 0.95
    assert area[0.3] < area[0.02] <= area[0.0] + 0.01
    assert found[0.02].poison == 6
    assert found[0.02].found >= 4
    assert auroc(labels, found[0.02].cleaned) >= area[0.02]
    with pytest.raises(InputsError, match="poison"):
        poison(detector("activations"), made.model, made.trusted, odd[:10], test, share=0.3)
