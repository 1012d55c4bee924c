"""The laws themselves: they see what they are there to see."""

import numpy as np
import pytest
import torch

from causalmad import open_model
from causalmad.calibration import Conformal
from causalmad.errors import SpecError
from causalmad.references import Mahalanobis
from causalmad.signatures import Activations
from causalmad.testing import LawBroken, calibrator_laws, hold, reference_laws, signature_laws, toy, untouched


def broken():
    raise LawBroken("the sky is blue", "blue", "grey")


def kept():
    return None


def test_an_excuse_that_is_no_longer_needed_is_a_failure():
    excused = {("broken", "mine"): "it rains", ("kept", "mine"): "it rains"}
    hold(broken, "mine", excused=excused)
    with pytest.raises(LawBroken, match="grey"):
        hold(broken, "yours", excused=excused)
    hold(kept, "yours", excused=excused)
    with pytest.raises(LawBroken, match="drop the excuse"):
        hold(kept, "mine", excused=excused)
    everywhere = {("*", "mine on mlp"): "no residual stream"}
    hold(broken, "mine on mlp", excused=everywhere)
    with pytest.raises(LawBroken, match="drop the excuse"):
        hold(kept, "mine on mlp", excused=everywhere)
    with pytest.raises(LawBroken, match="grey"):
        hold(broken, "mine on conv", excused=everywhere)


@pytest.mark.parametrize(
    "leave",
    [
        lambda model: model[0].register_forward_hook(lambda *_: None),
        lambda model: model[0].weight.requires_grad_(False),
        lambda model: model.eval(),
        lambda model: setattr(model[0].weight, "grad", torch.zeros_like(model[0].weight)),
        lambda model: setattr(model[0], "note", 1),
        lambda model: setattr(model[0], "forward", model[0].forward),
        lambda model: model[0].weight.data.add_(1e-7),
        lambda model: torch.rand(1),
        lambda model: np.random.rand(),  # noqa: NPY002
    ],
)
def test_every_trace_is_seen(leave):
    made = toy("mlp", 2, 2)
    with pytest.raises(LawBroken, match="nothing is left"), untouched(made.model, "after a trace"):
        leave(made.model)


class Neighbours(Activations):
    """A signature whose rows depend on each other."""

    def fit(self, model, trusted, seed=0):
        return Centred(super().fit(model, trusted, seed))

    restore = Activations.restore


class Centred:
    def __init__(self, inner):
        self.inner, self.columns, self.state = inner, inner.columns, inner.state

    def __call__(self, inputs):
        found = self.inner(inputs)
        found.values[:] -= found.values.mean(0)
        return found


class Careless(Activations):
    """A signature that leaves a hook behind."""

    def fit(self, model, trusted, seed=0):
        model.module[0].register_forward_hook(lambda *_: None)
        return super().fit(model, trusted, seed)


def test_broken_signatures_are_seen():
    made = toy("mlp", 8, 6)
    with pytest.raises(LawBroken):
        signature_laws.law_rows_stand_alone(Neighbours(), made)
    with pytest.raises(LawBroken):
        signature_laws.law_nothing_is_left(Careless(), made)


class Wrong(Mahalanobis):
    """Mahalanobis with the other sign."""

    def fit(self, X):
        inner = super().fit(X)
        return type("Fitted", (), {"score_samples": lambda self, X: -inner.score_samples(X)})()


def test_broken_references_and_calibrators_are_seen():
    with pytest.raises(LawBroken, match="higher is more normal"):
        reference_laws.law_higher_is_more_normal(Wrong())

    class Bold(Conformal):
        def fit(self, scores):
            fitted = super().fit(scores)
            return type("Fitted", (), {"p_values": lambda self, new: fitted.p_values(new) - fitted.smallest})()

    with pytest.raises(LawBroken, match="super-uniform"):
        calibrator_laws.law_p_values_are_super_uniform(Bold())


def test_toys_are_the_same_every_time_and_named():
    one, other = toy("gpt2", 5, 3), toy("gpt2", 5, 3)
    assert one.trusted.digests == other.trusted.digests and len(one.fresh) == 3
    assert open_model(one.model).fingerprint() == open_model(other.model).fingerprint()
    assert one.model.training and len(set(toy("gpt2").trusted.lengths)) > 3
    with pytest.raises(SpecError, match="no toy is called"):
        toy("gpt3")
