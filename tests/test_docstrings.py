"""Every public name says what it is, what it takes, and whose idea it is; the bibliography has every paper."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from functools import cache
from pathlib import Path

import pytest

import causalmad
from causalmad import errors
from causalmad.catalogue import catalogue

ROOT = Path(causalmad.__file__).parent
BIBLIOGRAPHY = ROOT.parent / "docs" / "reference" / "bibliography.md"
# The packages with lazy exports, and the modules from which people import though nothing exports them.
PACKAGES = ["causalmad", *(f"causalmad.{path.parent.name}" for path in sorted(ROOT.glob("*/__init__.pyi")))]
MODULES = [f"causalmad.{name}" for name in ("targets", "sites", "errors", "config", "names", "detectors", "repair")]
# Methods of the protocols: what they take is said there, and again where a part departs from it.
PROTOCOL = {"fit", "restore", "score_samples", "contributions", "p_values", "require", "load", "state", "run"}
SOURCE = re.compile(r"\b(1[89]|20)\d\d\b|arXiv|[Oo]f this project|[Oo]wn idea|scikit-learn")
ARRAY = re.compile(r"ndarray|NDArray|ArrayLike|\bArray\b|Tensor")
SHAPE = re.compile(r"\([a-z0-9_ *+/]+,|\(\.\.\.\)|same shape")
UNIT = re.compile(
    r"\b(nats?|logits?|units?|shares?|standard deviations?|squared|counts?|ranks?|cosine|logarithms?|log|distances?|"
    r"probabilit(y|ies)|p-values?|0 to 1)\b"
)
ARXIV = re.compile(r"(?<![\d.])(\d{4}\.\d{4,5})(?!\d)")


@cache
def exported():
    """(module, name) -> object."""
    found = {}
    for name in PACKAGES:
        module = importlib.import_module(name)
        found |= {(name, each): getattr(module, each) for each in module.__all__}
    for name in MODULES:
        module = importlib.import_module(name)
        own = {each: value for each, value in vars(module).items() if getattr(value, "__module__", None) == name}
        found |= {(name, each): value for each, value in own.items() if not each.startswith("_")}
    return {key: value for key, value in found.items() if not inspect.ismodule(value)}


@cache
def classes():
    return {key: value for key, value in exported().items() if inspect.isclass(value)}


def own_text(value):
    """The docstring that is written for this very object; dataclasses without one get their signature from Python."""
    text = inspect.cleandoc(vars(value).get("__doc__") or "") if inspect.isclass(value) else inspect.getdoc(value) or ""
    return "" if inspect.isclass(value) and text.startswith(f"{value.__name__}(") else text


def methods(cls):
    """Name -> function, of the public methods that a class writes itself."""
    found = {}
    for name, value in vars(cls).items():
        inner = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if not name.startswith("_") and (inspect.isfunction(inner) or isinstance(inner, property)):
            found[name] = inner
    return found


def untold(text, names):
    """The names that a docstring does not mention, unless it says where they are."""
    if re.search(r"see :(func|meth):`[\w.]+`( for the arguments)?\.", text):
        return []
    return [name for name in names if not re.search(rf"\b{re.escape(name)}\b", text)]


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def report(lines):
    assert not lines, "\n" + "\n".join(sorted(set(lines)))


def test_every_export_has_a_docstring():
    lines = [
        f"{module}.{name}: no docstring"
        for (module, name), value in exported().items()
        if (inspect.isclass(value) or inspect.isroutine(value)) and not own_text(value)
    ]
    lines += [
        f"{module}.{name}.{each}: no docstring"
        for (module, name), cls in classes().items()
        for each, method in methods(cls).items()
        if not inspect.getdoc(method)
    ]
    report(lines)


def test_every_function_says_what_it_takes():
    lines = []
    for (module, name), value in exported().items():
        if inspect.isroutine(value):
            lines += [f"{module}.{name}: {each}" for each in untold(own_text(value), parameters(value))]
    for (module, name), cls in classes().items():
        for each, method in methods(cls).items():
            if inspect.isfunction(method) and each not in PROTOCOL and len(parameters(method)) > 1:
                text = inspect.getdoc(method) or ""
                lines += [f"{module}.{name}.{each}: {taken}" for taken in untold(text, parameters(method))]
    report(lines)


def test_every_class_says_what_its_fields_are():
    lines = []
    for (module, name), cls in classes().items():
        if dataclasses.is_dataclass(cls):
            fields = [field.name for field in dataclasses.fields(cls) if not field.name.startswith("_")]
            lines += [f"{module}.{name}: {field}" for field in untold(own_text(cls), fields)]
    report(lines)


def callables():
    """(name, function, docstring) of every public function, method and property; that of a class says some for it."""
    for (module, name), value in exported().items():
        if inspect.isroutine(value):
            yield f"{module}.{name}", value, own_text(value)
    for (module, name), cls in classes().items():
        for each, method in methods(cls).items():
            function = method.fget if isinstance(method, property) else method
            text = inspect.getdoc(function) or ""
            yield f"{module}.{name}.{each}", function, f"{text}\n{own_text(cls)}" if each in PROTOCOL else text


def raised(function):
    """Names of the errors of this library that a function itself raises."""
    found, left = set(), [ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]]
    while left:
        for node in ast.iter_child_nodes(left.pop()):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                found.add(getattr(node.exc.func, "id", getattr(node.exc.func, "attr", "")))
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
                left.append(node)
    return {name for name in found if hasattr(errors, name)}


def test_every_error_that_is_raised_is_told():
    lines = []
    for name, function, text in callables():
        if "CausalmadError" not in text and untold(text, ["an error"]):
            lines += [f"{name}: {each}" for each in raised(function) if each not in text]
    report(lines)


def test_every_array_has_a_shape():
    lines = []
    for name, function, text in callables():
        found = inspect.signature(function)
        given = {each: found.parameters[each].annotation for each in parameters(function)}
        if name.endswith(".bind"):  # as the protocol of targets says
            given.pop("clean")
        for each, annotation in {**given, "return": found.return_annotation}.items():
            if not ARRAY.search(str(annotation)) or re.search(r"dict|Mapping|Callable", str(annotation)):
                continue
            told = [line for line in text.splitlines() if each == "return" or re.search(rf"\b{each}\b", line)]
            if told and not any(SHAPE.search(line) for line in told):
                lines.append(f"{name}: {each}")
    for (module, name), cls in classes().items():
        for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
            told = [line for line in own_text(cls).splitlines() if re.match(rf"\s*{field.name}:", line)]
            if ARRAY.search(str(field.type)) and told and "(" not in told[0]:
                lines.append(f"{module}.{name}: {field.name}")
    report(lines)


@pytest.mark.parametrize("kind", ["signatures", "references"])
def test_every_score_and_column_has_a_unit(kind):
    ours = [entry.load() for entry in catalogue(kind) if entry.module.startswith("causalmad.")]
    report([f"{cls.__module__}.{cls.__name__}" for cls in ours if not UNIT.search(own_text(cls))])


@pytest.mark.parametrize("kind", ["signatures", "references", "calibrators"])
def test_every_part_names_its_source(kind):
    lines = []
    for entry in catalogue(kind):
        if not entry.module.startswith("causalmad."):
            continue
        cls = entry.load()
        if not SOURCE.search(f"{own_text(cls)} {getattr(cls, 'source', '')}"):
            lines.append(f"{entry.module}.{entry.attribute}: no author and year, no arXiv id, not 'of this project'")
    report(lines)


def papers():
    """arXiv id -> names of the parts (classes, functions, modules) whose docstring or `source` cites it."""
    found: dict[str, set[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            text = ast.get_docstring(node) or ""
            if isinstance(node, ast.ClassDef):
                text += " ".join(
                    str(inner.value)
                    for each in node.body
                    if isinstance(each, ast.AnnAssign) and getattr(each.target, "id", "") == "source"
                    for inner in ast.walk(each)
                    if isinstance(inner, ast.Constant)
                )
            name = path.stem if isinstance(node, ast.Module) else node.name
            for paper in ARXIV.findall(text):
                found.setdefault(paper, set()).add(name)
    return found


def test_the_bibliography_has_every_paper_and_who_uses_it():
    rows = [line for line in BIBLIOGRAPHY.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    row_of = {paper: row for row in rows for paper in ARXIV.findall(row)}
    cited = papers()
    assert len(cited) > 40
    lines = [f"{paper}: not in the bibliography; cited by {sorted(users)}" for paper, users in cited.items()
             if paper not in row_of]  # fmt: skip
    lines += [f"{paper}: the row does not name {user}" for paper, users in cited.items() if paper in row_of
              for user in users if f"`{user}`" not in row_of[paper]]  # fmt: skip
    lines += [f"{paper}: in the bibliography, cited nowhere" for paper in row_of if paper not in cited]
    report(lines)
