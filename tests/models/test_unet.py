"""The audio U-Net against published sizes, the description of the network, and itself at every phase of its pools."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.generate import Place, generate, generate_blocks
from mamba_bio_audio.models.streamed import streamed_loss
from mamba_bio_audio.models.unet import UNetModel
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.training.optim import parameter_groups

VOCAB = 16
TRANSFORMER = [{}, {}, {"mixer": "transformer", "options": {"heads": 2}}, {}, {}]


def make(dtype=torch.float64, recompute="none", **changes) -> UNetModel:
    config = {"d_model": 8, "num_layers": 2, "pools": (2, 3), "vocab_size": VOCAB, "ssm": {"d_state": 4}} | changes
    torch.manual_seed(0)
    model = UNetModel(UNetConfig(**config)).to(dtype)
    nn.init.normal_(model.embedding.weight)
    nn.init.normal_(model.lm_head.bias)
    model.recompute = recompute
    return model


def symbols(length, batch=2, seed=1):
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def same(actual, expected, tolerance=1e-10):
    assert actual.shape == expected.shape
    return not actual.numel() or bool(
        (actual - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-30)
    )


def leaves(state):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor)]


def same_state(actual, expected, tolerance=1e-10):
    assert actual.phase == expected.phase
    return all(same(a, e, tolerance) for a, e in zip(leaves(actual), leaves(expected), strict=True))


@pytest.mark.parametrize(
    ("d_model", "num_layers", "pool", "mixer", "published", "exact"),
    [
        (64, 3, 16, "mamba", "3.56M", 3_557_184),
        (64, 3, 16, "mamba-complex", "3.74M", 3_741_504),
        (64, 8, 16, "mamba", "7.24M", 7_240_384),
        (64, 8, 4, "mamba", "6.26M", 6_255_040),
        (96, 15, 4, "mamba", "24.85M", 24_850_912),
    ],
)
def test_parameter_counts_are_the_published_ones(d_model, num_layers, pool, mixer, published, exact):
    """Paper-facts 5.1 to 5.3, [derived] there to three digits; they need the biases of pools and head."""
    config = UNetConfig(d_model=d_model, num_layers=num_layers, pools=(pool, pool), mixer=mixer, vocab_size=256)
    with torch.device("meta"):
        count = UNetModel(config).num_parameters()
    assert f"{count / 1e6:.2f}M" == published
    assert count == exact


def test_the_paper_has_40_blocks_of_three_widths():
    with torch.device("meta"):
        model = UNetModel(UNetConfig(d_model=64, num_layers=8, pools=(4, 4), vocab_size=256))
    widths = [name.split(".")[0] for name, module in model.named_modules() if name.endswith(".mixer")]
    assert {part: widths.count(part) for part in set(widths)} == {"down": 16, "centre": 8, "up": 16}
    assert [model.up[i][0].mixer.d_model for i in (0, 1)] == [64, 128]
    assert model.centre[0].mixer.d_model == 256


def as_described(model: UNetModel, tokens):
    """Paper-facts 8.2, item by item, for lengths that are multiples of the pools: one list of skips, no state."""
    config = model.model_config

    def residual_block(block, x):
        return x + block.mixer(F.rms_norm(x, x.shape[-1:], block.norm.weight, config.norm_eps))[0]

    def down_pool(pool, x):
        batch, length, width = x.shape
        return pool.linear(x.reshape(batch, length // pool.pool, pool.pool * width))

    def up_pool(pool, x):
        x = pool.linear(x)
        x = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        return x.reshape(len(x), x.shape[1] * pool.pool, -1)

    x = model.embedding(tokens)
    skips = [x]
    for blocks, pool in zip(model.down, model.down_pools, strict=True):
        for block in blocks:
            x = residual_block(block, x)
            skips.append(x)
        x = down_pool(pool, x)
        skips.append(x)
    for block in model.centre:
        x = residual_block(block, x)
    x = x + skips.pop()
    for blocks, pool in zip(reversed(model.up), reversed(model.up_pools), strict=True):
        x = up_pool(pool, x) + skips.pop()
        if not config.down_blocks:
            skips.append(x)
        for block in blocks:
            x = residual_block(block, x)
            if config.down_blocks:
                x = x + skips.pop()
        if not config.down_blocks:
            x = x + skips.pop()
    assert not skips
    return model.lm_head(F.rms_norm(x, x.shape[-1:], model.norm_f.weight, config.norm_eps))


@pytest.mark.parametrize("down_blocks", [True, False])
@pytest.mark.parametrize("pools", [(2, 3), (4,), (2, 2, 3)])
def test_is_the_network_described(pools, down_blocks):
    model = make(pools=pools, down_blocks=down_blocks)
    tokens = symbols(36)
    assert same(model(tokens).logits, as_described(model, tokens))


@pytest.mark.parametrize("pool", [2, 3, 4])
def test_prefill_of_every_length_then_steps(pool):
    """Prompts of 1 to 3 p^2 samples in one call, then single steps to the end."""
    check_prefill(make(pools=(pool, pool), num_layers=1), pool)


def test_prefill_with_attention_at_the_centre():
    check_prefill(make(pools=(2, 2), num_layers=1, stages=TRANSFORMER), 2)


def check_prefill(model, pool):
    period = pool * pool
    tokens = symbols(4 * period, 1)
    with torch.no_grad():
        whole = model(tokens)
        for prompt in range(1, 3 * period + 1):
            out = model(tokens[:, :prompt])
            assert same(out.logits, whole.logits[:, :prompt])
            assert out.state.phase == prompt % period
            for t in range(prompt, min(prompt + period + 1, 4 * period)):
                out = model(tokens[:, t : t + 1], out.state)
                assert same(out.logits, whole.logits[:, t : t + 1]), f"prompt of {prompt}, step {t}"
            rest = model(tokens[:, t + 1 :], out.state) if t + 1 < 4 * period else out
            assert same_state(rest.state, whole.state)


@pytest.mark.parametrize("down_blocks", [True, False])
def test_spans_of_every_length_from_every_phase(down_blocks):
    model = make(num_layers=1, down_blocks=down_blocks)
    tokens = symbols(26)
    with torch.no_grad():
        whole = model(tokens).logits
        for start in range(1, 13):
            state = model(tokens[:, :start]).state
            for length in range(1, 14):
                end = start + length
                out = model(tokens[:, start:end], state)
                assert same(out.logits, whole[:, start:end]), f"{length} from {start}"
                assert same_state(out.state, model(tokens[:, :end]).state), f"{length} from {start}"


def test_coarse_tiers_run_only_when_a_frame_completes():
    model = make()
    calls = []
    for name, block in (("fine", model.down[0][0]), ("middle", model.up[1][1]), ("centre", model.centre[0])):
        block.register_forward_hook(lambda *_, name=name: calls.append(name))
    state = None
    for t in range(12):
        calls.clear()
        state = model(symbols(1), state).state
        expected = ["fine"] + ["centre"] * ((t + 1) % 6 == 0) + ["middle"] * ((t + 1) % 2 == 0)
        assert calls == expected, t


def test_a_step_changes_nothing_it_was_given():
    model = make()
    state = model(symbols(5)).state
    before = [leaf.clone() for leaf in leaves(state)]
    model(symbols(1), state)
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), before, strict=True))


def test_loss_is_that_of_the_logits():
    """The head's bias is part of the loss, which never sees full logits."""
    model = make()
    tokens, targets = symbols(17), symbols(17, seed=2)
    targets[0, 3:9] = -100
    out = model(tokens, targets=targets)
    expected = F.cross_entropy(out.logits.flatten(0, 1), targets.flatten(), reduction="sum")
    assert out.count == 28
    assert torch.allclose(out.loss_sum, expected, rtol=1e-12)
    assert torch.autograd.grad(out.loss_sum, model.lm_head.bias)[0].abs().max() > 0
    assert model(tokens, targets=targets, logits="none").logits is None
    assert same(model(tokens, logits="last").logits, out.logits[:, -1:])


@pytest.mark.parametrize("recompute", ["none", "layer"])
@pytest.mark.parametrize("chunk", [6, 12, 18, 48, 1, 4, 5, 7, 13, 31, 49, 100], ids=lambda c: f"T={c}")
def test_streamed_training_equals_the_whole(chunk, recompute):
    """Chunks at multiples of the pools and at every other length."""
    model = make(recompute=recompute)
    tokens, targets = symbols(49), symbols(49, seed=2)
    targets[1, 20:30] = -100
    whole = model(tokens, targets=targets, logits="none")
    expected = torch.autograd.grad(whole.loss_sum * 0.37, list(model.parameters()))
    loss, count, state = streamed_loss(model, tokens, targets, chunk=chunk)
    assert count == whole.count
    assert torch.allclose(loss, whole.loss_sum, rtol=1e-12)
    assert same_state(state, whole.state)
    actual = torch.autograd.grad(loss * 0.37, list(model.parameters()))
    for (name, _), a, e in zip(model.named_parameters(), actual, expected, strict=True):
        assert same(a, e), name


@pytest.mark.parametrize("chunk", [5, 6, 13])
def test_streamed_training_with_resets(chunk):
    model = make()
    tokens, targets = symbols(40), symbols(40, seed=2)
    reset = torch.zeros(2, 40, dtype=torch.bool)
    reset[0, 12] = reset[1, 24] = reset[1, 30] = True
    expected = torch.autograd.grad(
        model(tokens, targets=targets, reset=reset, logits="none").loss_sum, list(model.parameters())
    )
    loss, _, _ = streamed_loss(model, tokens, targets, chunk=chunk, reset=reset)
    actual = torch.autograd.grad(loss, list(model.parameters()))
    assert all(same(a, e) for a, e in zip(actual, expected, strict=True))


def test_gradient_through_the_state_is_the_derivative():
    """Every tensor of the state, also queue and remainder, by finite differences."""
    model = make(num_layers=1)
    state = model(symbols(9)).state
    tokens, targets = symbols(8), symbols(8, seed=2)
    flat, structure = torch.utils._pytree.tree_flatten(state)
    flat = [leaf.detach().requires_grad_() if isinstance(leaf, torch.Tensor) else leaf for leaf in flat]
    wanted = [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]

    def loss(values):
        return model(tokens, torch.utils._pytree.tree_unflatten(values, structure), targets=targets).loss_sum

    found = torch.autograd.grad(loss(flat), wanted)
    assert all(gradient.abs().max() > 0 for gradient in found)
    generator = torch.Generator().manual_seed(3)
    for leaf, gradient in zip(wanted, found, strict=True):
        direction = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        with torch.no_grad():
            values = [loss([x + e * direction if x is leaf else x for x in flat]) for e in (1e-5, -1e-5)]
        assert ((values[0] - values[1]) / 2e-5 - (gradient * direction).sum()).abs() < 1e-6


def test_reset_is_a_new_sequence_whatever_the_split():
    """Also when the frame that a reset begins completes only in a later call."""
    model = make()
    tokens = symbols(30, batch=3)
    reset = torch.zeros(3, 30, dtype=torch.bool)
    reset[0, 12] = reset[1, 18] = reset[1, 24] = True
    whole = model(tokens, reset=reset)
    alone = model(tokens[:1, 12:])
    assert same(whole.logits[:1, 12:], alone.logits)
    assert same(whole.logits[1:2, 18:24], model(tokens[1:2, 18:24]).logits)
    assert same(whole.logits[2:], model(tokens[2:]).logits)
    for cut in range(1, 30):
        first = model(tokens[:, :cut], reset=reset[:, :cut])
        second = model(tokens[:, cut:], first.state, reset=reset[:, cut:])
        assert same(torch.cat([first.logits, second.logits], 1), whole.logits), cut
        assert same_state(second.state, whole.state), cut
        if cut > 25:
            # From here on nothing is reset.
            assert same(model(tokens[:, cut:], first.state).logits, whole.logits[:, cut:])


def test_reset_is_refused_where_the_pools_do_not_allow_it():
    model = make()
    reset = torch.zeros(2, 20, dtype=torch.bool)
    reset[1, 8] = True
    with pytest.raises(InputError, match=r"row 1 at position 8.*multiple of 6 samples.*position 0 and every 6"):
        model(symbols(20), reset=reset)
    # Four samples before: position 8 is sample 12, and positions 0 and 6 are samples 4 and 10.
    state = model(symbols(4)).state
    model(symbols(20), state, reset=reset)
    reset[0, 6] = True
    with pytest.raises(InputError, match=r"row 0 at position 6.*here at position 2 and"):
        model(symbols(20), state, reset=reset)
    with pytest.raises(InputError, match=r"bool of shape \(B, L\) = \(2, 20\)"):
        model(symbols(20), reset=reset[:1])


@pytest.mark.parametrize("length", [1, 2, 7, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_state_has_one_size_and_dtype(dtype, length):
    model = make(dtype)
    zero, found = model.init_state(2, "cpu", dtype), model(symbols(length)).state
    assert [(x.shape, x.dtype) for x in leaves(found)] == [(x.shape, x.dtype) for x in leaves(zero)]
    assert found.tiers[1].queue.dtype == dtype
    assert found.tiers[0].remainder.shape == (2, 1, 8)
    assert found.tiers[1].queue.shape == (2, 3, 16)
    assert found.phase == length % 6


def test_autocast_state_and_steps():
    """Under autocast the error of stepping against fp32 is no more than twice that of the parallel form."""
    model = make(torch.float32)
    tokens = symbols(40)
    with torch.no_grad():
        exact = model(tokens).logits
        with torch.autocast("cpu", torch.bfloat16):
            whole, state, steps = model(tokens), None, []
            for t in range(40):
                out = model(tokens[:, t : t + 1], state)
                state = out.state
                steps.append(out.logits)
            first = model(tokens[:, :1]).state
    assert [x.dtype for x in leaves(state)] == [x.dtype for x in leaves(whole.state)]
    assert [x.dtype for x in leaves(first)] == [x.dtype for x in leaves(whole.state)]
    assert state.tiers[0].queue.dtype == torch.bfloat16
    error = (whole.logits.float() - exact).norm()
    assert 0 < error < 0.1 * exact.norm()
    assert (torch.cat(steps, 1).float() - exact).norm() < 2 * error


def test_samples_depend_on_neither_prefill_nor_batch():
    model = make(torch.float64)
    prompt = symbols(7, 1)[0]
    long = generate(model, length=30, num_samples=3, prompt=prompt, seed=5)
    assert long.shape == (3, 30)
    assert long[0].tolist() != long[1].tolist()
    assert torch.equal(generate(model, length=30, num_samples=3, prompt=prompt, seed=5, batch_size=1), long)
    rest = torch.cat([prompt.expand(3, -1), long[:, :11]], 1)
    again = generate_from(model, rest, 19)
    assert torch.equal(again, long[:, 11:])


def generate_from(model, prompt, length):
    blocks = generate_blocks(
        model, length=length, num_samples=len(prompt), prompt=prompt, seed=5, place=Place(position=prompt.shape[1] - 7)
    )
    return torch.cat([block.tokens for block in blocks], 1).long()


def test_one_step_of_training_lowers_the_loss_of_one_batch():
    model = make(torch.float32, d_model=16)
    tokens = symbols(60)
    targets = tokens.roll(-1, 1)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model(tokens, targets=targets, logits="none").loss_sum / targets.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses[::10]


def test_every_parameter_learns():
    model = make()
    tokens, targets = symbols(24), symbols(24, seed=2)
    gradients = torch.autograd.grad(model(tokens, targets=targets).loss_sum, list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert gradient.abs().max() > 0, name


def test_initialisation():
    model = UNetModel(UNetConfig(d_model=32, num_layers=3, pools=(4, 4), vocab_size=250))
    assert model.embedding.weight.shape == model.lm_head.weight.shape == (256, 32)
    assert model.lm_head.weight is not model.embedding.weight
    assert not model.lm_head.bias.any()
    # 15 blocks, one residual each; fan-in 64.
    bound = 64**-0.5 / 15**0.5
    assert bound * 0.95 < model.up[0][0].mixer.out_proj.weight.abs().max().item() <= bound
    assert model.streaming == "constant"


def test_config_stages_are_filled_in_and_saved_completely():
    config = UNetConfig(
        d_model=8,
        num_layers=2,
        pools=(2, 2),
        mixer="mamba-complex",
        ssm={"d_state": 8, "d_conv": 3},
        stages=[
            {"mixer": "s4d", "num_layers": 3},
            {},
            {"mixer": "mamba", "ssm": {"d_state": 32}},
            {},
            {"ssm": {"selective": False}, "num_layers": 3},
        ],
    )
    assert [stage.num_layers for stage in config.stages] == [3, 2, 2, 2, 3]
    assert [stage.ssm.complex for stage in config.stages] == [True, True, False, True, True]
    assert [stage.ssm.selective for stage in config.stages] == [False, True, True, True, False]
    assert [stage.ssm.d_state for stage in config.stages] == [8, 8, 32, 8, 8]
    assert {stage.ssm.d_conv for stage in config.stages} == {3}
    assert config.widths == (8, 16, 32)
    assert config.period == 4
    assert UNetConfig.model_validate(config.model_dump(mode="json")) == config
    model = UNetModel(config.model_copy(update={"vocab_size": 16}))
    assert [len(model.down[0]), len(model.down[1]), len(model.centre), len(model.up[1]), len(model.up[0])] == [
        3,
        2,
        2,
        2,
        3,
    ]
    assert model.centre[0].mixer.config.d_state == 32
    assert model.up[0][0].mixer.config.selective is False
    assert model.up[1][0].mixer.config.selective is True


def test_config_stage_mixer_wins_over_the_models_details():
    config = UNetConfig(
        d_model=8, num_layers=1, pools=(2,), ssm={"complex": True}, stages=[{}, {"mixer": "s4d-real"}, {}]
    )
    assert [(s.ssm.complex, s.ssm.selective) for s in config.stages] == [(True, True), (False, False), (True, True)]


def test_config_sashimi_stages_begin_with_the_centre():
    config = UNetConfig(
        d_model=8,
        num_layers=1,
        pools=(2, 3),
        down_blocks=False,
        vocab_size=8,
        stages=[{"num_layers": 3}, {"num_layers": 2}, {}],
    )
    model = UNetModel(config)
    assert [len(model.centre), len(model.up[1]), len(model.up[0])] == [3, 2, 1]
    assert sum(len(blocks) for blocks in model.down) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pools": (4, 1)}, "at least 2 frames"),
        ({"pools": ()}, "at least 1 item"),
        ({"stages": [{}] * 3}, "3 entries, but 2 pools with blocks on the way down make 5 stages"),
        ({"stages": [{}] * 5, "down_blocks": False}, "without blocks on the way down make 3 stages"),
        ({"stages": [{}, {}, {}, {}, {"num_layers": 3}]}, "mirror image"),
        ({"mixer": "lstm"}, "mamba-complex"),
        ({"tie_embeddings": True}, "Extra inputs"),
    ],
)
def test_config_mistakes_are_named(changes, message):
    with pytest.raises(ValidationError, match=message):
        UNetConfig(**({"d_model": 8, "num_layers": 1} | changes))


def test_config_is_free_of_torch():
    code = "import sys, mamba_bio_audio.models.unet_config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_attention_at_the_centre_grows_and_is_the_paper_s_budget():
    """Two residuals a block, 4 D^2 and 2 D^2 parameters (table 5); the state grows by one frame a period.

    Stages had a key `attention` until December 2026, in which saved runs say it.
    """
    stages = [{"attention": None}, {}, {"mixer": "transformer", "attention": {}}, {}, {}]
    config = UNetConfig(d_model=64, num_layers=8, pools=(4, 4), vocab_size=256, stages=stages)
    assert config.unstreamed == "transformer"
    assert config.stages[2].options["heads"] == 4
    assert UNetConfig.model_validate(config.model_dump(mode="json")) == config
    with torch.device("meta"):
        model = UNetModel(config)
    assert sum(p.numel() for block in model.centre for p in block.mixer.parameters()) == 8 * 6 * 256**2
    small = make(pools=(2, 3), stages=TRANSFORMER)
    assert small.streaming == "growing"
    with torch.no_grad():
        for length in (5, 6, 17, 18):
            assert small(symbols(length)).state.centre[0].keys.shape[1] == length // 6


def test_attention_refuses_streaming():
    with pytest.raises(InputError, match=r"'growing'.*stream_chunk=null"):
        streamed_loss(make(stages=TRANSFORMER), symbols(12), symbols(12), chunk=6)


def test_attention_samples_and_resumes_bit_for_bit():
    model = make(torch.float32, pools=(2, 2), stages=TRANSFORMER)
    whole = generate(model, length=70, num_samples=2, prompt=[3], seed=4, allowed=range(VOCAB))
    first = list(generate_blocks(model, length=30, num_samples=2, prompt=[3], seed=4, allowed=range(VOCAB)))[-1]
    rest = generate_blocks(
        model,
        length=40,
        num_samples=2,
        prompt=first.tokens[:, -1:].long(),
        seed=4,
        allowed=range(VOCAB),
        place=Place(position=30, state=first.state),
    )
    assert torch.equal(torch.cat([first.tokens, *(block.tokens for block in rest)], 1).long(), whole)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"mixer": "transformer"}, {}, {}, {}, {}], "only at the centre, stage 2"),
        (
            [{}, {}, {"mixer": "transformer", "options": {"heads": 3}}, {}, {}],
            "stages.2.options.heads: 3 heads require a width that is a multiple of 6, not 32",
        ),
        ([{}, {}, {"options": {"heads": 2}}, {}, {}], "stages.2.options: are for other mixers than mamba"),
        ([{}, {}, {"options": {"heads": 2}, "attention": {}}, {}, {}], "attention: is called options now"),
    ],
)
def test_attention_where_it_cannot_be(stages, message):
    with pytest.raises(ValidationError, match=message):
        UNetConfig(d_model=8, num_layers=1, pools=(2, 2), vocab_size=VOCAB, stages=stages)


def test_outline_tells_the_real_size():
    assert UNetConfig(d_model=32, num_layers=1).outline == (
        "U-Net of mamba, 5 blocks (1 + 1 + 1 + 1 + 1) x 32 to 128, pools of 4, 4"
    )
    stages = [{"num_layers": 2}, {"mixer": "transformer", "num_layers": 3}, {"num_layers": 2}]
    config = UNetConfig(mixer="s4d", d_model=64, num_layers=1, pools=(4,), stages=stages)
    assert config.outline == "U-Net of s4d and transformer, 7 blocks (2 + 3 + 2) x 64 to 128, pools of 4"
