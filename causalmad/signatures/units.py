"""Units: the parts of the input or of the model that are replaced, or to which an output is attributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from causalmad.errors import FitError
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.sites import Place, Site

KINDS = ("blocks", "positions", "residual", "heads", "mlps", "neurons", "layers")
_STRETCHES = 4  # parts of a layer of no known family


@dataclass(frozen=True)
class Group:
    """Units of one kind that stand beside each other.

    Attributes:
        name: ``blocks``, ``positions``, ``heads``, ``mlps``, ``neurons``, ``layers``, or ``residual`` with its layer.
        names: the units, where there is a fixed number of them; empty for token positions.
        sites: (units,) where the units are in the model; empty for parts of the input, and a single one for positions
            in the residual stream, or of one head or MLP.
        masks: (units, ...) bool, which entries of one input row each unit holds; empty for token positions.
    """

    name: str
    names: tuple[str, ...] = ()
    sites: tuple[Site, ...] = ()
    masks: tuple[Tensor, ...] = ()

    @property
    def ragged(self) -> bool:
        """Whether the units are token positions, of which every input has its own number."""
        return not self.names

    def count(self, batch: Batch) -> Tensor:
        """(batch,) number of units of every input."""
        if self.ragged and batch.mask is not None:
            return batch.mask.sum(-1)
        return torch.full((len(batch),), len(self.names))


def groups(model: OpenModel, inputs: Inputs, units: str | Sequence[str]) -> tuple[Group, ...]:
    """The groups that a list of unit names means for this model and these inputs.

    Args:
        model: the opened model.
        inputs: trusted inputs, for their blocks and their kind.
        units: names out of ``blocks``, ``positions``, ``residual``, ``heads``, ``mlps``, ``neurons``, ``layers`` (four
            stretches of every hidden layer, for any module); or ``auto``: the blocks where the data declares them,
            otherwise the positions, and the heads where the model has them.

    Raises:
        FitError: on an unknown unit, or blocks that the data does not declare.
    """
    if units == "auto":
        wanted = ["blocks" if inputs.blocks else "positions"]
        wanted += ["heads"] if model.architecture is not None and model.architecture.heads else []
    else:
        wanted = [units] if isinstance(units, str) else list(units)
    unknown = [name for name in wanted if name not in KINDS]
    if unknown or not wanted:
        raise FitError(f"no unit {unknown[0]!r}" if unknown else "no units at all", tries=[*map(repr, KINDS), "'auto'"])
    return tuple(group for name in wanted for group in _groups(model, inputs, name))


def _groups(model: OpenModel, inputs: Inputs, name: str) -> tuple[Group, ...]:
    if name == "blocks":
        return (_blocks(inputs),)
    if name == "positions":
        return (Group("positions") if inputs.tokens else _places(inputs),)
    if name == "residual":
        sites = model.sites("residual")
        if inputs.tokens:
            return tuple(Group(f"residual {layer}", sites=(site,)) for layer, site in enumerate(sites))
        return (Group("residual", tuple(map(str, sites)), sites),)
    if name == "neurons":
        return tuple(Group(f"neurons {site.path}", (str(site),), (site,)) for site in model.sites("neurons"))
    sites = _stretches(model, inputs) if name == "layers" else model.sites(name)
    return (Group(name, tuple(map(str, sites)), sites),)


def by_position(group: Group) -> tuple[Group, ...]:
    """A group of heads or MLPs as one group for each of them, whose units are its token positions."""
    return tuple(
        Group(f"{group.name} {name}", sites=(site,)) for name, site in zip(group.names, group.sites, strict=True)
    )


def _stretches(model: OpenModel, inputs: Inputs) -> tuple[Site, ...]:
    """Four stretches of the last axis of every hidden layer: a whole layer of a chain replaced is the donor itself."""
    sites = model.sites("layers")
    (batch,) = model.batches(inputs[:1])
    values = model.run(batch, read=[site.place for site in sites], output=False).values
    found = []
    for site in sites:
        shape = values[site.place].shape
        if len(shape) < 2 or shape[0] != 1:
            raise FitError(
                f"{site} gives {tuple(shape)} for one input, which has no rows of features",
                tries=["units='positions'", "units='blocks'"],
            )
        stretches = torch.arange(shape[-1]).tensor_split(min(_STRETCHES, shape[-1]))
        found += [replace(site, neurons=tuple(part.tolist())) for part in stretches]
    return tuple(found)


def _blocks(inputs: Inputs) -> Group:
    if not inputs.blocks:
        raise FitError(
            "the inputs declare no blocks",
            needed="named parts of the main field",
            tries=["Inputs.of(x, blocks={'left half': (0, 64), 'right half': (64, 128)})", "units='positions'"],
        )
    names = tuple(inputs.blocks)
    if inputs.tokens:
        return Group("blocks", names, masks=tuple(_token_span(inputs, name) for name in names))
    return Group("blocks", names, masks=tuple(inputs.block_mask(name) for name in names))


def _token_span(inputs: Inputs, name: str) -> Tensor:
    """(longest,) bool over the tokens of a row, counted from its first."""
    block = inputs.blocks[name]
    mask = torch.zeros(int(inputs.lengths.max()), dtype=torch.bool)
    if isinstance(block, Tensor):
        mask[: len(block)] = block
    else:
        mask[block[0] : block[1]] = True
    return mask


def _places(inputs: Inputs, most: int = 16) -> Group:
    """Positions of inputs that are no tokens: a grid of at most 4 x 4 patches of an image, 16 stretches of a vector."""
    shape = inputs.main[0].shape
    axes = len(shape) if len(shape) < 2 else 2
    edges = [torch.linspace(0, size, min(size, round(most ** (1 / axes))) + 1).round().long() for size in shape[-axes:]]
    names, masks = [], []
    for cell in torch.cartesian_prod(*[torch.arange(len(edge) - 1) for edge in edges]).reshape(-1, axes).tolist():
        spans = [(int(edge[i]), int(edge[i + 1])) for edge, i in zip(edges, cell, strict=True)]
        mask = torch.zeros(shape, dtype=torch.bool)
        slices: list[Any] = [slice(*span) for span in spans]
        mask[(..., *slices)] = True
        names.append(",".join(f"{start}:{stop}" for start, stop in spans))
        masks.append(mask)
    return Group("positions", tuple(names), masks=tuple(masks))


def real_tokens(batch: Batch) -> Tensor:
    """(batch, positions) bool.

    Raises:
        FitError: when the inputs are no tokens.
    """
    if batch.mask is None:
        raise FitError("token positions of inputs that are no tokens", tries=["units='blocks'"])
    return batch.mask


def root() -> Place:
    """The place of the main field: what the model itself is called with."""
    return Place("", "input")


def embedding(model: OpenModel) -> Place:
    """The place where token ids have become vectors.

    Raises:
        FitError: when the model has no embedding module.
    """
    if model.architecture is not None:
        return model.sites("embedding")[0].place
    for name, part in model.module.named_modules():
        if isinstance(part, torch.nn.Embedding):
            return Place(name)
    raise FitError(f"{model.name} has no embedding", needed="a torch.nn.Embedding to attribute token positions at")


def groups_to_data(groups: Sequence[Group]) -> tuple[dict[str, Tensor], list[dict[str, object]]]:
    """Groups as tensors and plain data, for a file; :func:`groups_from_data` is the way back."""
    tensors: dict[str, Tensor] = {}
    rows: list[dict[str, object]] = []
    for group in groups:
        tensors |= {f"mask:{group.name}:{i}": mask for i, mask in enumerate(group.masks)}
        sites: list[object] = [[str(site), site.head_count] for site in group.sites]
        rows.append({"name": group.name, "names": list(group.names), "sites": sites, "masks": len(group.masks)})
    return tensors, rows


def groups_from_data(rows: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> tuple[Group, ...]:
    """The groups that :func:`groups_to_data` wrote."""
    found = []
    for row in rows:
        sites = tuple(replace(Site.parse(text), head_count=int(count)) for text, count in row["sites"])
        masks = tuple(tensors[f"mask:{row['name']}:{i}"] for i in range(row["masks"]))
        found.append(Group(str(row["name"]), tuple(map(str, row["names"])), sites, masks))
    return tuple(found)
