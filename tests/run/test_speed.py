"""What `mba bench kernels` and `train` measure: checked before it is timed, beside a peer of the same arguments."""

import math
import sys

import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.streamed import streamed_loss
from mamba_bio_audio.run import kernel_speed, peer, train_speed
from mamba_bio_audio.run.kernel_speed import KernelCase, kernels
from mamba_bio_audio.run.sample_speed import SampleCase, make_model
from mamba_bio_audio.run.train_speed import TrainCase, train


def rows_of(text):
    return list(kernels("cpu", seconds=0.01, cases=[KernelCase.of(text)]))


@pytest.mark.parametrize("name", kernel_speed.OPERATIONS)
def test_every_operation_in_three_modes(name):
    rows = rows_of(f"{name}:2,70,32")
    assert [row["mode"] for row in rows] == ["inference", "forward", "backward"]
    assert {row["shape"] for row in rows} == {"(2, 70, 32)"}
    assert all(float(row["ms_p50"]) > 0 for row in rows)


@pytest.mark.parametrize("name", kernel_speed.OPERATIONS)
def test_a_wrong_operation_is_not_timed(monkeypatch, name):
    operation = kernel_speed.OPERATIONS[name]

    def wrong(run):
        def call(*given, backend="auto", **more):
            found = run(*given, backend=backend, **more)
            factor = 1 if backend == "reference" else 1.01
            return (found[0] * factor, *found[1:]) if isinstance(found, tuple) else found * factor

        return call

    if operation.layer:
        plain = torch.nn.Linear(32, 32)
        monkeypatch.setattr(plain, "forward", lambda x: x * (1 if kernel_speed.ops.calls._plain else 1.01))
        changed = operation._replace(ours=lambda channels, device: plain)
    else:
        changed = operation._replace(ours=wrong(operation.ours))
    monkeypatch.setitem(kernel_speed.OPERATIONS, name, changed)
    with pytest.raises(RuntimeError, match=r"wrong by 1\.0e-02, not timed"):
        rows_of(f"{name}:1,70,32")


def test_limits_are_those_of_the_reference():
    """Milliseconds on an H200, reckoned by hand: 4.25 TB/s, 16 special functions a clock and multiprocessor at 1.98 GHz."""
    rates = 4.25e12, 16 * 132 * 1.98e9
    for name, shape, limits in (
        ("scan", (8, 8192, 2048), ((0.253, 0.642), (0.379, 0.642), (0.568, 0.706))),
        ("scan-complex", (8, 8192, 2048), ((0.253, 1.67), (0.505, 1.67), (0.695, 1.73))),
        ("conv", (8, 8192, 2048), ((0.126, None), (0.126, None), (0.189, None))),
    ):
        u = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        for mode, (copied, functions) in zip(kernel_speed.MODES, limits, strict=True):
            row = kernel_speed._limits(kernel_speed.OPERATIONS[name], {"u": u}, mode, rates)
            assert float(row["limit_ms"]) == pytest.approx(copied, rel=0.01)
            found = row["special_limit_ms"]
            assert found == "" if functions is None else float(found) == pytest.approx(functions, rel=0.01)


def test_short_calls_on_a_gpu_are_timed_by_the_clock_and_on_the_host(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    timing = kernel_speed.Timing([0.4], [0.4])
    calls = [lambda: None, lambda: sum(range(20_000))]
    row = kernel_speed._by_the_host(calls, timing, "cuda")
    assert float(row["peer_call_us"]) > float(row["call_us"]) >= 0
    assert float(row["peer_host_us"]) > float(row["host_us"]) >= 0
    assert float(row["call_ratio"]) > 1
    for long, device in ((kernel_speed.Timing([0.6], None), "cuda"), (timing, "cpu")):
        assert set(kernel_speed._by_the_host(calls, long, device).values()) == {""}


def test_inputs_of_which_no_state_fades():
    slow = kernel_speed.scan_inputs(1, 8, 4, torch.float32, "cpu", slow=True)
    step = torch.nn.functional.softplus(slow["dt"] + slow["dt_bias"])
    torch.testing.assert_close(step, torch.full_like(step, 1e-3), rtol=1e-4, atol=0)
    assert slow["A"].unique().tolist() == [-1]


@pytest.mark.parametrize("kind", ["real", "complex", "real-lti", "complex-lti"])
def test_the_peers_layout(kind):
    ours = kernel_speed.scan_inputs(2, 6, 4, torch.float32, "cpu", kind=kind)
    theirs = peer.peer_layout(ours)
    assert {theirs[name].shape for name in ("u", "dt", "z")} == {(2, 4, 6)}
    if kind == "complex":
        assert torch.equal(torch.view_as_complex(theirs["B"].view(2, 16, 6, 2)), torch.view_as_complex(ours["B"]).mT)
    elif kind == "complex-lti":
        assert torch.equal(torch.view_as_real(theirs["C"]), ours["C"])
    else:
        assert torch.equal(theirs["C"], ours["C"] if "lti" in kind else ours["C"].mT)
    if "lti" in kind:
        assert torch.equal(theirs["dt"][1, :, 3], ours["dt"])


def test_train():
    (row,) = train("cpu", seconds=0.01, cases=[TrainCase.of("1x8:2,16,8")])
    assert row["shape"] == "1x8, (2, 16), streamed by 8"
    assert math.isclose(float(row["mtokens_per_s"]), 32 / float(row["ms_p50"]) / 1e3, rel_tol=0.01)
    assert 0 < float(row["streaming_limit"]) < 1
    assert not row["recorded"]


def test_a_model_whose_state_grows_is_trained_whole():
    (row,) = train("cpu", seconds=0.01, cases=[TrainCase.of("1x8+transformer:2,16")])
    assert float(row["ms_p50"]) > 0
    with pytest.raises(InputError, match="1x8\\+transformer: its state grows .*; leave out CHUNK"):
        list(train("cpu", seconds=0.01, cases=[TrainCase.of("1x8+transformer:2,16,8")]))


@pytest.mark.parametrize("chunk", [3, 32])
def test_recorded_chunks_leave_nothing_out(chunk):
    case = TrainCase.of(f"1x8:2,16,{chunk}")
    assert list(train("cpu", seconds=0.01, cases=[case]))
    with pytest.raises(InputError, match="recorded chunks have one length; choose one that divides 16"):
        list(train("cpu", seconds=0.01, cases=[case], graph=True))


def test_models_that_are_not_measured():
    for name, message in (
        ("16-256", "16-256: neither LAYERSxWIDTH"),
        ("dna/tiny", "dna/tiny: its symbols are not 256 levels"),
        ("1x8+nothing", "1x8\\+nothing: there is no 'nothing'"),
        ("1x9999999999", "1x9999999999: Input should be less"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            make_model(name)


def test_steps_beside_a_peer(mamba_ssm, monkeypatch):
    monkeypatch.setattr(train_speed, "has_peer", lambda device: True)
    for graph in (False, True):
        named = [
            "1x8:1,16",
            "1x8:2,16,8",
            "1x8+mamba-complex:1,16",
            "audio/youtubemix:1,256",
            "audio/youtubemix+mamba:1,256",
        ]
        rows = list(train("cpu", seconds=0.01, cases=map(TrainCase.of, named), graph=graph))
        # mamba_ssm's layer has no complex parameters, and no state to stream with.
        assert [bool(row["ratio"]) for row in rows] == [True, False, False, False, True]
        assert [row["recorded"] for row in rows] == [graph] * 5
        assert rows[0]["peer"] == "mamba_ssm 0.0"
    (row,) = train("cpu", seconds=0.01, cases=[TrainCase.of("1x8:1,16")], peer="mamba2")
    assert row["peer_layer"] == "mamba2"
    made = sys.modules["mamba_ssm.models.config_mamba"].MambaConfig.made
    assert made[-1] == train_speed.PEERS["mamba2"]
    (row,) = train("cpu", seconds=0.01, cases=[TrainCase.of("1x32+mamba2:1,16")])
    assert row["peer_layer"] == "mamba2"
    assert made[-1] == train_speed.PEERS["mamba2"] | {"ngroups": 1, "expand": 2}


def test_a_recorded_peer_has_the_loss_of_its_logits(mamba_ssm):
    model = peer.peer_model(1, 8)
    tokens = torch.randint(0, 12, (2, 9))
    found = peer.PeerLoss(model)(tokens, targets=tokens.roll(-1, 1), logits="none")
    logits = model(tokens).logits
    exact = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten())
    torch.testing.assert_close(found.loss_sum / found.count, exact)


def test_the_peer_of_a_unet_is_the_same_network(mamba_ssm):
    ours, _ = make_model("audio/youtubemix+mamba")
    theirs = peer.with_peer_mixers(make_model("audio/youtubemix+mamba")[0])
    assert {type(m.mixer) for m in theirs.modules() if hasattr(m, "mixer")} == {peer.PeerMixer}
    weights = {name.replace("mixer.mamba.layer.", "mixer."): p for name, p in theirs.named_parameters()}
    assert {name: p.shape for name, p in weights.items()} == {name: p.shape for name, p in ours.named_parameters()}
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            weights[name].copy_(parameter)
    tokens = torch.randint(0, 256, (1, 256))
    losses = []
    for model in (ours, theirs):
        loss, _, _ = streamed_loss(model, tokens, tokens.roll(-1, 1), chunk=256)
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(weights[name].grad, parameter.grad, rtol=1e-5, atol=1e-4)


def test_cases_as_they_are_written():
    assert KernelCase.of("scan-complex:16,16384,128") == KernelCase("scan-complex", 16, 16384, 128)
    assert TrainCase.of("audio/sc09@small:16,16000") == TrainCase("audio/sc09@small", 16, 16000)
    assert TrainCase.of("16x256+s4d:1,64,32") == TrainCase("16x256+s4d", 1, 64, 32)
    assert SampleCase.of("12x128:64,fp32") == SampleCase("12x128", 64, "fp32")
    assert SampleCase.of("audio/tiny:2").batch == 2
    for case, wrong in (
        (KernelCase, ["scan", "scan:1,2", "scan:1,2,0", "scan:1,2,x", "sort:1,2,3"]),
        (TrainCase, ["16x256", "16x256:1", "16x256:1,0", ":1,2", "16x256:1,2,3,4"]),
        (SampleCase, ["12x128", "12x128:0", "12x128:1,fp8", ":1"]),
    ):
        for text in wrong:
            with pytest.raises(InputError, match=f"--case {text}: not "):
                case.of(text)
