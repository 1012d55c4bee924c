"""A name that docstrings refer to and no page documents stays plain text, where it exists; else it is a warning."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode


@cache
def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except (ImportError, ValueError):
            continue
        for part in parts[cut:]:
            # The field of a dataclass without a default is no attribute of the class.
            if part in getattr(found, "__annotations__", ()) and not hasattr(found, part):
                return True
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement
) -> nodes.TextElement | nodes.reference | None:
    """The one documented object that ends in this name, or plain text for a name that exists."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    last = target.rpartition(".")[2]
    objects = env.domains["py"].objects
    # `causalmad.open_model` is documented where it is defined, as `causalmad.models.open_model`.
    ends = {f".{target}", f".{last}"} if target.startswith("causalmad.") else {f".{target}"}
    same = [name for name, entry in objects.items() if name.endswith(tuple(ends)) and not entry.aliased]
    if len(same) == 1:
        entry = objects[same[0]]
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, text, same[0])
    home = node.get("py:module") or "causalmad"
    return text if same or any(map(exists, (target, f"{home}.{target}", f"causalmad.{target}"))) else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
