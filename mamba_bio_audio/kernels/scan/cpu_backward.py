"""Backward of the scan in plain PyTorch: a reverse sweep over the blocks of `cpu_blocks`; the method is in `cpu`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.kernels.scan.cpu_blocks import Buffers, Problem, Segment, keep_real, over_channels, over_states
from mamba_bio_audio.kernels.scan.inputs import complex_numbers


def backward(p: Problem, starts: Tensor, g_out: Tensor | None, g_state: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients in the order of `ScanInputs.tensors`."""
    u, dt, A, B, C, D, z, dt_bias, h0 = p.inputs.tensors
    N, channels = p.states, p.channels
    gu = torch.empty_like(u, memory_format=torch.contiguous_format)
    gz = None if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
    gdt = p.zeros(channels, real=True) if p.lti_dt else torch.empty_like(dt, memory_format=torch.contiguous_format)
    gA = p.zeros(N, channels)
    gB = p.zeros(N, channels) if p.lti_B else p.empty(p.rows, p.length, N)
    gC = p.zeros(N, channels) if p.lti_C else p.empty(p.rows, p.length, N)
    gD = p.zeros(channels, real=True)
    gbias = p.zeros(channels, real=True)
    gh0 = p.empty(p.rows, N, channels) if h0 is not None else None
    carry_in = None
    if g_state is not None:
        carry_in = complex_numbers(g_state.to(p.dtype)).conj() if p.complex else g_state.to(p.dtype)
        carry_in = carry_in.transpose(1, 2)

    for rows in p.groups():
        b = rows.stop - rows.start
        buffers = Buffers(p, b)
        work = _Work(p, buffers, b)
        work.carry.zero_() if carry_in is None else work.carry.copy_(carry_in[rows])
        resets = p.reset_steps(rows)
        for steps in reversed(p.segments()):
            segment = Segment(p, rows, steps)
            shape = (segment.size, b, channels)
            gy = p.zeros(*shape, real=True) if g_out is None else p.time_major(g_out, rows, steps)
            gated = gy
            y = None
            if segment.z is not None:
                gated = gy * F.silu(segment.z)
                y = p.empty(*shape, real=True)
            work.begin(segment, gated)
            for block in reversed(segment.blocks()):
                buffers.h[0].copy_(starts[(steps.start + block.start) // p.T, rows])
                segment.run(buffers, block, resets)
                if y is not None:
                    segment.readout(buffers, block, y[block])
                work.sweep(block, resets)

            if y is not None:
                if p.D is not None:
                    y.addcmul_(segment.u, p.D)
                assert gz is not None
                gz[rows, steps].copy_(torch.ops.aten.silu_backward(y.mul_(gy), segment.z).transpose(0, 1))
            gx, g_dt = work.gx, work.g_dt
            if p.exact:
                g_u = gx
            else:
                g_dt.addcmul_(gx, segment.u)
                g_u = gx.mul_(segment.dt)
            if p.D is not None:
                g_u = g_u.addcmul_(gated, p.D)
                gD += (gated * segment.u).sum((0, 1))
            gu[rows, steps].copy_(g_u.transpose(0, 1))
            if p.lti_dt:
                g_dt = g_dt.sum((0, 1), keepdim=True)
            if p.softplus:
                g_dt = torch.ops.aten.softplus_backward(g_dt, segment.raw, 1.0, 20.0)
            if p.dt_bias is not None:
                gbias += g_dt.sum((0, 1))
            if p.lti_dt:
                gdt += g_dt[0, 0]
            else:
                gdt[rows, steps].copy_(g_dt.transpose(0, 1))
            if not p.lti_B:
                gB[rows, steps].copy_(work.gB.transpose(0, 1))
            if not p.lti_C:
                gC[rows, steps].copy_(work.gC.transpose(0, 1))
        gA += work.gA.sum((0, 1))
        if p.lti_B:
            gB += work.gB_sum.sum((0, 1))
        if p.lti_C:
            gC += work.gC_sum.sum((0, 1))
        if gh0 is not None:
            gh0[rows].copy_(work.carry)

    def public(g: Tensor, like: Tensor, transpose: bool) -> Tensor:
        if transpose:
            g = g.transpose(-1, -2)
        if p.complex:
            g = torch.view_as_real(g.conj().resolve_conj())
        return g.to(like.dtype)

    if p.complex:
        gC.mul_(2)
    return (
        gu,
        gdt.to(dt.dtype),
        public(gA, A, True),
        public(gB, B, p.lti_B),
        public(gC, C, p.lti_C),
        None if D is None else gD.to(D.dtype),
        gz,
        None if dt_bias is None else gbias.to(dt_bias.dtype),
        None if gh0 is None or h0 is None else public(gh0, h0, True),
    )


class _Work:
    """Storage and sums of the reverse sweep for one group of rows; complex gradients are kept conjugated."""

    def __init__(self, p: Problem, buffers: Buffers, rows: int) -> None:
        self.p, self.buffers = p, buffers
        shape = (p.T, rows, p.states, p.channels)
        self.g, self.w = p.empty(p.T + 1, *shape[1:]), p.empty(*shape)
        self.g_steps = self.g.unbind(0)
        # Slot 0 collects the gradient that leaves the block towards earlier steps.
        self.carry = self.g_steps[0]
        self.reverse = buffers.tree.bind(self.g, reverse=True)
        self.gA = p.zeros(*shape)
        if p.lti_B:
            self.gB_sum = p.zeros(*shape)
        if p.lti_C:
            self.gC_sum = p.zeros(*shape)

    def begin(self, segment: Segment, gy: Tensor) -> None:
        """gy (S, b, D): gradient of the readout."""
        p = self.p
        self.segment, self.gy = segment, gy
        shape = (segment.size, gy.shape[1])
        self.gx = p.empty(*shape, p.channels, real=True)
        self.g_dt = p.empty(*shape, p.channels, real=True)
        if not p.lti_B:
            self.gB = p.empty(*shape, p.states)
        if not p.lti_C:
            self.gC = p.empty(*shape, p.states)

    def sweep(self, block: slice, resets: list[int]) -> None:
        """One block in reverse, after `Segment.run` has filled its decays and states."""
        p, segment, buffers, size = self.p, self.segment, self.buffers, block.stop - block.start
        exact, precise = p.exact, p.precise
        gy = self.gy[block]
        a = buffers.a if p.lti_dt else buffers.a[:size]
        h, h_previous = buffers.h[1 : size + 1], buffers.h[:size]
        g, w = self.g[1 : size + 1], self.w[:size]
        dt = segment.dt[slice(0, 1) if p.lti_dt else block].unsqueeze(2)
        x = segment.x[block]

        if segment.C is None:
            self.gC_sum[:size].addcmul_(h, gy.unsqueeze(2).to(p.number))
            C = p.C
        else:
            over_channels(gy, h, self.gC[block])
            C = segment.C[block].unsqueeze(3)

        # g_t = C_t gy_t + a_(t+1) g_(t+1)
        torch.mul(C, gy.unsqueeze(2), out=g)
        self.g_steps[size].add_(self.carry)
        self.carry.zero_()
        masks = segment.masks(block, resets)
        if size == p.T and not precise and not masks:
            self.reverse()
        else:
            following = self.g_steps[size]
            for t in range(size - 1, -1, -1):
                if masks and t in masks:
                    following = following.masked_fill(masks[t], 0)
                target = self.g_steps[t].addcmul_(buffers.a_steps[t], following)
                if precise:
                    target.add_(following)
                following = target

        # w_t = a_t h_(t-1) g_t
        torch.mul(a, g, out=w)
        if precise:
            w.add_(g)
        w.mul_(h_previous)
        for t, mask in masks.items():
            w[t].masked_fill_(mask, 0)
        self.gA[:size].addcmul_(w, dt)
        w.mul_(p.A)

        B = p.B if segment.B is None else segment.B[block].unsqueeze(3)
        if exact:
            ratio, slope = segment.ratio(buffers, block)
            g_phi = x.unsqueeze(2) * B * g
            self.gA[:size].addcmul_(g_phi, dt * dt * slope)
            w.add_(g_phi.mul_(a + 1 if precise else a))
            g.mul_(ratio).mul_(dt)
        if p.complex:
            keep_real(w.sum(2), self.g_dt[block])
        else:
            torch.sum(w, 2, out=self.g_dt[block])

        if segment.B is None:
            self.gB_sum[:size].addcmul_(g, x.unsqueeze(2).to(p.number))
            keep_real(torch.mul(g, B, out=w).sum(2), self.gx[block])
        else:
            over_channels(x, g, self.gB[block])
            over_states(segment.B[block], g, self.gx[block])
