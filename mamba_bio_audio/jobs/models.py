"""`mba models`: the models that come with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mamba_bio_audio.jobs.contract import Options, Result

COMMAND = "models"
PANEL = "Use"


class ModelsOptions(Options):
    """Options of `mba models`."""


class PackagedModel(BaseModel):
    """A packaged model.

    Attributes:
        name: to be given as RUN.
        folder: where it lies.
        model: mixer, layers and width, in words.
        parameters: number of weights.
        size_bytes: size of the file of weights.
        saw: what it was trained on.
        trained_length: length of its training windows, in `unit`s; it reads on beyond that, untrained.
        unit: "base" or "sample".
        told_by: by which of the scores' figures the model is told, "perplexity" or "bits".
        grows: the kind of layer whose memory grows with the length; None where there is none.
        use: what it may be used for.
        licence: of the weights.
        scores: by split, what the model reaches and what the best simple model does, as in its `config.json`.
        measured: other results, as sentences.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    folder: Path
    model: str
    parameters: int
    size_bytes: int
    saw: str
    trained_length: int
    unit: str
    told_by: str
    grows: str | None
    use: str
    licence: str
    scores: dict[str, dict[str, Any]]
    measured: tuple[str, ...]

    def text(self) -> str:
        """A few lines."""
        lines = [
            f"{self.name}: {self.use}",
            f"  {self.model}, {self.parameters:,} parameters, {self.size_bytes / 1e6:.1f} MB, licence {self.licence}",
            f"  saw {self.saw}",
            f"  trained on windows of {self.trained_length:,} {self.unit}s; "
            + (f"memory grows with the length ({self.grows})" if self.grows else "reads any length in constant memory"),
        ]
        for split, scores in self.scores.items():
            shown = [
                f"{who} {found[self.told_by]:.3f}"
                for who, found in scores.items()
                if isinstance(found, dict) and self.told_by in found
            ]
            if shown:
                lines.append(f"  {self.told_by} on {split}: {', '.join(shown)}")
        return "\n".join([*lines, *(f"  {sentence}" for sentence in self.measured)])


class ModelsResult(Result):
    """The packaged models, in order of name."""

    models: tuple[PackagedModel, ...]

    def text(self) -> str:
        """The models, and what to do with one."""
        if not self.models:
            return "this installation holds no packaged models"
        first = self.models[0].name
        closing = f"Give a name as RUN, for example: mba sample {first} --length 10000"
        return "\n\n".join([*(model.text() for model in self.models), closing])

    def to_json(self) -> Any:
        """The list alone."""
        return super().to_json()["models"]


def run(options: ModelsOptions) -> ModelsResult:
    """List the models that come with the package: size, what they saw, what they reach."""
    from mamba_bio_audio.run.packaged import packaged_models

    return ModelsResult(models=tuple(_describe(name, folder) for name, folder in packaged_models().items()))


def _describe(name: str, folder: Path) -> PackagedModel:
    from mamba_bio_audio.models.size import count_parameters
    from mamba_bio_audio.pipelines.domains import domain_of
    from mamba_bio_audio.run.config import validate
    from mamba_bio_audio.run.packaged import read_about

    ours = json.loads((folder / "config.json").read_text(encoding="utf-8"))["mamba_bio_audio"]
    config, facts = validate(ours["config"], name, saved=True), read_about(ours["manifest"])
    assert facts is not None
    model = config.model
    return PackagedModel(
        name=name,
        folder=folder,
        model=model.outline,
        parameters=count_parameters(model, config.head),
        size_bytes=(folder / "model.safetensors").stat().st_size,
        saw=facts.saw,
        trained_length=config.train.length,
        unit=domain_of(config.data.kind).unit,
        told_by=domain_of(config.data.kind).told_by,
        grows=model.unstreamed,
        use=facts.use,
        licence=facts.licence,
        scores=ours["manifest"].get("evaluations", {}),
        measured=facts.measured,
    )
