"""Prompts from files: which part of which record, and what is refused."""

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.prompts import read_prompts
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "with:colon.fa"
    path.write_text(">one\nACGTNACGT\n>two:x y\nACGTTGCA\nACGTA\n")
    return path


@pytest.mark.parametrize(
    ("within", "text", "name"),
    [
        (":one", "ACGTNACGT", "one:1-9"),
        (":one:2-3", "CG", "one:2-3"),
        (":one:9-9", "T", "one:9-9"),
        (":two:x", "ACGTTGCAACGTA", "two:x:1-13"),
        (":two:x:8-10", "AAC", "two:x:8-10"),
    ],
)
def test_a_record_or_a_part_of_one(fasta, within, text, name):
    (prompt,), files = read_prompts(f"{fasta}{within}")
    assert (DnaTokenizer().decode(prompt[0 : len(prompt)]), prompt.name) == (text, name)
    assert DnaTokenizer().decode(prompt[1:]) == text[1:]
    assert prompt.file == str(fasta)
    assert [set(file) for file in files] == [{"name", "sha256"}]


def test_a_file_gives_each_of_its_records(fasta):
    fasta.write_text(">one\nACG\n>two\nAC\n")
    for given in (f"{fasta}", f"{fasta}:"):
        prompts, _ = read_prompts(given)
        assert [(prompt.name, len(prompt)) for prompt in prompts] == [("one:1-3", 3), ("two:1-2", 2)]


@pytest.mark.parametrize(
    ("within", "message"),
    [
        (":three", "no record 'three'"),
        (":one:0-3", "is not inside 'one'"),
        (":one:2-10", "is not inside 'one', which has 9 bases"),
        (".gone", "there is no such file"),
    ],
)
def test_what_holds_no_prompt_is_refused(fasta, within, message):
    with pytest.raises(InputError, match=message):
        read_prompts(f"{fasta}{within}")
