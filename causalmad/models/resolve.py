"""From a path, a glob or a role to sites that exist on a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from causalmad.errors import SiteError, nearest
from causalmad.models.architectures import Architecture
from causalmad.models.channels import channels_of
from causalmad.sites import Site

ROLES = ("residual", "attentions", "heads", "mlps", "neurons", "embedding", "layers")


def resolve(
    module: nn.Module, architecture: Architecture | None, what: str | Site | Sequence[str | Site]
) -> tuple[Site, ...]:
    """The sites that ``what`` means, in the order of the model's layers.

    Args:
        module: the plain module.
        architecture: its family, or None.
        what: a role (``residual``, ``attentions``, ``heads``, ``mlps``, ``neurons``, ``embedding``; ``layers`` is for
            any module: the output of every part that computes), a path or glob in site form, a Site, or a list.

    Raises:
        SiteError: for a role that needs a known architecture, or a path that is not there (nearest three names).
    """
    several: Sequence[Any] = what if isinstance(what, (tuple, list)) else [what]
    wrong = next((item for item in several if not _named(item)), None)
    if wrong is not None:
        own = [repr(path) for path, part in module.named_modules() if part is wrong and path]
        raise SiteError(
            f"a {type(wrong).__name__} is no site",
            needed="its path in the model as a text, a role such as 'residual', a Site, or several of them",
            tries=own or [repr(path) for path, _ in list(module.named_modules())[1:4]],
        )
    sites = dict.fromkeys(site for item in several for site in _one(module, architecture, item))
    # The coordinates in a subspace take the place of the last axis.
    return tuple(
        site if site.subspace is not None else replace(site, channels=channels_of(module, site.path)) for site in sites
    )


def _named(what: object) -> bool:
    return isinstance(what, (str, Site))


def _one(module: nn.Module, architecture: Architecture | None, what: str | Site) -> tuple[Site, ...]:
    if isinstance(what, Site):
        return _on_path(module, architecture, what)
    role, at, position = what.partition("@")
    if role in ROLES:
        found = layers(module) if role == "layers" else _role(module, architecture, role)
        place = Site.parse(f"x@{position}").position if at else None
        return tuple(site.at(place) for site in found)
    return _on_path(module, architecture, Site.parse(what))


def _role(module: nn.Module, architecture: Architecture | None, role: str) -> tuple[Site, ...]:
    if architecture is None:
        raise SiteError(
            f"role {role!r} is not known for {type(module).__name__}",
            needed="GPT-2, GPT-NeoX, Llama, Mistral, Qwen, Gemma, BERT, ViT or TransformerLens module names",
            tries=["'layers'", *(repr(str(site)) for site in layers(module)[:2])],
        )
    family, numbers = architecture, range(architecture.layers)
    if role == "embedding":
        return (Site(family.embedding),)
    if role == "heads":
        count = _head_count(module, family)
        return tuple(replace(_projection(family, n, count), heads=(head,)) for n in numbers for head in range(count))
    if role == "neurons":
        if not family.down:
            raise SiteError(f"role 'neurons' is not known for {type(module).__name__}", tries=["'mlps'", "a path"])
        return tuple(_down(family, n) for n in numbers)
    part = {"residual": "", "attentions": family.attention, "mlps": family.mlp}[role]
    return tuple(Site(family.path(n, part)) for n in numbers)


def _projection(family: Architecture, layer: int, count: int) -> Site:
    """Where the heads of a layer are separate; TransformerLens has a hook point of its own for it."""
    path = family.path(layer, family.projection)
    return Site(path, "output" if family.name == "transformer_lens" else "input", head_count=count)


def _down(family: Architecture, layer: int) -> Site:
    return Site(family.path(layer, family.down), "output" if family.name == "transformer_lens" else "input")


def _head_count(module: nn.Module, family: Architecture) -> int:
    if not family.heads:
        raise SiteError(
            f"{type(module).__name__} does not say how many heads it has", needed="config.num_attention_heads"
        )
    return family.heads


def _on_path(module: nn.Module, architecture: Architecture | None, site: Site) -> tuple[Site, ...]:
    names = [name for name, _ in module.named_modules()]
    if any(mark in site.path for mark in "*?"):
        # A star stands for one part of the path, as in a file name.
        wild = {"*": "[^.]*", "?": "[^.]"}
        pattern = re.compile("".join(wild.get(letter, re.escape(letter)) for letter in site.path))
        found = [name for name in names if name and pattern.fullmatch(name)]
        if not found:
            raise SiteError(
                f"nothing in {type(module).__name__} matches {site.path!r}", tries=nearest(site.path, names)
            )
    elif site.path in names:
        found = [site.path]
    else:
        raise SiteError(
            f"no module {site.path!r} in {type(module).__name__}{_range(architecture)}",
            tries=nearest(site.path, [name for name in names if name]),
        )
    return tuple(_with_heads(module, architecture, replace(site, path=name)) for name in found)


def _with_heads(module: nn.Module, architecture: Architecture | None, site: Site) -> Site:
    """Heads of an attention module are read at the input of its output projection, where they are separate."""
    if not site.heads or site.head_count:
        return site
    if architecture is None:
        raise SiteError(f"{site}: heads are not known for {type(module).__name__}", tries=["#neuron=... on a path"])
    count = _head_count(module, architecture)
    if max(site.heads) >= count:
        raise SiteError(f"{site}: {architecture.name} here has heads 0..{count - 1}")
    for layer in range(architecture.layers):
        place = _projection(architecture, layer, count)
        if site.path in (architecture.path(layer, architecture.attention), place.path):
            return replace(place, heads=site.heads, position=site.position, subspace=site.subspace)
    if architecture.name == "transformer_lens":  # its hook points have an axis of heads
        return replace(site, head_count=count)
    # Elsewhere an equal split would be a guess: fused, grouped and interleaved projections all differ.
    raise SiteError(
        f"heads are not separate at {site.path!r}",
        needed="an attention module, whose heads are read at the input of its output projection",
        tries=[f"{architecture.path(0, architecture.attention)}#head={site.heads[0]}", "#neuron=... on this path"],
    )


def _range(architecture: Architecture | None) -> str:
    return f" (blocks run 0..{architecture.layers - 1})" if architecture else ""


def layers(module: nn.Module) -> tuple[Site, ...]:
    """The output of every part that computes, for a module of no known family: activations where there are any.

    A module without children computes, and so does torch's attention, which never calls its own. Activation functions
    (which have no parameters and are no dropout or identity) are preferred to the linear maps before them; the last
    computing part is the output and left out.
    """
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # leaves where they are empty
    idle = (nn.Dropout, nn.Identity, nn.Flatten, nn.Unflatten, nn.Embedding, *containers)
    parts = dict(module.named_modules())
    whole = tuple(f"{name}." for name, part in parts.items() if isinstance(part, nn.MultiheadAttention))
    leaves = [
        (name, part)
        for name, part in parts.items()
        if name and not name.startswith(whole) and (f"{name}." in whole or next(part.children(), None) is None)
    ]
    computing = [(name, _has_parameters(part)) for name, part in leaves if not isinstance(part, idle)]
    inner = computing[:-1] or computing
    chosen = [name for name, linear in inner if not linear] or [name for name, _ in inner]
    if not chosen:
        raise SiteError(f"{type(module).__name__} has no parts to read", needed="a module with submodules")
    return tuple(Site(name) for name in chosen)


def _has_parameters(part: nn.Module) -> bool:
    return next(part.parameters(), None) is not None
