"""Hidden states behind any layer: those that the layers themselves give, whole or in pieces."""

import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.unet_config import UNetConfig

VOCAB, LENGTH = 12, 37


def isotropic(**changes):
    return build_model(ModelConfig(**({"d_model": 16, "num_layers": 3, "vocab_size": VOCAB} | changes)), seed=0)


def unet(**changes):
    settings = {"d_model": 8, "num_layers": 2, "pools": (2, 3), "vocab_size": VOCAB} | changes
    return build_model(UNetConfig(**settings), seed=0)


MODELS = {
    "isotropic": isotropic,
    "transformer": lambda: isotropic(mixer="transformer"),
    "unet": unet,
    "unet, no blocks down": lambda: unet(down_blocks=False),
    "classifier": lambda: Classifier(isotropic(), HeadConfig(pool="mean", classes=("a", "b"))),
}


@pytest.fixture(params=MODELS)
def model(request):
    made = MODELS[request.param]().double().eval()
    for parameter in made.parameters():
        # At the initial scale the layers would hardly differ.
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim == 2 else None
    return made


@pytest.fixture
def tokens():
    return torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_the_last_layer_is_what_the_final_norm_reads(model, tokens):
    read = []
    norm = getattr(model, "backbone", model).norm_f
    handle = norm.register_forward_pre_hook(lambda module, given: read.append(given[0] + given[1]))
    final, _ = model.hidden(tokens)
    handle.remove()
    last, _ = model.hidden(tokens, layer=-1)
    close(last, read[0])
    assert (last - final).abs().max() > 1e-3


def test_every_layer_is_what_the_next_one_reads(model, tokens):
    """The residual stream into a block is the one behind the block before it, also where mirrors are added in between."""
    backbone = getattr(model, "backbone", model)
    stages = [backbone.layers] if hasattr(backbone, "layers") else [backbone.down[0], backbone.up[0]]
    depth, first = model.hidden_layers, 0
    assert depth == (3 if hasattr(backbone, "layers") else sum(map(len, stages)))
    for stage in stages:
        streams = []
        handles = [
            block.register_forward_hook(lambda module, given, out, kept=streams: kept.append(out[1])) for block in stage
        ]
        model.hidden(tokens)
        for handle in handles:
            handle.remove()
        # A transformer's layer is two blocks.
        each = max(1, len(stage) // depth)
        layers = len(stage) // each
        for at in range(layers - 1):
            close(model.hidden(tokens, layer=first + at)[0], streams[(at + 1) * each])
            close(model.hidden(tokens, layer=first + at - depth)[0], streams[(at + 1) * each])
        first += layers


def test_in_pieces_it_is_the_whole(model, tokens):
    for layer in (None, *range(model.hidden_layers)):
        whole, _ = model.hidden(tokens, layer=layer)
        parts, state = [], None
        for low, high in ((0, 5), (5, 6), (6, LENGTH)):
            part, state = model.hidden(tokens[:, low:high], state, layer=layer)
            parts.append(part)
        close(torch.cat(parts, 1), whole)


def test_beyond_the_end_is_an_error(model, tokens):
    count = model.hidden_layers
    for layer in (count, -count - 1):
        with pytest.raises(InputError, match=rf"layer {layer}: this model has {count} layers.*0 to {count - 1}"):
            model.hidden(tokens, layer=layer)


def test_a_classifier_goes_on_where_hidden_ended(tokens):
    for pool in ("mean", "max", "last"):
        torch.manual_seed(0)
        model = Classifier(isotropic(), HeadConfig(pool=pool, classes=("a", "b"))).double().eval()
        _, state = model.hidden(tokens[:, :20])
        close(model(tokens[:, 20:], state, logits="last").logits, model(tokens, logits="last").logits)
