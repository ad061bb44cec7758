"""Settings of prepared recordings, free of everything heavy: the command line is made from them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Of the recipes.
USUAL_RATE_HZ = 16_000
BadFiles = Literal["error", "exclude"]
Channels = Literal["mix", "left", "right"]
Unhealthy = Literal["error", "exclude", "accept"]
CHANNELS_HELP = "Channels of the prepared recordings: their mean, or one of the two."
UNHEALTHY_HELP = (
    "What to do with recordings that are silent, clipped, very quiet or off zero, whose channels cancel each other out, or "
    "that another split has too: stop and name them, leave them out and list them in the manifest, or only name them."
)
BAD_FILES_HELP = "What to do with unusable files: stop and name them, or leave them out and list them in the manifest."


class AudioSettings(BaseModel):
    """How recordings are written and split."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rate: int = Field(USUAL_RATE_HZ, ge=1000, le=384_000, description="Sample rate of the prepared recordings, in Hz.")
    piece_seconds: float | None = Field(
        None, ge=0.01, description="Cut each recording into pieces of this many seconds; by default it stays whole."
    )
    valid_fraction: float = Field(0.06, ge=0, le=1, description="Share of the validation split.")
    test_fraction: float = Field(0.06, ge=0, le=1, description="Share of the test split.")
    channels: Channels = Field("mix", description=CHANNELS_HELP)
    bad_files: BadFiles = Field("error", description=BAD_FILES_HELP)
    unhealthy: Unhealthy = Field("accept", description=UNHEALTHY_HELP)

    @model_validator(mode="after")
    def _something_to_train_on(self) -> AudioSettings:
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                "--valid-fraction and --test-fraction leave nothing to train on; their sum must be below 1"
            )
        return self
