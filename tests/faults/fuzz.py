"""A coverage-guided fuzzer over everything that reads a file: `pip install atheris`, then

    python -m tests.faults.fuzz TARGET [-max_total_time=600] [-seed=1] [CORPUS]

TARGET is one of ``lines``, ``monitor``, ``log``, ``circuit``, ``hypothesis``, ``description`` (the JSON of a detector,
sealed anew), ``tensors`` (its tensor file, sealed anew), ``shard``, or ``json``, which takes them in turn. An input is
the bytes of the file; whatever ends in anything but a right result or one of causalmad's errors is a crash, and is
written to a file by libFuzzer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(tempfile.mkdtemp())


def targets() -> dict[str, Callable[[bytes], None]]:
    """Each reader as a function of bytes."""
    import causalmad as cm
    from causalmad import FittedDetector, Monitor
    from causalmad.errors import CausalmadError
    from causalmad.evaluation.leaderboard import Leaderboard
    from causalmad.evaluation.logs import Log
    from causalmad.extraction.shards import DamagedShardError, check_shard, map_values
    from causalmad.hypotheses.circuit import Circuit
    from causalmad.models import open_model
    from causalmad.rows import chunked, each_row
    from tests.faults.detectors import JSON, TENSORS, saved, sealed
    from tests.faults.plain import _sealed, fitted

    one = saved("mlp/profile")
    content = json.loads(one.files[JSON])
    opened = open_model(one.toy.model)

    def written(name: str, data: bytes) -> Path:
        (FOLDER / name).write_bytes(data)
        return FOLDER / name

    def resealed(data: bytes) -> bytes:
        with contextlib.suppress(ValueError, RecursionError):
            return _sealed(json.loads(data))
        return data

    def lines(data: bytes) -> None:
        for part in chunked(each_row(str(written("in.jsonl", data))), opened, size=4):
            if part.main[0].shape == (12,):
                fitted().detect(part, alpha=0.9)

    def monitor(data: bytes) -> None:
        Monitor.load(written("m.json", resealed(data)), fitted())(one.toy.fresh)

    def log(data: bytes) -> None:
        again = Log.read(written("log.json", resealed(data)))
        Leaderboard.of([again]).to_markdown()

    def circuit(data: bytes) -> None:
        found = Circuit.from_json(data.decode("utf-8", "replace"))
        found.prune(0.5).to_json(), found.to_hypothesis()

    def hypothesis(data: bytes) -> None:
        cm.Hypothesis.from_json(data.decode("utf-8", "replace")).to_json()

    def load(files: dict[str, bytes]) -> None:
        for name, each in files.items():
            written(name, each)
        FittedDetector.load(FOLDER, one.toy.model).detect(one.toy.fresh, alpha=0.9)

    def description(data: bytes) -> None:
        with contextlib.suppress(ValueError, RecursionError):
            given = json.loads(data)
            load(sealed({**content, **given} if isinstance(given, dict) else content, one.files[TENSORS]))

    def tensors(data: bytes) -> None:
        load(sealed(content, data))

    def shard(data: bytes) -> None:
        path = written(f"{hashlib.blake2b(data, digest_size=16).hexdigest()}.safetensors", data)
        try:
            if len(check_shard(path, 3)):
                map_values(path).sum()
        except DamagedShardError:
            pass
        finally:
            path.unlink()

    def named(read: Callable[[bytes], None]) -> Callable[[bytes], None]:
        def attempt(data: bytes) -> None:
            with contextlib.suppress(CausalmadError):
                read(data)

        return attempt

    each = (lines, monitor, log, circuit, hypothesis, description, tensors, shard)
    found = {read.__name__: named(read) for read in each}
    found["json"] = lambda data: found[each[data[0] % len(each)].__name__](data[1:]) if data else None
    return found


def seeds() -> dict[str, bytes]:
    """A whole file for each target to start from."""
    from tests.faults.detectors import JSON, TENSORS, saved
    from tests.faults.plain import _ROWS, _circuit, _claim, _logs, _monitor

    files = saved("mlp/profile").files
    log = _logs()[0].write(FOLDER).read_bytes()
    rows = "\n".join(json.dumps(row) for row in _ROWS["vectors"]).encode()
    known = {"lines": rows, "monitor": _monitor()[0], "log": log, "circuit": _circuit().encode()}
    known |= {"hypothesis": _claim()[0].encode(), "description": files[JSON], "tensors": files[TENSORS]}
    return {**known, "shard": files[TENSORS]}


def main() -> None:
    import atheris

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["causalmad", "json"]):
        import causalmad.evaluation.leaderboard
        import causalmad.extraction.cache
        import causalmad.hypotheses.circuit
        import causalmad.hypotheses.written
        import causalmad.monitor
        import causalmad.rows
        import causalmad.store  # noqa: F401

    read = targets()[name]
    corpus = Path(tempfile.mkdtemp())
    order = list(seeds())
    for number, (kind, data) in enumerate(seeds().items()):
        if name in (kind, "json"):
            (corpus / str(number)).write_bytes((bytes([order.index(kind)]) if name == "json" else b"") + data)
    atheris.Setup([*sys.argv, "-max_len=20000", "-rss_limit_mb=3000", "-timeout=20", str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
