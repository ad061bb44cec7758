"""Every key of a configuration does something: set away from where it stands, something that a user gets is different.

`ROWS` says for each key from where to where it is set, and where its effect is looked for. A key without a row fails, and
so does a row without an effect. The places are cheap: the model as it is built with its loss, the windows and batches of
the data, the arguments of the trainer, and a run of four steps on a model of a thousand parameters.
"""

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pybigtools
import pytest
import soundfile
import torch
from pydantic import BaseModel

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.layers import mamba
from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.models.build import build, build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.unet_config import StageConfig, UNetConfig
from mamba_bio_audio.pipelines.audio.classes_config import AudioClassesConfig
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.pipelines.dna.tracks_config import DnaTracksConfig
from mamba_bio_audio.pipelines.synthetic.config import InductionConfig, RecallConfig, SelectiveCopyingConfig
from mamba_bio_audio.run.config import RunConfig, load_config, to_yaml
from mamba_bio_audio.run.data import open_data
from mamba_bio_audio.run.export import export
from mamba_bio_audio.training.config import LengthStage, TrainConfig

SECTIONS: tuple[type[BaseModel], ...] = (
    *(RunConfig, TrainConfig, LengthStage),
    # Settings of other mixers stand in `options`: tests/layers/test_registry.py.
    *(ModelConfig, UNetConfig, StageConfig, SsmConfig, HeadConfig),
    *(DnaDataConfig, DnaClassesConfig, DnaTracksConfig, AudioDataConfig, AudioClassesConfig),
    *(InductionConfig, SelectiveCopyingConfig, RecallConfig),
)

TRAIN = """
train:
  {steps: 4, length: 32, tokens_per_step: 128, lr: 1e-2, validate_every: 2, validation_tokens: 64, checkpoint_every: 2,
   log_every: 1, micro_batch: 2}
"""
RECIPES = {
    "dna": "data: {path: DIR/genome.fa, block_bases: 500}\nmodel: {d_model: 8, num_layers: 1}\n",
    "audio": "data: {kind: audio, path: DIR/clips}\nmodel: {backbone: unet, d_model: 8, num_layers: 1, pools: [4],"
    " stages: [{}, {}, {}]}\n",
    "dna-classes": "data: {kind: dna-classes, path: [DIR/x.fa, DIR/y.fa, DIR/z.fa]}\nmodel: {d_model: 8, num_layers: 1}\n"
    "head: {}\n",
    "dna-labels": "data: {kind: dna-classes, path: DIR/numbers.tsv}\nmodel: {d_model: 8, num_layers: 1}\nhead: {}\n",
    "dna-tracks": "data: {kind: dna-tracks, path: DIR/genome.fa, tracks: DIR/track.bw, block_bases: 500, contigs: all}\n"
    "model: {d_model: 8, num_layers: 1}\nhead: {task: bases}\n",
    "audio-classes": "data: {kind: audio-classes, path: DIR/labelled}\nmodel: {d_model: 8, num_layers: 1}\nhead: {}\n",
    "induction": "data: {kind: induction, examples: 9}\nmodel: {d_model: 8, num_layers: 1}\n",
    "selective-copying": "data: {kind: selective-copying, examples: 9, memorize: 4}\nmodel: {d_model: 8, num_layers: 1}\n",
    "recall": "data: {kind: recall, examples: 9, pairs: 4, vocab: 40}\nmodel: {d_model: 8, num_layers: 1}\n",
}


class Row(NamedTuple):
    """From where to where a key is set; other keys stand as in the recipe, or as in `given`."""

    family: str
    change: str
    place: str
    given: tuple[str, ...] = ()


def rows(family: str, place: str, *changes: str | tuple[str, ...]) -> list[Row]:
    """One row for each `key=value`, or `(key=value, given...)`."""
    found = [(change,) if isinstance(change, str) else change for change in changes]
    return [Row(family, change, place, tuple(given)) for change, *given in found]


AUDIO = (
    "data.path=DIR/other-FAMILY",
    "data.intervals=DIR/FAMILY.tsv",
    "data.valid_fraction=0.3",
    "data.test_fraction=0.3",
    "data.sample_rate_hz=8000",
    "data.quantizer=linear",
    "data.variant=sashimi",
    "data.start=token",
    "data.gain=0.5",
    "data.max_duration_s=0.001",
    ("data.bad_files=exclude", "data.path=DIR/damaged"),
    "data.num_workers=1",
)
MAMBA_OUTSIDE = "model.stages=[{mixer: mamba}, {}, {mixer: mamba}]"
MADE = ("induction", "selective-copying", "recall")
# Windows that have room for a copy.
LONGER = ("train.length=128", "train.tokens_per_step=256")

ROWS = [
    *rows("dna", "model", "model.mixer=s4d", "model.d_model=16", "model.num_layers=2", "model.ssm={d_state: 4}"),
    *rows("dna", "model", "model.vocab_multiple=5", "model.norm_eps=0.1", "model.tie_embeddings=false"),
    *rows("dna", "model", "model.ssm.d_state=4", "model.ssm.d_conv=3", "model.ssm.expand=1", "model.ssm.dt_rank=3"),
    *rows("dna", "model", "model.ssm.complex=true", "model.ssm.selective=bc", "model.ssm.exact_zoh=true"),
    *rows("dna", "model", ("model.ssm.complex_init=pi n", "model.ssm.complex=true"), "model.ssm.precise=true"),
    *rows("dna", "model", "model.ssm.real_init=1/2"),
    *rows("dna", "model", "model.ssm.dt_min=1e-2", "model.ssm.dt_max=0.05", "model.ssm.dt_floor=0.05"),
    *rows("dna", "model", "model.ssm.conv_bias=false", "model.ssm.proj_bias=true"),
    *rows("dna", "model", ("model.pattern=mamba,transformer", "model.num_layers=2")),
    *rows("dna", "model", ("model.options={heads: 2}", "model.mixer=transformer", "model.ssm={}")),
    *rows("dna", "error", "model.vocab_size=13", "data.kind=audio", "model.inputs=13", "model.classes=folders"),
    *rows("dna", "model", "model.backbone=unet"),
    *rows("audio", "model", "model.mixer=s4d", "model.d_model=16", "model.num_layers=2", "model.ssm={d_state: 4}"),
    *rows("audio", "model", ("model.pools=[2]", "model.stages=[]"), "model.expand=1"),
    *rows("audio", "model", ("model.down_blocks=false", "model.stages=[]"), "model.vocab_multiple=100"),
    *rows("audio", "model", "model.stages=[{}, {num_layers: 2}, {}]", "model.norm_eps=0.1"),
    *rows("audio", "error", "model.backbone=isotropic", "model.vocab_size=13", "data.kind=dna", "model.inputs=300"),
    *rows("audio", "model", ("model.classes=folders", "data.path=DIR/labelled")),
    *rows("audio", "model", "model.stages.1.mixer=transformer", "model.stages.1.num_layers=3"),
    *rows("audio", "model", "model.stages.1.ssm={d_state: 4}"),
    *rows("audio", "model", ("model.stages.1.options={heads: 2}", "model.stages.1.mixer=transformer")),
    *rows("audio", "model", ("model.stages.1.options.mlp_expand=2", "model.stages.1.mixer=transformer")),
    *rows("audio", "model", ("model.options={heads: 2}", "model.mixer=transformer", "model.ssm={}", MAMBA_OUTSIDE)),
    *rows("dna-classes", "model", "head.pool=last", "head.freeze=true", "head.label_smoothing=0.1", "head={pool: max}"),
    *rows("dna-classes", "model", "head.pretrained=DIR/pretrained", "seed=1", "head.lora_rank=2"),
    *rows("dna-classes", "run", ("head.lora_alpha=1", "head.lora_rank=2")),
    *rows("dna-classes", "model", "head.class_weights=[1, 2, 3]"),
    *rows("dna-labels", "model", "head.task=regression"),
    *rows("dna-labels", "model", *[(change, "head.task=regression") for change in ("head.mean=[9]", "head.scale=[9]")]),
    *rows("dna-labels", "model", ("head.loss=poisson", "head.task=regression")),
    *rows("dna", "data", "data={block_bases: 1000}", "data.path=DIR/other.fa", "data.intervals=DIR/genome.bed"),
    *rows(
        "dna", "data", "data.contigs=chr2", "data.valid_fraction=0.2", "data.test_fraction=0.2", "data.split_by=records"
    ),
    *rows("dna", "data", "data.block_bases=1000", "data.split_seed=1", "data.max_unknown=0.9"),
    *rows("dna", "data", "data.case=drop", ("data.lower_weight=0.9", "data.case=weight")),
    *rows("dna", "data", ("data.max_lower=0.01", "data.case=drop"), "data.reverse_complement=true"),
    *rows("dna", "data", ("data.repeats=0.5", *LONGER)),
    *rows("dna", "data", ("data.repeat_substitutions=1", "data.repeats=0.5", *LONGER)),
    *rows("dna", "data", ("data.repeat_reverse=1", "data.repeats=0.5", *LONGER)),
    *rows("dna", "data", ("data.weights={genome: 1, other: 9}", "data.path=[DIR/genome.fa, DIR/other.fa]")),
    *rows(
        "dna",
        "data",
        "data.windows=random",
        ("data.grow_to=4096", "data.windows=grow-right", "data.intervals=DIR/genome.bed"),
    ),
    *rows("dna", "data", ("data.shared_bases=trim", "data.windows=grow-both", "data.intervals=DIR/near.bed")),
    *rows("dna", "data", "data.num_workers=1"),
    *rows("dna-classes", "data", "data.path=[DIR/x.fa, DIR/y.fa]", "data.classes=[y, x]"),
    *rows("dna-classes", "data", ("data.sampling=windows", "data.labels=DIR/labels.bed", "data.path=DIR/genome.fa")),
    *rows(
        "dna-classes",
        "error",
        ("data.split=blocks", "data.groups=record"),
        "head.classes=[x, y]",
        "head.outputs=labels",
        "data.kind=dna",
        "data.labels=DIR/labels.bed",
    ),
    *rows("dna-classes", "data", ("data.labels=DIR/more.bed", "data.labels=DIR/labels.bed", "data.path=DIR/genome.fa")),
    *rows("dna-labels", "data", "data.few=2"),
    *rows("dna-classes", "data", ("data.columns={label: other}", "data.path=DIR/rows.tsv")),
    *rows("dna-classes", "data", ("data.files=x*", "data.files=*", "data.path={a: DIR/folder, b: DIR/y.fa}")),
    *rows("dna-classes", "data", "data.contigs=uniform", "data.matched=true"),
    *rows(
        "dna-classes", "data", "data.intervals=DIR/classes.tsv", "data.groups=record", "data.regions=DIR/regions.tsv"
    ),
    *rows("dna-classes", "data", ("data.valid_fraction=0.3", "data.split=blocks")),
    *rows("dna-classes", "data", ("data.test_fraction=0.3", "data.split=blocks")),
    *rows(
        "dna-classes", "data", ("data.block_bases=300", "data.split=blocks"), ("data.split_seed=1", "data.split=blocks")
    ),
    *rows("dna-classes", "data", "data.evaluation_windows=3", "data.max_unknown=0.9", "data.reverse_complement=false"),
    *rows("dna-classes", "data", ("data.shared_bases=allow", "data.intervals=DIR/overlap.tsv"), "data.num_workers=1"),
    *(row for family in ("audio", "audio-classes") for row in rows(family, "data", *AUDIO)),
    *rows("audio", "data", "data.bits=9", "data.pad_target=silence", "data.drop_short=true"),
    *rows("audio-classes", "data", "data.bits=9", "data.classes=[b, a]", "data.pad_target=silence"),
    *rows("audio", "data", "data.windows=random", "data.augment_gain_db=6", "data.augment_polarity=true"),
    *rows("audio", "data", "data.augment_noise=2", "data.augment_speed=0.2"),
    *rows("audio", "data", "data.augment_pitch=3", "data.augment_shift_s=0.001"),
    *rows("audio-classes", "error", "data.kind=audio", "data.windows=random"),
    *rows("audio-classes", "error", "data.augment_gain_db=6", "data.augment_polarity=true", "data.augment_noise=2"),
    *rows("audio-classes", "error", "data.augment_speed=0.2", "data.augment_pitch=3", "data.augment_shift_s=0.001"),
    *rows("audio-classes", "data", "data.drop_short=true"),
    *rows("dna", "model", "train.init=DIR/pretrained"),
    *rows("dna", "run", "seed=1", "train.steps=3", "train.length=16", "train.tokens_per_step=64", "train={steps: 3}"),
    *rows(
        "dna",
        "run",
        "model={d_model: 16}",
        "train.lr=1e-3",
        "train.lr_min=1e-3",
        "train.warmup=0.9",
        "train.betas=[0.5, 0.5]",
    ),
    *rows(
        "dna",
        "run",
        "train.dropout=0.5",
        "train.weight_decay=0.9",
        "train.clip=1e-3",
        "train.ema=0.5",
        "train.precision=bf16",
    ),
    *rows("dna", "run", "train.length_warmup=[{length: 16, steps: 2}]"),
    *rows("dna", "run", ("train.length_warmup_keeps=sequences", "train.length_warmup=[{length: 16, steps: 2}]")),
    *rows("dna", "run", ("train.length_warmup.0.length=8", "train.length_warmup=[{length: 16, steps: 2}]")),
    *rows("dna", "run", ("train.length_warmup.0.steps=1", "train.length_warmup=[{length: 16, steps: 2}]")),
    *rows(
        "dna",
        "run",
        ("train.length_warmup=[{length: 16, epochs: 0.01}]", "train.length_warmup=[{length: 16, steps: 2}]"),
    ),
    *rows("dna", "run", ("train.length_warmup.0.epochs=0.03", "train.length_warmup=[{length: 16, epochs: 0.01}]")),
    *rows(
        "dna", "run", "train.micro_batch=1", "train.recompute=layer", "train.stream_chunk=8", "train.truncate_chunk=8"
    ),
    *rows("dna", "run", ("train.stream_offload=true", "train.stream_chunk=8"), "train.validate_every=1"),
    *rows("dna", "run", "train.validation_tokens=320", "train.checkpoint_every=1", "train.log_every=2"),
    *rows("dna", "run", ("train.patience=1", "train.lr=1e-30", "train.validate_every=1")),
    *rows("dna-classes", "run", "train.lr_head=1e-3"),
    *rows(
        "dna-tracks",
        "data",
        "data.path=[DIR/genome.fa, DIR/other.fa]",
        "data.tracks={a: DIR/track.bw}",
        "data.margin=4",
    ),
    *rows(
        "dna-tracks", "data", ("data.bin=4", "head.task=tracks"), "data.missing=ignore", "data.intervals=DIR/genome.bed"
    ),
    *rows("dna-tracks", "data", ("data.stranded=true", "data.tracks=DIR/strands.bed"), "data.contigs=[chr1]"),
    *rows("dna-tracks", "data", "data.valid_fraction=0.3", "data.test_fraction=0.3", "data.split_by=records"),
    *rows("dna-tracks", "data", "data.block_bases=700", "data.split_seed=1", "data.evaluation_windows=2"),
    *rows("dna-tracks", "data", "data.max_unknown=0.9", "data.reverse_complement=false", "data.num_workers=1"),
    *rows("dna-tracks", "error", "data.kind=dna", "head.complement=[1, 2]"),
    *(row for family in MADE for row in rows(family, "data", "data.vocab=30", "data.examples=5", "data.num_workers=1")),
    *(row for family in MADE for row in rows(family, "data", "data.examples_seed=1")),
    *(row for family in MADE for row in rows(family, "error", "data.kind=dna")),
    *rows("induction", "data", "data.scored=all"),
    *rows("selective-copying", "data", "data.memorize=3"),
    *rows("recall", "data", "data.pairs=3", "data.filler=none", "data.power=0.9"),
    *rows("dna", "run", "train.lr_ssm=1e-3", "train.lr_layer_decay=0.5"),
    *rows("audio", "run", "train.listen=1"),
    *rows("dna", "trainer", "train.devices=2", "train.nodes=2"),
    *rows("dna", "trainer", ("train.sequence_parallel=2", "train.devices=2")),
    *rows("dna", "gpu", "train.cuda_graph=false"),
    *rows("dna", "shown", "description=another", "name=another"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Small files of every kind."""
    folder = tmp_path_factory.mktemp("keys")
    rng = np.random.default_rng(0)

    def bases(count: int, letters: str = "ACGT") -> str:
        return "".join(rng.choice(list(letters), count))

    mixed = [bases(400) + bases(300).lower() + "N" * 30 + bases(270) for _ in range(8)]
    (folder / "genome.fa").write_text(f">chr1\n{''.join(mixed[:6])}\n>chr2\n{bases(1500)}\n>chr3\n{bases(1500)}\n")
    (folder / "other.fa").write_text(f">chr9\n{bases(5000)}\n")
    (folder / "genome.bed").write_text("chr1\t0\t4000\ttrain\nchr1\t4500\t5000\tvalid\nchr2\t0\t900\ttest\n")
    (folder / "near.bed").write_text(
        "chr1\t0\t20\ttrain\nchr1\t100\t3000\ttrain\nchr1\t25\t90\tvalid\nchr2\t0\t900\ttest\n"
    )
    for name, letters in (("x", "ACGT"), ("y", "ACG"), ("z", "AC")):
        records = [
            f">r{number}\n{bases(700, letters)}{'N' * 20}{bases(50 + 100 * number, letters)}\n" for number in range(8)
        ]
        (folder / f"{name}.fa").write_text("".join(records))
    numbers = [f"{bases(20)}\t{2 ** (at % 3)}\t{('train', 'valid', 'test')[at // 12]}\n" for at in range(36)]
    (folder / "numbers.tsv").write_text("sequence\tlabel\tsplit\n" + "".join(numbers))
    sizes = {"chr1": 6000, "chr2": 1500, "chr3": 1500}
    values = [(name, at, at + 2, float(at % 7)) for name, size in sizes.items() for at in range(0, size, 4)]
    pybigtools.open(str(folder / "track.bw"), "w").write(sizes, iter(values))
    (folder / "strands.bed").write_text("chr1\t10\t3000\ta\t0\t+\nchr2\t0\t900\ta\t0\t-\n")
    (folder / "folder").mkdir()
    for name in ("x", "other"):
        (folder / "folder" / f"{name}.fa").write_text((folder / f"{name}.fa").read_text())
    spans = [f"chr1\t{100 * i}\t{100 * i + 32}\t{'ab'[i % 2]}\n" for i in range(50)]
    (folder / "labels.bed").write_text("".join(spans[:40]))
    (folder / "more.bed").write_text("".join(spans))
    texts = np.random.default_rng(1).choice(list("ACGT"), (40, 24))
    lines = (f"{''.join(text)}\t{i % 2}\t{i // 2 % 2}\n" for i, text in enumerate(texts))
    (folder / "rows.tsv").write_text("sequence\tlabel\tother\n" + "".join(lines))
    split = [f"{c}.fa\tr{n}\t0\t700\t{('train', 'valid', 'test')[n % 3]}\n" for c in "xyz" for n in range(6)]
    header = "file\trecord\tstart0\tend\tsplit\n"
    (folder / "classes.tsv").write_text(header + "".join(split))
    (folder / "overlap.tsv").write_text(header + "".join(split) + "x.fa\tr0\t600\t690\ttest\n")
    (folder / "regions.tsv").write_text("class\trecord\tstart0\tend\nx\tr0\t0\t600\nx\tr1\t0\t600\nx\tr2\t0\t600\n")
    for family, names in (("audio", range(12)), ("audio-classes", [f"{c}/{n}" for c in "abc" for n in range(12)])):
        lines = [f"{name}.wav\t{('valid', 'test', 'train')[i % 3]}\n" for i, name in enumerate(names)]
        (folder / f"{family}.tsv").write_text("file\tsplit\n" + "".join(lines))
    for place, count in (("clips", 12), ("other-audio", 9), ("damaged", 12)):
        (folder / place).mkdir()
        for number in range(count):
            soundfile.write(folder / place / f"{number}.wav", rng.uniform(-0.4, 0.4, 90 + 3 * number), 16_000)
    (folder / "damaged" / "bad.wav").write_bytes(b"RIFF")
    for label in "abc":
        (folder / "labelled" / label).mkdir(parents=True)
        (folder / "other-audio-classes" / label).mkdir(parents=True)
        for number in range(12):
            soundfile.write(folder / "labelled" / label / f"{number}.wav", rng.uniform(-0.4, 0.4, 20 + number), 16_000)
            soundfile.write(folder / "other-audio-classes" / label / f"{number}.wav", rng.uniform(-1, 1, 25), 16_000)
    model = build_model(ModelConfig(d_model=8, num_layers=1, vocab_size=12), seed=5)
    export(model, folder / "pretrained")
    return folder


def configured(folder: Path, family: str, *overrides: str) -> RunConfig:
    recipe = folder / f"{family}.yaml"
    recipe.write_text((RECIPES[family] + TRAIN).replace("DIR", str(folder)))
    return load_config(str(recipe), [text.replace("DIR", str(folder)).replace("FAMILY", family) for text in overrides])


def digest(*tensors: torch.Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(repr(tuple(tensor.shape)).encode() + tensor.detach().numpy().tobytes())
    return found.hexdigest()


def of_model(config: RunConfig) -> Any:
    """Names, shapes and values of the parameters as training begins, and the loss of a batch."""
    from mamba_bio_audio.run.begin import begin, resolve

    data = open_data(config, "cpu")
    data.setup("fit")
    model = begin(resolve(config, data))
    batch = next(iter(data.train_dataloader()))
    precise: list[bool] = []
    real_mixer = mamba.mamba_mixer

    def mixer(*tensors: Any, **options: Any) -> Any:
        precise.append(options["precise"])
        return real_mixer(*tensors, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mamba, "mamba_mixer", mixer)
        loss = model(batch["tokens"], targets=batch["targets"], logits="none").loss_sum
    named = [(name, p.requires_grad, digest(p)) for name, p in model.named_parameters()]
    return named, digest(loss), precise


def of_data(config: RunConfig) -> Any:
    """What is said of the data, the first training batches, and the validation batches."""
    data = open_data(config, "cpu")
    data.setup("fit")
    loader = data.train_dataloader()
    workers = loader.num_workers
    loader = data.train_dataloader() if workers == 0 else []
    train = [digest(*batch.values()) for batch in itertools.islice(loader, 12)]
    valid = (
        [] if workers else [digest(*batch.values()) for batch in data.evaluation_dataloader("valid", max_tokens=None)]
    )
    strata = {name: rows.tolist() for name, rows in data.corpus.strata("train").items()}
    return workers, json.dumps(data.summary(), default=str), train, valid, strata


def of_run(config: RunConfig) -> Any:
    """Rows, weights and files of a run, the steps saved, and how its sequences went through the model."""
    import tempfile

    from mamba_bio_audio.run.begin import Session
    from mamba_bio_audio.run.train import train
    from mamba_bio_audio.training import module
    from mamba_bio_audio.training.steps import Steps

    spied: list[Any] = []

    def loss(model: Any, tokens: Any, *arguments: Any, **options: Any) -> Any:
        spied.append((tuple(tokens.shape), model.recompute, options["chunk"], options["how"].offload))
        return real_loss(model, tokens, *arguments, **options)

    class Spied(module.LanguageModelModule):
        def training_step(self, batch: Any, *arguments: Any) -> Any:
            spied.append((tuple(batch["tokens"].shape), self.model.recompute))
            return super().training_step(batch, *arguments)

    real_loss, real_save = module.streamed_loss, Steps._save

    def save(self: Any, trainer: Any, *arguments: Any, **options: Any) -> Any:
        spied.append(("saved", trainer.global_step))
        return real_save(self, trainer, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        patch.setattr(module, "streamed_loss", loss)
        patch.setattr("mamba_bio_audio.training.fit.LanguageModelModule", Spied)
        patch.setattr(Steps, "_save", save)
        run = Path(place) / "run"
        summary = train(config, run, Session("cpu", quiet=True))
        weights = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
        files = sorted(path.name for path in run.iterdir())
        return (run / "metrics.csv").read_text(), weights, files, summary.step, spied


def of_trainer(config: RunConfig) -> Any:
    """What Lightning's trainer is asked for, and who shares a sequence."""
    import lightning

    from mamba_bio_audio.training.fit import Place, fit

    class Asked(Exception):
        pass

    def trainer(**options: Any) -> None:
        raise Asked(
            repr({name: options[name] for name in ("devices", "num_nodes", "strategy", "accumulate_grad_batches")})
        )

    data = open_data(config, "cpu")
    data.setup("fit")
    model = build(config.model.model_copy(update={"vocab_size": 12}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightning, "Trainer", trainer)
        with pytest.raises(Asked) as asked:
            fit(model, data, config.train, Place(Path(), "cpu"), ())
    return str(asked.value), config.train.data_parallel


def of_gpu(config: RunConfig) -> Any:
    """Whether a step on a GPU would be recorded."""
    from mamba_bio_audio.training.module import LanguageModelModule

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModelModule, "device", torch.device("cuda"))
        model = build(config.model.model_copy(update={"vocab_size": 12}))
        return LanguageModelModule(model, config.train)._graphed is None


def of_error(config: RunConfig) -> Any:
    """That the data and the model belong together."""
    return of_model(config)


def of_shown(config: RunConfig) -> Any:
    """What the page and the folder of a run are called."""
    return (to_yaml(config),)


PLACES: dict[str, Callable[[RunConfig], Any]] = {
    "model": of_model,
    "data": of_data,
    "run": of_run,
    "trainer": of_trainer,
    "gpu": of_gpu,
    "error": of_error,
    "shown": of_shown,
}


def outcome(folder: Path, row: Row, *overrides: str) -> Any:
    """What is found at the row's place, or the mistake that is told."""
    try:
        return PLACES[row.place](configured(folder, row.family, *row.given, *overrides))
    except InputError as error:
        return f"mistake: {error}"


@pytest.fixture(scope="module")
def before(folder) -> Callable[[Row], Any]:
    """What is found without the change, once for each recipe."""
    found: dict[Any, Any] = {}

    def look(row: Row) -> Any:
        key = (row.family, row.place, row.given)
        if key not in found:
            found[key] = outcome(folder, row)
        return found[key]

    return look


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.family}-{row.change}")
def test_the_key_does_something(row, folder, before):
    was = before(row)
    now = outcome(folder, row, row.change)
    assert now != was, f"{row.change} changes nothing at {row.place}"
    if row.place == "error":
        assert isinstance(now, str)
    elif not row.change.startswith("data.bad_files") and not row.change.startswith("data.shared_bases"):
        assert not isinstance(was, str), was
        assert not isinstance(now, str), now


def test_every_key_has_a_row():
    def keys(section: Any, parts: list[str]) -> tuple[type, str]:
        for number, part in enumerate(parts[:-1]):
            section = section[int(part)] if part.isdigit() else getattr(section, part)
            assert section is not None, parts[: number + 1]
        return type(section), parts[-1]

    full = {
        "dna": ["train.length_warmup=[{length: 16, steps: 2}]"],
        "audio": ["model.stages=[{}, {mixer: transformer}, {}]"],
        "dna-classes": [],
        "dna-labels": [],
        "dna-tracks": [],
        "audio-classes": [],
    } | {family: [] for family in MADE}
    looked = set()
    for family, overrides in full.items():
        values = RECIPES[family] + TRAIN
        config = RunConfig.model_validate(_values(values, overrides))
        looked |= {keys(config, row.change.split("=")[0].split(".")) for row in ROWS if row.family == family}
    wanted = {(section, key) for section in SECTIONS for key in section.model_fields}
    assert not {f"{section.__name__}.{key}" for section, key in wanted - looked}


def _values(text: str, overrides: list[str]) -> dict[str, Any]:
    from mamba_bio_audio.run.config import override, read_values

    return override(read_values(text, "recipe"), overrides)
