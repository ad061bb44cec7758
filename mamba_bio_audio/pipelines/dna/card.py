"""Model card and tokenizer of an exported DNA model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mamba_bio_audio.files import write_json, write_text
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer


def symbols(codec: DnaTokenizer) -> str:
    """Meaning of the ids."""
    ids = ", ".join(f"{symbol} {i}" for i, symbol in enumerate(codec.vocab))
    return (
        f"{ids}. One id per base, whatever its case; every other letter is N. Nothing is added at the ends. "
        '`transformers.AutoTokenizer.from_pretrained("FOLDER")` encodes in the same way.'
    )


def data(summary: Mapping[str, Any]) -> list[str]:
    """Bases and splits of a genome; labelled DNA has no such totals."""
    if "bases" not in summary or "classes" in summary:
        return []
    lines = [
        f"{summary['bases']:,} bases in {summary.get('records', 0):,} records, {summary['unknown_percent']:.3f} % not A, "
        f"C, G or T, {summary['lower_case_percent']:.2f} % lower case (tokens do not depend on case). Split by "
        f"{summary.get('split_source', 'an unknown rule')}:",
        "",
    ]
    splits = summary.get("splits", {}).items()
    return lines + [f"- {name}: {found['bases']:,} bases in {found['intervals']:,} intervals" for name, found in splits]


def limits(config: Any) -> list[str]:
    """Limits of a DNA model."""
    strands = "both strands" if getattr(config, "reverse_complement", False) else "the strand as written"
    return [
        f"It was trained on {strands}; it is causal, so a base is judged only by what precedes it.",
        "A likelihood is no measure of function or of harm; this is not a medical device.",
        "Samples can repeat training sequence: `mba sample` reports the longest exact match.",
    ]


def write_tokenizer(codec: DnaTokenizer, folder: Path) -> None:
    """Write files with which `tokenizers` and transformers encode and decode as the codec does: one id per character."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(codec.vocab)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=codec.vocab[codec.unknown_id]))
    bases = [codec.vocab[i] for i in codec.base_ids]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(base.lower(), base) for base in bases])
    # Every character by itself, including line ends.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex(r"\[[A-Z]+\]"), "N"), decoders.Fuse()])
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    pad = {"pad_token": codec.vocab[codec.pad_id]}
    write_json(folder / "special_tokens_map.json", pad)
    # A text that happens to contain "[PAD]" is letters like any other.
    how = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
    }
    write_json(folder / "tokenizer_config.json", pad | how)
