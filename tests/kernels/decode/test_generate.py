"""Generation through persistent kernels: they draw what the model's own steps draw, and what they cannot run is refused."""

import os

import pytest
import torch

pytest.importorskip("triton")

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference import generate as module
from mamba_bio_audio.inference import gpu_decoder, paths
from mamba_bio_audio.inference.decoding import prefill, steps
from mamba_bio_audio.inference.generate import Place, _Choice, generate, generate_blocks, sampling_path
from mamba_bio_audio.inference.gpu_decoder import GpuDecoder, unsupported_reason
from mamba_bio_audio.inference.kept import model_state
from mamba_bio_audio.inference.uniforms import uniforms
from mamba_bio_audio.kernels.decode.forms import form_on
from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.unet_config import UNetConfig

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


def small(device="cpu", num_layers=2, d_model=64, vocab_size=12, **config):
    """Its symbols depend on what was before: at the initial scale they would hang on the draws alone."""
    model = build_model(ModelConfig(d_model=d_model, num_layers=num_layers, vocab_size=vocab_size, **config), seed=0)
    with torch.no_grad():
        model.embedding.weight.normal_(std=0.06, generator=torch.Generator().manual_seed(1))
        for block in model.layers:
            block.mixer.out_proj.weight.mul_(3)
    return model.to(device).eval()


def test_interpreted(run_interpreted):
    run_interpreted()


@pytest.mark.skipif(not INTERPRETING, reason="runs in the process that test_interpreted starts")
class TestInterpreted:
    @pytest.mark.parametrize("prompt", [None, [7], [7, 8, 9, 10, 7]], ids=str)
    def test_equals_the_steps(self, prompt):
        model = small()
        options = {"length": 9, "num_samples": 3, "prompt": prompt, "seed": 3, "allowed": [7, 8, 9, 10]}
        expected = generate(model, **options, path="steps")
        assert torch.equal(generate(model, **options, path="persistent"), expected)
        assert len(expected.unique()) > 2

    def test_goes_on_behind_a_block(self):
        """With a block's state, by either path."""
        model = small(num_layers=1)
        whole = generate(model, length=12, seed=5, path="steps")
        for ways in (("persistent", "steps"), ("steps", "persistent"), ("persistent", "persistent")):
            block = next(generate_blocks(model, length=7, seed=5, path=ways[0]))
            rest = generate_blocks(
                model,
                length=5,
                seed=5,
                prompt=block.tokens.long(),
                place=Place(position=7),
                path=ways[1],
            )
            assert torch.equal(torch.cat([block.tokens, next(rest).tokens], 1), whole)
            rest = generate_blocks(
                model,
                length=5,
                seed=5,
                prompt=block.tokens[:, -1:].long(),
                place=Place(position=7, state=block.state),
                path=ways[1],
            )
            assert torch.equal(torch.cat([block.tokens, next(rest).tokens], 1), whole)

    def test_a_block_keeps_its_state_while_the_next_is_made(self, monkeypatch):
        """As on a GPU, where the next one is queued before this one is handed out."""
        monkeypatch.setattr(module, "queues", lambda device: True)
        monkeypatch.setattr(module, "_BLOCK", 16)
        model = small(num_layers=1)
        whole = generate(model, length=35, seed=5, path="steps")
        for block in generate_blocks(model, length=35, seed=5, path="persistent"):
            end = block.position + block.tokens.shape[1]
            assert torch.equal(block.tokens[0].long(), whole[0, block.position : end])
            place, last = Place(position=end, state=block.state), block.tokens[:, -1:].long()
            for rest in generate_blocks(model, length=min(3, 35 - end), seed=5, prompt=last, place=place, path="steps"):
                assert torch.equal(rest.tokens[0].long(), whole[0, end : end + 3])

    def test_sixteen_rows_a_program(self):
        """Its rows of zeros that fill a program up are neither returned nor kept."""
        model = small(num_layers=1)
        tokens = torch.arange(9).reshape(3, 3)
        draws = torch.from_numpy(uniforms(1, range(3), 0, 4).T.copy())
        choice = _Choice.check(model, 1.0, None, None, None, None)
        decoder = GpuDecoder(model, range(12), path="together", rows=3)
        with torch.inference_mode():
            state = prefill(model, tokens[:, :-1], None)
            symbols, scores, after = steps(model, choice.next, tokens[:, -1:], state, draws)
            found, found_scores, found_after = decoder(tokens[:, -1:], state, draws)
        assert torch.equal(found, symbols)
        torch.testing.assert_close(found_scores, scores, atol=1e-4, rtol=0)
        for a, b in zip(model_state(found_after), after, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: build_model(UNetConfig(d_model=64, num_layers=1, pools=(2,), vocab_size=256), seed=0), "isotropic"),
        (lambda: small().bfloat16(), "fp32"),
        (lambda: small(d_model=32), "64"),
        (lambda: small(d_model=832), "768"),
        (lambda: small(mixer="s4d"), "selective"),
        (lambda: small(ssm=SsmConfig(complex=True)), "real"),
        (lambda: small(ssm=SsmConfig(precise=True)), "precise"),
        (lambda: small(ssm=SsmConfig(d_state=12)), "power of two"),
        (
            lambda: build_model(ModelConfig(d_model=64, num_layers=1, mixer="transformer", vocab_size=12), seed=0),
            "Mamba",
        ),
    ],
)
def test_other_models_take_another_path(model, reason):
    model = model()
    assert reason in unsupported_reason(model, 12)
    with pytest.raises(InputError, match="leave it out"):
        generate(model, length=3, path="persistent", allowed=range(12))


def test_what_only_some_draws_need():
    model = small()
    assert "symbols" in unsupported_reason(small(vocab_size=300), 300)
    assert unsupported_reason(small(vocab_size=256), 256) is None
    hook = model.layers[0].register_forward_hook(lambda *inputs: None)
    assert "hooks" in unsupported_reason(model, 12)
    hook.remove()


@pytest.mark.parametrize(
    ("width", "rows", "precision", "symbols", "expected"),
    [
        (64, 1, "fp32", 12, "persistent"),
        (64, 528, "fp32", 12, "persistent"),
        (64, 529, "fp32", 12, None),
        (64, 396, "bf16", 12, "persistent"),
        (64, 397, "bf16", 12, "together"),
        (64, 397, "bf16", 256, None),
        (256, 8, "fp32", 12, "split"),
        (256, 9, "fp32", 12, "persistent"),
        (256, 133, "bf16", 12, "together"),
        (256, 1056, "bf16", 12, "together"),
        (256, 1057, "bf16", 12, None),
        (320, 1, "bf16", 12, "split"),
        (768, 2, "bf16", 12, "split"),
        (768, 3, "bf16", 12, None),
        (768, 1, "fp32", 12, "split"),
        (768, 2, "fp32", 12, None),
    ],
)
def test_the_form_by_rows(monkeypatch, width, rows, precision, symbols, expected):
    monkeypatch.setattr(gpu_decoder, "_processors", lambda model: 132)
    model = small(num_layers=1, d_model=width, vocab_size=symbols)
    assert gpu_decoder.form(model, rows, symbols, precision) == expected


@pytest.mark.parametrize("width", [64, 128, 256, 512, 768])
def test_programs_that_wait_for_each_other_are_all_resident(width):
    for rows in (1, 2, 3, 16, 17, 100, 512, 3000):
        for path, bf16 in (("split", False), ("split", True), ("together", True)):
            form = form_on(path, width, 2 * width, rows, 132, bf16)
            if form is not None and form.programs > 1:
                assert -(-rows // form.rows) * form.programs <= 132 * (16 // form.warps if form.registers else 1)
                assert 2 * width % form.programs == 0


def test_a_form_that_cannot_run_so_many_rows(monkeypatch):
    monkeypatch.setattr(gpu_decoder, "_processors", lambda model: 132)
    with pytest.raises(InputError, match="cannot run 100 rows"):
        GpuDecoder(small(), range(12), path="split", rows=100)


def test_what_is_refused():
    model = small()
    assert sampling_path(model, rows=1) == "numpy"
    assert sampling_path(model, rows=1, precision="bf16") == "steps"
    for options, message in (
        ({"path": "fast"}, "choose one of steps, graph"),
        ({"precision": "fp16"}, "choose one of fp32, bf16"),
        ({"path": "graph"}, "only on a GPU"),
        ({"path": "together"}, "only in bf16"),
        ({"path": "persistent"}, "tensors are on cpu"),
        ({"path": "together", "precision": "bf16"}, "tensors are on cpu"),
        ({"path": "numpy", "precision": "bf16"}, "only in fp32"),
    ):
        with pytest.raises(InputError, match=message):
            generate_blocks(model, length=3, **options)
    with pytest.raises(InputError, match="fp64 weights"):
        generate_blocks(small().double(), length=3, precision="bf16")


def test_a_gpu_without_triton_takes_graphs(monkeypatch):
    monkeypatch.setattr(paths, "device_of", lambda model: torch.device("cuda"))
    monkeypatch.setattr(gpu_decoder, "_processors", lambda model: 132)
    for reason, expected in ((None, "persistent"), ("triton is not installed", "graph")):
        monkeypatch.setattr(paths, "no_triton", lambda device, reason=reason: reason, raising=False)
        assert sampling_path(small(), rows=1) == expected


def test_bf16_is_another_model():
    model = small()
    options = {"length": 40, "temperature": 0.0, "prompt": [1, 2, 3]}
    blocks = [next(generate_blocks(model, **options, precision=precision)) for precision in ("fp32", "bf16")]
    difference = (blocks[0].log_likelihood[0, 0] - blocks[1].log_likelihood[0, 0]).abs()
    assert 1e-6 < difference < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_on_a_gpu(temperature):
    """Token for token over 4,096 positions with the steps and the graph; in bf16, sixteen rows a program as one."""
    model = small("cuda", num_layers=4, d_model=128)
    options = {"num_samples": 3, "prompt": [1, 2, 3], "seed": 3, "temperature": temperature, "length": 4096}
    expected = list(generate_blocks(model, **options, path="graph"))
    found = list(generate_blocks(model, **options, path="persistent"))
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert (a.log_likelihood - b.log_likelihood).abs().max() < 1e-4
    options["length"] = 1500
    expected = generate(model, **options, path="persistent")
    for path in ("steps", "split"):
        assert torch.equal(generate(model, **options, path=path), expected)
    narrow = [
        next(generate_blocks(model, **options, path=p, precision="bf16")) for p in ("persistent", "together", "graph")
    ]
    for block in narrow[1:]:
        first = block.log_likelihood[:, 0] - narrow[0].log_likelihood[:, 0]
        assert first.abs().max() < 0.05
    assert sampling_path(model, rows=3) == "persistent"


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bf16_on_a_gpu():
    """Log-probabilities within 0.05 of those in fp32 up to where a row's symbols part, mean bits of samples within 0.5 %."""
    model = small("cuda", num_layers=4, d_model=128)
    options = {"num_samples": 256, "prompt": [1, 2, 3], "seed": 3, "length": 512}
    wide = next(generate_blocks(model, **options, path="persistent"))
    for path in ("persistent", "together"):
        narrow = next(generate_blocks(model, **options, path=path, precision="bf16"))
        together = (narrow.tokens == wide.tokens).int().cumprod(1).bool()
        # A row whose number lies between the two sums of probabilities parts at its first symbol.
        assert together[:, 0].float().mean() > 0.97
        off = (narrow.log_likelihood - wide.log_likelihood)[together].abs()
        assert 1e-6 < off.max() < 0.05
        assert abs(narrow.log_likelihood.mean() / wide.log_likelihood.mean() - 1) < 5e-3


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("drawing", [{}, {"temperature": 0.7, "top_k": 9, "top_p": 0.95}], ids=str)
def test_a_million_draws_on_a_gpu(drawing):
    """Of a model whose symbols do not depend on those before: all forms draw from its distribution."""
    torch.manual_seed(0)
    model = small("cuda", num_layers=1, d_model=128)
    with torch.no_grad():
        # Not tied, so that the same is read whatever was drawn.
        model.lm_head.weight = torch.nn.Parameter(2 * model.embedding.weight.detach().clone())
        model.embedding.weight.fill_(1)
        model.layers[0].mixer.out_proj.weight.zero_()
        logits = model(torch.zeros(1, 1, dtype=torch.long, device="cuda")).logits[0, 0, :12].double()
    p = (logits / drawing.get("temperature", 1.0)).softmax(0)[None].cpu()
    p = module.truncated(p, drawing.get("top_k"), drawing.get("top_p"))[0]
    kept = p > 0
    assert kept.sum() > 3
    for path, rows in (("persistent", 1024), ("split", 16), ("together", 1024)):
        precision = "bf16" if path == "together" else "fp32"
        length = (1 << 20) // rows
        tokens = generate(model, length=length, num_samples=rows, prompt=[0], path=path, precision=precision, **drawing)
        counts = tokens.flatten().bincount(minlength=12).double()
        assert counts[~kept].sum() == 0
        # Matrices in bf16 move the distribution itself.
        expected = p[kept] / p[kept].sum() * counts.sum()
        distance = ((counts[kept] - expected) ** 2 / expected).sum()
        assert distance < (40 if precision == "fp32" else 1000)
