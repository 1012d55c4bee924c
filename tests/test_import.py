"""Importing the library costs nothing, and changes nothing."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "numpy", "scipy", "sklearn", "pandas", "nnsight", "pyvene", "captum", "transformers", "matplotlib")


def run(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


def test_importing_imports_nothing_heavy() -> None:
    run(f"import sys, causalmad; assert not set({HEAVY}) & set(sys.modules), set({HEAVY}) & set(sys.modules)")


def test_listing_imports_nothing_heavy() -> None:
    run(
        "import sys\nfrom causalmad.catalogue import catalogue\n"
        "assert len(catalogue('targets')) >= 4 and len(catalogue('references')) >= 5\n"
        f"assert not set({HEAVY}) & set(sys.modules), set({HEAVY}) & set(sys.modules)"
    )


def test_importing_has_no_side_effects() -> None:
    run(
        "import os, random, sys, warnings\n"
        "before = random.getstate(), dict(os.environ), warnings.filters[:], sys.gettrace(), list(sys.path)\n"
        "import causalmad, causalmad.models, causalmad.targets, causalmad.inputs\n"
        "causalmad.open_model, causalmad.Inputs, causalmad.Site\n"
        "import torch\n"
        "assert (random.getstate(), sys.gettrace(), list(sys.path)) == (before[0], before[3], before[4])\n"
        "assert torch.is_grad_enabled() and torch.get_default_dtype() is torch.float32"
    )


def test_every_name_that_is_promised_exists() -> None:
    run("import causalmad\nassert issubclass(causalmad.errors.SpecError, causalmad.CausalmadError)")
    run("from causalmad import models, Inputs, Site, CausalmadError\nfor name in models.__all__: getattr(models, name)")


def test_a_name_that_is_not_there_is_told_its_nearest() -> None:
    code = "import causalmad\ntry: causalmad.{}\nexcept AttributeError as error: assert {!r} in str(error), error"
    run(code.format("calibrators", "causalmad.calibration"))
    run(code.format("signatures.AttributionPatchin", "causalmad.signatures.AttributionPatching,"))
    run("import causalmad\nassert not hasattr(causalmad, 'nothing') and not hasattr(causalmad.tasks, '__wrapped__')")
