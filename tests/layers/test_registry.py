"""The registry of mixers: a new one is one file."""

import importlib.util
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mamba_bio_audio import layers
from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.layers import contract
from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.size import count_parameters
from mamba_bio_audio.run.config import load_config, read_values, to_yaml, validate
from mamba_bio_audio.run.export import opens_in_transformers

ROOT = Path(__file__).parents[2]
TOY = '''
"""An exponential moving average: h_t = a h_(t-1) + (1 - a) x_t."""
import torch
from pydantic import Field
from torch import nn
from mamba_bio_audio.layers.contract import MixerConfig, mixer


@mixer("toy")
class ToyConfig(MixerConfig):
    decay: float = Field(0.9, gt=0, lt=1, description="share of the past that is kept")

    def layers(self, width, residuals):
        return [ToyLayer(width, self.decay)]

    def num_parameters(self, width):
        return width


class ToyLayer(nn.Module):
    streaming = "constant"
    resets = RESETS

    def __init__(self, width, decay):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.decay = decay

    def init_state(self, batch, device=None, dtype=torch.float32):
        return torch.zeros(batch, len(self.scale), device=device, dtype=dtype)

    def forward(self, x, state=None, *, reset=None):
        if reset is not None and not self.resets:
            raise ValueError("ToyLayer cannot start a sequence inside a span: reset")
        state = self.init_state(len(x), x.device, x.dtype) if state is None else state
        rows = []
        for t in range(x.shape[1]):
            if reset is not None:
                state = torch.where(reset[:, t, None], torch.zeros_like(state), state)
            state = self.decay * state + (1 - self.decay) * x[:, t]
            rows.append(state)
        return torch.stack(rows, 1) * self.scale, state
'''


@pytest.fixture(params=[True, False], ids=["resets", "cannot-reset"])
def toy(request, tmp_path, monkeypatch):
    """A mixer called toy in a file of its own, gone after the test."""
    contract.mixers()  # a file is imported once, so the registry is to be left with all of them
    (tmp_path / "toy_mixer.py").write_text(TOY.replace("RESETS", str(request.param)))
    monkeypatch.setattr(layers, "__path__", [*layers.__path__, str(tmp_path)])
    before = dict(contract._REGISTRY)
    yield request.param
    contract._REGISTRY.clear()
    contract._REGISTRY.update(before)
    sys.modules.pop("mamba_bio_audio.layers.toy_mixer", None)


def laws():
    """`tests/test_laws.py` as a module, its subjects made anew."""
    spec = importlib.util.spec_from_file_location("laws_again", ROOT / "tests" / "test_laws.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["laws_again"] = module
    spec.loader.exec_module(module)
    return module


def test_a_new_mixer_is_one_file_and_obeys_the_laws(toy):
    module = laws()
    found = {name: subject for name, subject in module.SUBJECTS.items() if "toy" in name}
    assert set(found) == {"toy-layer-0", "isotropic-toy"}
    for subject in found.values():
        for packed in (False, True):
            module.test_split(subject, torch.float64, (17, 24), packed)
        module.test_step(subject, torch.float64)
        module.test_causal(subject, torch.float64)
        module.test_independent_rows(subject, torch.float64)
        module.test_packed_equals_separate(subject, torch.float64)
        module.test_size_of_the_state(subject)
    config = ModelConfig(mixer="toy", options={"decay": "0.5"}, d_model=8, num_layers=2, vocab_size=16)
    assert config.options == {"decay": 0.5}
    model = build_model(config)
    assert model.layers[1].mixer.decay == 0.5
    assert count_parameters(config) == model.num_parameters()
    assert ModelConfig(**config.model_dump()) == config


TRAINING = [
    "model.mixer=toy",
    "model.options.decay=0.5",
    "model.d_model=16",
    "model.num_layers=2",
    "train.length=64",
    "train.tokens_per_step=512",
    "train.micro_batch=4",
    "train.steps=4",
    "train.stream_chunk=16",
    "train.validation_tokens=512",
]


def test_a_model_of_a_new_mixer_is_trained_and_sampled(toy, tmp_path, capsys):
    fasta, run = tmp_path / "toy.fa", tmp_path / "run"
    fasta.write_text(">a\n" + "ACGTTGCA" * 2_500 + "\n")
    settings = [part for key in (*TRAINING, f"data.path={fasta}") for part in ("--set", key)]
    for arguments in (
        ["pretrain", "dna/tiny", *settings, "--out", run, "--device", "cpu"],
        ["evaluate", run, "--no-baselines", "--device", "cpu"],
        ["sample", run, "--length", "50", "--out", tmp_path / "s.fa", "--no-report", "--device", "cpu"],
    ):
        with pytest.raises(SystemExit) as stop:
            command([str(argument) for argument in arguments])
        assert not stop.value.code, capsys.readouterr().err
    assert "decay: 0.5" in (run / "config.yaml").read_text()


def test_what_is_null_in_a_saved_configuration_is_null_when_it_is_read():
    """Options have no type of their own in a recipe; their texts become what the mixer says."""
    settings = ["data.path=.", "model.mixer=transformer", "model.options.heads=null", "model.options.bias=true"]
    saved = to_yaml(load_config("dna/tiny", settings))
    assert "heads: null" in saved
    found = validate(read_values(saved, "config.yaml"), "config.yaml").model
    assert found.options["heads"] is None
    assert found.options["bias"] is True
    assert found == load_config("dna/tiny", settings).model


def test_mistakes_in_mixers_and_their_options():
    def message(**settings):
        with pytest.raises(ValidationError) as found:
            ModelConfig(d_model=16, num_layers=1, vocab_size=8, **settings)
        return str(found.value)

    assert f"there is no 'mmba'; allowed: {' | '.join(sorted(contract.mixers()))[:20]}" in message(mixer="mmba")
    assert "options: are for other mixers than mamba; set ssm.* instead" in message(options={"heads": 2})
    assert "options.head: unknown key; keys of transformer: mlp, mlp_expand, mlp_bias, heads, window" in message(
        mixer="transformer", options={"head": 2}
    )
    assert "options.heads: 3 heads require a width that is a multiple of 6, not 16" in message(
        mixer="transformer", options={"heads": 3}
    )
    with pytest.raises(InputError) as found:
        load_config("dna/demo", ["model.mixer=mmba"])
    assert str(found.value).endswith(" | ".join(sorted(contract.mixers())))
    assert "set model.options.* for transformer" in message(mixer="transformer", ssm={"d_state": 4})
    with pytest.raises(ValueError, match="two mixers are named 'mamba'"):
        contract.mixer("mamba")(contract.MixerConfig)


# Values of settings that are null by default, or whose double or opposite is not allowed or does nothing.
OTHERS = {
    "heads": 2,
    "window": 5,
    "mlp_expand": 5.0,
    "emb_dim": 7,
    "head_dim": 16,
    "groups": 2,
    "dt_floor": 0.5,
    "dt_limit": (0.01, 0.02),
}
# What settings need of others.
BESIDE = {"mamba2": {"head_dim": 8}}


def other_values(key: str, field: FieldInfo, usual: Any) -> list[Any]:
    """Values of a setting that are not the usual one."""
    if key in OTHERS:
        return [OTHERS[key]]
    if typing.get_origin(field.annotation) is typing.Literal:
        return [value for value in typing.get_args(field.annotation) if value != usual]
    return [not usual] if isinstance(usual, bool) else [2 * usual]


def test_every_setting_of_every_mixer_does_something():
    """Another value gives other outputs of the block's layers from the same seed and inputs, or is refused.

    The keys of Mamba's own section have rows in tests/test_every_key.py.
    """

    def run(config: contract.MixerConfig) -> list[torch.Tensor]:
        torch.manual_seed(0)
        x = torch.randn(1, 12, 16)
        found = [layer(x)[0] for layer in config.layers(16, 3)]
        for layer in config.layers(16, 3):
            # What is zero at first shows only behind a step of training.
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
            found.append(layer(x)[0])
        return found

    def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
        return len(one) == len(other) and all(map(torch.equal, one, other))

    without = []
    for name, (of, preset) in contract.mixers().items():
        if of is SsmConfig:
            continue
        preset = preset | BESIDE.get(name, {})
        for key, field in of.model_fields.items():
            given = preset | ({"mlp": "swiglu"} if key.startswith("mlp_") else {})
            config = of(**given)
            usual = run(config)
            values = other_values(key, field, getattr(config, key))
            changed = [run(of(**given | {key: value})) for value in values]
            without += [f"{name}.{key}"] * (not changed or any(equal(found, usual) for found in changed))
    assert not without


def test_layers_by_a_pattern():
    config = ModelConfig(
        pattern="mamba*2, transformer,s4d",
        options={"transformer": {"heads": "2", "mlp": "none"}},
        ssm=SsmConfig(d_state=3),
        d_model=16,
        num_layers=8,
        vocab_size=8,
    )
    model = build_model(config)
    kinds = ["mamba", "mamba", "transformer", "s4d"]
    assert [name for name, _ in config.layer_mixers] == 2 * kinds
    assert config.options["transformer"]["heads"] == 2
    assert [type(block.mixer).__name__ for block in model.layers] == 2 * [
        "MambaLayer",
        "MambaLayer",
        "AttentionLayer",
        "MambaLayer",
    ]
    assert [block.mixer.config.complex for block in model.layers if hasattr(block.mixer, "config")] == 2 * [
        False,
        False,
        True,
    ]
    assert count_parameters(config) == model.num_parameters()
    assert ModelConfig(**config.model_dump(mode="json")) == config
    assert config.outline == "mamba*2, transformer,s4d, 8 layers x 16"
    assert (config.unstreamed, model.streaming) == ("transformer", "growing")
    # Its SSM section alone is that of a model which transformers opens.
    assert not opens_in_transformers(
        ModelConfig(pattern="mamba,transformer", ssm=SsmConfig(complex=False, selective=True), d_model=16, num_layers=2)
    )
    constant = config.model_copy(update={"options": {"transformer": {"window": 4, "heads": 2}}})
    assert (constant.unstreamed, build_model(constant).streaming) == (None, "constant")


def test_hidden_layers_of_a_pattern():
    """A layer with an MLP is one layer, though it is two blocks."""
    config = ModelConfig(pattern="transformer,mamba", d_model=16, num_layers=4, vocab_size=8)
    model = build_model(config, seed=0).eval()
    tokens = torch.arange(8)[None]
    stream = [model.hidden(tokens, layer=layer)[0] for layer in range(4)]
    assert len(model.layers) == 6
    assert torch.allclose(model.norm_f(stream[-1])[0], model.hidden(tokens)[0])
    for layer, blocks in enumerate((2, 3, 5, 6)):
        x, residual = model.embedding(tokens), None
        for block in model.layers[:blocks]:
            x, residual, _ = block(x, residual, None, None)
        assert torch.equal(stream[layer], x + residual)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "mamba,mmba"}, "pattern: there is no 'mmba'; allowed: "),
        ({"pattern": ""}, "pattern: there is no ''"),
        ({"pattern": "mamba*0"}, r"pattern: 'mamba\*0' is not NAME\*NUMBER"),
        ({"pattern": "mamba*x,s4d"}, r"pattern: 'mamba\*x' is not NAME\*NUMBER"),
        (
            {"pattern": "mamba*3"},
            "has 3 layers and is repeated, so model.num_layers must be a multiple of that, not 4; near: 3 or 6",
        ),
        ({"pattern": "mamba*5"}, "not 4; near: 5"),
        ({"pattern": "mamba,transformer", "mixer": "s4d"}, "pattern: names the mixers, and model.mixer=s4d too"),
        (
            {"pattern": "mamba", "options": {"mamba": {}}},
            "options.mamba: .* allowed: none, as model.ssm has the settings",
        ),
        ({"pattern": "transformer", "options": {"heads": 2}}, "options.heads: .*by mixer; allowed: transformer"),
        ({"pattern": "transformer", "options": {"transformer": 2}}, "options.transformer: must be a mapping"),
        ({"pattern": "transformer", "options": {"transformer": {"head": 2}}}, "options.transformer.head: unknown key"),
        (
            {"pattern": "transformer", "options": {"transformer": {"heads": 3}}},
            "options.transformer.heads: 3 heads require",
        ),
        ({"pattern": "transformer", "ssm": SsmConfig(d_state=3)}, "model.ssm is for Mamba and S4D"),
    ],
)
def test_mistakes_in_a_pattern(settings, message):
    with pytest.raises(ValidationError, match=message):
        ModelConfig(d_model=16, num_layers=4, vocab_size=8, **settings)


def test_isotropic_transformer_is_counted_and_grows():
    config = ModelConfig(mixer="transformer", options={"heads": 2}, d_model=16, num_layers=2, vocab_size=8)
    model = build_model(config)
    assert config.options["heads"] == 2
    assert config.options["mlp"] == "swiglu"
    assert len(model.layers) == 4
    assert count_parameters(config) == model.num_parameters()
    assert config.unstreamed == "transformer"
    assert model.streaming == "growing"
