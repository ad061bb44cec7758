"""Which form of persistent decoding runs a stack of Mamba layers, and how many threads, programs and rows it takes.

    persistent   a program takes a row; every program reads all weights
    split        G programs share a row's inner channels: few rows
    together     a program takes 16 rows or more, G programs may share them: many rows; bf16 only

Measured on an H200 (132 multiprocessors; torch 2.11.0, Triton 3.6.0), us a step, kernels alone but for the rows of graphs
(docs/benchmarks.md, generation, has the rest):

    network    precision  form                       1 row   64    132    512    2,048
    12 x 128   bf16       persistent                  53           64     260
                          together                           113          223    496
                          graph                                           344    641
               fp32       persistent                  61           79
    16 x 256   bf16       split, G 16                 62
                          persistent                        247    257
                          together                          224           491    1,331
                          graph                                           566    1,273
               fp32       split, G 16                 73
                          persistent                               300
    24 x 768   bf16       split, G 48                255
                          together                                      3,062
                          graph                             764         1,664
"""

from __future__ import annotations

from typing import Literal, NamedTuple

PATHS = Literal["persistent", "split", "together"]
WIDEST = 768  # what was run
_ROWS_OF_A_PROCESSOR = 8  # beyond them, states come from memory, and a CUDA graph has more of them on the way
_WIDEST_OF_A_ROW = 256  # beyond it, a program that reads all weights takes longer than a CUDA graph


class Form(NamedTuple):
    """A form and its sizes.

    Attributes:
        path: as in the module.
        warps: of a program.
        programs: that share a row or a block of rows (G).
        rows: of a program.
        registers: of a thread at most; None for what the compiler takes.
    """

    path: PATHS
    warps: int
    programs: int = 1
    rows: int = 1
    registers: int | None = None


def form_of(width: int, inner: int, rows: int, processors: int, bf16: bool) -> Form | None:
    """The fastest form, or None where a CUDA graph is faster.

    Args:
        width, inner: channels D and E.
        rows: of a batch.
        processors: multiprocessors of the GPU.
        bf16: whether matrices are in bf16.
    """
    forms = [form_on(path, width, inner, rows, processors, bf16) for path in ("split", "persistent", "together")]
    split, persistent, together = forms
    if width > 128 and split is not None and rows * split.programs <= processors:
        return split
    if persistent is None:
        return None
    # Programs beyond the number of multiprocessors run after the others.
    waves = -(-rows // processors)
    if waves <= ((3 if width <= 128 else 1) if bf16 else 4):
        return persistent
    if not bf16 or (width > 128 and rows > _ROWS_OF_A_PROCESSOR * processors):
        return None
    return together


def form_on(path: str, width: int, inner: int, rows: int, processors: int, bf16: bool) -> Form | None:
    """The sizes of a form for so many rows, or None where it cannot run them; arguments as of `form_of`."""
    if width > WIDEST:
        return None
    if path == "persistent":
        return Form("persistent", 16) if width <= _WIDEST_OF_A_ROW else None
    if path == "split":
        # So many that a program's share of a layer fits into its registers.
        share = 32 if bf16 or width <= 512 else 16
        programs = inner // share
        fits = inner % share == 0 and rows * programs <= processors
        return Form("split", 8 if width <= 256 else 16, programs) if fits else None
    # Blocks of rows that leave multiprocessors idle are shared by several programs; else two programs run on one, where all
    # find a place.
    programs = 1
    while 2 * programs * -(-rows // 16) <= processors and inner // (2 * programs) >= 32:
        programs *= 2
    if programs == 1 and width > 128 and -(-rows // 16) <= processors:
        return Form("together", 8, 2, 16, registers=128)
    return Form("together", 16, programs, 16)
