"""Settings of the audio data; free of torch."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mamba_bio_audio.pipelines.contract import DataSection


class AudioDataConfig(DataSection):
    """Which recordings, how they are split, read and quantised."""

    audible: ClassVar[bool] = True
    packaged: ClassVar[tuple[str, ...]] = ("demo",)
    kind: Literal["audio"] = Field(default="audio", description="Kind of data.")  # type: ignore[assignment]
    path: str | list[str] | None = Field(
        default=None,
        description="WAV, FLAC, OGG or MP3 file, or another that libsndfile reads; a list of them, or a folder with them, "
        "searched with its subfolders; or `demo` for five seconds of piano that come with the package.",
    )
    intervals: str | None = Field(
        default=None,
        description="Splits: TSV with the header file, split, and optionally start0, end in samples at sample_rate_hz, or "
        "at the rate in a column rate_hz. null: `intervals.tsv` in the folder of data.path if it has these columns, else "
        "whole files in natural order, the last for test and those before them for validation, or the last parts of every "
        "file where the files are too few to give each wanted split one.",
    )
    valid_fraction: float = Field(
        default=0.06, ge=0, lt=1, description="Share of validation when there are no intervals."
    )
    test_fraction: float = Field(default=0.06, ge=0, lt=1, description="Share of test when there are no intervals.")
    sample_rate_hz: int = Field(
        default=16_000, ge=1000, le=384_000, description="Rate of the model; other recordings are resampled."
    )
    bits: int = Field(default=8, description="Depth of the quantiser, 8 to 12.")
    quantizer: Literal["mu-law", "linear"] = Field(default="mu-law", description="Spacing of the levels.")
    variant: Literal["standard", "sashimi"] = Field(
        default="standard",
        description="standard: fixed range [-1, 1]; sashimi: each window scaled to its own range, only to compare "
        "likelihoods with papers.",
    )
    start: Literal["level", "token"] = Field(
        default="level",
        description="What a sequence begins with: the level of silence, as in published models; or a token of its own, "
        "which is never predicted, so that the model can tell a beginning from silence.",
    )
    gain: float = Field(default=1.0, gt=0, le=1e6, description="Every recording is multiplied by this, then clipped.")
    max_duration_s: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="Only the beginning of each file, for clips of one length; null: all of it.",
    )
    drop_short: bool = Field(
        default=False, description="Leave windows shorter than train.length out of training instead of padding them."
    )
    windows: Literal["tile", "random"] = Field(
        default="tile",
        description="Training windows: tiles of the recordings, or random: each read moved by up to half a window within "
        "its recording, anew in every epoch.",
    )
    augment_gain_db: float = Field(
        default=0.0,
        ge=0,
        le=60,
        description="Training windows are made louder or softer by up to this many dB, drawn for each; none so loud that "
        "it clips.",
    )
    augment_polarity: bool = Field(
        default=False, description="Half of the training windows, drawn at random, have their sign changed."
    )
    augment_speed: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description="Training windows are played faster or slower by up to this share, so with another pitch, drawn for "
        "each; what a slower one has beyond the window is cut off.",
    )
    augment_pitch: float = Field(
        default=0.0,
        ge=0,
        le=12,
        description="Training windows have their pitch changed by up to this many semitones at the same speed.",
    )
    augment_shift_s: float = Field(
        default=0.0,
        ge=0,
        le=60,
        description="Training windows begin up to this many seconds later, after silence; what no longer fits is cut off. "
        "For clips of one length.",
    )
    augment_noise: float = Field(
        default=0.0,
        ge=0,
        le=64,
        description="Training windows are read with Gaussian noise, each with its own, of 0 to this many levels of the "
        "quantiser (standard deviation); what is to be predicted stays clean. A model learns from it to find back from "
        "samples of its own.",
    )
    pad_target: Literal["mask", "silence"] = Field(
        default="mask",
        description="Padding in training is not scored, or scored as silence, so that a model knows what follows the "
        "end of a clip. Evaluation never scores it.",
    )
    bad_files: Literal["error", "exclude"] = Field(
        default="error", description="What to do with files that cannot be used: stop, or leave out and list them."
    )
    num_workers: int = Field(default=0, ge=0, le=256, description="Processes that read data beside the main one.")

    @field_validator("bits")
    @classmethod
    def _trainable_depth(cls, bits: int) -> int:
        if not 8 <= bits <= 12:
            raise ValueError(
                f"choose 8 to 12 bits: {bits} bits would be {2**bits if 0 <= bits <= 32 else 'too many'} classes per "
                "sample" + (", which cannot be trained at audio lengths" if bits > 12 else ", too coarse for audio")
            )
        return bits

    @model_validator(mode="after")
    def _something_to_train_on(self) -> "AudioDataConfig":
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction + test_fraction must stay below 1")
        return self
