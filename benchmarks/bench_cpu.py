"""Training step and forward pass on a CPU beside mambapy and Hugging Face's Mamba with its fast path, same weights.

    python benchmarks/bench_cpu.py --out benchmarks/results/cpu.csv

12 layers x 128 at L = 1024, batch 1, fp32, 2 threads. Each pair runs ours, then the peer, in one process; reported are
medians, and the median and quartiles of the ratio within pairs. Correctness first: logits and a gradient must agree. A
training step is forward, loss and backward. Run it on an idle machine: two threads that wait for each other on busy
cores measure the scheduler.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.run.environment import environment
from mamba_bio_audio.run.timing import interleaved, write_rows

D_MODEL, NUM_LAYERS, LENGTH, VOCAB = 128, 12, 1024, 16


class Mambapy(nn.Module):
    """mambapy's stack with embedding, final norm and tied head."""

    def __init__(self) -> None:
        from mambapy.mamba import Mamba, MambaConfig, RMSNorm

        super().__init__()
        self.embedding = nn.Embedding(VOCAB, D_MODEL)
        self.stack = Mamba(MambaConfig(d_model=D_MODEL, n_layers=NUM_LAYERS))
        self.norm_f = RMSNorm(D_MODEL, 1e-5)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.norm_f(self.stack(self.embedding(tokens))), self.embedding.weight)


def hugging_face() -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM
    from transformers.utils.import_utils import is_mambapy_available

    # Without it transformers steps through the sequence in Python, which is no peer.
    assert is_mambapy_available(), "pip install mambapy: transformers' faster path needs it"
    config = MambaConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        num_hidden_layers=NUM_LAYERS,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        use_cache=False,
        use_mambapy=True,
    )
    return MambaForCausalLM(config)


def copy_weights(ours: nn.Module, peer: nn.Module, prefix: dict[str, str]) -> None:
    """Same values under the peer's names; `prefix` maps the start of a name."""
    state = {}
    for name, tensor in ours.state_dict().items():
        if name == "lm_head.weight":
            continue
        for start, theirs in prefix.items():
            if name.startswith(start):
                state[theirs + name.removeprefix(start)] = tensor
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"}, missing
    assert not unexpected, unexpected


def main(
    out: Annotated[Path, typer.Option(help="CSV to write.")],
    pairs: int = 10,
    threads: int = 2,
    peers: Annotated[list[str], typer.Option()] = ["mambapy", "huggingface"],  # noqa: B006
) -> None:
    import importlib.metadata

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ours = build_model(ModelConfig(d_model=D_MODEL, num_layers=NUM_LAYERS, vocab_size=VOCAB, vocab_multiple=1), seed=0)
    tokens = torch.randint(7, 11, (1, LENGTH + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def our_step() -> None:
        ours.zero_grad()
        output = ours(inputs, targets=targets, logits="none")
        (output.loss_sum / LENGTH).backward()

    def our_forward() -> Tensor:
        with torch.no_grad():
            return ours(inputs).logits

    rows = []
    for name in peers:
        if name == "mambapy":
            peer: nn.Module = Mambapy()
            names = {"layers.": "stack.layers.", "embedding.": "embedding.", "norm_f.": "norm_f."}
        else:
            peer = hugging_face()
            names = {
                "layers.": "backbone.layers.",
                "embedding.": "backbone.embeddings.",
                "norm_f.": "backbone.norm_f.",
            }
        copy_weights(ours, peer, names)

        def peer_logits(peer: nn.Module = peer) -> Tensor:
            result = peer(inputs)
            return result if isinstance(result, Tensor) else result.logits

        def peer_step(peer: nn.Module = peer, peer_logits: Callable[[], Tensor] = peer_logits) -> None:
            peer.zero_grad()
            F.cross_entropy(peer_logits().flatten(0, 1), targets.flatten()).backward()

        def peer_forward(peer_logits: Callable[[], Tensor] = peer_logits) -> Tensor:
            with torch.no_grad():
                return peer_logits()

        expected = our_forward()
        error = (peer_forward() - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, f"{name}: logits differ by {error:.1e}"
        our_step()
        peer_step()
        key = "layers.3.mixer.in_proj.weight"
        theirs = dict(peer.named_parameters())[names["layers."] + key.removeprefix("layers.")].grad
        mine = dict(ours.named_parameters())[key].grad
        error = (theirs - mine).norm() / mine.norm()
        assert error < 1e-3, f"{name}: gradients differ by {error:.1e}"

        package = {"huggingface": "transformers"}.get(name, name)
        for mode, a, b in (("training step", our_step, peer_step), ("forward", our_forward, peer_forward)):
            timing = interleaved(a, b, "cpu", pairs=pairs, seconds=math.inf)
            low, middle, high = timing.ratio()
            row = {
                "peer": name,
                "peer_version": importlib.metadata.version(package),
                "mode": mode,
                "shape": f"{NUM_LAYERS}x{D_MODEL}, L={LENGTH}, batch 1, fp32",
                "pairs": pairs,
                "ours_ms": f"{statistics.median(timing.ours):.1f}",
                "peer_ms": f"{statistics.median(timing.peer or []):.1f}",
                "ratio_median": f"{middle:.2f}",
                "ratio_q1": f"{low:.2f}",
                "ratio_q3": f"{high:.2f}",
            } | environment("cpu")
            rows.append(row)
            print(f"{name:<12} {mode:<14} ours {row['ours_ms']:>9} ms  peer {row['peer_ms']:>9} ms  {middle:.2f}x")
            write_rows(out, rows)


if __name__ == "__main__":
    typer.run(main)
