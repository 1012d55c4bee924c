import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from causalmad.errors import TaskError
from causalmad.tasks.matching import margins, matched, matched_test


def test_margin_is_the_log_odds_of_the_top_class():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    p = logits.double().softmax(-1).max(-1).values.numpy()
    assert margins(logits) == pytest.approx(np.log(p / (1 - p)))


def test_matched_margins_say_nothing():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(1, 1, 1500), rng.normal(0, 2, 1500)])
    assert roc_auc_score(np.repeat([0, 1], 1500), -values) > 0.6
    rows, labels = matched_test(values, 1500, 400, rng)
    assert labels.sum() == 400 == len(rows) - 400
    assert len(set(rows.tolist())) == len(rows)
    assert np.all((rows >= 1500) == labels)
    assert roc_auc_score(labels, -values[rows]) == pytest.approx(0.5, abs=0.02)
    assert 0.3 < labels[:400].mean() < 0.7  # shuffled


def test_too_few_matches_are_an_error():
    rng = np.random.default_rng(0)
    with pytest.raises(TaskError, match="have matching output margins"):
        matched(rng.normal(9, 1, 1000), rng.normal(0, 1, 1000), 400, rng)
