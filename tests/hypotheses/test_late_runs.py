"""Runs of the bench and of edges that go on from a clean one give what whole runs give."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all
from hypothesis import strategies as draws

import causalmad
from causalmad.hypotheses import bench as bench_module
from causalmad.hypotheses.bench import Bench
from causalmad.hypotheses.donors import Donors
from causalmad.hypotheses.edges import EdgePatcher, departure
from causalmad.hypotheses.paths import path_effects, path_sources
from causalmad.hypotheses.rewiring import CLEAN, DONOR, Plan
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.sites import Site
from causalmad.targets import TopMargin

OFTEN = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LENGTHS = (3, 7, 5, 4, 7, 6)


def inputs_of(lengths: tuple[int, ...] = LENGTHS) -> Inputs:
    draw = torch.Generator().manual_seed(5)
    tokens = [torch.randint(2, 50, (length,), generator=draw) for length in lengths]
    return Inputs.of({"input_ids": tokens, "P": [length // 2 for length in lengths]})


def places_of(model: OpenModel) -> list[Site]:
    roles = ["embedding", "residual", "heads", "attentions", "mlps", "neurons"]
    entering = [Site(site.path, "input") for site in model.sites("residual")]
    return [*(site for role in roles for site in model.sites(role)[:6]), *entering]


def both(model: OpenModel, inputs: Inputs, sites: list[Site]) -> tuple[Bench, Bench]:
    return Bench.of(model, inputs, sites), Bench.of(model, inputs)


def require_same(found: Any, wanted: Any, close: float = 1e-5) -> None:
    (logits, values), (plain_logits, plain_values) = found, wanted
    torch.testing.assert_close(logits, plain_logits, atol=close, rtol=close)
    assert values.keys() == plain_values.keys()
    for site, held in values.items():
        torch.testing.assert_close(held.value, plain_values[site].value, atol=close, rtol=close, msg=str(site))
        other = plain_values[site].mask
        assert (held.mask is None and other is None) or torch.equal(held.mask, other)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
@OFTEN
@for_all(data=draws.data())
def test_patched_runs_equal_whole_runs(name: str, side: Any, model_of: Any, data: Any) -> None:
    model = causalmad.open_model(model_of(name), side=side, batch_size=2)
    everywhere = places_of(model)
    positions = draws.sampled_from([None, -1, 0, 1, "P"])
    some = draws.lists(draws.sampled_from(everywhere), min_size=1, max_size=3, unique_by=lambda site: site.place)
    sites = [site.at(data.draw(positions)) for site in data.draw(some)]
    read = [
        site.at(data.draw(positions)) for site in data.draw(draws.lists(draws.sampled_from(everywhere), max_size=2))
    ]
    read = list(dict.fromkeys(read))
    keep = data.draw(draws.sampled_from([[], [sites[0].at(-1)], [sites[-1].at("P")]]))
    rows = np.array(data.draw(draws.lists(draws.integers(0, len(LENGTHS) - 1), min_size=1, max_size=40)))
    donors = np.array(data.draw(draws.permutations(range(len(LENGTHS)))))[rows]
    output = data.draw(draws.booleans()) or not read
    late, plain = both(model, inputs_of(), sites)
    _, values = plain.run(np.arange(len(LENGTHS)), read=sites)
    patches = {site: held.take(donors) for site, held in values.items()}
    wanted = plain.run(rows, patches, read, output=output, keep=keep)
    for _ in range(2):  # with a row that is tried, and without
        require_same(late.run(rows, patches, read, output=output, keep=keep), wanted)
    assert late.shortcuts is not None and late.shortcuts.usable and late.held["clean"] is not None


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.bfloat16, 0.1)])
def test_other_precisions(dtype: torch.dtype, close: float, model_of: Any) -> None:
    model = causalmad.open_model(copy.deepcopy(model_of("gpt2")).to(dtype))
    for site in places_of(model):
        for position in (None, -1, "P"):
            here = site.at(position)
            late, plain = both(model, inputs_of(), [here])
            rows, donors = np.array([0, 1, 5, 1]), np.array([2, 2, 1, 0])
            clean, values = late.run(np.arange(len(LENGTHS)), read=[here])
            patches = {here: values[here].take(donors)}
            require_same(late.run(rows, patches), plain.run(rows, patches), close * float(clean.abs().max()))
            assert late.shortcuts is not None and late.shortcuts.usable


def test_a_single_input(model_of: Any) -> None:
    model = causalmad.open_model(model_of("llama"))
    site = model.sites("residual")[0].at(-1)
    late, plain = both(model, inputs_of((5,)), [site])
    _, values = late.run(np.arange(1), read=[site])
    patches = {site: values[site].take(np.zeros(1, dtype=np.int64))}
    require_same(late.run(np.zeros(1, dtype=np.int64), patches), plain.run(np.arange(1)))


def test_models_without_tokens(model_of: Any, images: Any) -> None:
    model = causalmad.open_model(model_of("vit"))
    sites = list(model.sites("mlps"))
    late, plain = both(model, model.inputs(images), sites)
    _, values = late.run(np.arange(4), read=sites)
    rows = np.array([3, 0, 1, 2])
    for site in sites:
        patches = {site: values[site].take(rows)}
        require_same(late.run(np.arange(4), patches, sites), plain.run(np.arange(4), patches, sites))
    assert late.shortcuts is not None and late.shortcuts.usable


def counted(model: OpenModel, path: str, seen: list[tuple[int, ...]]) -> Any:
    part = model.module.get_submodule(path)
    original = part.forward

    def forward(value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(value.shape[:2]))
        return original(value, *args, **kwargs)

    part.forward = forward  # type: ignore[method-assign]


def test_only_what_a_patch_can_change_runs(model_of: Any) -> None:
    model = causalmad.open_model(copy.deepcopy(model_of("gpt2")))
    first, last = list[tuple[int, ...]](), list[tuple[int, ...]]()
    counted(model, "transformer.h.0.mlp.c_fc", first)
    counted(model, "transformer.h.1.mlp.c_fc", last)
    site = model.sites("residual")[0].at(-1)
    bench = Bench.of(model, inputs_of(), [site])
    rows = np.arange(len(LENGTHS))
    _, values = bench.run(rows, read=[site])
    bench.run(rows, {site: values[site]})
    first.clear(), last.clear()
    bench.run(rows, {site: values[site]})
    assert not first and last == [(len(LENGTHS), 1)], "one block, and the last position alone"


def test_a_pool_too_large_to_be_held_is_run_whole(model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = causalmad.open_model(model_of("gpt2"))
    site = model.sites("residual")[0]
    monkeypatch.setattr(bench_module, "_MOST", 1000)
    late, plain = both(model, inputs_of(), [site])
    rows = np.arange(len(LENGTHS))
    clean = late.run(rows, read=[site])
    require_same(clean, plain.run(rows, read=[site]))
    patches = {site: clean[1][site].take(rows[::-1].copy())}
    require_same(late.run(rows, patches), plain.run(rows, patches))
    assert late.held["clean"] is None


def test_other_weights_are_another_clean_run(model_of: Any) -> None:
    module = copy.deepcopy(model_of("gpt2"))
    model = causalmad.open_model(module)
    site = model.sites("residual")[0].at(-1)  # all other positions are those of the clean run
    late, plain = both(model, inputs_of(), [site])
    rows = np.arange(len(LENGTHS))
    _, values = late.run(rows, read=[site])
    patches = {site: values[site].take(rows[::-1].copy())}
    late.run(rows, patches)
    with torch.no_grad():
        module.transformer.h[0].attn.c_proj.bias.add_(1)
        module.transformer.h[1].mlp.c_proj.bias.add_(1)
        module.transformer.wte.weight.mul_(1.5)
    require_same(late.run(rows, patches), plain.run(rows, patches))
    assert late.shortcuts is not None and late.shortcuts.usable


def test_engines_and_edits_without_shortcuts(model_of: Any) -> None:
    model = causalmad.open_model(model_of("llama"), engine="nnsight")
    site = model.sites("residual")[0]
    late, plain = both(model, inputs_of(), [site])
    rows = np.arange(len(LENGTHS))
    _, values = late.run(rows, read=[site])
    patches = {site: values[site].take(rows[::-1].copy())}
    require_same(late.run(rows, patches), plain.run(rows, patches))
    assert not late.held


def table_of(patcher: EdgePatcher, data: Any) -> torch.Tensor:
    """Sources at random: few edges or many, whole senders frozen or replaced, from some receiver on."""
    graph = patcher.computation
    draw = torch.Generator().manual_seed(data.draw(draws.integers(0, 2**16)))
    share = data.draw(draws.sampled_from([0.01, 0.1, 0.7]))
    table = (torch.rand(graph.allowed.shape, generator=draw) < share).to(torch.int8) * DONOR
    clean = torch.rand(graph.allowed.shape, generator=draw) < data.draw(draws.sampled_from([0, 0.05, 0.5]))
    table = torch.where(clean & (table == 0), CLEAN, table)
    for row in data.draw(draws.lists(draws.integers(0, len(graph.senders) - 1), max_size=3)):
        others = torch.rand(len(graph.receivers), generator=draw) < 0.2
        table[row] = torch.where(others, table[row], data.draw(draws.sampled_from([DONOR, CLEAN])))
    table[:, : data.draw(draws.integers(0, len(graph.receivers)))] = 0
    return table * graph.allowed


@OFTEN
@for_all(data=draws.data())
@torch.no_grad()
def test_any_sources_equal_the_twin(patcher: EdgePatcher, slow: Any, twin: Any, ids: Any, data: Any) -> None:
    graph = patcher.computation
    tables = [table_of(patcher, data) for _ in range(data.draw(draws.integers(1, 4)))]
    which = torch.tensor([1, 2])
    batch = next(iter(patcher.model.batches(Inputs.of({"input_ids": ids[:2]}))))
    start = patcher.start(batch)
    found = list(patcher.stacked(start, which, tables))
    alone = [patcher.logits(batch, which, table) for table in tables]
    mixed = patcher.logits(start, which, torch.stack([tables[0], tables[-1]]))
    for row in range(2):
        _, clean = twin.forward(slow, ids[row])
        _, donor = twin.forward(slow, patcher.donor_batch.main[which[row]])
        for number, table in enumerate(tables):

            def read(sender: str, receiver: str, value: torch.Tensor, table: torch.Tensor = table) -> torch.Tensor:
                told = int(table[graph.sender(sender), graph.receiver(receiver)])
                return {0: value, DONOR: donor[sender], CLEAN: clean[sender]}[told]  # noqa: B023

            expected, _ = twin.forward(slow, ids[row], read)
            torch.testing.assert_close(found[number][row], expected, atol=2e-5, rtol=1e-5)
            torch.testing.assert_close(alone[number][row], expected, atol=2e-5, rtol=1e-5)
            if number == (0, len(tables) - 1)[row]:
                torch.testing.assert_close(mixed[row], expected, atol=2e-5, rtol=1e-5)
    assert patcher.shortcuts.usable


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "dtype"), [("gpt2", "float64"), ("llama", "float64"), ("qwen3", "float32"), ("gpt2", "bfloat16")]
)
@OFTEN
@for_all(data=draws.data())
def test_rewired_runs_equal_whole_runs(name: str, dtype: str, side: Any, model_of: Any, data: Any) -> None:
    """With padding, and in other precisions: the shortcuts against the same edits in whole runs."""
    module = model_of(name) if dtype == "float32" else copy.deepcopy(model_of(name)).to(getattr(torch, dtype))
    model = causalmad.open_model(module, side=side)
    inputs = inputs_of()
    late, whole = (EdgePatcher.of(model, Donors.draw(inputs, 4, 0)) for _ in range(2))
    whole.shortcuts.usable = False
    tables = [table_of(late, data) for _ in range(3)]
    batch = next(iter(model.batches(inputs)))
    which = torch.as_tensor(late.donors.of(inputs))[torch.as_tensor(batch.rows), 0]
    close = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 0.1}[dtype]
    for found, wanted in zip(late.stacked(batch, which, tables), whole.stacked(batch, which, tables), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=close * float(wanted.abs().max()))
    assert late.shortcuts.usable


def test_paths_run_nothing_that_they_leave_as_it_is(model_of: Any) -> None:
    model = causalmad.open_model(copy.deepcopy(model_of("gpt2")))
    seen = {path: list[tuple[int, ...]]() for path in ("h.0.mlp.c_fc", "h.1.attn.c_attn", "h.1.mlp.c_fc", "ln_f")}
    for path, shapes in seen.items():
        counted(model, f"transformer.{path}", shapes)
    inputs = inputs_of()
    patcher = EdgePatcher.of(model, Donors.draw(inputs, 4, 0))
    batch, which = next(iter(model.batches(inputs))), torch.zeros(len(inputs), dtype=torch.long)
    start = patcher.start(batch)
    for path, expected in {
        "a0.h1->logits": {"ln_f": 1},
        "m0->m1": {"h.1.mlp.c_fc": 1, "ln_f": 1},
        "a0.h1->m0->logits": {"h.0.mlp.c_fc": 7, "ln_f": 7},
        "a0.h1->a1.h2<q>": {"h.1.attn.c_attn": 7, "h.1.mlp.c_fc": 7, "ln_f": 7},
    }.items():
        table = path_sources(patcher.computation, path)
        for _ in range(2):
            for shapes in seen.values():
                shapes.clear()
            patcher.logits(start, which, table)
        assert {path: shapes[-1][1] for path, shapes in seen.items() if shapes} == expected, path


def test_plans() -> None:
    """What a sender frozen but for one receiver asks for, and what departs first."""
    model = causalmad.open_model(_tiny())
    graph = EdgePatcher.of(model, Donors.draw(inputs_of(), 3, 0)).computation
    table = path_sources(graph, "a0.h1->m0->logits")
    assert departure(table) == graph.receiver("m0") and departure(table * 0) == len(graph.receivers)
    plan = Plan(graph, table[None, None], True)
    assert [name for part in graph.parts for name in plan.active[part]] == [graph.receiver(x) for x in ("m0", "logits")]
    assert plan.before.tolist() == [graph.sender("a0.h1")]
    assert plan.after[CLEAN].tolist() == [graph.sender("m0")] and not len(plan.after[DONOR])
    assert [graph.parts.index(part) for part in plan.still] == [0, 2, 3]
    assert Plan(graph, table[None, None] * 0, True).idle


def _tiny() -> Any:
    import transformers

    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=2, n_head=4, n_embd=16, n_positions=16, vocab_size=50)
    )


def test_effects_come_in_the_order_of_the_paths(patcher: EdgePatcher, ids: Any) -> None:
    texts = ["a0.h1->logits", "input->m0", "m0->logits", "a0.h0->a1.h2<q>", "a0.h1->m1->logits"]
    tables = [path_sources(patcher.computation, text) for text in texts]
    batch = next(iter(patcher.model.batches(Inputs.of({"input_ids": ids}))))
    which = torch.tensor([[0, 1]] * len(ids))
    together = path_effects(patcher, TopMargin(), batch, which, tables)
    for row, table in enumerate(tables):
        for found, alone in zip(together, path_effects(patcher, TopMargin(), batch, which, [table]), strict=True):
            torch.testing.assert_close(found[:, [row]], alone, atol=1e-5, rtol=1e-4)
