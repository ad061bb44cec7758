"""Linear prediction beside audio models: how many bits by order, on validation, and the tuned one on both held-out splits.

    python benchmarks/lpc_orders.py --data DATA/piano --intervals FILE.tsv --name rendered --out FILE.csv

`tuned` is the bar of `mba evaluate` (`pipelines/audio/yardsticks.py`): order, window and half-life chosen on up to 2^20
samples of validation. Beside it stand LPC-32 and, on those samples alone (split `choice`), orders at the tuned half-life in a
window of 16 times their length, and the neighbours of the tuned one. FILE.tsv names the split of each recording as
`benchmarks/device/audio_kit.sh` writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.audio.yardsticks import LPC_32, Linear, linear_prediction_bits, runs, spread, tune
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.run.timing import append_row, provenance

ORDERS = (16, 32, 64, 128, 256, 512, 1024)


def main(
    data: Annotated[Path, typer.Option(help="Folder of recordings.")],
    intervals: Annotated[Path, typer.Option(help="Which recording is in which split.")],
    name: Annotated[str, typer.Option(help="Of the data, in the rows.")],
    out: Annotated[Path, typer.Option(help="CSV; rows are added.")],
    rate: Annotated[int, typer.Option(help="Hz.")] = 16_000,
) -> None:
    config = AudioDataConfig(path=str(data), intervals=str(intervals), sample_rate_hz=rate)
    module = DataModule(config, length=1024, batch_size=1, seed=0)
    module.setup()
    choice, codec, where = spread(runs(module, "valid")), module.codec, provenance("cpu")

    def row(split: str, how: Linear, levels: list, what: str) -> None:
        count = sum(map(len, levels))
        bits = sum(float(linear_prediction_bits(part, codec, how).sum()) for part in levels) / count
        found = {"data": name, "rate_hz": rate, "split": split, "what": what, **how._asdict(), "samples": count}
        print(found | {"bits": f"{bits:.4f}"}, flush=True)
        append_row(out, found | {"bits": f"{bits:.4f}"} | where)

    tuned, edges = tune(choice, codec)
    print(name, tuned, edges or "inside what was tried", flush=True)
    for split in ("valid", "test"):
        levels = list(runs(module, split))
        for how, what in ((LPC_32, "LPC-32"), (tuned, "tuned")):
            row(split, how, levels, what)
    for order in ORDERS:
        row("choice", Linear(order, max(2048, 16 * order), tuned.half_life), choice, "order")
    for field in Linear._fields:
        for by in (0.5, 1.0, 2.0) if field == "order" else (0.5, 2.0):
            other = tuned._replace(**{field: int(by * getattr(tuned, field))})
            row("choice", other, choice, "tuned" if other == tuned else f"neighbour in {field}")


if __name__ == "__main__":
    typer.run(main)
