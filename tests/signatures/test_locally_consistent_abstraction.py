from dataclasses import replace

import numpy as np
import pytest
import torch

from causalmad import Detector, open_model
from causalmad.errors import FitError, SiteError
from causalmad.signatures.locally_consistent_abstraction import LocallyConsistentAbstraction, _train
from tests.signatures.families import BLOCKS, small
from tests.twins import locally_consistent_abstraction as twin
from tests.twins.resampling_profile import log_probabilities, read, run

PATHS = {"mlp": ("1", "4"), "conv": ("2", "5")}


def look(model, rows, name):
    """Activations (n, features) of two layers, and log-probabilities (n, classes)."""
    found = []
    for path in PATHS.get(name) or [BLOCKS[name].format(i) for i in (0, 1)]:
        values = [read(model, row, path, "output") for row in rows]
        found.append(np.stack([v.mean((1, 2)) if name == "conv" else v if v.ndim == 1 else v[-1] for v in values]))
    return [part.astype(np.float64) for part in found], [log_probabilities(run(model, row)) for row in rows]


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
@pytest.mark.parametrize("name", ["mlp", "conv", "gpt2"])
def test_columns_equal_plain_loops(name, engine):
    toy, model = small(name, 40, 4)
    spec = LocallyConsistentAbstraction(size=3, hidden=4, steps=20, classes=6)
    fitted = spec.fit(open_model(toy.model, batch_size=3, engine=engine), toy.trusted)
    values, logs = look(model, toy.fresh.main, name)
    classes = fitted.classes.tolist()
    assert classes[-1] == (-1 if name == "gpt2" else 2)
    expected = [
        twin.row([part[i] for part in values], twin.lumped(logs[i], classes), fitted.maps, fitted.steps)
        for i in range(4)
    ]
    np.testing.assert_allclose(fitted(toy.fresh).values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "gpt2"])
def test_training_equals_gram_schmidt_and_adam_written_out(name):
    toy, model = small(name, 48, 5)
    spec = LocallyConsistentAbstraction(size=3, hidden=0, steps=30, classes=30)
    fitted = spec.fit(open_model(toy.model), toy.trusted)
    rows = dict(zip(toy.trusted.digests, toy.trusted.main))
    values, logs = look(model, [rows[digest] for digest in fitted.donor_digests], name)
    maps, steps = twin.trained(values, np.array(logs), 3, 30)
    fresh, fresh_logs = look(model, toy.fresh.main, name)
    expected = [twin.row([part[i] for part in fresh], fresh_logs[i], maps, steps) for i in range(5)]
    # Offsets start where their slope is zero, which Adam divides by its own size: rounding becomes part of a step.
    np.testing.assert_allclose(fitted(toy.fresh).values, expected, rtol=0.01, atol=2e-3)
    other = replace(spec, steps=20).fit(open_model(toy.model), toy.trusted)
    assert np.abs(other(toy.fresh).values - expected).max() > 0.02


class Chain(torch.nn.Module):
    """Two linear layers; a number that is zero on trusted inputs enters the second past the first."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = (torch.nn.Linear(a, b) for a, b in ((6, 6), (6, 6), (6, 3)))
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.randn(value.shape, generator=draw) / 2)
        self.past, self.seen = torch.nn.Parameter(torch.randn(6, generator=draw)), torch.nn.Identity()

    def forward(self, x):
        return self.head(self.seen(self.second(self.first(x[:, :6])) + x[:, 6:] * self.past))


def draw(count, seed, past):
    x = torch.randn(count, 7, generator=torch.Generator().manual_seed(seed))
    x[:, 6] = past
    return x


def test_on_a_linear_chain_errors_vanish_but_for_what_breaks_it():
    model = open_model(Chain())
    spec = LocallyConsistentAbstraction(("first", "seen"), size=6, hidden=0, steps=1500)
    fitted = spec.fit(model, model.inputs(draw(400, 0, 0.0)))
    normal, bad = fitted(draw(50, 1, 0.0)).values, fitted(draw(50, 1, 3.0)).values
    # There is an exact linear abstraction: the layers themselves, whitened.
    assert normal[:, 0].max() < 0.01
    # Past the first layer the second is moved by 3 times `past`, and its abstraction by the image of that.
    moved = 3 * model.module.past.detach().double() @ fitted.maps[1][1]
    np.testing.assert_allclose(bad[:, 0], float(moved.square().mean()), rtol=0.15)
    assert bad[:, 0].min() > 20 * normal[:, 0].max()


def test_abstractions_are_white_and_no_better_than_canonical_correlations_allow():
    toy, model = small("mlp", 200, 4)
    spec = LocallyConsistentAbstraction(size=4, hidden=0, steps=200)
    opened = open_model(toy.model)
    fitted = spec.fit(opened, toy.trusted)
    own = [i for i, digest in enumerate(toy.trusted.digests) if digest in fitted.donor_digests]
    values, _ = look(model, [toy.trusted.main[i] for i in own], "mlp")
    for part, (mean, made) in zip(values, fitted.maps):
        abstract = (torch.from_numpy(part) - mean) @ made
        np.testing.assert_allclose(abstract.mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(abstract.T @ abstract / len(abstract), np.eye(4), atol=1e-6)
    bases = [np.linalg.svd(part - part.mean(0), full_matrices=False)[0] for part in values]
    bases = [basis[:, : np.linalg.matrix_rank(part - part.mean(0))] for basis, part in zip(bases, values)]
    correlations = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    least = 1 - float((correlations[:4] ** 2).mean())
    error = float(fitted(toy.trusted[own]).values[:, 0].mean())
    assert least - 1e-5 <= error < 1
    # Untrained, they are far from that.
    untrained = LocallyConsistentAbstraction(size=4, hidden=0, steps=1).fit(opened, toy.trusted)
    assert error < 0.8 * float(untrained(toy.trusted[own]).values[:, 0].mean())


def test_hidden_units_learn_what_is_not_linear():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(256, 2, generator=draw, dtype=torch.float64)
    y = x.abs() + 0.01 * torch.randn(256, 2, generator=draw, dtype=torch.float64)
    logs = torch.stack([y[:, 0], y[:, 1]], 1).log_softmax(1)
    errors = []
    for hidden in (0, 32):
        spec = LocallyConsistentAbstraction(size=2, hidden=hidden, steps=300)
        maps, steps = _train([x, y], logs, spec, 0)
        rows = [twin.row([x[i], y[i]], logs[i].tolist(), maps, steps) for i in range(40)]
        errors.append(np.mean(rows, axis=0)[0])
    assert errors[0] > 0.8 and errors[1] < 0.1


def test_inputs_that_trained_it_are_left_out_of_the_reference():
    toy, _ = small("gpt2", 48, 6)
    spec = LocallyConsistentAbstraction(steps=20)
    fitted = spec.fit(open_model(toy.model), toy.trusted)
    assert len(fitted.donor_digests) == 24 and set(fitted.donor_digests) < set(toy.trusted.digests)
    assert np.isfinite(Detector(spec).fit(toy.model, toy.trusted).score(toy.fresh)).all()


def test_constant_layers_and_outputs_give_finite_numbers():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3), torch.nn.ReLU())
    model = model.append(torch.nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.zero_()
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    opened = open_model(model)
    fitted = LocallyConsistentAbstraction(steps=10).fit(opened, opened.inputs(x))
    assert np.isfinite(fitted(x).values).all() and np.isfinite(fitted(x + 1).values).all()


def test_one_site_bad_options_and_too_few_inputs_are_named():
    toy, _ = small("gpt2")
    for bad in ({"size": 0}, {"steps": 0}, {"classes": 0}, {"hidden": -1}):
        with pytest.raises(FitError, match="at least 1"):
            LocallyConsistentAbstraction(**bad)
    with pytest.raises(SiteError, match="one site"):
        LocallyConsistentAbstraction("transformer.h.0").fit(open_model(toy.model), toy.trusted)
    with pytest.raises(FitError, match="7 distinct trusted inputs"):
        LocallyConsistentAbstraction().fit(open_model(toy.model), toy.trusted[:7])
