"""Sites: named places in a model's module tree, as text and as slices of an activation.

Text form: ``path[:side[element]][#head=list|#neuron=list][@position]``, for example
``transformer.h.5.attn#head=3,9@-1``, ``model.layers.2.mlp.down_proj:input@all`` or ``bert.encoder.layer.0.output``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from causalmad.errors import InputsError, SiteError
from causalmad.inputs import Batch
from causalmad.subspaces import Subspace

POOLS = ("mean", "max", "min", "sum")
MOST = 1 << 20  # heads or neurons that a text can name: more would fill the memory before any model says no

_FORM = re.compile(
    r"^(?P<path>[^:#@\[\]]*)"
    r"(?::(?P<side>input|output)(?:\[(?P<element>[^\]]+)\])?)?"
    r"(?:#(?P<unit>head|neuron)=(?P<which>[0-9,\-]+))?"
    r"(?:@(?P<position>[^@#]+))?$"
)


class Place(NamedTuple):
    """What an engine reads or edits as a whole: one tensor that goes into or comes out of a module."""

    path: str
    side: Literal["input", "output"] = "output"
    element: int | str | None = None

    def __str__(self) -> str:
        """The text form of a site without its slice."""
        element = "" if self.element is None else f"[{self.element}]"
        return self.path if (self.side, element) == ("output", "") else f"{self.path}:{self.side}{element}"


class Channels(NamedTuple):
    """Which axis of an activation runs over channels, and of how many axes that is known; None = of any number."""

    axis: int
    dims: int | None = None


@dataclass(frozen=True)
class Site:
    """A place in the module tree, and optionally which part of its activation.

    Attributes:
        path: dotted path as in ``named_modules()``; empty for the model itself.
        side: the module's ``input`` or its ``output``.
        element: which element of a tuple (a number) or of keyword arguments (a name); None takes the first tensor.
        heads: which heads, of an activation whose last axis is made of ``head_count`` equal parts.
        neurons: which entries of the last axis.
        position: ``-1`` is the last real token, ``0`` the first; a name is looked up in the data's columns; ``all``
            pools over the real tokens by the mean, ``all:max`` by another of mean, max, min, sum; None keeps them.
        head_count: number of heads, filled in when the site is resolved on a model.
        subspace: directions among these features: the site then holds the coordinates (..., dimensions) in them, and
            an edit leaves the rest of the activation as it is. It has no text form.
        channels: the axis of channels, where the modules say it; filled in when the site is resolved on a model.
    """

    path: str
    side: Literal["input", "output"] = "output"
    element: int | str | None = None
    heads: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    position: int | str | None = None
    head_count: int = 0
    subspace: Subspace | None = None
    channels: Channels | None = field(default=None, compare=False, repr=False)

    @property
    def place(self) -> Place:
        """The whole tensor of which this site is a part."""
        return Place(self.path, self.side, self.element)

    @classmethod
    def parse(cls, text: str) -> Site:
        """The site that a text stands for.

        Raises:
            SiteError: when the text is not of the form above.
        """
        found = _FORM.match(text.strip())
        if found is None and "#subspace=" in text:
            raise SiteError(f"{text!r} names a subspace, which has no text form", needed="the Site itself")
        if found is None:
            raise SiteError(
                f"{text!r} is no site",
                needed="path[:input|:output][#head=list|#neuron=list][@position]",
                tries=["transformer.h.5.attn#head=3,9@-1", "model.layers.2.mlp:input@all"],
            )
        element, position = found["element"], found["position"]
        which = _numbers(found["which"]) if found["which"] else ()
        return cls(
            found["path"],
            "input" if found["side"] == "input" else "output",
            int(element) if element and element.isdigit() else element,
            which if found["unit"] == "head" else (),
            which if found["unit"] == "neuron" else (),
            int(position) if position and re.fullmatch(r"-?\d+", position) else position,
        )

    def __str__(self) -> str:
        """The text form."""
        parts = str(self.place)
        for unit, which in (("head", self.heads), ("neuron", self.neurons)):
            parts += f"#{unit}={','.join(map(str, which))}" if which else ""
        parts += f"#subspace={self.subspace}" if self.subspace else ""
        return parts if self.position is None else f"{parts}@{self.position}"

    def at(self, position: int | str | None) -> Site:
        """The same place at another position."""
        return replace(self, position=position)

    def within(self, subspace: Subspace | None) -> Site:
        """The same place, of which only a subspace is meant."""
        return replace(self, subspace=subspace)

    def take(self, value: Tensor, batch: Batch) -> Tensor:
        """The part of an activation that this site names.

        Args:
            value: (batch, ...) activation of the whole place.
            batch: what the model was called with; its mask says which tokens are real.

        Returns:
            (batch, features) with a position, otherwise (batch, positions, features) or the shape of ``value``.
            With a subspace the features are coordinates in it.
        """
        part = self._features(value)
        if self.position is None or not _sequential(value, batch):
            return self._within(part)
        self._require_rows(value, batch)
        if isinstance(self.position, str) and self.position.partition(":")[0] == "all":
            return pool(self._within(part), batch.mask, self.position.partition(":")[2] or "mean")
        return self._within(
            part[torch.arange(len(batch), device=part.device), position_index(self.position, batch).to(part.device)]
        )

    def channel_axis(self, dims: int) -> int | None:
        """The axis of channels among those of an activation of inputs that are no tokens; the others are places.

        It is what the modules say (:func:`causalmad.models.channels.channels_of`); where they say nothing, the last of
        three axes, as in transformers, and the second of four, as in networks for images.

        Args:
            dims: how many axes the activation has, that of the inputs among them.

        Returns:
            The axis, or None for vectors, and for more axes than four of which nothing is known.
        """
        usual = {3: 2, 4: 1}.get(dims)
        if self.channels is None or dims < 3 or self.channels.dims not in (None, dims):
            return usual
        return self.channels.axis % dims

    def put(self, value: Tensor, new: Tensor, batch: Batch) -> Tensor:
        """``value`` with the part that this site names replaced by ``new``; ``value`` itself stays as it is.

        Args:
            value: the whole activation, (batch, ...).
            new: what :meth:`take` gives for another activation, (batch, features) or with more axes.
            batch: the inputs, whose padding says where a token is.

        Raises:
            SiteError: when the site is a statistic over tokens, which nothing can be put into.
        """
        if self.subspace is not None:
            return self._put_within(self.subspace, value, new, batch)
        mask = torch.zeros_like(value, dtype=torch.bool)
        inner = self._features(mask)
        if self.position is None or not _sequential(value, batch):
            inner = torch.ones_like(inner)
        elif isinstance(self.position, str) and self.position.partition(":")[0] == "all":
            raise SiteError(f"{self} is a pooled position", needed="a single position, to replace it")
        else:
            self._require_rows(value, batch)
            inner = inner.clone()
            index = position_index(self.position, batch).to(value.device)
            inner[torch.arange(len(batch), device=value.device), index] = True
            new = new.unsqueeze(1) if new.ndim == inner.ndim - 1 else new
        try:
            whole = new.to(value.dtype).expand_as(inner)
        except RuntimeError as error:
            raise SiteError(
                f"{tuple(new.shape)} cannot be put at {self}", needed=f"a shape that broadcasts to {tuple(inner.shape)}"
            ) from error
        return torch.where(self._spread(inner, mask), self._spread(whole, value), value)

    def _within(self, part: Tensor) -> Tensor:
        return part if self.subspace is None else self.subspace.coordinates(part)

    def _put_within(self, subspace: Subspace, value: Tensor, new: Tensor, batch: Batch) -> Tensor:
        whole = self.within(None)
        part = whole.take(value, batch)
        if new.ndim == part.ndim + 1 and new.shape[1] == 1:
            new = new.squeeze(1)
        try:
            filled = subspace.replace(part, new)
        except RuntimeError as error:
            raise SiteError(
                f"{tuple(new.shape)} cannot be put at {self}",
                needed=f"coordinates that broadcast to {(*part.shape[:-1], subspace.dimensions)}",
            ) from error
        return whole.put(value, filled, batch)

    def _require_rows(self, value: Tensor, batch: Batch) -> None:
        require_rows(value, self, batch)

    def _features(self, value: Tensor) -> Tensor:
        self._require_width(value)
        if self.heads:
            heads = value if value.ndim == 4 else value.unflatten(-1, (self.head_count, -1))
            return heads[..., list(self.heads), :].flatten(-2)
        return value[..., list(self.neurons)] if self.neurons else value

    def _require_width(self, value: Tensor) -> None:
        width = value.shape[-1] if value.ndim else 0
        if self.heads:
            count = value.shape[-2] if value.ndim == 4 else self.head_count
            if not count or (value.ndim != 4 and width % count) or max(self.heads) >= count:
                raise SiteError(
                    f"{self} asks for head {max(self.heads)} of an activation of shape {tuple(value.shape)}",
                    needed=f"a last axis made of {count} equal heads" if count else "a site resolved on a model",
                    tries=["open_model(model).sites(text)"],
                )
        elif self.neurons and not all(-width <= index < width for index in self.neurons):
            raise SiteError(f"{self}: the last axis has {width} entries", tries=[f"#neuron=0-{width - 1}"])

    def _spread(self, part: Tensor, like: Tensor) -> Tensor:
        """The way back from :meth:`_features`: ``part`` at its place in a tensor shaped as ``like``."""
        if not (self.heads or self.neurons):
            return part
        out = torch.zeros_like(like)
        if self.neurons:
            out[..., list(self.neurons)] = part
            return out
        heads = out if out.ndim == 4 else out.unflatten(-1, (self.head_count, -1))
        heads[..., list(self.heads), :] = part.unflatten(-1, (len(self.heads), -1))
        return out


def require_rows(value: Tensor, place: Place | Site, batch: Batch, *, tokens: bool = False) -> None:
    """Nothing, where the first axis of an activation runs over the inputs.

    Args:
        value: (batch, ...) the activation.
        place: where it was read.
        batch: the inputs.
        tokens: whether the second axis has to run over their padded tokens, where the inputs are any.

    Raises:
        SiteError: where it does not.
    """
    wanted = (len(batch),) if batch.mask is None or not tokens else tuple(batch.mask.shape)
    if tuple(value.shape[: len(wanted)]) == wanted:
        return
    wide = len(wanted) > 1
    raise SiteError(
        f"{str(place) or 'the input'} has {value.shape[0] if value.ndim else 'no'} rows for {len(batch)} inputs"
        + (f" of {wanted[1]} tokens: its shape is {tuple(value.shape)}" if wide else ""),
        needed=f"a first axis that runs over the inputs{', and a second one over their tokens' if wide else ''}",
        causes=[
            "a model that puts positions first (XLNet), or pads its inputs itself (Longformer)",
            "a part that sees tokens one by one, such as an expert",
        ],
        tries=["sites that hold whole rows, such as those of blocks", "signatures without sites: resampling-profile"],
    )


def position_index(position: int | str, batch: Batch) -> Tensor:
    """(batch,) where a position lies in the padded rows.

    Args:
        position: a number (negative from the end) among the real tokens, or the name of a column of such numbers.
        batch: the inputs.

    Raises:
        SiteError: when no column has that name.
        InputsError: when an input is too short.
    """
    if batch.mask is None:
        raise SiteError(f"position @{position} on inputs that are no sequences", needed="token inputs")
    count = batch.mask.sum(-1)
    if isinstance(position, str):
        if position not in batch.columns:
            raise SiteError(
                f"no position column {position!r} comes with the data",
                tries=[*(f"@{name}" for name in list(batch.columns)[:3]), "@-1", "@all"],
            )
        wanted = torch.as_tensor(batch.columns[position].astype(int), device=count.device)
    else:
        wanted = torch.full_like(count, position)
    wanted = torch.where(wanted < 0, wanted + count, wanted)
    outside = (wanted < 0) | (wanted >= count)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise InputsError(
            f"position @{position} lies outside {int(outside.sum())} inputs; row {int(batch.rows[row])} has "
            f"{int(count[row])} tokens",
            tries=["@-1, the last real token", "drop the inputs that are too short"],
        )
    return batch.mask.long().argmax(-1) + wanted


def pool(value: Tensor, mask: Tensor | None, how: str) -> Tensor:
    """(batch, features) statistic over the real tokens of (batch, positions, features).

    Args:
        value: (batch, positions, features) activations.
        mask: (batch, positions) True at real tokens, or None where all are.
        how: ``mean``, ``max``, ``min`` or ``sum``.

    Raises:
        SiteError: when ``how`` is another word.
    """
    if how not in POOLS:
        raise SiteError(f"no pooling {how!r}", tries=[f"@all:{name}" for name in POOLS])
    keep = torch.ones(value.shape[:2], dtype=torch.bool, device=value.device) if mask is None else mask
    keep = keep[..., None]
    if how in ("max", "min"):
        fill = float("-inf") if how == "max" else float("inf")
        filled = value.masked_fill(~keep, fill)
        return filled.amax(1) if how == "max" else filled.amin(1)
    total = torch.where(keep, value, 0).sum(1)
    return total if how == "sum" else total / keep.sum(1)


def _sequential(value: Tensor, batch: Batch) -> bool:
    """Whether axis 1 of an activation runs over tokens."""
    return value.ndim >= 3 and (batch.mask is None or value.shape[1] == batch.mask.shape[1])


def _numbers(text: str) -> tuple[int, ...]:
    """``3,9`` or ``0-3`` as numbers."""
    found: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.partition("-")
        try:
            named = range(int(first), int(last) + 1) if dash else (int(first),)
            if named and named[-1] - named[0] + len(found) >= MOST:
                raise SiteError(f"{text!r} names more than {MOST:,} heads or neurons")
            found += named
        except ValueError:
            raise SiteError(f"{text!r} is no list of numbers", tries=["3,9", "0-3"]) from None
    if not found:
        raise SiteError(f"{text!r} is an empty list of numbers", tries=["3,9", "0-3"])
    return tuple(found)
