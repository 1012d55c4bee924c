import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from causalmad.calibration import Conformal, Weighted
from causalmad.calibration.weighted import FittedWeighted
from causalmad.errors import CalibrationError, SpecError, StoreError
from tests.twins import calibration as twin

draw = np.random.default_rng(0)
LENGTHS, SCORES = draw.normal(10, 2, size=300), draw.normal(size=300)
POOL = {"length": draw.normal(12, 2, size=200)}


def fitted(**options):
    return Weighted(**options).fit(SCORES, covariates={"length": LENGTHS}, untrusted=POOL)


def test_equals_the_formula_with_the_weights_of_the_regression():
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    mean, deviation = LENGTHS.mean(), LENGTHS.std()
    table = (np.concatenate([LENGTHS, POOL["length"]]) - mean) / deviation
    model.fit(table[:, None], np.repeat([0, 1], [300, 200]))

    def weight(length):
        share = model.predict_proba([[(length - mean) / deviation]])[0, 1]
        return share / (1 - share)

    new, lengths = np.array([0.0, 2.0, 9.0]), np.array([8.0, 12.0, 14.0])
    found = fitted().p_values(new, covariates={"length": lengths})
    weights = [weight(length) for length in LENGTHS]
    expected = [twin.weighted(SCORES, weights, s, weight(x)) for s, x in zip(new, lengths, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_without_a_difference_it_is_conformal_and_the_effective_size_is_all():
    same = {"length": np.full(300, 5)}
    plain = Weighted().fit(SCORES, covariates=same, untrusted={"length": np.full(9, 5)})
    new = np.linspace(-3, 3, 20)
    expected = Conformal().fit(SCORES).p_values(new).tolist()
    assert plain.p_values(new, covariates={"length": np.full(20, 5)}).tolist() == expected
    assert plain.effective_size == 300 and plain.smallest == 1 / 301


def test_p_values_with_known_weights_are_super_uniform_on_every_list():
    """With probability proportional to its weight each of the values is the new one (Tibshirani et al. 2019)."""
    weights = np.array([0.2, 1.0, 0.5, 0.9])
    coder = Weighted().fit([0.0, 1.0], covariates={"length": [0.0, 2.0]}, untrusted={"length": [1.0]}).coder
    for scores in np.ndindex(3, 3, 3, 3):
        p = [twin.weighted(np.delete(scores, i), np.delete(weights, i), scores[i], weights[i]) for i in range(4)]
        found = []
        for i in range(4):
            order = np.argsort(np.delete(scores, i), kind="stable")
            rest = np.delete(scores, i)[order].astype(float), np.delete(weights, i)[order]
            one = FittedWeighted(*rest, coder, np.array([1.0, 0.0]), 0.0)
            found.append(one.p_values([float(scores[i])], covariates={"length": [1 + np.log(weights[i])]})[0])
        np.testing.assert_allclose(found, p, rtol=1e-9)
        for alpha in (0.1, 0.3, 0.5, 0.8):
            share = sum(w for w, value in zip(weights, found, strict=True) if value <= alpha - 1e-12) / weights.sum()
            assert share <= alpha + 1e-9


def test_a_shift_that_ruins_plain_p_values_is_made_good():
    """Scores grow with length, and untrusted normal inputs are longer."""
    random = np.random.default_rng(1)
    plain, weighted = [], []
    for _ in range(60):
        lengths, later = random.normal(0, 1, 400), random.normal(1, 1, 400)
        scores, new = lengths + random.normal(size=400), later + random.normal(size=400)
        plain.append((Conformal().fit(scores).p_values(new) <= 0.1).mean())
        one = Weighted().fit(scores, covariates={"length": lengths}, untrusted={"length": later[:200]})
        weighted.append((one.p_values(new[200:], covariates={"length": later[200:]}) <= 0.1).mean())
    assert np.mean(plain) > 0.25
    assert abs(np.mean(weighted) - 0.1) < 0.02


def test_little_overlap_is_refused_with_the_effective_size():
    far = Weighted().fit(SCORES, covariates={"length": LENGTHS}, untrusted={"length": LENGTHS[:50] + 9})
    assert far.effective_size < 20
    with pytest.raises(CalibrationError, match=r"300 calibration inputs count as \d+\.\d(.|\n)*hardly overlap"):
        far.require(0.02)
    fitted().require(0.05)


def test_categories_and_classes_are_no_numbers():
    kinds = np.repeat(["a", "b"], 150)
    pool = {"source": np.repeat(["a", "b"], [10, 91]), "class": np.full(101, 7)}
    spec = Weighted(("source", "class"))
    one = spec.fit(SCORES, covariates={"source": kinds, "class": np.full(300, 7)}, untrusted=pool)
    by_kind = [set(one.weights[np.sort(SCORES).searchsorted(SCORES[kinds == kind])]) for kind in "ab"]
    assert len(by_kind[0]) == len(by_kind[1]) == 1 and by_kind[1] == {1.0}
    new = {"source": ["a", "b"], "class": [7, 7.0]}
    p = one.p_values([0.0, 0.0], covariates=new)
    assert ((p > 0) & (p <= 1)).all()
    assert (spec.restore(one.state()).p_values([0.0, 0.0], covariates=new) == p).all()


def test_a_category_without_calibration_inputs_is_refused_by_name():
    kinds = np.repeat(["a", "b"], 150)
    spec, seen = Weighted(("source",)), {"source": np.repeat(["a", "b"], [10, 90])}
    mixed = {"source": np.repeat(["a", "b", "new"], [10, 90, 40])}
    one = spec.fit(SCORES, covariates={"source": kinds}, untrusted=mixed)
    with pytest.raises(CalibrationError, match=r"2 of 3 inputs are of source new, of which there are no calibration"):
        one.p_values([0.0, 1.0, 2.0], covariates={"source": ["new", "a", "new"]})
    # Where it has no weight it has no say in those of the others either.
    plain = spec.fit(SCORES, covariates={"source": kinds}, untrusted=seen)
    assert (plain.weights == one.weights).all()
    with pytest.raises(CalibrationError, match="4 of 4 untrusted inputs are of source new"):
        spec.fit(SCORES, covariates={"source": kinds}, untrusted={"source": ["new"] * 4})


def test_no_category_is_special_whatever_it_is_called():
    """Scores depend on the category alone, whose shares differ: p-values hold, and are the same under other names."""
    random = np.random.default_rng(2)
    found = []
    for _ in range(60):
        kinds, later = random.choice(3, 300, p=[0.7, 0.2, 0.1]), random.choice(3, 300, p=[0.2, 0.4, 0.4])
        scores, new = 3.0 * kinds + random.normal(size=300), 3.0 * later + random.normal(size=300)
        p = []
        for names in ("abc", "cab", "bca"):
            held, pool = ({"kind": np.array(list(names))[which]} for which in (kinds, later))
            one = Weighted(("kind",)).fit(scores, covariates=held, untrusted=pool)
            p.append(one.p_values(new, covariates=pool))
        np.testing.assert_allclose(p, [p[0]] * 3, rtol=1e-3)  # the regression stops when it is near
        found.append(p[0])
    assert abs((np.array(found) <= 0.1).mean() - 0.1) < 0.015


def test_restore_is_exact_and_refuses_what_is_broken():
    one = fitted()
    state = one.state()
    new = {"length": np.linspace(5, 20, 9)}
    scores = np.linspace(-2, 2, 9)
    again = Weighted().restore(state)
    assert (again.p_values(scores, covariates=new) == one.p_values(scores, covariates=new)).all()
    assert again.effective_size == one.effective_size
    for name, value in {
        "scores": SCORES,
        "weights": -state["weights"],
        "ratio": np.ones(9),
        "coder": np.ones(3),
    }.items():
        with pytest.raises(StoreError):
            Weighted().restore({**state, name: value})
    with pytest.raises(StoreError):
        Weighted().restore({})


def test_what_is_missing_is_named():
    with pytest.raises(SpecError, match="by="):
        Weighted("length")
    with pytest.raises(SpecError):
        Weighted(())
    with pytest.raises(CalibrationError, match="0 untrusted inputs"):
        Weighted().fit(SCORES, covariates={"length": LENGTHS}, untrusted={})
    with pytest.raises(CalibrationError, match="no covariate 'length'"):
        Weighted().fit(SCORES, covariates={"lengths": LENGTHS}, untrusted=POOL)
    with pytest.raises(CalibrationError, match="no number"):
        fitted().p_values([1.0], covariates={"length": ["long"]})
    assert fitted().p_values([], covariates={"length": []}).shape == (0,)
