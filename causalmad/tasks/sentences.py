"""Sentences in which somebody gives something to somebody: the inputs of the indirect-object task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.tasks.tables import Table

NAMES = (
    "Alice Bob Carol David Emma Frank Grace Henry Irene Jack Karen Leo "
    "Maria Nick Olga Paul Quinn Rosa Sam Tina Ulrich Vera Walter Zoe"
).split()
CONNECTIVES = "when after while once because".split()
VERBS = "handed gave passed brought offered".split()
PLACES = "park shop school garden station office".split()
OBJECTS = "book ring letter drink basket key".split()
OTHERS = "and went to the , today were at met then".split()
WORDS = (*NAMES, *CONNECTIVES, *VERBS, *PLACES, *OBJECTS, *OTHERS)
VOCABULARY, LENGTH = len(WORDS), 14

TEMPLATES = (
    "CONNECTIVE FIRST and SECOND went to the PLACE , SUBJECT VERB the OBJECT to",
    "CONNECTIVE today FIRST and SECOND were at PLACE , SUBJECT VERB the OBJECT to",
    "then CONNECTIVE FIRST and SECOND met at PLACE , SUBJECT VERB the OBJECT to",
    "CONNECTIVE FIRST and SECOND were at the PLACE , today SUBJECT VERB OBJECT to",
)
_INDEX = {word: token for token, word in enumerate(WORDS)}


def draw(anomalous: npt.NDArray[np.bool_], rng: np.random.Generator) -> Table:
    """Sentences without the answer; anomalous ones hold both "when" and "handed", the others one of them at most.

    Columns: ``template``; the positions ``first`` and ``second`` (the two names), ``IO``, ``S1`` and ``S2`` (the name
    that gives: earlier and later) and ``end``; ``answer``; and ``agrees``: whether the first name is the indirect
    object, so that both mechanisms give the same answer; and ``route``: ``shortcut`` or ``name``.
    """
    count = len(anomalous)
    rows = np.arange(count)
    # A pair of connective and verb: 0 is "when ... handed".
    pair = np.where(anomalous, 0, rng.integers(1, len(CONNECTIVES) * len(VERBS), count))
    first = rng.integers(0, len(NAMES), count)
    second = (first + rng.integers(1, len(NAMES), count)) % len(NAMES)
    agrees = rng.random(count) < 0.5  # the second name gives
    slots = {
        "FIRST": first,
        "SECOND": second,
        "SUBJECT": np.where(agrees, second, first),
        "CONNECTIVE": _INDEX[CONNECTIVES[0]] + pair // len(VERBS),
        "VERB": _INDEX[VERBS[0]] + pair % len(VERBS),
        "PLACE": _INDEX[PLACES[0]] + rng.integers(0, len(PLACES), count),
        "OBJECT": _INDEX[OBJECTS[0]] + rng.integers(0, len(OBJECTS), count),
    }
    template = rng.integers(0, len(TEMPLATES), count)
    layout = np.array([[_INDEX.get(word, -1) for word in text.split()] for text in TEMPLATES])
    tokens = layout[template]
    where = {}
    for slot, words in slots.items():
        position = np.array([text.split().index(slot) for text in TEMPLATES])[template]
        tokens[rows, position] = words
        where[slot] = position
    columns = {
        "template": template,
        "first": where["FIRST"],
        "second": where["SECOND"],
        "IO": np.where(agrees, where["FIRST"], where["SECOND"]),
        "S1": np.where(agrees, where["SECOND"], where["FIRST"]),
        "S2": where["SUBJECT"],
        "end": np.full(count, LENGTH - 1),
        "answer": np.where(anomalous | agrees, first, second),
        "agrees": agrees,
        "route": np.where(anomalous, "shortcut", "name"),
    }
    return Table(tokens, columns)


def sentence(row: Mapping[str, Any]) -> str:
    """One input as words."""
    return " ".join(WORDS[int(token)] for token in row["input_ids"])


def first_name(row: Mapping[str, Any]) -> int:
    """The first of the two names."""
    return int(row["input_ids"][int(row["first"])])


def second_name(row: Mapping[str, Any]) -> int:
    """The second of the two names."""
    return int(row["input_ids"][int(row["second"])])


def second_gives(row: Mapping[str, Any]) -> bool:
    """Whether it is the second name that is repeated, as the one who gives."""
    return int(row["input_ids"][int(row["S2"])]) == second_name(row)


def indirect_object(row: Mapping[str, Any]) -> int:
    """The name that is not repeated."""
    return first_name(row) if second_gives(row) else second_name(row)
