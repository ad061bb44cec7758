"""The Triton head and loss against the oracle, in Triton's interpreter (a process of its own) and on a GPU."""

import os

import pytest
import torch

pytest.importorskip("triton")

from mamba_bio_audio.kernels.loss import gpu as module
from mamba_bio_audio.kernels.loss.gpu import loss_triton
from mamba_bio_audio.kernels.loss.reference import loss_reference

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

LOSS_ERROR = 2e-6  # relative
WEIGHT_ERROR = 1e-5  # relative L2
BF16_ERROR_RATIO = 1.5  # error over that of rounding twice at best
TRUNCATED = 4  # the interpreter truncates to bf16


def make_inputs(rows, columns, classes, dtype, device, ignored):
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(rows, columns, generator=generator).to(device, dtype)
    weight = (torch.randn(classes, columns, generator=generator) * 2 / columns**0.5).to(device)
    targets = torch.randint(classes, (rows,), generator=generator).to(device)
    targets = {"none": targets, "some": targets.where(targets % 3 > 0, -100), "all": targets * 0 - 100}[ignored]
    return x, weight, targets


def gradients(function, x, weight, targets, ignore_index=-100, scale=0.5):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    loss, count = function(x, weight, targets, ignore_index)
    return [loss.detach(), count, *torch.autograd.grad(loss * scale, [x, weight])]


def check(x, weight, targets, ignore_index=-100, slack=1):
    found = gradients(loss_triton, x, weight, targets, ignore_index)
    wide = gradients(loss_reference, x.double(), weight.double(), targets, ignore_index)
    assert [t.dtype for t in found] == [torch.float32, torch.int64, x.dtype, weight.dtype]
    assert [t.shape for t in found] == [t.shape for t in wide]
    assert found[1] == wide[1]
    assert abs(found[0].item() - wide[0].item()) <= slack * LOSS_ERROR * wide[0].item()
    dx, dweight = ((a.double() - b).norm().item() for a, b in zip(found[2:], wide[2:], strict=True))
    assert dweight <= slack * WEIGHT_ERROR * wide[3].norm().item()
    rounded = BF16_ERROR_RATIO * (wide[2].to(x.dtype).double() - wide[2]).norm().item()
    assert dx <= slack * (rounded + WEIGHT_ERROR * wide[2].norm().item())
    again = gradients(loss_triton, x, weight, targets, ignore_index)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.slow  # interprets the kernels
def test_interpreted(run_interpreted):
    run_interpreted()


@pytest.mark.skipif(not INTERPRETING, reason="runs in the process that test_interpreted starts")
class TestInterpreted:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    @pytest.mark.parametrize(
        ("rows", "columns", "classes"),
        [(1, 1, 2), (1, 72, 256), (63, 5, 12), (700, 128, 16), (130, 72, 256), (65, 40, 130), (33, 250, 9)],
    )
    def test_shapes(self, rows, columns, classes, dtype):
        check(*make_inputs(rows, columns, classes, dtype, "cpu", "some"), slack=TRUNCATED)

    def test_wide(self):
        check(*make_inputs(33, 300, 9, torch.bfloat16, "cpu", "some"), slack=TRUNCATED)

    @pytest.mark.parametrize("ignored", ["none", "all"])
    def test_ignored(self, ignored):
        check(*make_inputs(70, 24, 20, torch.bfloat16, "cpu", ignored), slack=TRUNCATED)

    def test_other_targets_and_strides(self):
        x, weight, targets = make_inputs(6, 24, 20, torch.bfloat16, "cpu", "none")
        x, targets = x.view(2, 3, 24).transpose(0, 1), targets.view(2, 3).t()
        check(x, weight.t().contiguous().t(), targets.to(torch.uint8), ignore_index=3, slack=TRUNCATED)

    def test_only_what_is_asked_for(self):
        x, weight, targets = make_inputs(70, 24, 100, torch.bfloat16, "cpu", "some")
        expected = gradients(loss_triton, x, weight, targets, scale=1)
        assert torch.equal(loss_triton(x, weight, targets, -100)[0], expected[0])
        for leaf in enumerate((x, weight)):
            loss, _ = loss_triton(*(t.detach().requires_grad_(t is leaf) for t in (x, weight)), targets, -100)
            assert torch.equal(loss, expected[0])
        leaf = weight.clone().requires_grad_()
        assert torch.equal(torch.autograd.grad(loss_triton(x, leaf, targets, -100)[0], leaf)[0], expected[3])

    def test_a_target_that_is_no_class_is_nan(self):
        x, weight, targets = make_inputs(70, 24, 20, torch.bfloat16, "cpu", "none")
        targets[3] = 20
        assert loss_triton(x, weight, targets, -100)[0].isnan()

    def test_nothing(self):
        check(*make_inputs(0, 24, 20, torch.bfloat16, "cpu", "none"))


def test_what_it_refuses():
    x, weight, targets = torch.zeros(3, 8), torch.zeros(5, 8), torch.zeros(3, dtype=torch.long)
    assert module.unsupported_reason(x, weight) is None
    assert module.unsupported_reason(x.bfloat16(), torch.zeros(512, 8)) is None
    assert "513 classes" in module.unsupported_reason(x, torch.zeros(513, 8))
    assert "of 200 columns" in module.unsupported_reason(torch.zeros(3, 200).bfloat16(), torch.zeros(256, 200))
    with pytest.raises(NotImplementedError, match="float64"):
        loss_triton(x.double(), weight, targets, -100)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="compiles for a GPU")
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize(("columns", "classes"), [(72, 256), (128, 256), (128, 16), (512, 16), (128, 64)])
def test_compiles(columns, classes, arch, launches, compile_for, machine_code):
    x, weight = (torch.empty(n, columns, dtype=torch.bfloat16, device="meta") for n in (1 << 20, classes))
    targets = torch.empty(1 << 20, dtype=torch.long, device="meta")
    module._launch(x, weight, targets, -100, need_x=True, need_weight=True)
    assert [launch.name for launch in launches] == ["loss_kernel", "dweight_kernel"]
    for launch in launches:
        compiled = compile_for(launch, arch)
        assert compiled.metadata.shared <= 99 << 10
        assert arch != 90 or machine_code(compiled).stack == 0, "spills"


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "columns", "classes"), [(70001, 72, 256), (50000, 128, 16), (3001, 512, 12), (1, 40, 500)]
)
def test_gpu(rows, columns, classes, dtype):
    x, weight, targets = make_inputs(rows, columns, classes, dtype, "cuda", "some")
    if module.unsupported_reason(x, weight):
        pytest.skip("fp32 sums of this size are for the torch path")
    check(x, weight, targets)
