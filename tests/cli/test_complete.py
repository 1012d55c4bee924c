"""Tab: what the shell is offered."""

from __future__ import annotations

from pathlib import Path

import pytest

from causalmad.catalogue import catalogue
from causalmad.cli import complete


def offered(run, monkeypatch, words: str) -> list[str]:
    """What bash is offered behind a line."""
    monkeypatch.setenv("_CAUSALMAD_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    from typer.testing import CliRunner

    from causalmad.cli.app import app

    return CliRunner().invoke(app, [], prog_name="causalmad").stdout.split()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("causalmad fit --reference mahal", ["mahalanobis"]),
        ("causalmad evaluate --task gate-digits-o", ["gate-digits-obfuscated"]),
        ("causalmad list detec", ["detectors"]),
        ("causalmad bench --suite q", ["quick"]),
        ("causalmad fit --detector input-only+mahal", ["input-only+mahalanobis"]),
    ],
)
def test_the_shell_is_offered_what_fits(run, monkeypatch, words: str, wanted: list[str]) -> None:
    assert offered(run, monkeypatch, words) == wanted


def test_a_script_is_shown(run, monkeypatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = run("--show-completion", "bash")
    assert done.exit_code == 0 and "_CAUSALMAD_COMPLETE" in done.stdout


def test_detectors_are_completed_part_by_part() -> None:
    names = dict(complete.whole_detectors("activations"))
    assert {"activations", "activations-lof"} <= set(names)
    third = dict(complete.whole_detectors("activations+mahalanobis+"))
    assert set(third) == {f"activations+mahalanobis+{entry.name}" for entry in catalogue("calibrators")}


def test_suites_are_all_known() -> None:
    from causalmad.evaluation.suites import SUITES

    assert list(complete.suites("")) == list(SUITES)


def test_folders(tmp_path: Path) -> None:
    for name in ("det", "data", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "details.txt").touch()
    assert complete.folders(f"{tmp_path}/de") == [f"{tmp_path}/det/"]
    assert complete.folders(f"{tmp_path}/") == [f"{tmp_path}/data/", f"{tmp_path}/det/"]
    assert complete.folders(f"{tmp_path}/no/such/") == []
