"""Settings of labelled recordings; free of torch."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mamba_bio_audio.pipelines.audio.config import AudioDataConfig


class AudioClassesConfig(AudioDataConfig):
    """Which labelled recordings, how they are split, read and quantised: the class of a clip is its folder."""

    tasks: ClassVar[tuple[str, ...]] = ("classes",)
    audible: ClassVar[bool] = False
    packaged: ClassVar[tuple[str, ...]] = ()
    kind: Literal["audio-classes"] = Field(default="audio-classes", description="Kind of data.")  # type: ignore[assignment]
    classes: list[str] | None = Field(
        default=None,
        min_length=2,
        description="Folder names in the order of their numbers, or some of them; null: all, sorted. Digits are not in "
        "the order of the alphabet: name them.",
    )
    pad_target: Literal["mask", "silence"] = Field(
        default="mask",
        description="What follows a short clip: nothing, the class is read where it ends; or silence up to train.length, "
        "as in data sets of clips of one length.",
    )

    @model_validator(mode="after")
    def _clips_are_whole(self) -> "AudioClassesConfig":
        if self.windows != "tile" or any(
            getattr(self, key) for key in type(self).model_fields if key[:8] == "augment_"
        ):
            raise ValueError(
                "clips with classes are read whole and as they are: leave windows and augment_* as they are"
            )
        return self
