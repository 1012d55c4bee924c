import numpy as np
import pytest
import torch
from sklearn.neighbors import KernelDensity

import causalmad as cm
from causalmad import Detector, Inputs
from causalmad.auditing import heavy_tailed, tail_p_values
from causalmad.calibration.multiple import adjusted
from causalmad.errors import FitError
from causalmad.references import PerSite
from causalmad.signatures import Activations, AttributionPatching
from causalmad.testing.toys import toy

MADE = toy("mlp", trusted=100)


@pytest.mark.parametrize("detector", [Detector(Activations()), Detector(Activations(), KernelDensity())])
def test_planted_inputs_are_named(detector):
    rows = MADE.trusted.main.clone()
    rows[[7, 50]] *= 8
    inputs = Inputs.of(rows, ids=[f"t{i}" for i in range(100)], blocks=MADE.trusted.blocks)
    found = cm.audit(detector, MADE.model, inputs, q=0.1)
    assert {"t7", "t50"} <= set(found.unlike) and len(found.unlike) <= 5
    text = " ".join(str(found).split())
    assert "of 100 trusted inputs unlike the rest" in text and "t7" in text
    assert found.ids == inputs.ids and sorted(np.bincount(found.folds)) == [20] * 5


def test_donors_are_left_out_of_what_is_normal():
    found = cm.audit(Detector(AttributionPatching(baseline="donors")), MADE.model, MADE.trusted)
    assert np.isfinite(found.scores).all() and len(found.unlike) <= 5


def test_nothing_is_named_among_inputs_that_are_all_alike():
    found = cm.audit(Detector(Activations()), MADE.model, MADE.trusted, q=0.05)
    assert len(found.unlike) <= 2 and "Audit(" in repr(found)
    assert not found.apart and "apart" not in repr(found) + str(found)


def test_a_fifth_of_another_kind_is_reported_as_a_group():
    """They are no outliers: the reference has learned them."""
    bad = torch.randn(30, 12, generator=torch.Generator().manual_seed(4)) + 6
    good = torch.randn(20, 12, generator=torch.Generator().manual_seed(5))
    rows = torch.cat([MADE.trusted.main, good, bad])
    names = [*(f"t{i}" for i in range(120)), *(f"bad{i}" for i in range(30))]
    found = cm.audit(Detector(Activations()), MADE.model, Inputs.of(rows, ids=names, blocks=MADE.trusted.blocks))
    assert len(set(found.apart) & set(names[120:])) > 20 and len(set(found.apart) - set(names[120:])) < 3
    assert found.group_p_value < 0.01 and found.apart[0] in str(found)
    assert f"{len(found.apart)} apart as a group" in repr(found) and "stand apart" in str(found)


def test_a_copy_does_not_vouch_for_its_original():
    rows = torch.cat([MADE.trusted.main, MADE.trusted.main[:1] * 8, MADE.trusted.main[:1] * 8])
    found = cm.audit(Detector(Activations()), MADE.model, rows)
    assert found.folds[-1] == found.folds[-2]
    assert set(found.ids[-2:]) <= set(found.unlike)


@pytest.mark.parametrize("name", ["recommended", "activations"])
def test_the_order_of_the_inputs_plays_no_part(name):
    rows = torch.cat([MADE.trusted.main[:40], MADE.trusted.main[:5]])
    came = Inputs.of(rows, ids=[f"t{i}" for i in range(45)], blocks=MADE.trusted.blocks)
    shuffle = np.random.default_rng(0).permutation(45)
    first, again = (cm.audit(cm.detectors.detector(name), MADE.model, inputs) for inputs in (came, came[shuffle]))
    assert again.ids == tuple(first.ids[row] for row in shuffle)
    for what in ("scores", "folds", "p_values", "members"):
        np.testing.assert_array_equal(getattr(first, what)[shuffle], getattr(again, what))
    assert first.group_p_value == again.group_p_value


def test_the_tail_is_conservative_on_squared_distances():
    random = np.random.default_rng(0)
    for df in (3, 30):
        p = np.concatenate([tail_p_values(random.chisquare(df, 200)) for _ in range(200)])
        for level in (0.001, 0.01, 0.1):
            assert (p <= level).mean() <= 1.6 * level
    same = tail_p_values(np.ones(9))
    assert (same == 1).all()
    rising = tail_p_values(np.sort(random.normal(size=50)))
    assert (np.diff(rising) <= 1e-12).all()


def test_too_few_are_named():
    with pytest.raises(FitError, match="10 distinct trusted inputs in 5 folds"):
        cm.audit(Detector(Activations()), MADE.model, MADE.trusted[:10])


def harmonic(random, count):
    """Scores of three views whose p-values are combined by their harmonic mean."""
    return (1 / np.ceil(random.random((count, 3)) * 600) * 601).mean(1)


def test_a_heavy_tail_is_told_from_that_of_a_distance():
    random = np.random.default_rng(0)
    heavy = [heavy_tailed([harmonic(random, 180) for _ in range(5)]) for _ in range(40)]
    light = [heavy_tailed([random.chisquare(df, 180) for _ in range(5)]) for df in (3, 10, 100) for _ in range(40)]
    assert np.mean(heavy) > 0.9
    assert np.mean(light) < 0.05
    assert not heavy_tailed([np.ones(9)])
    assert not heavy_tailed([np.array([-1.0, 2.0, 300.0])])


def test_logarithms_of_a_heavy_tail_name_hardly_any_sound_input():
    """Judged as they are, they would name every seventeenth."""
    random = np.random.default_rng(1)
    scores = np.concatenate([harmonic(random, 180) for _ in range(40)])
    assert np.mean(adjusted(tail_p_values(scores), "bh") <= 0.1) > 0.03
    assert np.mean(adjusted(tail_p_values(np.log(scores)), "bh") <= 0.1) < 0.005


def test_views_whose_p_values_are_combined_are_audited_by_their_scores():
    ranked, plain = (
        cm.audit(Detector(Activations(), PerSite(combine=combine)), MADE.model, MADE.trusted)
        for combine in ("harmonic", "mean")
    )
    np.testing.assert_array_equal(ranked.scores, plain.scores)
    assert (ranked.scores < 0).any()
