"""The machine code of persistent decoding, compiled without a GPU: no spills, and four barriers in the loop over layers.

A trip through shared memory for a vector that lies in another layout than its reader's would be two barriers more.
"""

import os
import re
from collections import Counter
from contextlib import suppress

import pytest
import torch

pytest.importorskip("triton")

from mamba_bio_audio.inference.gpu_unet import packed_unet, rows_of
from mamba_bio_audio.kernels.decode.pack import Layer, pack
from mamba_bio_audio.kernels.decode.persistent import State, decode
from mamba_bio_audio.kernels.decode.split import decode_split
from mamba_bio_audio.kernels.decode.together import decode_together
from mamba_bio_audio.kernels.decode.unet import decode_unet
from mamba_bio_audio.models.unet import UNetModel
from mamba_bio_audio.models.unet_config import UNetConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles for a GPU"),
]


def launched(width, dtype, launches, run=decode, rows=1, packing=None, **drawing):
    E, N, R, W = 2 * width, 16, width // 16, 4
    sizes = [(width,), (2 * E, width), (E, W), (E,), (R + 2 * N, E), (E, R), (E,), (E, N), (E,), (width, E)]
    layer = Layer(*(torch.zeros(size) for size in sizes))
    table = torch.zeros(16, width)
    options = {"dtype": dtype, "tiled": run is not decode_together} | (packing or {})
    network = pack([layer], table, torch.ones(width), table, range(12), **options)
    state = State.of(torch.zeros(rows, 1, W - 1, E), torch.zeros(rows, 1, E, N), torch.zeros(rows))
    with suppress(RuntimeError):  # nothing runs, so no program arrives
        run(network, state, torch.zeros(3, rows, dtype=torch.float64), **drawing)
    (launch,) = launches
    return launch


def loops_of(text):
    """Counters of the instructions of every loop."""
    names, labels, loops = [], {}, []
    for line in text.splitlines():
        if label := re.match(r"^\s*(\.L[\w.]*):", line):
            labels[label[1]] = len(names)
        elif found := re.match(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(.*)", line):
            names.append(found[1])
            target = re.search(r"(\.L[\w.]+)", found[2]) if found[1] == "BRA" else None
            if target and labels.get(target[1], len(names)) < len(names) - 1:
                loops.append(Counter(names[labels[target[1]] :]))
    return loops


@pytest.mark.parametrize(
    ("width", "dtype", "limit"),
    [(128, torch.bfloat16, 880), (128, torch.float32, 690), (256, torch.bfloat16, 2680)],
    ids=str,
)
def test_on_hopper(width, dtype, limit, launches, compile_for, machine_code):
    code = machine_code(compile_for(launched(width, dtype, launches, temperature=0.0), 90))
    loop = min((loop for loop in loops_of(code.text) if loop["BAR"]), key=Counter.total)
    assert loop["BAR"] == 4
    # Triton 3.6.0 spills nothing; 3.8.0 nine loads and stores where D is 256.
    assert loop["LDL"] + loop["STL"] <= (9 if width == 256 else 0)
    assert loop["LDS"] == loop["STS"] == 0
    assert loop.total() <= limit


@pytest.mark.parametrize(
    ("width", "dtype", "programs", "warps", "limit"),
    [(256, torch.bfloat16, 16, 8, 640), (256, torch.float32, 16, 8, 540), (768, torch.bfloat16, 48, 16, 1200)],
    ids=str,
)
def test_programs_that_share_a_row_on_hopper(width, dtype, programs, warps, limit, launches, compile_for, machine_code):
    """Four barriers of a program's own and four around the exchanges; all weights in registers, no spills."""
    packing = {"programs": programs, "warps": warps}
    launch = launched(width, dtype, launches, decode_split, packing=packing, temperature=0.0)
    code = machine_code(compile_for(launch, 90))
    assert code.stack <= 8
    loop = min((loop for loop in loops_of(code.text) if loop["BAR"]), key=Counter.total)
    assert loop["LDL"] + loop["STL"] == 0
    assert loop["BAR"] <= (8 if width == 256 else 10)
    assert loop.total() <= limit


@pytest.mark.parametrize(
    ("width", "programs", "warps", "stack"), [(128, 1, 16, 256), (256, 2, 8, 1200), (256, 4, 16, 256)], ids=str
)
def test_rows_together_on_hopper(width, programs, warps, stack, launches, compile_for, machine_code):
    """The scan, which makes most of the traffic, has no barrier and no spill; products run on the tensor cores."""
    packing = {"programs": programs, "warps": warps, "registers": 128 if warps == 8 else None}
    launch = launched(width, torch.bfloat16, launches, decode_together, 32, packing, temperature=0.0)
    compiled = compile_for(launch, 90)
    assert compiled.metadata.shared <= 227 * 1024
    code = machine_code(compiled)
    assert code.stack <= stack  # addresses and tiles of products; with Triton 3.6.0 at most 184
    scan = min((loop for loop in loops_of(code.text) if loop["STG"] in (8, 16)), key=Counter.total)
    assert scan["BAR"] == scan["LDL"] == scan["STL"] == scan["LDS"] == 0
    assert scan.total() <= 210 * scan["STG"] / 8
    assert "HMMA" in code.text


@pytest.mark.parametrize(
    ("mixer", "barriers", "limits", "spills"),
    [("mamba", 4, [440, 940], [0, 2]), ("s4d", 2, [400, 900], [0, 32])],
    ids=["selective", "fixed"],
)
def test_a_unet_on_hopper(mixer, barriers, limits, spills, launches, compile_for, machine_code):
    """Loops over the layers of the two finer tiers, three programs a row: barriers as ever, six in the exchange; few spills."""
    model = UNetModel(UNetConfig(d_model=64, num_layers=2, vocab_size=12, mixer=mixer))
    network = packed_unet(model, range(12), torch.bfloat16)
    state = rows_of(network.case, model.init_state(1), torch.zeros(1, 1))
    decode_unet(network, state, torch.zeros(3, 1, dtype=torch.float64), temperature=0.0, split=True)
    (launch,) = launches
    loops = [loop for loop in loops_of(machine_code(compile_for(launch, 90)).text) if loop["BAR"] == barriers + 6]
    assert len(loops) == 3  # the last is the centre's over its frames
    for loop, limit, spilled in zip(sorted(loops, key=Counter.total), limits, spills, strict=False):
        assert loop["LDL"] + loop["STL"] <= spilled
        assert loop["LDS"] == loop["STS"] == 2  # flags
        assert loop.total() <= limit
