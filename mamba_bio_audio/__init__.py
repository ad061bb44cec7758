"""Long-context Mamba foundation models for genomes and raw audio.

>>> import mamba_bio_audio as mba
>>> sorted(mba.__all__)
['__version__', 'generate', 'load']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_bio_audio.inference.generate import generate
    from mamba_bio_audio.run.saved import load

__version__ = "0.1.0.dev0"
__all__ = ["__version__", "generate", "load"]


def __getattr__(name: str) -> Any:
    # Importing the package must not import torch: `mba --help` answers at once.
    if name == "load":
        from mamba_bio_audio.run.saved import load

        return load
    if name == "generate":
        from mamba_bio_audio.inference.generate import generate

        return generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
