"""Attention beside implementations of others: Llama and Mistral of transformers, with the same weights."""

import math

import pytest
import torch
import torch.nn.functional as F

from mamba_bio_audio.inference.generate import generate
from mamba_bio_audio.layers.attention import _turn
from mamba_bio_audio.layers.config import AttentionConfig
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.size import count_parameters

WIDTH, LAYERS, VOCAB, HEADS = 48, 3, 16, 2


def ours(dtype=torch.float64, **options):
    torch.manual_seed(0)
    options = {"heads": HEADS, "mlp_expand": 2} | options
    config = ModelConfig(mixer="transformer", options=options, d_model=WIDTH, num_layers=LAYERS, vocab_size=VOCAB)
    model = build_model(config).to(dtype).eval()
    torch.nn.init.normal_(model.embedding.weight)
    return model


def theirs(model, kind: str, **settings):
    """Their model with our weights."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=VOCAB,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        attn_implementation="eager",
        **settings,
    )
    found = getattr(transformers, f"{kind}ForCausalLM")(config).to(next(model.parameters()).dtype).eval()
    named = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm_f.weight}
    for number in range(LAYERS):
        attention, mlp = model.layers[2 * number], model.layers[2 * number + 1]
        place = f"model.layers.{number}."
        named |= {f"{place}input_layernorm.weight": attention.norm.weight}
        named |= {f"{place}post_attention_layernorm.weight": mlp.norm.weight}
        maps = (*attention.mixer.in_proj.weight.chunk(3), attention.mixer.out_proj.weight)
        named |= {f"{place}self_attn.{name}_proj.weight": part for name, part in zip("qkvo", maps, strict=True)}
        maps = (*mlp.mixer.in_proj.weight.chunk(2), mlp.mixer.out_proj.weight)
        named |= {f"{place}mlp.{n}_proj.weight": part for n, part in zip(("gate", "up", "down"), maps, strict=True)}
    missing, unexpected = found.load_state_dict({k: v.detach().clone() for k, v in named.items()}, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    found.tie_weights()
    return found


def symbols(length, rows=2):
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


def same(actual, expected, tolerance=1e-6):
    # Their angles are fp32, whatever the weights are.
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    assert error <= tolerance, f"{error:.1e}"


def test_transformer_is_llama():
    """Logits of a span, of pieces with the key-value cache, and of steps."""
    model, tokens = ours(), symbols(60)
    llama = theirs(model, "Llama")
    with torch.no_grad():
        expected = llama(tokens).logits
        whole = model(tokens)
        same(whole.logits, expected)
        first = llama(tokens[:, :23], use_cache=True)
        out = model(tokens[:, :23])
        for piece in (tokens[:, 23:24], tokens[:, 24:41], tokens[:, 41:]):
            first = llama(piece, past_key_values=first.past_key_values, use_cache=True)
            out = model(piece, out.state)
            same(out.logits, first.logits)
        same(out.logits, expected[:, 41:])


def test_window_is_mistral():
    """Blocks of a long span, and steps whose state keeps its size."""
    model, tokens = ours(window=7), symbols(60)
    mistral = theirs(model, "Mistral", sliding_window=7)
    with torch.no_grad():
        expected = mistral(tokens).logits
        same(model(tokens).logits, expected)
        out = model(tokens[:, :1])
        for t in range(1, 60):
            out = model(tokens[:, t : t + 1], out.state)
            same(out.logits[:, 0], expected[:, t])
        assert out.state[0].keys.shape == (2, 6, HEADS, WIDTH // HEADS)
    assert model.streaming == "constant"
    # With all in reach it is the other.
    same(ours(window=61)(tokens).logits, ours()(tokens).logits, 1e-12)


def test_greedy_generation_is_llama_s():
    model, tokens = ours(torch.float32), symbols(9, 1)
    llama = theirs(model, "Llama", pad_token_id=None, bos_token_id=None, eos_token_id=None)
    expected = llama.generate(tokens, max_new_tokens=40, do_sample=False)[:, 9:]
    assert torch.equal(generate(model, length=40, prompt=tokens[0], temperature=0.0), expected)


def test_positions_are_exact_at_a_million():
    """Angles of positions up to 2^20 within rounding of their values, so that an output depends on differences alone."""
    layer = AttentionConfig(heads=1).layers(64, 1)[0]
    start = 1 << 20
    cos, sin = layer._angles(start, 3, torch.zeros(1))
    for row in range(3):
        for i in range(32):
            angle = math.fmod((start + row) * 10_000.0 ** (-i / 32), 2 * math.pi)
            assert abs(cos[row, 0, i] - math.cos(angle)) < 3e-7
            assert abs(sin[row, 0, i] - math.sin(angle)) < 3e-7
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 3, 1, 64).unbind()
    near, far = (_turn(q, at) @ _turn(k, at).mT for at in (layer._angles(0, 3, q), (cos, sin)))
    assert (near - far).abs().max() < 1e-5


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("packed", [False, True])
def test_blocks_equal_one_mask(window, packed, monkeypatch):
    """What is computed in blocks equals all of it under one mask, also with masks of few queries at a time."""
    monkeypatch.setattr("mamba_bio_audio.layers.attention._MASK", 200)
    config = AttentionConfig(heads=2, window=window)
    torch.manual_seed(0)
    layer = config.layers(16, 1)[0].double()
    x = torch.randn(2, 41, 16, dtype=torch.float64)
    reset = torch.zeros(2, 41, dtype=torch.bool)
    if packed:
        reset[0, [0, 9, 10]] = reset[1, 33] = True
    q, k, v = layer.in_proj(x).unflatten(2, (3, 2, -1)).unbind(2)
    at = layer._angles(0, 41, q)
    q, k, v = (part.transpose(1, 2) for part in (_turn(q, at), _turn(k, at), v))
    mask = torch.ones(41, 41, dtype=torch.bool).tril()
    if window is not None:
        mask &= ~mask.tril(-window)
    number = reset.cumsum(1)
    mask = mask & (number[:, None] == number[:, :, None])
    expected = layer.out_proj(
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None]).transpose(1, 2).flatten(2)
    )
    same(layer(x, reset=reset if packed else None)[0], expected, 1e-12)
    _, state = layer(x[:, :20], reset=reset[:, :20] if packed else None)
    same(layer(x[:, 20:], state, reset=reset[:, 20:] if packed else None)[0], expected[:, 20:], 1e-12)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_steps_do_not_copy_the_past_and_never_change_a_state(mode):
    """Steps write behind the past; of two continuations of one state the second has a copy."""
    torch.manual_seed(0)
    layer = AttentionConfig(heads=2).layers(16, 1)[0]
    x = torch.randn(1, 600, 16)
    with mode():
        y, state = layer(x[:, :300])
        places, outputs = [], [y]
        for t in range(300, 600):
            y, state = layer(x[:, t : t + 1], state)
            places.append(state.keys.data_ptr())
            outputs.append(y)
        assert len(set(places)) <= 3
        same(torch.cat(outputs, 1), layer(x)[0], 1e-5)
        kept = state.keys.clone()
        one = [state]
        other = [state]
        for t in range(5):
            one.append(layer(x[:, t : t + 1], one[-1])[1])
            other.append(layer(x[:, 100 + t : 101 + t], other[-1])[1])
        assert torch.equal(state.keys, kept)
        assert one[-1].keys.data_ptr() == state.keys.data_ptr() != other[-1].keys.data_ptr()
        for chain, first in ((one, 0), (other, 100)):
            expected = layer(x[:, first : first + 5], state)[1]
            same(chain[-1].values, expected.values, 1e-6)
            assert torch.equal(chain[-1].keys[:, :600], kept)
            same(chain[-1].keys, expected.keys, 1e-6)


@pytest.mark.parametrize("theta", [None, 10.0])
def test_without_positions_the_order_of_earlier_ones_is_the_same_to_it(theta):
    layer = AttentionConfig(heads=2, rope_theta=theta).layers(16, 1)[0].double()
    x = torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, _ = layer(x)
    # A prefix in another order, in a call of its own.
    _, state = layer(x[:, :30].flip(1))
    again, _ = layer(x[:, 30:], state)
    assert torch.allclose(again, whole[:, 30:], atol=1e-12) == (theta is None)


def test_heads_of_64_channels_where_none_are_said():
    assert [AttentionConfig().heads_of(width) for width in (16, 64, 96, 128, 144, 192, 512)] == [1, 1, 1, 2, 2, 3, 8]


PUBLISHED = {64: (4, 201_088), 96: (5, 560_928), 128: (6, 1_191_936), 192: (7, 3_117_504), 256: (8, 6_322_688)} | {
    384: (10, 17_751_552),
    512: (12, 37_837_824),
}


@pytest.mark.parametrize("width", PUBLISHED)
def test_published_counts(width):
    """Gu & Dao 2023, figure 5 left, "Transformer++": by count a plain transformer with biases and an MLP of 4 D.

    Its norms have biases, ours do not: one vector of D for each norm is added.
    """
    blocks, published = PUBLISHED[width]
    options = {"mlp": "gelu", "bias": True, "mlp_bias": True}
    config = ModelConfig(
        mixer="transformer", options=options, d_model=width, num_layers=blocks, vocab_size=12, vocab_multiple=16
    )
    assert count_parameters(config) + (2 * blocks + 1) * width == published
