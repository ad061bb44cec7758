"""What `mba bench sample` measures: what users get, recording and start apart, and the limit beside it."""

import math

import pytest
import torch
from torch.utils._pytree import tree_leaves

from mamba_bio_audio.inference.blocks import Block
from mamba_bio_audio.run import sample_speed as module
from mamba_bio_audio.run.sample_speed import SampleCase, bytes_per_step, make_model, sample, sample_row


class Clock:
    """Time that passes only when something is done."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def generation(monkeypatch):
    """Replaces generation: 5 s to record, 1 ms a step; lists the calls."""
    clock, calls = Clock(), []

    def generate_blocks(model, **options):
        calls.append(options)
        clock.now += 5
        for row in range(0, options["num_samples"], options["batch_size"]):
            clock.now += 1e-3 * options["length"]
            yield Block(row, 0, torch.zeros(1, 1), torch.zeros(1, 1))

    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "generate_blocks", generate_blocks)
    return clock, calls


@pytest.mark.parametrize(("seconds", "steps"), [(0.01, 64), (1.0, 192), (100, 1024)])
def test_recording_is_not_in_the_time_of_a_step(generation, seconds, steps):
    row = sample_row(SampleCase("1x8", 3, "fp32"), "cpu", seconds=seconds, rate=1e9)
    assert row["mode"] == f"{steps} steps"
    assert float(row["us_per_step"]) == pytest.approx(1000)
    assert float(row["recording_s"]) == pytest.approx(5)
    assert float(row["tokens_per_s"]) == pytest.approx(3000)
    assert float(row["ms_p50"]) == pytest.approx(steps)
    probe, timed = generation[1]
    assert probe["length"] == 64
    assert timed["length"] == steps
    # Whole batches, more of them than are timed.
    assert timed["num_samples"] == 3 * (module.PAIRS + 1)
    assert 3 <= row["pairs"] <= module.PAIRS
    assert (probe["path"], probe["precision"]) == (None, "fp32")


def test_the_peer_runs_as_many_steps_in_turn(generation, monkeypatch):
    clock, calls = generation
    given = []

    def peer_steps(case, steps):
        def call():
            # Its first call records.
            clock.now += 2.5e-3 * steps + (7 if len(given) == 1 else 0)
            given.append("call")

        given.append((case.batch, steps))
        return call

    monkeypatch.setattr(module, "has_peer", lambda device: True)
    monkeypatch.setattr(module, "peer_steps", peer_steps)
    monkeypatch.setattr("mamba_bio_audio.run.timing.peer_version", lambda: "peer 1")
    row = sample_row(SampleCase("1x8", 3, "fp32"), "cpu", seconds=1, rate=1e9)
    assert given == [(3, calls[1]["length"]), *["call"] * (1 + row["pairs"])]
    assert float(row["ratio"]) == pytest.approx(2.5)
    assert float(row["peer_us_per_step"]) == pytest.approx(2500)
    given.clear()
    assert sample_row(SampleCase("audio/tiny", 1, "fp32"), "cpu", seconds=1, rate=1e9)["ratio"] == ""
    assert not given


def test_a_row_names_the_path_that_users_get(monkeypatch):
    taken = []
    generate_blocks = module.generate_blocks
    monkeypatch.setattr(module, "generate_blocks", lambda *a, **o: taken.append(o["path"]) or generate_blocks(*a, **o))
    case = SampleCase("1x8", 2, "fp32")
    row = sample_row(case, "cpu", seconds=0.01, rate=1e9)
    assert (row["path"], row["dtype"], row["shape"]) == ("numpy", "float32", "1x8, batch 2")
    assert sample_row(case, "cpu", seconds=0.01, rate=1e9, path="steps")["path"] == "steps"
    assert taken == [None, None, "steps", "steps"]
    assert sample_row(case._replace(precision="bf16"), "cpu", seconds=0.01, rate=1e9)["dtype"] == "bfloat16"


def test_what_does_not_fit_has_a_row_without_times(monkeypatch):
    real = module.sample_row

    def full(case, *given, **options):
        if case.batch > 1:
            raise torch.cuda.OutOfMemoryError("full")
        return real(case, *given, **options)

    monkeypatch.setattr(module, "sample_row", full)
    rows = list(sample("cpu", seconds=0.01, cases=[SampleCase("1x8", 64, "bf16"), SampleCase("1x8", 1, "fp32")]))
    assert [row["path"] for row in rows] == ["out of memory", "numpy"]
    assert math.isnan(float(rows[0]["ms_p50"]))


def test_bytes_of_an_isotropic_step():
    model, _ = make_model("2x16")
    weights = sum(p.numel() for p in model.parameters())
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    state = sum(leaf.numel() for leaf in tree_leaves(model.init_state(1)))
    assert bytes_per_step(model, 1, "fp32") == 4 * weights + 8 * state
    assert bytes_per_step(model, 5, "bf16") == 4 * weights - 2 * matrices + 5 * 8 * state


def test_tiers_of_a_unet_count_by_how_often_they_run(monkeypatch):
    model, allowed = make_model("audio/tiny")
    assert list(allowed) == list(range(256))
    first, second = model.model_config.pools
    config = model.model_config
    share = {name: module._share(model, name) for name, _ in model.named_parameters()}
    assert {share[name] for name in share if name.startswith(("embedding", "norm_f", "lm_head", "up.0"))} == {1}
    assert {share[name] for name in share if name.startswith(("up.1", "down_pools.0"))} == {1 / first}
    assert {share[name] for name in share if name.startswith(("centre", "up_pools.1"))} == {1 / first / second}
    # The finest tier moves its whole state at every step, the centre a period's share.
    one, two = (bytes_per_step(model, rows, "fp32") for rows in (1, 2))
    state = model.init_state(1)
    sizes = [sum(4 * leaf.numel() for leaf in tree_leaves(part)) for part in (*state.tiers, state.centre)]
    assert two - one == pytest.approx(2 * (sizes[0] + sizes[1] / first + sizes[2] / config.period))


def test_the_table_of_a_gpu_holds_what_the_project_promises():
    cases = module.SAMPLE_CASES["cuda"]
    assert len(cases) == len(set(cases))
    for model in ("12x128", "16x256", "24x768"):
        assert {case[1:] for case in cases if case.model == model} == {
            (batch, precision) for batch in (1, 64, 512, 2048) for precision in ("bf16", "fp32")
        }
    for model in {case.model for case in [*cases, *module.SAMPLE_CASES["cpu"]]}:
        assert make_model(model)[0].streaming == "constant"
