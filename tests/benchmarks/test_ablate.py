import csv

import numpy as np
import soundfile


def test_a_variant_is_trained_and_scored_on_the_whole_split(script, tmp_path):
    """A row with what was changed and as many steps as fit, at least 40, and the curve beside it."""
    (tmp_path / "data").mkdir()
    for number in range(3):
        soundfile.write(tmp_path / f"data/{number}.wav", 0.5 * np.sin(np.arange(2000) / (3 + number)), 16_000)
    plan = {
        "recipe": "audio/tiny",
        "set": ["model.d_model=4", "model.pools=[4]", "train.length=64", "train.tokens_per_step=64"],
        "variants": {"growing": ["train.length_warmup=[{length: 32, steps: 50%}]", "train.lr=1e-2"]},
    }
    out = tmp_path / "rows.csv"
    script("ablate").run_one(plan, "growing", [f"data.path={tmp_path / 'data'}"], out, 1e-3, 256)
    with out.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["variant"], row["steps"], row["samples"]) == ("growing", "40", "2560")
    assert row["changes"] == "train.length_warmup=[{length: 32, steps: 50%}] train.lr=1e-2"
    assert 3 < float(row["valid_bits"]) < 9
    assert abs(float(row["valid_bits"]) - float(row["valid_bits_long"])) < 1
    assert float(row["cpu_seconds"]) > 0
    with (tmp_path / "rows_curves.csv").open(newline="") as file:
        assert [int(point["step"]) for point in csv.DictReader(file)] == list(range(5, 41, 5))
