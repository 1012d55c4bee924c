"""What it means that a law holds, is broken, or is excused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from causalmad.errors import CausalmadError

# (law, part) -> why this part is known not to keep this law, "*" standing for every law, and "part on toy" for a part
# on one toy only. An excuse that is no longer needed is a failure.
EXCUSED: Mapping[tuple[str, str], str] = {
    ("*", "atp-star on mlp"): "it moves queries and keys, which this toy does not have",
    ("*", "atp-star on conv"): "it moves queries and keys, which this toy does not have",
    ("*", "attention-patterns on mlp"): "it reads attention, which this toy does not have",
    ("*", "attention-patterns on conv"): "it reads attention, which this toy does not have",
    ("*", "logit-lens on mlp"): "a lens reads through a final norm, which this toy does not have",
    ("*", "logit-lens on conv"): "a lens reads through a final norm, which this toy does not have",
    ("law_bad_input_is_named", "input-only"): "the model is never run, so it may well be broken",
    ("*", "path-patching on mlp"): "paths run through the residual stream, which this toy does not have",
    (
        "law_rows_stand_alone",
        "traced on gpt2",
    ): "a user's own code reads a fixed position of the padded rows",
    ("*", "path-patching on conv"): "paths run through the residual stream, which this toy does not have",
    ("*", "edge-attribution on mlp"): "edges run through the residual stream, which this toy does not have",
    ("*", "edge-attribution on conv"): "edges run through the residual stream, which this toy does not have",
    ("*", "edge-attribution on bert"): "edges run between norms before each layer, which this toy does not have",
    ("*", "path-patching on bert"): "paths run between norms before each layer, which this toy does not have",
    ("*", "logit-lens on bert"): "a lens reads through a final norm, which this toy does not have",
    ("law_rows_stand_alone", "traced on llama"): "a user's own code reads a fixed position of the padded rows",
    ("*", "probe-logits on conv"): "this toy gives one answer to all its inputs, and a probe has nothing to tell apart",
    ("*", "probe-shift on conv"): "this toy gives one answer to all its inputs, and a probe has nothing to tell apart",
}


class LawBroken(AssertionError):  # noqa: N818
    """A part does not keep a law.

    Args:
        law: the law, as a sentence.
        expected: what would have been right.
        found: what was there.
    """

    def __init__(self, law: str, expected: str, found: str) -> None:
        super().__init__(f"{law}\n  Expected: {expected}\n  Found: {found}")
        self.law, self.expected, self.found = law, expected, found


def hold(law: Callable[..., None], part: str, *args: Any, excused: Mapping[tuple[str, str], str] = EXCUSED) -> None:
    """Nothing, where a part keeps a law, or is excused from it and breaks it or refuses with a named error.

    Args:
        law: one of the functions of this package.
        part: the part's name in the catalogue, possibly followed by `` on `` and a toy's name.
        args: what the law is called with.
        excused: (name of the law, name of the part) -> the reason.

    Raises:
        LawBroken: where the part breaks the law, or keeps a law that it is excused from.
    """
    name = law.__name__
    own = part.partition(" on ")[0]
    keys = [(law_name, part_name) for law_name in (name, "*") for part_name in (part, own)]
    reason = next((excused[key] for key in keys if key in excused), None)
    if reason is None:
        law(*args)
        return
    try:
        law(*args)
    except (LawBroken, CausalmadError):
        return
    raise LawBroken(f"{part} is excused from {name}: {reason}", "a broken law", "the law holds: drop the excuse")
