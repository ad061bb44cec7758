"""What layers keep for their backward: chosen by memory, and without any effect on what is computed."""

import pytest
import torch

from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.layers.mamba import MambaLayer
from mamba_bio_audio.models import isotropic
from mamba_bio_audio.models import kept as module
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.kept import CHOICES, Kept, choose, mamba_layers, needed
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.ops.keeping import mixers_keep
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.probe import choose_chunk

GIB = 2**30


def layers(width, number):
    return [(MambaLayer(width, SsmConfig(complex=False, selective=True)), 1.0) for _ in range(number)]


@pytest.mark.parametrize(
    ("width", "number", "positions", "kept", "gib"),
    [
        (256, 16, 2**20, Kept(16, True), 62.77),
        (256, 16, 2**20, Kept(32, True), 46.83),
        (256, 16, 2**20, Kept(64), 31.96),
        (128, 12, 2**20, Kept(32, True), 18.45),
        (256, 16, 2**17, Kept(16, True, True), 16.56),
        (256, 16, 2**17, Kept(16, True), 8.93),
        (256, 16, 2**17, Kept(32, True), 6.98),
        (128, 12, 2**18, Kept(16, True), 7.21),
        (512, 24, 2**16, Kept(16, True), 12.64),
        (512, 24, 2**16, Kept(16, True, True), 24.26),
        (768, 24, 2**14, Kept(16, True), 5.23),
    ],
)
def test_what_a_step_needs_is_about_what_it_took(width, number, positions, kept, gib):
    """In bf16 on an H200 and an H100; weights and their gradients were part of it."""
    found = layers(width, number)
    weights = 8 * sum(p.numel() for layer, _ in found for p in layer.parameters())
    assert (needed(found, positions, 2, kept) + weights) / GIB == pytest.approx(gib, rel=0.06)


def test_memory_decides():
    given = layers(256, 16), 2**20, 2
    sizes = [needed(*given, kept) / GIB for kept in CHOICES]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 32
    for kept, size in zip(CHOICES, sizes, strict=True):
        assert choose(*given, free=int(size * GIB / 0.89)) is kept
        assert choose(*given, free=int(size * GIB / 0.91)) is not kept or kept is CHOICES[-1]
    assert choose(*given, free=0) is CHOICES[-1]


def test_only_published_layers_have_a_choice():
    models = [
        build_model(ModelConfig(d_model=8, num_layers=2, vocab_size=12, mixer=mixer))
        for mixer in ("mamba", "mamba-complex", "s4d", "transformer")
    ]
    assert [len(mamba_layers((block, 1.0) for block in model.layers)) for model in models] == [2, 0, 0, 0]


@pytest.fixture
def model():
    return build_model(ModelConfig(d_model=8, num_layers=3, vocab_size=12), seed=0)


def gradients(model, kept, tokens, state=None):
    model.keeper.fixed = kept
    out = model(tokens, state, targets=tokens.roll(-1, 1), logits="none")
    return torch.autograd.grad(out.loss_sum, list(model.parameters()))


@pytest.mark.parametrize("narrow", [False, True])
def test_norms_are_made_again_bit_for_bit(model, monkeypatch, narrow):
    tokens = torch.randint(7, 11, (2, 13), generator=torch.Generator().manual_seed(0))
    made = []
    again = isotropic.norm_of_stream
    monkeypatch.setattr(isotropic, "norm_of_stream", lambda *given: made.append(again(*given)) or made[-1])
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        expected = gradients(model, Kept(32, True), tokens)
        assert not made
        found = gradients(model, Kept(32, False), tokens)
    assert all(map(torch.equal, found, expected))
    # In bf16 the first norm's output is fp32, and its narrowed copy is kept.
    assert [t.dtype for t in made] == [torch.bfloat16] * 2 if narrow else [torch.float32] * 3


def test_nothing_is_chosen_without_a_gpu_or_gradients(model, monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(module, "free_on", lambda device: 2**40)
    assert model.choice(100, torch.device("cpu")) is None
    with torch.no_grad():
        assert model.choice(100, gpu) is None
    assert model.choice(100, gpu) == CHOICES[0]
    # Once for each size, whatever is free later.
    monkeypatch.setattr(module, "free_on", lambda device: 0)
    assert model.choice(100, gpu) == CHOICES[0]
    assert model.choice(101, gpu) == CHOICES[-1]
    assert model.keeper.chosen == {(100, 4): CHOICES[0], (101, 4): CHOICES[-1]}
    model.keeper.fixed = CHOICES[1]
    assert model.choice(100, gpu) == CHOICES[1]
    assert str(CHOICES[0]) == "a state every 16 positions, outputs of norms, inputs of convolution and scan"
    assert str(CHOICES[-1]) == "a state every 64 positions"


def test_what_is_free_on_a_gpu_without_a_number(monkeypatch):
    """As dry runs name it. Some of PyTorch's functions take "cuda" alone, get_per_process_memory_fraction does not."""

    def of(value):
        return lambda device: value if device == 1 else pytest.fail(f"asked for {device!r}")

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for name, value in (
        ("mem_get_info", (60, 100)),
        ("memory_allocated", 20),
        ("memory_reserved", 30),
        ("get_per_process_memory_fraction", 0.5),
    ):
        monkeypatch.setattr(torch.cuda, name, of(value))
    assert module.free_on(torch.device("cuda")) == module.free_on(torch.device("cuda", 1)) == 30


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_longest_chunk_is_found_on_a_gpu():
    config = ModelConfig(d_model=64, num_layers=2, vocab_size=12, mixer="mamba")
    train = TrainConfig(length=2**24, tokens_per_step=2**24, stream_chunk="auto", steps=1, lr=1e-3)
    found = choose_chunk(config, train, "cuda")
    assert found is None or found >= 2**15


def test_coarse_tiers_count_by_their_share(monkeypatch):
    """Of a U-Net with pools of 4 and 2: every 4th and 8th position."""
    config = UNetConfig(d_model=8, num_layers=2, pools=(4, 2), expand=1, vocab_size=12, mixer="mamba")
    unet, found = build_model(config, seed=0), []
    monkeypatch.setattr(module, "choose", lambda layers, *given: found.append(layers) or CHOICES[0])
    monkeypatch.setattr(module, "free_on", lambda device: 0)
    assert unet.choice(64, torch.device("cuda", 0)) == CHOICES[0]
    shares = sorted(share for _, share in found[0])
    stages = {
        1.0: len(unet.down[0]) + len(unet.up[0]),
        0.25: len(unet.down[1]) + len(unet.up[1]),
        0.125: len(unet.centre),
    }
    assert shares == sorted(share for share, count in stages.items() for _ in range(count))


def test_a_unet_is_not_promised_what_it_does_not_do(monkeypatch):
    """Its blocks keep outputs of norms whatever is chosen, and so they count, and are told."""
    unet = build_model(UNetConfig(d_model=8, num_layers=2, pools=(4, 2), vocab_size=12, mixer="mamba"), seed=0)
    for positions, free in enumerate((round(1.1**power) for power in range(200)), 64):
        monkeypatch.setattr(module, "free_on", lambda device, free=free: free)
        assert unet.choice(positions, torch.device("cuda", 0)).norms
    assert [kept.steps for kept in dict.fromkeys(unet.keeper.chosen.values())][:3] == [64, 32, 16]


@pytest.mark.parametrize("name", ["language", "unet"])
def test_mixers_are_told(model, monkeypatch, name):
    """And only within the model's own layers."""
    from mamba_bio_audio.kernels.kept import MixerKeeps, mixer_keeps

    if name == "unet":
        model = build_model(UNetConfig(d_model=8, num_layers=1, pools=(2,), vocab_size=12, mixer="mamba"), seed=0)
    seen, forward = set(), MambaLayer.forward
    monkeypatch.setattr(
        MambaLayer, "forward", lambda self, *given, **more: seen.add(mixer_keeps()) or forward(self, *given, **more)
    )
    model.keeper.fixed = Kept(64, True, True)
    model(torch.randint(7, 11, (1, 8)))
    assert seen == {MixerKeeps(64, True)}
    assert mixer_keeps() == MixerKeeps()
    with mixers_keep(16, False):
        assert mixer_keeps() == MixerKeeps(16, False)
