"""A temperature that follows the bits of what is drawn, beside the same by hand."""

import math

import numpy as np
import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.generate import generate, sampling_path
from mamba_bio_audio.inference.held import Held
from mamba_bio_audio.inference.uniforms import uniforms
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec

Q, NATS, OVER = 20, 2.4, 1 << 14


@pytest.fixture(params=[(), ("a", "b")])
def model(request):
    config = UNetConfig(
        d_model=16, num_layers=1, pools=(2, 2), vocab_size=Q, inputs=Q + 1, classes=request.param or None
    )
    made = build_model(config, seed=0).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4)
    made.codec = AudioCodec(start="token")
    made.codec.vocab_size, made.codec.start_id, made.codec.sample_ids = Q, Q, tuple(range(1, Q))
    made.manifest = {"result": {"valid_nats": NATS}}
    return made


def by_hand(model, prompt, length, gain, temperature, guidance=0.0, name=None):
    """Symbols and their log-probabilities, every logit from the whole sequence before it."""
    ids, mean, found, scores, factors = [Q, *prompt], NATS, [], [], []
    allowed = list(model.codec.sample_ids)

    def logits(read):
        with torch.no_grad():
            own, none = (
                each(torch.tensor([read])).logits[0, :, allowed].double()
                for each in (model if name is None else model.of_class(name), model)
            )
        return own if name is None else own + guidance * (own - none)

    def heard(log_p, symbol):
        return mean + (-float(log_p[allowed.index(symbol)]) - mean) / OVER

    for at, symbol in enumerate(prompt):
        mean = heard(logits(ids[: at + 1])[-1].log_softmax(0), symbol)
    draws = uniforms(3, range(1), 0, length)[0]
    for at in range(length):
        last = logits(ids)[-1]
        factors.append(min(1.3, max(0.75, (NATS / mean) ** gain)))
        p = (last / (temperature * factors[-1])).softmax(0).numpy()
        index = int((p.cumsum() <= draws[at] * p.cumsum()[-1]).sum())
        log_p = last.log_softmax(0)
        found.append(allowed[index])
        scores.append(float(log_p[index]))
        mean = heard(log_p, found[-1])
        ids.append(found[-1])
    return found, scores, factors


# So strong that 1 / 16,384 of a symbol's bits moves the temperature.
GAIN = 700.0


@pytest.mark.parametrize("prompt", [[], [3, 1, 9, 9, 4, 2]])
def test_the_temperature_follows_the_mean_of_what_was_read(model, prompt):
    classes = {"class_": "b", "guidance": 0.3} if model.classes else {}
    gain = GAIN / 5 if prompt else GAIN
    found, scores, factors = by_hand(model, prompt, 60, gain, 0.9, classes.get("guidance", 0.0), classes.get("class_"))
    assert max(factors) - min(factors) > 0.1
    blocks = []
    how = {"temperature": 0.9, "seed": 3, "hold": gain, "prompt": prompt or None, "on_tokens": blocks.append}
    made = generate(model, length=60, num_samples=2, **how, **classes)
    assert made[0].tolist() == found
    # Log-probabilities are those at temperature 1.
    np.testing.assert_allclose(blocks[0].log_likelihood[0].numpy(), scores, atol=1e-4)
    assert not torch.equal(made, generate(model, length=60, num_samples=2, **(how | {"hold": 0.0}), **classes))


def test_a_span_in_pieces_is_the_span(model):
    held = Held(model, GAIN, NATS, torch.tensor(model.codec.sample_ids))
    ids = torch.randint(1, Q, (3, 24), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = Q
    with torch.no_grad():
        whole = held(ids)
        state = None
        for piece in ids.split([1, 5, 1, 8, 9], 1):
            output = held(piece, state)
            state = output.state
    assert whole.logits.shape == (3, 1, model.lm_head.out_features + 1)
    torch.testing.assert_close(output.logits, whole.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state[1], whole.state[1])
    assert not torch.equal(whole.logits[:, 0, -1], torch.ones(3, dtype=torch.float64))


def test_the_temperature_stays_within_limits(model):
    held = Held(model, 10.0, NATS, torch.tensor(model.codec.sample_ids))
    before, mean, expected = held.init_state(1)
    for own, limit in ((1e-9, 1.3), (9.0, 0.75)):
        with torch.no_grad():
            output = held(torch.tensor([[3]]), (before, torch.full_like(mean, own), expected))
        assert float(output.logits[0, 0, -1]) == pytest.approx(limit)


def test_what_cannot_be_held(model):
    assert sampling_path(model, rows=2, hold=0.3) == "steps"
    with pytest.raises(InputError, match="hold is nan"):
        generate(model, length=3, hold=math.nan)
    with pytest.raises(InputError, match="temperature, which is 0 here"):
        generate(model, length=3, hold=0.3, temperature=0.0)
    with pytest.raises(InputError, match="not with hold"):
        generate(model, length=3, hold=0.5, path="numpy")
    model.manifest = {}
    with pytest.raises(InputError, match="no validation bits are known of these weights"):
        generate(model, length=3, hold=0.5)
