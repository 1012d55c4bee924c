"""detect in chunks: the same lines as at once, whole files or none, and what is said of a stream."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causalmad.cli import stream


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector on the task ``stub``."""
    import causalmad as cm
    from tests.stub_task import Stub

    data = Stub().load(0)
    path = tmp_path_factory.mktemp("detectors") / "det"
    cm.Detector(cm.signatures.Activations()).fit(data.model, data.trusted).save(path)
    return path


@pytest.fixture(scope="module")
def incoming(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty inputs without ids, every fourth far away and one twice."""
    draw = np.random.default_rng(0)
    rows = [(draw.normal(size=4) + 5 * (i % 4 == 0)).tolist() for i in range(19)]
    path = tmp_path_factory.mktemp("data") / "incoming.jsonl"
    path.write_text("".join(json.dumps({"x": row}) + "\n" for row in [*rows, rows[0]]))
    return path


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def assert_alike(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [row["id"] for row in found] == [row["id"] for row in wanted]
    assert [row["flag"] for row in found] == [row["flag"] for row in wanted]
    assert [list(row) for row in found] == [list(row) for row in wanted]
    for key in {"score", "p", "p_adjusted"} & set(wanted[0]):
        assert [row[key] for row in found] == pytest.approx([row[key] for row in wanted], rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize("fdr", [(), ("--fdr", "bh"), ("--fdr", "storey")])
def test_chunks_change_nothing(run, stub, detector: Path, incoming: Path, chunk: int, fdr: tuple[str, ...]) -> None:
    base = ("detect", detector, incoming, "--task", "stub", "--alpha", 0.2, *fdr)
    whole, parts = run(*base), run(*base, "--chunk", chunk)
    assert whole.exit_code == parts.exit_code == 0, parts.stderr
    assert len(lines(whole.stdout)) == 20 and any(row["flag"] for row in lines(whole.stdout))
    assert_alike(lines(parts.stdout), lines(whole.stdout))
    assert whole.stderr.splitlines()[-1] == parts.stderr.splitlines()[-1]
    assert ("no line is written before" in parts.stderr) == bool(fdr)


def test_lines_appear_while_others_are_still_to_come(stub, detector: Path, monkeypatch) -> None:
    from typer.testing import CliRunner

    from causalmad.cli.app import app

    out: list[str] = []
    seen: list[int] = []

    def source(path: str) -> Any:
        from causalmad.rows import Row

        for number in range(6):
            seen.append(len(out))
            yield Row(f"line {number + 1}", {"x": [0.1 * number, 0, 0, 0]})

    monkeypatch.setattr("causalmad.cli.detect.each_row", source)
    monkeypatch.setattr("causalmad.cli.detect.write_lines", lambda path, lines: out.extend(lines))
    done = CliRunner().invoke(app, ["detect", str(detector), "-", "--task", "stub", "--chunk", "2"])
    assert done.exit_code == 0, done.stderr
    assert seen == [0, 0, 2, 2, 4, 4] and len(out) == 6


@pytest.mark.parametrize("fdr", [(), ("--fdr", "bh")])
def test_a_bad_line_in_the_middle_leaves_nothing(run, stub, detector: Path, incoming: Path, tmp_path, fdr) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(incoming.read_text() + '{"x": [1, 2, 3]}\n')
    (tmp_path / "out").mkdir()
    base = ("detect", detector, broken, "--task", "stub", "--alpha", 0.2, "--chunk", 4, *fdr)
    done = run(*base, "--out", tmp_path / "out" / "flags.jsonl", "--json", tmp_path / "out" / "summary.json")
    assert done.exit_code == 2 and "line 21: field 'x' has shape (3,)" in done.stderr
    assert not list((tmp_path / "out").iterdir())
    done = run(*base)
    assert done.exit_code == 2 and len(lines(done.stdout)) == (0 if fdr else 20)


def test_the_summary_as_json(run, stub, detector: Path, incoming: Path, tmp_path) -> None:
    base = ("detect", detector, incoming, "--task", "stub", "--alpha", 0.2)
    out = tmp_path / "flags.jsonl"
    done = run(*base, "--out", out, "--json", "-")
    found, rows = json.loads(done.stdout), lines(out.read_text())
    assert (found["inputs"], found["flagged"]) == (20, sum(row["flag"] for row in rows))
    assert (found["alpha"], found["fdr"], found["out"]) == (0.2, None, str(out))
    done = run(*base, "--json", "-")
    assert done.exit_code == 2 and "would both write to standard output" in done.stderr


@pytest.mark.parametrize("fdr", [(), ("--fdr", "bh")])
def test_reasons_for_whom_they_are_wanted(run, stub, detector: Path, incoming: Path, tmp_path, fdr) -> None:
    base = ("detect", detector, incoming, "--task", "stub", "--alpha", 0.2, *fdr)
    everything = lines(run(*base).stdout)
    some, none = (lines(run(*base, "--reasons", which).stdout) for which in ("flagged", "none"))
    assert [row if row["flag"] else "" for row in some] == [row if row["flag"] else "" for row in everything]
    short = {"id", "flag", "alpha", "score", "p", *(("fdr", "p_adjusted") if fdr else ())}
    assert {tuple(sorted(row)) for row in none} == {tuple(sorted(short))}
    assert [{key: row[key] for key in short} for row in everything] == [dict(row) for row in none]
    out = tmp_path / "flags.jsonl"
    run(*base, "--reasons", "none", "--out", out)
    done = run("explain", out, "--id", 0)
    assert done.exit_code == 2 and "--reasons" in done.stderr


def test_a_report(run, stub, detector: Path, incoming: Path, tmp_path, monkeypatch) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("causalmad.report")
    page, out = tmp_path / "new" / "flags.html", tmp_path / "flags.jsonl"
    base = ("detect", detector, incoming, "--task", "stub", "--alpha", 0.2, "--chunk", 7, "--out", out)
    done = run(*base, "--report", page, "--fdr", "bh")
    assert done.exit_code == 0, done.stderr
    text = page.read_text()
    assert all(row["id"] in text for row in lines(out.read_text())) and str(page) in done.stdout
    monkeypatch.setattr(stream, "IN_A_REPORT", 19)
    for name in (incoming, "-"):
        page.unlink(missing_ok=True)
        done = run("detect", detector, name, *base[3:], "--report", page, stdin=incoming.read_text())
        assert done.exit_code == 2 and "more than 19 inputs" in done.stderr and not page.exists()
    done = run(*base, "--report", "-")
    assert done.exit_code == 2 and "--report -" in done.stderr


def test_chunks_are_joined_as_if_they_were_one(stub, detector: Path, incoming: Path) -> None:
    from causalmad.cli.reports import joined
    from causalmad.detector import FittedDetector
    from causalmad.rows import as_inputs, read_rows
    from tests.stub_task import Stub

    fitted = FittedDetector.load(detector, Stub().load(0).model)
    inputs = as_inputs(read_rows(str(incoming)), fitted.model)
    parts = [(part, fitted.detect(part, 0.2)) for part in stream.slices(inputs, 7)]
    (given, found), wanted = joined(parts), fitted.detect(inputs, 0.2)
    assert given.ids == inputs.ids and given.digests == inputs.digests
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5)
    assert [found.reason(row).id for row in range(20)] == list(wanted.ids)
    assert (found.flags == wanted.flags).all() and found.level == wanted.level


def test_a_report_without_jinja2_is_refused_before_any_work(run, stub, detector, incoming, monkeypatch) -> None:
    monkeypatch.setattr("causalmad.cli.reports.find_spec", lambda name: None)
    done = run("detect", detector, incoming, "--task", "stub", "--report", "page.html")
    assert done.exit_code == 2 and "pip install 'causalmad[report]'" in done.stderr and not done.stdout


def test_whoever_reads_lines_gets_each_at_once(monkeypatch) -> None:
    from causalmad.cli.files import write_lines

    class Counted(io.StringIO):
        flushes = 0

        def flush(self) -> None:
            self.flushes += 1

    out = Counted()
    monkeypatch.setattr("sys.stdout", out)
    write_lines("-", ["a", "b"])
    assert out.getvalue() == "a\nb\n" and out.flushes == 2


def test_a_terminated_program_leaves_no_temporary_file(tmp_path: Path) -> None:
    import os
    import signal

    from causalmad.cli.files import write_lines

    def ended() -> Any:
        yield "first"
        os.kill(os.getpid(), signal.SIGTERM)
        yield "second"

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        write_lines(str(tmp_path / "out.jsonl"), ended())
    assert caught.value.code == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir()) and signal.getsignal(signal.SIGTERM) == before
