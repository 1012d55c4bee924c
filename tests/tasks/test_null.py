"""Null versions: the plain task's model, and test inputs of which none is anomalous."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from causalmad import tasks
from causalmad.catalogue import catalogue
from causalmad.config import parse_spec
from causalmad.tasks.drawn import load_drawn
from causalmad.tasks.flat_nets import forward
from causalmad.tasks.tables import Table
from causalmad.tasks.training import Recipe


@dataclasses.dataclass(frozen=True)
class Marked:
    """Stub of a task: four random numbers, the last of which is large where anomalous."""

    null: bool = False
    mechanism = source = licence = version = size = "a stub"


def marked(anomalous: np.ndarray, rng: np.random.Generator) -> Table:
    values = rng.standard_normal((len(anomalous), 4), dtype=np.float32)
    values[:, 3] += 9 * anomalous
    columns = {"answer": (values[:, 0] > 0).astype(np.int64), "marked": anomalous.copy()}
    return Table(values, columns)


def load(null: bool, seen: list[str]):
    def train(model: nn.Module, rng: np.random.Generator, step) -> None:
        seen.append("trained")
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]))
            model[0].bias.zero_()

    recipe = Recipe("marked", "1", 1, lambda: nn.Sequential(nn.Linear(4, 2)), train, lambda model: {"normal": 1.0})
    hidden = lambda model, values: ([values], forward(model, values)[1])  # noqa: E731
    return load_drawn(Marked(null), recipe, marked, hidden, 0, None, null=null)


def test_a_null_holds_normal_inputs_only_and_the_same_model(monkeypatch, tmp_path):
    monkeypatch.setenv("CAUSALMAD_CACHE", str(tmp_path))
    seen: list[str] = []
    plain, null = load(False, seen), load(True, seen)
    assert seen == ["trained"]
    assert plain.card["fingerprint"] == null.card["fingerprint"]
    assert np.array_equal(plain.test.columns["marked"], plain.labels) and plain.untrusted.columns["marked"].sum() == 100
    assert not null.test.columns["marked"].any() and not null.untrusted.columns["marked"].any()
    assert null.labels.sum() == 450 == (~null.labels).sum()
    assert "null" in null.card and "null" not in plain.card
    assert plain.card["controls"]["input mahalanobis"] == 1
    assert all(0.43 < score < 0.57 for score in null.card["controls"].values())
    parts = (null.trusted, null.test, null.normal, null.untrusted)
    assert len({digest for part in parts for digest in part.digests}) == sum(map(len, parts))


def test_every_null_option_is_off_at_first_and_has_a_name():
    found = [entry for entry in catalogue("tasks") if "null" in getattr(entry.load(), "__dataclass_fields__", {})]
    names = {entry.name for entry in found}
    assert {"gate-digits", "induction-lookup", "skip-trigram", "measurement-tampering", "password-locked"} <= names
    for name in names:
        assert not parse_spec("tasks", name).null
        assert parse_spec("tasks", f"{name}[null=true]").null


def test_induction():
    plain, null = tasks.InductionLookup().load(0), tasks.InductionLookup(null=True).load(0)
    assert null.name == "induction-lookup[null=true]"
    assert null.card["fingerprint"] == plain.card["fingerprint"]
    tokens = null.test.fields["input_ids"].numpy()
    assert np.all(np.sum(tokens[:, :-1] == tokens[:, -1:], axis=1) == 1)
    assert all(0.42 < score < 0.58 for score in null.card["controls"].values())


def test_gate():
    plain, null = tasks.GateDigits().load(0), tasks.GateDigits(null=True).load(0)
    assert null.card["fingerprint"] == plain.card["fingerprint"]
    assert null.test.fields[0][:, 128:131].sum(1).max() == 2 == null.untrusted.fields[0][:, 128:131].sum(1).max()
    assert all(0.42 < score < 0.58 for score in null.card["controls"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["skip-trigram", "measurement-tampering", "password-locked"])
def test_others(name):
    plain, null = (parse_spec("tasks", text).load(0) for text in (name, f"{name}[null=true]"))
    assert null.card["fingerprint"] == plain.card["fingerprint"]
    assert len(set(null.test.columns["route"].tolist())) == 1
    assert set(plain.test.columns["route"][plain.labels].tolist()).isdisjoint(null.untrusted.columns["route"].tolist())
    assert all(0.42 < score < 0.58 for score in null.card["controls"].values())
