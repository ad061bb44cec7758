"""DNA as a domain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mamba_bio_audio.pipelines.contract import DataSection, Domain, Item, Progress, SampleView, Symbols
from mamba_bio_audio.pipelines.dna import evaluation
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.pipelines.dna.tracks_config import DnaTracksConfig
from mamba_bio_audio.pipelines.sample_writer import SampleRequest, SampleWriter
from mamba_bio_audio.pipelines.scores import (
    ClassYardstick,
    CopyBar,
    Measured,
    RecallTrials,
    Score,
    TargetBlocks,
    ValueYardstick,
)

if TYPE_CHECKING:
    from mamba_bio_audio.pipelines.corpus import Corpus, Stored


class Dna(Domain):
    """Bases of genomes, and labelled stretches of them."""

    name = "dna"
    unit = "base"
    first_sample = "--length 1000"
    samples_key = "fasta"
    kinds: ClassVar[Mapping[str, type[DataSection]]] = {
        "dna": DnaDataConfig,
        "dna-classes": DnaClassesConfig,
        "dna-tracks": DnaTracksConfig,
    }

    def codec(self, config: Any) -> Any:
        """The tokeniser."""
        from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

        return DnaTokenizer()

    def open(self, config: Any, *, length: int, task: str | None = None, progress: Progress | None = None) -> Corpus:
        """A genome, or labelled DNA."""
        if isinstance(config, DnaTracksConfig):
            from mamba_bio_audio.pipelines.dna.tracks import DnaTracksCorpus

            return DnaTracksCorpus(config, length=length, task=task, progress=progress)
        # Checks of labels need scikit-learn, which takes a second to import.
        if config.labelled:
            from mamba_bio_audio.pipelines.dna.classes import DnaClassesCorpus

            return DnaClassesCorpus(config, length=length, task=task, progress=progress)
        from mamba_bio_audio.pipelines.dna.corpus import DnaCorpus

        return DnaCorpus(config, length=length, progress=progress)

    def describe(self, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Lines for people; labelled data have classes."""
        from mamba_bio_audio.pipelines.dna import classes, prepare, tracks

        if "bin" in summary:
            return tracks.summary_rows(dict(summary))
        return (classes.summary_rows if "classes" in summary else prepare.summary_rows)(dict(summary))

    def records(self, files: Iterable[str], config: Any) -> Iterator[Item]:
        """Records of FASTA and FASTQ, plain or gzip; `-` is standard input."""
        from mamba_bio_audio.pipelines.dna.records import items

        return items(files)

    def pairs(self, files: Iterable[str], config: Any) -> Iterator[tuple[Item, Item]]:
        """Paired reads."""
        from mamba_bio_audio.pipelines.dna.records import pairs

        return pairs(files)

    def stored(self, files: Sequence[str], config: Any, progress: Progress | None = None) -> Stored:
        """FASTA, plain or BGZF, and 2bit."""
        from mamba_bio_audio.pipelines.dna.genome import Genome

        return Genome(files, progress=progress)

    def symbols(self, config: Any, length: int) -> Symbols:
        """Both strands, A, C, G and T."""
        import numpy as np

        from mamba_bio_audio.pipelines.dna.tokenizer import N

        codec = self.codec(config)
        known = np.zeros(256, dtype=bool)
        known[list(codec.base_ids)] = True
        return Symbols(
            unit=self.unit,
            pad_id=codec.pad_id,
            known=lambda ids: known[ids],
            strands=("forward", "reverse") if getattr(config, "stranded", False) else ("both", "forward", "reverse"),
            reverse=codec.reverse_complement,
            max_unknown=getattr(config, "max_unknown", 0.1),
            bin=getattr(config, "bin", 1),
            margin=getattr(config, "margin", 0),
            unknown_id=N,
        )

    def genome(self, path: Path, progress: Progress | None = None) -> Any:
        """FASTA or 2bit."""
        from mamba_bio_audio.pipelines.dna.genome import Genome

        return Genome(path, progress=progress)

    def writer(self, request: SampleRequest) -> SampleWriter:
        """FASTA."""
        from mamba_bio_audio.pipelines.dna.fasta_writer import FastaWriter

        return FastaWriter(request)

    def run_files(self) -> tuple[str, ...]:
        """Samples and their measurements, and the curve of the demo."""
        return ("curve.png", "samples.fa", "samples.fa.report.json")

    def find_samples(self, run: Path) -> Path | None:
        """`samples.fa`."""
        from mamba_bio_audio.files import inside

        return inside(run, "samples.fa") if (run / "samples.fa").exists() else None

    def sample_command(self, run: Path) -> str:
        """A FASTA of one sequence."""
        return f"mba sample {run} --length 1000 --out {run / 'samples.fa'}"

    def measures(self, samples: Path) -> Path | None:
        """Beside the FASTA."""
        return samples.with_name(f"{samples.name}.report.json")

    def measure(
        self,
        samples: Path,
        config: Any,
        corpus: Corpus | None,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> dict[str, Any]:
        """Composition, repeats and 6-mers of a FASTA, and longest matches with up to 2^26 training bases."""
        from mamba_bio_audio.pipelines.dna.corpus import DnaCorpus
        from mamba_bio_audio.pipelines.dna.fasta_writer import kept_prompt
        from mamba_bio_audio.pipelines.dna.records import read_records
        from mamba_bio_audio.pipelines.dna.samples import sample_report

        codec = self.codec(None)
        # A prompt is not the model's.
        rows = [codec.encode(record.sequence[kept_prompt(record.header) :]) for record in read_records(samples)]
        if corpus is None:
            return sample_report(rows)
        assert isinstance(corpus, DnaCorpus)
        train, valid = (corpus.spans(split) for split in ("train", "valid"))
        return sample_report(rows, corpus.genome, train, valid, progress=progress)

    def show_measured(self, measured: Mapping[str, Any]) -> str:
        """A table."""
        from mamba_bio_audio.pipelines.dna.samples import describe_samples

        return describe_samples(dict(measured))

    def show_samples(
        self, samples: Path, measured: Mapping[str, Any] | None, corpus: Corpus | None = None
    ) -> SampleView:
        """The table and the spectra of 6-mers."""
        from mamba_bio_audio.pipelines.dna.samples import kmer_spectra

        if measured is None:
            return SampleView(f"{samples}")
        title = "6-mer spectra of samples and validation beside the genome's"
        pictures = [(title, kmer_spectra(dict(measured)))] if "spectra" in measured else []
        return SampleView(f"{samples}", self.show_measured(measured), pictures)

    def card_symbols(self, codec: Any) -> str:
        """The vocabulary."""
        from mamba_bio_audio.pipelines.dna import card

        return card.symbols(codec)

    def card_data(self, summary: Mapping[str, Any]) -> list[str]:
        """Bases and splits of a genome."""
        from mamba_bio_audio.pipelines.dna import card

        return card.data(summary)

    def card_limits(self, config: Any, *, classifier: bool) -> list[str]:
        """Strands, causality, what a likelihood is not."""
        from mamba_bio_audio.pipelines.dna import card

        return card.limits(config)

    def write_tokenizer(self, codec: Any, folder: Path) -> int | None:
        """Write the tokenizer of `transformers.AutoTokenizer`."""
        from mamba_bio_audio.pipelines.dna import card

        card.write_tokenizer(codec, folder)
        pad_id: int = codec.pad_id
        return pad_id

    likelihood_notes = evaluation.DnaNotes
    class_notes = evaluation.DnaClassNotes

    def check_yardsticks(self, data: Any) -> None:
        """Markov models need a training and a validation split."""
        evaluation.check_markov(data)

    def beside_likelihood(
        self, data: Any, found: Measured, score: Score, progress: Progress | None = None
    ) -> evaluation.DnaNotes:
        """Counts of bases, genomes, Markov models."""
        return evaluation.beside_likelihood(data, found, score, progress)

    def class_yardstick(self, data: Any) -> ClassYardstick:
        """Logistic regression on k-mers."""
        from mamba_bio_audio.pipelines.dna.kmers import kmer_baseline

        return kmer_baseline(data)

    def value_yardstick(self, data: Any) -> ValueYardstick:
        """Regression on k-mers."""
        from mamba_bio_audio.pipelines.dna.kmers import kmer_values

        return kmer_values(data)

    def beside_classes(self, data: Any) -> evaluation.DnaClassNotes:
        """Equal sequences under several labels."""
        return evaluation.DnaClassNotes(label_conflicts=data.corpus.label_conflicts())

    def target_blocks(self, data: Any, split: str, *, size: int, context: int, count: int) -> TargetBlocks:
        """Blocks of bases, their strata by case, GC and record."""
        from mamba_bio_audio.pipelines.dna.target_blocks import open_blocks

        return open_blocks(data, split, size=size, context=context, count=count)

    def copy_bar(self, data: Any, contexts: Sequence[int], progress: Progress | None = None) -> CopyBar | None:
        """Copies on the best Markov model."""
        return evaluation.copy_bar(data, contexts, progress)

    def recall_trials(
        self, data: Any, split: str, distance: int, *, count: int, copies: Sequence[int], mutated: float, seed: int
    ) -> RecallTrials:
        """256 bases that come again, exactly, with substitutions, or on the other strand."""
        from mamba_bio_audio.pipelines.dna.recall import recall_trials

        spans = data.corpus.spans(split)
        return recall_trials(
            data.corpus.genome, spans, distance, count=count, copies=copies, mutated=mutated, seed=seed
        )


DOMAIN = Dna()
