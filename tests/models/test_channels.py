"""Which axis of an activation runs over channels."""

import pytest
import torch
from torch import nn

from causalmad import open_model
from causalmad.models.channels import channels_of
from causalmad.sites import Channels, Site
from causalmad.subspaces import Subspace

FIRST, LAST = Channels(1), Channels(-1)


class Block(nn.Module):
    """Parts whose order of execution no one can see."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return x


class Moved(nn.LayerNorm):
    """A norm over the second axis, as in ConvNeXt: it is called a layer norm and moves axes itself."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize(
    ("part", "known"),
    [
        (nn.Conv1d(2, 3, 1), Channels(1, 3)),
        (nn.ConvTranspose2d(2, 3, 1), Channels(1, 4)),
        (nn.BatchNorm3d(2), Channels(1, 5)),
        (nn.AdaptiveAvgPool1d(1), Channels(1, 3)),
        (nn.MaxPool2d(2), Channels(1, 4)),
        (nn.GroupNorm(1, 2), FIRST),
        (nn.Linear(2, 3), LAST),
        (nn.LayerNorm(3), LAST),
        (nn.LayerNorm((3, 4)), None),
        (Moved(3), None),
        (nn.Flatten(), None),
        (nn.GELU(), None),
        (nn.MultiheadAttention(4, 2), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_class_says_what_its_axes_are(part, known):
    assert channels_of(nn.Sequential(part), "0") == known


def test_an_activation_function_has_the_axes_of_what_stands_before_it_in_a_chain():
    chain = nn.Sequential(
        nn.Conv1d(2, 3, 1),
        nn.Dropout(),
        nn.ReLU(),
        nn.Sequential(nn.ReLU(), nn.Linear(3, 3), nn.GELU()),
        nn.ReLU(),
        nn.Flatten(),
        nn.ReLU(),
        Block(conv=nn.Conv2d(1, 1, 1)),
        nn.ReLU(),
    )
    found = {path: channels_of(chain, path) for path in ("2", "3.0", "3.2", "4", "6", "8")}
    assert found == {"2": Channels(1, 3), "3.0": Channels(1, 3), "3.2": LAST, "4": LAST, "6": None, "8": None}


def test_elsewhere_it_has_those_of_the_modules_around_it_where_they_agree():
    linear = Block(up=nn.Linear(2, 2), act=nn.GELU(), down=nn.Linear(2, 2), inner=Block(act=nn.ReLU()))
    model = Block(conv=nn.Conv2d(1, 2, 1), mlp=linear, act=nn.ReLU())
    assert channels_of(model, "mlp.act") == channels_of(model, "mlp.inner.act") == LAST
    assert channels_of(model, "act") is None and channels_of(model, "") is None


def test_sites_know_the_axis_and_are_what_they_were_else():
    model = open_model(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)))
    (site,) = model.sites("1")
    assert site.channels == Channels(1, 4) and site == Site("1") and str(site) == "1" and "channels" not in repr(site)
    assert [site.channel_axis(dims) for dims in (2, 3, 4, 5)] == [None, 2, 1, None]
    assert [Site("1").channel_axis(dims) for dims in (2, 3, 4, 5)] == [None, 2, 1, None]
    (within,) = model.sites(Site("3", subspace=Subspace.spanning(torch.eye(2)[:, :1])))
    assert model.sites("3")[0].channels == LAST and within.channels is None
