"""Laws of signatures: what every one of them does on every toy, through every engine."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.errors import CausalmadError
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model
from causalmad.signatures.base import FittedSignature, Signature, State
from causalmad.targets import ClassLogit, LogitDifference
from causalmad.testing.law import LawBroken
from causalmad.testing.toys import Toy
from causalmad.testing.traces import ToyFailure, failing, untouched

Floats = npt.NDArray[np.float32]

# Relative to the largest entry: columns are in one unit, and in single precision a small effect is the difference of
# two large outputs.
TOLERANCE = 1e-5


def law_rows_stand_alone(spec: Signature, toy: Toy, engine: Any = "hooks") -> None:
    """A row does not depend on the others, their order, the batch size or the padding; the same batches: same bits."""
    law = "a row's signature depends on its own input only"
    model = open_model(toy.model, engine=engine)
    fitted = spec.fit(model, toy.trusted, seed=3)
    whole = fitted(toy.fresh).values
    _require_equal(law, "the same call again", whole, fitted(toy.fresh).values)
    _require_close(law, "reversed order", whole, fitted(toy.fresh[::-1]).values[::-1])
    _require_close(law, "every other input", whole[::2], fitted(toy.fresh[::2]).values)
    _require_close(law, "one input at a time", whole, np.concatenate([fitted(toy.fresh[i]).values for i in range(5)]))
    ways: tuple[tuple[int, Any], ...] = ((1, None), (5, None), (5, "left"), (5, "right"), (64, "right"))
    for size, side in ways:
        if side not in (None, *_sides(toy, engine)):
            continue  # a model that reads its first token takes no padding before it
        again = spec.restore(open_model(toy.model, engine=engine, batch_size=size, side=side), fitted.state())
        _require_close(law, f"batches of {size}, padded at the {side or model.side}", whole, again(toy.fresh).values)


def law_nothing_is_left(spec: Signature, toy: Toy, engine: Any = "hooks") -> None:
    """Hooks, gradients, flags, mode, buffers, attributes and generators are as before, also after a failure."""
    model = copy.deepcopy(toy.model).train()
    parts, values = list(model.modules()), list(model.parameters())
    parts[-1].eval()  # a mixed mode, partly frozen, with gradients: as in the middle of somebody's training
    values[0].requires_grad_(False)
    values[-1].grad = torch.ones_like(values[-1])
    opened = open_model(model, engine=engine)
    with untouched(model, "after fit and call"):
        fitted = spec.fit(opened, toy.trusted, seed=0)
        fitted(toy.fresh)
    for run in (0, 1, 2):
        with failing(model, run), untouched(model, f"after the model raised in run {run}"):
            try:
                spec.fit(opened, toy.trusted, seed=0)(toy.fresh)
            except (ToyFailure, CausalmadError):
                continue
            except Exception as error:
                if isinstance(error.__cause__, ToyFailure) or "ToyFailure" in f"{type(error)} {error}":
                    continue  # nnsight raises an error of its own that tells of the model's
                raise LawBroken("a model's own error is handed on", "ToyFailure", repr(error)) from error


def law_same_seed_same_bits(spec: Signature, toy: Toy, engine: Any = "hooks") -> None:
    """Whatever the global generators hold, the same seed gives the same bits."""
    found = []
    for start in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(start)
            before = random.getstate()
            random.seed(start)
            try:
                fitted = spec.fit(open_model(toy.model, engine=engine), toy.trusted, seed=11)
                found.append((fitted.columns, fitted(toy.fresh).values))
            finally:
                random.setstate(before)
    _require_equal("the same seed gives the same bits", "another global random state", found[0][1], found[1][1])
    if found[0][0] != found[1][0]:
        raise LawBroken("the same seed gives the same columns", str(found[0][0][:2]), str(found[1][0][:2]))


def law_state_restores(spec: Signature, toy: Toy, engine: Any = "hooks") -> None:
    """A signature that is restored from its state gives the same columns and the same bits."""
    law = "restore(model, state()) is the fitted signature"
    model = open_model(toy.model, engine=engine)
    fitted = spec.fit(model, toy.trusted, seed=0)
    state = fitted.state()
    tensors = {key: state.tensors[key].clone() for key in sorted(state.tensors)}  # a file keeps no order
    data = json.loads(json.dumps(state.data, sort_keys=True))
    again = spec.restore(model, State(tensors, data))
    _require_equal(law, "the restored signature", fitted(toy.fresh).values, again(toy.fresh).values)
    if again.columns != fitted.columns:
        raise LawBroken(law, f"columns {fitted.columns[:2]}...", f"columns {again.columns[:2]}...")


def law_columns_are_named(spec: Signature, toy: Toy, engine: Any = "hooks") -> None:
    """As many columns as numbers, their names unique; finite float32 numbers, and the inputs' ids in their order."""
    fitted = spec.fit(open_model(toy.model, engine=engine), toy.trusted, seed=0)
    found = fitted(toy.fresh)
    names = [column.name for column in fitted.columns]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled or not all(names):
        raise LawBroken("columns have names of their own", "unique names", f"doubled or empty: {doubled[:3]}")
    if found.values.shape != (len(toy.fresh), len(names)) or found.values.dtype != np.float32:
        got = f"{found.values.dtype} {found.values.shape}"
        raise LawBroken("a number for every input and column", f"float32 {len(toy.fresh), len(names)}", got)
    if found.ids != toy.fresh.ids or found.columns != fitted.columns:
        raise LawBroken("signatures carry the inputs' ids and the columns", str(toy.fresh.ids), str(found.ids))


def law_bad_input_is_named(spec: Signature, toy: Toy, engine: Any = "hooks") -> None:
    """Bad input gives a named error or a defined result, and changes nothing."""
    model = open_model(toy.model, engine=engine)
    fitted = spec.fit(model, toy.trusted, seed=0)
    broken = copy.deepcopy(toy.model)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    ill = open_model(broken, engine=engine)
    cases: dict[str, tuple[bool, Callable[[], object]]] = {
        "NaN activations": (True, lambda: spec.fit(ill, toy.trusted, seed=0)(toy.fresh)),
        "NaN activations after the fit": (True, lambda: spec.restore(ill, fitted.state())(toy.fresh)),
        "no trusted inputs": (True, lambda: spec.fit(model, toy.trusted[:0], seed=0)),
        "one trusted input": (False, lambda: spec.fit(model, toy.trusted[:1], seed=0)(toy.fresh).values),
        "equal trusted inputs": (False, lambda: spec.fit(model, _equal(toy.trusted), seed=0)(toy.fresh).values),
        "nothing to score": (False, lambda: fitted(toy.fresh[:0]).values),
    }
    if not toy.trusted.tokens:
        bad = replace(toy.fresh, fields={0: torch.full_like(_main(toy.fresh), float("nan"))})
        cases["NaN inputs"] = (True, lambda: fitted(bad))
        cases["NaN trusted inputs"] = (True, lambda: spec.fit(model, bad, seed=0)(bad))
    for option in {"sites", "units"} & _options(spec):
        cases[f"unknown {option}"] = (True, partial(_fit_at, spec, option, model, toy))
    for case, (must_fail, run) in cases.items():
        with untouched(toy.model, f"after {case}"), untouched(broken, f"after {case}"):
            _require_named(case, must_fail, run)


def law_first_order_is_exact_on_a_linear_model(spec: Signature, toy: Toy, engine: Any = "hooks") -> None:
    """Attributions in the target's units equal the exact effect of moving each block to the baseline.

    For signatures with the options ``units``, ``baseline``, ``target`` and ``log``; ``toy`` has to be linear.
    """
    model = open_model(toy.model, engine=engine)
    others = {"normalise": False} if hasattr(spec, "normalise") else {}
    for target in (ClassLogit(1), LogitDifference(0, 2)):
        for baseline in ("zero", "mean", "donors"):
            exact: Any = replace(spec, units="blocks", baseline=baseline, target=target, log=False, **others)  # type: ignore[type-var]
            fitted = exact.fit(model, toy.trusted, seed=5)
            expected = _block_effects(model, toy, fitted, baseline, target)
            signed = [i for i, column in enumerate(fitted.columns) if column.name.startswith("blocks sum")]
            law = f"on a linear model {target} moved to {baseline} is exact to first order"
            _require_close(law, "the exact effects", expected, fitted(toy.fresh).values[:, signed])


def law_engines_agree(spec: Signature, toy: Toy) -> None:
    """The hooks and the nnsight engine give the same signatures."""
    engines: tuple[Any, ...] = ("hooks", "nnsight")
    found = [spec.fit(open_model(toy.model, engine=name), toy.trusted, seed=1)(toy.fresh).values for name in engines]
    _require_close("engines agree", "hooks and nnsight", found[0], found[1])


SIGNATURE_LAWS: tuple[Callable[[Signature, Toy, Any], None], ...] = (
    law_rows_stand_alone,
    law_nothing_is_left,
    law_same_seed_same_bits,
    law_state_restores,
    law_columns_are_named,
    law_bad_input_is_named,
)


def _block_effects(model: OpenModel, toy: Toy, fitted: FittedSignature, baseline: str, target: Any) -> Floats:
    """(n, blocks) target of each input minus its target with one block at the baseline, averaged over donors."""
    main, trusted = _main(toy.fresh), _main(toy.trusted)
    donors = torch.zeros(1, main.shape[1])
    if baseline == "mean":
        donors = trusted.mean(0, keepdim=True)
    if baseline == "donors":
        chosen = set(getattr(fitted, "donor_digests", ()))
        rows = [row for row, key in enumerate(toy.trusted.digests) if key in chosen]
        # Which of them is the spare follows from the order of the digests, the spare last.
        order = {key: place for place, key in enumerate(getattr(fitted, "donor_digests", ()))}
        rows.sort(key=lambda row: order[toy.trusted.digests[row]])
        donors = trusted[rows[:-1]]

    def read(x: Tensor) -> Tensor:
        (batch,) = model.batches(Inputs.of(x), size=len(x))
        logits = model.logits(batch)
        value: Tensor = target.bind(logits)(logits)
        return value

    columns = []
    for start, stop in toy.fresh.blocks.values():
        moved = []
        for donor in donors:
            changed = main.clone()
            changed[:, start:stop] = donor[start:stop]
            moved.append(read(main) - read(changed))
        columns.append(torch.stack(moved).mean(0))
    return torch.stack(columns, dim=1).numpy()


def _options(spec: Any) -> set[str]:
    return {field.name for field in fields(spec)} if is_dataclass(spec) else set()


def _fit_at(spec: Any, option: str, model: OpenModel, toy: Toy) -> object:
    return replace(spec, **{option: "no.such.place"}).fit(model, toy.trusted, seed=0)


def _require_named(case: str, must_fail: bool, run: Callable[[], object]) -> None:
    law = "bad input gives a named error or a defined result"
    try:
        result = run()
    except CausalmadError as error:
        if case.startswith("unknown") and not error.tries:
            raise LawBroken(law, f"{case}: the names that were meant", str(error)) from error
        return
    except Exception as error:
        raise LawBroken(law, f"{case}: a CausalmadError", repr(error)) from error
    if must_fail:
        raise LawBroken(law, f"{case}: a CausalmadError", "no error")
    if isinstance(result, np.ndarray) and not np.isfinite(result).all():
        raise LawBroken(law, f"{case}: finite numbers", "NaN or infinity")


def _require_equal(law: str, what: str, a: Floats, b: Floats) -> None:
    if a.shape != b.shape or a.tobytes() != b.tobytes():
        rows, columns = np.nonzero(a != b) if a.shape == b.shape else ((), ())
        raise LawBroken(
            law, f"the same bits: {what}", f"{len(rows)} entries differ, columns {sorted(set(columns))[:5]}"
        )


def _require_close(law: str, what: str, a: Floats, b: Floats) -> None:
    a = a[: len(b)]
    distance = np.abs(a.astype(np.float64) - b) / max(float(np.abs(a).max(initial=0.0)), 1e-3)
    if not (distance <= TOLERANCE).all():
        row, column = (int(i) for i in np.unravel_index(np.nanargmax(distance), distance.shape))
        found = f"{a[row, column]!r} and {b[row, column]!r} in row {row}, column {column}"
        raise LawBroken(law, f"equal to {TOLERANCE:g}: {what}", found)


def _equal(inputs: Inputs) -> Inputs:
    """The first input many times over, under the ids of all."""
    again = {
        name: rows[:1].expand_as(rows).clone() if isinstance(rows, Tensor) else (rows[0],) * len(rows)
        for name, rows in inputs.fields.items()
    }
    return replace(inputs, fields=again)


def _main(inputs: Inputs) -> Tensor:
    main = inputs.main
    if not isinstance(main, Tensor):
        raise LawBroken("a toy of this law has one tensor", "a tensor", type(main).__name__)
    return main


def _sides(toy: Toy, engine: Any) -> list[str]:
    """Where the toy's model lets its inputs be padded."""
    sides = []
    for side in ("left", "right"):
        with suppress(CausalmadError):
            sides.append(open_model(toy.model, engine=engine, side=side).side)
    return sides
