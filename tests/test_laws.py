"""The laws of `layers/contract.py`, on every mixer of the registry and everything else that keeps a state.

A new mixer joins by being registered, variants of settings by one line in SUBJECTS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mamba_bio_audio.layers.config import AttentionConfig, SsmConfig
from mamba_bio_audio.layers.contract import MixerConfig, find_mixer, mixers
from mamba_bio_audio.layers.mamba import MambaLayer
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.unet import UNetModel
from mamba_bio_audio.models.unet_config import UNetConfig

WIDTH, VOCAB, LENGTH, BATCH = 16, 12, 41, 3


@dataclass
class Subject:
    """Something with a state.

    `call(module, x, state, reset)` gives (y, state) with y (B, L, ...) floating point. Resets may stand only at
    multiples of `reset_every`.
    """

    make: Callable[[], nn.Module]
    call: Callable
    inputs: Callable[[torch.Generator, torch.dtype], Tensor]
    reset_every: int = 1


def call_layer(module, x, state, reset):
    return module(x, state, reset=reset)


def call_model(module, x, state, reset):
    out = module(x, state, reset=reset)
    return out.logits, out.state


def layer(**ssm) -> Subject:
    config = SsmConfig(**({"complex": False, "selective": True, "d_state": 5} | ssm))
    return Subject(
        lambda: MambaLayer(WIDTH, config),
        call_layer,
        lambda generator, dtype: torch.randn(BATCH, LENGTH, WIDTH, generator=generator, dtype=dtype),
    )


def attention(**options) -> Subject:
    config = AttentionConfig(heads=2, **options)
    return Subject(lambda: config.layers(WIDTH, 1)[0], call_layer, layer().inputs)


def one_layer(config: MixerConfig, at: int) -> nn.Module:
    return config.layers(WIDTH, 3 * config.residuals)[at]


def one_mlp(kind: str) -> Subject:
    config = AttentionConfig(mlp=kind, mlp_bias=True)
    return Subject(lambda: config.layers(WIDTH, 1)[1], call_layer, layer().inputs)


def registered_layers() -> dict[str, Subject]:
    """Each layer of a block of each mixer, with its default settings."""
    found = {}
    for name, (of, preset) in mixers().items():
        config = of(**preset)
        for at in range(config.residuals):
            make = partial(one_layer, config, at)
            found[f"{name}-layer-{at}"] = Subject(make, call_layer, layer().inputs)
    return found


def model(mixer: str = "mamba", recompute: str = "none", more: dict | None = None, **ssm) -> Subject:
    settings = {"ssm": SsmConfig(d_state=4, **ssm)} if find_mixer(mixer).config is SsmConfig else {}
    settings |= more or {}

    def make() -> nn.Module:
        built = build_model(ModelConfig(d_model=WIDTH, num_layers=3, vocab_size=VOCAB, mixer=mixer, **settings))
        built.recompute = recompute
        # At the initial scale of 0.02 the logits would hide errors.
        nn.init.normal_(built.embedding.weight)
        return built

    return Subject(make, call_model, lambda generator, _: torch.randint(VOCAB, (BATCH, LENGTH), generator=generator))


CLASSES = {"inputs": VOCAB + 1, "classes": ("a", "b")}


def by_class(config: ModelConfig | UNetConfig) -> Subject:
    """A model with a start token and classes, whose ids are those of all of them."""

    def make() -> nn.Module:
        built = build_model(config)
        for parameter in built.embedding.parameters():
            nn.init.normal_(parameter)
        return built

    most = 3 * (VOCAB + 1)
    return Subject(
        make,
        call_model,
        lambda generator, _: torch.randint(most, (BATCH, LENGTH), generator=generator),
        getattr(config, "period", 1),
    )


def unet(mixer: str = "mamba", recompute: str = "none", pools: tuple[int, ...] = (2, 3), **options) -> Subject:
    config = UNetConfig(
        d_model=8,
        num_layers=2,
        pools=pools,
        vocab_size=VOCAB,
        mixer=mixer,
        **({"ssm": SsmConfig(d_state=4)} if find_mixer(mixer).config is SsmConfig else {}),
        **options,
    )

    def make() -> nn.Module:
        built = UNetModel(config)
        built.recompute = recompute
        nn.init.normal_(built.embedding.weight)
        return built

    return Subject(
        make,
        call_model,
        lambda generator, _: torch.randint(VOCAB, (BATCH, LENGTH), generator=generator),
        config.period,
    )


def classifier(kind: str, backbone: Subject, **head) -> Subject:
    def make() -> nn.Module:
        built = Classifier(backbone.make(), HeadConfig(pool=kind, classes=("a", "b", "c"), **head))
        nn.init.normal_(built.head.weight)
        return built

    return Subject(make, call_model, backbone.inputs, backbone.reset_every)


PATTERN = {"pattern": "mamba,transformer,s4d"}
WINDOW = {"transformer": {"window": 7, "heads": 2}}
TRANSFORMER = [{}, {}, {"mixer": "transformer", "options": {"heads": 2}}, {}, {}]
SUBJECTS = {
    **registered_layers(),
    **{f"isotropic-{name}": model(name) for name in mixers()},
    "mamba-exact-zoh": layer(exact_zoh=True),
    "mamba-precise": layer(precise=True),
    "mamba-wide-conv": layer(d_conv=7),
    "selective-bc": layer(selective="bc"),
    "selective-b": layer(selective="b"),
    "selective-c": layer(selective="c", exact_zoh=True),
    "selective-dt-complex": layer(selective="dt", complex=True),
    "attention": attention(bias=True),
    "attention-window": attention(window=5),
    "attention-window-longer-than-pieces": attention(window=31),
    "attention-window-longer-than-all": attention(window=64),
    "mlp-gelu": one_mlp("gelu"),
    "isotropic-mamba-complex-pi": model("mamba-complex", complex_init="pi n"),
    "isotropic-mamba2-groups": model(
        "mamba2", more={"options": {"head_dim": 4, "groups": 2, "d_state": 6, "dt_limit": (0.01, 1.0)}}
    ),
    "isotropic-recompute": model("mamba", recompute="layer"),
    "isotropic-pattern": model(more=PATTERN),
    "isotropic-pattern-constant-recompute": model(recompute="layer", more=PATTERN | {"options": WINDOW}),
    "isotropic-by-class": by_class(ModelConfig(d_model=WIDTH, num_layers=2, vocab_size=VOCAB, **CLASSES)),
    "unet": unet(),
    "unet-by-class": by_class(UNetConfig(d_model=8, num_layers=1, pools=(2, 3), vocab_size=VOCAB, **CLASSES)),
    "unet-complex-one-pool": unet("mamba-complex", pools=(5,)),
    "unet-s4d-three-pools": unet("s4d", pools=(2, 2, 2)),
    "unet-sashimi": unet("s4d-real", pools=(3, 2), down_blocks=False),
    "unet-attention": unet(pools=(2, 2), stages=TRANSFORMER),
    "unet-attention-sashimi-recompute": unet("s4d", "layer", down_blocks=False, stages=TRANSFORMER[2:]),
    "classifier-mean": classifier("mean", model("mamba")),
    "classifier-max": classifier("max", model("mamba")),
    "classifier-last": classifier("last", model("mamba")),
    "classifier-unet": classifier("mean", unet()),
    "unet-window": unet(mixer="transformer", options={"window": 4, "heads": 2}),
    "classifier-unet-attention": classifier("mean", unet(stages=TRANSFORMER)),
    "unet-mixed-recompute": unet(recompute="layer", stages=[{"mixer": "s4d"}] * 2 + [{}] + [{"mixer": "s4d"}] * 2),
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.fixture(params=SUBJECTS)
def subject(request) -> Subject:
    return SUBJECTS[request.param]


@pytest.fixture(params=TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request) -> torch.dtype:
    return request.param


def build(subject: Subject, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return subject.make().to(dtype), subject.inputs(torch.Generator().manual_seed(1), dtype)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    scale = expected.abs().max().clamp(min=1e-30)
    error = ((actual - expected).abs().max() / scale).item()
    assert error <= tolerance, f"error {error:.2e} of the largest value, allowed {tolerance:.0e}"


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    values = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return {name: value for (name, _), value in zip(named, values, strict=True) if value is not None}


def leaves(state) -> list[Tensor]:
    # What is empty has no largest value.
    return [leaf for leaf in torch.utils._pytree.tree_leaves(state) if isinstance(leaf, Tensor) and leaf.numel()]


def can_reset(module: nn.Module) -> bool:
    return all(getattr(part, "resets", True) for part in module.modules())


def refused(subject: Subject, module: nn.Module, x: Tensor, *, state: bool = False, reset: bool = False) -> bool:
    """Whether a law says nothing about a layer that cannot carry a state or reset it: such a layer must raise."""
    cannot_carry = state and module.streaming == "none"
    if cannot_carry:
        with pytest.raises(ValueError, match="state"):
            subject.call(module, x, module.init_state(BATCH, "cpu", torch.float32), None)
    cannot_reset = reset and not can_reset(module)
    if cannot_reset:
        with pytest.raises(ValueError, match="reset"):
            subject.call(module, x, None, resets(True, subject.reset_every))
    return cannot_carry or cannot_reset


def resets(on: bool, every: int = 1) -> Tensor | None:
    if not on:
        return None
    reset = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    for row, position in ((0, 0), (0, 17), (1, 16), (1, 18), (2, 40)):
        reset[row, position // every * every] = True
    return reset


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pieces", [(17, 24), (1, 2, 30, 8)])
def test_split(subject, dtype, pieces, packed):
    """Pieces with the state carried equal the whole: values, final states and all gradients, through the states."""
    module, x = build(subject, dtype)
    if refused(subject, module, x, state=True, reset=packed):
        return
    reset = resets(packed, subject.reset_every)
    whole, whole_state = subject.call(module, x, None, reset)
    weight = torch.randn(whole.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    state_weights = [
        torch.randn(leaf.shape, generator=torch.Generator().manual_seed(3), dtype=leaf.dtype)
        for leaf in leaves(whole_state)
    ]

    def loss(y, state):
        return (y * weight).sum() + sum((s * w).sum() for s, w in zip(leaves(state), state_weights, strict=True))

    parts, state = [], None
    for piece, reset_piece in zip(
        x.split(pieces, 1), [None] * len(pieces) if reset is None else reset.split(pieces, 1), strict=True
    ):
        y, state = subject.call(module, piece, state, reset_piece)
        parts.append(y)
    joined = torch.cat(parts, 1)
    tolerance = TOLERANCE[dtype]
    assert_close(joined, whole, tolerance)
    for actual, expected in zip(leaves(state), leaves(whole_state), strict=True):
        assert_close(actual, expected, tolerance)
    expected = gradients(module, loss(whole, whole_state))
    actual = gradients(module, loss(joined, state))
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close(actual[name], expected[name], tolerance * 10)


def test_step(subject, dtype):
    """L = 1 calls from an explicit zero state equal one call, also without gradients, as generation runs them."""
    module, x = build(subject, dtype)
    if refused(subject, module, x, state=True):
        return
    whole, whole_state = subject.call(module, x, None, None)
    state, parts = module.init_state(BATCH, "cpu", dtype), []
    with torch.inference_mode():
        for t in range(LENGTH):
            y, state = subject.call(module, x[:, t : t + 1], state, None)
            parts.append(y)
    assert_close(torch.cat(parts, 1), whole, TOLERANCE[dtype])
    for actual, expected in zip(leaves(state), leaves(whole_state), strict=True):
        assert_close(actual, expected, TOLERANCE[dtype])


def test_causal(subject, dtype):
    """Outputs up to t do not change with inputs after t; later ones do."""
    module, x = build(subject, dtype)
    changed = x.clone()
    changed[:, 20:] = x[:, 20:].flip(0, 1)
    before, _ = subject.call(module, x, None, None)
    after, _ = subject.call(module, changed, None, None)
    assert_close(after[:, :20], before[:, :20], TOLERANCE[dtype])
    assert (after[:, 20:] - before[:, 20:]).abs().max() > 1e-3


def test_independent_rows(subject, dtype):
    """A row alone equals the row in a batch."""
    module, x = build(subject, dtype)
    reset = resets(can_reset(module), subject.reset_every)
    together, _ = subject.call(module, x, None, reset)
    for row in range(BATCH):
        alone, _ = subject.call(module, x[row : row + 1], None, None if reset is None else reset[row : row + 1])
        assert_close(alone, together[row : row + 1], TOLERANCE[dtype])


def test_packed_equals_separate(subject, dtype):
    """A reset makes the rest of the row a sequence of its own."""
    module, x = build(subject, dtype)
    if refused(subject, module, x, reset=True):
        return
    reset = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    start = 19 // subject.reset_every * subject.reset_every
    reset[:, start] = True
    packed, packed_state = subject.call(module, x, None, reset)
    separate, separate_state = subject.call(module, x[:, start:], None, None)
    assert_close(packed[:, start:], separate, TOLERANCE[dtype])
    if module.streaming == "constant":
        for actual, expected in zip(leaves(packed_state), leaves(separate_state), strict=True):
            assert_close(actual, expected, TOLERANCE[dtype])
        return
    # A growing state still holds what came before the reset, unread: it shows in what follows.
    again = x[:, : 2 * subject.reset_every + 1]
    assert_close(
        subject.call(module, again, packed_state, None)[0],
        subject.call(module, again, separate_state, None)[0],
        TOLERANCE[dtype],
    )


def test_size_of_the_state(subject):
    """What calls itself constant keeps a state of the same size at any length; what grows says so."""
    module, x = build(subject, torch.float32)
    if refused(subject, module, x, state=True):
        return
    _, short = subject.call(module, x[:, :2], None, None)
    _, long = subject.call(module, x, None, None)
    if module.streaming == "growing":
        assert [leaf.shape for leaf in leaves(short)] != [leaf.shape for leaf in leaves(long)]
        return
    assert [leaf.shape for leaf in leaves(short)] == [leaf.shape for leaf in leaves(long)]
    assert [leaf.shape for leaf in leaves(short)] == [
        leaf.shape for leaf in leaves(module.init_state(BATCH, "cpu", torch.float32))
    ]
