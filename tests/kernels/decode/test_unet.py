"""U-Nets in the persistent decoder against the model's own step loop, in Triton's interpreter and on a GPU."""

import multiprocessing
import os
from functools import partial

import pytest
import torch

triton = pytest.importorskip("triton")

from mamba_bio_audio.errors import InputError  # noqa: E402
from mamba_bio_audio.inference import decoding  # noqa: E402
from mamba_bio_audio.inference import generate as module  # noqa: E402
from mamba_bio_audio.inference.generate import Place, _Choice, generate, generate_blocks  # noqa: E402
from mamba_bio_audio.inference.gpu_unet import packed_unet, rows_of, state_of, unsupported_reason  # noqa: E402
from mamba_bio_audio.inference.uniforms import uniforms  # noqa: E402
from mamba_bio_audio.kernels.decode import unet  # noqa: E402
from mamba_bio_audio.kernels.decode.lost import confirm  # noqa: E402
from mamba_bio_audio.kernels.decode.unet import decode_unet  # noqa: E402
from mamba_bio_audio.layers.config import SsmConfig  # noqa: E402
from mamba_bio_audio.models.unet import UNetModel  # noqa: E402
from mamba_bio_audio.models.unet_config import UNetConfig  # noqa: E402

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


def make_model(d_model=16, num_layers=1, vocab_size=12, device="cpu", seed=0, **options):
    """A model whose symbols depend on what was before, at every rate."""
    torch.manual_seed(seed)
    options = {"pools": (4, 4), "ssm": SsmConfig(d_state=4)} | options
    model = UNetModel(UNetConfig(d_model=d_model, num_layers=num_layers, vocab_size=vocab_size, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "norm_f.weight", ".D")):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("A_log"):
                parameter.add_(torch.rand_like(parameter))
            elif name.endswith("out_proj.weight"):
                parameter.mul_(3)
            elif name.endswith("bias") and "dt" not in name and "conv" not in name:
                parameter.uniform_(-0.1, 0.1)
        model.embedding.weight.normal_(std=0.06)
    return model.to(device).eval()


def round_matrices(model):
    """To bf16 as packing does: with the norms' weights inside."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                projection = model.get_parameter(name.replace("norm.weight", "mixer.in_proj.weight"))
                projection.mul_(parameter)
                parameter.fill_(1)
        model.lm_head.weight.mul_(model.norm_f.weight)
        model.norm_f.weight.fill_(1)
        for name, parameter in model.named_parameters():
            if name.endswith(("proj.weight", "linear.weight", "lm_head.weight")) and "dt_proj" not in name:
                parameter.copy_(parameter.bfloat16())
    return model


def leaves(state):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor)]


def check(
    model,
    *,
    lengths=(21, 12),
    rows=2,
    prompt=5,
    temperature=1.0,
    top_k=None,
    top_p=None,
    allowed=None,
    split=False,
    run=decode_unet,
    **packing,
):
    """Same symbols, close logits and close state over launches of these lengths, from a state behind a prompt."""
    device = model.embedding.weight.device
    allowed = list(range(model.model_config.vocab_size)) if allowed is None else allowed
    tokens = torch.randint(
        model.model_config.vocab_size, (rows, prompt + 1), generator=torch.Generator().manual_seed(1)
    ).to(device)
    choice, seen = _Choice.check(model, temperature, top_k, top_p, allowed, None).to(device), []

    def choose(logits, draw):
        seen.append(logits[:, allowed])
        return choice.next(logits, draw)

    draws = torch.from_numpy(uniforms(3, range(rows), 7, sum(lengths)).T.copy()).to(device)
    with torch.inference_mode():
        state = decoding.prefill(model, tokens[:, :-1], None) if prompt else model.init_state(rows, device)
        symbols, scores, after = decoding.steps(model, choose, tokens[:, -1:], state, draws)
    assert len(symbols.unique()) > 2
    network = packed_unet(model, allowed, **{"dtype": torch.float32, "warps": 4} | packing)
    moving, found = rows_of(network.case, state, tokens[:, -1:]), []
    for some in draws.split(lengths):
        drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        *outputs, moving = run(network, moving, some, want_logits=True, split=split, **drawing)
        found.append(outputs)
    found_symbols, found_scores, found_logits = (torch.cat(parts) for parts in zip(*found, strict=True))
    confirm(found_scores)
    assert torch.equal(found_symbols.long(), symbols)
    logits = torch.stack(seen)
    assert (found_logits - logits).abs().max() < 2e-5 * max(1, logits.abs().max())
    assert (found_scores - scores).abs().max() < 1e-4
    assert torch.equal(moving.last.long(), symbols[-1])
    now = state_of(moving)
    assert now.phase == after.phase
    for a, b in zip(leaves(now), leaves(after), strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("mixer", ["mamba", "s4d"])
@pytest.mark.parametrize("phase", [0, 5, 15])
def test_state_comes_back_as_it_was(mixer, phase):
    model = make_model(mixer=mixer)
    network = packed_unet(model, range(12), torch.float32)
    with torch.inference_mode():
        state = decoding.prefill(model, torch.arange(32 + phase)[None] % 12, None)
    back = state_of(rows_of(network.case, state, torch.zeros(1, 1)))
    assert back.phase == state.phase
    for a, b in zip(leaves(back), leaves(state), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pools": (4,)}, "two pools"),
        ({"d_model": 32}, "multiples of 64"),
        ({"d_model": 128}, "up to 256"),
        ({"mixer": "mamba-complex"}, "complex fixed"),
        ({"stages": [{}, {}, {"mixer": "transformer"}, {}, {}]}, "Mamba layers"),
        ({"ssm": SsmConfig(proj_bias=True)}, "proj_bias"),
        ({"ssm": SsmConfig(d_state=12)}, "power of two"),
        ({"stages": [{}, {}, {}, {}, {"ssm": {"d_state": 8}}]}, "alike"),
    ],
    ids=str,
)
def test_other_models_take_another_path(options, reason):
    model = make_model(**{"d_model": 64} | options)
    assert reason in unsupported_reason(model, 12)
    with pytest.raises(InputError, match="leave it out"):
        generate(model, length=3, path="persistent", allowed=range(12))


def test_symbols_to_draw_from():
    model = make_model(d_model=64)
    assert unsupported_reason(model, 12) is None
    assert "symbols" in unsupported_reason(model, 300)


class Together:
    """Launches a kernel's programs at the same time, each in a process of its own; the interpreter runs one after another."""

    def __init__(self, kernel, place):
        self.kernel, self.place = kernel, place

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            for argument in arguments:
                if isinstance(argument, torch.Tensor):
                    argument.share_memory_()
            context = multiprocessing.get_context("fork")
            programs = [
                context.Process(
                    target=self.kernel[(1,)],
                    args=(*arguments[: self.place], program, *arguments[self.place + 1 :]),
                    kwargs=options,
                )
                for program in range(*grid)
            ]
            for program in programs:
                program.start()
            for program in programs:
                program.join()
                assert program.exitcode == 0

        return launch


def test_interpreted(run_interpreted):
    run_interpreted()


@pytest.mark.skipif(not INTERPRETING, reason="runs in the process that test_interpreted starts")
class TestInterpreted:
    @pytest.mark.parametrize(
        ("prompt", "drawing"),
        [(0, {"temperature": 0.0}), (4, {"top_k": 5, "top_p": 0.6}), (11, {"temperature": 0.7})],
        ids=str,
    )
    def test_draws_at_phases(self, prompt, drawing):
        """More than a period and a rest, from the start of frames and from within."""
        check(make_model(pools=(2, 3)), prompt=prompt, lengths=(7, 4), **drawing)

    @pytest.mark.parametrize(
        "options",
        [
            {"mixer": "s4d"},
            {"num_layers": 2, "pools": (2, 2)},
            {"down_blocks": False, "pools": (2, 2)},
            {"down_blocks": False, "pools": (2, 2), "num_layers": 2, "mixer": "s4d"},
        ],
        ids=str,
    )
    def test_other_networks(self, options):
        check(make_model(**options), rows=1, lengths=(4, 5), allowed=[7, 2, 3, 11, 5])

    @pytest.mark.parametrize("mixer", ["mamba", "s4d"])
    def test_bf16_matrices(self, mixer):
        check(round_matrices(make_model(mixer=mixer)), rows=1, lengths=(6, 5), dtype=torch.bfloat16)

    def test_generate(self):
        """From a prompt and from none, on from a block by another path, at any phase."""
        model = make_model(d_model=64, pools=(2, 2), ssm=SsmConfig(d_state=2, expand=1))
        options = {"num_samples": 2, "seed": 3, "allowed": [7, 8, 9, 10]}
        for prompt in (None, [7, 8, 9]):
            expected = generate(model, length=6, prompt=prompt, path="steps", **options)
            assert torch.equal(generate(model, length=6, prompt=prompt, path="persistent", **options), expected)
        for paths in (("persistent", "steps"), ("steps", "persistent")):
            block = next(generate_blocks(model, length=3, prompt=[7, 8, 9], path=paths[0], **options))
            place, last = Place(position=3, state=block.state), block.tokens[:, -1:].long()
            (rest,) = generate_blocks(model, length=3, prompt=last, place=place, path=paths[1], **options)
            assert torch.equal(torch.cat([block.tokens, rest.tokens], 1).long(), expected)

    def test_a_block_keeps_its_state_while_the_next_is_made(self, monkeypatch):
        """As on a GPU, where the next one is queued before this one is handed out."""
        monkeypatch.setattr(module, "queues", lambda device: True)
        monkeypatch.setattr(module, "_BLOCK", 16)
        model = make_model(d_model=64, pools=(2, 2), ssm=SsmConfig(d_state=2, expand=1))
        options = {"seed": 3, "allowed": [7, 8, 9, 10]}
        whole = generate(model, length=19, prompt=[7], path="steps", **options)
        first, second = generate_blocks(model, length=19, prompt=[7], path="persistent", **options)
        assert torch.equal(torch.cat([first.tokens, second.tokens], 1).long(), whole)
        place, last = Place(position=16, state=first.state), first.tokens[:, -1:].long()
        (rest,) = generate_blocks(model, length=3, prompt=last, place=place, path="steps", **options)
        assert torch.equal(rest.tokens, second.tokens)

    def test_programs_of_a_row(self, monkeypatch):
        """Three programs that wait for each other."""
        place = unet.unet_kernel.arg_names.index("first")
        monkeypatch.setattr(unet, "unet_kernel", Together(unet.unet_kernel, place))
        check(make_model(pools=(2, 2)), rows=1, prompt=5, lengths=(8, 5), split=True)

    def test_a_missing_program(self):
        """One after another the first waits in vain: an error, not a hang."""
        with pytest.raises(RuntimeError, match="waited in vain"):
            check(make_model(), rows=1, prompt=0, lengths=(9,), split=True, run=partial(decode_unet, polls=20))


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("mixer", "layers"), [("mamba", 8), ("s4d", 3)])
@pytest.mark.parametrize(
    "how", [{"warps": 16}, {"warps": 8}, {"split": True, "warps": 16}], ids=["one", "two", "three"]
)
def test_on_a_gpu(mixer, layers, how):
    """Every mixer in every form, and each with one way of drawing, since a kernel compiles for half a minute."""
    model = make_model(64, layers, 256, "cuda", mixer=mixer, ssm=SsmConfig())
    few = (mixer == "mamba") == (how == {"warps": 8})
    check(model, rows=5, lengths=(100, 156), **({"temperature": 1.3, "top_k": 40, "top_p": 0.9} if few else {}), **how)
