"""Ray's workers give the rows of the local engine, bit by bit, also when one of them is killed."""

import logging
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

import causalmad as cm
from causalmad.errors import CausalmadError, FitError, ModelError, SpecError
from causalmad.extraction import Ray
from causalmad.extraction.extract import extract
from tests.extraction.counted import Counted, made, rows_on_disk

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    import importlib

    fitted, fresh = made(8)
    plain = importlib.import_module

    def refuse(name, *rest):
        if name.partition(".")[0] == "ray":
            raise ImportError("No module named 'ray'")
        return plain(name, *rest)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(SpecError, match=r"pip install 'causalmad\[ray\]'"):
        extract(fitted, fresh, engine="ray")


@pytest.mark.parametrize("options", [{"workers": 0}, {"cpus": 0}, {"gpus": -1}])
def test_an_engine_without_workers_is_refused(options):
    with pytest.raises(SpecError, match="at least one worker"):
        Ray(**options)


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, with this source tree on its workers."""
    ray = pytest.importorskip("ray")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, *filter(None, [before])])
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.mark.slow
def test_the_rows_are_those_of_the_local_engine(cluster, tmp_path):
    fitted, fresh = made(200)
    local = extract(fitted, fresh, shard=16)
    far = extract(fitted, fresh, shard=16, engine=Ray(workers=2), cache=tmp_path, moments=True)
    assert far.values.tobytes() == local.values.tobytes() and far.computed == 200
    assert far.moments.n == 200
    np.testing.assert_allclose(far.moments.mean, local.values.astype(float).mean(0), rtol=1e-9)
    again = extract(fitted, fresh, shard=16, engine="ray", cache=tmp_path)
    assert again.computed == 0 and again.values.tobytes() == local.values.tobytes()
    assert cluster.is_initialized()  # it was running before


class Dies(nn.Module):
    """A model whose process is killed once, on an input of large numbers, by itself."""

    def __init__(self, mark):
        super().__init__()
        self.inner, self.mark = Counted(), mark

    def forward(self, x):
        if x.max() > 50 and not os.path.exists(self.mark):
            with open(self.mark, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(x)


@pytest.mark.slow
def test_a_killed_worker_costs_no_row(cluster, tmp_path):
    torch.manual_seed(0)
    model = Dies(str(tmp_path / "mark"))
    draw = torch.Generator().manual_seed(1)
    trusted, fresh = torch.randn(60, 6, generator=draw), torch.randn(120, 6, generator=draw)
    fresh[70] = 60.0
    fitted = cm.Detector(cm.signatures.Activations()).fit(cm.open_model(model, batch_size=8), trusted)
    far = extract(fitted, fresh, shard=16, engine=Ray(workers=2), cache=tmp_path / "cache")
    assert (tmp_path / "mark").exists()
    keys, _, _ = rows_on_disk(tmp_path / "cache")
    assert len(np.unique(keys, axis=0)) == len(keys) == 120
    assert far.values.tobytes() == extract(fitted, fresh, shard=16).values.tobytes()


@pytest.mark.slow
def test_workers_make_the_model_by_themselves_and_it_must_be_the_same(cluster):
    fitted, fresh = made(40)

    def same():
        return made(8)[0].model.module

    def other():
        torch.manual_seed(5)
        return Counted()

    far = extract(fitted, fresh, shard=16, engine=Ray(workers=1, model=same))
    assert far.values.tobytes() == extract(fitted, fresh, shard=16).values.tobytes()
    with pytest.raises(ModelError, match=r"another one: parameter 'first.weight' differs"):
        extract(fitted, fresh, shard=16, engine=Ray(workers=1, model=other))


@pytest.mark.slow
def test_an_error_of_a_worker_is_the_error_here(cluster):
    fitted, fresh = made(40)
    fresh[20] = float("nan")
    with pytest.raises(FitError, match="NaN or infinite"):
        extract(fitted, fresh, shard=16, engine=Ray(workers=1))
    bare = cm.signatures.Activations().fit(fitted.model, fitted.model.inputs(fresh))
    with pytest.raises(CausalmadError, match="does not know its spec"):
        extract(bare, fresh, engine=Ray(workers=1))
