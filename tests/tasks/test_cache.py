import json
import logging
import multiprocessing
from pathlib import Path

import pytest
import torch
from torch import nn

from causalmad.tasks.cache import cache_folder, cached

CALLS: list[int] = []


def tied() -> nn.Module:
    """A module whose two parts share a weight, as GPT-2's embeddings do."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def train(model: nn.Module) -> dict:
    CALLS.append(1)
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(len(CALLS))
    return {"accuracy": {"normal": 1.0}}


def get(**changes) -> tuple[nn.Module, dict]:
    model = changes.pop("model", None) or tied()
    key = {"name": "toy", "options": {"shift": False}, "version": "1", "seed": 0, **changes}
    return model, cached(**key, model=model, train=train)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    CALLS.clear()
    monkeypatch.setenv("CAUSALMAD_CACHE", str(tmp_path))
    return tmp_path / "tasks"


def entry(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_folder_from_the_environment_or_the_home(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path
    monkeypatch.delenv("CAUSALMAD_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "causalmad"


def test_trained_once(folder):
    (first, card), (second, again) = get(), get()
    assert len(CALLS) == 1
    assert card == again == json.loads((entry(folder) / "card.json").read_text())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert card["accuracy"] == {"normal": 1.0}
    assert len(card["sha256"]) == 64
    assert card["fingerprint"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"version": "2"}, {"name": "other"}, {"options": {"shift": True}}])
def test_another_key_is_another_entry(folder, change):
    get()
    get(**change)
    assert len(CALLS) == 2
    assert len(list(folder.iterdir())) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def rename_in_card(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 5}))


DAMAGES = [
    ("model.safetensors", cut),
    ("model.safetensors", flip),
    ("model.safetensors", Path.unlink),
    ("card.json", cut),
    ("card.json", Path.unlink),
    ("card.json", rename_in_card),
    ("card.json", lambda path: path.write_text("[]")),
]


@pytest.mark.parametrize("damage", range(len(DAMAGES)))
def test_a_damaged_entry_is_trained_again_with_a_warning(folder, damage, caplog):
    get()
    name, spoil = DAMAGES[damage]
    spoil(entry(folder) / name)
    with caplog.at_level(logging.WARNING, logger="causalmad"):
        model, _ = get()
    assert len(CALLS) == 2
    assert "damaged" in caplog.text
    assert all(torch.all(value == 2) for value in model.parameters())
    caplog.clear()
    get()  # the new entry is good
    assert len(CALLS) == 2
    assert not caplog.records


def test_weights_of_another_network_are_not_used(folder):
    get()
    model, _ = get(model=nn.Linear(4, 2))
    assert len(CALLS) == 2
    assert torch.all(model.weight == 2)


def test_nothing_is_left_when_training_fails(folder):
    def fail(model: nn.Module) -> dict:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cached("toy", {}, "1", 0, tied(), fail)
    assert not folder.exists() or not list(folder.iterdir())


def test_a_cache_that_cannot_be_written_costs_a_warning_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CAUSALMAD_CACHE", str(tmp_path / "file"))
    model, card = get()
    assert torch.all(model[0].weight == 1)
    assert card["fingerprint"]
    assert "could not be kept" in caplog.text


def test_whoever_is_second_takes_what_the_first_wrote(folder):
    """Another process finishes while this one trains."""

    def slow(model: nn.Module) -> dict:
        get()
        return train(model)

    model = tied()
    cached("toy", {"shift": False}, "1", 0, model, slow)
    assert len(CALLS) == 2
    assert torch.all(model[0].weight == 1)
    assert len(list(folder.iterdir())) == 1


def in_a_process(number: int, results: "multiprocessing.Queue[str]") -> None:
    CALLS.extend([0] * number)  # each process would train other weights
    for _ in range(5):
        _, card = get()
        results.put(card["fingerprint"])


def test_processes_at_once_end_with_the_same_weights(folder):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=in_a_process, args=(number, results)) for number in range(3)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in range(15)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(set(found)) == 1
    assert len(list(folder.iterdir())) == 1
