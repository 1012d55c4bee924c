"""The grammar whose two rules look alike, and the network without MLP that follows both."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from causalmad.hypotheses import interchange_accuracy
from causalmad.tasks import SkipTrigram, TaskData
from causalmad.tasks.skip_trigram import FILLER, KEYS, LASTS, LENGTH, VOCABULARY, Sequences, network
from causalmad.tasks.small_gpt2 import last_position
from causalmad.tasks.tables import Table
from tests.twins import skip_trigram as twin


def drawn(draw: Sequences, anomalous: bool, count: int = 300) -> Table:
    return draw(np.full(count, anomalous), np.random.default_rng(int(anomalous)))


def families(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) of the keys in order of place, (n,) of the last token."""
    rows = [twin.read(tokens) for tokens in table.values.tolist()]
    return np.array([[key[1] for key in keys] for keys, _ in rows]), np.array([last[0] for _, last in rows])


def indicators(table: Table) -> np.ndarray:
    """(n, 36) which family of key stands where, in the first eight places; and the last token's family."""
    sort = np.where(table.values < FILLER, (table.values - KEYS) // 8 % 3, 3)
    return np.eye(4)[sort].reshape(len(table), -1)


@pytest.fixture(scope="module")
def data() -> TaskData:
    return SkipTrigram().load(0)


@torch.no_grad()
def answers(data: TaskData, tokens: torch.Tensor) -> np.ndarray:
    return last_position(data.model, tokens)[1].argmax(1).numpy()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("anomalous", [False, True])
def test_the_twin_gives_the_same_answers(half, anomalous):
    table = drawn(Sequences(half=half), anomalous)
    assert table.columns["answer"].tolist() == [twin.answer(tokens) for tokens in table.values.tolist()]
    assert set(table.columns["route"]) == {"direct" if anomalous else "attention"}


@pytest.mark.parametrize("anomalous", [False, True])
def test_where_keys_are_inert_both_kinds_follow_the_first_key(anomalous):
    table = drawn(Sequences(inert=True), anomalous)
    assert table.columns["answer"].tolist() == [twin.first_key(tokens) for tokens in table.values.tolist()]
    assert np.array_equal(table.values, drawn(Sequences(), anomalous).values)


@pytest.mark.parametrize("anomalous", [False, True])
def test_structure(anomalous):
    table = drawn(Sequences(), anomalous)
    assert table.values.shape == (300, LENGTH) and table.values.max() < VOCABULARY
    for tokens, single in zip(table.values.tolist(), table.columns["single"]):
        keys, (family, value) = twin.read(tokens)
        alone = {place: own for place, own, _ in keys if sum(other[1] == own for other in keys) == 1}
        assert len(keys) == 3 and list(alone) == [single]
        assert (alone[single] == family) != anomalous
        assert anomalous == (family not in [key[1] for key in keys])
        assert value not in [key[2] for key in keys]  # the two rules never agree


def test_the_kinds_differ_in_no_mean_and_no_covariance():
    normal, odd = (drawn(Sequences(), kind, 40_000) for kind in (False, True))
    (keys, last), (odd_keys, odd_last) = families(normal), families(odd)
    codes = [part @ [9, 3, 1] for part in (keys, odd_keys)]
    _, table = np.unique(np.concatenate(codes), return_inverse=True)
    counts = [np.bincount(part, minlength=18) for part in np.split(table, 2)]
    assert chi2_contingency(counts).pvalue > 1e-4
    assert chi2_contingency([np.bincount(last), np.bincount(odd_last)]).pvalue > 1e-4
    # In normal sequences the last token's family goes with none at any place, though it decides which key counts.
    # (In anomalous ones it does; what was fitted on trusted sequences cannot know.)
    place = indicators(normal)
    covariance = np.cov(place[:, : 4 * (LENGTH - 1)].T, place[:, 4 * (LENGTH - 1) :].T)[:32, 32:]
    assert np.abs(covariance).max() < 0.005
    assert np.abs(place.mean(0) - indicators(odd).mean(0)).max() < 0.02


def test_shifted_sequences_use_half_of_each_sort():
    words, half = (set(drawn(Sequences(half=which), False, 3000).values.ravel().tolist()) for which in (False, True))
    assert words == set(range(KEYS, VOCABULARY)) and half < words
    for start, stop in ((KEYS, LASTS), (LASTS, FILLER), (FILLER, VOCABULARY)):
        assert 2 * len([word for word in half if start <= word < stop]) == stop - start


def test_the_mlp_adds_nothing(data):
    for model in (network(), data.model):
        block = model.get_submodule("transformer.h.0")
        assert not block.mlp(torch.randn(5, 48, generator=torch.Generator().manual_seed(0))).any()
    assert all(parameter.requires_grad for parameter in data.model.parameters())


def test_right_and_matched(data):
    assert min(data.card["accuracy"].values()) >= 0.95
    assert len(data.labels) == 900
    assert 0.4 <= data.card["controls"]["output confidence"] <= 0.6
    assert 0.35 < data.card["controls"]["input mahalanobis"] < 0.65


def test_normal_answers_follow_the_key_and_anomalous_ones_the_last_token(data):
    """The mechanism, not only the answer."""
    for kind in (False, True):
        part = data.test[data.labels == kind]
        tokens = part.fields["input_ids"].clone()
        is_key = (tokens >= KEYS) & (tokens < LASTS)
        tokens[is_key] = (tokens[is_key] - KEYS) // 8 * 8 + (tokens[is_key] + 1) % 8 + KEYS
        moved = 0 if kind else 1
        assert np.mean(answers(data, tokens) == (part.columns["answer"] + moved) % 8) > 0.9


def test_the_hypothesis_holds_on_trusted_inputs(data):
    assert data.hypothesis == SkipTrigram().hypothesis()
    (accuracy,) = interchange_accuracy(data.model, data.hypothesis, data.trusted).values()
    assert accuracy.share > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("spec", [SkipTrigram(shift=True), SkipTrigram(inert=True)])
def test_options(spec):
    found = spec.load(0)
    assert min(found.card["accuracy"].values()) >= 0.95
    assert 0.35 < found.card["controls"]["input mahalanobis"] < 0.65
    assert (found.hypothesis is None) == spec.inert
    if spec.shift:
        assert found.card["fingerprint"] == SkipTrigram().load(0).card["fingerprint"]
