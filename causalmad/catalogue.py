"""What exists: the parts that a name on the command line or in a saved file can mean.

Export is registration. A folder's ``__init__.pyi`` has one line per part; the listing reads those lines and the first
line of each class's docstring as text, so it needs neither torch nor the parts' own imports. Third parties add parts
through the entry-point groups ``causalmad.signatures``, ``.references``, ``.calibrators`` and ``.tasks``.
"""

from __future__ import annotations

import ast
import importlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from causalmad.errors import SpecError, nearest

KINDS = ("signatures", "references", "calibrators", "targets", "tasks")
_MODULES = {"calibrators": "calibration"}  # the folder of a kind, where it has another name

# scikit-learn's own outlier estimators are references as they are; they have no file here to read a summary from.
_SKLEARN = {
    "IsolationForest": ("sklearn.ensemble", "Path length in random trees (Liu et al. 2008)."),
    "LocalOutlierFactor": ("sklearn.neighbors", "Density against that of the neighbours (Breunig et al. 2000)."),
    "OneClassSVM": ("sklearn.svm", "Distance to a support boundary (Schölkopf et al. 2001)."),
    "GaussianMixture": ("sklearn.mixture", "Log-likelihood under a mixture of Gaussians."),
    "KernelDensity": ("sklearn.neighbors", "Log-density of a Gaussian kernel estimate."),
}
_SKLEARN_OPTIONS: dict[str, dict[str, object]] = {"LocalOutlierFactor": {"novelty": True}}


@dataclass(frozen=True)
class Entry:
    """One part of the catalogue: its name on the command line, a summary, and where its class is."""

    kind: str
    name: str
    summary: str
    module: str
    attribute: str

    def load(self) -> type:
        """The class itself, imported now."""
        part: type = getattr(importlib.import_module(self.module), self.attribute)
        return part

    @property
    def defaults(self) -> dict[str, object]:
        """Options without which the part is not usable here (scikit-learn's LOF needs ``novelty=True``)."""
        return dict(_SKLEARN_OPTIONS.get(self.attribute, {})) if self.module.startswith("sklearn.") else {}


def kebab(name: str) -> str:
    """The command-line form of a class name: ``ResamplingProfile`` -> ``resampling-profile``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


@cache
def catalogue(kind: str) -> tuple[Entry, ...]:
    """Everything of one kind, sorted by name.

    Args:
        kind: one of ``signatures``, ``references``, ``calibrators``, ``targets``, ``tasks``.

    Raises:
        SpecError: on another kind.
    """
    if kind not in KINDS:
        raise SpecError(f"no kind {kind!r} in the catalogue", tries=[repr(name) for name in KINDS])
    entries = {entry.name: entry for entry in _own(kind)}
    for point in entry_points(group=f"causalmad.{kind}"):
        entries.setdefault(point.name, Entry(kind, point.name, f"from {point.value}", point.module, point.attr))
    if kind == "references":
        for attribute, (module, summary) in _SKLEARN.items():
            name = kebab(attribute)
            entries.setdefault(name, Entry(kind, name, f"scikit-learn: {summary}", module, attribute))
    return tuple(sorted(entries.values(), key=lambda entry: entry.name))


def find(kind: str, name: str) -> Entry:
    """The entry called ``name``.

    Raises:
        SpecError: when there is none, with the nearest three names.
    """
    for entry in catalogue(kind):
        if entry.name == name:
            return entry
    close = nearest(name, [entry.name for entry in catalogue(kind)])
    raise SpecError(f"no {kind[:-1]} is called {name!r}", tries=[*close, f"causalmad list {kind}"])


def name_of(kind: str, part: object) -> str:
    """The name under which a spec's class stands in the catalogue.

    Raises:
        SpecError: when the class is not in it.
    """
    cls = type(part)
    for entry in catalogue(kind):
        if entry.attribute == cls.__name__ and entry.load() is cls:
            return entry.name
    raise SpecError(
        f"{cls.__module__}.{cls.__qualname__} is not in the catalogue of {kind}",
        needed="a part that a name can stand for, so that it can be found again in another process",
        tries=[f"declare it in the entry-point group causalmad.{kind} of your package"],
    )


def _own(kind: str) -> list[Entry]:
    """The parts that a folder's ``__init__.pyi`` exports (``base`` holds interfaces), or a single file's classes."""
    package = _MODULES.get(kind, kind)
    folder = Path(__file__).parent / package
    if not folder.is_dir():
        found = _summaries(folder.with_suffix(".py"))
        return [Entry(kind, kebab(name), line, f"causalmad.{package}", name) for name, line in found.items()]
    entries = []
    for node in ast.parse((folder / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module not in (None, "base"):
            found = _summaries(folder / f"{node.module}.py")
            entries += [
                Entry(kind, kebab(alias.name), found[alias.name], f"causalmad.{package}.{node.module}", alias.name)
                for alias in node.names
                if alias.name in found
            ]
    return entries


def _summaries(path: Path) -> dict[str, str]:
    """First docstring line of every spec in a file; fitted results and interfaces are no parts."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name: (ast.get_docstring(node) or "").split("\n", 1)[0]
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and not node.name.startswith(("_", "Fitted"))
        and not any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)
    }
