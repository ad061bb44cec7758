"""What makes a pretrained causal model good at short labelled sequences: trials on GUE, scored on dev alone.

Each trial is `KEY=VALUE` words; those left out have the values of `DEFAULTS`. Prints a line per trial as it ends.

    python benchmarks/device/finetune_trials.py --data /tmp/data/gue --share 0/14 --limit 80 [--frozen] < trials.txt
"""

import argparse
import copy
import gzip
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import matthews_corrcoef, roc_auc_score
from torch import nn

import mamba_bio_audio as mba
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.low_rank import adapt
from mamba_bio_audio.training.graphed import GraphedLoss

DEFAULTS = {
    "task": "prom_core_tata", "start": "human42mb-1m4", "strands": "one", "pool": "mean", "lr": 1e-3, "lr_head": 0.0,
    "epochs": 10, "batch": 64, "decay": 1.0, "wd": 0.1, "ema": 0.99, "mask": 0.0, "lm": 0.0, "smooth": 0.0, "seed": 0,
    "layers": 12, "width": 128, "lora": 0,
}  # fmt: skip
N = 11


class Out(NamedTuple):
    loss_sum: torch.Tensor
    count: torch.Tensor


class Net(nn.Module):
    """A backbone that reads one strand, both one after another (cat), or both side by side (two)."""

    def __init__(self, backbone, how, stranded):
        super().__init__()
        self.backbone, self.how, self.stranded = backbone, how, stranded
        width = backbone.model_config.d_model * (2 if how["pool"] in ("meanmax", "meanlast") else 1)
        width *= 2 if how["strands"] == "two" and stranded else 1
        self.head = nn.Linear(width, 2)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def pooled(self, h):
        """(B, L, D) to (B, F)."""
        h = h.float()
        kind = self.how["pool"]
        parts = {"mean": lambda: h.mean(1), "max": lambda: h.amax(1), "last": lambda: h[:, -1]}
        half = h[:, h.shape[1] // 2 :]
        parts["meanmax"] = lambda: torch.cat([h.mean(1), h.amax(1)], 1)
        parts["meanlast"] = lambda: torch.cat([h.mean(1), h[:, -1]], 1)
        parts["second"] = lambda: half.mean(1)
        return parts[kind]()

    def features(self, tokens):
        """Of (B, L); with both strands (B, 2 L)."""
        if self.how["strands"] == "two":
            ahead, back = tokens.chunk(2, 1)
            f = self.pooled(self.backbone.hidden(torch.cat([ahead, back]))[0])
            a, b = f.chunk(2)
            return torch.cat([a, b], 1) if self.stranded else (a + b) / 2
        return self.pooled(self.backbone.hidden(tokens)[0])

    def forward(self, tokens, targets=None, logits="none"):
        if self.how["lm"]:
            h = self.backbone.hidden(tokens)[0]
            f = self.pooled(h)
        else:
            f = self.features(tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            z = self.head(f.float())
        if targets is None:
            return z
        smooth = self.how["smooth"] if self.training else 0.0
        loss = F.cross_entropy(z, targets, reduction="sum", label_smoothing=smooth)
        if self.how["lm"]:
            scores = self.backbone.lm_head(h[:, :-1]).float()
            loss = loss + self.how["lm"] * len(tokens) * F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
        return Out(
            loss, torch.tensor(len(tokens), device=tokens.device) if not tokens.is_cuda else targets.ne(-1).sum()
        )


def load(task, data, codec, device):
    """{split: (ids of one strand, of the other, labels)}; dev without what is in train."""
    found = {}
    for split in ("train", "dev"):
        text = gzip.decompress((data / task / f"{split}.tsv.gz").read_bytes()).decode()
        rows = [line.split("\t") for line in text.splitlines()][1:]
        longest = max(len(text) for text, _ in rows)
        rows = [(text, label) for text, label in rows if len(text) == longest]
        found[split] = rows
    known = {text for text, _ in found["train"]}
    found["dev"] = [row for row in found["dev"] if row[0] not in known]
    out = {}
    for split, rows in found.items():
        ids = np.stack([codec.encode(text) for text, _ in rows]).astype(np.int64)
        back = np.stack([codec.reverse_complement(row) for row in ids]).astype(np.int64)
        labels = torch.tensor([int(label) for _, label in rows])
        out[split] = tuple(x.to(device) for x in (torch.from_numpy(ids), torch.from_numpy(back), labels))
    return out


def groups(net, how):
    """Rates per part, decay for matrices."""
    backbone = net.backbone
    parts = [list(net.head.parameters())]
    parts += [list(block.parameters()) for block in reversed([backbone.embedding, *backbone.layers])]
    parts[1] += list(backbone.norm_f.parameters())
    out = []
    for at, part in enumerate(parts):
        rate = how["lr"] * how["decay"] ** max(0, at - 1)
        if at == 0 and how["lr_head"]:
            rate = how["lr_head"]
        last = at == len(parts) - 1
        part = [p for p in part if p.requires_grad]
        free = [p for p in part if p.ndim < 2 or getattr(p, "_no_weight_decay", False) or last]
        ids = {id(p) for p in free}
        out.append({"params": [p for p in part if id(p) not in ids], "lr": rate, "weight_decay": how["wd"]})
        out.append({"params": free, "lr": rate, "weight_decay": 0.0})
    return [g for g in out if g["params"]]


def view(fwd, rev, strands, turn):
    """Tokens of one reading; `turn` (B, 1) bool takes the other strand first."""
    a, b = torch.where(turn, rev, fwd), torch.where(turn, fwd, rev)
    return a if strands == "one" else torch.cat([a, b], 1)


@torch.no_grad()
def probabilities(net, split, how, stranded, autocast):
    fwd, rev, _ = split
    out = []
    for a, b in zip(fwd.split(512), rev.split(512), strict=True):
        turns = [False] if stranded or how["strands"] == "two" else [False, True]
        p = 0
        for turn in turns:
            with autocast():
                z = net(view(a, b, how["strands"], torch.full((len(a), 1), turn, device=a.device)))
            p = p + z.double().softmax(1)
        out.append(p / len(turns))
    return torch.cat(out)[:, 1].cpu().numpy()


def backbone_of(how):
    model = mba.load(how["start"]) if how["start"] != "none" else mba.load("human42mb-1m4")
    if how["start"] == "none":
        torch.manual_seed(how["seed"])
        model = build_model(
            model.model_config.model_copy(update={"num_layers": how["layers"], "d_model": how["width"]})
        )
    if how["lora"]:
        adapt(model, how["lora"], 16.0)
    return model


def bar(splits, codec, stranded, device):
    """The small network on the same dev."""
    from mamba_bio_audio.evaluation import cnn

    rows = {name: cnn.Labelled(list(a.cpu().numpy()), y.cpu().numpy()) for name, (a, _, y) in splits.items()}
    reverse = None if stranded else codec.reverse_complement
    task = cnn.CnnTask(rows["train"], rows["dev"], 2, codec.vocab_size, reverse, device)
    fits = [cnn.fit_cnn(task, seed=0, rate=rate) for rate in cnn.RATES]
    best = min(fits, key=lambda fit: fit.valid_nats)
    p, y = cnn.cnn_probabilities(best.model, task.valid.rows, task)[:, 1], task.valid.labels
    scores = f"auroc {roc_auc_score(y, p):.4f} mcc {matthews_corrcoef(y, p > 0.5):.4f}"
    return f"nats {best.valid_nats:.4f} {scores} rate {best.rate}"


def run(how, data, codec, device, deadline):
    began = time.time()
    stranded = how["task"].startswith("prom")
    splits = load(how["task"], data, codec, device)
    if how["start"] == "cnn":
        return f"{bar(splits, codec, stranded, device)}, {time.time() - began:.1f} s"
    fwd, rev, labels = splits["train"]
    net = Net(backbone_of(how), how, stranded).to(device).train()
    torch.manual_seed(1000 + how["seed"])
    steps = how["epochs"] * (len(fwd) // how["batch"])
    optimiser = torch.optim.AdamW(groups(net, how), lr=how["lr"], betas=(0.9, 0.95), fused=device == "cuda")
    rate = lambda s: min(1, (s + 1) / (0.1 * steps)) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * s / steps)))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=device == "cuda")  # noqa: E731
    recorded = GraphedLoss(net)
    average = copy.deepcopy(net)
    parameters, averages = ([p for p in one.parameters() if p.requires_grad] for one in (net, average))
    best, step = (math.inf, 0, 0, 0), 0
    for epoch in range(1, how["epochs"] + 1):
        net.train()
        for rows in torch.randperm(len(fwd), device=device)[: len(fwd) // how["batch"] * how["batch"]].split(
            how["batch"]
        ):
            turn = torch.rand(len(rows), 1, device=device) < (0 if stranded else 0.5)
            tokens = view(fwd[rows], rev[rows], how["strands"], turn)
            if how["mask"]:
                tokens = torch.where(torch.rand(tokens.shape, device=device) < how["mask"], N, tokens)
            with autocast():
                loss, _ = recorded(tokens, labels[rows])
            optimiser.zero_grad(set_to_none=True)
            (loss / len(rows)).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            step += 1
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 1 - min(how["ema"], step / (step + 10)))
            if time.time() > deadline:
                return f"cut at epoch {epoch}"
        average.eval()
        p = probabilities(average, splits["dev"], how, stranded, autocast)
        y = splits["dev"][2].cpu().numpy()
        nats = float(-np.log(np.clip(np.where(y == 1, p, 1 - p), 1e-12, 1)).mean())
        if nats < best[0]:
            best = (nats, epoch, roc_auc_score(y, p), matthews_corrcoef(y, p > 0.5))
    end = f"last: nats {nats:.4f} auroc {roc_auc_score(y, p):.4f}"
    seconds = time.time() - began
    found = f"nats {best[0]:.4f} auroc {best[2]:.4f} mcc {best[3]:.4f} epoch {best[1]}"
    return f"{found} | {end} | {seconds:.1f} s, {1e3 * seconds / steps:.1f} ms/step"


def logistic(x, y, dev, strength):
    """Scores of dev rows; torch L-BFGS, ridge 1 / strength."""
    mean, scale = x.mean(0), x.std(0) + 1e-6
    x, dev = (x - mean) / scale, (dev - mean) / scale
    w = torch.zeros(x.shape[1] + 1, dtype=x.dtype, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-7)
    sign = 2.0 * y.to(x.dtype) - 1

    def closure():
        solver.zero_grad()
        loss = F.softplus(-sign * (x @ w[1:] + w[0])).mean() + w[1:].square().sum() / (2 * strength * len(x))
        loss.backward()
        return loss

    solver.step(closure)
    return (dev @ w[1:] + w[0]).detach()


@torch.no_grad()
def vectors(model, split, autocast):
    """Pooled features by name."""
    found = {}
    for a, b in zip(split[0].split(1024), split[1].split(1024), strict=True):
        rows = {"one": a, "other": b, "cat": torch.cat([a, b], 1), "tac": torch.cat([b, a], 1)}
        for name, tokens in rows.items():
            for layer in (None, 5, 8):
                if layer is not None and name in ("cat", "tac"):
                    continue
                with autocast():
                    h = model.hidden(tokens, layer=layer)[0].float()
                key = f"{name}" if layer is None else f"{name}{layer}"
                found.setdefault(f"{key} mean", []).append(h.mean(1))
                if layer is None:
                    found.setdefault(f"{key} max", []).append(h.amax(1))
                if name in ("cat", "tac"):
                    found.setdefault(f"{key} second", []).append(h[:, h.shape[1] // 2 :].mean(1))
    return {name: torch.cat(parts).double() for name, parts in found.items()}


def frozen(how, data, codec, device):
    model = mba.load(how["start"]).to(device).eval()
    splits = load(how["task"], data, codec, device)
    stranded = how["task"].startswith("prom")
    autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=device == "cuda")  # noqa: E731
    train, dev = (vectors(model, splits[split], autocast) for split in ("train", "dev"))
    pair = (lambda f, a, b: torch.cat([f[a], f[b]], 1)) if stranded else (lambda f, a, b: (f[a] + f[b]) / 2)
    kinds = {
        "one mean": lambda f: f["one mean"],
        "two mean": lambda f: pair(f, "one mean", "other mean"),
        "two meanmax": lambda f: torch.cat([pair(f, "one mean", "other mean"), pair(f, "one max", "other max")], 1),
        "two mean 5": lambda f: pair(f, "one5 mean", "other5 mean"),
        "two mean 8": lambda f: pair(f, "one8 mean", "other8 mean"),
        "two mean 5+8+12": lambda f: torch.cat([pair(f, f"one{k} mean", f"other{k} mean") for k in ("5", "8", "")], 1),
        "cat mean": lambda f: f["cat mean"] if stranded else (f["cat mean"] + f["tac mean"]) / 2,
        "cat second": lambda f: f["cat second"] if stranded else (f["cat second"] + f["tac second"]) / 2,
    }
    y, labels = splits["dev"][2].cpu().numpy(), splits["train"][2]
    for name, take in kinds.items():
        tried = []
        for strength in (1e-3, 1e-2, 1e-1, 1.0):
            z = logistic(take(train), labels, take(dev), strength).cpu().numpy()
            tried.append((float(np.logaddexp(0, np.where(y == 1, -z, z)).mean()), strength, roc_auc_score(y, z)))
        best = min(tried)
        print(
            f"FROZEN {how['task']} {how['start']} {name}: auroc {best[2]:.4f} nats {best[0]:.4f} C {best[1]:g}",
            flush=True,
        )


def main():
    asked = argparse.ArgumentParser()
    asked.add_argument("--data", type=Path, required=True)
    asked.add_argument("--share", default="0/1")
    asked.add_argument("--limit", type=float, default=80)
    asked.add_argument("--frozen", action="store_true")
    asked.add_argument("--device", default="cuda")
    given = asked.parse_args()
    deadline = time.time() + given.limit
    at, of = map(int, given.share.split("/"))
    trials = [line.split() for line in sys.stdin if line.strip() and not line.startswith("#")][at::of]
    codec = mba.load("human42mb-1m4").codec
    for words in trials:
        if time.time() > deadline - 3:
            break
        how = dict(DEFAULTS)
        for word in words:
            key, value = word.split("=")
            how[key] = type(DEFAULTS[key])(value)
        try:
            if given.frozen:
                frozen(how, given.data, codec, given.device)
            else:
                print(f"TRIAL {' '.join(words)}: {run(how, given.data, codec, given.device, deadline)}", flush=True)
        except Exception as error:  # one trial must not end the others
            print(f"TRIAL {' '.join(words)}: {type(error).__name__}: {error}", flush=True)


main()
