"""Runs that go on from a clean one give what a whole run gives, and fall back where they cannot."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from causalmad import Inputs, open_model
from causalmad.models.clean import without
from causalmad.models.recording import narrowed, recorded, replayed
from causalmad.models.shortcuts import Shortcuts
from causalmad.sites import Place

Models = Callable[[str], nn.Module]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def noise(place: Place, positions: slice = slice(None)) -> Callable[[Any], Any]:
    """An edit that adds fixed noise at a place, at some of the columns that are run, counted from the last."""

    def edit(batch: Any) -> Any:
        def patch(value: Tensor) -> Tensor:
            draw = torch.randn(value.shape[-1], generator=torch.Generator().manual_seed(3)).to(value)
            new = value.clone()
            new[:, positions] += draw
            return new

        return batch, {place: patch}

    return edit


def plain(model: Any, batch: Any, rows: Tensor, edit: Any) -> Tensor:
    """The slow twin: everything is run."""
    edited, patches = edit(batch.take(rows.numpy()))
    return model.logits(edited, patches)


def state(module: nn.Module) -> list[Any]:
    return [
        (name, dict(part.__dict__.get("_forward_hooks", {})), len(part._forward_pre_hooks), "forward" in part.__dict__)
        for name, part in module.named_modules()
    ]


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "bert"])
def test_suffixes_equal_whole_runs_at_every_place(name: str, model_of: Models, prompts: Any) -> None:
    module = model_of(name)
    model = open_model(module)
    batch = next(model.batches(model.inputs(prompts)))
    sites = model.sites(["residual", "heads", "mlps", "attentions", "neurons", "embedding"])
    places = list(dict.fromkeys(site.place for site in sites))
    places += [Place(site.path, "input") for site in model.sites("residual")]
    before = state(module)
    shortcuts = Shortcuts(model, places)
    clean = shortcuts.clean(batch)
    rows = torch.tensor([1, 0, 1])
    for place in places:
        edit = noise(place)
        torch.testing.assert_close(
            shortcuts.logits(clean, rows, edit), plain(model, batch, rows, edit), **CLOSE, msg=str(place)
        )
    assert shortcuts.usable
    assert bool(clean.keys) == (name not in ("bert",)), "a decoder's keys and values are kept"
    assert state(module) == before


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_positions_before_an_edited_one_are_not_needed(name: str, model_of: Models, prompts: Any) -> None:
    model = open_model(model_of(name))
    batch = next(model.batches(model.inputs(prompts)))
    width = batch.main.shape[1]
    places = list(dict.fromkeys(site.place for site in model.sites(["residual", "heads", "mlps"])))
    shortcuts = Shortcuts(model, places)
    clean, rows = shortcuts.clean(batch), torch.tensor([0, 1])
    assert shortcuts.causal and clean.keys
    for unit in range(3):
        for place in places:
            edit = noise(place, slice(-unit - 1, -unit or None))
            found = shortcuts.logits(clean, rows, edit, column=width - 1 - unit)
            torch.testing.assert_close(found, plain(model, batch, rows, edit), **CLOSE, msg=f"{place} {unit}")

        def other_token(batch: Any, unit: int = unit) -> Any:
            tokens = batch.main.clone()
            tokens[:, -1 - unit] = (tokens[:, -1 - unit] + 3) % 20
            return batch.with_main(tokens), {}

        found = shortcuts.logits(clean, rows, other_token)
        torch.testing.assert_close(found, plain(model, batch, rows, other_token), **CLOSE)
    assert shortcuts.usable


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_an_edited_input_beside_an_edited_place_is_not_lost(name: str, model_of: Models, prompts: Any) -> None:
    model = open_model(model_of(name))
    batch = next(model.batches(model.inputs(prompts)))
    places = [site.place for site in model.sites(["residual", "mlps"])]
    shortcuts = Shortcuts(model, places)
    clean, rows = shortcuts.clean(batch), torch.tensor([0, 1])
    for place in places:

        def both(batch: Any, place: Place = place) -> Any:
            tokens = batch.main.clone()
            tokens[:, -2] = (tokens[:, -2] + 3) % 20
            return batch.with_main(tokens), noise(place)(batch)[1]

        found = shortcuts.logits(clean, rows, both)
        torch.testing.assert_close(found, plain(model, batch, rows, both), **CLOSE, msg=str(place))
    assert shortcuts.usable


def test_only_what_an_edit_can_change_runs(model_of: Models, prompts: Any) -> None:
    module = deepcopy(model_of("gpt2"))
    seen: list[tuple[str, int]] = []

    def noting(path: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(value: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.append((path, value.shape[1]))
            return run(value, *args, **kwargs)

        return forward

    ran = ("h.0.attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.1.attn.c_attn", "h.1.mlp.c_fc")
    for path in (f"transformer.{each}" for each in ran):
        part = module.get_submodule(path)
        part.forward = noting(path, part.forward)
    model = open_model(module)
    batch = next(model.batches(model.inputs(prompts)))
    places = [Place(f"transformer.h.{layer}.attn.c_proj", "input") for layer in range(2)]
    place = places[1]
    shortcuts = Shortcuts(model, places)
    clean = shortcuts.clean(batch)
    seen.clear()
    shortcuts.logits(clean, torch.tensor([0]), noise(place))
    assert seen == [("transformer.h.1.mlp.c_fc", 1)], "the last block's own heads reach the last position alone"


def test_a_users_own_hooks_count_once(model_of: Models, prompts: Any) -> None:
    """A hook of the user's on a skipped block is applied to what the block itself gave."""
    module = deepcopy(model_of("gpt2"))
    for block in module.transformer.h:
        block.register_forward_hook(lambda _, args, result: result * 1.5)
    model = open_model(module)
    batch = next(model.batches(model.inputs(prompts)))
    place = Place("transformer.h.1.mlp")
    shortcuts = Shortcuts(model, [place])
    clean = shortcuts.clean(batch)
    edit = noise(place)
    rows = torch.tensor([1, 0])
    torch.testing.assert_close(shortcuts.logits(clean, rows, edit), plain(model, batch, rows, edit), **CLOSE)
    assert shortcuts.usable


class Remembering(nn.Module):
    """A chain that has a second way from its first part to its last: an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = Noting(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.first(x).relu())
        return self.last(hidden + self.first.kept)


class Noting(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.kept = super().forward(x)
        return self.kept


def test_a_way_past_the_parts_is_noticed() -> None:
    module = Remembering()
    model = open_model(module)
    batch = next(model.batches(model.inputs(torch.randn(5, 4))))
    place = Place("second")
    shortcuts = Shortcuts(model, [place])
    clean, edit, rows = shortcuts.clean(batch), noise(place), torch.tensor([4, 2, 0])
    torch.testing.assert_close(shortcuts.logits(clean, rows, edit), plain(model, batch, rows, edit), **CLOSE)
    assert not shortcuts.usable


@pytest.mark.parametrize(("lone", "count"), [(False, 3), (True, 1), (True, 2), (True, 3), (True, 4)])
def test_what_a_part_leaves_behind_for_a_later_one_is_noticed(lone: bool, count: int) -> None:
    """Skipped, it would leave what it had in the run before, under the edit that was tried then."""

    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line, self.last = nn.Linear(6, 6), torch.zeros(1)

        def forward(self, x: Tensor) -> Tensor:
            self.last = torch.tanh(self.line(x))
            return self.last

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = Kept(), Kept(), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x)) + self.first.last)

    model = open_model(Beside())
    batch = next(model.batches(model.inputs(torch.randn(4, 6))))
    places = [Place("first.line"), Place("second.line")]
    rows = torch.tensor([0, 1, 2])
    if lone:  # the later place first: what the earlier part leaves is right until it runs under an edit
        places = [places[1], places[0], places[0], places[1]]
        batch, rows = batch.take(np.array([2])), torch.zeros(count, dtype=torch.long)

    def shift(place: Place) -> Callable[[Any], Any]:
        return lambda batch: (batch, {place: lambda value: value + 1})

    expected = [plain(model, batch, rows, shift(place)) for place in places]
    shortcuts = Shortcuts(model, places)
    clean = shortcuts.clean(batch)
    for place, wanted in zip(places, expected, strict=True):
        torch.testing.assert_close(
            shortcuts.logits(clean, rows, shift(place)), wanted, **CLOSE, msg=f"another at {place}"
        )
    assert not shortcuts.usable


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_a_lone_input_is_tried_out_on_others_made_of_it(name: str, model_of: Models, prompts: Any) -> None:
    model = open_model(model_of(name))
    batch = next(model.batches(model.inputs(prompts[1:2])))
    shortcuts = Shortcuts(model, places := [site.place for site in model.sites(["residual", "mlps"])])
    clean, rows = shortcuts.clean(batch), torch.tensor([0, 0, 0])
    for place in [*places, *places]:
        edit = noise(place)
        found = shortcuts.logits(clean, rows, edit)
        torch.testing.assert_close(found, plain(model, batch, rows, edit), **CLOSE, msg=str(place))
    assert shortcuts.usable and [len(other.batch) for other in shortcuts.company.values()] == [3]
    same = {"input_ids": torch.full((1, 5), 3)}
    alike = shortcuts.clean(next(model.batches(model.inputs(same))))
    assert shortcuts._company(alike) is None
    del clean
    assert not shortcuts.company


def test_a_model_whose_tokens_reach_back_is_run_whole(model_of: Models, prompts: Any) -> None:
    module = deepcopy(model_of("llama"))
    mixing = module.model.layers[0].mlp
    original = mixing.forward
    mixing.forward = lambda value: original(value) + value.mean(1, keepdim=True)
    model = open_model(module)
    same = [{"input_ids": row["input_ids"][:3]} for row in prompts]  # it reads padding, too
    batch = next(model.batches(model.inputs(same)))
    place = model.sites("residual")[0].place
    shortcuts = Shortcuts(model, [place])
    clean, rows = shortcuts.clean(batch), torch.tensor([0, 1])
    assert shortcuts.causal is False and not clean.keys

    def other_token(batch: Any) -> Any:
        tokens = batch.main.clone()
        tokens[:, -1] = (tokens[:, -1] + 3) % 20
        return batch.with_main(tokens), {}

    found = shortcuts.logits(clean, rows, other_token)
    torch.testing.assert_close(found, plain(model, batch, rows, other_token), **CLOSE)


@pytest.mark.parametrize("failing", [False, True])
def test_nothing_is_left_behind(failing: bool, model_of: Models, prompts: Any) -> None:
    module = deepcopy(model_of("gpt2"))
    own = module.transformer.h[0].forward
    module.transformer.h[0].forward = own  # an instance's own forward, as wrappers set it
    before = state(module)
    batch = next(open_model(module).batches(open_model(module).inputs(prompts)))
    places = [Place("transformer.h.1.mlp")]
    try:
        with recorded(module, places, len(batch)) as recording:
            with torch.no_grad():
                module(**batch.call[1])
            if failing:
                raise ValueError("stop")
    except ValueError:
        pass
    outputs = recording.finished(places).before(places)
    assert set(outputs) >= {"transformer.h.0", "transformer.h.1.mlp"}
    try:
        with replayed(module, outputs, torch.tensor([0]), 0, batch.main.shape[1], ()):
            if failing:
                raise ValueError("stop")
    except ValueError:
        pass
    assert state(module) == before and module.transformer.h[0].forward is own


def test_another_thread_sees_the_model_as_it_is(model_of: Models, prompts: Any) -> None:
    module = deepcopy(model_of("gpt2")).eval()
    model = open_model(module)
    batch = next(model.batches(model.inputs(prompts)))
    places = [Place("transformer.h.1.mlp")]
    with torch.no_grad(), recorded(module, places, len(batch)) as recording:
        wanted = module(**batch.call[1]).logits
    outputs = recording.finished(places).before(places)
    found: list[Tensor] = []

    def call() -> None:
        with torch.no_grad():
            found.append(module(**batch.call[1]).logits)

    zeros = {path: output * 0 if isinstance(output, Tensor) else output for path, output in outputs.items()}
    with (
        replayed(module, zeros, torch.arange(len(batch)), 0, batch.main.shape[1], ()),
        narrowed(module, [places[0].path]),
    ):
        other = threading.Thread(target=call)
        other.start()
        other.join()
    assert torch.equal(found[0], wanted)


def test_outputs_that_are_overwritten_or_given_twice_are_not_kept() -> None:
    shared = nn.Linear(4, 4)
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), shared, nn.Tanh(), shared, nn.Linear(4, 2))
    places = [Place("5", "input")]
    with recorded(module, places, 3) as recording, torch.no_grad():
        module(torch.randn(3, 4))
    assert recording.finished(places).before(places) == {}
    model = open_model(module)
    batch = next(model.batches(model.inputs(torch.randn(3, 4))))
    shortcuts, edit, rows = Shortcuts(model, places), noise(places[0]), torch.tensor([0, 2])
    found = shortcuts.logits(shortcuts.clean(batch), rows, edit)
    torch.testing.assert_close(found, plain(model, batch, rows, edit), **CLOSE)


def test_stacks_hold_every_variant_once(model_of: Models) -> None:
    for size in (1, 3, 64):
        shortcuts = Shortcuts(open_model(model_of("gpt2"), batch_size=size))
        for widths in ([5] * 50, list(range(1, 40)), [1], []):
            stacks = list(shortcuts.stacks(torch.tensor(widths)))
            assert torch.cat([torch.zeros(0), *stacks]).tolist() == list(range(len(widths)))
            assert all(0 < len(stack) <= 8 * size for stack in stacks)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_asked_for_where_they_are_read(side: Any, model_of: Models, prompts: Any) -> None:
    module = deepcopy(model_of("gpt2"))
    model = open_model(module, side=side)
    inputs = Inputs.of({"input_ids": [prompt["input_ids"] for prompt in prompts]})
    batch = next(model.batches(inputs))
    module.eval()
    wanted = torch.cat([module(prompt["input_ids"][None]).logits[:, -1].detach() for prompt in prompts])
    shapes: list[Any] = []
    module.lm_head.register_forward_hook(lambda _, args, result: shapes.append(result.shape[1]))
    torch.testing.assert_close(model.logits(batch), wanted, **CLOSE)
    lengths = {len(prompt["input_ids"]) for prompt in prompts}
    assert shapes == [1 if side == "left" else len(lengths)]


def test_only_what_has_the_columns_loses_some(model_of: Models, prompts: Any) -> None:
    model = open_model(model_of("gpt2"))
    batch = next(model.batches(model.inputs(prompts)))
    width = batch.main.shape[1]
    pixels = torch.randn(len(batch), width + 2)
    cut = without(replace(batch, fields={**batch.fields, "pixels": pixels}), 2)
    assert cut.main.shape[1] == width - 2 == cut.extra["attention_mask"].shape[1]
    assert cut.fields["pixels"] is pixels and torch.equal(cut.main, batch.main[:, 2:])
