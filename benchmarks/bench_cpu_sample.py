"""Sampling on one core of a CPU: 12 layers x 128 beside Hugging Face's `generate`, and the U-Net of `audio/tiny`.

    python benchmarks/bench_cpu_sample.py --out benchmarks/results/sample_cpu.csv

fp32, one thread, medians over interleaved pairs in one process; times are CPU time, which other jobs disturb little. The
language model is greedy, with the same weights as the peer, whose tokens must be equal. The U-Net is `audio/tiny`; its
peer is our own step without `inference/cpu_decoder.py`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from bench_cpu import copy_weights
from torch import Tensor

from mamba_bio_audio.inference import generate as sampling
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.run.environment import environment
from mamba_bio_audio.run.timing import write_rows

D_MODEL, NUM_LAYERS, VOCAB = 128, 12, 16


def cpu_seconds(run: Callable[[], Tensor]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def processor() -> str:
    """Vendor and family, for a virtual machine may hide the name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return f"{values.get('model name', 'unknown')}, family {values.get('cpu family')} model {values.get('model')}"


def main(
    out: Annotated[Path, typer.Option(help="CSV to write.")],
    pairs: int = 5,
    length: int = 256,
    batches: str = "1,4,16,64",
) -> None:
    import transformers

    torch.set_num_threads(1)
    rows = []

    def add(
        what: str, peer: str, version: str, batch: int, ours: Callable[[], Tensor], theirs: Callable[[], Tensor]
    ) -> None:
        assert torch.equal(ours(), theirs()), f"{what}, batch {batch}: other symbols"
        times = [(cpu_seconds(ours), cpu_seconds(theirs)) for _ in range(pairs)]
        mine, other = (statistics.median(column) for column in zip(*times, strict=True))
        low, middle, high = statistics.quantiles([b / a for a, b in times], n=4)
        row = {
            "what": what,
            "peer": peer,
            "peer_version": version,
            "batch": batch,
            "symbols": length,
            "pairs": pairs,
            "ours_us_per_step": f"{mine / length * 1e6:.0f}",
            "peer_us_per_step": f"{other / length * 1e6:.0f}",
            "ours_symbols_per_cpu_s": f"{batch * length / mine:.0f}",
            "peer_symbols_per_cpu_s": f"{batch * length / other:.0f}",
            "ratio_median": f"{middle:.2f}",
            "ratio_q1": f"{low:.2f}",
            "ratio_q3": f"{high:.2f}",
            "processor": processor(),
        } | environment("cpu")
        rows.append(row)
        print(
            f"{what:<12} batch {batch:<3} {peer:<12} ours {row['ours_us_per_step']:>6} us, "
            f"peer {row['peer_us_per_step']:>6} us a step, {middle:.2f}x, {row['ours_symbols_per_cpu_s']} symbols/CPU s",
            flush=True,
        )
        write_rows(out, rows)

    config = ModelConfig(d_model=D_MODEL, num_layers=NUM_LAYERS, vocab_size=VOCAB, vocab_multiple=1)
    model = build_model(config, seed=0).eval()
    peer = transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=VOCAB,
            hidden_size=D_MODEL,
            num_hidden_layers=NUM_LAYERS,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()
    names = {"layers.": "backbone.layers.", "embedding.": "backbone.embeddings.", "norm_f.": "backbone.norm_f."}
    copy_weights(model, peer, names)
    for batch in map(int, batches.split(",")):
        prompt = torch.randint(0, VOCAB, (batch, 4), generator=torch.Generator().manual_seed(batch))

        def ours(batch: int = batch, prompt: Tensor = prompt) -> Tensor:
            return sampling.generate(model, length=length, num_samples=batch, prompt=prompt, temperature=0)

        def theirs(prompt: Tensor = prompt) -> Tensor:
            with torch.inference_mode():
                size = {"max_new_tokens": length, "min_new_tokens": length}
                return peer.generate(prompt, **size, do_sample=False, use_cache=True)[:, 4:]  # type: ignore[no-any-return]

        add(f"{NUM_LAYERS}x{D_MODEL}", "huggingface", transformers.__version__, batch, ours, theirs)

    unet = build_model(UNetConfig(d_model=16, num_layers=1, pools=(4, 4), mixer="s4d", vocab_size=256), seed=0).eval()
    unet.codec = AudioCodec()
    for batch in map(int, batches.split(",")):

        def decoder(batch: int = batch) -> Tensor:
            return sampling.generate(unet, length=length, num_samples=batch, seed=1)

        def steps(batch: int = batch) -> Tensor:
            return sampling.generate(unet, length=length, num_samples=batch, seed=1, path="steps")

        add("audio/tiny", "own steps", "", batch, decoder, steps)


if __name__ == "__main__":
    typer.run(main)
