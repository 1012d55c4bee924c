"""A report of 10,000 inputs opens in under three seconds and weighs under ten megabytes.

    python benchmarks/report.py [OUT.json]

Inputs are rows of 40 tokens; their signature has the activations of a small GPT-2 with random weights and what each of
its heads and positions contributes. Chromium opens the page five times, until it is drawn and can be used; then an
input is found by its id, and the table is sorted. Takes Chromium, its driver and selenium (`pip install '.[test]'`).
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from selenium import webdriver
from transformers import GPT2Config, GPT2LMHeadModel

import causalmad as cm
from causalmad.report import write_report

COUNT, LENGTH, TIMES = 10_000, 40, 5
DRAWN = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()));"
FIND = "const box = document.getElementById('find'); box.value = arguments[0]; box.dispatchEvent(new Event('input'));"
SORT = "document.querySelector('th[data-column=id] button').click();"


def written(folder: Path) -> tuple[Path, cm.Detection, float]:
    """The page, what it shows, and the seconds that writing it took."""
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 5000, "n_positions": LENGTH}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    signature = cm.signatures.Concat(
        (cm.signatures.Activations(), cm.signatures.AttributionPatching(("heads", "positions")))
    )
    trusted, test = (cm.Inputs.of({"input_ids": torch.randint(1, 5000, (n, LENGTH))}) for n in (1000, COUNT))
    fitted = cm.Detector(signature).fit(model, trusted, seed=0)
    detection = fitted.detect(test, alpha=0.01)
    started = time.perf_counter()
    path = write_report(folder / "report.html", detection, inputs=test, detector=fitted)
    return path, detection, time.perf_counter() - started


def browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,900"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def seconds(page: webdriver.Chrome, *script: str) -> float:
    """From the start of a script until what it did is drawn."""
    started = time.perf_counter()
    page.execute_script(*script)
    page.execute_async_script(DRAWN)
    return time.perf_counter() - started


def main(out: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, detection, writing = written(Path(folder))
        page = browser()
        opening, finding, sorting = [], [], []
        for _ in range(TIMES):
            page.get("about:blank")
            started = time.perf_counter()
            page.get(path.as_uri())
            page.execute_async_script(DRAWN)
            opening.append(time.perf_counter() - started)
            if page.execute_script("return document.documentElement.dataset.ready") != "true":
                raise SystemExit("the page was not ready when it had loaded")
            finding.append(seconds(page, FIND, detection.ids[COUNT // 2]))
            if page.execute_script("return document.querySelectorAll('#rows tr').length") != 1:
                raise SystemExit("one input should have been found")
            page.execute_script(FIND, "")
            sorting.append(seconds(page, SORT))
        found = {
            "inputs": COUNT,
            "columns": len(detection.signatures.columns),
            "tokens an input": LENGTH,
            "megabytes": round(path.stat().st_size / 1e6, 2),
            "seconds to write": round(writing, 2),
            **{
                f"seconds to {what}": {"median": round(statistics.median(each), 2), "longest": round(max(each), 2)}
                for what, each in (("open", opening), ("find an input", finding), ("sort", sorting))
            },
            "runs": TIMES,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "browser": f"{page.capabilities['browserName']} {page.capabilities['browserVersion']}",
            "causalmad": cm.__version__,
        }
        page.quit()
    print(json.dumps(found, indent=1))
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
