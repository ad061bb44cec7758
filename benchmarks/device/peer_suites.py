"""The peers' own tests of their scan and convolution, run on our operations, in several processes.

    python benchmarks/device/peer_suites.py FOLDER [--processes 6] [--seconds 240] [--every N] [--wide] [-k EXPRESSION]

FOLDER has their files, as they were published: tests/ops/test_selective_scan.py of state-spaces/mamba and
tests/test_causal_conv1d.py of the source package of causal-conv1d 1.7.0 (neither is part of this repository). Their
operations' names mean ours within them; their references stay theirs. mamba_ssm, causal_conv1d and einops must be importable.
--wide: the scan's test for the options that its file leaves out by comments (complex or time-invariant maps, no gate, no skip,
no bias, no softplus) at 128 positions, against references in fp32. Prints what failed, and as processes end how many passed,
failed, skipped themselves and were left when the time was over.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mamba_bio_audio.ops import causal_conv1d, selective_scan

COUNTS = "counts"
SCAN, CONV = "test_selective_scan.py", "test_causal_conv1d.py"
CHOSEN = "test_selective_scan or (test_causal_conv1d and not update and not varlen and not bwd and not get_states)"
LEFT_OUT = {  # parameter: what the wide run gives it
    "wtype": "[torch.float32, torch.complex64]", "seqlen": "[128]", "has_delta_bias": "[False, True]",
    "delta_softplus": "[False, True]", "has_z": "[False, True]", "has_D": "[False, True]",
    "is_variable_C": "[False, True]", "is_variable_B": "[False, True]", "varBC_groups": "[1]", "return_last_state": "[True]",
}  # fmt: skip


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, return_last_state: bool = False,
) -> Any:  # fmt: skip
    """`selective_scan` by the arguments of mamba_ssm's selective_scan_fn: (B, D, L), maps (D, N), (B, N, L) or (B, G, N, L)."""
    groups = max(t.shape[1] if t.ndim == 4 else 1 for t in (B, C))
    if groups > 1:
        each = u.shape[1] // groups
        found = []
        for i in range(groups):
            part = slice(i * each, (i + 1) * each)

            def cut(t: Tensor | None, dim: int, part: slice = part) -> Tensor | None:
                return t if t is None else t[part] if dim == 0 else t[:, part]

            def of(t: Tensor, i: int = i, part: slice = part) -> Tensor:
                return t[:, i] if t.ndim == 4 else t[part] if t.ndim == 2 else t

            found.append(
                scan(
                    u[:, part], delta[:, part], A[part], of(B), of(C), cut(D, 0), cut(z, 1), cut(delta_bias, 0),
                    delta_softplus, True,
                )
            )  # fmt: skip
        out, last = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return (out, last) if return_last_state else out

    def maps(t: Tensor) -> Tensor:
        t = t.squeeze(1) if t.ndim == 4 else t
        if t.ndim == 2:
            return torch.view_as_real(t) if t.is_complex() else t
        if A.is_complex():
            return t.unflatten(-1, (-1, 2)).permute(0, 2, 1, 3)
        return t.transpose(1, 2)

    out, last = selective_scan(
        u.transpose(1, 2), delta.transpose(1, 2), torch.view_as_real(A) if A.is_complex() else A, maps(B), maps(C), D,
        None if z is None else z.transpose(1, 2), delta_bias, dt_softplus=delta_softplus, return_state=True,
    )  # fmt: skip
    out = out.transpose(1, 2)
    if not return_last_state:
        return out
    return out, torch.view_as_complex(last.contiguous()) if A.is_complex() else last


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None, return_final_states: bool = False, final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Any:  # fmt: skip
    """`causal_conv1d` by the arguments of causal_conv1d's causal_conv1d_fn: (B, D, L)."""
    reset = None
    if seq_idx is not None:
        reset = torch.zeros_like(seq_idx, dtype=torch.bool)
        reset[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    tail = None if initial_states is None else initial_states.transpose(1, 2)
    out, last = causal_conv1d(
        x.transpose(1, 2),
        weight,
        bias,
        activation="silu" if activation else None,
        tail=tail,
        return_tail=True,
        reset=reset,
    )
    out, last = out.transpose(1, 2), last.transpose(1, 2)
    if final_states_out is not None:
        last = final_states_out.copy_(last)
    return (out, last) if return_final_states else out


def widened(text: str) -> str:
    """The scan's test with the values of LEFT_OUT, its references fed fp32."""
    head, first, *_ = re.split(r"(?=^@pytest.mark.parametrize\('wtype')", text, flags=re.MULTILINE)
    lines = [line for line in first.splitlines() if not line.startswith("# @pytest")]
    for name, values in LEFT_OUT.items():
        lines = [
            re.sub(rf"^(@pytest.mark.parametrize\([\"']{name}[\"'], ).*\)$", rf"\1{values})", line) for line in lines
        ]
    first = "\n".join(line for line in lines if not line.startswith("#"))
    first = first.replace("allclose(out, out_ref,", "allclose(out.float(), out_ref.float(),")
    first = first.replace("out_ref.backward(g)", "out_ref.backward(g.to(out_ref.dtype))")
    return head + re.sub(r"(\w+)_ref = (\w+)\.detach\(\)\.clone\(\)", r"\1_ref = _exact(\2)", first)


def _exact(t: Tensor) -> Tensor:
    return t.detach().clone() if t.is_complex() else t.detach().float().clone()


class Plugin:
    """A share of the tests, with our operations under their names, until the time is over."""

    def __init__(self, which: int, of: int, every: int, until: float) -> None:
        self.which, self.of, self.every, self.until = which, of, every, until
        self.found = dict.fromkeys(("passed", "failed", "skipped", "left"), 0)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        # Neighbours differ in one option, and tests that skip themselves come regularly.
        random.Random(0).shuffle(items)
        items[:] = items[:: self.every][self.which :: self.of]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.found["left"] = len(session.items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.found[report.outcome] += 1
            self.found["left"] -= 1

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        if time.time() > self.until:
            item.session.shouldstop = "the time is over"

    def pytest_collectstart(self) -> None:
        import causal_conv1d.causal_conv1d_interface as theirs_conv
        import mamba_ssm.ops.selective_scan_interface as theirs_scan

        theirs_scan.selective_scan_fn, theirs_conv.causal_conv1d_fn = scan, conv
        theirs_scan._exact = _exact


def one_process(folder: Path, plugin: Plugin, chosen: str) -> None:
    """Prints what failed, and counts."""
    files = [str(folder / name) for name in (SCAN, CONV) if (folder / name).exists()]
    options = ["-q", "-p", "no:cacheprovider", "--no-header", "-rN", "--tb=line", "--disable-warnings"]
    pytest.main([*options, "-k", chosen, *files], plugins=[plugin])
    print(COUNTS, json.dumps(plugin.found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=240, help="after which no test begins")
    parser.add_argument("--every", type=int, default=1, help="one of so many tests, the same ones each time")
    parser.add_argument("--wide", action="store_true", help="the scan's test for all options")
    parser.add_argument("-k", dest="chosen", default=CHOSEN, help="which, as pytest's -k")
    parser.add_argument("--which", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.which is not None:
        plugin = Plugin(args.which, args.processes, args.every, time.time() + args.seconds)
        one_process(args.folder, plugin, args.chosen)
        return
    began = time.time()
    folder, total = args.folder, Counter[str]()
    with tempfile.TemporaryDirectory() as made:
        if args.wide:
            text = widened((folder / SCAN).read_text())
            text = text.replace(
                "import pytest\n", "import pytest\nfrom mamba_ssm.ops.selective_scan_interface import _exact\n", 1
            )
            folder = Path(made)
            (folder / SCAN).write_text(text)
        command = [sys.executable, __file__, str(folder), "-k", args.chosen]
        for name in ("processes", "seconds", "every"):
            command += [f"--{name}", str(getattr(args, name))]
        running = [
            subprocess.Popen([*command, "--which", str(i)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for i in range(args.processes)
        ]
        for process in running:
            found, _ = process.communicate()
            for line in found.splitlines():
                if line.startswith(COUNTS):
                    total.update(json.loads(line.removeprefix(COUNTS)))
                elif re.search(r"[Ff]ailed|Error|assert", line):
                    print(line)
            print(f"{time.time() - began:4.0f} s, so far {dict(total)}", flush=True)


if __name__ == "__main__":
    main()
