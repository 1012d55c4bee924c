"""Claim: fitting a reference costs no more time or memory than scikit-learn's own equivalent, and chunks little more.

Fits and scores every reference beside its equivalent in scikit-learn, on the same rows, at 10^4 to 10^6 rows of 64 and
768 columns. Measurements are interleaved (each round runs all of them once), each in a forked child of one process that
holds the rows: its time, and its peak memory beyond what it had at the start. The estimators of scikit-learn that are
references as they are have their own figure only. What would need more than 20 GiB or ``--minutes`` is not run, and
listed as such.

    OMP_NUM_THREADS=1 python benchmarks/references.py [--quick] [--rounds 3] [--minutes 60]

Writes ``benchmarks/references.json`` and ``docs/reference/references-speed.md``; ``--quick`` writes
``references-quick`` files in the folder that ``--out`` names, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from sklearn.covariance import OAS, EmpiricalCovariance, LedoitWolf, MinCovDet
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer

from causalmad.provenance import versions
from causalmad.references import (
    ConditionalMahalanobis,
    Mahalanobis,
    PerSite,
    PrincipalComponents,
    RelativeMahalanobis,
    Transformed,
)

HERE = Path(__file__).parent
RESULTS = HERE / "references.json"
PAGE = HERE.parent / "docs" / "reference" / "references-speed.md"
SIZES, COLUMNS, NEW = (10**4, 10**5, 10**6), (64, 768), 10**4
QUICK = (500, 2000), (16, 64), 200
MOST_GIB = 20.0
FLOPS = 1e10  # a second of one core, for estimates of what is not run

Fit = Callable[[np.ndarray], Any]
Score = Callable[[Any, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Case:
    """One side of one row.

    Attributes:
        row: what is compared.
        side: "causalmad" or "scikit-learn".
        fit: from rows (n, d) to something fitted.
        score: from that and new rows to numbers; None for nothing to score.
        copies: tables of the size of the rows that it needs beside them, at most.
        work: floating-point operations for n rows, d columns and m new rows, where it grows with the square of n or
            the search is long.
    """

    row: str
    side: str
    fit: Fit
    score: Score | None = lambda fitted, X: fitted.score_samples(X)
    copies: float = 1.0
    work: Callable[[int, int, int], float] = lambda n, d, m: 2.0 * n * d * d

    def refused(self, n: int, d: int, m: int, most: float) -> str:
        """Why it is not run; empty where it is. ``most``: seconds that a fit may take."""
        gib = 8 * (n * d * (1 + self.copies) + 6 * d * d + m * d) / 2**30
        seconds = self.work(n, d, m) / FLOPS
        if gib > MOST_GIB:
            return f"not run: needs {gib:.0f} GiB"
        return f"not run: needs about {seconds / 60:.0f} min" if seconds > most else ""


def products(X: np.ndarray) -> np.ndarray:
    """The least that any fit of a covariance does: the products of the rows, in chunks."""
    total = np.zeros((X.shape[1], X.shape[1]))
    for start in range(0, len(X), 4096):
        chunk = X[start : start + 4096]
        total += chunk.T @ chunk
    return total


def distances(estimator: Any) -> tuple[Fit, Score]:
    return lambda X: type(estimator)(**estimator.get_params()).fit(X), lambda fitted, X: -fitted.mahalanobis(X)


def sites(d: int) -> tuple[str, ...]:
    return tuple(f"site {8 * j // d}" for j in range(d))


def transformed(X: np.ndarray) -> Any:
    return make_pipeline(QuantileTransformer(n_quantiles=1000, output_distribution="normal"), LedoitWolf()).fit(X)


def transformed_distances(fitted: Any, X: np.ndarray) -> np.ndarray:
    return -fitted[-1].mahalanobis(fitted[0].transform(X))


def searched(n: int, d: int, m: int) -> float:
    """MinCovDet: 30 starts of 2 steps on subsets, 10 of up to 30 steps, each the cost of a covariance."""
    return 2.0 * min(n, 10**4) * d * d * 400 + 20 * d**3 * 400


def pairs(n: int, d: int, m: int) -> float:
    return 2.0 * n * n * d + 2.0 * n * m * d


def cases() -> list[Case]:
    """All sides of all rows."""
    own = "causalmad"
    rows = [
        Case("products X.T @ X alone, in chunks", "scikit-learn", products, None, copies=0),
        Case("products X.T @ X alone, in chunks", own, lambda X: Mahalanobis("oas").fit_chunks(X), None, copies=0),
        Case("mahalanobis, chunks", own, lambda X: Mahalanobis().fit_chunks(X), copies=0),
        Case("mahalanobis, chunks", "scikit-learn", *distances(LedoitWolf()), copies=3),
    ]
    covariances = {
        "ledoit-wolf": (LedoitWolf(), 3),
        "oas": (OAS(), 2),
        "empirical": (EmpiricalCovariance(), 2),
    }
    for name, (estimator, copies) in covariances.items():
        row = f"mahalanobis[covariance={name}]"
        rows += [
            Case(row, own, Mahalanobis(name).fit, copies=0.2),
            Case(row, "scikit-learn", *distances(estimator), copies=copies),
        ]
    rows += [
        Case("mahalanobis[covariance=diagonal]", own, Mahalanobis("diagonal").fit, copies=0.2),
        Case("mahalanobis[covariance=low-rank]", own, Mahalanobis("low-rank").fit, copies=0.2),
        Case("mahalanobis[covariance=low-rank]", "scikit-learn", lambda X: PCA(16).fit(X), copies=2),
        Case("mahalanobis[covariance=robust]", own, Mahalanobis("robust").fit, copies=0.5, work=searched),
        Case(
            "mahalanobis[covariance=robust]",
            "scikit-learn",
            *distances(MinCovDet(random_state=0)),
            copies=3,
            work=lambda n, d, m: searched(n, d, m) + 60.0 * n * d * d,
        ),
        Case("mahalanobis[two_sided=true]", own, Mahalanobis(two_sided=True).fit, copies=0.5),
        Case("principal-components", own, PrincipalComponents().fit, copies=0.5),
        Case("principal-components", "scikit-learn", lambda X: PCA(0.95, svd_solver="full").fit(X), copies=3),
        Case("transformed", own, Transformed().fit, copies=5),
        Case("transformed", "scikit-learn", transformed, transformed_distances, copies=5),
        Case(
            "relative-mahalanobis",
            own,
            lambda X: RelativeMahalanobis().fit(X, classes=(X[:, 0] > X[:, 0].mean()).astype(int)),
            copies=4,
        ),
        Case(
            "conditional-mahalanobis",
            own,
            lambda X: ConditionalMahalanobis("site 0").fit(X, groups=sites(X.shape[1])),
            copies=7,
        ),
        Case("per-site", own, lambda X: PerSite().fit(X, groups=sites(X.shape[1])), copies=2),
        Case("isolation-forest", "scikit-learn", lambda X: IsolationForest(random_state=0).fit(X)),
        Case(
            "local-outlier-factor",
            "scikit-learn",
            lambda X: LocalOutlierFactor(novelty=True).fit(X),
            work=lambda n, d, m: 4 * pairs(n, d, m),
        ),
        Case(
            "kernel-density",
            "scikit-learn",
            lambda X: KernelDensity(bandwidth="scott").fit(X),
            work=lambda n, d, m: 4.0 * n * m * d,
        ),
        Case(
            "gaussian-mixture",
            "scikit-learn",
            lambda X: GaussianMixture(2, random_state=0).fit(X),
            copies=3,
            work=lambda n, d, m: 400.0 * n * d * d,
        ),
    ]
    return rows


def status(name: str) -> float:
    """A field of this process's memory in GiB: VmRSS (now) or VmHWM (most)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 2**20
    return float("nan")


def measured(case: Case, X: np.ndarray, new: np.ndarray, most: float) -> dict[str, Any]:
    """Seconds and GiB of one fit and one scoring, in a child of its own."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        try:
            start_gib, start = status("VmRSS"), time.perf_counter()
            fitted = case.fit(X)
            found = {"fit_s": time.perf_counter() - start}
            if case.score is not None:
                start = time.perf_counter()
                case.score(fitted, new)
                found["score_s"] = time.perf_counter() - start
            found["peak_gib"] = max(status("VmHWM") - start_gib, 0.0)
        except Exception as error:
            found = {"refused": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(int(most))
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    signal.alarm(0)
    os.waitpid(child, 0)
    return json.loads(answer) if answer else {"refused": f"stopped: more than {most / 60:.0f} min, or out of memory"}


def table(n: int, d: int, seed: int) -> np.ndarray:
    """(n, d) correlated rows, made a piece at a time."""
    draw = np.random.default_rng([seed, n, d])
    mixing = np.random.default_rng(d).normal(size=(d, d)) / np.sqrt(d) + np.eye(d)
    X = np.empty((n, d))
    for start in range(0, n, 10**4):
        piece = X[start : start + 10**4]
        np.matmul(draw.normal(size=piece.shape), mixing, out=piece)
    return X


def run(
    sizes: tuple[int, ...], columns: tuple[int, ...], new_rows: int, rounds: int, most: float
) -> list[dict[str, Any]]:
    """All measurements."""
    warm = table(300, 24, 1)
    for case in cases():  # imports, once and in the parent
        fitted = case.fit(warm)
        if case.score is not None:
            case.score(fitted, warm[:5])
    found: dict[tuple[str, str, int, int], dict[str, Any]] = {}
    for d in columns:
        for n in sizes:
            X, new = table(n, d, 0), table(new_rows, d, 1)
            for turn in range(rounds):
                for case in cases():
                    key = (case.row, case.side, n, d)
                    kept = found.setdefault(
                        key, {"row": case.row, "side": case.side, "n": n, "d": d, "new": new_rows, "runs": []}
                    )
                    reason = case.refused(n, d, new_rows, most) or kept.get("refused", "")
                    if not reason:
                        one = measured(case, X, new, most)
                        reason = one.get("refused", "")
                        if not reason:
                            kept["runs"].append(one)
                    if reason:
                        kept["refused"] = reason
                    if not turn:
                        print(n, d, case.row, case.side, reason or kept["runs"][-1], flush=True)
            del X
    return list(found.values())


def page(data: dict[str, Any]) -> str:
    """The markdown page of all measurements."""

    def shown(kept: dict[str, Any] | None, name: str) -> str:
        if kept is None:
            return ""
        if not kept["runs"]:
            return kept["refused"] if name == "fit_s" else ""
        values = [one[name] for one in kept["runs"] if name in one]
        return f"{median(values):.3g}" if values else ""

    setting = data["setting"]
    lines = [
        "# Speed of the references",
        "",
        f"Seconds to fit n rows of d columns and to score {setting['new']:,} rows, and peak memory (GiB) beyond the "
        f"rows; medians of {setting['rounds']} interleaved round(s), each measurement in a process of its own. "
        f"{setting['processor']}, OMP_NUM_THREADS={setting['OMP_NUM_THREADS']}, "
        + ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
        + ". Written by `python benchmarks/references.py`.",
        "",
        "The first row compares a fit in chunks (causalmad) with the products of the rows alone (scikit-learn column): "
        "no fit of a covariance can be faster than these.",
        "",
    ]
    known = {(one["row"], one["side"], one["n"], one["d"]): one for one in data["measurements"]}
    names = list(dict.fromkeys(one["row"] for one in data["measurements"]))
    for d in sorted({one["d"] for one in data["measurements"]}):
        heads = (
            "n",
            "reference",
            "fit",
            "scikit-learn's",
            "ratio",
            "score",
            "scikit-learn's",
            "memory",
            "scikit-learn's",
        )
        lines += [f"## {d} columns", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for n in sorted({one["n"] for one in data["measurements"]}):
            for name in names:
                ours, theirs = known.get((name, "causalmad", n, d)), known.get((name, "scikit-learn", n, d))
                both = [shown(one, "fit_s") for one in (ours, theirs)]
                ratio = ""
                if ours and theirs and ours["runs"] and theirs["runs"]:
                    pairs = zip(ours["runs"], theirs["runs"])
                    ratio = f"{median(a['fit_s'] / b['fit_s'] for a, b in pairs):.2f}"
                rest = [shown(one, key) for key in ("score_s", "peak_gib") for one in (ours, theirs)]
                lines.append(f"| {' | '.join([f'{n:,}', name, *both, ratio, *rest])} |")
        lines.append("")
    return "\n".join(lines)


def processor() -> str:
    """The processor's own name, and how many there are."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else 'unknown processor'}, {os.cpu_count()} cores"


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rows, into --out")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the quick files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--n", type=int, nargs="+", help="these numbers of rows alone; the others stay as they are")
    parser.add_argument("--d", type=int, nargs="+", help="these numbers of columns alone")
    parser.add_argument("--minutes", type=float, default=60.0, help="what takes longer is listed as not run")
    given = parser.parse_args()
    sizes, columns, new_rows = QUICK if given.quick else (SIZES, COLUMNS, NEW)
    sizes, columns = tuple(given.n or sizes), tuple(given.d or columns)
    setting = {
        "rounds": given.rounds,
        "new": new_rows,
        "minutes": given.minutes,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "processor": processor(),
        "versions": versions(),
    }
    data = {"setting": setting, "measurements": run(sizes, columns, new_rows, given.rounds, 60 * given.minutes)}
    results, text = (
        (given.out / "references-quick.json", given.out / "references-quick.md") if given.quick else (RESULTS, PAGE)
    )
    if (given.n or given.d) and results.exists():
        known = json.loads(results.read_text(encoding="utf-8"))["measurements"]
        others = [one for one in known if not (one["n"] in sizes and one["d"] in columns)]
        data["measurements"] = sorted(others + data["measurements"], key=lambda one: (one["d"], one["n"]))
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(data, indent=1), encoding="utf-8")
    text.write_text(page(data), encoding="utf-8")
    print(f"{results}\n{text}")


if __name__ == "__main__":
    main()
