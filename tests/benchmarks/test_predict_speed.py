"""Every model and length gets its row."""

import csv


def test_rows(script, tmp_path):
    speed = script("predict_speed")
    out = tmp_path / "o.csv"
    speed.main(out, recipe=["dna/short"], length=[64, 128], bases=512, kmer=[3])
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    models = ("dna/short", "k-mers, k = 3")
    assert [(row["model"], row["length"]) for row in rows] == [(m, n) for n in ("64", "128") for m in models]
    assert all(float(row["megabases_per_second"]) > 0 and row["bases"] == "512" for row in rows)
    assert all(row["commit"] and row["device"] == "cpu, 1 threads" for row in rows)
