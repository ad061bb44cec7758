"""`python -m mamba_bio_audio` is the command; so is `torchrun --nproc-per-node 2 -m mamba_bio_audio`."""

from mamba_bio_audio.cli.main import run

if __name__ == "__main__":
    run()
