"""The persistent decoder against the model's own step loop, in Triton's interpreter (a process of its own) and on a GPU."""

import os

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")

from mamba_bio_audio.inference import decoding  # noqa: E402
from mamba_bio_audio.inference.generate import _Choice  # noqa: E402
from mamba_bio_audio.inference.uniforms import uniforms  # noqa: E402
from mamba_bio_audio.kernels.decode.lost import confirm  # noqa: E402
from mamba_bio_audio.kernels.decode.pack import Layer, pack  # noqa: E402
from mamba_bio_audio.kernels.decode.persistent import State, decode  # noqa: E402
from mamba_bio_audio.kernels.decode.split import decode_split, decode_split_kernel  # noqa: E402
from mamba_bio_audio.kernels.decode.together import decode_together, decode_together_kernel  # noqa: E402
from mamba_bio_audio.layers.config import SsmConfig  # noqa: E402
from mamba_bio_audio.models.config import ModelConfig  # noqa: E402
from mamba_bio_audio.models.isotropic import IsotropicModel  # noqa: E402

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
LOGIT_ERROR = 2e-5


def make_model(d_model=64, num_layers=2, vocab_size=12, device="cpu", seed=0, **ssm):
    """A model whose symbols depend on what was before: no parameter at a value that hides it."""
    torch.manual_seed(seed)
    model = IsotropicModel(
        ModelConfig(d_model=d_model, num_layers=num_layers, vocab_size=vocab_size, ssm=SsmConfig(**ssm))
    )
    with torch.no_grad():
        for block in model.layers:
            mixer = block.mixer
            block.norm.weight.uniform_(0.5, 1.5)
            mixer.D.uniform_(0.5, 1.5)
            mixer.A_log.add_(torch.rand_like(mixer.A_log))
            mixer.out_proj.weight.mul_(3)
        model.norm_f.weight.uniform_(0.5, 1.5)
        model.embedding.weight.normal_(std=0.06)
    return model.to(device).eval()


def layers_of(model):
    found = []
    for block in model.layers:
        w = block.mixer.weights()
        found.append(
            Layer(
                block.norm.weight,
                w.in_proj,
                w.conv,
                w.conv_bias,
                w.x_proj,
                w.dt_proj,
                w.dt_bias,
                w.A_log,
                w.D,
                w.out_proj,
            )
        )
    return found


def packed(model, allowed, dtype=torch.float32, warps=4, **options):
    return pack(
        layers_of(model), model.embedding.weight, model.norm_f.weight, model.lm_head.weight, allowed, dtype=dtype,
        eps=model.model_config.norm_eps, warps=warps, **options,
    )  # fmt: skip


def reference(model, state, last, draws, allowed, temperature, top_k, top_p):
    """Symbols (n, R), scores, logits of allowed symbols (n, R, V) and the state, step by step."""
    choice = _Choice.check(model, temperature, top_k, top_p, allowed, None).to(last.device)
    seen = []

    def choose(logits, draw):
        seen.append(logits[:, allowed])
        return choice.next(logits, draw)

    with torch.inference_mode():
        symbols, scores, state = decoding.steps(model, choose, last, state, draws)
    return symbols, scores, torch.stack(seen), state


def kernel_state(state, last, rows=None):
    """Of the rows, and of as many zeros as make them `rows`."""
    tails, h = (torch.stack([getattr(layer, name) for layer in state], 1) for name in ("tail", "ssm"))
    beyond = 0 if rows is None else rows - len(last)
    tails, h, last = (torch.cat([part, part.new_zeros(beyond, *part.shape[1:])]) for part in (tails, h, last[:, 0]))
    return State.of(tails, h, last)


def check(
    model,
    *,
    rows=2,
    steps=7,
    prompt=5,
    calls=2,
    temperature=1.0,
    top_k=None,
    top_p=None,
    allowed=None,
    run=decode,
    **options,
):
    """Same symbols and close logits over several launches from a state behind a prompt; close states at their end."""
    device = model.embedding.weight.device
    allowed = list(range(model.model_config.vocab_size)) if allowed is None else allowed
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(model.model_config.vocab_size, (rows, prompt + 1), generator=generator).to(device)
    with torch.inference_mode():
        state = decoding.prefill(model, tokens[:, :-1], None)
    last = tokens[:, -1:]
    draws = torch.from_numpy(uniforms(3, range(rows), 7, steps * calls).T.copy()).to(device)
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    symbols, scores, logits, after = reference(model, state, last, draws, allowed, **drawing)
    assert len(symbols.unique()) > 2 or temperature == 0
    network = packed(model, allowed, tiled=run is not decode_together, **options)
    together = network.case.ROWS
    moving = kernel_state(state, last, together * -(-rows // together))
    found = []
    for some in draws.split(steps):
        *outputs, moving = run(network, moving, some, want_logits=True, **drawing)
        found.append(outputs)
    found_symbols, found_scores, found_logits = (torch.cat(parts) for parts in zip(*found, strict=True))
    confirm(found_scores)
    assert torch.equal(found_symbols.long(), symbols)
    assert (found_logits - logits).abs().max() < LOGIT_ERROR * max(1, logits.abs().max())
    assert (found_scores - scores).abs().max() < 1e-4
    expected = kernel_state(after, symbols[-1][:, None])
    assert torch.equal(moving.last[:rows], expected.last)
    assert moving.position == steps * calls
    for a, b in ((moving.tails, expected.tails), (moving.h, expected.h)):
        assert (a[:rows] - b).norm() <= 1e-5 * b.norm()


def round_matrices(model):
    """To bf16 as `pack` does: with the norms' weights inside."""
    with torch.no_grad():
        for block in model.layers:
            w = block.mixer
            w.in_proj.weight.copy_((w.in_proj.weight * block.norm.weight).bfloat16())
            block.norm.weight.fill_(1)
            w.x_proj.weight.copy_(w.x_proj.weight.bfloat16())
            w.out_proj.weight.copy_(w.out_proj.weight.bfloat16())
        model.lm_head.weight = torch.nn.Parameter((model.lm_head.weight * model.norm_f.weight).bfloat16().float())
        model.norm_f.weight.fill_(1)
    return model


def test_interpreted(run_interpreted):
    run_interpreted()


@pytest.mark.skipif(not INTERPRETING, reason="runs in the process that test_interpreted starts")
class TestInterpreted:
    @pytest.mark.parametrize(
        "drawing",
        [
            {"temperature": 0.0},
            {},
            {"temperature": 1.5, "top_k": 3},
            {"top_k": 5, "top_p": 0.4},
            {"allowed": [7, 2, 3, 11, 5]},
        ],
        ids=str,
    )
    def test_draws(self, drawing):
        check(make_model(), **drawing)

    def test_parts_of_rows(self):
        """More inner channels than half of a program's lanes: rows go in parts."""
        check(make_model(d_model=128, num_layers=1), temperature=0.0, warps=4, steps=3)

    @pytest.mark.parametrize("ssm", [{"d_state": 8}, {"d_conv": 3}, {"conv_bias": False}, {"dt_rank": 24}], ids=str)
    def test_other_sizes(self, ssm):
        check(make_model(**ssm), steps=4)

    def test_bf16_matrices(self):
        model = round_matrices(make_model())
        check(model, dtype=torch.bfloat16)

    @pytest.mark.parametrize("drawing", [{}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.4}], ids=str)
    def test_rows_together(self, drawing):
        check(make_model(), run=decode_together, rows=17, steps=3, **drawing)

    @pytest.mark.parametrize(("programs", "drawing"), [(2, {"temperature": 0.0}), (4, {"top_p": 0.6})], ids=str)
    def test_programs_share_rows(self, take_turns, programs, drawing):
        take_turns(decode_split_kernel, 2 * programs)
        check(make_model(), run=decode_split, programs=programs, steps=3, **drawing)

    def test_programs_share_rows_together(self, take_turns):
        take_turns(decode_together_kernel, 2 * 2)
        check(make_model(), run=decode_together, rows=17, programs=2, steps=2)

    def test_one_row_does_not_depend_on_the_others(self):
        model = make_model()
        network = packed(model, range(12))
        with torch.inference_mode():
            state = decoding.prefill(model, torch.arange(12).reshape(3, 4), None)
        last = torch.tensor([[1], [2], [3]])
        draws = torch.from_numpy(np.random.default_rng(0).random((3, 3)))
        together, *_ = decode(network, kernel_state(state, last), draws)
        for row in range(3):
            one = kernel_state(tuple(type(s)(*(t[row : row + 1] for t in s)) for s in state), last[row : row + 1])
            alone, *_ = decode(network, one, draws[:, row : row + 1])
            assert torch.equal(alone[:, 0], together[:, row])


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("d_model", "num_layers"), [(128, 12), (256, 16)])
@pytest.mark.parametrize("drawing", [{"temperature": 0.0}, {}, {"temperature": 4.0, "top_k": 8, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("split", [False, True], ids=["alone", "split"])
def test_on_a_gpu(d_model, num_layers, drawing, split):
    model = make_model(d_model, num_layers, device="cuda")
    options = {"run": decode_split, "programs": d_model // 16, "warps": 8} if split else {"warps": 16}
    check(model, steps=64, **options, **drawing)
