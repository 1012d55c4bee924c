"""A monitor in a service: one line of JSON for each request, a flag for an odd one, an alarm when the stream drifts.

Requests come as lines of JSON and each gets its line of JSON at once. Half-way the service is restarted, and goes on
from the state that it wrote. Then requests become a little odd: hardly one is flagged, and all of them raise the alarm.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

import causalmad as cm


def requests(values: Tensor, start: int) -> Iterator[str]:
    for number, row in enumerate(values, start):
        yield json.dumps({"id": f"request-{number}", "input": row.tolist()})


def serve(monitor: cm.Monitor, lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        request = json.loads(line)
        (event,) = monitor(cm.Inputs.of(torch.tensor([request["input"]]), ids=[request["id"]]))
        yield json.dumps(asdict(event))


def main() -> None:
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    detector = cm.Detector(cm.signatures.Activations(), cm.references.Mahalanobis(), cm.calibration.Conformal())
    fitted = detector.fit(model, torch.randn(2000, 8, generator=draw), seed=0)
    normal, drifted = torch.randn(300, 8, generator=draw), 1.25 * torch.randn(300, 8, generator=draw)
    with tempfile.TemporaryDirectory() as folder:
        monitor, state = cm.Monitor(fitted, alpha=0.01, alarm=0.01), Path(folder) / "monitor.json"
        quiet = [json.loads(line) for line in serve(monitor, requests(normal, 0))]
        monitor.save(state)
        monitor = cm.Monitor.load(state, fitted)  # the service starts again
        loud = []
        for line in serve(monitor, requests(drifted, len(normal))):
            loud.append(json.loads(line))
            if loud[-1]["alarm"]:
                break
    for name, events in {"normal": quiet, "drifted": loud}.items():
        print(f"{name}: {sum(event['flag'] for event in events)} of {len(events)} requests flagged")
    print(monitor)
    if quiet[-1]["alarm"] or not loud[-1]["alarm"]:
        raise SystemExit("drifted requests should raise the alarm, and normal ones should not")


if __name__ == "__main__":
    main()
