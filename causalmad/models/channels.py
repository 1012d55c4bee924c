"""Which axis of an activation runs over channels, from the modules that write it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from causalmad.sites import Channels

_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)
_SECOND = (nn.GroupNorm, nn.SyncBatchNorm)


def channels_of(module: nn.Module, path: str) -> Channels | None:
    """The axis of channels in what a part of a model reads and writes, or None where it does not show.

    Convolutions, batch norms and pools go over the axes behind the second, linear maps and layer norms over the last
    one. What keeps the axes as they are (activation functions, dropout) has that of what stands before it in a
    ``Sequential``, elsewhere that of the modules around it where these agree. Of all others it is not known: what a
    module with a ``forward`` of its own does with its axes is its own affair.

    Args:
        module: the plain module.
        path: of the part.
    """
    part = module.get_submodule(path)
    if not _keeps_axes(part):
        return _declared(part)
    while path:
        path, _, name = path.rpartition(".")
        parent = module.get_submodule(path)
        if _is_chain(parent):
            names = [place for place, _ in parent.named_children()]
            before = [parent.get_submodule(place) for place in names[: names.index(name)]]
            near = next((one for child in reversed(before) for one in _backwards(child) if not _keeps_axes(one)), None)
            if near is not None:
                return _declared(near)
        else:
            around = {found for one in parent.modules() if (found := _declared(one)) is not None}
            if around:
                return around.pop() if len(around) == 1 else None
    return None


def _declared(part: nn.Module) -> Channels | None:
    """What the module's class says of its axes."""
    for kind in type(part).__mro__:
        spatial = re.fullmatch(r"\w+([123])d", kind.__name__)
        if spatial and kind.__module__.startswith("torch.nn.modules."):
            return Channels(1, int(spatial[1]) + 2)
    if isinstance(part, _SECOND):
        return Channels(1)
    own = next((kind for kind in _LAST if isinstance(part, kind) and type(part).forward is kind.forward), None)
    return None if own is None or len(getattr(part, "normalized_shape", (1,))) > 1 else Channels(-1)


def _keeps_axes(part: nn.Module) -> bool:
    if isinstance(part, (nn.Dropout, nn.Identity)):
        return True
    known = type(part).__module__ in ("torch.nn.modules.activation", "transformers.activations")
    return known and not isinstance(part, nn.MultiheadAttention)


def _is_chain(part: nn.Module) -> bool:
    return isinstance(part, nn.Sequential) and type(part).forward is nn.Sequential.forward


def _backwards(part: nn.Module) -> Iterator[nn.Module]:
    """The parts of a chain from its end; anything else as a whole, whose last part need not be the last to run."""
    if _is_chain(part):
        for child in reversed(list(part.children())):
            yield from _backwards(child)
    else:
        yield part
