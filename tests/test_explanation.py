import json

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from causalmad.explanation import OWN, explain
from causalmad.references import Mahalanobis
from causalmad.references.estimators import fit_reference
from causalmad.signatures import Column, Signatures

COLUMNS = tuple(Column(name, site="layer") for name in "abcd")
TRUSTED = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
DIAGONAL = Mahalanobis("diagonal")
ROW = np.array([0.1, 6.0, -0.2, 0.0], dtype=np.float32)


def explanation(reference=DIAGONAL, row=ROW, trusted=TRUSTED, **options):
    fitted = fit_reference(reference, trusted)
    score = -float(fitted.score_samples(row[None])[0])
    known = Signatures(tuple(f"t{i}" for i in range(len(trusted))), COLUMNS, trusted)
    return explain("x", COLUMNS, row, score, 0.02, fitted, known, **options)


@pytest.mark.parametrize("reference", [Mahalanobis(), Mahalanobis(two_sided=True), KernelDensity(), GaussianMixture()])
def test_contributions_sum_to_the_score_and_name_the_odd_column(reference):
    found = explanation(reference)
    assert sum(part.amount for part in found.contributions) == pytest.approx(found.score)
    assert found.leading == "b" and found.contributions[0].column.name == "b"
    sizes = [abs(part.amount) for part in found.contributions]
    assert sizes == sorted(sizes, reverse=True)
    assert (found.method == OWN) == isinstance(reference, Mahalanobis)
    assert ("Shapley" in str(found)) != isinstance(reference, Mahalanobis)
    assert len(found.contributions) == 4


def test_values_and_trusted_means_stand_beside_the_contributions():
    for part in explanation().contributions:
        index = "abcd".index(part.column.name)
        assert part.value == pytest.approx(ROW[index])
        assert part.trusted == pytest.approx(TRUSTED[:, index].mean(), abs=1e-6)


def test_shapley_values_are_exact_where_columns_do_not_interact():
    """For a sum over columns each part is the column's own distance less that of the median, which is spread evenly."""

    class Distance:
        def fit(self, X):
            self.inner = Mahalanobis("diagonal").fit(X)
            return self

        def score_samples(self, X):
            return self.inner.score_samples(X)

    shapley = explanation(Distance())
    inner = Mahalanobis("diagonal").fit(TRUSTED)
    median = inner.contributions(np.median(TRUSTED, axis=0)[None])[0]
    expected = inner.contributions(ROW[None])[0] - median + median.sum() / 4
    for part in shapley.contributions:
        assert part.amount == pytest.approx(expected["abcd".index(part.column.name)], rel=1e-4)


def test_the_nearest_trusted_inputs_come_with_their_distances():
    found = explanation(row=TRUSTED[17], neighbours=3)
    assert found.nearest[0] == ("t17", 0.0) and len(found.nearest) == 3
    distances = np.sqrt((((TRUSTED - TRUSTED[17]) / TRUSTED.std(0)) ** 2).mean(1))
    order = np.argsort(distances)[:3]
    assert [key for key, _ in found.nearest] == [f"t{i}" for i in order]
    np.testing.assert_allclose([distance for _, distance in found.nearest], distances[order], rtol=1e-5)


def test_constant_columns_and_few_trusted_inputs_do_no_harm():
    trusted = TRUSTED[:3].copy()
    trusted[:, 2] = 1
    found = explanation(trusted=trusted)
    assert len(found.nearest) == 3 and all(np.isfinite(distance) for _, distance in found.nearest)
    assert sum(part.amount for part in found.contributions) == pytest.approx(found.score)


def test_printing_shows_the_sum_and_the_rest(capsys):
    found = explanation()
    text = str(found)
    assert "input x: score" in text and "p = 0.02" in text and "nearest trusted inputs: t" in text
    found.show(top=1)
    shown = capsys.readouterr().out
    assert "3 more columns" in shown and f"{found.score:.4g}" in shown
    data = json.loads(json.dumps(found.to_data()))
    assert data["p"] == 0.02 and data["contributions"][0]["site"] == "layer"
