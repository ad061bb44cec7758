"""What `mba bench` measures: checked before it is timed."""

import math

import pytest

from mamba_bio_audio.run import speed


def test_a_wrong_operation_is_not_timed(monkeypatch):
    monkeypatch.setitem(speed.KERNEL_SHAPES, "cpu", [(1, 70, 32)])
    right = speed.ops.selective_scan

    def wrong(*given, backend="auto", **more):
        return right(*given, backend=backend, **more) * (1 if backend == "reference" else 1.01)

    monkeypatch.setattr(speed.ops, "selective_scan", wrong)
    with pytest.raises(RuntimeError, match="selective_scan: wrong by 1"):
        next(speed.kernels("cpu"))


def test_train():
    (row,) = speed.train("cpu", seconds=0.01, shapes=[(1, 8, 2, 16, 8)])
    assert row["shape"] == "1x8, (2, 16), streamed by 8"
    assert math.isclose(float(row["mtokens_per_s"]), 32 / float(row["ms_p50"]) / 1e3, rel_tol=0.01)
