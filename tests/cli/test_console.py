"""Progress: bars on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from causalmad.cli.console import _pace, progress


class Terminal:
    """Standard error as a terminal that keeps what is written."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error from here on; a fixture would come before pytest's own."""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    return found


def test_bars_say_how_far_and_how_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    found = terminal(monkeypatch)
    with progress(False) as step:
        step("loading torch", 0, 0)
        step("scoring [all]", 0, 200)
        step("scoring [all]", 50, 200)
    assert "loading torch" in found.text
    assert "scoring [all]" in found.text and "50/200" in found.text and "/s" in found.text


def test_another_round_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    now, spent = [0.0], []
    monkeypatch.setattr("rich.console.monotonic", lambda: now[0])
    monkeypatch.setattr("causalmad.cli.console._pace", lambda done, total, seconds: spent.append(seconds) or "")
    with progress(False) as step:
        for done in (0, 100, 200, 0, 100):
            step("fitting", done, 200)
            now[0] += 10
    assert spent == [0, 10, 20, 0, 10]


def test_a_narrow_terminal_shows_how_long_still(monkeypatch: pytest.MonkeyPatch) -> None:
    found = terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("causalmad.cli.console._pace", lambda *given: "1,024/10,000, 1,956/s, 0:00:07 left")
    with progress(False) as step:
        step("fitting a detector with a very long name on many inputs", 10, 20)
    assert "1,024/10,000, 1,956/s, 0:00:07 left" in found.text and "fitting a" in found.text


@pytest.mark.parametrize("quiet", [True, False])
def test_silent_elsewhere(capsys: Any, quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = terminal(monkeypatch)
    monkeypatch.setattr(found, "isatty", lambda: quiet)
    with progress(quiet) as step:
        step("scoring", 1, 2)
    assert found.text == "" and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("done", "total", "seconds", "said"),
    [
        (50, 200, 2.0, "50/200, 25/s, 0:00:06 left"),
        (4, 0, 8.0, "4, 0.5/s"),
        (1, 9001, 1.0, "1/9,001, 1/s, 2:30:00 left"),
        (9, 9, 1.0, "9/9, 9/s"),
        (0, 9, 1.0, ""),
        (1, 1, 1.0, ""),
    ],
)
def test_how_far_how_fast_how_long(done: int, total: int, seconds: float, said: str) -> None:
    assert _pace(done, total, seconds) == said
