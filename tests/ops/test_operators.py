"""The operators behind torch.compile and torch.export: schema, fakes, gradients, and whole layers and models."""

import io

import pytest
import torch

from mamba_bio_audio import ops
from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.layers.contract import find_mixer
from mamba_bio_audio.layers.mamba import MambaLayer
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig

B, L, D, N = 2, 5, 4, 3
OPERATORS = torch.ops.mamba_bio_audio
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu])]


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


def normal(*shape, device="cpu"):
    return torch.randn(*shape, device=device).requires_grad_()


def scan_arguments(device, *, complex_modes=False, optional=True):
    states = (N, 2) if complex_modes else (N,)
    A = -torch.rand(D, *states, device=device) - 0.1
    required = (normal(B, L, D, device=device), normal(B, L, D, device=device), A.requires_grad_())
    required += (normal(B, L, *states, device=device), normal(B, L, *states, device=device))
    reset = torch.zeros(B, L, dtype=torch.bool, device=device)
    reset[:, 2] = True
    rest = (normal(D, device=device), normal(B, L, D, device=device), normal(D, device=device))
    rest += (normal(B, D, *states, device=device), reset)
    return (*required, *(rest if optional else (None,) * 5), True, False, False)


SCHEMAS = """
selective_scan(Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, Tensor? h0, \
Tensor? reset, bool dt_softplus, bool exact_zoh, bool precise) -> (Tensor, Tensor)
selective_scan_backward(Tensor? g_out, Tensor? g_state, Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, \
Tensor? z, Tensor? dt_bias, Tensor? h0, Tensor? reset, bool dt_softplus, bool exact_zoh, bool precise) -> Tensor[]
causal_conv1d(Tensor x, Tensor weight, Tensor? bias, Tensor? tail, Tensor? reset, bool silu) -> Tensor
causal_conv1d_backward(Tensor g, Tensor x, Tensor weight, Tensor? bias, Tensor? tail, Tensor? reset, bool silu) -> Tensor[]
rms_norm(Tensor x, Tensor weight, Tensor? residual, float eps) -> Tensor[]
rms_norm_backward(Tensor? g_y, Tensor? g_stream, Tensor x, Tensor weight, Tensor? residual, float eps) -> Tensor[]
ssd(Tensor x, Tensor a, Tensor B, Tensor C, Tensor? source, Tensor? diagonal, Tensor? D, Tensor? h0, Tensor? reset) -> \
(Tensor, Tensor)
ssd_backward(Tensor? g_y, Tensor? g_state, Tensor x, Tensor a, Tensor B, Tensor C, Tensor? source, Tensor? diagonal, \
Tensor? D, Tensor? h0, Tensor? reset) -> Tensor[]
gated_rms_norm(Tensor x, Tensor gate, Tensor weight, float eps, SymInt groups, bool gate_first) -> Tensor
gated_rms_norm_backward(Tensor g, Tensor x, Tensor gate, Tensor weight, float eps, SymInt groups, bool gate_first) -> Tensor[]
linear_cross_entropy(Tensor x, Tensor weight, Tensor targets, SymInt ignore_index) -> (Tensor, Tensor)
linear_cross_entropy_backward(Tensor g, Tensor x, Tensor weight, Tensor targets, SymInt ignore_index) -> Tensor[]
"""


@pytest.mark.parametrize("schema", SCHEMAS.strip().splitlines())
def test_graphs_that_were_exported_find_their_operators(schema):
    """A saved graph holds an operator's name and the names and order of its arguments."""
    assert str(getattr(OPERATORS, schema.split("(")[0]).default._schema) == f"mamba_bio_audio::{schema}"


@pytest.mark.parametrize("options", [{}, {"optional": False}, {"complex_modes": True}])
def test_scan_operator(device, options):
    torch.library.opcheck(OPERATORS.selective_scan.default, scan_arguments(device, **options))


@pytest.mark.parametrize("optional", [True, False])
def test_convolution_operator(device, optional):
    tail = normal(B, 3, D, device=device) if optional else None
    bias = normal(D, device=device) if optional else None
    arguments = (normal(B, L, D, device=device), normal(D, 4, device=device), bias, tail, None, True)
    torch.library.opcheck(OPERATORS.causal_conv1d.default, arguments)


@pytest.mark.parametrize("with_residual", [True, False])
def test_norm_operator(device, with_residual):
    residual = normal(B, L, D, device=device) if with_residual else None
    arguments = (normal(B, L, D, device=device), normal(D, device=device), residual, 1e-5)
    torch.library.opcheck(OPERATORS.rms_norm.default, arguments)


@pytest.mark.parametrize("optional", [True, False])
def test_ssd_operator(device, optional):
    heads, channels = 4, 2
    a = -torch.rand(B, L, heads, device=device)
    arguments = [normal(B, L, heads, channels, device=device), a.requires_grad_()]
    arguments += [normal(B, L, 2, N, device=device) for _ in "BC"]
    shapes = (B, L, heads), (B, L, heads), (heads,), (B, heads, channels, N)
    arguments += [normal(*shape, device=device) if optional else None for shape in shapes]
    reset = torch.zeros(B, L, dtype=torch.bool, device=device)
    reset[:, 2] = True
    torch.library.opcheck(OPERATORS.ssd.default, (*arguments, reset if optional else None))


def test_gated_norm_operator(device):
    arguments = (
        normal(B, L, D, device=device),
        normal(B, L, D, device=device),
        normal(D, device=device),
        1e-5,
        2,
        False,
    )
    torch.library.opcheck(OPERATORS.gated_rms_norm.default, arguments)


def test_loss_operator(device):
    targets = torch.randint(8, (B, L), device=device)
    arguments = (normal(B, L, D, device=device), normal(8, D, device=device), targets, -100)
    torch.library.opcheck(OPERATORS.linear_cross_entropy.default, arguments)


def test_operator_gradients_are_those_of_the_operation():
    *tensors, softplus, zoh, precise = scan_arguments("cpu")
    leaves = [t for t in tensors if t.is_floating_point()]

    def gradients(out, state):
        return torch.autograd.grad(out.square().sum() + state.sin().sum(), leaves)

    found = gradients(*OPERATORS.selective_scan(*tensors, softplus, zoh, precise))
    u, dt, A, b, c, d, z, bias, h0, reset = tensors
    expected = gradients(*ops.selective_scan(u, dt, A, b, c, d, z, bias, h0=h0, reset=reset, return_state=True))
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_what_a_result_does_not_depend_on_has_a_gradient_of_zeros():
    """The stream of a norm does not depend on the weight, nor the last state of a scan on C, D and z."""
    x, weight, residual = normal(B, L, D), normal(D), normal(B, L, D)
    _, stream = OPERATORS.rms_norm(x, weight, residual, 1e-5)
    assert not torch.autograd.grad(stream.sum(), weight)[0].any()
    arguments = scan_arguments("cpu")
    _, state = OPERATORS.selective_scan(*arguments)
    for gradient in torch.autograd.grad(state.sum(), [arguments[i] for i in (4, 5, 6)]):
        assert not gradient.any()


@pytest.mark.parametrize("complex_modes", [True, False])
def test_oracle_compiles_whole(complex_modes):
    """It needs no operator: it is plain PyTorch."""
    u, dt, A, b, c, *_ = scan_arguments("cpu", complex_modes=complex_modes)

    def run(*tensors):
        return ops.selective_scan(*tensors, backend="reference")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(u, dt, A, b, c), run(u, dt, A, b, c), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("selective", [True, False])
def test_layer_compiles_whole(device, selective):
    """`aot_eager` traces forward and backward as `inductor` does, without a C++ compiler at work in CI."""
    layer = MambaLayer(8, SsmConfig(complex=not selective, selective=selective, d_state=N)).to(device)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(B, L, 8, device=device)
    with torch.no_grad():
        _, state = layer(x)
    results = []
    for run in (layer, compiled):
        leaf = x.clone().requires_grad_()
        y, after = run(leaf, state)
        loss = y.square().sum() + after.ssm.sum() + after.tail.sum()
        results.append([y, *after, *torch.autograd.grad(loss, [leaf, *layer.parameters()])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mamba2", "retnet"])
def test_layers_of_the_state_space_dual_compile_whole(device, name):
    of, preset = find_mixer(name)
    layer = of(**preset).layers(16, 1)[0].to(device)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(B, L, 16, device=device)
    with torch.no_grad():
        _, state = layer(x)
    results = []
    for run in (layer, compiled):
        leaf = x.clone().requires_grad_()
        y, after = run(leaf, state)
        loss = y.square().sum() + sum(t.sum() for t in after)
        results.append([y, *after, *torch.autograd.grad(loss, [leaf, *layer.parameters()])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    lengths = {1: torch.export.Dim("length", min=3, max=4096)}
    exported = torch.export.export(layer, (x,), dynamic_shapes=(lengths,))
    longer = torch.randn(B, 3 * L, 16, device=device)
    torch.testing.assert_close(exported.module()(longer)[0], layer(longer)[0], rtol=1e-5, atol=1e-5)


def test_layer_exports_for_any_length_and_through_a_file(device):
    layer = MambaLayer(8, SsmConfig(complex=False, selective=True, d_state=N)).to(device)
    lengths = {1: torch.export.Dim("length", min=3, max=4096)}
    exported = torch.export.export(layer, (torch.randn(B, L, 8, device=device),), dynamic_shapes=(lengths,))
    # The scan is in a graph of its own, without autocast.
    graphs = [part.graph for part in exported.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    called = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"}
    assert {"mamba_bio_audio.causal_conv1d.default", "mamba_bio_audio.selective_scan.default"} <= called
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file)
    for length in (3, L, 70):
        x = torch.randn(B, length, 8, device=device)
        for found, expected in zip(loaded.module()(x)[1], layer(x)[1], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loaded.module()(x)[0], layer(x)[0], rtol=1e-5, atol=1e-5)


def test_language_model_exports_through_a_file(device):
    model = build_model(ModelConfig(d_model=8, num_layers=2, vocab_size=12), seed=0).to(device).eval()
    tokens = torch.randint(7, 11, (B, L), device=device)
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (tokens,)), file)
    file.seek(0)
    found = torch.export.load(file).module()(tokens)
    torch.testing.assert_close(found.logits, model(tokens).logits, rtol=1e-5, atol=1e-5)


def test_language_model_compiles_whole(device):
    model = build_model(ModelConfig(d_model=8, num_layers=2, vocab_size=12), seed=0).to(device)
    tokens = torch.randint(7, 11, (B, L), device=device)

    def loss(run):
        out = run(tokens, targets=tokens, logits="none")
        (g,) = torch.autograd.grad(out.loss_sum, model.embedding.weight)
        return out.loss_sum.detach(), g

    expected = loss(model)
    for a, b in zip(loss(torch.compile(model, fullgraph=True, backend="aot_eager")), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_inductor_under_autocast():
    model = build_model(ModelConfig(d_model=64, num_layers=2, vocab_size=12), seed=0).cuda()
    tokens = torch.randint(7, 11, (2, 300), device="cuda")
    losses = []
    for run in (model, torch.compile(model, fullgraph=True)):
        with torch.autocast("cuda", torch.bfloat16):
            losses.append(run(tokens, targets=tokens, logits="none").loss_sum)
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=5e-3, atol=0)
