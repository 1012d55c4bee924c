"""Data that misbehaves, and streams without end: right scores, or an error that names the row."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import causalmad as cm
from causalmad import Detector, Inputs, Monitor
from causalmad.cli.files import write_lines
from causalmad.cli.stream import Tally, Work, lines_of
from causalmad.errors import CausalmadError
from causalmad.models import open_model
from causalmad.rows import chunked, each_row
from causalmad.testing.toys import toy
from tests.faults.plain import _words
from tests.faults.watch import Fault, _peak

MADE = toy("mlp", trusted=120, fresh=40)
WORDS = toy("gpt2", trusted=60, fresh=20)


def require_named(run: Callable[[], Any], *words: str) -> None:
    """The run raises one of causalmad's own errors, with these words in it."""
    try:
        run()
    except CausalmadError as error:
        missing = [word for word in words if word not in str(error)]
        if missing:
            raise Fault(f"an error without {missing}: {error}") from error
        return
    raise Fault("no error")


def empty_strings() -> None:
    opened = open_model(WORDS.model, tokenizer=_words())
    fitted = Detector(cm.signatures.Activations()).fit(opened, [f"w{2 + i % 9} w{2 + i % 7}" for i in range(60)])
    require_named(lambda: fitted.detect(["w2 w3", ""], alpha=0.2), "no tokens")
    require_named(lambda: fitted.detect([""], alpha=0.2), "no tokens")
    require_named(lambda: fitted.detect([], alpha=0.2), "no inputs")
    fitted.detect(["   w3", "\u200b\x00 w2"], alpha=0.2)


def lone_surrogates() -> None:
    opened = open_model(WORDS.model, tokenizer=_words())
    fitted = Detector(cm.signatures.Activations()).fit(opened, [f"w{2 + i % 9} w{2 + i % 7}" for i in range(60)])
    for text in ("\ud800", "w2 \udfff w3", "\ud83d"):
        try:
            found = fitted.detect(["w4", text], alpha=0.2)
        except CausalmadError:
            continue
        json.dumps(found.row(1)).encode()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        rows = [json.dumps({"id": f"\ud800{i}", "x": MADE.fresh.main[i].tolist()}) for i in range(4)]
        path.write_text("\n".join(rows))
        vectors = Detector(cm.signatures.Activations()).fit(MADE.model, MADE.trusted)
        (part,) = chunked(each_row(str(path)), open_model(MADE.model), size=9)
        found = vectors.detect(part, alpha=0.2)
        write_lines(str(Path(folder) / "out.jsonl"), [json.dumps(found.row(row)) for row in range(len(found))])
        str(found)


def a_hundred_thousand_tokens() -> None:
    """Too long for the model is named; for a model without a limit it is scored as any other."""
    fitted = Detector(cm.signatures.Activations()).fit(WORDS.model, WORDS.trusted)
    long = Inputs.of({"input_ids": [torch.ones(100_000, dtype=torch.long), torch.ones(3, dtype=torch.long)]})
    require_named(lambda: fitted.detect(long, alpha=0.2))

    class Bag(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = torch.nn.Embedding(20, 4), torch.nn.Linear(4, 2)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            kept = self.words(input_ids) * attention_mask[..., None]
            return self.head(torch.tanh(kept.sum(1) / attention_mask.sum(1, keepdim=True)))

    bag = Detector(cm.signatures.OutputOnly()).fit(Bag(), WORDS.trusted)
    both, alone = bag.score(long), bag.score(long[:1])
    if not np.allclose(both[0], alone[0], rtol=1e-4):
        raise Fault(f"a long input scores {both[0]} beside a short one, {alone[0]} alone")


def duplicate_ids() -> None:
    fitted = Detector(cm.signatures.Activations()).fit(MADE.model, MADE.trusted)
    require_named(lambda: Inputs.of(MADE.fresh.main, ids=["a"] * len(MADE.fresh)), "more than once")
    require_named(lambda: fitted.detect({"x": MADE.fresh.main[:2], "id": ["a", "a"]}, alpha=0.2))
    doubled = torch.cat([MADE.fresh.main[:3], MADE.fresh.main[:3]])
    found = fitted.detect(doubled, alpha=0.2)
    if len(set(found.ids)) != 6 or not np.array_equal(found.scores[:3], found.scores[3:]):
        raise Fault("copies of an input")
    again = Detector(cm.signatures.Activations()).fit(MADE.model, torch.cat([MADE.trusted.main, MADE.trusted.main]))
    parts = again.provenance["ids"]
    contents = [{key.partition(".")[0] for key in parts[name]} for name in ("signature", "calibration")]
    if contents[0] & contents[1]:
        raise Fault("a copy of a calibration input was fitted on")


def contaminated_trusted_set() -> dict[str, float]:
    """One trusted input in five is of another kind: the audit says that so many stand apart, and which."""
    draw = torch.Generator().manual_seed(4)
    bad = torch.randn(30, 12, generator=draw) + 6
    mixed = Inputs.of(torch.cat([MADE.trusted.main, bad]), ids=[*map(str, range(120)), *(f"bad{i}" for i in range(30))])
    said = cm.audit(Detector(cm.signatures.Activations()), MADE.model, mixed)
    named = [key for key in said.apart if key.startswith("bad")]
    if len(named) < 0.8 * 30 or len(named) < 0.8 * len(said.apart) or "stand apart" not in str(said):
        raise Fault(f"the audit names {len(named)} of 30 bad inputs, among {len(said.apart)}")
    return {"bad": 30, "named": len(said.apart), "of them bad": len(named)}


def constant_signatures() -> None:
    """Columns that never change: no score is NaN, and an input that changes them stands out."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[0, 0] = 1
        model[0].bias.fill_(1)
    trusted = torch.cat([torch.ones(60, 1), torch.randn(60, 3, generator=torch.Generator().manual_seed(0))], 1)
    for reference in (cm.references.Mahalanobis(), cm.references.NearestNeighbours(), cm.references.EmpiricalTails()):
        try:
            fitted = Detector(cm.signatures.Activations(), reference).fit(model, trusted)
        except CausalmadError:
            continue
        usual, odd = fitted.score(trusted[:3] + torch.tensor([0, 1.0, 0, 0])), fitted.score(torch.full((1, 4), 9.0))
        if not np.isfinite(usual).all() or np.isnan(odd).any() or odd[0] < usual.max():
            raise Fault(f"{reference}: {usual}, {odd}")


def one_trusted_input() -> None:
    for count in (0, 1, 2, 3, 5):
        for signature in (cm.signatures.Activations(), cm.signatures.ResamplingProfile()):
            try:
                fitted = Detector(signature).fit(MADE.model, MADE.trusted.main[:count])
                found = fitted.detect(MADE.fresh, alpha=0.9)
            except CausalmadError:
                continue
            if not np.isfinite(found.scores).all() or len(found) != len(MADE.fresh):
                raise Fault(f"{count} trusted inputs: {found.scores[:3]}")


def _endless(count: int, folder: Path, named: bool) -> Path:
    """A file of inputs that come again and again, with an id for each or without."""
    path = folder / "in.jsonl"
    rows = [json.dumps([round(v, 3) for v in row.tolist()]) for row in MADE.fresh.main]
    with path.open("w") as file:
        for number, row in enumerate(itertools.islice(itertools.cycle(rows), count)):
            file.write(f'{{"id": "r{number}", "x": {row}}}\n' if named else f'{{"x": {row}}}\n')
    return path


def a_long_stream(count: int = 20_000, named: bool = False, room: int = 48 << 20) -> dict[str, float]:
    """So many inputs from a file to a file: memory stays as it is, and no line is lost."""
    fitted = Detector(cm.signatures.Activations()).fit(MADE.model, MADE.trusted)
    opened = open_model(fitted.model, batch_size=1024)
    with TemporaryDirectory() as name:
        path, out = _endless(count, Path(name), named), Path(name) / "out.jsonl"
        work = Work(fitted, 0.2, "none", 0, lambda what, done, total: None, True)

        def score() -> Iterator[str]:
            return lines_of(work, chunked(each_row(str(path)), opened, size=1024), tally)

        tally = Tally()
        write_lines(str(out), itertools.islice(score(), 2048))
        before, tally = _peak(reset=True), Tally()
        write_lines(str(out), score())
        grown = _peak() - before
        seen, ids = 0, set()
        with out.open() as file:
            for line in file:
                seen += 1
                ids.add(hash(line.partition(",")[0]))
        if seen != count or len(ids) != count or tally.count != count:
            raise Fault(f"{seen} lines, {len(ids)} ids of {count} inputs")
        if grown > room:
            raise Fault(f"{grown / 2**20:.0f} MiB more for {count} inputs")
        return {"inputs": count, "MiB more": round(grown / 2**20, 1)}


def a_long_stream_of_ids(count: int = 20_000) -> dict[str, float]:
    """The same where every input has an id: of each a hash is kept, so that one that stands twice is found."""
    return a_long_stream(count, named=True, room=(48 << 20) + 96 * count)


def a_monitor_under_load(count: int = 2_000, size: int = 50, room: int = 64 << 20) -> dict[str, float]:
    """A stream at full speed: memory stays flat, and p-values are those of one call over all inputs."""
    fitted = Detector(cm.signatures.Activations(), calibration_share=0.5).fit(MADE.model, MADE.trusted)
    draw = torch.Generator().manual_seed(2)
    monitor, peaks, state = Monitor(fitted, alpha=0.1), [], None
    for start in range(0, count, size):
        batch = Inputs.of(torch.randn(size, 12, generator=draw), ids=[f"i{start + i}" for i in range(size)])
        events = monitor(batch)
        offline = fitted.detect(batch, alpha=0.1)
        if [event.p_value for event in events] != offline.p_values.tolist():
            raise Fault(f"other p-values than offline after {start} inputs")
        if start in (count // 10 // size * size, (count - 1) // size * size):
            peaks.append(_peak(reset=True))
            state = len(json.dumps(monitor.state()))
    grown = peaks[-1] - peaks[0]
    if monitor.steps != count or grown > room or state is None or state > 2000:
        raise Fault(f"{monitor.steps} steps, {grown / 2**20:.0f} MiB more, a state of {state} characters")
    return {"inputs": count, "MiB more": round(grown / 2**20, 1)}


CASES: tuple[Callable[[], Any], ...] = (
    empty_strings,
    lone_surrogates,
    a_hundred_thousand_tokens,
    duplicate_ids,
    contaminated_trusted_set,
    constant_signatures,
    one_trusted_input,
    a_long_stream,
    a_long_stream_of_ids,
    a_monitor_under_load,
)
FULL: tuple[Callable[[], Any], ...] = (
    *CASES[:-3],
    partial(a_long_stream, 1_000_000),
    partial(a_long_stream_of_ids, 1_000_000),
    partial(a_monitor_under_load, 200_000, 500),
)
