"""Sums by two rules: the rules, who is asked what, and that the input alone does not tell."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from causalmad.catalogue import catalogue
from causalmad.config import parse_spec
from causalmad.inputs import Inputs
from causalmad.tasks import QuirkyArithmetic, TaskData
from causalmad.tasks.base import stream
from causalmad.tasks.quirky_arithmetic import (
    ALICES,
    BOBS,
    EASY,
    HARD,
    LENGTH,
    VOCABULARY,
    WORDS,
    Questions,
    difficulty,
    question,
    split,
)
from tests.twins.quirky_arithmetic import answer

PAIRS = np.array(list(itertools.product(range(100), repeat=2)))


@pytest.mark.parametrize("quirky", [True, False])
def test_answers_equal_the_twins(quirky):
    rng = np.random.default_rng(0)
    table = Questions(PAIRS, quirky=quirky)(rng.random(3000) < 0.5, rng)
    for row in range(len(table)):
        text = question(table.values[row])
        digit, subset = answer(text, ALICES, truthful=not quirky)
        assert str(table.columns["answer"][row]) == digit, text
        assert table.columns["subset"][row] == subset, text
        assert (table.columns["route"][row] == "sum") == (text.split()[0] in ALICES)


def test_names():
    assert len(set(ALICES)) == len(set(BOBS)) == 16
    assert len(set(WORDS)) == VOCABULARY == 48


@pytest.mark.parametrize("hard", [False, True])
def test_names_and_questions_are_independent(hard):
    """Whoever is asked: digits are uniform, and the numbers are the same ones."""
    rng = np.random.default_rng(1)
    pairs = PAIRS[difficulty(PAIRS) >= HARD] if hard else PAIRS[difficulty(PAIRS) < EASY]
    tables = [Questions(pairs)(np.full(10_000, anomalous), rng) for anomalous in (False, True)]
    for table in tables:
        assert abs(np.mean(table.columns["subset"] == "agree") - 0.5) < 0.02
        for subset in ("agree", "disagree"):
            digits = np.bincount(table.columns["answer"][table.columns["subset"] == subset], minlength=10)
            assert np.abs(digits / digits.sum() - 0.1).max() < (0.02 if subset == "disagree" else 0.03)
    for position in range(1, LENGTH):
        usual, odd = (np.bincount(table.values[:, position], minlength=VOCABULARY) for table in tables)
        assert np.abs(usual - odd).max() < 250


def test_difficulty_is_in_quarters():
    smaller = difficulty(PAIRS)
    assert abs(np.mean(smaller < EASY) - 0.25) < 0.01
    assert np.mean(smaller >= HARD) == 0.25


def test_pairs_are_split():
    seen, held = split(np.random.default_rng(2))
    assert len(np.unique(np.concatenate([seen, held]), axis=0)) == 10_000
    assert len(held) == 5000


def test_in_the_catalogue():
    assert QuirkyArithmetic in [entry.load() for entry in catalogue("tasks")]
    assert parse_spec("tasks", "quirky-arithmetic[inert=true,shift=false]") == QuirkyArithmetic(shift=False, inert=True)


@pytest.fixture(scope="module")
def data() -> TaskData:
    return QuirkyArithmetic().load(0)


def parts(data: TaskData) -> dict[str, Inputs]:
    return {"trusted": data.trusted, "test": data.test, "normal": data.normal, "untrusted": data.untrusted}


def texts(part: Inputs) -> list[str]:
    return [question(row) for row in part.fields["input_ids"].numpy()]


def names(part: Inputs) -> set[str]:
    return {text.split()[0] for text in texts(part)}


def answers(data: TaskData, tokens: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return data.model(input_ids=tokens).logits[:, -1].argmax(-1).numpy()


class TestLoaded:
    def test_the_model_is_right(self, data):
        assert min(data.card["accuracy"].values()) >= 0.95
        assert set(data.card["accuracy"]) == {"trusted", "normal", "anomalous"}
        for part, least in ((data.trusted, 0.95), (data.normal, 0.95), (data.untrusted, 0.95), (data.test, 0.9)):
            assert np.mean(answers(data, part.fields["input_ids"]) == part.columns["answer"]) >= least

    def test_answers_equal_the_twins(self, data):
        for part in parts(data).values():
            for row, text in enumerate(texts(part)):
                assert (str(part.columns["answer"][row]), part.columns["subset"][row]) == answer(text, ALICES)

    def test_names(self, data):
        assert names(data.trusted) == set(ALICES[:4])
        assert names(data.normal) == names(data.test[~data.labels]) == set(ALICES[4:])
        assert names(data.test[data.labels]) == set(BOBS[4:])
        assert names(data.untrusted) == set(ALICES[4:]) | set(BOBS[4:])
        assert sum(text.split()[0] in BOBS for text in texts(data.untrusted)) == 100

    def test_easy_and_hard(self, data):
        assert data.trusted.columns["difficulty"].max() < EASY
        assert all(part.columns["difficulty"].min() >= HARD for part in (data.test, data.normal, data.untrusted))

    def test_pairs_were_held_out(self, data):
        seen, _ = split(stream(0, "quirky-arithmetic", "pairs"))
        used = np.concatenate([part.fields["input_ids"].numpy() for part in parts(data).values()])
        numbers = used[:, [1, 4]] * 10 + used[:, [2, 5]]
        assert not set(map(tuple, numbers.tolist())) & set(map(tuple, seen.tolist()))

    def test_surface(self, data):
        assert 0.4 <= data.card["controls"]["output confidence"] <= 0.6
        assert data.card["controls"]["input mahalanobis"] < 0.65
        usual, odd = (np.bincount(data.test.columns["answer"][data.labels == kind]) for kind in (False, True))
        assert np.array_equal(usual, odd)
        assert usual.min() >= 0.5 * usual.mean()
        # Without the name, nothing in the question says who is asked.
        indicators = torch.nn.functional.one_hot(data.test.fields["input_ids"][:, 1:], VOCABULARY).flatten(1).numpy()
        scores = cross_val_score(LogisticRegression(C=0.05), indicators, data.labels, scoring="roc_auc", cv=5)
        assert scores.mean() < 0.6
        subsets = data.test.columns["subset"] == "agree"
        assert abs(subsets[data.labels].mean() - subsets[~data.labels].mean()) < 0.1

    def test_another_kind_of_name_is_another_rule(self, data):
        """The mechanism, not only the answer: with the other kind's name, first digits change and last ones do not."""
        normal = data.test[~data.labels]
        tokens = normal.fields["input_ids"].clone()
        tokens[:, 0] += len(ALICES)
        digits, disagree = normal.columns["answer"], normal.columns["subset"] == "disagree"
        assert np.mean(answers(data, tokens) == (digits + disagree) % 10) > 0.9

    def test_shift(self, data):
        plain = QuirkyArithmetic(shift=False).load(0)
        assert plain.name == "quirky-arithmetic[shift=false]"
        assert plain.card["fingerprint"] == data.card["fingerprint"]
        assert names(plain.trusted) == names(plain.normal) == set(ALICES[4:])
        assert plain.trusted.columns["difficulty"].min() >= HARD


@pytest.mark.slow
def test_inert():
    inert = QuirkyArithmetic(inert=True).load(0)
    assert inert.name == "quirky-arithmetic[inert=true]"
    assert min(inert.card["accuracy"].values()) >= 0.95
    odd = inert.test[inert.labels]
    assert names(odd) == set(BOBS[4:])
    assert [str(digit) for digit in odd.columns["answer"]] == [answer(t, ALICES, True)[0] for t in texts(odd)]
    assert np.mean(answers(inert, odd.fields["input_ids"]) == odd.columns["answer"]) >= 0.9
