import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.audio.corpus import summary_rows
from mamba_bio_audio.pipelines.audio.splits import split_by_share
from mamba_bio_audio.pipelines.corpus import Example
from mamba_bio_audio.pipelines.data import DataModule, batch_of
from mamba_bio_audio.pipelines.spans import size_of

L = 64


def module(path, *, length: int = L, batch_size: int = 4, seed: int = 0, **options) -> DataModule:
    where = {name: options.pop(name) for name in ("start_sample", "rank", "world_size") if name in options}
    return DataModule(AudioDataConfig(path=path, **options), length=length, batch_size=batch_size, seed=seed, **where)


def batches(data: DataModule, count: int) -> list[dict[str, torch.Tensor]]:
    return list(itertools.islice(data.train_dataloader(), count))


def samples(data: DataModule, split: str) -> int:
    return size_of(data.corpus.spans(split))


def rows(found: list[dict[str, torch.Tensor]], name: str = "targets") -> list[list[int]]:
    return torch.cat([batch[name] for batch in found]).tolist()


@pytest.fixture
def folder(write_audio, tmp_path) -> str:
    for number in range(1, 21):
        write_audio(f"d/{number}.wav", 500 + number, seed=number)
    return str(tmp_path / "d")


def levels(path: str, **options) -> np.ndarray:
    from mamba_bio_audio.pipelines.audio.quantize import AudioCodec

    return AudioCodec(**options).encode(soundfile.read(path, dtype="float32")[0])


def test_batch_begins_with_the_zero_level() -> None:
    batch = batch_of(
        [Example(np.array([128, 5, 6, 7], np.uint8)), Example(np.array([128, 9], np.uint8))], 3, pad_id=128
    )
    assert batch["tokens"].tolist() == [[128, 5, 6], [128, 9, 128]]
    assert batch["targets"].tolist() == [[5, 6, 7], [9, -100, -100]]
    assert batch["tokens"].dtype == batch["targets"].dtype == torch.int64
    batch = batch_of([Example(np.array([2048, 9, 2047, 2048, 2048], np.int16))], 4, pad_id=2048)
    assert batch["tokens"].tolist() == [[2048, 9, 2047, 2048]]
    assert batch["targets"].tolist() == [[9, 2047, 2048, 2048]]


def test_batches_are_windows_of_the_training_split(folder: str) -> None:
    """Every sample of the training files is a target once an epoch; inputs begin with the zero level."""
    data = module(folder)
    count = len(data.training_windows(L))
    found = batches(data, -(-count // 4))
    targets, tokens = np.array(rows(found)[:count]), np.array(rows(found, "tokens")[:count])
    assert (tokens[:, 0] == 128).all()
    inside = targets[:, :-1] >= 0
    assert (tokens[:, 1:][inside] == targets[:, :-1][inside]).all()
    expected = []
    for number in range(1, 18):  # int(0.88 * 20) files
        ids = levels(f"{folder}/{number}.wav").tolist()
        expected += [ids[low : low + L] for low in range(0, len(ids), L)]
    assert sorted([x for x in row if x >= 0] for row in targets.tolist()) == sorted(expected)
    assert targets[targets < 0].size == count * L - samples(data, "train")
    assert set(targets[targets < 0]) == {-100}


def test_each_epoch_is_another_permutation(folder: str) -> None:
    stream = module(folder).train_dataloader().dataset.streams[0][0]
    count = len(stream.windows)
    epochs = [[stream.window_index(epoch * count + k) for k in range(count)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = module(folder, seed=1).train_dataloader().dataset.streams[0][0]
    assert [other.window_index(k) for k in range(count)] != epochs[0]


def test_evaluation_scores_every_sample_once(folder: str) -> None:
    data = module(folder)
    assert [samples(data, split) for split in ("train", "valid", "test")] == [
        sum(500 + n for n in numbers) for numbers in (range(1, 18), [18], [19, 20])
    ]
    for split in ("train", "valid", "test"):
        scored = sum(int((batch["targets"] != -100).sum()) for batch in data.evaluation_dataloader(split, 5))
        assert scored == samples(data, split) == data.corpus.evaluation_windows(split).scored
    first = data.evaluation_dataset("valid")[0]
    assert first["targets"].tolist() == levels(f"{folder}/18.wav")[:L].tolist()
    assert len(data.evaluation_dataset("train", max_tokens=10 * L)) == 10
    assert len(data.evaluation_dataset("train", max_tokens=1)) == 1
    with pytest.raises(InputError, match="not 'dev'"):
        data.evaluation_dataset("dev")


def test_groups_are_files_while_they_are_few(folder: str, write_audio) -> None:
    assert module(folder).corpus.groups == ("all",)
    assert {int(x["group"]) for x in module(folder).evaluation_dataset("test")} == {0}
    paths = [write_audio(f"e/{name}.wav", 1000) for name in "ab"]
    data = module(paths, valid_fraction=0.2, test_fraction=0.2)
    assert data.corpus.groups == ["a.wav", "b.wav"]
    scored = {0: 0, 1: 0}
    for example in data.evaluation_dataset("test"):
        scored[int(example["group"])] += int((example["targets"] != -100).sum())
    assert scored == {0: 200, 1: 200}


def test_padding_can_be_learnt_as_silence_but_is_never_evaluated(folder: str) -> None:
    data = module(folder, pad_target="silence")
    found = batches(data, 30)
    assert all((batch["targets"] >= 0).all() for batch in found)
    short = [row for row in rows(found) if row[-20:] == [128] * 20]
    assert short
    assert any((batch["targets"] == -100).any() for batch in data.evaluation_dataloader("train", 4))


def test_short_windows_can_be_left_out(folder: str) -> None:
    data = module(folder, drop_short=True)
    assert all((batch["targets"] >= 0).all() for batch in batches(data, 30))
    # 12.wav has 512 samples, 8 whole windows.
    assert data.corpus.skipped_windows == 16
    assert data.corpus.evaluation_windows("train").scored == samples(data, "train")
    with pytest.raises(InputError, match=r"no window to train on: 8,653 samples.*17 windows shorter.*drop_short=false"):
        module(folder, length=600, drop_short=True).train_dataloader()


def test_other_rates_depths_and_gains(write_audio) -> None:
    path = write_audio("a.flac", 44_100, 44_100, channels=2)
    data = module(path, bits=12, gain=0.25, length=1000, quantizer="linear")
    assert sum(samples(data, split) for split in ("train", "valid", "test")) == 16_000
    batch = batches(data, 3)[0]
    assert (batch["tokens"][:, 0] == 2048).all()
    audio = data.codec.decode(batch["targets"][0].numpy())
    assert 0.1 < abs(audio).max() < 0.26
    summary = data.summary()
    assert summary["quantizer"] == "linear 12 bit standard"
    assert summary["native_rates_hz"] == [44_100]
    assert summary["channels"] == [2]
    assert summary["seconds"] == 1


def test_sashimi_scales_every_window_by_itself(folder: str) -> None:
    data = module(folder, variant="sashimi")
    for row in rows(batches(data, 3)):
        known = [x for x in row if x >= 0]
        assert min(known) == 0
        assert max(known) >= 254


def test_only_the_beginning_of_each_file(folder: str) -> None:
    data = module(folder, max_duration_s=0.01)
    assert samples(data, "train") == 17 * 160
    targets = {tuple(x for x in e["targets"].tolist() if x >= 0) for e in data.evaluation_dataset("valid")}
    assert sum(map(len, targets)) == 160


def test_list_of_splits_beside_the_files(folder: str, tmp_path: Path) -> None:
    listed = tmp_path / "d" / "intervals.tsv"
    listed.write_text("file\tsplit\n3.wav\ttrain\n5.wav\tvalid\n")
    data = module(folder)
    assert [samples(data, split) for split in ("train", "valid", "test")] == [503, 505, 0]
    assert data.summary()["split_source"] == str(listed)
    assert ("in no split", "18 recordings, such as 1.wav") in summary_rows(data.summary())
    with pytest.raises(InputError, match="test split has no sample"):
        data.evaluation_dataset("test")
    other = tmp_path / "other.tsv"
    other.write_text("file\tsplit\n7.wav\ttrain\n")
    assert samples(module(folder, intervals=str(other)), "train") == 507
    with pytest.raises(InputError, match=r"data\.intervals: .*nowhere"):
        module(folder, intervals="nowhere.tsv").setup()


def test_bad_files_are_named_or_left_out(folder: str, tmp_path: Path) -> None:
    (tmp_path / "d" / "4.wav").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 of 20 files(?s:.*)4\.wav: zero length"):
        module(folder).setup()
    data = module(folder, bad_files="exclude")
    assert list(data.summary()["excluded_files"]) == ["4.wav"]
    assert data.summary()["recordings"] == 19
    with pytest.raises(InputError, match=r"data\.path is not set"):
        module(None).setup()


def test_arguments_are_checked(folder: str) -> None:
    for wrong in ({"length": 0}, {"batch_size": 0}, {"rank": 1}, {"start_sample": -1}, {"seed": -1}):
        with pytest.raises(ValueError, match="rank < world_size"):
            module(folder, **wrong)


def test_config_refuses_depths_that_cannot_be_trained() -> None:
    with pytest.raises(ValidationError, match="8 to 12 bits: 16 bits would be 65536 classes"):
        AudioDataConfig(bits=16)
    with pytest.raises(ValidationError, match="too coarse"):
        AudioDataConfig(bits=4)
    with pytest.raises(ValidationError, match="stay below 1"):
        AudioDataConfig(valid_fraction=0.5, test_fraction=0.5)
    assert AudioDataConfig.model_validate(AudioDataConfig(bits=10).model_dump(mode="json")).bits == 10


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e39])
@pytest.mark.parametrize("field", ["gain", "max_duration_s"])
def test_config_refuses_numbers_without_bound(field, value) -> None:
    with pytest.raises(ValidationError, match=field):
        AudioDataConfig(**{field: value})


def test_description_of_intervals_is_what_split_by_share_does() -> None:
    """Three files, and yet cut: 6 % of three is none."""
    assert split_by_share(dict.fromkeys("abc", 100), 0.06, 0.06)[1] == "the last parts of each of 3 files"
    assert split_by_share(dict.fromkeys("abcdefghijklmnopq", 100), 0.06, 0.06)[1] == "whole files in natural order"
    text = AudioDataConfig.model_fields["intervals"].description or ""
    assert "the last parts of every file where the files are too few to give each wanted split one" in text


def test_imports_are_light() -> None:
    """The settings need no torch; DNA needs neither torchaudio nor soundfile."""
    for imported, absent in (
        ("mamba_bio_audio.pipelines.audio.config", ("torch", "soundfile", "numpy")),
        ("mamba_bio_audio.pipelines.dna.corpus", ("torchaudio", "soundfile")),
    ):
        code = f"import sys, {imported}; assert not {set(absent)!r} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)


def test_shared_piano(shared_data) -> None:
    data = module(str(shared_data / "piano"), length=8192)
    assert data.summary()["splits"]["train"]["files"] == 8
    batch = batches(data, 1)[0]
    assert batch["targets"].shape == (4, 8192)
    assert (batch["targets"] != batch["targets"][:, :1]).any()
    decoded = data.codec.decode(batch["targets"].clamp(min=0).numpy())
    assert 0.01 < abs(decoded).max() < 0.95


def test_the_packaged_recording_is_five_seconds_of_piano() -> None:
    data = module("demo", length=1024)
    (file,) = data.summary()["files"]
    assert (file["name"], file["recordings"], len(file["sha256"])) == ("demo", 1, 64)
    assert data.summary()["seconds"] == 5.0
    assert 0.01 < data.codec.decode(data.stream().example(0).ids[1:]).std() < 0.2


def test_shared_digits(shared_data) -> None:
    data = module(str(shared_data / "sc09" / "fsdd_8k"), length=16_000, max_duration_s=1.0)
    data.setup()
    assert len(data.corpus.recordings.files) == 2500
    assert sum(len(data.corpus.evaluation_windows(split).windows) for split in ("train", "valid", "test")) == 2500
    batch = batches(data, 1)[0]
    share = (batch["targets"] != -100).float().mean()
    assert 0.1 < share < 0.9
    same = module(str(shared_data / "sc09" / "speech_commands_16k"), length=16_000)
    assert same.summary()["native_rates_hz"] == [16_000]


def varied(folder: str, **options) -> DataModule:
    other = {"augment_speed": 0.1, "augment_pitch": 2.0, "augment_shift_s": 0.001}
    return module(
        folder, windows="random", augment_gain_db=6.0, augment_polarity=True, augment_noise=3.0, **other, **options
    )


def test_random_windows_are_spans_of_their_recordings(folder: str) -> None:
    """Whole windows at other places in every epoch, each no further than half a window from its tile."""
    data = module(folder, windows="random")
    windows, stream = data.training_windows(L), data.stream()
    texts = {f"{n}.wav": levels(f"{folder}/{n}.wav").tobytes() for n in range(1, 18)}
    places = []
    for number in range(2 * len(windows)):
        found = stream.example(number).ids
        tile = windows[stream.window_index(number)]
        assert len(found) == L + 1
        at = texts[tile.record].find(found[1:].tobytes())
        assert max(0, tile.start - L // 2) <= at <= tile.start + L // 2
        places.append((tile.record, at))
    assert len(set(places)) > 1.5 * len(windows)


def test_augmentation_changes_sign_and_loudness_and_clips_nothing(tmp_path) -> None:
    """Half of the windows turned over, gains all over the range, the loud recording never above full scale."""
    for name, scale in (("1", 0.4), ("2", 0.99), ("3", 0.1), ("4", 0.1)):
        soundfile.write(tmp_path / f"{name}.wav", scale * np.sin(np.arange(40 * L) / 5), 16_000)
    path = str(tmp_path)
    plain, changed = module(path), module(path, augment_gain_db=12.0, augment_polarity=True)
    turned, gains = [], {f"{name}.wav": [] for name in "1234"}
    stream, other = plain.stream(), changed.stream()
    for number in range(80):
        before, after = (plain.codec.decode(s.example(number).ids[1:]) for s in (stream, other))
        factor = float(before @ after / (before @ before))
        turned.append(factor < 0)
        gains[plain.training_windows(L)[stream.window_index(number)].record].append(abs(factor))
        assert np.abs(after - factor * before).max() < 0.05 * np.abs(after).max() + 0.01
        assert np.abs(after).max() <= 1
    assert 20 < sum(turned) < 60
    assert min(gains["1.wav"]) < 0.5
    assert 1.8 < max(gains["1.wav"]) <= 2.51
    assert max(gains["2.wav"]) < 1.05


def test_clips_begin_later_faster_or_slower_and_silence_fills_the_window(tmp_path) -> None:
    """Clips of half a window begin anywhere within the shift, last as the speed says, and are whole to their end."""
    for name in "1234":
        soundfile.write(tmp_path / f"{name}.wav", np.full(L // 2, 0.5), 16_000)
    all_of_it = {"valid_fraction": 0.0, "test_fraction": 0.0, "pad_target": "silence"}
    data = module(str(tmp_path), augment_speed=0.25, augment_shift_s=0.3 * L / 16_000, **all_of_it)
    stream, begins, lasts = data.stream(), [], []
    for number in range(60):
        ids = stream.example(number).ids[1:]
        assert len(ids) == L
        heard = np.flatnonzero(np.abs(data.codec.decode(ids)) > 0.25)
        assert len(heard) == heard[-1] - heard[0] + 1
        begins.append(heard[0] / L)
        lasts.append(len(heard) / L)
    assert min(begins) < 0.03
    assert 0.27 < max(begins) <= 0.3
    assert 0.39 < min(lasts) < 0.43
    assert 0.62 < max(lasts) < 0.68


def test_what_no_longer_fits_is_cut_off(folder: str) -> None:
    data = module(folder, augment_speed=0.5, augment_shift_s=2.0 * L / 16_000)
    sizes = [len(data.stream().example(number).ids) for number in range(20)]
    assert max(sizes) == L + 1


@pytest.mark.parametrize("start", ["level", "token"])
def test_noise_is_read_and_not_predicted(folder: str, start: str) -> None:
    """Strengths all over the range and no more, whole levels, nothing on what a window begins with, clean targets."""
    clean, noisy = module(folder, start=start), module(folder, start=start, augment_noise=4.0)
    strengths = []
    for before, after in zip(batches(clean, 40), batches(noisy, 40), strict=True):
        assert torch.equal(before["targets"], after["targets"])
        assert torch.equal(before["tokens"][:, 0], after["tokens"][:, 0])
        assert 0 <= after["tokens"][:, 1:].min() <= after["tokens"][:, 1:].max() < 256
        # A window's last targets are masked where it is short, and so is what is read there.
        whole = (before["targets"] != -100).all(1)
        strengths += (after["tokens"] - before["tokens"])[whole, 1:].double().std(1).tolist()
    assert len(strengths) > 60
    assert min(strengths) < 0.8
    assert 3 < max(strengths) < 5.5
    assert 1.3 < np.mean(strengths) < 2.7


def test_noise_stays_within_the_levels(tmp_path) -> None:
    for name in "1234":
        soundfile.write(tmp_path / f"{name}.wav", np.where(np.arange(40 * L) % 2, 1.0, -1.0), 16_000)
    tokens = torch.cat([batch["tokens"] for batch in batches(module(str(tmp_path), augment_noise=8.0), 4)])
    assert tokens.min() == 0
    assert tokens.max() == 255


def test_variations_depend_on_seed_stage_and_sample_alone(folder: str) -> None:
    def read(found: list[dict[str, torch.Tensor]]) -> list[list[int]]:
        return [a + b for a, b in zip(rows(found), rows(found, "tokens"), strict=True)]

    whole = read(batches(varied(folder), 12))
    assert read(batches(varied(folder, num_workers=2), 12)) == whole
    assert read(batches(varied(folder, start_sample=16), 8)) == whole[16:]
    ranks = [read(batches(varied(folder, batch_size=2, rank=rank, world_size=2), 12)) for rank in (0, 1)]
    assert [row for pair in zip(*ranks, strict=True) for row in pair] == whole
    assert read(batches(varied(folder, seed=1), 12)) != whole


def test_variations_leave_evaluation_alone(folder: str) -> None:
    plain, changed = module(folder), varied(folder)
    for split in ("train", "valid", "test"):
        ours, theirs = (list(one.evaluation_dataloader(split)) for one in (changed, plain))
        assert [rows([batch]) for batch in ours] == [rows([batch]) for batch in theirs]


def test_clips_with_classes_are_not_varied() -> None:
    from mamba_bio_audio.pipelines.audio.classes_config import AudioClassesConfig

    changes = {"gain_db": 3, "polarity": True, "noise": 1, "speed": 0.1, "pitch": 1, "shift_s": 0.1}
    for options in ({"windows": "random"}, *({f"augment_{key}": value} for key, value in changes.items())):
        with pytest.raises(ValidationError, match="clips with classes are read whole"):
            AudioClassesConfig(**options)


@pytest.fixture
def labelled(write_audio, tmp_path) -> str:
    """Recordings of three words, six of each."""
    for number, word in enumerate(("one", "two", "three")):
        for take in range(6):
            write_audio(tmp_path / "words" / word / f"{take}.wav", 40 + 10 * number)
    return str(tmp_path / "words")


def conditioned(path, classes="folders", **options) -> DataModule:
    data = module(path, **options)
    data.classes = classes
    data.setup()
    return data


@pytest.mark.parametrize(("bits", "dtype"), [(8, "uint8"), (10, "int16")])
def test_a_start_token_is_read_and_never_predicted(labelled, bits, dtype):
    data = module(labelled, start="token", bits=bits, pad_target="silence")
    plain = module(labelled, bits=bits, pad_target="silence")
    assert data.corpus.fetch(data.corpus.spans("train")[0]).dtype == dtype
    for batch, other in zip(batches(data, 3), batches(plain, 3), strict=True):
        assert batch["tokens"][:, 0].tolist() == [2**bits] * 4
        assert other["tokens"][:, 0].tolist() == [2**bits // 2] * 4
        assert torch.equal(batch["tokens"][:, 1:], other["tokens"][:, 1:])
        assert torch.equal(batch["targets"], other["targets"])
    assert data.evaluation_dataset("valid")[0]["tokens"][0] == 2**bits


def test_the_class_of_a_recording_is_a_shift_of_what_is_read(labelled):
    data = conditioned(labelled, start="token", valid_fraction=1 / 6, test_fraction=1 / 6)
    assert data.corpus.conditions == ("one", "three", "two")
    assert data.summary()["conditions"] == ["one", "three", "two"]
    for split, count in (("train", 4), ("valid", 1), ("test", 1)):
        spans = data.corpus.spans(split)
        assert sorted(span.record.split("/")[-2] for span in spans) == sorted(["one", "two", "three"] * count)
        for index, span in enumerate(data.evaluation_dataset(split).windows):
            found = data.evaluation_dataset(split)[index]
            number = data.corpus.conditions.index(span.record.split("/")[-2]) + 1
            ids = data.corpus.fetch(span).astype(int)
            size = len(ids)
            assert found["tokens"][: size + 1].tolist() == [257 * number + 256, *(257 * number + ids)]
            assert found["targets"][:size].tolist() == ids.tolist()
            # Padding has no class.
            assert found["tokens"][size + 1 :].eq(128).all()


def test_a_tenth_of_the_training_windows_hides_its_class(labelled):
    data = conditioned(labelled, ("three", "one"), start="token", batch_size=50)
    classes = torch.cat([batch["tokens"][:, 0] // 257 for batch in batches(data, 10)])
    # Recordings of "two" have none.
    counts = [int((classes == number).sum()) for number in range(4)]
    assert counts[3] == 0
    shown = (counts[1] + counts[2]) / len(classes)
    assert abs(shown - 0.9 * 2 / 3) < 0.05
    again = conditioned(labelled, ("three", "one"), start="token", batch_size=50)
    assert torch.equal(classes[:50], batches(again, 1)[0]["tokens"][:, 0] // 257)


SPLIT_OF = {0: "train", 1: "train", 2: "valid", 3: "test"}


def test_splits_that_are_listed_stay(labelled):
    rows = "".join(
        f"{word}/{take}.wav\t{split}\n" for word in ("one", "two", "three") for take, split in SPLIT_OF.items()
    )
    (Path(labelled) / "intervals.tsv").write_text("file\tsplit\n" + rows)
    plain, data = module(labelled), conditioned(labelled)
    assert [data.corpus.spans(split) for split in ("train", "valid", "test")] == [
        plain.corpus.spans(split) for split in ("train", "valid", "test")
    ]


def test_classes_that_the_data_do_not_have(labelled, write_audio, tmp_path):
    with pytest.raises(InputError, match="no recording of 'four' in the training split .*; there are one, three, two"):
        conditioned(labelled, ("one", "four")).train_dataloader()
    write_audio(tmp_path / "single" / "one" / "0.wav", 100)
    with pytest.raises(InputError, match="only one class, one, but model.classes needs two or more"):
        conditioned(str(tmp_path / "single")).train_dataloader()
    rows = "one/0.wav\ttrain\ntwo/0.wav\tvalid\nthree/0.wav\ttrain\n"
    (Path(labelled) / "intervals.tsv").write_text("file\tsplit\n" + rows)
    with pytest.raises(InputError, match="model.classes: no recording of 'two' in the training split"):
        conditioned(labelled).train_dataloader()
    # Whoever evaluates a model may have other recordings.
    assert conditioned(labelled, ("one", "four")).evaluation_dataset("valid")[0]["tokens"][0] == 128
