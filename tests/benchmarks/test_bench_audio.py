"""The audio benchmark on a CPU, with a stand-in for the peer's layer."""

import pytest
import torch

from mamba_bio_audio.models.streamed import streamed_loss


def test_the_peer_is_the_same_network(script, mamba_ssm):
    bench = script("bench_audio")
    ours = bench.network("youtubemix-8192-paper", "mamba")
    peer = bench.peer_of(bench.network("youtubemix-8192-paper", "mamba"))
    assert peer.streaming == "constant"
    assert {type(m.mixer) for m in peer.modules() if hasattr(m, "mixer")} == {bench.PeerMixer}
    weights = {name.replace("mixer.mamba.layer.", "mixer."): p for name, p in peer.named_parameters()}
    assert {name: p.shape for name, p in weights.items()} == {name: p.shape for name, p in ours.named_parameters()}
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            weights[name].copy_(parameter)
    tokens = torch.randint(0, 256, (1, 256))
    for narrow in (False, True):
        losses = []
        for model in (ours, peer):
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                loss, _, _ = streamed_loss(model, tokens, tokens.roll(-1, 1), chunk=256)
            loss.backward()
            losses.append(float(loss.detach()))
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(weights[name].grad, parameter.grad, rtol=1e-5, atol=1e-4)


def test_training_rows(script, mamba_ssm, monkeypatch):
    bench = script("bench_audio")
    monkeypatch.setattr(bench, "has_peer", lambda device: True)
    cases = (
        ("youtubemix-8192-paper", "mamba", 1, 256, None),
        ("youtubemix-8192-paper", None, 1, 256, None),
        ("youtubemix-8192-paper", "mamba", 1, 512, 256),
    )
    real, paper, streamed = bench.train(cases, "cpu", 3)
    assert float(real["ms"]) > 0
    assert float(real["peer_over_ours"]) > 0
    assert real["peer"] == "mamba_ssm 0.0"
    # mamba_ssm's layer has no complex parameters, and no state to stream with.
    assert paper["peer_ms"] == streamed["peer_ms"] == ""
    assert streamed["chunk"] == 256
    real, _, streamed = bench.train(cases, "cpu", 3, graph=True)
    assert real["graph"]
    assert not streamed["graph"]
    assert float(real["peer_over_ours"]) > 0


def test_the_rows_of_the_acceptance_come_first(script):
    bench = script("bench_audio")
    assert bench.TRAIN[0][0] == "sc09-small-paper"
    assert [case[1:4] for case in bench.TRAIN[1:4]] == [("mamba", 64, 2**13), ("mamba", 1, 2**19), (None, 1, 958_464)]
    for recipe, mixer, _, length, chunk in bench.TRAIN:
        config = bench.network(recipe, mixer).model_config
        assert not (chunk or 0) % config.period
        assert chunk is None or chunk < length
