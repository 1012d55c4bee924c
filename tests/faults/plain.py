"""Damaged files of plain data: monitors, logs, trained models, JSON lines, hypotheses, circuits, lines of flags."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import nn

import causalmad as cm
from causalmad import Detector, FittedDetector, Monitor
from causalmad.errors import CausalmadError
from causalmad.evaluation.comparing import compare
from causalmad.evaluation.leaderboard import Leaderboard
from causalmad.evaluation.logs import Log, place
from causalmad.hypotheses.circuit import Circuit
from causalmad.models import open_model
from causalmad.rows import as_inputs, chunked, each_row, read_rows
from causalmad.tasks.cache import cached
from causalmad.testing.toys import toy
from tests.faults.mutations import damage_bytes, damage_json, damage_safetensors, damage_tensors, damage_text
from tests.faults.watch import Fault
from tests.stub_task import Stub

Attempt = tuple[str, Callable[[], None]]


@cache
def fitted() -> FittedDetector:
    made = toy("mlp", trusted=80, fresh=8)
    return Detector(cm.signatures.Activations()).fit(made.model, made.trusted)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sealed(content: Any) -> bytes:
    """JSON with a checksum that fits, where it can have one."""
    if not isinstance(content, dict):
        return json.dumps(content).encode()
    body = {key: value for key, value in content.items() if key != "checksum"}
    text = json.dumps(body, sort_keys=True)
    return json.dumps({**json.loads(text), "checksum": _hash(text.encode())}).encode()


def _damaged(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """A sealed JSON file, damaged by accident or forged."""
    kind = draw.choice(("bytes", "text", "json", "forged json", "forged json", "forged json", "forged json"))
    if kind == "bytes":
        return kind, damage_bytes(data, draw)
    if kind == "text":
        return kind, damage_text(data, draw)
    found = damage_json(json.loads(data), draw)
    return kind, _sealed(found) if kind == "forged json" else json.dumps(found).encode()


# A monitor.


@cache
def _monitor() -> tuple[bytes, dict[str, Any]]:
    made, monitor = toy("mlp", trusted=80, fresh=8), Monitor(fitted(), alpha=0.1)
    monitor(made.fresh)
    with TemporaryDirectory() as folder:
        monitor.save(Path(folder) / "m.json")
        return (Path(folder) / "m.json").read_bytes(), monitor.state()


def monitor(draw: random.Random, folder: Path) -> Attempt:
    data, state = _monitor()
    kind, found = _damaged(data, draw)
    (folder / "m.json").write_bytes(found)

    def use() -> None:
        again = Monitor.load(folder / "m.json", fitted())
        if not kind.startswith("forged") and again.state() != state:
            raise Fault("another state than the one that was saved")
        events = again(toy("mlp", trusted=80, fresh=8).fresh)
        if not all(0 < event.p_value <= 1 and np.isfinite(event.capital) for event in events):
            raise Fault(f"events {events[:2]}")
        again.save(folder / "m.json")
        repr(again)

    return kind, use


# Logs of a bench.


@cache
def _logs() -> tuple[Log, ...]:
    from causalmad.evaluation.protocol import evaluate_seed

    spec, found = Stub(), []
    for seed in (0, 1):
        data = spec.load(seed)
        for name in ("activations", "output-only"):
            parts = Detector(getattr(cm.signatures, "Activations" if name == "activations" else "OutputOnly")())
            result, _ = evaluate_seed(data, parts, seed, controls={})
            print_ = open_model(data.model).fingerprint()
            found.append(Log.of("stub", spec, name, parts, data, result, print_))
    return tuple(found)


def log(draw: random.Random, folder: Path) -> Attempt:
    logs = _logs()
    for one in logs:
        one.write(folder)
    victim = draw.choice(logs)
    path = place(folder, victim.task, victim.detector, victim.seed)
    kind, data = _damaged(path.read_bytes(), draw)
    path.write_bytes(data)

    def use() -> None:
        again = Log.read(path)
        if not kind.startswith("forged") and again != _read(victim):
            raise Fault("another log than the one that was written")
        again.made_by(Stub(), Detector(cm.signatures.Activations()))
        again.write(folder / "copy")
        read = [again if one is victim else one for one in logs]
        board = Leaderboard.of(read, "x")
        board.to_csv(), board.to_markdown(), json.dumps(board.to_data()), board.table()
        with contextlib.suppress(CausalmadError):
            compare(read, "activations", "output-only").to_data()

    return kind, use


def _read(one: Log) -> Log:
    """As it is read back: tuples are lists in JSON."""
    return replace(one, content=json.loads(json.dumps(dict(one.content))))


# A task's trained model.


def trained(draw: random.Random, folder: Path) -> Attempt:
    """Whatever is done to an entry, its weights come out right: it is made again where it is damaged."""
    import os

    os.environ["CAUSALMAD_CACHE"] = str(folder)
    _cached()
    (entry,) = (folder / "tasks").iterdir()
    kind = draw.choice(("card bytes", "card json", "card text", "weights bytes", "weights header", "missing", "folder"))
    card, weights = entry / "card.json", entry / "model.safetensors"
    if kind == "card bytes":
        card.write_bytes(damage_bytes(card.read_bytes(), draw))
    elif kind == "card json":
        card.write_text(json.dumps(damage_json(json.loads(card.read_text()), draw)))
    elif kind == "card text":
        card.write_bytes(damage_text(card.read_bytes(), draw))
    elif kind.startswith("weights"):
        damage = damage_bytes if kind == "weights bytes" else damage_safetensors
        weights.write_bytes(damage(weights.read_bytes(), draw))
        if draw.random() < 0.5:
            kind = f"forged {kind}"
            card.write_text(json.dumps({**json.loads(card.read_text()), "sha256": _hash(weights.read_bytes())}))
    elif kind == "missing":
        draw.choice((card, weights)).unlink()
    else:
        weights.unlink()
        weights.mkdir()

    def use() -> None:
        model, _ = _cached()
        if not all(bool((value == 1).all()) for value in model.parameters()):
            raise Fault("other weights than those that were trained")

    return kind, use


def _cached() -> tuple[nn.Module, Any]:
    def train(model: nn.Module) -> dict[str, Any]:
        with torch.no_grad():
            for value in model.parameters():
                value.fill_(1)
        return {"accuracy": {"normal": 1.0}}

    model = nn.Linear(3, 2)
    return model, cached("toy", {}, "1", 0, model, train)


# A cache of signatures.


def shards(draw: random.Random, folder: Path) -> Attempt:
    """A damaged shard is left out and computed again; one that was forged, with a name that fits, has to be read."""
    made = toy("mlp", trusted=80, fresh=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = cm.extract(fitted(), made.fresh, cache=folder, shard=3).values
    path = draw.choice(sorted(folder.glob("*/*.safetensors")))
    kind = draw.choice(
        ("bytes", "header", "forged bytes", "forged header", "forged header", "forged tensors", "manifest")
    )
    data = path.read_bytes()
    if kind == "manifest":
        manifest = path.parent / "manifest.json"
        manifest.write_bytes(damage_bytes(manifest.read_bytes(), draw))
    elif kind == "forged tensors":
        from safetensors.torch import load, save

        with contextlib.suppress(Exception):
            data = save(damage_tensors(load(data), draw))
    elif kind.endswith("bytes"):
        data = damage_bytes(data, draw)
    else:
        data = damage_safetensors(data, draw)
    if kind.startswith("forged"):
        path.unlink()
        path = path.with_name(f"{hashlib.blake2b(data, digest_size=16).hexdigest()}.safetensors")
    path.write_bytes(data)

    def use() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = cm.extract(fitted(), made.fresh, cache=folder, shard=3)
            values = found.values
        if not kind.startswith("forged") and not np.allclose(values, wanted, rtol=1e-5, atol=1e-6):
            raise Fault("other signatures than those that were computed")
        if values.shape != wanted.shape:
            raise Fault(f"signatures of shape {values.shape}")
        fitted().detect(made.fresh, alpha=0.9, cache=folder)

    return kind, use


# JSON lines.

_ROWS: dict[str, list[dict[str, Any]]] = {
    "vectors": [{"id": f"r{i}", "x": [0.1 * i - k for k in range(12)], "note": "n"} for i in range(6)],
    "tokens": [{"input_ids": [1 + (i * k) % 19 for k in range(4 + i % 3)], "S2": 1} for i in range(6)],
    "texts": [{"text": "w2 w3 w4 " * (i + 1), "label": i % 2} for i in range(6)],
}


@cache
def _models() -> dict[str, Any]:
    vectors, tokens = toy("mlp", 40, 4), toy("gpt2", 40, 4)
    texts = open_model(tokens.model, tokenizer=_words())
    specs = {"vectors": (vectors.model, vectors), "tokens": (tokens.model, tokens), "texts": (texts, tokens)}
    return {
        name: Detector(cm.signatures.Activations()).fit(model, made.trusted) for name, (model, made) in specs.items()
    }


def _fitted_words() -> FittedDetector:
    """A detector of texts."""
    return _models()["texts"]


def _words() -> Any:
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = {"<pad>": 0, "<end>": 1, **{f"w{i}": i for i in range(2, 20)}}
    words = Tokenizer(models.WordLevel(known, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<end>", pad_token="<pad>")


def lines(draw: random.Random, folder: Path) -> Attempt:
    """Each input is scored as it would be alone, or the file is refused."""
    name = draw.choice(list(_ROWS))
    rows = [json.dumps(row) for row in _ROWS[name]]
    at, kind = draw.randrange(len(rows)), draw.choice(("bytes", "text", "json", "json", "twice", "mixed"))
    data = "\n".join(rows).encode()
    if kind == "bytes":
        data = damage_bytes(data, draw)
    elif kind == "json":
        rows[at] = json.dumps(damage_json(_ROWS[name][at], draw))
        data = "\n".join(rows).encode("utf-8", "surrogatepass")
    elif kind == "text":
        data = b"\n".join([*(row.encode() for row in rows[:at]), damage_text(rows[at].encode(), draw)])
    elif kind == "twice":
        data = "\n".join([*rows, draw.choice(rows)]).encode()
    else:
        data = "\n".join([*rows, json.dumps(draw.choice(_ROWS[draw.choice(list(_ROWS))]))]).encode()
    path = folder / "in.jsonl"
    path.write_bytes(data)
    detector = _models()[name]
    opened = open_model(detector.model, tokenizer=_words() if name == "texts" else None)

    def use() -> None:
        scores, ids = [], []
        for part in chunked(each_row(str(path)), opened, size=4):
            found = detector.detect(part, alpha=0.9)
            scores.append(found.scores)
            ids += found.ids
            json.dumps([found.row(row) for row in range(len(found))], allow_nan=False).encode()
        count = sum(1 for line in path.read_bytes().split(b"\n") if line.strip())
        if len(ids) != count or len(set(ids)) != count:
            raise Fault(f"{len(ids)} inputs, {len(set(ids))} ids, of {count} lines")
        whole = detector.detect(as_inputs(read_rows(str(path)), opened), alpha=0.9)
        if list(whole.ids) != ids or not np.allclose(whole.scores, np.concatenate(scores), rtol=1e-4, atol=1e-6):
            raise Fault("other scores at once than in chunks")

    return kind, use


# What `detect` wrote, for `explain`.


@cache
def _flagged() -> list[str]:
    found = fitted().detect(toy("mlp", trusted=80, fresh=8).fresh, alpha=0.5)
    return [json.dumps(found.row(row)) for row in range(3)]


def flags(draw: random.Random, folder: Path) -> Attempt:
    from typer.testing import CliRunner

    from causalmad.cli.app import app

    rows = list(_flagged())
    kind = draw.choice(("bytes", "text", "json", "json", "json"))
    first = rows[0].encode()
    if kind == "json":
        first = json.dumps(damage_json(json.loads(rows[0]), draw)).encode("utf-8", "surrogatepass")
    else:
        first = damage_bytes(first, draw) if kind == "bytes" else damage_text(first, draw)
    (folder / "flags.jsonl").write_bytes(b"\n".join([first, *(row.encode() for row in rows[1:])]))

    def use() -> None:
        result = CliRunner().invoke(app, ["explain", str(folder / "flags.jsonl"), "--id", "0"])
        said = result.output
        if result.exit_code not in (0, 2) or "--debug shows" in said or "Traceback" in said:
            raise Fault(f"exit code {result.exit_code}: {said[-200:]} {result.exception!r}")

    return kind, use


# Hypotheses and circuits.


@cache
def _claim() -> tuple[str, Any]:
    graph = nx.DiGraph(name="claim")
    graph.add_node("early", at="1", mechanism=None)
    graph.add_node("late", at=["3", "4#neuron=0-3"], tolerance=0.5)
    nx.add_path(graph, ["early", "late", cm.OUTPUT])
    return cm.Hypothesis(graph).to_json(), cm.Hypothesis(graph)


def hypothesis(draw: random.Random, folder: Path) -> Attempt:
    text, claim = _claim()
    kind = draw.choice(("bytes", "text", "json", "json", "json", "cycles"))
    made = toy("mlp", trusted=20, fresh=4)
    if kind == "json":
        text = json.dumps(damage_json(json.loads(text), draw))
    elif kind == "cycles":
        names = [f"n{i}" for i in range(draw.randrange(3, 40))]
        edges = [{"edge": [a, b]} for a in names for b in names if a != b]
        nodes = [{"node": name, "at": ["1"]} for name in names]
        text = json.dumps({"form": "hypothesis", "about": {}, "nodes": nodes, "edges": edges, "subspaces": {}})
    else:
        damage = damage_bytes if kind == "bytes" else damage_text
        text = damage(text.encode(), draw).decode("utf-8", "replace")

    def use() -> None:
        found = cm.Hypothesis.from_json(text)
        found.to_json(), repr(found), found.claims
        if found == claim and text == _claim()[0]:
            return
        with contextlib.suppress(CausalmadError):
            found.check(made.model, made.trusted)

    return kind, use


@cache
def _circuit() -> str:
    graph = nx.DiGraph()
    graph.add_node("input", at="transformer.wte")
    graph.add_node("a0.h1", at="transformer.h.0.attn#head=1")
    graph.add_edge("input", "a0.h1", weight=0.5)
    graph.add_edge("input", "m1", weight=-0.25)
    graph.add_edge("a0.h1", "logits", weight=2.0)
    graph.add_edge("m1", "logits", weight=1.0)
    graph.nodes["m1"]["at"] = "transformer.h.1.mlp"
    return Circuit(nx.freeze(graph), "edges", 20, "eap").to_json()


def circuit(draw: random.Random, folder: Path) -> Attempt:
    text = _circuit()
    kind = draw.choice(("bytes", "text", "json", "json", "json", "level"))
    if kind == "json":
        text = json.dumps(damage_json(json.loads(text), draw))
    elif kind == "level":
        text = json.dumps(damage_json({**json.loads(text), "level": "nodes"}, draw))
    else:
        damage = damage_bytes if kind == "bytes" else damage_text
        text = damage(text.encode(), draw).decode("utf-8", "replace")

    def use() -> None:
        found = Circuit.from_json(text)
        found.to_json(), repr(found), len(found)
        found.prune(0.1).to_json(), found.prune(count=2)
        with contextlib.suppress(CausalmadError):
            found.to_hypothesis()

    return kind, use


TARGETS: dict[str, Callable[[random.Random, Path], Attempt]] = {
    "monitor": monitor,
    "log": log,
    "trained model": trained,
    "shard": shards,
    "json lines": lines,
    "flags": flags,
    "hypothesis": hypothesis,
    "circuit": circuit,
}
