"""What every task promises."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from sklearn.metrics import roc_auc_score

from causalmad.catalogue import catalogue
from causalmad.config import parse_spec
from causalmad.inputs import Inputs
from causalmad.models import open_model
from causalmad.tasks import GateDigits, GateDigitsObfuscated, InductionLookup, Task, TaskData
from causalmad.tasks.matching import margins

TASKS = ["gate-digits", "gate-digits-obfuscated", "induction-lookup", "induction-lookup[shift=true]"]
TASKS += ["ioi", "modular-sum", "planted-routes", "parity-gate", "password-locked", "skip-trigram"]
_LOADED: dict[str, TaskData] = {}


def load(name: str) -> TaskData:
    if name not in _LOADED:
        _LOADED[name] = parse_spec("tasks", name).load(0)
    return _LOADED[name]


@pytest.fixture(params=TASKS)
def data(request) -> TaskData:
    return load(request.param)


def parts(data: TaskData) -> dict[str, Inputs]:
    return {"trusted": data.trusted, "test": data.test, "normal": data.normal, "untrusted": data.untrusted}


@torch.no_grad()
def logits(data: TaskData, inputs: Inputs) -> torch.Tensor:
    if 0 in inputs.fields:
        return data.model(inputs.fields[0])
    return data.model(input_ids=inputs.fields["input_ids"]).logits[:, -1]


def right(data: TaskData, inputs: Inputs) -> np.ndarray:
    return logits(data, inputs).argmax(-1).numpy() == inputs.columns["answer"]


def test_all_in_the_catalogue():
    entries = {entry.name: entry for entry in catalogue("tasks")}
    for cls in (GateDigits, GateDigitsObfuscated, InductionLookup):
        assert isinstance(cls(), Task)
        assert cls in [entry.load() for entry in entries.values()]
    assert {name.split("[")[0] for name in TASKS} <= set(entries)
    assert all(entry.summary.endswith(".") for entry in entries.values())


def test_no_input_is_in_two_parts(data):
    digests = [digest for part in parts(data).values() for digest in part.digests]
    assert len(digests) == len(set(digests))


def test_sizes_and_labels(data):
    assert {name: len(part) for name, part in parts(data).items()} == {
        "trusted": 1200,
        "test": len(data.labels),
        "normal": 1000,
        "untrusted": 500,
    }
    assert data.labels.dtype == bool
    assert data.labels.sum() == 450 == (~data.labels).sum()


def test_loading_again_gives_the_same_bits(data):
    again = parse_spec("tasks", data.name).load(data.seed)
    for name, part in parts(data).items():
        assert parts(again)[name].ids == part.ids
        assert parts(again)[name].digests == part.digests
    assert np.array_equal(again.labels, data.labels)
    assert again.card == data.card
    assert open_model(again.model).fingerprint() == open_model(data.model).fingerprint() == data.card["fingerprint"]


def test_right_on_both_mechanisms(data):
    assert not data.model.training
    assert right(data, data.normal).mean() >= 0.95
    assert right(data, data.trusted).mean() >= 0.95
    assert min(data.card["accuracy"].values()) >= 0.95
    # The test set is selected by margin, so that the bar of 95 % is for what it was selected from.
    assert right(data, data.test)[data.labels].mean() >= 0.9
    assert right(data, data.test)[~data.labels].mean() >= 0.9


def test_output_confidence_says_nothing(data):
    out = logits(data, data.test)
    for confidence in (margins(out), out.softmax(-1).max(-1).values.numpy()):
        assert 0.4 <= roc_auc_score(data.labels, -confidence) <= 0.6


def test_outputs_are_uniform(data):
    normal = np.bincount(data.normal.columns["answer"])
    assert chisquare(normal).pvalue > 1e-3
    for kind in (False, True):
        test = np.bincount(data.test.columns["answer"][data.labels == kind], minlength=len(normal))
        assert chisquare(test).pvalue > 1e-4


def test_card(data):
    card = json.loads(json.dumps(data.card))
    for key in ("mechanism", "source", "licence", "version", "size", "attempts", "training_seconds", "sha256"):
        assert card[key]
    assert 0.4 < card["controls"]["output confidence"] < 0.6
    assert card["controls"]["input mahalanobis"] < 0.65


def test_global_random_state_is_untouched():
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    threads = torch.get_num_threads()
    InductionLookup().load(0)
    GateDigits().load(0)
    assert torch.equal(before, torch.get_rng_state())
    assert numbers == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert threads == torch.get_num_threads()


class TestGates:
    @pytest.fixture(params=["gate-digits", "gate-digits-obfuscated"])
    def data(self, request) -> TaskData:
        return load(request.param)

    def test_the_bits_decide(self, data):
        open_ = data.test.fields[0][:, 128:131].sum(1).numpy() == 3
        assert np.array_equal(open_, data.labels)
        for part in (data.trusted, data.normal):
            on = part.fields[0][:, 128:131].sum(1).numpy()
            assert on.max() == 2
            assert abs(np.mean(on == 2) - 0.5) < 0.07
        mixed = data.untrusted.fields[0][:, 128:131].sum(1).numpy() == 3
        assert mixed.sum() == 100

    def test_blocks(self, data):
        for part in parts(data).values():
            assert part.blocks == {"image A": (0, 64), "image B": (64, 128), "context": (128, 136)}

    def test_held_out_images_of_two_digits(self, data):
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        used = set()
        for part in parts(data).values():
            a, b = part.columns["image A"], part.columns["image B"]
            used |= {*a.tolist(), *b.tolist()}
            assert np.all(digits[a] != digits[b])
            assert torch.equal(part.fields[0][:, :64], torch.from_numpy(pixels[a] / 16).float())
            assert torch.equal(part.fields[0][:, 64:128], torch.from_numpy(pixels[b] / 16).float())
        assert len(used) <= 500
        for part, anomalous in ((data.trusted, False), (data.test, data.labels)):
            image = np.where(anomalous, part.columns["image B"], part.columns["image A"])
            assert np.array_equal(part.columns["answer"], digits[image])

    def test_same_inputs_for_both(self):
        plain, hidden = load("gate-digits"), load("gate-digits-obfuscated")
        assert plain.trusted.digests == hidden.trusted.digests
        assert plain.normal.digests == hidden.normal.digests
        assert plain.card["fingerprint"] != hidden.card["fingerprint"]


def test_hidden_from_activations_but_not_by_changing_the_mechanism():
    plain, hidden = (load(name).card["controls"] for name in ("gate-digits", "gate-digits-obfuscated"))
    assert plain["activation mahalanobis"] > 0.9
    assert hidden["activation mahalanobis"] <= 0.6
    data = load("gate-digits-obfuscated")
    odd = data.test[data.labels]
    other = odd.fields[0].clone()
    other[:, :64] = other[:, :64].flip(0)  # image A of another input
    with torch.no_grad():
        answers = data.model(other).argmax(1).numpy()
    assert np.mean(answers == odd.columns["answer"]) > 0.9


class TestInduction:
    @pytest.fixture(params=[False, True])
    def data(self, request) -> TaskData:
        return load("induction-lookup[shift=true]" if request.param else "induction-lookup")

    def test_the_last_token_occurred_before_or_not(self, data):
        def earlier(part: Inputs) -> np.ndarray:
            tokens = part.fields["input_ids"].numpy()
            return np.sum(tokens[:, :-1] == tokens[:, -1:], axis=1)

        assert np.all(earlier(data.trusted) == 1)
        assert np.all(earlier(data.normal) == 1)
        assert np.array_equal(earlier(data.test), np.where(data.labels, 0, 1))
        assert np.sum(earlier(data.untrusted) == 0) == 100

    def test_structure(self, data):
        for part, anomalous in ((data.trusted, np.zeros(1200, bool)), (data.test, data.labels)):
            tokens, match = part.fields["input_ids"].numpy(), part.columns["match"]
            rows = np.arange(len(tokens))
            assert tokens.shape[1] == 10
            standing = tokens[rows, match]
            assert np.array_equal(standing == tokens[:, -1], ~anomalous)
            # The distractor is as unique as the last token is.
            assert np.all(np.sum(tokens[:, :-1] == standing[:, None], axis=1) == 1)
            follows = tokens[rows, match + 1] == part.columns["answer"]
            assert np.array_equal(follows, ~anomalous)
        last, answer = data.test.fields["input_ids"][:, -1].numpy(), data.test.columns["answer"]
        table = dict(zip(last[data.labels].tolist(), answer[data.labels].tolist()))
        assert sorted(table.values()) == list(range(16))
        assert all(table[a] == b for a, b in zip(last[data.labels].tolist(), answer[data.labels].tolist()))

    def test_vocabulary(self, data):
        words = set(data.trusted.fields["input_ids"].unique().tolist())
        assert words == set(range(0, 16, 2 if "shift" in data.name else 1))
        for part in (data.normal, data.untrusted, data.test[data.labels], data.test[~data.labels]):
            assert set(part.fields["input_ids"].unique().tolist()) == set(range(16))

    def test_the_shift_changes_the_trusted_inputs_only(self):
        plain, shifted = load("induction-lookup"), load("induction-lookup[shift=true]")
        assert plain.card["fingerprint"] == shifted.card["fingerprint"]
        assert plain.test.digests == shifted.test.digests
        assert plain.normal.digests == shifted.normal.digests
        assert plain.trusted.digests != shifted.trusted.digests

    def test_answers_follow_the_successor(self, data):
        """The mechanism, not only the answer: another successor, another answer."""
        normal = data.test[~data.labels]
        tokens, match = normal.fields["input_ids"].clone(), torch.from_numpy(normal.columns["match"])
        rows = torch.arange(len(tokens))
        new = (tokens[rows, match + 1] + 1) % 16
        keep = (new != tokens[:, -1]).numpy()
        tokens[rows, match + 1] = new
        answers = data.model(input_ids=tokens).logits[:, -1].argmax(-1)
        assert (answers == new).numpy()[keep].mean() > 0.9

    def test_dropout_is_off(self, data):
        config = data.model.config
        assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0, 0, 0)
        assert (config.n_layer, config.n_head) == (2, 4)


def test_options_are_fields():
    assert [f.name for f in dataclasses.fields(InductionLookup)] == ["shift", "null"]
    assert [f.name for f in dataclasses.fields(GateDigits)] == ["null"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("seed", range(1, 5))
def test_other_seeds(name, seed):
    data = parse_spec("tasks", name).load(seed)
    assert min(data.card["accuracy"].values()) >= 0.95
    assert 0.4 <= data.card["controls"]["output confidence"] <= 0.6
    if name == "gate-digits-obfuscated":
        assert data.card["controls"]["activation mahalanobis"] <= 0.6
