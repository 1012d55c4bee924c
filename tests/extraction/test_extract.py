import errno
import json
import os
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import causalmad as cm
from causalmad.errors import CacheError, CacheWarning, FitError, SpecError
from causalmad.inputs import Inputs
from causalmad.references import Mahalanobis
from causalmad.signatures.base import Column, Signatures
from causalmad.testing.toys import toy
from tests.extraction.counted import Counted, made, rows_on_disk, shards_of


def same(a, b):
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", ["mlp", "gpt2"])
@pytest.mark.parametrize("shard", [5, 16, 1000])
def test_the_rows_are_those_of_the_signature_in_the_order_of_the_inputs(tmp_path, name, shard):
    made = toy(name, fresh=40)
    fitted = cm.Detector(cm.signatures.ResamplingProfile(donors=2)).fit(made.model, made.trusted)
    expected = fitted.signature(made.fresh).values
    for cache in (None, tmp_path, tmp_path):
        found = cm.extract(fitted, made.fresh, cache=cache, shard=shard)
        assert (found.ids, found.columns) == (made.fresh.ids, fitted.signature.columns)
        np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-6)
    again = cm.extract(fitted, made.fresh[::-1], cache=tmp_path)
    assert same(again.values, found.values[::-1]) and again.computed == 0


def test_the_same_batches_are_the_same_bits(tmp_path):
    fitted, fresh = made(batch_size=8)
    expected = fitted.signature(fresh).values
    assert same(cm.extract(fitted, fresh, shard=16).values, expected)
    assert same(cm.extract(fitted, fresh, shard=16, cache=tmp_path).values, expected)
    assert same(cm.extract(fitted, fresh, cache=tmp_path).values, expected)
    assert same(cm.extract(fitted.signature, fresh).values, expected)


def test_only_what_is_missing_is_computed_and_repeats_are_computed_once(tmp_path):
    fitted, fresh = made(200)
    assert (first := cm.extract(fitted, fresh[:50], cache=tmp_path, shard=16)).computed == 50 and first.found == 0
    more = cm.extract(fitted, fresh, cache=tmp_path, shard=16)
    assert (more.computed, more.found) == (150, 50)
    ids = [f"row {i}" for i in range(300)]
    both = Inputs.of(torch.cat([fresh, fresh[:100]]), ids=ids)
    again = cm.extract(fitted, both, cache=tmp_path)
    assert (again.computed, again.found, again.ids) == (0, 300, tuple(ids))
    assert same(again[200:], more[:100])
    other = cm.extract(fitted, both, cache=tmp_path / "other")
    assert (other.computed, other.found) == (200, 100)
    keys, _, _ = rows_on_disk(tmp_path / "other")
    assert len(np.unique(keys, axis=0)) == len(keys) == 200


def test_rows_are_read_as_an_array_is(tmp_path):
    fitted, fresh = made(60)
    found = cm.extract(fitted, fresh, cache=tmp_path, shard=16)
    whole = found.values
    for rows in ([3], slice(5, 40, 3), [7, 2, 2], np.arange(60) % 3 == 0):
        assert same(found[rows], whole[rows])
    assert same(found[3], whole[3:4])
    assert [len(part) for part in found.chunks(25)] == [25, 25, 10]
    assert same(np.concatenate(list(found.chunks(25))), whole)
    assert same(found.signatures.values, whole) and len(found) == 60
    by_chunks = Mahalanobis().fit_chunks(found.chunks).score_samples(whole)
    np.testing.assert_allclose(by_chunks, Mahalanobis().fit(whole).score_samples(whole), rtol=1e-8)
    assert "60 x" in repr(found) and "60 rows computed" in repr(found)


def test_moments_are_of_all_rows_wherever_they_come_from(tmp_path):
    fitted, fresh = made(90)
    cm.extract(fitted, fresh[:40], cache=tmp_path, shard=8)
    both = torch.cat([fresh, fresh[:30]])
    for _ in range(2):
        found = cm.extract(fitted, Inputs.of(both, ids=range(120)), cache=tmp_path, shard=8, moments=True)
        assert found.moments.n == 120
        np.testing.assert_allclose(found.moments.mean, found.values.astype(float).mean(0), rtol=1e-9)
        np.testing.assert_allclose(
            found.moments.covariance(), np.cov(found.values.astype(float).T), rtol=1e-7, atol=1e-12
        )
    assert cm.extract(fitted, fresh).moments is None


def test_detectors_give_the_same_with_a_cache(tmp_path):
    fitted, fresh = made(80)
    model, trusted = fitted.model, torch.randn(60, 6)
    plain = fitted.spec.fit(model, trusted)
    kept = fitted.spec.fit(model, trusted, cache=tmp_path)
    assert np.array_equal(plain.trusted.values, kept.trusted.values)
    for _ in range(2):
        assert np.array_equal(kept.detect(fresh, cache=tmp_path).p_values, plain.detect(fresh).p_values)
        assert np.array_equal(kept.score(fresh, cache=tmp_path), plain.score(fresh))
    before = rows_on_disk(tmp_path)[0]
    again = fitted.spec.fit(model, trusted, cache=tmp_path)
    assert np.array_equal(again.trusted.values, kept.trusted.values) and len(rows_on_disk(tmp_path)[0]) == len(before)


def test_a_cache_stays_where_it_was_when_the_process_goes_elsewhere(tmp_path, monkeypatch):
    fitted, fresh = made(40)
    monkeypatch.chdir(tmp_path)
    cache = cm.Cache("cache")
    rows = cm.extract(fitted, fresh, cache=cache)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert rows.values.shape == (40, 8) and cm.extract(fitted, fresh, cache=cache).computed == 0
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_opened_cache_hashes_the_model_once(tmp_path, monkeypatch):
    fitted, fresh = made(40)
    calls = []
    plain = type(fitted.model).fingerprint
    monkeypatch.setattr(type(fitted.model), "fingerprint", lambda self: calls.append(1) or plain(self))
    cache = cm.Cache(tmp_path)
    for start in range(0, 40, 8):
        fitted.detect(fresh[start : start + 8], alpha=0.1, cache=cache)
    assert len(calls) == 1 and len(rows_on_disk(tmp_path)[0]) == 40
    assert cm.extract(fitted, fresh, cache=cache).computed == 0 and "Cache(" in repr(cache)


# What an address depends on.


def address(fitted, spec=None):
    from causalmad.extraction.address import address_of

    spec = spec or fitted.spec.signature
    return address_of(fitted.signature, spec, fitted.model).name


def test_the_same_fit_has_the_same_address_and_any_other_another(tmp_path):
    fitted, _ = made()
    names = {address(fitted)}
    assert address(made()[0]) in names
    assert address(made(batch_size=3)[0]) in names
    loaded = tmp_path / "det"
    fitted.save(loaded)
    assert address(cm.FittedDetector.load(loaded, fitted.model)) in names
    with torch.no_grad():
        fitted.model.module.first.weight[0, 0] += 1e-6
    names.add(address(fitted))
    torch.manual_seed(0)
    other = Counted()
    other.act = nn.GELU()
    draw = torch.randn(60, 6, generator=torch.Generator().manual_seed(1))
    for spec in (cm.signatures.Activations(), cm.signatures.Activations("first"), cm.signatures.GradientNorms()):
        names.add(address(cm.Detector(spec).fit(other, draw)))
    for seed in (0, 1):
        names.add(address(cm.Detector(cm.signatures.ResamplingProfile(donors=2)).fit(other, draw, seed=seed)))
    assert len(names) == 7


def test_the_key_of_a_row_is_what_the_model_and_the_claims_may_read():
    from causalmad.extraction.address import row_keys

    x = torch.randn(3, 4)
    plain = row_keys(Inputs.of(x))
    assert same(plain, row_keys(Inputs.of(x, ids=["a", "b", "c"])))
    columns = {"kind": np.array([["a", 1], ("b", None), {"c": np.arange(2)}], dtype=object)}
    keyed = row_keys(Inputs.of(x, columns=columns))
    assert len(np.unique(np.concatenate([plain, keyed]), axis=0)) == 6
    assert same(keyed[[2, 0]], row_keys(Inputs.of(x, columns=columns)[[2, 0]]))
    changed = {"kind": np.array([["a", 2], ("b", 0), {"c": np.arange(2.0)}], dtype=object)}
    assert not (row_keys(Inputs.of(x, columns=changed)) == keyed).all(1).any()
    # In double precision two inputs may differ by less than single precision tells apart.
    fine = torch.tensor([[1.0], [1.0 + 1e-12]], dtype=torch.float64)
    assert len(np.unique(row_keys(Inputs(("a", "b"), {0: fine})), axis=0)) == 2
    with pytest.raises(CacheError, match=r"column 'kind' of input .* a type has no digest"):
        row_keys(Inputs.of(x, columns={"kind": np.array([int, str, float], dtype=object)}))


def test_the_code_of_a_claim_is_part_of_the_address(tmp_path, monkeypatch):
    import importlib
    import sys

    names = []
    made = toy("mlp")
    for body in ("x.sum() > 0", "x.sum() > 1", "x.sum() > 0"):
        (tmp_path / "claimed_code.py").write_text(f"def sign(row):\n    x = row['input']\n    return bool({body})\n")
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop("claimed_code", None)
        importlib.invalidate_caches()
        sys.dont_write_bytecode = True
        import networkx as nx

        module = importlib.import_module("claimed_code")
        graph = nx.DiGraph()
        graph.add_node("sign", at=made.places[0], value=module.sign)
        graph.add_edge("sign", cm.OUTPUT)
        spec = cm.signatures.CausalScrubbing(cm.Hypothesis(graph), draws=2)
        names.append(address(cm.Detector(spec).fit(made.model, made.trusted)))
    assert names[0] == names[2] != names[1]


def test_an_address_is_the_same_in_every_process_and_holds_the_defaults_of_a_claim(tmp_path):
    import subprocess
    import sys

    texts = ["k=2", "k=3", "*, k=2", "k=2"]
    code = "from causalmad.extraction.content import function_digest as _function\n" + "".join(
        f"def claim(x, {text}): return x in {{'alpha', 'beta', 'gamma', 'delta'}} and k\nprint(_function(claim))\n"
        for text in texts
    )
    found = []
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(run.stdout.split())
    assert found[0] == found[1] and found[0][0] == found[0][3] and len(set(found[0])) == 3


def test_a_buffer_that_no_checkpoint_holds_is_part_of_the_address():
    class Gained(nn.Module):
        def __init__(self, gain):
            super().__init__()
            self.layer, self.act, self.last = nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)
            self.register_buffer("gain", torch.tensor(gain), persistent=False)

        def forward(self, x):
            return self.last(self.act(self.layer(x) * self.gain))

    model, other, draw = Gained(1.0), Gained(5.0), torch.randn(30, 4)
    other.load_state_dict(model.state_dict())
    fits = [cm.Detector(cm.signatures.Activations("act")).fit(each, draw) for each in (model, other, model)]
    names = [address(fitted) for fitted in fits]
    assert names[0] == names[2] != names[1]


def test_what_has_no_address_is_refused(tmp_path):
    made = toy("mlp")
    opened = cm.open_model(made.model)
    bare = cm.signatures.Activations().fit(opened, made.trusted)
    with pytest.raises(CacheError, match="does not know its spec"):
        cm.extract(bare, made.fresh, cache=tmp_path)
    assert cm.extract(bare, made.fresh, cache=tmp_path, spec=cm.signatures.Activations()).computed == len(made.fresh)
    code = cm.Detector(cm.signatures.Traced(lambda model, tracer: model.output)).fit(made.model, made.trusted)
    with pytest.raises(CacheError, match="Traced cannot be kept in a cache"):
        code.detect(made.fresh, cache=tmp_path)
    with pytest.raises(SpecError, match="no fitted signature"):
        cm.extract(cm.signatures.Activations(), made.fresh)
    with pytest.raises(SpecError, match="no engine 'spark'"):
        cm.extract(bare, made.fresh, engine="spark")
    with pytest.raises(SpecError, match="shard=0"):
        cm.extract(bare, made.fresh, shard=0)


# What happens to the files.


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "other"])
def test_a_damaged_file_is_named_and_its_rows_are_computed_again(tmp_path, harm):
    fitted, fresh = made(64)
    expected = cm.extract(fitted, fresh, cache=tmp_path, shard=16).values
    victim, *others = shards_of(tmp_path)
    data = bytearray(victim.read_bytes())
    data[-7] ^= 4
    victim.write_bytes({"flip": data, "cut": data[:-40], "empty": b"", "other": others[0].read_bytes()}[harm])
    with pytest.warns(CacheWarning, match=f"{victim.name} is damaged.*computed again"):
        found = cm.extract(fitted, fresh, cache=tmp_path, shard=16)
    assert found.computed == 16 and same(found.values, expected)
    assert cm.extract(fitted, fresh, cache=tmp_path).computed == 0 and len(shards_of(tmp_path)) == 4


@pytest.mark.parametrize("moment", ["checked", "found"])
def test_a_damaged_file_that_another_process_takes_away_costs_no_row(tmp_path, monkeypatch, moment):
    from causalmad.extraction import cache

    fitted, fresh = made(64)
    expected = cm.extract(fitted, fresh, cache=tmp_path, shard=16).values
    victim = shards_of(tmp_path)[1]
    victim.write_bytes(victim.read_bytes()[:-40])
    check = cache.check_shard

    def late(path, width):
        if path == victim and moment == "found":
            path.unlink()
        try:
            return check(path, width)
        except cache.DamagedShardError:
            path.unlink()
            raise

    monkeypatch.setattr(cache, "check_shard", late)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        found = cm.extract(fitted, fresh, cache=tmp_path, shard=16)
    assert found.computed == 16 and same(found.values, expected)


def test_a_file_that_cannot_be_read_and_is_written_again_costs_no_row(tmp_path):
    fitted, fresh = made(64)
    expected = cm.extract(fitted, fresh, cache=tmp_path, shard=16).values
    victim = shards_of(tmp_path)[1]
    victim.unlink()
    victim.symlink_to(victim.name)  # a loop: an error to read, and nothing in the way of a new file
    with pytest.warns(CacheWarning, match="cannot be read"):
        found = cm.extract(fitted, fresh, cache=tmp_path, shard=16)
    assert found.computed == 16 and same(found.values, expected)


def test_an_engine_that_loses_rows_is_named():
    class Forgetful:
        def run(self, work, chunks, done):
            from causalmad.extraction import Local

            yield from list(Local().run(work, chunks, done))[1:]

    fitted, fresh = made(64)
    with pytest.raises(CacheError, match=r"16 of 64 rows are missing"):
        cm.extract(fitted, fresh, engine=Forgetful(), shard=16)


def test_a_lost_or_a_foreign_file_costs_no_more_than_itself(tmp_path):
    fitted, fresh = made(64)
    found = cm.extract(fitted, fresh, cache=tmp_path, shard=16)
    expected = found.values
    shards_of(tmp_path)[1].unlink()
    (shards_of(tmp_path)[0].parent / "manifest.json").write_text("{")
    assert cm.extract(fitted, fresh, cache=tmp_path, shard=16).computed == 16
    for path in shards_of(tmp_path):
        path.unlink()
    assert same(found.values, expected)  # files that were looked at stay mapped
    more = cm.extract(fitted, fresh, cache=tmp_path, shard=16)
    for path in shards_of(tmp_path):
        path.unlink()
    with pytest.raises(CacheError, match="cannot be read any more"):
        assert more.values.any()
    assert same(cm.extract(fitted, fresh, cache=tmp_path).values, expected)


@pytest.mark.parametrize("number, why", [(errno.ENOSPC, "is full"), (errno.EROFS, "cannot be written")])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_full_or_read_only_disk_costs_no_result(tmp_path, monkeypatch, number, why, after):
    from causalmad.extraction import cache, shards

    fitted, fresh = made(64)
    expected = fitted.signature(fresh).values
    written, plain = [], shards.write_whole

    def write(path, parts):
        if len(written) >= after:
            raise OSError(number, os.strerror(number))
        written.append(path)
        return plain(path, parts)

    monkeypatch.setattr(shards, "write_whole", write)
    monkeypatch.setattr(cache, "write_whole", write)
    with pytest.warns(CacheWarning, match=why) as said:
        found = cm.extract(fitted, fresh, cache=tmp_path, shard=16)
    assert len(said) == 1 and same(found.values, expected) and found.computed == 64
    monkeypatch.undo()
    more = cm.extract(fitted, fresh, cache=tmp_path, shard=16)
    assert more.found == 16 * max(after - 1, 0) and same(more.values, expected)


def test_what_is_there_is_read_from_a_read_only_cache(tmp_path, monkeypatch):
    from causalmad.extraction import cache, shards

    fitted, fresh = made(64)
    expected = cm.extract(fitted, fresh[:48], cache=tmp_path, shard=16).values

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    for module in (cache, shards):
        monkeypatch.setattr(module, "write_whole", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cm.extract(fitted, fresh[:48], cache=tmp_path)
    assert found.computed == 0 and same(found.values, expected)
    with pytest.warns(CacheWarning, match="Read-only file system"):
        found = cm.extract(fitted, fresh, cache=tmp_path)
    assert found.computed == 16 and same(found[:48], expected)


def test_a_place_that_can_be_no_cache_is_refused_before_any_work(tmp_path):
    fitted, fresh = made(4)
    file = tmp_path / "file"
    file.write_text("")
    for place in (file, file / "below"):
        with pytest.raises(CacheError, match="cannot be used as a cache"):
            fitted.score(fresh, cache=place)


def test_the_manifest_says_what_the_rows_are_of(tmp_path):
    fitted, fresh = made(4)
    cm.extract(fitted, fresh, cache=tmp_path)
    (path,) = tmp_path.glob("*/manifest.json")
    data = json.loads(path.read_text())
    assert path.parent.name.startswith("activations-")
    assert data["signature"]["name"] == "activations" and data["model"]["name"] == "Counted"
    assert data["columns"] == [column.name for column in fitted.signature.columns]


def test_a_failure_keeps_what_was_done(tmp_path):
    fitted, fresh = made(64)
    fresh[40] = float("nan")
    with pytest.raises(FitError, match="NaN or infinite"):
        cm.extract(fitted, fresh, cache=tmp_path, shard=16)
    assert cm.extract(fitted, fresh[:40], cache=tmp_path).found == 32


def test_progress_counts_every_row_once(tmp_path):
    fitted, fresh = made(600)
    cm.extract(fitted, fresh[:100], cache=tmp_path)
    said = []
    cm.extract(fitted, fresh, cache=tmp_path, progress=lambda *step: said.append(step))
    assert [step[1:] for step in said] == [(100, 600), (356, 600), (600, 600)]


class Wide:
    """A signature of many columns that costs nothing."""

    def __init__(self, width):
        self.columns = tuple(Column(str(i)) for i in range(width))
        self.model = cm.open_model(nn.Linear(1, 1))

    def __call__(self, inputs):
        rows = np.asarray(inputs.main)[:, :1]
        return Signatures(inputs.ids, self.columns, np.repeat(rows, len(self.columns), axis=1).astype(np.float32))

    def state(self):
        return cm.signatures.base.State({}, {})


def test_memory_holds_a_shard_and_no_more(tmp_path):
    wide = Wide(2048)
    inputs = Inputs.of(torch.arange(6000.0)[:, None])
    assert len(inputs.digests) == 6000
    tracemalloc.start()
    try:
        found = cm.extract(wide, inputs, cache=tmp_path, spec=cm.signatures.OutputOnly(), shard=256)
        total = sum(float(part[:, 0].sum()) for part in found.chunks(256))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 6000 * 5999 / 2 and found.computed == 6000
    # A shard has 2 MB, all rows 49; a shard is held once as an array and once or twice as bytes on its way to the disk.
    assert peak < 12e6
