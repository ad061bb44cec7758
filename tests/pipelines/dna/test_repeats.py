import numpy as np
import pytest

from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.pipelines.dna.repeats import LONGEST, SHORTEST, with_repeats
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer, N

# So many bases never come twice by chance in what is drawn here.
K = 20


def random_ids(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(7, 11, length).astype(np.uint8)


def copied(ids: np.ndarray, reverse: bool = False) -> float:
    """Share of the bases that end K bases which stand further ahead too, on this strand or the other."""
    earlier: set[bytes] = set()
    found = 0
    for end in range(K, len(ids) + 1):
        own = ids[end - K : end]
        found += (DnaTokenizer().reverse_complement(own) if reverse else own).tobytes() in earlier
        # Those that overlap it come later.
        if end >= 2 * K:
            earlier.add(ids[end - 2 * K : end - K].tobytes())
        earlier.add(own.tobytes())
    return found / len(ids)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_share_of_the_bases_is_copied_from_earlier_ones(reverse: bool) -> None:
    ids = random_ids(4097)
    kept = ids.copy()
    found = [
        with_repeats(ids, np.random.default_rng(seed), share=0.2, substituted=0, reverse=float(reverse))
        for seed in range(20)
    ]
    assert np.array_equal(ids, kept)
    assert found[0].dtype == ids.dtype
    assert copied(ids, reverse) == 0
    # The first K - 1 bases of each copy are not counted, and pieces fall on each other.
    assert 0.13 < np.mean([copied(own, reverse) for own in found]) < 0.21
    # A copy of a copy of the other strand is of this one, and there are some.
    assert np.mean([copied(own, not reverse) for own in found]) < 0.05


def test_every_base_is_as_it_was_or_a_copy_of_one_before() -> None:
    ids = random_ids(4097)
    found = with_repeats(ids, np.random.default_rng(2), share=0.8, substituted=0, reverse=0)
    changed = np.flatnonzero(found != ids)
    assert len(changed) > 500
    for at in changed[:: len(changed) // 100]:
        # Somewhere before it stand the same SHORTEST / 2 bases around it, or a part of them at the ends of a piece.
        windows = [found[at - left : at + SHORTEST // 2 - left] for left in range(SHORTEST // 2)]
        assert any(own.tobytes() in found[: at - left].tobytes() for left, own in enumerate(windows))


def test_copies_differ_by_the_substitutions_that_are_asked_for() -> None:
    ids = random_ids(100_001)
    settings = {"share": 0.2, "reverse": 0.0}
    exact = with_repeats(ids, np.random.default_rng(3), substituted=0, **settings)
    changed = with_repeats(ids, np.random.default_rng(3), substituted=1, **settings)
    assert copied(exact) > 5 * copied(changed)
    assert ((changed >= 7) & (changed <= 10)).all()


def test_drawn_by_its_generator_alone_and_unknown_bases_stay_unknown() -> None:
    ids = random_ids(3000)
    ids[:1000] = N
    settings = {"share": 0.6, "substituted": 0.5, "reverse": 0.5}
    one, same, other = (with_repeats(ids, np.random.default_rng(seed), **settings) for seed in (4, 4, 5))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    # Copies of unknown bases are unknown, whatever is substituted.
    exact = with_repeats(ids, np.random.default_rng(4), **settings | {"substituted": 0})
    assert (exact == N).sum() > 1000
    assert np.array_equal(one == N, exact == N)


def test_windows_without_room_stay_as_they_are() -> None:
    ids = random_ids(4 * SHORTEST - 1)
    assert np.array_equal(with_repeats(ids, np.random.default_rng(6), share=0.9, substituted=0, reverse=0), ids)
    least = with_repeats(random_ids(4 * SHORTEST), np.random.default_rng(6), share=0.9, substituted=0, reverse=0)
    assert not np.array_equal(least, random_ids(4 * SHORTEST))
    assert LONGEST > SHORTEST


def test_only_training_windows_have_copies(write_fasta, random_dna) -> None:
    path = write_fasta("g.fa", {"r": random_dna(40_000) + "N" * 100 + random_dna(10_000, 1)})

    def module(**options) -> DataModule:
        return DataModule(DnaDataConfig(path=path, block_bases=5000, **options), length=512, batch_size=4, seed=0)

    plain, copies = module(), module(repeats=0.5, reverse_complement=True)
    for split in ("valid", "test"):
        pairs = list(zip(plain.evaluation_dataloader(split), copies.evaluation_dataloader(split), strict=True))
        assert pairs
        assert all((one["tokens"] == other["tokens"]).all() for one, other in pairs)
    stream = copies.train_dataloader().dataset.streams[0][0]
    batch = stream.read(range(40))
    tokens, targets = batch["tokens"].numpy(), batch["targets"].numpy()
    assert np.mean([copied(row) for row in tokens.astype(np.uint8)]) > 0.05
    # Read again, alone, a window is the same: what resume depends on.
    assert (stream.read(range(17, 18))["tokens"][0] == batch["tokens"][17]).all()
    # Targets are of what the model reads.
    scored = targets[:, :-1] != -100
    assert scored.mean() > 0.9
    assert (targets[:, :-1] == tokens[:, 1:])[scored].all()
