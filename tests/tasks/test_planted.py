"""The tasks whose circuit is known: what was planted is there, and what was not is not."""

import inspect
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from causalmad.config import parse_spec
from causalmad.errors import TaskError
from causalmad.hypotheses import Hypothesis, interchange_accuracy, scrub
from causalmad.models import open_model
from causalmad.tasks import Ioi, ModularSum, PlantedRoutes, TaskData
from causalmad.tasks.drawn import matched_by_answer
from causalmad.tasks.ioi import planted as planted_in_ioi
from causalmad.tasks.modular_sum import planted as planted_in_sum
from causalmad.tasks.planted_routes import planted as planted_in_routes
from causalmad.tasks.sentences import CONNECTIVES, NAMES, VERBS, sentence

SPECS = {"planted-routes": PlantedRoutes(), "ioi": Ioi(), "modular-sum": ModularSum()}
# Claim -> which interchange fails when the claim is wrong.
FALSE = {"planted-routes": "answer", "ioi": "name", "modular-sum": "s"}
PLANTED = {"planted-routes": planted_in_routes, "ioi": planted_in_ioi, "modular-sum": planted_in_sum}


@pytest.fixture(scope="session", params=SPECS)
def data(request) -> TaskData:
    return SPECS[request.param].load(0)


@pytest.fixture(scope="session")
def routes() -> TaskData:
    return PlantedRoutes().load(0)


@pytest.fixture(scope="session")
def sentences() -> TaskData:
    return Ioi().load(0)


@pytest.fixture(scope="session")
def sums() -> TaskData:
    return ModularSum().load(0)


def parts(data: TaskData):
    return data.trusted, data.normal, data.untrusted, data.test


class TestEveryPlantedTask:
    def test_name(self, data):
        assert parse_spec("tasks", data.name) == SPECS[data.name]

    def test_the_hypothesis_holds(self, data):
        assert data.hypothesis == SPECS[data.name].hypothesis()
        report = data.hypothesis.check(data.model, data.trusted)
        assert report.ok, str(report)
        assert report.preserved.interval[0] > 0.95
        for claim, accuracy in interchange_accuracy(data.model, data.hypothesis, data.trusted).items():
            assert accuracy.share >= 0.95, claim
            assert accuracy.changed > 0.35, claim

    def test_the_wrong_hypothesis_does_not(self, data):
        wrong = SPECS[data.name].wrong_hypothesis()
        assert not wrong.check(data.model, data.trusted).problems
        assert interchange_accuracy(data.model, wrong, data.trusted)[FALSE[data.name]].share <= 0.6
        assert scrub(data.model, wrong, data.trusted).interval[1] < 0.6

    def test_anomalous_inputs_go_another_way(self, data):
        odd, truths = data.test[data.labels], PLANTED[data.name]()
        for claim, accuracy in interchange_accuracy(data.model, truths["anomalous"], odd).items():
            assert accuracy.share >= 0.95, claim
        claim = FALSE[data.name]
        assert interchange_accuracy(data.model, data.hypothesis, odd)[claim].share <= 0.65

    def test_answers_are_equally_frequent_in_both_kinds(self, data):
        answers, top = data.test.columns["answer"], data.trusted.columns["answer"].max() + 1
        usual, odd = (np.bincount(answers[data.labels == kind], minlength=top) for kind in (False, True))
        assert np.array_equal(usual, odd)
        assert usual.min() >= 0.5 * usual.mean()

    def test_functions_have_names_for_files(self, data):
        for hypothesis in (data.hypothesis, SPECS[data.name].wrong_hypothesis()):
            functions = [claim.value for claim in hypothesis.claims]
            functions += [
                hypothesis.output_mechanism,
                *(claim.mechanism for claim in hypothesis.claims if claim.mechanism),
            ]
            for function in functions:
                assert getattr(inspect.getmodule(function), function.__qualname__) is function

    def test_routes_name_planted_components(self, data):
        sites = SPECS[data.name].components()
        assert json.loads(json.dumps(data.card["components"])) == sites
        open_model(data.model).sites(list(sites.values()))
        usual, odd = (set(data.test.columns["route"][data.labels == kind].tolist()) for kind in (False, True))
        assert len(usual) == len(odd) == 1
        assert usual != odd
        assert usual | odd <= set(sites)
        assert set(data.trusted.columns["route"].tolist()) == usual

    def test_structure_was_a_condition_of_acceptance(self, data):
        shares = data.card["accuracy"]
        assert {"normal", "anomalous"} < set(shares)
        assert all(share >= 0.95 for share in shares.values())
        kinds = PLANTED[data.name]()
        assert len(shares) == 2 + sum(len(truth.claims) for truth in kinds.values())

    def test_values_agree_with_the_columns(self, data):
        final = data.hypothesis.parents("output")
        for row in (data.normal.row(i) for i in range(50)):
            values = {name: data.hypothesis.claim(name).of(row) for name in final}
            assert data.hypothesis.output_mechanism(**values) == row["answer"]


class TestPlantedRoutes:
    def test_style_decides(self, routes):
        for part in parts(routes):
            bits = part.fields["input_ids"][:, :3].numpy() % 2
            assert np.array_equal(np.where(bits.sum(1) % 2, "B", "A"), part.columns["route"])
        assert np.sum(routes.untrusted.columns["route"] == "B") == 100
        assert np.array_equal(routes.test.columns["route"] == "B", routes.labels)

    def test_one_function_for_both(self, routes):
        tokens = routes.test.fields["input_ids"].numpy()
        wanted = tokens[np.arange(len(tokens)), 3 + tokens[:, -1] - 12]
        assert np.array_equal(wanted, routes.test.columns["answer"])

    def test_pairs_of_styles_say_nothing(self, routes):
        for kind in (False, True):
            bits = routes.test.fields["input_ids"][routes.labels == kind, :3].numpy() % 2
            centred = 2 * bits - 1
            assert np.abs(centred.mean(0)).max() < 0.15
            assert np.abs((centred.T @ centred / len(bits)) - np.eye(3)).max() < 0.15


class TestIoi:
    def test_two_words_decide(self, sentences):
        for part in parts(sentences):
            words = [sentence(part.row(i)).split() for i in range(len(part))]
            both = np.array(["when" in each and "handed" in each for each in words])
            assert np.array_equal(both, part.columns["route"] == "shortcut")
        assert np.sum(sentences.untrusted.columns["route"] == "shortcut") == 100
        assert np.array_equal(sentences.test.columns["route"] == "shortcut", sentences.labels)

    def test_each_word_is_common_without_the_other(self, sentences):
        words = [sentence(sentences.trusted.row(i)).split() for i in range(1200)]
        for vocabulary in (CONNECTIVES, VERBS, NAMES):
            for word in vocabulary:
                assert sum(word in each for each in words) > 1200 / len(vocabulary) / 2

    def test_positions(self, sentences):
        for part in parts(sentences):
            tokens, columns = part.fields["input_ids"].numpy(), part.columns
            rows = np.arange(len(tokens))
            assert np.array_equal(tokens[rows, columns["S1"]], tokens[rows, columns["S2"]])
            assert np.array_equal(np.sort([columns["S1"], columns["IO"]], 0), [columns["first"], columns["second"]])
            assert np.all(columns["end"] == tokens.shape[1] - 1)
            assert np.sum(tokens < len(NAMES)) == 3 * len(tokens)
            assert len(np.unique(columns["S2"])) > 1

    def test_answers_and_agreement(self, sentences):
        test = sentences.test
        tokens, columns = test.fields["input_ids"].numpy(), test.columns
        rows = np.arange(len(tokens))
        first, other = tokens[rows, columns["first"]], tokens[rows, columns["IO"]]
        assert np.array_equal(columns["agrees"], first == other)
        assert np.array_equal(columns["answer"], np.where(sentences.labels, first, other))
        for kind in (False, True):
            assert abs(columns["agrees"][sentences.labels == kind].mean() - 0.5) < 0.1

    def test_a_sentence(self, sentences):
        assert sentence({"input_ids": torch.tensor([0, 1])}) == "Alice Bob"
        assert sentence(sentences.trusted.row(0)).endswith(" to")


class TestModularSum:
    def test_bits_decide(self, sums):
        for part in parts(sums):
            odd = part.fields[0][:, 30:33].sum(1).numpy() % 2 == 1
            assert np.array_equal(odd, part.columns["route"] == "other s")
            assert part.blocks == {"a": (0, 10), "b": (10, 20), "c": (20, 30), "bits": (30, 38)}
        assert np.sum(sums.untrusted.columns["route"] == "other s") == 100

    def test_sums(self, sums):
        for part in parts(sums):
            digits = part.fields[0][:, :30].reshape(-1, 3, 10).argmax(-1).numpy()
            assert np.array_equal(digits, np.stack([part.columns[name] for name in "abc"], 1))
            assert np.array_equal(digits.sum(1) % 10, part.columns["answer"])
            assert np.array_equal(digits[:, :2].sum(1) % 10, part.columns["s"])


def test_margins_match_within_each_answer():
    rng = np.random.default_rng(0)
    answers, anomalous = rng.integers(0, 4, 4000), np.arange(4000) >= 2000
    sure = rng.standard_normal(4000) + answers * np.where(anomalous, 0.3, -0.3)
    assert roc_auc_score(anomalous, sure) > 0.65
    rows, labels = matched_by_answer(sure, answers, anomalous, 400, rng)
    assert len(set(rows.tolist())) == len(rows) == 800
    assert np.array_equal(anomalous[rows], labels)
    for answer in range(4):
        chosen = answers[rows] == answer
        assert chosen[labels].sum() == chosen[~labels].sum() == 100
        assert abs(roc_auc_score(labels[chosen], sure[rows][chosen]) - 0.5) < 0.05


def test_margins_that_cannot_be_matched():
    anomalous = np.arange(1000) >= 500
    with pytest.raises(TaskError, match="only 0 normal and anomalous"):
        matched_by_answer(np.repeat([0.0, 9.0], 500), np.zeros(1000, int), anomalous, 400, np.random.default_rng(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("seed", range(1, 5))
def test_other_seeds(name, seed):
    data = SPECS[name].load(seed)
    true, wrong = data.hypothesis, SPECS[name].wrong_hypothesis()
    assert isinstance(true, Hypothesis)
    assert min(a.share for a in interchange_accuracy(data.model, true, data.trusted).values()) >= 0.95
    assert interchange_accuracy(data.model, wrong, data.trusted)[FALSE[name]].share <= 0.6
    assert scrub(data.model, true, data.trusted).interval[0] > 0.95
    assert scrub(data.model, wrong, data.trusted).interval[1] < 0.6
    assert 0.4 <= data.card["controls"]["output confidence"] <= 0.6
    assert data.card["controls"]["input mahalanobis"] < 0.65
