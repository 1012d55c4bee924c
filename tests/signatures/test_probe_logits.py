import copy

import numpy as np
import pytest
import torch

from causalmad import open_model
from causalmad.errors import FitError, SiteError
from causalmad.signatures import Activations, ProbeLogits, ProbeShift
from causalmad.signatures.probes import OTHER, Probes, _deal, _labels
from causalmad.testing.toys import toy
from tests.twins import probes as twin

MADE = toy("mlp", trusted=60, fresh=8)
PLAIN = copy.deepcopy(MADE.model).eval()
with torch.no_grad():
    PLAIN[5].bias -= PLAIN(MADE.trusted.main).mean(0)  # so that every class is somebody's answer
MODEL = open_model(PLAIN)


def test_log_odds_are_those_of_scikit_learn_and_held_out_for_trusted_inputs():
    fitted = ProbeLogits("4").fit(MODEL, MADE.trusted, seed=3)
    probes = fitted.probes
    rows = [list(MADE.trusted.digests).index(key) for key in probes.digests]
    with torch.no_grad():
        x = MADE.trusted.main[rows]
        values, labels = PLAIN[:5](x).double().numpy(), PLAIN(x).argmax(1).numpy()
        fresh, answers = PLAIN[:5](MADE.fresh.main).double().numpy(), PLAIN(MADE.fresh.main).argmax(1).numpy()
    strength = twin.chosen(values, labels, probes.folds)
    every = twin.probe(values, labels, strength)
    expected = [twin.log_odds(every, value, answer) for value, answer in zip(fresh, answers)]
    np.testing.assert_allclose(fitted(MADE.fresh).values, expected, rtol=2e-2, atol=2e-2)
    found = fitted(MADE.trusted[rows]).values
    for fold in sorted(set(probes.folds)):
        without = twin.probe(values[probes.folds != fold], labels[probes.folds != fold], strength)
        for row in np.flatnonzero(probes.folds == fold):
            expected_row = twin.log_odds(without, values[row], labels[row])
            np.testing.assert_allclose(found[row], expected_row, rtol=2e-2, atol=2e-2)


def test_trusted_inputs_look_no_surer_than_new_ones():
    made = toy("mlp", trusted=40, fresh=400)
    fitted = ProbeLogits("1").fit(MODEL, made.trusted)
    trusted, new = fitted(made.trusted).values[:, 0], fitted(made.fresh).values[:, 0]
    assert abs(np.median(trusted) - np.median(new)) < 0.5 * new.std()


def test_rare_answers_are_one_class_and_unknown_ones_are_the_least_likely():
    classes, labels = _labels(np.array([5, 5, 5, 2, 2, 9, 7]), 16)
    assert classes.tolist() == [2, 5, OTHER] and labels.tolist() == [1, 1, 1, 0, 0, 2, 2]
    classes, labels = _labels(np.array([5, 5, 5, 2, 2, 9]), 16)
    assert classes.tolist() == [2, 5] and labels.tolist() == [1, 1, 1, 0, 0, -1]
    classes, _ = _labels(np.array([5, 5, 5, 2, 2, 9, 9]), 1)
    assert classes.tolist() == [5, OTHER]
    probes = Probes(None, np.array([2, 5, OTHER]), (), (), (), None)
    assert probes.answers(torch.eye(10)[[5, 2, 0]]).tolist() == [1, 0, 2]
    probes = Probes(None, np.array([2, 5]), (), (), (), None)
    assert probes.answers(torch.eye(10)[[5, 2, 0]]).tolist() == [1, 0, -1]


def test_every_class_is_left_in_all_folds_but_its_own():
    labels = np.array([0] * 2 + [1] * 3 + [2] * 20)
    folds = _deal(labels, 0)
    for fold in range(5):
        assert set(labels[folds != fold]) == {0, 1, 2}


def test_one_answer_has_nothing_to_tell_apart():
    same = MADE.trusted[[i for i, c in enumerate(PLAIN(MADE.trusted.main).argmax(1).tolist()) if c == 0]]
    for spec in (ProbeLogits(), ProbeShift()):
        with pytest.raises(FitError, match="answers"):
            spec.fit(MODEL, same)
    with pytest.raises(FitError):
        ProbeLogits(classes=0)
    with pytest.raises(SiteError):
        ProbeLogits(sites="nowhere").fit(MODEL, MADE.trusted)


def test_columns_follow_the_layers():
    fitted = ProbeLogits().fit(MODEL, MADE.trusted)
    sites = [str(site) for site in Activations().fit(MODEL, MADE.trusted).sites]
    assert [column.site for column in fitted.columns] == [site for site in sites for _ in range(2)]
