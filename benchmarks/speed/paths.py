"""Claims: path patching and scrubbing cost a fraction of the forward passes that they stand for.

Path patching (``path_effects``, the clean run included; the donors' run is made once per fit): every head to the logits
(what ``PathPatching`` does by default), heads to heads further on, and the same by way of such a head to the logits,
beside plain forward passes, one for each path. Signatures: causal scrubbing of a chain of three claims, and mutual
interchange at every layer's last position, beside as many forward passes as they make runs of inputs. Next to each, as
``whole``, the same calls with the clean run's parts computed again every time.

    OMP_NUM_THREADS=1 python benchmarks/speed/paths.py [--size gpt2-small] [--rounds 11] [--full 1]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import networkx as nx
import torch
from side_by_side import SHAPES, Times, bare, call, claim, opened, ratios, side_by_side, tokens

from causalmad import OUTPUT, Hypothesis
from causalmad.hypotheses import Donors
from causalmad.hypotheses.bench import Bench
from causalmad.hypotheses.edges import EdgePatcher
from causalmad.hypotheses.paths import path_effects, path_sources
from causalmad.signatures import CausalScrubbing, MutualInterchange
from causalmad.targets import TopMargin


def chain(layers: int) -> Hypothesis:
    """Three claims, one after the other, the first at a position in the middle and the others at the last."""
    first, second, third = (0, layers // 2, layers - 1) if layers < 4 else (layers // 4, layers // 2, 3 * layers // 4)
    graph = nx.DiGraph(name="chain")
    for name, layer, heads, position, token in (
        ("first", first, "0", "12", 3),
        ("second", second, "1,2", "-1", 4),
        ("third", third, "0,3", "-1", 5),
    ):

        def value(x: Any, token: int = token) -> int:
            return int(x["input_ids"][token]) % 2

        graph.add_node(name, at=f"transformer.h.{layer}.attn#head={heads}@{position}", value=value)
    nx.add_path(graph, ["first", "second", "third", OUTPUT])
    return Hypothesis(graph)


@contextmanager
def watched(shortcuts: bool, rows: list[int]) -> Iterator[None]:
    """Counts the inputs that benches run, and runs them whole where there are to be no shortcuts."""
    of, run = Bench.of, Bench.run

    def counting(self: Bench, chosen: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(chosen))
        return run(self, chosen, *args, **kwargs)

    try:
        Bench.run = counting  # type: ignore[method-assign]
        if not shortcuts:
            Bench.of = lambda model, inputs, patched=(): of(model, inputs)  # type: ignore[method-assign,assignment,misc]
        yield
    finally:
        Bench.run, Bench.of = run, of  # type: ignore[method-assign]


def report(times: Times, title: str, passes: float, size: str, note: str, each: str = "") -> None:
    """Record ours and whole beside the forward passes."""
    for side, what in (("ours", title), ("whole", f"{title}, no part looked up")):
        claim(f"{what} ({size})", ratios(times, side, "full", passes), None, setting=SHAPES[size], note=note, each=each)


def paths(size: str, rounds: int, full: int) -> None:
    """Path patching."""
    module, model = opened(size)
    inputs, others = tokens(module, 16), tokens(module, 4, seed=1)
    patchers = {side: EdgePatcher.of(model, Donors.draw(others, 1, 0)) for side in ("ours", "whole")}
    patchers["whole"].shortcuts.usable = False
    graph, which = patchers["ours"].computation, torch.zeros(16, 1, dtype=torch.long)
    (batch,) = model.batches(inputs)
    run = bare(module, call(model, inputs))
    layers, heads = module.config.n_layer, module.config.n_head
    now = {"layer": 1}
    kinds: dict[str, Callable[[], list[str]]] = {
        "direct": lambda: [f"a{now['layer'] - 1}.h{head}->logits" for head in range(heads)],
        "head": lambda: [f"a{now['layer'] // 2}.h{head}->a{now['layer']}.h{head}" for head in range(heads)],
        "through": lambda: [f"a{now['layer'] // 2}.h{head}->a{now['layer']}.h{head}->logits" for head in range(heads)],
    }
    titles = {
        "direct": f"path patching of all {layers * heads} heads to the logits / a forward pass for each",
        "head": "path patching of heads to heads further on / a forward pass for each",
        "through": "path patching of heads by way of heads to the logits / a forward pass for each",
    }

    def side(name: str, kind: str) -> Callable[[], Any]:
        def measure() -> Any:
            texts = kinds[kind]()
            if kind == "direct" and name == "ours":  # all of them, which share one clean run
                texts = [f"a{layer}.h{head}->logits" for layer in range(layers) for head in range(heads)]
            tables = [path_sources(graph, text) for text in texts]
            with model.quiet():
                return path_effects(patchers[name], TopMargin(), batch, which, tables)

        return measure

    def before(turn: int) -> None:
        now["layer"] = 1 + turn % (layers - 1)

    for kind, title in titles.items():
        sides = {name: side(name, kind) for name in patchers}
        times = side_by_side({**sides, "full": lambda: [run() for _ in range(full)]}, rounds, warm=1, before=before)
        note = f"{full} full forward passes timed in each round; the clean run of the inputs included"
        each = "" if kind == "direct" else f"the {heads} heads of one layer as receivers"
        for name, what in (("ours", title), ("whole", f"{title}, no part looked up")):
            count = layers * heads if kind == "direct" and name == "ours" else heads
            found = ratios(times, name, "full", count / full)
            claim(f"{what} ({size})", found, None, setting=SHAPES[size], note=note, each=each)


def signatures(size: str, rounds: int, full: int) -> None:
    """Causal scrubbing and mutual interchange."""
    module, model = opened(size)
    inputs, trusted = tokens(module, 16), tokens(module, 16, seed=1)
    run = bare(module, call(model, inputs))
    specs: dict[str, Any] = {
        "causal scrubbing": CausalScrubbing(chain(module.config.n_layer), draws=2),
        "mutual interchange": MutualInterchange(draws=1),
    }
    for title, spec in specs.items():
        rows, sides = list[int](), dict[str, Callable[[], Any]]()
        for name, shortcuts in (("ours", True), ("whole", False)):
            with watched(shortcuts, []):
                fitted = spec.fit(model, trusted, 0)

            def measure(fitted: Any = fitted, shortcuts: bool = shortcuts, rows: list[int] = rows) -> Any:
                rows.clear()
                with watched(shortcuts, rows):
                    return fitted(inputs)

            sides[name] = measure
        times = side_by_side({**sides, "full": lambda: [run() for _ in range(full)]}, rounds, warm=int(size == "small"))
        passes = sum(rows) / 16
        note = f"{passes:g} passes of 16 inputs; {full} timed in each round"
        report(times, f"{title} / the forward passes that it makes", passes / full, size, note)


def main() -> None:
    """Measure, and record."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--size", choices=list(SHAPES), default="gpt2-small")
    options.add_argument("--rounds", type=int, default=11)
    options.add_argument("--full", type=int, default=1, help="plain forward passes timed in a round")
    options.add_argument("--only", choices=["paths", "signatures"])
    given = options.parse_args()
    for name, measure in (("paths", paths), ("signatures", signatures)):
        if given.only in (None, name):
            measure(given.size, given.rounds, given.full)


if __name__ == "__main__":
    main()
