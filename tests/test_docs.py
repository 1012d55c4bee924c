"""The code of every page runs as it is written; every command in it exists, with its options; every figure has a home.

A block that cannot run says so, on the line before it: ``<!-- not run: the reason -->``.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import re
import shlex
import sys
import types
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import typer

from causalmad import errors
from causalmad.catalogue import kebab
from causalmad.cli import app
from causalmad.names import parse_detector

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BUILT = ("_build", "reference/python")
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "examples" / "README.md", *DOCS.rglob("*.md"))
    if not path.is_relative_to(DOCS) or not path.relative_to(DOCS).as_posix().startswith(BUILT)
)
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]*?) -->\n+)?```(?P<language>[a-z]+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# What the code of a page takes as given and the reader has: a model on the hub is stood in for by a random one of the
# same shape, and the inputs by random texts.
GPT2 = "openai-community/gpt2"
READER = """
import numpy
def texts(count, seed):
    draw = numpy.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in draw.integers(2, 50, draw.integers(4, 9))) for _ in range(count)]
trusted_prompts, new_prompts = texts(240, 0), texts(20, 1)
trusted = [{"text": text, "subject": text.split()[0], "object": text.split()[-1], "S2": 1} for text in texts(64, 2)]
"""
GIVEN = {"README.md": READER, "docs/explanation/design.md": READER}


# Names that a page makes up as it goes.
EXAMPLES = {"signature+reference", "entropy+mahalanobis"}


class Block(NamedTuple):
    """A fenced block: its language, text, line on the page, and why it is not run, if so."""

    language: str
    code: str
    line: int
    reason: str | None


def blocks(page, *languages):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [
        Block(match["language"], match["code"], text[: match.start("code")].count("\n"), match["reason"])
        for match in BLOCK.finditer(text)
    ]
    return [block for block in found if block.language in languages]


def runnable(page):
    return [block for block in blocks(page, "python") if block.reason is None]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, request):
    """A folder with a random GPT-2 of the usual number of layers and heads, and a tokenizer of the words w2 ... w49."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("hub") / "gpt2"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"n_layer": 12, "n_head": 12, "n_embd": 48, "vocab_size": 50, "n_positions": 32}
        GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, **{f"w{i}": i for i in range(2, 50)}}, "<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<end>", "pad_token": "<pad>", "eos_token": "<end>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    name = "page_" + re.sub(r"\W", "_", page)
    # A real file, whose lines are those of the page: tracebacks point there, and what reads source finds it.
    file = tmp_path / f"{name}.py"
    parts = [block._replace(code=block.code.replace(GPT2, folder(request, block.code))) for block in runnable(page)]
    lines: list[str] = []
    for block in parts:
        lines += [""] * (block.line - len(lines)) + block.code.splitlines()
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    if page in GIVEN:
        exec(GIVEN[page], module.__dict__)
    for block in parts:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * block.line + block.code, str(file), "exec", dont_inherit=True), module.__dict__)
        print(printed.getvalue())
        shown = [
            each.code for each in blocks(page, "output") if each.line == block.line + len(block.code.splitlines()) + 3
        ]
        assert not shown or shown[0].strip() == printed.getvalue().strip()


def folder(request, code):
    """The folder that stands in for the model on the hub, made when some code needs it."""
    return str(request.getfixturevalue("gpt2")) if GPT2 in code else GPT2


def test_what_is_not_run_says_why():
    told = {(page, block.line): block.reason for page in PAGES for block in blocks(page, "python") if block.reason}
    print("\n".join(f"{page}:{line}: {reason}" for (page, line), reason in told.items()))
    assert all(len(reason.split()) > 2 for reason in told.values()), told
    # Most of what is shown is run; where this fails, see whether a block can be made to run.
    assert len(told) <= sum(len(runnable(page)) for page in PAGES) / 5
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert text.count("<!-- not run") == len(told), "a mark that stands before no block of Python"


COMMANDS = typer.main.get_command(app)


def console(page):
    """Every command line of a page, with its continuations."""
    found = []
    for block in blocks(page, "console"):
        for line in block.code.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append(line[2:])
    return found


LINES = [(page, line) for page in PAGES for line in console(page)]


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page}: {line}" for page, line in LINES])
def test_a_command_exists(page, line, tmp_path, monkeypatch):
    for each in re.split(r" && | \| ", line):
        first, *words = shlex.split(re.split(r" >>? ", each)[0], comments=True)
        if first == "causalmad":
            parsed(words)
        elif first == "make":
            made = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert all("=" in word or re.search(rf"^{word}:", made, re.MULTILINE) for word in words)
        elif first.endswith("python"):
            assert words[0].startswith("-") or (ROOT / words[0]).exists()
        else:
            assert first in ("pip", "cd", "cat", "head", "tail", "git") or (ROOT / first).exists(), first


def parsed(words):
    """The command and every option exist, every value is of the right kind, and nothing required is missing."""
    if not words or words[0].startswith("-"):
        COMMANDS.make_context("causalmad", list(words), resilient_parsing=True)
        return
    assert words[0] in COMMANDS.commands, words[0]
    COMMANDS.commands[words[0]].make_context(words[0], list(words[1:]))


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_sentences_exist(page):
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for name, rest in re.findall(r"`causalmad ([a-z][a-z-]*)((?: [^`]*)?)`", text):
        assert name in COMMANDS.commands, name
        options = {option for parameter in COMMANDS.commands[name].params for option in parameter.opts}
        unknown = [
            word for word in re.findall(r"(?<= )--?[a-z][a-z-]*", rest) if word not in {*options, "--help", "-h"}
        ]
        assert not unknown, f"causalmad {name}{rest}"


@pytest.mark.parametrize("page", PAGES)
def test_detectors_and_parts_that_are_named_exist(page):
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for written in re.findall(r"`([a-z][a-z-]+(?:\[[^`\]]*\])?\+[a-z][a-z-]+)`", text):
        if written not in EXAMPLES:
            parse_detector(written)


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in PAGES:
        inside = page.removeprefix("docs/")
        if inside not in (page, "index.md"):
            assert f"({inside})" in index and f"\n{inside.removesuffix('.md')}\n" in index, f"{page} is in no list"


def test_every_error_has_its_place():
    text = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    own = [
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    ]
    assert [name for name in own if name != "CausalmadError" and f"\n## {name}\n" not in text] == []
    assert len(blocks("docs/reference/errors.md", "output")) == len(own) - 1


def test_figures_of_other_pages_are_those_of_the_results():
    rows = [line.strip("| ").split(" | ") for line in (DOCS / "reference" / "results.md").read_text().splitlines()]
    mean = {tuple(row[:2]): row[2].split()[0] for row in rows if len(row) == 5}
    flagged = {tuple(row[:2]): row[4] for row in rows if len(row) == 5}
    tables = [
        [row.strip("| ").split(" | ") for row in table.splitlines()]
        for table in re.findall(r"(?:^\|.*\n)+", (DOCS / "explanation" / "limits.md").read_text(), re.MULTILINE)
    ]
    first, shift = tables[:2]
    for row in first[2:]:
        for name, value in zip(first[0][2:], row[2:]):
            assert value == mean[row[0], f"`{name.strip('`')}+mahalanobis`"], (row[0], name)
    for name, value in zip(shift[0], shift[2]):
        assert value == flagged["`induction-lookup[shift=true]`", f"`{name.strip('`')}+mahalanobis`"], name


def measured():
    """Signature -> its row under the one-sided distance: means by task, the worst of them, the cost and the shift."""
    one_sided = (DOCS / "reference" / "signatures.md").read_text(encoding="utf-8").partition("## Two-sided")[0]
    heads, _, *rows = [line.strip("| ").split(" | ") for line in one_sided.splitlines() if line.startswith("|")]
    names = [head.split(" (")[0].strip("`") for head in heads]
    return {row[0].strip("`"): {name: cell.split()[0] for name, cell in zip(names, row)} for row in rows}


def test_figures_in_sentences_are_those_of_the_signatures():
    found, shift = measured(), "induction-lookup[shift=true]"
    limits, families, sparse = (
        (DOCS / name).read_text(encoding="utf-8")
        for name in ("explanation/limits.md", "explanation/families.md", "how-to/use-a-sparse-autoencoder.md")
    )
    counted = found["input-only"]["induction-lookup"]
    relevance = found["relevance-patching"]
    hidden = "gate-digits-obfuscated"
    assert f"under the shift it scores {found['concat'][shift]}" in limits
    assert f"at {found['input-only']['ioi']} on `ioi`, and at {counted} on `induction-lookup`" in limits
    assert f"({1 - float(counted):.3f} the other way round" in limits
    assert f"ranks almost perfectly ({relevance[shift]}) and" in limits
    assert f"flags {100 * float(relevance['flagged, shift']):.0f} % of the normal inputs" in limits
    everywhere = {name: row["worst task"] for name, row in found.items() if "-" not in row.values()}
    best = max(everywhere, key=everywhere.get)
    assert best == "resampling-profile"
    assert f"the best of all signatures that apply everywhere ({everywhere[best]};" in families
    assert f"AUROC of {found['sparse-code'][hidden]} (`{hidden}`)" in sparse
    assert f"have {found['activations'][hidden]} and attribution {found['attribution-patching'][hidden]};" in sparse
    table = [line.strip("| ").split(" | ") for line in families.splitlines() if line.startswith("|") and "?" in line]
    for question, parts, cost, _ in [row for row in table if len(row) == 4 and re.match(r"\d", row[2])]:
        costs = [float(found[kebab(part)]["cost"]) for part in re.findall(r"`(\w+)`", parts) if kebab(part) in found]
        said = [int(number) for number in re.findall(r"\d+", cost)]
        assert (said[0], said[-1]) == (round(min(costs)), round(max(costs))), question


def test_every_export_has_its_place_among_the_python_names(monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    pages = importlib.import_module("python_pages")
    everywhere: dict[int, list[str]] = {}
    for package in pages.packages():
        for value in pages.exports(importlib.import_module(package)).values():
            everywhere.setdefault(id(value), []).append(package)
    for package in pages.packages():
        text = pages.page(package, everywhere)
        for name in pages.exports(importlib.import_module(package)):
            assert re.search(rf"(:: |``){re.escape(package)}\.{name}(``|\n)", text), f"{package}.{name}"
    # A constant stands with its value, and a command with its options.
    assert "--fail-on-flag" in pages.commands_page() and "causalmad.signatures" in pages.packages()
