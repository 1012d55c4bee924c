"""Every example runs, shows what it says (it exits with a message otherwise), is short, and is listed.

The cards, whose models are too large to be run here, are compiled, and the names and options in them have to exist.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import runpy
from pathlib import Path

import pytest
import torch

import causalmad
from causalmad.config import parse_spec
from causalmad.names import parse_detector
from causalmad.tasks.cache import cache_folder

FOLDER = Path(__file__).parents[1] / "examples"
LINES = 60
# Tasks whose network an example needs: quick once it is in the cache, and slow as long as it has to be trained.
TASKS = {
    "first_detector": ("gate-digits",),
    "scrubbing_detector": ("planted-routes",),
    "discovery_then_detection": ("induction-lookup",),
    "known_circuit": ("ioi",),
    "compare_detectors": ("gate-digits", "gate-digits-obfuscated"),
}
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
CARDS = sorted(path.name for path in (FOLDER / "cards").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"`causalmad evaluate --task (?:\"([^\"`]+)\"|(\S+)) --detector \"([^\"`]+)\"[^`]*`")


def marks(name):
    kept = all(any((cache_folder() / "tasks").glob(f"{task}-[0-9]*-0")) for task in TASKS.get(name, ()))
    return () if kept else (pytest.mark.slow,)


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in NAMES])
def test_it_runs(name, capsys):
    state = torch.get_rng_state()
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short(name):
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) < LINES


def test_all_are_listed():
    text = (FOLDER / "README.md").read_text()
    listed = set(re.findall(r"\]\(([\w./-]+\.(?:py|ipynb|md))\)", text))
    files = (path for kind in ("py", "ipynb", "md") for path in FOLDER.rglob(f"*.{kind}"))
    there = {path.relative_to(FOLDER).as_posix() for path in files if ".ipynb_checkpoints" not in path.parts}
    assert {name for name in listed if not name.startswith("..")} == there - {"README.md"}
    assert set(TASKS) <= set(NAMES)


@pytest.mark.parametrize("card", CARDS)
def test_the_names_of_a_card_exist(card):
    blocks = BLOCK.findall((FOLDER / "cards" / card).read_text())
    assert any("cm." in code for code in blocks)
    for code in blocks:
        assert not unknown(code)


@pytest.mark.parametrize("card", CARDS)
def test_the_commands_of_a_card_can_be_read(card):
    text = (FOLDER / "cards" / card).read_text()
    found = COMMAND.findall(text)
    assert len(found) == text.count("`causalmad evaluate")
    for quoted, plain, detector in found:
        parse_spec("tasks", quoted or plain)
        parse_detector(detector)


@pytest.mark.parametrize("card", CARDS)
def test_a_card_says_what_it_takes_and_that_it_was_not_run(card):
    text = (FOLDER / "cards" / card).read_text()
    for said in ("Not run by the tests", "**What is downloaded.**", "**Memory (an estimate, not a measurement).**"):
        assert said in text


@pytest.mark.parametrize(
    "code",
    [
        "import causalmad as cm\ncm.signatures.NoSuchThing()",
        "import causalmad as cm\ncm.tasks.Diamonds(datasets='x')",
        "import causalmad as cm\ncm.open_model(m, batches=3)",
        "from causalmad.models import no_such_thing",
    ],
)
def test_a_wrong_name_would_be_found(code):
    assert unknown(code)


def unknown(code):
    """Names of this library in the code that do not exist, and options that what is called does not have."""
    tree, wrong = ast.parse(code), []
    compile(tree, "card", "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "causalmad":
            module = importlib.import_module(node.module)
            wrong += [f"{node.module}.{each.name}" for each in node.names if not hasattr(module, each.name)]
        if isinstance(node, ast.Attribute) and (path := dotted(node)) and resolve(path) is None:
            wrong.append(path)
        if isinstance(node, ast.Call) and (path := dotted(node.func)) and (called := resolve(path)) is not None:
            options = inspect.signature(called).parameters
            wrong += [f"{path}({key.arg}=)" for key in node.keywords if key.arg not in options]
            if len(node.args) > len(options):
                wrong.append(f"{path} takes {len(options)} arguments")
    return wrong


def dotted(node):
    """``cm.x.y`` as text, or nothing where the node is no such name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed(parts)) if parts and isinstance(node, ast.Name) and node.id == "cm" else ""


def resolve(path):
    found = causalmad
    for name in path.split("."):
        found = getattr(found, name, None)
    return found
