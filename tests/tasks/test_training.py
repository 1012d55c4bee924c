import random

import numpy as np
import pytest
import torch
from torch import nn

from causalmad.errors import TaskError
from causalmad.tasks.training import ATTEMPTS, Recipe, one_cycle, trained


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSALMAD_CACHE", str(tmp_path))


def recipe(*grades: float, **changes) -> Recipe:
    """A recipe whose attempts are graded as given."""
    left = iter(grades)

    def train(model, rng, step):
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(rng.random((1, 1))) + torch.rand(1, 1))
        for done in range(3):
            step(done + 1)

    def grade(model):
        assert not model.training
        return {"normal": 1.0, "anomalous": next(left)}

    return Recipe(
        **{"name": "toy", "version": "1", "steps": 3, **changes},
        build=lambda: nn.Linear(1, 1),
        train=train,
        grade=grade,
    )


def test_a_model_that_is_not_right_is_trained_again_from_another_seed(caplog):
    model, card = trained(recipe(0.5, 0.94, 0.95), seed=3)
    assert card["attempts"] == 3
    assert card["accuracy"] == {"normal": 1.0, "anomalous": 0.95}
    assert not model.training
    assert "attempt 2: right on 100.0% of normal, 94.0% of anomalous" in caplog.text
    first, _ = trained(recipe(1.0, name="other"), seed=3)
    assert not torch.equal(model.weight, first.weight)


def test_an_error_names_the_figures():
    with pytest.raises(TaskError, match=r"seed 0: 4 models .*50\.0% of anomalous; .*90\.0% of anomalous") as caught:
        trained(recipe(0.5, *[0.9] * (ATTEMPTS - 1)), seed=0)
    assert "95%" in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 0.5, "0"])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(TaskError, match="seed"):
        trained(recipe(1.0), seed=seed)


def test_numpy_integers_are_seeds_too():
    first, second = (trained(recipe(1.0), seed)[0] for seed in (np.int64(4), 4))
    assert torch.equal(first.weight, second.weight)


def test_no_trace_on_the_process():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    threads = torch.get_num_threads()
    with torch.inference_mode():
        model, _ = trained(recipe(1.0), seed=0)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert threads == torch.get_num_threads()
    assert not model.weight.is_inference()


def test_same_seed_same_bits_whatever_the_global_state(tmp_path, monkeypatch):
    weights = []
    for number in range(2):
        monkeypatch.setenv("CAUSALMAD_CACHE", str(tmp_path / str(number)))
        torch.manual_seed(number)
        weights.append(trained(recipe(1.0), seed=0)[0].weight)
    assert torch.equal(*weights)


def test_progress_counts_the_steps():
    seen = []
    trained(recipe(1.0), 0, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    trained(recipe(1.0), 0, lambda done, total: pytest.fail("the model is in the cache"))


def test_a_bar_on_a_terminal_only(monkeypatch, capsys):
    trained(recipe(1.0), seed=0)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    trained(recipe(1.0), seed=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "training toy, seed 1" in err


def test_one_cycle_rises_and_falls():
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5)
    rates = []
    set_rate = one_cycle(optimiser, 100, warm=0.2)
    for step in range(100):
        set_rate(step)
        rates.append(optimiser.param_groups[0]["lr"])
    assert np.argmax(rates) == 19
    assert max(rates) == 0.5
    assert np.all(np.diff(rates[:20]) > 0)
    assert np.all(np.diff(rates[19:]) < 0)
    assert 0 < rates[-1] < 1e-3
