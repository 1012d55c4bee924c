"""Writes pages before Sphinx reads them: one for every public package, and one of every command and option.

An export in a package's ``__init__.pyi`` is all that a part needs to be documented, and an option its help text. The
pages lie in ``reference/python``, which git ignores.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx

FOLDER = "reference/python"
# Modules that people import from, though no `__init__.pyi` exports them.
PLAIN = (
    "causalmad.targets",
    "causalmad.sites",
    "causalmad.errors",
    "causalmad.config",
    "causalmad.names",
    "causalmad.detectors",
    "causalmad.repair",
)


def packages() -> list[str]:
    """Every package with a ``.pyi`` of exports, except the command line, which has a page of its own."""
    root = Path(importlib.import_module("causalmad").__file__ or "").parent
    found = sorted(".".join(path.parent.relative_to(root).parts) for path in root.glob("*/**/__init__.pyi"))
    return ["causalmad", *(f"causalmad.{name}" for name in found if name != "cli")]


def exports(module: ModuleType) -> dict[str, Any]:
    """Name -> object, for all that a module exports and that is no module itself."""
    found = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in found.items() if not inspect.ismodule(value)}


def home(value: Any, module: str, everywhere: dict[int, list[str]]) -> str:
    """The module that documents an export: the innermost package that exports it."""
    return max(everywhere[id(value)], key=len) if everywhere.get(id(value)) else module


def directive(module: str, name: str, value: Any) -> list[str]:
    """The lines that document one export."""
    if inspect.isclass(value) or inspect.isroutine(value):
        kind = "autoclass" if inspect.isclass(value) else "autofunction"
        return [f".. {kind}:: {module}.{name}", ""]
    return [f".. py:data:: {module}.{name}", "", f"   {_comment(module, name, value)}", ""]


def fitted(value: Any) -> list[tuple[str, str]]:
    """(module, name) of the public results that a specification's file defines beside it."""
    if not inspect.isclass(value) or not hasattr(value, "fit"):
        return []
    file = inspect.getmodule(value)
    return [
        (value.__module__, name)
        for name, other in vars(file).items()
        if name.startswith("Fitted") and inspect.isclass(other) and other.__module__ == value.__module__
    ]


def page(module: str, everywhere: dict[int, list[str]]) -> str:
    """The text of one package's page."""
    found = importlib.import_module(module)
    lines = [module, "=" * len(module), "", f".. py:module:: {module}", "", inspect.getdoc(found) or "", ""]
    elsewhere, written = [], set()
    own = exports(found)
    for name in sorted(own, key=lambda each: (inspect.isroutine(own[each]), each.lower())):
        value = own[name]
        place = home(value, module, everywhere)
        if place != module:
            elsewhere.append(f"* ``{module}.{name}``: :py:obj:`{place}.{name}`")
            continue
        lines += directive(module, name, value)
        for file, result in fitted(value):
            if result not in own and result not in written:
                written.add(result)
                lines += [f".. autoclass:: {file}.{result}", ""]
    if elsewhere:
        lines += ["Exported here too", "-" * 17, "", *elsewhere, ""]
    return "\n".join(lines)


def plain_page(module: str) -> str:
    """The text of the page of a module whose public names are all its own."""
    return "\n".join([module, "=" * len(module), "", f".. automodule:: {module}", ""])


def folder_page(name: str) -> str:
    """The text of the page of a package that exports nothing by itself: its modules, one after the other."""
    found = importlib.import_module(name)
    files = sorted(path.stem for path in Path(found.__file__ or "").parent.glob("[!_]*.py"))
    lines = [name, "=" * len(name), "", inspect.getdoc(found) or "", ""]
    for file in files:
        lines += [f"{name}.{file}", "-" * (len(name) + len(file) + 1), "", f".. automodule:: {name}.{file}", ""]
    return "\n".join(lines)


def folders() -> list[str]:
    """Every package without a ``.pyi`` of exports."""
    root = Path(importlib.import_module("causalmad").__file__ or "").parent
    return [
        f"causalmad.{path.parent.name}"
        for path in sorted(root.glob("*/__init__.py"))
        if not path.with_suffix(".pyi").exists()
    ]


def commands_page() -> str:
    """The text of the page of every command, its arguments and options, from their help texts."""
    import typer

    from causalmad.cli import app

    title = "Every command and option"
    lines = [title, "=" * len(title), "", "As ``causalmad COMMAND --help`` shows them.", ""]
    for name, command in typer.main.get_command(app).commands.items():
        lines += [f"causalmad {name}", "-" * (10 + len(name)), "", _plain(command.help), ""]
        for parameter in command.params:
            names = ", ".join(f"``{each}``" for each in (*parameter.opts, *parameter.secondary_opts))
            shown = names if parameter.param_type_name == "option" else f"``{parameter.name.upper()}``"
            needed = " (required)" if parameter.required else ""
            lines += [f"{shown}{needed}", f"    {_plain(getattr(parameter, 'help', None)) or 'No more to say.'}", ""]
    return "\n".join(lines)


def _plain(text: str | None) -> str:
    words = " ".join((text or "").split()).replace("\\[", "[")  # rich's escape
    words = re.sub(r"`+([^`]+)`+", r"``\1``", words).replace("*", r"\*")
    return re.sub(r"(?<![`\w-])(--[a-z-]+)", r"``\1``", words)


def write(app: Sphinx) -> None:
    """All pages and their index; a page whose text is the same is left alone, so that it is not built again."""
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    everywhere: dict[int, list[str]] = {}
    for module in packages():
        for value in exports(importlib.import_module(module)).values():
            everywhere.setdefault(id(value), []).append(module)
    pages = {module: page(module, everywhere) for module in packages()}
    pages |= {module: plain_page(module) for module in PLAIN}
    pages |= {module: folder_page(module) for module in folders()}
    title = "Python names"
    toctree = [".. toctree::", "   :maxdepth: 1", "", *(f"   {module}" for module in pages), ""]
    lead = "Every public name, from its docstring. A part that a package exports is here by that alone."
    pages["index"] = "\n".join([title, "=" * len(title), "", lead, "", *toctree])
    pages["commands"] = commands_page()
    for old in folder.glob("*.rst"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Bars mean absolute values in our docstrings, and substitutions in reStructuredText; papers become links.

    A property's first line is a sentence, of which napoleon would take all before a colon for a type.
    """
    if what == "property":
        lines.insert(0, "\\ ")  # renders as nothing
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``)", line)
        lines[number] = "".join(part if part.startswith("``") else _linked(part) for part in parts)


def _linked(text: str) -> str:
    return re.sub(r"arXiv[: ]+(\d{4}\.\d{4,5})", r"`arXiv \1 <https://arxiv.org/abs/\1>`__", text.replace("|", r"\|"))


def signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, args: str | None, result: str | None
) -> tuple[str | None, str | None]:
    """``<factory>`` is how a dataclass writes a default that it makes anew, which no parser reads."""
    return (args and args.replace("<factory>", "...")), result


def _comment(module: str, name: str, value: Any) -> str:
    """What a constant is: the comment above it or behind it, or its value."""
    text = f"``{value!r}``"
    return text if len(text) < 200 else f"A {type(value).__name__} of {len(value)}."


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write)
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True}
