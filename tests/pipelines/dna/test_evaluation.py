"""What is said of DNA beside a model's likelihood."""

from mamba_bio_audio.pipelines.dna.evaluation import DnaClassNotes, DnaNotes, GenomeScores, Markov
from mamba_bio_audio.pipelines.scores import Part, Scored, Scores, SplitScores

FOUND = SplitScores("test", 512, "best", 90, Scores.of(1.3))
ORDERS = [Scores.of(nats) for nats in (1.38, 1.37, 1.36, 1.35)]
MARKOV = Markov(count=90, chosen_order=3, smoothing=64.0, best=ORDERS[3], orders=ORDERS)


def test_the_table_has_every_order_and_every_genome() -> None:
    genomes = {
        "fly": GenomeScores(model=Scores.of(1.2), scored=50, markov=MARKOV),
        "yeast": GenomeScores(model=Scores.of(1.4), scored=40),
    }
    notes = DnaNotes(bases=100, unknown=9, first_of_record=1, genomes=genomes, markov=MARKOV)
    lines = notes.text(FOUND).splitlines()
    assert lines[0].startswith("test split: 90 of 100 bases scored (9 unknown, 1 first of their record)")
    assert "Markov order 3 (best on valid)   1.3500   1.9476      3.8574" in lines
    assert "The model's perplexity is 4.88% below the best Markov baseline." in lines
    # A genome without bases in every split has no Markov models of its own.
    rows = [line.split() for line in lines if line.startswith(("fly", "yeast"))]
    assert rows == [["fly", "3.3201", "3.9354", "3.8574", "3.8574"], ["yeast", "4.0552"]]
    # What was not said is no key of the result.
    assert set(notes.model_dump(exclude_unset=True)["genomes"]["yeast"]) == {"model", "scored"}


def test_parts_and_unread_bases_are_named() -> None:
    part = Part(max_bases=100, windows=2, of_windows=20, of_bases=1000)
    unread = Scored(model=Scores.of(1.5), scored=30)
    notes = DnaNotes(bases=100, unknown=10, first_of_record=0, genomes={}, part=part, unread=unread)
    text = notes.text(FOUND)
    assert "(--max-bases 100): 2 of 20 windows, 100 of 1,000 bases; baselines on the same bases" in text
    assert "  where training never read    1.5000" in text
    assert "(30 of the bases; training windows hold the others)" in text
    assert "Markov" not in text.split("\n\n", 1)[1]


def test_a_model_above_the_baseline_is_told_so() -> None:
    notes = DnaNotes(bases=90, unknown=0, first_of_record=0, genomes={}, markov=MARKOV)
    assert "above the best Markov baseline: it has learnt less" in notes.text(FOUND._replace(model=Scores.of(1.5)))


def test_no_conflict_says_nothing() -> None:
    assert DnaClassNotes(label_conflicts={}).text("test") == ""
