"""What a training would take, without training."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from mamba_bio_audio.machine import check_memory
from mamba_bio_audio.run.begin import Session, prepare
from mamba_bio_audio.run.config import RunConfig
from mamba_bio_audio.run.outcomes import Estimate
from mamba_bio_audio.run.preflight import FIT, memory_for_run
from mamba_bio_audio.training.lengths import positions_until
from mamba_bio_audio.training.probe import probe


def dry_run(config: RunConfig, run: Path | None, session: Session) -> Estimate:
    """Make every check of `train`, and measure.

    Writes nothing but, where a FASTA has no index yet, one into the user's cache. A lock stands beside the run while its
    folder is looked at.

    Args:
        config: from `config.load_config`.
        run: folder that the run would be in; None leaves its checks out.
        session: as the training's.

    Raises:
        InputError: whatever `train` would refuse, or more memory than there is.
    """
    device, chosen = session.device, config.train.stream_chunk == "auto"
    with ExitStack() as held:
        place = Path(held.enter_context(tempfile.TemporaryDirectory())) / "run" if run is None else run.resolve()
        prepared = prepare(config, place, session, held)
    config, stages = prepared.config, prepared.stages
    train = config.train
    # Before the probe, which leaves its memory with the allocator of a GPU.
    available = memory_for_run(device)
    estimate = probe(config.model, train, device, config.head)
    check_memory(
        estimate.memory_bytes or 0,  # where the system does not tell
        f"training on {train.micro_batch_for(device):,} x {train.length:,} positions at a time",
        FIT,
        available=available,
        where="the GPU" if device == "cuda" else "this machine",
    )
    return Estimate(
        config=config.model_dump(mode="json"),
        device=device,
        precision=prepared.precision,
        parameters=prepared.model.num_parameters(),
        trained=sum(p.numel() for p in prepared.model.parameters() if p.requires_grad),
        tokens_per_step=train.tokens_per_step,
        micro_batch=train.micro_batch_for(device),
        accumulate=train.accumulate(device),
        tokens=positions_until(stages, train.steps),
        length_stages=[stage.describe() for stage in stages],
        stream_chunk_chosen=chosen,
        memory_bytes=estimate.memory_bytes,
        seconds_per_step=estimate.seconds_per_step,
        seconds=estimate.seconds_per_step * train.steps,
        data=prepared.described,
    )
