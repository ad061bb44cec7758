"""Sections that come in kinds: defaults, mistakes in one line per key, and what must fit together."""

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.run.config import RunConfig, load_config, model_config, read_values, to_yaml, validate
from mamba_bio_audio.run.described import read_config


def mistakes(recipe: str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as error:
        load_config(recipe, overrides)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def test_kinds_are_dna_and_isotropic_where_left_out():
    values = {"data": {}, "model": {"d_model": 8, "num_layers": 1}}
    values["train"] = {"steps": 1, "length": 16, "tokens_per_step": 16, "lr": 1e-3}
    config = RunConfig.model_validate(values)
    assert isinstance(config.data, DnaDataConfig)
    assert isinstance(config.model, ModelConfig)
    values["data"], values["model"] = {"kind": "audio"}, {"backbone": "unet", "d_model": 8, "num_layers": 1}
    config = RunConfig.model_validate(values)
    assert isinstance(config.data, AudioDataConfig)
    assert isinstance(config.model, UNetConfig)
    assert config.model == model_config(config.model.model_dump(mode="json"))


def test_a_saved_audio_configuration_is_read_again(tmp_path):
    config = load_config("audio/tiny", [f"data.path={tmp_path}"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.kind=dan", "data.kind: there is no 'dan'; allowed: dna | dna-classes | dna-tracks | audio"),
        ("model.backbone=unt", "model.backbone: there is no 'unt'; allowed: isotropic | unet"),
        ("data.bits=16", "data.bits: choose 8 to 12 bits"),
        ("data.block_bases=9", "data.block_bases: unknown key; allowed: kind, path"),
        ("model.poools=[4]", "model.poools: unknown key; did you mean pools?"),
        ("model.stages=[{mixer: mmba}]", "model.stages.0.mixer: there is no 'mmba'; allowed: "),
        ("model.pools=[4,x]", "model.pools: "),
        ("data=3", "data: must be a section with keys, not a value; its keys: kind, path"),
        ("train.length=1000", "train.length: 1,000 is not a multiple of 16, the product of model.pools [4, 4]; near"),
        ("train.stream_chunk=24", "train.stream_chunk: 24 is not a multiple of 16"),
        ("train.sequence_parallel=2", "train.sequence_parallel: cannot pass the states"),
    ],
)
def test_mistakes_are_one_line_per_key(override, expected, tmp_path):
    more = ["train.tokens_per_step=8000"] if "length" in override else ["train.devices=2"]
    found = mistakes("audio/tiny", f"data.path={tmp_path}", override, *more)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_mistakes_of_a_section_that_may_be_left_out(tmp_path):
    """What is wrong between its keys is said without a list of them; what is no section is told which there are."""
    (found,) = mistakes("dna/short", f"data.path={tmp_path}", "head.freeze=true", "head.lora_rank=2")
    assert found.endswith("freeze leaves it as it is; choose one of them")
    (found,) = mistakes("dna/short", f"data.path={tmp_path}", "head=3")
    assert found.startswith("head: must be a section with keys, not a value; its keys: task, pool, classes")


def test_missing_paths_say_what_the_kind_reads():
    assert mistakes("audio/tiny")[0].startswith("data.path: missing; allowed: WAV, FLAC, OGG or MP3 file")
    assert mistakes("dna/tiny")[0].startswith("data.path: missing; allowed: FASTA")
    # `demo` is packaged DNA, or one recording, which has no classes.
    assert mistakes("audio/sc09-tiny", "data.path=demo") == ["data.path: demo: no such file or folder"]
    assert load_config("audio/tiny", ["data.path=demo"]).data.path == "demo"


def test_missing_sections_are_named():
    with pytest.raises(InputError, match="data: this section is missing; its keys: kind, path"):
        validate({"model": {"d_model": 8, "num_layers": 1}}, "here")


def value_of(override: str, *more: str, recipe: str = "dna/tiny"):
    """The value that a configuration has after `--set override`; saved and read again it stays the same."""
    config = load_config(recipe, [*more, override])
    assert validate(read_values(to_yaml(config), "saved"), "saved") == config
    value = config
    for key in override.partition("=")[0].split("."):
        value = getattr(value, key)
    return value


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "010",
        "1e5",
        "0x1F",
        "1_000",
        "12:30:45",
        "on",
        "no",
        "~",
        "null",
        "2026-01-01",
        "#b",
        "[yes",
        "{a}.fa]",
        "'quoted'",
        "*",
        "&x",
        "!x",
        "${oc.env:HOME}",
        "${",
        "a=b",
        "%",
        "a #b",
        "a: b",
        " x ",
        "a\nb",
    ],
)
def test_text_is_taken_as_it_was_written(text, tmp_path):
    """For fields of text, and of text or lists of it."""
    assert value_of(f"description={text}", "data.path=demo") == text
    assert value_of(f"data.contigs={text}", "data.path=demo") == text
    file = tmp_path / text
    file.touch()
    assert value_of(f"data.path={file}") == str(file)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.contigs=[yes, no, 010, 1e5, ~, null]", ["yes", "no", "010", "1e5", "~", "null"]),
        ("data.contigs=['a #b', \"c, d\"]", ["a #b", "c, d"]),
        ("data.contigs=[]", []),
        ("data.weights={010: 1, no: 2e0}", {"010": 1.0, "no": 2.0}),
        ("data.intervals=null", None),
        ("train.clip=null", None),
        ("train.lr=1e-3", 1e-3),
        ("train.steps=1e5", 100_000),
        ("train.steps=010", 10),
        ("train.betas=[0.5, 9e-1]", (0.5, 0.9)),
        ("train.cuda_graph=true", True),
        ("train.cuda_graph=off", False),
        ("train.cuda_graph=auto", "auto"),
        ("train.stream_chunk=256", 256),
        ("train.stream_chunk=auto", "auto"),
        ("model.ssm.selective=false", False),
        ("model.ssm.selective=bc", "bc"),
        ("model.ssm.complex_init=pi n", "pi n"),
        ("description=[yes, no]", "[yes, no]"),
    ],
)
def test_other_values_follow_the_type_of_their_field(override, value):
    found = value_of(override, "data.path=demo")
    assert found == value
    assert type(found) is type(value)


def test_mappings_and_lists_of_sections(tmp_path):
    for name in ("010.fa", "no.fa"):
        (tmp_path / name).touch()
    path = f"data.path={{no: {tmp_path / 'no.fa'}, 010: [{tmp_path / '010.fa'}]}}"
    found = value_of(path, "data.groups=null", "data.files=*", recipe="dna/apes@1k")
    assert found == {"no": str(tmp_path / "no.fa"), "010": [str(tmp_path / "010.fa")]}
    stages = ["train.length_warmup=[{length: 128, steps: 1e1}]", "train.length_warmup.0.steps=20", "data.path=demo"]
    assert [stage.steps for stage in load_config("dna/tiny", stages).train.length_warmup] == [20]
    with pytest.raises(InputError, match=r"train\.length_warmup is a list of 1, and 1 is none of its numbers"):
        load_config("dna/tiny", [*stages, "train.length_warmup.1.steps=20"])
    # A mapping over a section changes the keys that it names.
    model = load_config("dna/tiny", ["data.path=demo", "model={num_layers: 1}"]).model
    assert (model.num_layers, model.d_model) == (1, 64)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.contigs=[a #b, c]", "not valid YAML"),
        ("data.contigs=[&x a, *x]", "anchors"),
        ("data.contigs=[!!python/object:os.system a]", "tags"),
        ("data.weights={a: 1, a: 2}", "duplicate key"),
        ("train.length_warmup.3.steps=1", "train.length_warmup: "),
        ("train.steps.x=1", "is '1000', not a section"),
        ("train..steps=1", "write it as key=value"),
        ("train.steps=${oc.env:HOME}", "valid integer"),
        ("train.steps=1.5", "valid integer"),
        ("train.steps=1e999999999", "valid integer"),
        ("train.lr=nan", "finite number"),
        ("model.norm_eps=inf", "finite number"),
        ("data.path=${oc.env:HOME}", "nothing is substituted"),
        ("data.path=a\x00b", "no such file"),
        ("data.path=" + "x" * 5000, "of 5,000 characters"),
        ("data.intervals=", "no such file"),
    ],
)
def test_values_that_fit_nowhere_are_mistakes(override, message):
    with pytest.raises(InputError) as error:
        load_config("dna/tiny", ["data.path=demo", override])
    assert message in str(error.value)


def test_list_on_several_lines_is_no_list():
    """A `#` in it would begin a comment."""
    with pytest.raises(InputError, match=r"data\.classes"):
        load_config("dna/apes@1k", ["data.path=demo", "data.classes=[a #b\n, c]"])


def test_recipes_insert_nothing_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    recipe = tmp_path / "mine.yaml"
    head = "extends: dna/tiny\ndata: {path: demo, contigs: [no, 010]}\n"
    recipe.write_text(head + "description: ${oc.env:SECRET}\n")
    config = load_config(str(recipe))
    assert config.description == "${oc.env:SECRET}"
    assert config.data.contigs == ["no", "010"]
    assert "hunter2" not in to_yaml(config)
    for text, message in [
        ("train: {lr: &x 1e-3, lr_min: *x}\n", "line 3: anchors"),
        ("description: !!python/object/apply:os.getcwd []\n", "line 3: tags"),
        ("description: a\ndescription: b\n", "line 4: duplicate key 'description'"),
        ("train: {lr: '${oc.env:SECRET}'}\n", "train.lr"),
    ]:
        recipe.write_text(head + text)
        with pytest.raises(InputError) as error:
            load_config(str(recipe))
        assert message in str(error.value)
        assert "hunter2" not in str(error.value)
    # The configuration that a run has saved is read in the same way.
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(config).replace("${oc.env:SECRET}", "&x a"))
    with pytest.raises(InputError, match="anchors"):
        read_config(run)


@pytest.mark.parametrize("name", ["..", ".", "", "-x", ".x", "a/b", "a\\b", "/a", "a\n", "a\x1b", "a b", "x" * 101])
def test_names_that_are_no_folder_are_refused(name):
    found = mistakes("dna/tiny", "data.path=demo", f"name={name}")
    assert len(found) == 1
    assert found[0].startswith("name: must be a folder name")


def test_name_of_a_file_becomes_a_folder(tmp_path):
    recipe = tmp_path / "-my (first) recipe.yaml"
    recipe.write_text("extends: dna/tiny\ndata: {path: demo}\n")
    assert load_config(str(recipe)).name == "my-first-recipe"


def test_keys_that_are_gone_stay_readable_in_saved_runs(tmp_path):
    config = load_config("dna/tiny", ["data.path=demo"])
    old = to_yaml(config).replace("  devices: 1\n", "  devices: 1\n  strategy: auto\n")
    assert "strategy" in old
    (tmp_path / "config.yaml").write_text(old)
    assert read_config(tmp_path) == config
    gone = "train.strategy: a key of earlier versions that had no effect; remove it"
    assert mistakes("dna/tiny", "data.path=demo", "train.strategy=ddp") == [gone]
