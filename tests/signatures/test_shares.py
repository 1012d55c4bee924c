import numpy as np
import pytest

from causalmad import open_model
from causalmad.errors import FitError
from causalmad.signatures import Activations, AttributionPatching, Shares, SignedLog, Sorted
from causalmad.testing.toys import toy
from tests.signatures.combined import survives

MADE = toy("mlp", trusted=40, fresh=6)
MODEL = open_model(MADE.model)
INNER = Activations()


def raw(spec=INNER, inputs=MADE.fresh):
    fitted = spec.fit(MODEL, MADE.trusted)
    return fitted.columns, fitted(inputs).values.astype(float)


def blocks(columns):
    names = [column.block or column.site for column in columns]
    return {name: [i for i, own in enumerate(names) if own == name] for name in dict.fromkeys(names)}


@pytest.mark.parametrize("of", ["block", "all"])
def test_shares_are_divided_by_the_sum_of_sizes(of):
    columns, values = raw()
    _, trusted = raw(inputs=MADE.trusted)
    members = blocks(columns) if of == "block" else {"of all": list(range(len(columns)))}
    found = Shares(INNER, of).fit(MODEL, MADE.trusted)(MADE.fresh)
    for k, (name, rows) in enumerate(members.items()):
        for i in range(len(values)):
            total = sum(abs(values[i, j]) for j in rows)
            np.testing.assert_allclose(found.values[i, rows], [values[i, j] / total for j in rows], rtol=1e-5)
            usual = np.median([np.abs(row[rows]).sum() for row in trusted])
            np.testing.assert_allclose(found.values[i, len(columns) + k], np.log1p(total / usual), rtol=1e-5)
        assert found.columns[len(columns) + k].name == f"log norm {name}"


def test_signed_log_by_trusted_medians():
    _, values = raw()
    _, trusted = raw(inputs=MADE.trusted)
    found = SignedLog(INNER).fit(MODEL, MADE.trusted)(MADE.fresh).values
    for d in range(values.shape[1]):
        sizes = [abs(value) for value in trusted[:, d] if value != 0]
        unit = np.median(sizes) if sizes else 1.0
        expected = [np.sign(value) * np.log(1 + abs(value) / unit) for value in values[:, d]]
        np.testing.assert_allclose(found[:, d], expected, rtol=1e-5, atol=1e-7)


def test_sorted_by_size_in_each_block():
    columns, values = raw()
    found = Sorted(INNER, top=3).fit(MODEL, MADE.trusted)(MADE.fresh)
    for k, (name, rows) in enumerate(blocks(columns).items()):
        for i in range(len(values)):
            parts = sorted((values[i, j] for j in rows), key=lambda value: -abs(value))
            share = np.array([abs(value) for value in parts if value != 0]) / sum(map(abs, parts))
            expected = [*parts[:3], sum(parts), -(share * np.log(share)).sum()]
            np.testing.assert_allclose(found.values[i, 5 * k : 5 * k + 5], expected, rtol=1e-4, atol=1e-5)
        assert found.columns[5 * k].name == f"{name} rank 1"


def test_a_short_block_has_no_empty_ranks():
    found = Sorted(AttributionPatching(units="blocks"), top=8).fit(MODEL, MADE.trusted)
    assert [column.unit for column in found.columns if column.block == "blocks sum by place by rank"] == [
        "rank 1", "rank 2", "rank 3", "sum", "entropy",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [Shares, SignedLog, Sorted])
def test_they_survive(tmp_path, kind):
    survives(kind(), MADE, tmp_path / "default")
    survives(kind(AttributionPatching(baseline="donors")), MADE, tmp_path / "donors")


@pytest.mark.parametrize("kind", [Shares, SignedLog, Sorted])
def test_donors_and_units_are_those_of_the_signature(kind):
    inner = AttributionPatching(baseline="donors")
    fitted, alone = kind(inner).fit(MODEL, MADE.trusted), inner.fit(MODEL, MADE.trusted)
    assert fitted.donor_digests == alone.donor_digests
    assert [group.names for group in fitted.groups] == [group.names for group in alone.groups]
    assert fitted.donors_of is None


def test_a_repair_reaches_the_signature_inside(tmp_path):
    from causalmad import Detector
    from causalmad.references import Mahalanobis

    spec = AttributionPatching(log=False)
    direct = Detector(AttributionPatching(), Mahalanobis()).fit(MADE.model, MADE.trusted)
    nested = Detector(SignedLog(spec), Mahalanobis()).fit(MADE.model, MADE.trusted)
    a, b = (d.repair(MADE.fresh[0], MADE.trusted, alpha=0.99, units="layers", most=1) for d in (direct, nested))
    assert a.units == b.units and a.donor == b.donor and a.units


def test_named_errors():
    for make in (lambda: Shares(of="column"), lambda: Shares(Activations), lambda: Sorted(top=0), lambda: SignedLog(1)):
        with pytest.raises(FitError):
            make()
