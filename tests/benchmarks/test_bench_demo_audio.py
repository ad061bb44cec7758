"""What `benchmarks/bench_demo_audio.py` keeps of a demo."""

from types import SimpleNamespace


def test_a_row_has_the_bits_beside_order_2_the_notes_and_the_seconds_of_the_processor(script):
    bench = script("bench_demo_audio")
    result = {
        "evaluation": {"model": {"bits": 2.5}, "yardsticks": {"order 2": 5.25, "LPC-32": 5.125}},
        "melody": {"learnt": [1, 2, 3, 4], "heard": [2, 3, 4], "share": 0.75, "shuffled": 0.25},
    }
    row = bench.row_of(3, result, SimpleNamespace(ru_utime=100.0, ru_stime=1.5))
    assert row == {
        "seed": 3,
        "bits": 2.5,
        "order_2_bits": 5.25,
        "lpc_32_bits": 5.125,
        "notes": 4,
        "notes_heard": 3,
        "share": 0.75,
        "shuffled": 0.25,
        "cpu_s": 101.5,
    }
    assert set(row) < set(bench.FIELDS)
