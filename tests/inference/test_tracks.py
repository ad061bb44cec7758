"""Tracks: every value at the coordinate of its base, whichever strand, chunk, region or interruption."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files.tensors import save_tree
from mamba_bio_audio.inference import tracks
from mamba_bio_audio.inference.streaming import Passes, Stopped
from mamba_bio_audio.inference.tracks import DONE_NAME, blocks, finished, plan, score, totals, values_path
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.contract import Symbols
from mamba_bio_audio.pipelines.dna.domain import DOMAIN
from mamba_bio_audio.pipelines.dna.tokenizer import A, C, DnaTokenizer, G, N, T
from mamba_bio_audio.pipelines.spans import Span

CODEC = DnaTokenizer()
SYMBOLS = DOMAIN.symbols(None, 64)
TOLERANCE = 1e-5


class Held:
    """Records in memory; counts what is read."""

    def __init__(self, **records):
        self.ids = records
        self.records = {name: len(ids) for name, ids in records.items()}
        self.longest = self.symbols = 0

    def fetch(self, record, start, end):
        assert 0 <= start <= end <= self.records[record]
        self.longest, self.symbols = max(self.longest, end - start), self.symbols + end - start
        return self.ids[record][start:end]


@pytest.fixture(scope="module")
def model():
    built = build_model(ModelConfig(d_model=16, num_layers=2, vocab_size=12), seed=0).eval()
    torch.nn.init.normal_(built.embedding.weight, generator=torch.Generator().manual_seed(1))
    built.codec = CODEC
    return built


@pytest.fixture
def stored():
    random = np.random.default_rng(4)
    return Held(**{name: random.integers(A, N + 1, size).astype(np.uint8) for name, size in RECORDS.items()})


RECORDS = {"long": 300, "one": 1, "short": 40, "same": 40}


def run(model, stored, folder, spans=None, *, strand="forward", context=None, chunk=64, symbols=SYMBOLS, **passes):
    planned = plan(stored.records, spans, strand=strand, context=context)
    folder.mkdir(exist_ok=True)
    score(model, stored, planned, symbols, CODEC.sample_ids, folder, Passes(chunk=chunk, **passes))
    return planned


def values(folder, planned, **options):
    """Values by record, NaN where there are none."""
    found = {record: np.full(length, np.nan, np.float32) for record, length in planned.lengths.items()}
    for record, start, own in blocks(folder, planned.strand, planned.areas, **options):
        found[record][start : start + len(own)] = own
    return found


def expected(model, ids, strand):
    if strand == "both":
        return (expected(model, ids, "forward") + expected(model, ids, "reverse")) / 2
    row = ids if strand == "forward" else CODEC.reverse_complement(ids)
    own = mba.log_likelihood(model, row.astype(np.int64)).per_base[0].numpy()
    return own if strand == "forward" else own[::-1]


def close(found, wanted):
    assert found == pytest.approx(wanted, abs=TOLERANCE, nan_ok=True)


@pytest.mark.parametrize("strand", ["forward", "reverse", "both"])
@pytest.mark.parametrize("chunk", [1, 50, 1000])
def test_tracks_are_the_log_likelihoods_of_whole_records(model, stored, tmp_path, strand, chunk):
    planned = run(model, stored, tmp_path, strand=strand, chunk=chunk)
    for record, own in values(tmp_path, planned).items():
        close(own, expected(model, stored.ids[record], strand))
    # Every symbol is read once per strand, in pieces; a single one has nothing to be predicted from.
    assert stored.symbols == sum(unit.length for unit in planned.units if unit.length > 1)
    assert stored.longest <= chunk


def test_both_strands_stand_at_the_same_base(tmp_path):
    """Constructed: p(next | last) is known, and a single base differs from its neighbours."""
    log_p = torch.full((12, 12), 0.01).double()
    log_p[A, A] = log_p[T, T] = 0.5
    log_p[A, C], log_p[C, A], log_p[T, G], log_p[G, T] = 0.2, 0.3, 0.05, 0.07
    log_p[:, 0] = 1 - log_p[:, 1:].sum(1)
    log_p = log_p.log()
    head = torch.nn.Linear(12, 12, bias=False).double()
    torch.nn.init.eye_(head.weight)
    table = SimpleNamespace(streaming="constant", lm_head=head, hidden=lambda tokens, state: (log_p[tokens], state))
    ids = np.full(30, A, np.uint8)
    ids[12] = C
    stored = Held(chr1=ids)
    reads = {}
    for strand in ("forward", "reverse", "both"):
        planned = run(table, stored, tmp_path / strand, strand=strand, chunk=7)
        reads[strand] = np.exp(values(tmp_path / strand, planned)["chr1"].astype(np.float64))
    forward, reverse = np.full(30, 0.5), np.full(30, 0.5)
    # C after A at 12, and A after C at 13; on the other strand G after T at 12, and T after G at 11.
    forward[[0, 12, 13]] = np.nan, 0.2, 0.3
    reverse[[29, 12, 11]] = np.nan, 0.05, 0.07
    assert reads["forward"] == pytest.approx(forward, rel=1e-6, nan_ok=True)
    assert reads["reverse"] == pytest.approx(reverse, rel=1e-6, nan_ok=True)
    assert reads["both"] == pytest.approx(np.sqrt(forward * reverse), rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("strand", ["forward", "reverse", "both"])
def test_regions_have_the_values_of_the_whole(model, stored, tmp_path, strand):
    spans = [
        Span("short", 5, 9),
        Span("long", 250, 290),
        Span("long", 20, 60),
        Span("long", 40, 90),
        Span("short", 9, 10),
    ]
    planned = run(model, stored, tmp_path, spans, strand=strand)
    assert [area[:3] for area in planned.areas] == [("long", 20, 90), ("long", 250, 290), ("short", 5, 10)]
    found = values(tmp_path, planned)
    for record, start, end in spans:
        close(found[record][start:end], expected(model, stored.ids[record], strand)[start:end])
    inside = np.zeros(300, bool)
    inside[20:90] = inside[250:290] = True
    assert np.isnan(found["long"][~inside]).all()
    # One stream per strand, from its start to its last region.
    assert [(unit.record, unit.low, unit.high) for unit in planned.units if unit.strand == "forward"] == (
        [] if strand == "reverse" else [("long", 0, 290), ("short", 0, 10)]
    )
    assert [(unit.record, unit.low, unit.high) for unit in planned.units if unit.strand == "reverse"] == (
        [] if strand == "forward" else [("long", 20, 300), ("short", 5, 40)]
    )


@pytest.mark.parametrize("strand", ["forward", "reverse"])
def test_context_is_what_is_read_before_a_region(model, stored, tmp_path, strand):
    spans = [Span("long", 3, 30), Span("long", 100, 130), Span("long", 280, 299)]
    planned = run(model, stored, tmp_path, spans, strand=strand, context=10)
    found = values(tmp_path, planned)["long"]
    for _, start, end in spans:
        low, high = (max(0, start - 10), end) if strand == "forward" else (start, min(300, end + 10))
        own = expected(model, stored.ids["long"][low:high], strand)
        close(found[start:end], own[start - low : end - low])


def test_totals_are_of_the_regions_as_given(model, stored, tmp_path):
    spans = [Span("long", 20, 60), Span("long", 40, 90), Span("short", 0, 1), Span("long", 250, 290)]
    planned = run(model, stored, tmp_path, spans)
    found = [*totals(tmp_path, planned, spans)]
    for (record, start, end), (scored, nats) in zip(spans, found, strict=True):
        own = expected(model, stored.ids[record], "forward")[start:end]
        assert scored == np.isfinite(own).sum()
        assert nats == pytest.approx(np.nansum(own), abs=1e-4)
    assert found[2] == (0, 0.0)
    assert [*totals(tmp_path, planned, [Span("long", 30, 30)])] == [(0, 0.0)]


def test_blocks_begin_at_multiples(model, stored, tmp_path, monkeypatch):
    monkeypatch.setattr(tracks, "BLOCK", 16)
    planned = run(model, stored, tmp_path, [Span("long", 20, 90)], strand="both")
    cut = [(start, len(own)) for _, start, own in blocks(tmp_path, "both", planned.areas, 7)]
    assert cut == [(20, 8), (28, 14), (42, 14), (56, 14), (70, 14), (84, 6)]
    close(values(tmp_path, planned, multiple=7)["long"][20:90], values(tmp_path, planned)["long"][20:90])
    with pytest.raises(Stopped):
        values(tmp_path, planned, stop=lambda: True)


def test_an_interrupted_run_is_continued(model, stored, tmp_path):
    asked = 0

    def stop():
        nonlocal asked
        asked += 1
        return asked > 5

    with pytest.raises(Stopped):
        run(model, stored, tmp_path, strand="both", chunk=50, stop=stop)
    done = finished(tmp_path)
    assert 0 < len(done) < 8
    with (tmp_path / DONE_NAME).open("a") as noted:
        noted.write("7")  # cut short by a kill
    assert finished(tmp_path) == done
    # Nothing that is finished is read again.
    read = 0

    def count(symbols):
        nonlocal read
        read += symbols

    planned = run(model, stored, tmp_path, strand="both", chunk=50, progress=count)
    left = [unit.length - 1 for unit in planned.units if unit.number not in done]
    # Nor the first piece of the one that was interrupted.
    assert read == sum(left) - 50
    for record, own in values(tmp_path, planned).items():
        close(own, expected(model, stored.ids[record], "both"))
    assert finished(tmp_path) == {unit.number for unit in planned.units}


@pytest.mark.parametrize("way", ["signal", "kill"])
@pytest.mark.parametrize("backbone", ["isotropic", "unet"])
@pytest.mark.parametrize("start_id", [None, 2])
def test_a_long_record_is_continued_within(tmp_path, monkeypatch, way, backbone, start_id):
    sizes = {"d_model": 8, "num_layers": 1, "vocab_size": 12}
    model = build_model(
        ModelConfig(**sizes) if backbone == "isotropic" else UNetConfig(**sizes, pools=[4]), seed=0
    ).eval()
    torch.nn.init.normal_(model.embedding.weight, generator=torch.Generator().manual_seed(1))
    symbols = SYMBOLS if start_id is None else Symbols(unit="sample", pad_id=4, start_id=start_id)
    strand = "reverse" if start_id is None else "forward"
    stored = Held(a=np.random.default_rng(6).integers(A, N + 1, 503).astype(np.uint8))
    options = {"strand": strand, "symbols": symbols, "chunk": 50}
    wanted = values(tmp_path / "whole", run(model, stored, tmp_path / "whole", **options))["a"]
    part, passes, counted = tmp_path / "part", 0, []

    def interrupt():
        nonlocal passes
        passes += 1
        if way == "kill" and passes == 5:
            raise KeyboardInterrupt
        return passes == 5

    if way == "kill":
        monkeypatch.setattr(tracks, "SAVE_SECONDS", 0)
    for _ in range(2):
        passes = 0
        with pytest.raises(Stopped if way == "signal" else KeyboardInterrupt):
            run(model, stored, part, stop=interrupt, **options)
    planned = run(model, stored, part, progress=counted.append, **options)
    close(values(part, planned)["a"], wanted)
    # Twice four pieces had been read.
    assert sum(counted) == 503 - (start_id is None) - 400
    assert (part / tracks.STATE_NAME).exists()


def test_a_damaged_state_is_one_clear_error(model, stored, tmp_path):
    save_tree(tmp_path / tracks.STATE_NAME, ["x"])
    with pytest.raises(InputError, match=r"state\.safetensors: damaged \(ValueError\); start again with --force"):
        run(model, stored, tmp_path)


def test_short_records_are_read_together(model, tmp_path):
    random = np.random.default_rng(5)
    stored = Held(**{f"r{number}": random.integers(A, N, 20).astype(np.uint8) for number in range(20)})
    passes = 0

    def count(symbols):
        nonlocal passes
        passes += 1

    planned = run(model, stored, tmp_path, chunk=400, progress=count)
    assert passes == 1
    for record, own in values(tmp_path, planned).items():
        close(own, expected(model, stored.ids[record], "forward"))


def test_a_start_symbol_gives_the_first_symbol_a_value(model, tmp_path):
    stored = Held(a=np.array([A, C, G], np.uint8))
    planned = run(model, stored, tmp_path, symbols=Symbols(unit="sample", pad_id=4, start_id=2))
    ids = torch.tensor([[2, A, C, G]])
    close(values(tmp_path, planned)["a"], mba.log_likelihood(model, ids).per_base[0, 1:].numpy())


def test_memory_does_not_grow_with_the_record(tmp_path):
    class Endless(Held):
        def fetch(self, record, start, end):
            assert end - start <= 1 << 12
            return np.full(end - start, A, np.uint8)

    head = torch.nn.Linear(4, 12)
    flat = SimpleNamespace(
        streaming="constant", lm_head=head, hidden=lambda tokens, state: (torch.zeros(*tokens.shape, 4), state)
    )
    peaks = []
    for power in (15, 20):
        endless = Endless()
        endless.records = {"chrX": 1 << power}
        tracemalloc.start()
        planned = run(flat, endless, tmp_path / str(power), strand="both", chunk=1 << 12)
        for _ in blocks(tmp_path / str(power), "both", planned.areas):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert values_path(tmp_path / str(power), "reverse").stat().st_size == 4 << power
    assert peaks[1] < 2 * peaks[0] + (1 << 20)


def test_likelihoods_that_are_not_finite_are_no_missing_bases(model, stored, tmp_path):
    broken = build_model(ModelConfig(d_model=16, num_layers=1, vocab_size=12), seed=0).eval()
    torch.nn.init.constant_(broken.norm_f.weight, torch.nan)
    with pytest.raises(RuntimeError, match="its weights are not usable"):
        run(broken, stored, tmp_path)
