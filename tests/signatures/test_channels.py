"""Networks that compute the same with their axes in another order have the same signatures."""

import numpy as np
import pytest
import torch
from torch import nn

from causalmad import open_model
from causalmad.signatures import (
    Activations,
    GramDeviation,
    LayerTransitions,
    ProbeLogits,
    TopologicalTrajectory,
)

SITES = ("1", "3")
SPECS = [
    Activations(SITES),
    Activations(("0", "1")),
    GramDeviation(SITES),
    GramDeviation("1", most_features=3),
    LayerTransitions(SITES),
    ProbeLogits(SITES),
    TopologicalTrajectory(SITES),
]


class Pixels(nn.Module):
    """What a network of linear maps over pixels does, channels last."""

    def __init__(self):
        super().__init__()
        self.names = ("0", "1", "2", "3")
        for name, part in zip(self.names, (nn.Linear(2, 6), nn.GELU(), nn.Linear(6, 4), nn.GELU())):
            setattr(self, name, part)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        for name in self.names:
            x = getattr(self, name)(x)
        return self.last(x.mean((1, 2)))


def lines():
    """Convolutions over five places in one axis, and in two of which one has length one."""
    tail = nn.Sequential(nn.Flatten(), nn.Linear(20, 3))
    one = nn.Sequential(nn.Conv1d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 4, 1), nn.ReLU(), tail)
    two = nn.Sequential(nn.Conv2d(2, 6, (1, 3), padding=(0, 1)), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.ReLU(), tail)
    _copy(one, two)
    x = torch.randn(40, 2, 5)
    return (one, x), (two, x[:, :, None])


def pixels():
    """Linear maps over pixels, channels last, and convolutions that see one pixel, channels first."""
    last = Pixels()
    tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), last.last)
    first = nn.Sequential(nn.Conv2d(2, 6, 1), nn.GELU(), nn.Conv2d(6, 4, 1), nn.GELU(), tail)
    _copy(last, first)
    x = torch.randn(40, 3, 5, 2) + 4 * torch.randn(40, 1, 1, 2)
    last.last.bias.data -= last(x).mean(0).detach()  # so that answers differ
    return (last, x), (first, x.movedim(-1, 1).contiguous())


def _copy(one, other):
    for source, target in ((one.get_submodule(name), other.get_submodule(name)) for name in ("0", "2")):
        with torch.no_grad():
            target.weight.copy_(source.weight.view_as(target.weight))
            target.bias.copy_(source.bias)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize("pair", [lines, pixels])
def test_the_order_of_axes_changes_no_signature(pair, spec):
    torch.manual_seed(0)
    found = []
    for model, x in pair():
        opened = open_model(model)
        fitted = spec.fit(opened, opened.inputs(x[:30]), seed=0)
        found.append(fitted(x[30:]))
    np.testing.assert_allclose(found[0].values, found[1].values, rtol=1e-3, atol=1e-4)
    assert [column.unit for column in found[0].columns] == [column.unit for column in found[1].columns]


def test_activations_of_convolutions_over_a_line_are_means_over_its_places():
    torch.manual_seed(0)
    (model, x), _ = lines()
    opened = open_model(model)
    fitted = Activations("1").fit(opened, opened.inputs(x))
    np.testing.assert_allclose(fitted(x).values, model[:2](x).detach().mean(-1), atol=1e-6)
    assert len(fitted.columns) == 6
