"""Variants scored from forked states: equal to reading both alleles whole, on both strands, whatever shares an anchor."""

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

import mamba_bio_audio.inference.forked as forked
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.forked import Change, anchor, log_ratios
from mamba_bio_audio.inference.streaming import Passes
from mamba_bio_audio.inference.variants import score_variants
from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

CODEC = DnaTokenizer()


def dna(length: int, seed: int = 0) -> str:
    return np.random.default_rng(seed).choice(np.frombuffer(b"ACGT", np.uint8), length).tobytes().decode()


def flip(text: str) -> str:
    return CODEC.decode(CODEC.reverse_complement(CODEC.encode(text)))


SEQUENCE = dna(3000)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=12, d_model=16, num_layers=2, ssm=SsmConfig(d_state=4))
    made = IsotropicModel(config).eval()
    # Larger than at the start of a training, so that a base more or less is seen.
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2)
    return made


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    path = tmp_path_factory.mktemp("genome") / "g.fa"
    unknown = SEQUENCE[:1500] + "N" * 20 + SEQUENCE[1520:]
    path.write_text(f">c\n{SEQUENCE}\n>n\n{unknown}\n>chr1\n{SEQUENCE[:400]}\n")
    return Genome(path)


def log_likelihood(model, text: str, low: int, high: int) -> float:
    """log p of [low, high) given all that stands before, in one pass."""
    ids = torch.from_numpy(CODEC.encode(text[:high]).astype(np.int64))[None]
    with torch.no_grad():
        log_p = model(ids).logits[0].double().log_softmax(-1)
    return sum(float(log_p[at - 1, ids[0, at]]) for at in range(low, high))


def naive(model, variant, score, *, reverse: bool) -> float:
    """Both alleles read whole, from the same anchor."""
    _, start, old, new = variant
    with_it = SEQUENCE[:start] + new + SEQUENCE[start + len(old) :]
    without = SEQUENCE
    if reverse:
        start = len(SEQUENCE) - start - len(old)
        with_it, without, old, new = flip(with_it), flip(without), flip(old), flip(new)
    while old and new and old[0] == new[0]:
        old, new, start = old[1:], new[1:], start + 1
    begin = start - score.context
    with_it, without = with_it[begin:], without[begin:]
    low, high = score.context, score.context + score.bases
    return log_likelihood(model, with_it, low, high) - log_likelihood(model, without, low, high)


def some_variants(count: int, seed: int = 1) -> list[tuple[str, int, str, str]]:
    """SNVs, MNVs, insertions and deletions, in no order, some at one place."""
    rng = np.random.default_rng(seed)
    out = []
    for number, start in enumerate(rng.integers(1, len(SEQUENCE) - 10, count).tolist()):
        base = SEQUENCE[start]
        other = "ACGT"["ACGT".index(base) - 1]
        new = {
            0: (base, other),
            1: (base, base + dna(5, number)),
            2: (SEQUENCE[start : start + 5], base),
            3: (SEQUENCE[start : start + 3], flip(SEQUENCE[start : start + 3])[::-1]),
            4: (base, other + dna(2, number)),
        }[number % 5]
        out.append(("c", start, *new))
    return out


@pytest.mark.parametrize("context", [8, 100, 512, 1000, "all"])
@pytest.mark.parametrize("window", [1, 8, 40])
def test_equals_reading_both_alleles_whole(model, genome, context, window):
    crowd = [("c", at, SEQUENCE[at], "ACGT"["ACGT".index(SEQUENCE[at]) - 1]) for at in range(2000, 2120, 15)]
    variants = [*some_variants(15), *crowd]
    found = score_variants(model, genome, variants, context=context, window=window, batch=7)
    checked = 0
    for variant, score in zip(variants, found, strict=True):
        strands = [(False, score.forward), (True, score.reverse)]
        for reverse, strand in strands:
            if strand is not None:
                assert strand.ratio == pytest.approx(naive(model, variant, strand, reverse=reverse), abs=1e-4)
                checked += 1
        if None not in (score.forward, score.reverse):
            assert score.ratio == pytest.approx((score.forward.ratio + score.reverse.ratio) / 2)
        else:
            assert score.ratio is None
            assert score.why == "longer_than_window"
    assert checked >= (22 if window == 1 else 42)


def test_contexts_lie_between_c_and_an_eighth_more_and_are_clipped_at_the_start(model, genome):
    variants = [("c", at, SEQUENCE[at], "ACGT"["ACGT".index(SEQUENCE[at]) - 1]) for at in range(1, 2999, 37)]
    for context in (8, 64, 1000):
        found = score_variants(model, genome, variants, context=context, window=8)
        for (_, at, _, _), score in zip(variants, found, strict=True):
            for before, strand in ((at, score.forward), (len(SEQUENCE) - 1 - at, score.reverse)):
                if strand is not None:
                    assert min(before, context) <= strand.context <= max(context, 1.125 * context - 1)
                    assert strand.context <= before
    whole = score_variants(model, genome, variants, context="all", window=8)
    assert [score.forward.context for score in whole] == [at for _, at, _, _ in variants]
    assert [anchor(start, 64) for start in (5, 63, 64, 71, 72, 80)] == [0, 0, 0, 0, 8, 16]


def test_both_alleles_score_equally_many_bases_up_to_the_end_of_the_record(model, genome):
    end = len(SEQUENCE)
    deletion, insertion = SEQUENCE[end - 9 : end - 5], SEQUENCE[end - 6]
    found = score_variants(
        model,
        genome,
        [
            ("c", end - 9, deletion, deletion[0]),  # 5 bases remain behind it; the reference has 8
            ("c", end - 6, insertion, insertion + "ACG"),  # 5 remain of the reference
            ("c", end - 1, SEQUENCE[-1], "A" if SEQUENCE[-1] != "A" else "C"),
            ("c", end - 3, SEQUENCE[end - 3 :], SEQUENCE[end - 3]),  # nothing remains
        ],
        window=40,
        context=64,
        strand="forward",
    )
    assert [score.forward and score.forward.bases for score in found] == [5, 5, 1, None]
    assert found[3].why == "no_room"


def test_an_indel_of_a_repeat_is_scored_on_what_stands_behind_it(model, genome, tmp_path):
    """One unit more of a repeat, given as a VCF file does or one unit further on, is the same sequence with the same score."""
    text = dna(300, 3) + "CA" * 10 + dna(300, 4)
    path = tmp_path / "r.fa"
    path.write_text(f">r\n{text}\n")
    at = 299
    shifted = [("r", at + 2 * k, text[at + 2 * k], text[at + 2 * k] + "CA") for k in (0, 1)]
    first, second = (score.forward for score in score_variants(model, path, shifted, context="all", window=60))
    # The second window begins two bases later, of equal bases in both alleles, and ends two later.
    assert first.bases == second.bases == 60
    wide = score_variants(model, path, [shifted[0]], context="all", window=62)[0].forward
    assert second.ratio == pytest.approx(wide.ratio, abs=1e-4)


def test_unknown_bases_end_the_window_and_are_read_as_context(model, genome):
    def at(start):
        return ("n", start, SEQUENCE[start], "A" if SEQUENCE[start] != "A" else "C")

    found = score_variants(model, genome, [at(1490), at(1499), at(1525), ("n", 1505, "A", "C")], window=40, context=64)
    assert [score.forward and score.forward.bases for score in found] == [10, 1, 40, None]
    # The window of the reverse strand lies to the left.
    assert [score.reverse and score.reverse.bases for score in found] == [40, 40, 6, None]
    assert found[3].why == "reference_mismatch"
    assert found[2].forward.context >= 64


def test_reasons(model, genome):
    base = SEQUENCE[100]
    other = "A" if base != "A" else "C"
    cases = {
        "no_alternative": ("c", 100, base, "."),
        "overlapping_deletion": ("c", 100, base, "*"),
        "symbolic": ("c", 100, base, "<DEL>"),
        "breakend": ("c", 100, base, f"{base}]chr2:5]"),
        "unknown_base": ("c", 100, base, "R"),
        "not_a_variant": ("c", 100, base, base.lower()),
        "unknown_contig": ("chr9", 100, base, other),
        "outside_record": ("c", 2998, SEQUENCE[2998:] + "AA", "A"),
        "reference_mismatch": ("c", 100, other, base),
        "longer_than_window": ("c", 100, base, base + "A" * 200),
    }
    found = score_variants(model, genome, cases.values(), context=64)
    assert [score.why for score in found] == list(cases)
    assert all(score[:3] == (None, None, None) for score in found)
    before = score_variants(model, genome, [("c", -1, "A", "C"), ("c", 3000, "A", "C")], context=64)
    assert {score.why for score in before} == {"outside_record"}
    # The first base has no context on one strand, and all of it on the other.
    (first,) = score_variants(model, genome, [("c", 0, SEQUENCE[0], "A" if SEQUENCE[0] != "A" else "C")], context=64)
    assert (first.ratio, first.forward, first.why) == (None, None, "first_base")
    assert first.reverse is not None


def test_names_are_aliases_and_case_does_not_matter(model, genome):
    base = SEQUENCE[100]
    other = "A" if base != "A" else "C"
    named, alias = score_variants(model, genome, [("chr1", 100, base, other), ("1", 100, base.lower(), other.lower())])
    assert named == alias
    assert named.ratio is not None


def test_reverse_strand_is_the_forward_strand_of_the_reverse_complement(model, genome, tmp_path):
    path = tmp_path / "rc.fa"
    path.write_text(f">c\n{flip(SEQUENCE)}\n")
    variants = some_variants(20)
    turned = [("c", len(SEQUENCE) - at - len(old), flip(old), flip(new)) for _, at, old, new in variants]
    ours = score_variants(model, genome, variants, context=100, window=30)
    theirs = score_variants(model, path, turned, context=100, window=30)
    for one, other in zip(ours, theirs, strict=True):
        for ahead, back in ((one.forward, other.reverse), (one.reverse, other.forward)):
            assert (ahead is None) == (back is None)
            if ahead is not None:
                assert back[1:] == ahead[1:]
                assert back.ratio == pytest.approx(ahead.ratio, abs=1e-5)


@pytest.mark.parametrize("context", [64, "all"])
def test_neither_order_nor_batch_nor_neighbours_change_a_score(model, genome, context):
    variants = some_variants(25)
    whole = score_variants(model, genome, variants, context=context, window=16)
    backwards = score_variants(model, genome, variants[::-1], context=context, window=16, batch=3)[::-1]
    alone = [score_variants(model, genome, [variant], context=context, window=16)[0] for variant in variants]
    for other in (backwards, alone):
        for one, two in zip(whole, other, strict=True):
            assert (one.why, one.forward and one.forward[1:]) == (two.why, two.forward and two.forward[1:])
            if one.ratio is not None:
                assert two.ratio == pytest.approx(one.ratio, abs=1e-5)


def test_forks_leave_the_stream_untouched_and_at_most_a_batch_of_states_exists(model, genome, monkeypatch):
    """Every state that was copied is the same afterwards, and no batch is larger than was asked for."""
    ids = CODEC.encode(SEQUENCE)
    changes = [
        Change(at, np.concatenate([[7 + (ids[at] - 6) % 4], ids[at + 1 : at + 16]])) for at in range(20, 2900, 3)
    ]
    kept, rows = [], []
    copy, run = forked.fork, forked.log_likelihoods

    def keep(state, numbers):
        kept.append((state, tree_map(torch.clone, state)))
        return copy(state, numbers)

    def note(model, batch, **options):
        rows.append(len(batch))
        return run(model, batch, **options)

    monkeypatch.setattr(forked, "fork", keep)
    monkeypatch.setattr(forked, "log_likelihoods", note)
    found = log_ratios(
        model,
        lambda low, high: ids[low:high],
        changes,
        context=None,
        known=CODEC.base_ids,
        pad_id=CODEC.pad_id,
        batch=10,
        passes=Passes(chunk=500),
    )
    assert max(rows) == 10
    assert len(kept) == len(rows)
    for state, before in kept:
        for one, two in zip(tree_map(lambda x: x, state), before, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    # One stream: what was read as context is the record up to the last fork, once.
    assert found.streamed < changes[-1].start
    assert np.isfinite(found.ratio).all()


def test_costs_are_what_is_documented(model, genome):
    ids = CODEC.encode(SEQUENCE)

    def cost(starts, context):
        changes = [Change(at, ids[at : at + 4]) for at in starts]
        options = {"known": CODEC.base_ids, "pad_id": CODEC.pad_id, "batch": 16, "passes": Passes(chunk=1000)}
        return log_ratios(model, lambda low, high: ids[low:high], changes, context=context, **options)

    alone = cost([2000], 800)
    assert 700 <= alone.streamed <= 900
    dense = cost(range(1000, 2900), 160)
    # Anchors 20 apart, each read for 160 before its first change: at most 9 for a base.
    assert 7 * 1900 <= dense.streamed <= 9 * 1900
    assert cost(range(1000, 2900), None).streamed <= 2900
    assert np.abs(dense.ratio).max() < 1e-5


def test_bf16_differs_and_is_close(model, genome):
    variants = some_variants(10)
    narrow = score_variants(model, genome, variants, context=64, precision="bf16")
    wide = score_variants(model, genome, variants, context=64)
    pairs = [(one.ratio, two.ratio) for one, two in zip(narrow, wide, strict=True)]
    assert any(one != two for one, two in pairs)
    assert all(one == pytest.approx(two, abs=0.2) for one, two in pairs)


def test_options_and_models_that_cannot_are_refused(model, genome):
    variant = [("c", 100, SEQUENCE[100], "A")]
    for options, word in (
        ({"context": 7}, "context"),
        ({"context": "100"}, "context is '100'"),
        ({"window": 1.5}, "window is 1.5"),
        ({"batch": 1.5}, "batch is 1.5"),
        ({"window": 0}, "window"),
        ({"batch": 0}, "batch"),
        ({"strand": "left"}, "strand"),
        ({"precision": "fp8"}, "precision"),
    ):
        with pytest.raises(InputError, match=word):
            score_variants(model, genome, variant, **options)
    # Text of four letters would unpack into a record, a start and two alleles.
    for wrong in ("chr1", ("c", "100", "A", "G"), ("c", 100.0, "A", "G"), ("c", 100, "A"), ("c", 100, "A", None)):
        with pytest.raises(InputError, match="variant 2 is .*give"):
            score_variants(model, genome, [*variant, wrong])
    with pytest.raises(InputError, match="the model is str"):
        score_variants("runs/mine", genome, variant)
    attention = IsotropicModel(ModelConfig(vocab_size=12, d_model=16, num_layers=1, mixer="transformer")).eval()
    with pytest.raises(InputError, match="constant size"):
        score_variants(attention, genome, [("c", 100, SEQUENCE[100], "ACGT"["ACGT".index(SEQUENCE[100]) - 1])])


def test_a_file_of_calls_is_a_list_of_variants(model, genome, tmp_path):
    base = SEQUENCE[100]
    others = [letter for letter in "ACGT" if letter != base]
    columns = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    path = tmp_path / "calls.vcf"
    path.write_text(f"##fileformat=VCFv4.2\n{columns}c\t101\t.\t{base}\t{','.join(others)}\t.\t.\t.\n")
    variants = [("c", 100, base, letter) for letter in others]
    assert score_variants(model, genome, path, context=64) == score_variants(model, genome, variants, context=64)
    path.write_text(path.read_text() + "c\t101\n")
    with pytest.raises(InputError, match="line 4"):
        score_variants(model, genome, path)


def test_no_variants(model, genome):
    assert score_variants(model, genome, []) == []
