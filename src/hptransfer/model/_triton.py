"""The Triton sources of `hptransfer.model._kernels`."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def _weigh(q, k, rows):
    """Return causal attention weights in fp32."""
    s = tl.dot(q, tl.trans(k))
    s = tl.where(rows[:, None] >= rows[None, :], s, -float("inf"))
    e = tl.exp(s - tl.max(s, 1)[:, None])
    return e / tl.sum(e, 1)[:, None]


@triton.jit
def _load_head(qkv, time, num_heads, TIME: tl.constexpr, HEAD: tl.constexpr):
    """Return queries, keys and values of this program's sequence and head, and where they are."""
    sequence, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    rows, columns, width = tl.arange(0, TIME), tl.arange(0, HEAD), num_heads * HEAD
    place = (sequence.to(tl.int64) * time + rows)[:, None]
    inside = (rows < time)[:, None]
    own = head * HEAD + columns[None, :]
    q = tl.load(qkv + place * (3 * width) + own, mask=inside, other=0.0)
    k = tl.load(qkv + place * (3 * width) + own + width, mask=inside, other=0.0)
    v = tl.load(qkv + place * (3 * width) + own + 2 * width, mask=inside, other=0.0)
    return q, k, v, rows, place, own, inside, width


@triton.jit
def attend(qkv, out, time, num_heads, TIME: tl.constexpr, HEAD: tl.constexpr):
    """Attend within one sequence and head."""
    q, k, v, rows, place, own, inside, width = _load_head(qkv, time, num_heads, TIME, HEAD)
    p = _weigh(q, k, rows)
    found = tl.dot(p.to(v.dtype), v)
    tl.store(out + place * width + own, found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def attend_backward(qkv, grad, out, time, num_heads, TIME: tl.constexpr, HEAD: tl.constexpr):
    """Return the gradients of queries, keys and values of one sequence and head."""
    q, k, v, rows, place, own, inside, width = _load_head(qkv, time, num_heads, TIME, HEAD)
    g = tl.load(grad + place * width + own, mask=inside, other=0.0)
    p = _weigh(q, k, rows)
    by_p = tl.dot(g, tl.trans(v))
    by_s = (p * (by_p - tl.sum(p * by_p, 1)[:, None])).to(q.dtype)
    of_v = tl.dot(tl.trans(p.to(q.dtype)), g)
    of_q, of_k = tl.dot(by_s, k), tl.dot(tl.trans(by_s), q)
    into = out + place * (3 * width) + own
    tl.store(into, of_q.to(out.dtype.element_ty), mask=inside)
    tl.store(into + width, of_k.to(out.dtype.element_ty), mask=inside)
    tl.store(into + 2 * width, of_v.to(out.dtype.element_ty), mask=inside)


@triton.jit
def cross_entropy(logits, targets, losses, grads, size, scale, BLOCK: tl.constexpr):
    """Return the cross-entropy of one row of logits, and their gradient times `scale`."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    x = tl.load(logits + row * size + columns, mask=inside, other=-float("inf")).to(tl.float32)
    target = tl.load(targets + row)
    top = tl.max(x, 0)
    e = tl.exp(x - top)
    total = tl.sum(e, 0)
    picked = tl.sum(tl.where(columns == target, x, 0.0), 0)
    tl.store(losses + row, tl.log(total) + top - picked)
    grad = (e / total - tl.where(columns == target, 1.0, 0.0)) * scale
    tl.store(grads + row * size + columns, grad.to(grads.dtype.element_ty), mask=inside)


@triton.jit
def add_norm(
    x, branch, gain, total, out, means, scales, num_rows, width, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add a branch to a few rows of one trial's residual stream; normalise the sum, with gain."""
    k = tl.program_id(1).to(tl.int64)
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
    place = (k * num_rows + rows)[:, None] * width + columns[None, :]
    s = tl.load(x + place, mask=inside, other=0.0)
    s += tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gain + k * width + columns, mask=columns < width, other=0.0)
    tl.store(total + place, s, mask=inside)
    mean = tl.sum(s, 1) / width
    centred = tl.where(inside, s - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    found = centred * scale[:, None] * g[None, :]
    tl.store(out + place, found.to(out.dtype.element_ty), mask=inside)
    tl.store(means + k * num_rows + rows, mean, mask=rows < num_rows)
    tl.store(scales + k * num_rows + rows, scale, mask=rows < num_rows)


@triton.jit
def add_norm_backward(
    by_total, by_out, total, gain, means, scales, by_x, by_branch, by_gain, num_rows, width,
    HAS_UP: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the gradients of SIZE rows of one trial, and their part of its gain's."""
    k, first = tl.program_id(1).to(tl.int64), tl.program_id(0) * SIZE
    columns = tl.arange(0, BLOCK)
    g = tl.load(gain + k * width + columns, mask=columns < width, other=0.0)
    of_gain = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, SIZE, ROWS):
        rows = first + start + tl.arange(0, ROWS)
        there = rows < num_rows
        inside = there[:, None] & (columns < width)[None, :]
        place = (k * num_rows + rows)[:, None] * width + columns[None, :]
        mean = tl.load(means + k * num_rows + rows, mask=there, other=0.0)
        scale = tl.load(scales + k * num_rows + rows, mask=there, other=0.0)
        s = tl.load(total + place, mask=inside, other=0.0)
        h = tl.load(by_out + place, mask=inside, other=0.0).to(tl.float32)
        normed = tl.where(inside, (s - mean[:, None]) * scale[:, None], 0.0)
        of_gain += tl.sum(h * normed, 0)
        h *= g[None, :]
        along, level = tl.sum(h * normed, 1) / width, tl.sum(h, 1) / width
        up = (h - normed * along[:, None] - level[:, None]) * scale[:, None]
        if HAS_UP:
            up += tl.load(by_total + place, mask=inside, other=0.0)
        tl.store(by_x + place, up, mask=inside)
        tl.store(by_branch + place, up.to(by_branch.dtype.element_ty), mask=inside)
    part = k * tl.num_programs(0) + tl.program_id(0)
    tl.store(by_gain + part * width + columns, of_gain, mask=columns < width)
