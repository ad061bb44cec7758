"""What operations keep for their backward, for models that know how much memory there is."""

from mamba_bio_audio.kernels.kept import mixers_keep, piece_of

__all__ = ["mixers_keep", "piece_of"]
