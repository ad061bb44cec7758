"""Prepares folders of audio for training: checked to the last sample, at one sample rate, and split.

A prepared folder contains the recordings, `intervals.tsv` (file, split, start0, end, rate_hz) and `manifest.json`, and
is given as `data.path`. Everything is made in a folder beside it and appears as a whole.
"""

from __future__ import annotations

import itertools
import shutil
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from mamba_bio_audio import __version__
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import Maker, name_full_disk, new_folder, write_json, write_text
from mamba_bio_audio.pipelines.archives import MAX_UNPACKED_BYTES, unpack_zip
from mamba_bio_audio.pipelines.audio.duplicates import duplicates, fingerprints
from mamba_bio_audio.pipelines.audio.files import (
    FORMATS,
    AudioFile,
    content_hash,
    decode,
    list_files,
    natural_key,
    open_file,
    probe,
    refuse_inside,
    skipped_files,
)
from mamba_bio_audio.pipelines.audio.health import health_line
from mamba_bio_audio.pipelines.audio.prepare_settings import AudioSettings, Unhealthy
from mamba_bio_audio.pipelines.audio.resampling import RESAMPLER
from mamba_bio_audio.pipelines.audio.speech_commands import DIGITS, LISTS, SPEECH_COMMANDS, copy_digits
from mamba_bio_audio.pipelines.audio.splits import INTERVALS_NAME, MANIFEST_NAME, split_by_share
from mamba_bio_audio.pipelines.reporter import Reporter
from mamba_bio_audio.pipelines.spans import Span
from mamba_bio_audio.pipelines.split_names import SPLITS

MAKER = Maker("prepare audio")
_BLOCK = 1 << 20
_SHOWN = 10


def prepare_audio(
    paths: Sequence[str],
    out: Path,
    settings: AudioSettings | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Decode recordings completely and write them as mono 16-bit FLAC at one sample rate, with splits and a manifest.

    Validation and test are the last files in natural order or, if there are too few files, the end of each file.

    Args:
        paths: audio files, or folders of them.
        out: folder to create.
        settings: sample rate, pieces, splits, and treatment of unusable files; None for the defaults.
        force: replace what an earlier preparation left in `out`.
        dry_run: check everything, in a temporary folder, and keep nothing.
        reporter: receives progress in recordings.

    Returns:
        The manifest.

    Raises:
        InputError: files are unusable (names each, and what is wrong with it), or `out` holds something else.
    """
    refuse_inside(out, paths)
    with new_folder(out, MAKER, inputs=paths, force=force, dry_run=dry_run) as folder:
        return _write_recordings(paths, folder, settings or AudioSettings(), reporter or Reporter())


def _write_recordings(
    paths: Sequence[str],
    folder: Path,
    settings: AudioSettings,
    reporter: Reporter,
    *,
    source: Path | None = None,
    temporary: bool = False,
    whole_seconds: float = 0.0,
) -> dict[str, Any]:
    """Carry out `prepare_audio` in `folder`.

    Args:
        source: the given source, for the manifest; None if that is `paths`.
        temporary: whether `paths[0]` is a folder in `folder` with the unpacked `source`; it is then removed, and errors
            name `source` instead.
        whole_seconds: recordings up to this long stay whole, and keep their names.
    """
    try:
        found, skipped = list_files(list(paths)), skipped_files(paths)
    except InputError as error:
        # There is no such key here.
        raise InputError(str(error).removeprefix("data.path: ")) from None
    bad: dict[str, str] = {}
    names: list[str] = []
    sizes: list[int] = []
    health: dict[str, dict[str, Any]] = {}
    clipped, resampled = 0, False
    made_of: dict[str, str] = {}
    twice = ""
    decoded = folder / ".decoded"
    for done, (path, name) in enumerate(found, start=1):
        own: list[str] = []
        try:
            if any(mark in name for mark in "\t\r\n"):
                raise InputError(f"{path!r}: the name contains a tab or a line break; rename the file")
            # Everything is decoded before anything is written: a fault in the last sample is known by then.
            file = decode(path, decoded, settings.channels)
            health[name] = file.health
            if file.health["findings"] and settings.unhealthy != "accept":
                continue
            resampled |= file.native_rate_hz != settings.rate
            whole = settings.piece_seconds is None or file.num_samples(settings.rate) <= whole_seconds * settings.rate
            edges = _edges(file, settings.rate, None if whole else settings.piece_seconds)
            for number, (start, stop) in enumerate(itertools.pairwise(edges)):
                ending = f".{number:0{len(str(len(edges) - 1))}d}" if not whole else ""
                piece = f"{Path(name).with_suffix('')}{ending}.flac"
                if made_of.setdefault(piece, name) != name:
                    twice = piece
                    break
                own.append(piece)
                clipped += _write_flac(file, Span(name, start, stop), folder / piece, settings.rate)
            names += own
            sizes += [stop - start for start, stop in itertools.pairwise(edges)]
        except InputError as error:
            bad[name] = str(error).replace(paths[0], str(source)) if temporary else str(error)
            for written in own:
                del made_of[written]
                (folder / written).unlink(missing_ok=True)
        finally:
            reporter.progress("preparing recordings", done, len(found))
        if twice:
            raise InputError(f"{made_of[twice]} and {name} would both become {twice}; rename one of them")
    decoded.unlink(missing_ok=True)
    _report_bad(bad, len(found), settings.bad_files)
    bad |= _unhealthy(health, settings.unhealthy)
    order = sorted(range(len(names)), key=lambda i: natural_key(names[i]))
    names, sizes = [names[i] for i in order], [sizes[i] for i in order]
    if temporary:
        shutil.rmtree(paths[0])
    spans, made = split_by_share(dict(zip(names, sizes, strict=True)), settings.valid_fraction, settings.test_fraction)
    twins = _duplicates(folder, spans, settings.rate, settings.unhealthy, reporter)
    if settings.unhealthy == "exclude":
        bad |= twins
        spans = {split: [span for span in own if span.record not in twins] for split, own in spans.items()}
    rows = [(span.record, split, span.start, span.end) for split in SPLITS for span in spans[split]]
    more: dict[str, Any] = {} if source is None else {"source": str(source)}
    more |= {"clipped_samples": clipped, "resampler": RESAMPLER if resampled else None, "skipped_files": skipped}
    more |= {
        "channels": settings.channels,
        "health": health,
        "duplicates": [*twins.values()],
    }
    return _finish(folder, rows, made, bad, settings.rate, more)


def _unhealthy(health: dict[str, dict[str, Any]], unhealthy: Unhealthy) -> dict[str, str]:
    """The recordings that are left out, and why; stops if that is asked for or none would stay."""
    if unhealthy == "accept":
        return {}
    sick = {name: f"{name}: {health_line(report)}" for name, report in health.items() if report["findings"]}
    _report_unhealthy(sick, unhealthy, nothing_left=len(sick) == len(health))
    return sick


def _duplicates(
    folder: Path, spans: dict[str, list[Span]], rate_hz: int, unhealthy: Unhealthy, reporter: Reporter
) -> dict[str, str]:
    """Recordings of one split that a later one has too, and a line on each; those that are left out are removed."""
    split_of: dict[str, str] = {}
    for split in SPLITS:
        for span in spans[split]:
            split_of[span.record] = f"{split_of[span.record]}+{split}" if span.record in split_of else split
    if len(split_of) < 2 or len({*"+".join(split_of.values()).split("+")}) < 2:
        return {}
    files = {name: open_file(str(folder / name)) for name in split_of}

    def read(name: str, start: int, stop: int) -> NDArray[np.float32]:
        return files[name].read(start, min(stop, files[name].frames), rate_hz)

    prints = {}
    for done, (name, file) in enumerate(files.items(), start=1):
        prints[name] = fingerprints(file.frames, rate_hz, partial(read, name))
        reporter.progress("looking for duplicates", done, len(files))
    lines = {twin.name: twin.line(rate_hz) for twin in duplicates(prints, split_of, rate_hz, read)}
    if unhealthy != "accept":
        _report_unhealthy(lines, unhealthy, nothing_left=len(lines) == len(split_of))
        for name in lines:
            (folder / name).unlink()
    return lines


def _edges(file: AudioFile, rate_hz: int, piece_seconds: float | None) -> list[int]:
    """Where a recording is cut; a single last sample stays with the piece before it."""
    total = file.num_samples(rate_hz)
    if total < 2:
        raise InputError(f"{file.path}: holds a single sample at {rate_hz} Hz; replace the file, or leave it out")
    edges = [*range(0, total, total if piece_seconds is None else max(2, round(piece_seconds * rate_hz))), total]
    if len(edges) > 2 and edges[-1] - edges[-2] < 2:
        del edges[-2]
    return edges


def prepare_sc09(
    source: Path,
    out: Path,
    *,
    version: str = "v0.02",
    settings: AudioSettings | None = None,
    force: bool = False,
    dry_run: bool = False,
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Extract the ten spoken digits from Speech Commands, split by its official lists, and check their counts.

    Args:
        source: the archive (.tar.gz), or a folder with its contents.
        out: folder to create; the clips are kept byte for byte.
        version: version of Speech Commands, which determines the expected counts.
        settings: `bad_files` and `unhealthy` are looked at; clips are counted before any are excluded.
        force: replace what an earlier preparation left in `out`.
        dry_run: check everything, in a temporary folder, and keep nothing.
        max_unpacked_bytes: an archive that unpacks to more is refused.
        reporter: receives progress in clips.

    Returns:
        The manifest.

    Raises:
        InputError: a list is missing or names a clip that is missing, or the counts do not match the version.
    """
    release, settings, reporter = SPEECH_COMMANDS[version], settings or AudioSettings(), reporter or Reporter()
    with new_folder(out, Maker("prepare sc09"), inputs=[source], force=force, dry_run=dry_run) as folder:
        lists = copy_digits(source, folder, max_unpacked_bytes)
        clips = {f"{word}/{path.name}" for word in DIGITS for path in (folder / word).glob("*.wav")}
        split_of: dict[str, str] = {}
        for split, listed in lists.items():
            own = [line for line in listed.split() if line.split("/")[0] in DIGITS]
            missing = [name for name in own if name not in clips]
            if missing:
                raise InputError(
                    f"{source}: {LISTS[split]} names {missing[0]}, which is missing; use the whole release"
                )
            split_of |= dict.fromkeys(own, split)
        counts = {split: 0 for split in SPLITS}
        for name in clips:
            counts[split_of.get(name, "train")] += 1
        if counts != release.clips:
            raise InputError(
                f"{source}: not the digits of Speech Commands {version}: found "
                + ", ".join(f"{counts[split]:,} {split} (expected {release.clips[split]:,})" for split in SPLITS)
                + "; use the whole archive, or give its --version"
            )
        bad: dict[str, str] = {}
        health: dict[str, dict[str, Any]] = {}
        spans: dict[str, list[Span]] = {split: [] for split in SPLITS}
        # By digit instead of alphabetically: the order of the labels.
        ordered = sorted(clips, key=lambda name: (DIGITS.index(name.split("/")[0]), natural_key(name)))
        for done, name in enumerate(ordered, start=1):
            try:
                file = probe(str(folder / name))
                if file.native_rate_hz != 16_000 or file.channels != 1:
                    raise InputError(
                        f"{folder / name}: {file.native_rate_hz} Hz, {file.channels} channels; not a clip of SC09"
                    )
                health[name] = file.health
                spans[split_of.get(name, "train")].append(Span(name, 0, file.frames))
            except InputError as error:
                bad[name] = str(error).replace(str(folder), str(source))
                (folder / name).unlink()
            reporter.progress("checking clips", done, len(ordered))
        _report_bad(bad, len(ordered), settings.bad_files)
        left_out = _unhealthy(health, settings.unhealthy)
        for name in left_out:
            (folder / name).unlink()
        spans = {split: [span for span in own if span.record not in left_out] for split, own in spans.items()}
        twins = _duplicates(folder, spans, 16_000, settings.unhealthy, reporter)
        if settings.unhealthy == "exclude":
            left_out |= twins
        by_name = {span.record: (split, span.end) for split, own in spans.items() for span in own}
        rows = [(name, by_name[name][0], 0, by_name[name][1]) for name in ordered if name in by_name.keys() - left_out]
        made = f"official lists of Speech Commands {version}"
        more = {"speech_commands": version, "source": str(source), "health": health, "duplicates": [*twins.values()]}
        return _finish(folder, rows, made, bad | left_out, 16_000, more)


def prepare_youtubemix(
    source: Path,
    out: Path,
    *,
    settings: AudioSettings | None = None,
    force: bool = False,
    dry_run: bool = False,
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Prepare YouTubeMix as SaShiMi uses it: one-minute clips at 16 kHz, 88 % train, 6 % valid, 6 % test in numeric order.

    Args:
        source: `youtubemix.zip`, a folder of its clips, or one long recording. Recordings of more than a minute (clips: of
            more than 61 seconds) are cut into minutes.
        out: folder to create.
        settings: `channels`, `bad_files` and `unhealthy` are looked at.
        force: replace what an earlier preparation left in `out`.
        dry_run: check everything, in a temporary folder, and keep nothing.
        max_unpacked_bytes: an archive that unpacks to more is refused.
        reporter: receives progress in recordings.

    Returns:
        The manifest. 241 clips are split into 212, 14 and 15.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; correct the path")
    refuse_inside(out, [str(source)])
    one_recording = source.is_file() and source.suffix.lower() in FORMATS
    settings = (settings or AudioSettings()).model_copy(update={"piece_seconds": 60.0})
    # Clips of a minute may be a little longer.
    whole = 0.0 if one_recording else 61.0
    reporter = reporter or Reporter()
    with new_folder(out, Maker("prepare youtubemix"), inputs=[source], force=force, dry_run=dry_run) as folder:
        if one_recording or source.is_dir():
            return _write_recordings([str(source)], folder, settings, reporter, source=source, whole_seconds=whole)
        if not zipfile.is_zipfile(source):
            raise InputError(
                f"{source}: neither a recording that can be read nor a complete zip archive; convert it to FLAC, or "
                "download it again"
            )
        unpacked = folder / ".unpacked"
        unpacked.mkdir()
        try:
            unpack_zip(source, unpacked, max_unpacked_bytes)
            return _write_recordings(
                [str(unpacked)], folder, settings, reporter, source=source, temporary=True, whole_seconds=whole
            )
        except InputError as error:
            raise InputError(str(error).replace(str(unpacked), str(source))) from None


def manifest_rows(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """The manifest as lines for people: (what, value)."""
    rows = [("recordings", f"{manifest['recordings']:,} at {manifest['sample_rate_hz']:,} Hz")]
    rows += [
        (split, f"{counts['files']:,} recording{'s' * (counts['files'] != 1)}, {counts['seconds']:,.1f} s")
        for split, counts in manifest["splits"].items()
    ]
    rows.append(("split by", manifest["split_source"]))
    if manifest.get("clipped_samples"):
        rows.append(("samples clipped", f"{manifest['clipped_samples']:,} beyond full scale"))
    skipped = manifest.get("skipped_files", {})
    rows += [("skipped", f"{name}: {reason}") for name, reason in [*skipped.items()][:_SHOWN]]
    if len(skipped) > _SHOWN:
        rows.append(("skipped", f"{len(skipped) - _SHOWN:,} more files, named in manifest.json"))
    rows += _health_rows(manifest.get("health", {}))
    rows += [("duplicate", line) for line in manifest.get("duplicates", [])[:_SHOWN]]
    if len(manifest.get("duplicates", [])) > _SHOWN:
        rows.append(("duplicate", f"{len(manifest['duplicates']) - _SHOWN:,} more pairs, named in manifest.json"))
    rows += [("excluded", reason) for reason in manifest["excluded_files"].values()]
    return rows


def _health_rows(health: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """A line for each recording or, of many, for the first of those that something is wrong with."""
    if not health:
        return []
    found = {name: report for name, report in health.items() if report["findings"]}
    shown = found if len(health) > _SHOWN else health
    rows = [("health", f"{name}: {health_line(report)}") for name, report in [*shown.items()][: 2 * _SHOWN]]
    if len(health) > len(rows):
        rows.append(
            ("health", f"{len(health) - len(found):,} of {len(health):,} recordings healthy; all in manifest.json")
        )
    return rows


def _write_flac(file: AudioFile, span: Span, path: Path, rate_hz: int) -> int:
    """Write a span as mono 16-bit FLAC, block by block; returns the number of clipped samples."""
    clipped = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with name_full_disk(path), soundfile.SoundFile(path, "w", rate_hz, 1, "PCM_16", format="FLAC") as target:
        for start in range(span.start, span.end, _BLOCK):
            audio = file.read(start, min(start + _BLOCK, span.end), rate_hz)
            clipped += int((np.abs(audio) > 1).sum())
            target.write(np.clip(audio, -1, 1))
    return clipped


def _report_bad(bad: dict[str, str], total: int, bad_files: str) -> None:
    if bad and (bad_files == "error" or len(bad) == total):
        shown = [*bad.values()][:20]
        more = [f"... and {len(bad) - len(shown)} more"] if len(bad) > len(shown) else []
        raise InputError(
            f"{len(bad):,} of {total:,} files cannot be used:\n  "
            + "\n  ".join([*shown, *more])
            + "\nReplace them, or leave them out with --bad-files exclude"
        )


def _report_unhealthy(found: dict[str, str], unhealthy: Unhealthy, *, nothing_left: bool) -> None:
    if found and (unhealthy == "error" or nothing_left):
        shown = [*found.values()][:20]
        more = [f"... and {len(found) - len(shown)} more"] if len(found) > len(shown) else []
        raise InputError(
            f"something is wrong with {len(found):,} recording{'s' * (len(found) != 1)}:\n  "
            + "\n  ".join([*shown, *more])
            + "\nMend them, leave them out with --unhealthy exclude, or keep them with --unhealthy accept"
        )


def _finish(
    folder: Path,
    rows: Sequence[tuple[str, str, int, int]],
    split_source: str,
    bad: dict[str, str],
    rate_hz: int,
    more: dict[str, Any],
) -> dict[str, Any]:
    """Write the list of splits and the manifest."""
    text = "".join(f"{name}\t{split}\t{start}\t{stop}\t{rate_hz}\n" for name, split, start, stop in rows)
    write_text(folder / INTERVALS_NAME, "file\tsplit\tstart0\tend\trate_hz\n" + text)
    files = [open_file(path, name) for path, name in list_files(str(folder))]
    (described,) = content_hash(str(folder), files)
    manifest: dict[str, Any] = {
        "mamba_bio_audio": __version__,
        **more,
        "recordings": len(files),
        "sample_rate_hz": rate_hz,
        "sha256": described["sha256"],
        "split_source": split_source,
        "splits": {
            split: {
                "files": len({name for name, own, _, _ in rows if own == split}),
                "seconds": round(sum(stop - start for _, own, start, stop in rows if own == split) / rate_hz, 3),
            }
            for split in SPLITS
        },
        "excluded_files": bad,
    }
    write_json(folder / MANIFEST_NAME, manifest)
    return manifest
