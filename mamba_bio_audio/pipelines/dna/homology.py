"""Assigns chromosomes to splits so that no homologous group is in two of them.

Tables are TSV with the header columns class, record, and group or split; records may be called chr1 or 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.assemblies import group_of
from mamba_bio_audio.pipelines.split_names import SPLIT_ALIASES, SPLITS

Key = tuple[str, str]  # species, chromosome without `chr`
HUMAN_GROUPS = frozenset(group_of(name) for name in (*map(str, range(1, 23)), "X", "Y"))


def check_homology(splits: Mapping[Key, str], groups: Mapping[Key, str]) -> None:
    """Refuse splits that divide a homologous group.

    Raises:
        InputError: a group is in several splits; names the group and examples from each side.
    """
    members: dict[str, dict[str, list[str]]] = {}
    for key, split in splits.items():
        members.setdefault(groups[key], {}).setdefault(split, []).append(f"{key[0]} {key[1]}")
    for group, by_split in members.items():
        if len(by_split) > 1:
            sides = "; ".join(f"{split}: {', '.join(found[:4])}" for split, found in by_split.items())
            raise InputError(
                f"homologous group {group} is in {len(by_split)} splits ({sides}), so a model would be tested on loci whose "
                "counterparts in a sister species it was trained on; put the whole group into one split"
            )


def homologous_groups(
    homologues: Mapping[Key, str | None], path: Path | None = None, *, accept_unknown: bool = False
) -> dict[Key, str]:
    """Homologous group of every chromosome.

    Args:
        homologues: the homologous human chromosome of each; None if unknown.
        path: table of groups, which takes precedence.
        accept_unknown: put a chromosome of unknown homology into a group of its own, `species:number`.
    """
    given = _read_tsv(path, "group") if path is not None else {}
    found: dict[Key, str] = {}
    for key, human in homologues.items():
        if key in given:
            found[key] = given[key]
        elif human is not None:
            found[key] = group_of(human)
        elif accept_unknown:
            found[key] = f"{key[0]}:{key[1]}"
        else:
            raise InputError(
                f"{key[0]} chr{key[1]}: its homologues are unknown, so no split is sure to be free of them; give --groups, "
                "a TSV with class, record and group, or accept this with --unknown-homology"
            )
    return found


def hold_out(groups: Mapping[Key, str], valid: Sequence[str], test: Sequence[str]) -> dict[Key, str]:
    """Split of every chromosome, holding out the groups of some human chromosomes (or groups by name)."""
    present = set(groups.values())
    chosen: dict[str, str] = {}
    for split, numbers in (("valid", valid), ("test", test)):
        for number in numbers:
            group = number if number in present else group_of(number)
            if group not in present and group not in HUMAN_GROUPS:
                raise InputError(f"--{split} {number}: no such group; choose from {', '.join(sorted(present))}")
            if chosen.setdefault(group, split) != split:
                raise InputError(
                    f"--{split} {number}: its homologous group {group} is already held out for {chosen[group]}; name each "
                    "group for one split"
                )
    # Groups of unknown homology, `species:number`, are held out by number.
    return {
        key: chosen.get(group, chosen.get(group_of(key[1]), "train") if group == f"{key[0]}:{key[1]}" else "train")
        for key, group in groups.items()
    }


def read_splits(path: Path, groups: Mapping[Key, str]) -> dict[Key, str]:
    """Read the split of every chromosome from a table."""
    given = _read_tsv(path, "split")
    missing = [key for key in groups if key not in given]
    if missing:
        raise InputError(f"{path}: no split for {missing[0][0]} chr{missing[0][1]}; add a line for it")
    splits = {key: SPLIT_ALIASES.get(given[key].lower(), given[key].lower()) for key in groups}
    wrong = [(key, split) for key, split in splits.items() if split not in SPLITS]
    if wrong:
        raise InputError(
            f"{path}: {wrong[0][0][0]} chr{wrong[0][0][1]}: unknown split {wrong[0][1]!r}; write {', '.join(SPLITS)}"
        )
    return splits


def numbers_refused() -> str:
    """Message that explains why chromosomes cannot be held out by equal number."""
    return (
        "--split numbers: refused, because chromosomes with equal numbers are not homologous: in the T2T assemblies "
        "chimpanzee 5 is human 6 and chimpanzee 4 is human 5; orangutan 11 and 12 are the halves of human 2; gorilla 4 and "
        "19 hold parts of human 5 and 17 (t(5;17)), so testing on 5 and training on 17, as HyenaDNA's split does, leaks. A "
        "model would be tested on loci whose counterparts it was trained on. Use --split homology (default), with --valid "
        "and --test in human numbers"
    )


def _read_tsv(path: Path, column: str) -> dict[Key, str]:
    """Read a table with the header columns class, record and `column`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); check the path, and save the table as UTF-8") from None
    header = lines[0].split("\t") if lines else []
    if not {"class", "record", column} <= set(header):
        raise InputError(f"{path}: line 1: the header must name class, record and {column}, separated by tabs")
    found = {}
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if not line.strip():
            continue
        if len(fields) != len(header):
            raise InputError(f"{path}: line {number:,}: has {len(fields)} columns; the header has {len(header)}")
        row = dict(zip(header, fields, strict=True))
        found[row["class"].strip(), row["record"].strip().removeprefix("chr")] = row[column].strip()
    return found
