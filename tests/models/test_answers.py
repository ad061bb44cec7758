"""How many targets are right, in one piece and in many."""

import pytest
import torch

from mamba_bio_audio.models import answers as module
from mamba_bio_audio.models.answers import answers
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig


@pytest.mark.parametrize("mixer", ["mamba", "transformer"])
@pytest.mark.parametrize("most", [1 << 18, 16 * 20])
def test_first_choices_are_counted_at_what_is_asked(mixer, most, monkeypatch):
    monkeypatch.setattr(module, "LOGITS", {"cpu": most, "cuda": most})
    model = build_model(ModelConfig(d_model=8, num_layers=2, vocab_size=10, mixer=mixer, vocab_multiple=16), seed=0)
    tokens = torch.randint(0, 10, (3, 50), generator=torch.Generator().manual_seed(0))
    targets = torch.full_like(tokens, -100)
    with torch.no_grad():
        logits = model(tokens).logits
        # Padding of the vocabulary is no symbol, so it is no choice.
        model.lm_head.weight[10:] = 0
        choice = logits[..., :10].argmax(-1)
        targets[0, 3], targets[1, 49], targets[2, 20:30] = choice[0, 3], (choice[1, 49] + 1) % 10, choice[2, 20:30]
        loss, count, correct = answers(model, tokens, targets)
        whole = model(tokens, targets=targets, logits="none")
    assert (int(count), int(correct)) == (12, 11)
    torch.testing.assert_close(loss, whole.loss_sum)


def test_a_model_without_a_state_reads_the_whole(monkeypatch):
    monkeypatch.setattr(module, "LOGITS", {"cpu": 16, "cuda": 16})
    model = build_model(ModelConfig(d_model=8, num_layers=1, vocab_size=10), seed=0)
    lengths = []
    monkeypatch.setattr(type(model), "streaming", "none")
    model.register_forward_pre_hook(lambda model, arguments: lengths.append(arguments[0].shape[1]))
    answers(model, torch.zeros(1, 50, dtype=torch.int64), torch.zeros(1, 50, dtype=torch.int64))
    assert lengths == [50]
