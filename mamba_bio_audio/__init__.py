"""Long-context Mamba foundation models for genomes and raw audio.

>>> import mamba_bio_audio as mba
>>> model = mba.load("runs/mine")  # doctest: +SKIP
>>> tokens = mba.generate(model, length=1000)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_bio_audio.inference.embed import embed as embed
    from mamba_bio_audio.inference.generate import generate as generate
    from mamba_bio_audio.inference.positions import predict_along as predict_along
    from mamba_bio_audio.inference.predict import predict as predict
    from mamba_bio_audio.inference.score import log_likelihood as log_likelihood
    from mamba_bio_audio.inference.variants import score_variants as score_variants
    from mamba_bio_audio.run.saved import load as load

__version__ = "0.1.0"
# Public functions, and the modules that are imported when they are first used: `mba --help` must not wait for torch.
_FUNCTIONS = {
    "embed": "inference.embed",
    "generate": "inference.generate",
    "load": "run.saved",
    "log_likelihood": "inference.score",
    "predict": "inference.predict",
    "predict_along": "inference.positions",
    "score_variants": "inference.variants",
}
__all__ = ["__version__", *_FUNCTIONS]


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FUNCTIONS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
