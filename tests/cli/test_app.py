"""Help, the catalogue, exit codes; in processes of their own where imports are the question."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from causalmad import __version__
from causalmad.catalogue import KINDS, catalogue
from causalmad.cli.app import app

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "scipy", "sklearn", "transformers", "nnsight")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["list", "tasks", "--json"], ["evaluate", "--help"], ["fit", "--help"]]
)
def test_looking_around_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from causalmad.cli import main\n"
        f"sys.argv = ['causalmad', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as done:\n    print(done.code, *sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    exit_code, *imported = done.stderr.split()
    assert (done.returncode, exit_code) == (0, "0")
    assert "causalmad.cli.app" in imported
    assert not set(imported) & set(HEAVY)


def test_the_console_script_and_the_module_are_one_program() -> None:
    done = subprocess.run([sys.executable, "-m", "causalmad", "--version"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"causalmad {__version__}\n")
    from importlib.metadata import entry_points

    from causalmad.cli import main

    (script,) = entry_points(group="console_scripts", name="causalmad")
    assert script.load() is main


@pytest.mark.parametrize("kind", KINDS)
def test_list_gives_names_and_summaries(run, kind: str) -> None:
    done = run("list", kind, "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 0 and found
    assert found == [{"name": entry.name, "summary": entry.summary} for entry in catalogue(kind)]
    assert all(name in run("list", kind).stdout for name in (entry.name for entry in catalogue(kind)))


def test_list_without_a_kind_gives_all(run) -> None:
    assert set(json.loads(run("list", "--json").stdout)) == set(KINDS)
    assert all(kind in run("list").stdout for kind in KINDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "signature"], "signatures"),
        (["evaluate", "--task", "gate-digit", "--detector", "activations+mahalanobis"], "gate-digits | "),
        (["evaluate", "--task", "gate-digits", "--detector", "activatons+mahalanobis"], "activations | "),
        (["evaluate", "--task", "gate-digits", "--detector", "activations-lov"], "activations-lof | "),
        (["evaluate", "--task", "gate-digits", "--detector", "mahalanobis"], "signature+reference"),
        (["evaluate", "--task", "gate-digits[shift=1]", "--detector", "activations+mahalanobis"], "no option 'shift'"),
        (["fit", "--task", "gate-digits", "--out", "d"], "--signature"),
        (["fit", "--out", "d", "--signature", "activations"], "neither --model nor --task"),
        (["fit", "--out", "d", "--signature", "activations", "--model", "m", "--task", "x"], "--model together with"),
        (["fit", "--out", "d", "--detector", "activations+mahalanobis", "--reference", "x"], "--detector"),
        (["fit", "--out", "d", "--model", "./no", "--trusted", "no.jsonl", "--signature", "activations"], "no.jsonl"),
        (["fit", "--out", "d", "--task", "gate-digits", "--signature", "activations", "--block", "a"], "START:STOP"),
        (["fit", "--detector", "activations+mahalanobis"], "--out DIR"),
        (["detect", "no-folder", "--model", "x"], "no inputs"),
        (["list", "detector"], "detectors"),
        (["explain", "no-file", "--id", "1"], "no-file"),
        (["evaluate"], "--task"),
        (["nothing"], "nothing"),
    ],
)
def test_mistakes_are_one_message_and_code_2(run, monkeypatch, tmp_path, arguments: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not done.stdout
    assert not list(tmp_path.iterdir())


def test_a_bench_finds_out_first_where_it_cannot_write(run, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    done = run("bench", "--out", tmp_path / "file")
    assert done.exit_code == 2 and done.stderr == f"StoreError: {tmp_path / 'file'} cannot be made: File exists\n"


def test_debug_shows_where(run) -> None:
    done = run("list", "signature", "--debug")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr and "SpecError" in done.stderr


def test_an_interrupt_is_not_taken_for_a_flag(run, monkeypatch) -> None:
    def stop(kind: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("causalmad.cli.listing.catalogue", stop)
    assert run("list").exit_code == 130


def test_an_unforeseen_error_is_a_message_as_well(run, monkeypatch) -> None:
    def fail(kind: str) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("causalmad.cli.listing.catalogue", fail)
    done = run("list")
    assert done.exit_code == 2
    assert done.stderr == "RuntimeError: boom\n  --debug shows where it happened.\n"


@pytest.mark.parametrize("name", [command.name for command in app.registered_commands])
def test_every_command_shows_an_example(run, name: str) -> None:
    done = run(name, "--help")
    assert done.exit_code == 0
    assert f"Example: causalmad {name}" in " ".join(done.stdout.split())


@pytest.mark.parametrize("name", [command.name for command in app.registered_commands])
def test_every_command_has_what_all_have(name: str) -> None:
    (command,) = (each for each in app.registered_commands if each.name == name)
    assert {"as_json", "quiet", "debug"} <= set(inspect.signature(command.callback).parameters)


LATE = """
import importlib.abc, sys
from rich.progress import Progress
from causalmad.cli import main

said = []
first = Progress.add_task
Progress.add_task = lambda self, what, **given: said.append(what) or first(self, what, **given)

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("torch", "numpy"):
            print(said, file=sys.__stdout__, flush=True)  # doctor has another one meanwhile
            raise SystemExit

sys.meta_path.insert(0, Watch())
sys.stderr.isatty = lambda: True
sys.argv = ["causalmad", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        "demo",
        "list suites",
        "fit --task gate-digits --signature activations --out det",
        "detect det lines.jsonl --task gate-digits",
        "explain lines.jsonl --id 0",
        "evaluate --task gate-digits --detector activations+mahalanobis",
        "bench --out results",
        "compare results a b",
        "check activations+mahalanobis",
        "doctor",
    ],
)
def test_what_takes_long_to_load_is_said_first(arguments: str, tmp_path: Path) -> None:
    line = {"id": "0", "flag": True, "score": 1.0, "p": 0.1, "contributions": [], "nearest": []}
    (tmp_path / "lines.jsonl").write_text(json.dumps(line) + "\n")
    words = [sys.executable, "-c", LATE, *arguments.split()]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=here)
    said = [text for text in done.stdout.splitlines() if text.startswith("[")]
    assert all(text != "[]" for text in said), done.stderr
    assert said or arguments == "list suites"  # suites and detectors are words: nothing heavy is needed


def test_detectors_and_suites_are_listed(run) -> None:
    from causalmad.detectors import DETECTORS, RECOMMENDED
    from causalmad.evaluation.suites import SUITES

    assert json.loads(run("list", "detectors", "--json").stdout) == [
        {"name": name, "summary": text} for name, text in [("recommended", DETECTORS[RECOMMENDED]), *DETECTORS.items()]
    ]
    assert [entry["name"] for entry in json.loads(run("list", "suites", "--json").stdout)] == list(SUITES)


def test_help_keeps_its_square_brackets(run):
    assert "name[key=value,...]" in run("fit", "--help").output.replace("\n", "").replace("│", "").replace("  ", "")
    assert "name[key=value,...]" in " ".join(run("evaluate", "--help").output.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--signature", "activations[positions=0"), "has no closing bracket"),
        (("--signature", "activations+mahalanobis"), "--detector 'activations+mahalanobis'"),
        (("--signature", "activations", "--model", "/nowhere"), "/nowhere is no folder"),
        (("--signature", "activations", "--task", "gate-digits", "--device", "cudax"), "--device cpu"),
    ],
)
def test_a_wrong_argument_says_what_to_type(run, tmp_path, arguments, said):
    done = run("fit", "--out", tmp_path / "det", *arguments)
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output
