from __future__ import annotations

from dataclasses import is_dataclass
from pathlib import Path

import pytest

from causalmad import targets
from causalmad.catalogue import KINDS, Entry, catalogue, find, kebab, name_of
from causalmad.errors import SpecError

PACKAGE = Path(targets.__file__).parent
FOLDERS = {"calibrators": "calibration"}
PRESENT = [k for k in KINDS if any((PACKAGE / FOLDERS.get(k, k)).with_suffix(end).exists() for end in ("", ".py"))]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("ResamplingProfile", "resampling-profile"),
        ("OneClassSVM", "one-class-svm"),
        ("Conformal", "conformal"),
        ("EAPIGScores", "eapig-scores"),
        ("GateDigits2", "gate-digits2"),
    ],
)
def test_names(name: str, wanted: str) -> None:
    assert kebab(name) == wanted


@pytest.mark.parametrize("kind", PRESENT)
def test_every_entry_is_a_frozen_spec_with_a_summary(kind: str) -> None:
    entries = catalogue(kind)
    assert [entry.name for entry in entries] == sorted({entry.name for entry in entries})
    for entry in entries:
        cls = entry.load()
        assert isinstance(cls, type) and entry.kind == kind and kebab(cls.__name__) == entry.name
        assert len(entry.summary) > 10 and "\n" not in entry.summary
        if not entry.module.startswith("sklearn."):
            assert is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
            assert (cls.__doc__ or "").startswith(entry.summary)


def test_targets_and_scikit_learn_are_there() -> None:
    assert [entry.name for entry in catalogue("targets")] == [
        "class-logit",
        "divergence",
        "logit-difference",
        "top-margin",
    ]
    names = {entry.name for entry in catalogue("references")}
    assert {"isolation-forest", "local-outlier-factor", "kernel-density", "one-class-svm", "gaussian-mixture"} <= names
    assert find("references", "local-outlier-factor").defaults == {"novelty": True}
    assert find("targets", "top-margin").defaults == {}


def test_what_is_not_there() -> None:
    with pytest.raises(SpecError, match="no target is called 'top-margn'") as raised:
        find("targets", "top-margn")
    assert raised.value.tries[0] == "top-margin" and len(raised.value.tries) == 4
    with pytest.raises(SpecError, match="no kind 'models'"):
        catalogue("models")


def test_names_of_parts() -> None:
    assert name_of("targets", targets.LogitDifference(0, 1)) == "logit-difference"

    class TopMargin:
        """The same name from somewhere else."""

    with pytest.raises(SpecError, match="not in the catalogue of targets"):
        name_of("targets", TopMargin())


def test_parts_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    point = EntryPoint("their-target", "collections:OrderedDict", "causalmad.targets")
    shadow = EntryPoint("top-margin", "collections:Counter", "causalmad.targets")
    monkeypatch.setattr("causalmad.catalogue.entry_points", lambda group: [point, shadow])
    catalogue.cache_clear()
    try:
        assert find("targets", "their-target") == Entry(
            "targets", "their-target", "from collections:OrderedDict", "collections", "OrderedDict"
        )
        assert find("targets", "top-margin").load() is targets.TopMargin  # ours cannot be replaced unnoticed
    finally:
        catalogue.cache_clear()
