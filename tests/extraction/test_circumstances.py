"""Hooks, autocast and the argument that inputs are passed as: a cache never gives the rows of another case."""

import copy
import functools
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import causalmad as cm
from causalmad.errors import CacheError
from causalmad.extraction.circumstances import circumstances
from tests.extraction.counted import made

STEERED = torch.ones(8)


def by_global(part, args, output):
    return output + STEERED


class Steering:
    def __init__(self, by):
        self.by = by

    def __call__(self, part, args, output):
        return output + self.by

    def method(self, part, args, output):
        return output + self.by


def plus(part, args, output, by):
    return output + by


def within(by):
    return lambda part, args, output: output + by


def usual(by):
    def hook(part, args, output, by=by):
        return output + by

    return hook


KINDS = [within, usual, Steering, lambda by: Steering(by).method, lambda by: functools.partial(plus, by=by)]


def scores(fitted, fresh, folder):
    """Through a cache, after having seen that they are those without one."""
    found = fitted.score(fresh, cache=folder)
    np.testing.assert_allclose(found, fitted.score(fresh), rtol=1e-5)
    return found


@pytest.mark.parametrize("opened", [False, True])
def test_a_hook_is_part_of_the_address(tmp_path, opened):
    fitted, fresh = made(20)
    folder = cm.Cache(tmp_path) if opened else tmp_path
    module, found = fitted.model.module, [scores(fitted, fresh, tmp_path)]
    for make in KINDS:
        for by in (2.0, torch.full((8,), 3.0), torch.arange(8.0)):
            handle = module.first.register_forward_hook(make(by))
            found.append(scores(fitted, fresh, folder))
            assert cm.extract(fitted, fresh, cache=folder).computed == 0
            handle.remove()
    # Where it is, and in which order, counts as well.
    for part in (module.act, module.first):
        handle = part.register_forward_pre_hook(lambda part, args: (args[0][:, :] * 2,))
        found.append(scores(fitted, fresh, folder))
        handle.remove()
    assert len(np.unique(np.round(found, 3), axis=0)) == 1 + 3 + 2
    np.testing.assert_array_equal(scores(fitted, fresh, folder), found[0])
    assert cm.extract(fitted, fresh, cache=folder).computed == 0


def test_what_a_hook_names_counts_too(tmp_path, monkeypatch):
    fitted, fresh = made(20)
    fitted.model.module.first.register_forward_hook(by_global)
    before = scores(fitted, fresh, tmp_path)
    monkeypatch.setitem(globals(), "STEERED", torch.full((8,), 2.0))
    assert not np.allclose(scores(fitted, fresh, tmp_path), before)
    spliced = nn.Linear(8, 8)
    fitted.model.module.first.register_forward_hook(lambda part, args, output: spliced(output))
    before = scores(fitted, fresh, tmp_path)
    with torch.no_grad():
        spliced.weight.mul_(2)
    assert not np.allclose(scores(fitted, fresh, tmp_path), before)


def test_a_hook_that_cannot_be_written_down_is_refused(tmp_path):
    fitted, fresh = made(20)
    lock = threading.Lock()
    handle = fitted.model.module.first.register_forward_hook(lambda part, args, output: lock.locked() or None)
    with pytest.raises(CacheError, match=r"hook .* on first cannot be part of an address[\s\S]*handle.remove\(\)"):
        fitted.score(fresh, cache=tmp_path)
    handle.remove()
    scores(fitted, fresh, tmp_path)


def test_hooks_of_libraries(model_of, prompts):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert circumstances(net) == {}
    prune.l1_unstructured(net[0], "weight", amount=0.3)
    (text,) = circumstances(net)["hooks"]
    assert "L1Unstructured" in text and circumstances(net) == {"hooks": [text]}
    # Those of transformers only look.
    gpt = copy.deepcopy(model_of("gpt2"))
    gpt(prompts[0]["input_ids"][None], output_hidden_states=True)
    assert any(part._forward_hooks for part in gpt.modules()) and circumstances(gpt) == {}


def test_autocast_is_part_of_the_address(tmp_path):
    fitted, fresh = made(20)
    for folder in (tmp_path / "a", cm.Cache(tmp_path / "b")):
        with torch.autocast("cpu", torch.bfloat16):
            cast = scores(fitted, fresh, folder)
        plain = scores(fitted, fresh, folder)
        assert not np.allclose(cast, plain, rtol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            np.testing.assert_array_equal(fitted.score(fresh, cache=folder), cast)


class Either(nn.Module):
    """Two ways in."""

    def __init__(self):
        super().__init__()
        self.eye, self.ear, self.last = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, image=None, sound=None):
        return self.last(torch.relu(self.ear(sound) if image is None else self.eye(image)))


def test_the_argument_that_inputs_are_passed_as_is_part_of_the_address(tmp_path):
    torch.manual_seed(0)
    net, data = Either(), torch.randn(60, 4)
    fitted = cm.Detector(cm.signatures.OutputOnly()).fit(net, {"image": data})
    seen = scores(fitted, {"image": data[:5]}, tmp_path)
    heard = scores(fitted, {"sound": data[:5]}, tmp_path)
    assert not np.allclose(seen, heard)
    # By position and by the name of the first argument is the same.
    assert cm.extract(fitted, data[:5], cache=tmp_path).computed == 0
    assert cm.extract(fitted, {"sound": data[:5]}, cache=tmp_path).computed == 0
