"""The keywords that the laws of references pass."""

import numpy as np

from causalmad.references import Mahalanobis, PerSite, RelativeMahalanobis, Transformed
from causalmad.testing.reference_laws import given


def test_only_what_a_fit_names_is_given():
    X = np.random.default_rng(0).normal(size=(20, 7))
    assert given(Mahalanobis(), X) == {}
    classes = given(RelativeMahalanobis(), X)["classes"]
    assert sorted(np.bincount(classes)) == [10, 10]
    whole = given(PerSite(), X)
    assert whole["groups"] == ("output", "layer 0", "layer 0", "layer 1", "layer 1", "layer 0", "layer 0")
    assert len(set(whole["names"])) == 7 and whole["untrusted"].shape == (18, 7)
    again = given(Transformed(), X)
    assert set(again) == {"untrusted", "groups", "names", "classes"}
    assert (again["untrusted"] == whole["untrusted"]).all()


def test_tables_that_are_none_get_keywords_too():
    for rows in (np.full((4, 5), np.nan), np.ones(3), [[1.0], [1.0, 2.0]], np.array([["a"] * 5] * 4), np.ones((0, 5))):
        found = given(Transformed(), rows)
        assert len(found["groups"]) == found["untrusted"].shape[1] == 5
