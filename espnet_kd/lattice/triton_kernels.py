"""CUDA kernels of the memory-lean lattice losses, in Triton.

The forward pass of a node needs few numbers of its V logits: those of the K classes
that a loss names (blank and the next label, or a teacher's best), and the log-sum-exp
of all the others. `linear_scores` computes them from the hidden layer and never writes
a logit (the idea: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language
Models", 2024). The rest is summed directly, not as one minus the kept classes: the
difference would cancel. `rest_gradient_` is the backward pass of a chunk whose logits
were recomputed: it turns them into their gradient in place.

torch is the oracle of both, and the fallback wherever `usable` is False. Under
TRITON_INTERPRET=1 (set before Triton is imported) both run on CPU tensors, slowly.
"""

import functools
import os
import warnings

import torch
from torch import Tensor

from espnet_kd.lattice.rows import tf32_setting

try:
    import triton
    import triton.language as tl

    if int(triton.__version__.split(".")[0]) < 3:
        triton = None
except Exception:  # absent, or an installation that breaks while it is imported
    triton = None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Each kept class costs a tile of logits a few operations per row; while classes are
# few, the matrix product hides them.
MAX_KEPT = 32


def usable(device: torch.device, dtype: torch.dtype, kept: int) -> bool:
    """Whether both kernels run on `device` for `dtype` and `kept` classes per node.

    That is: Triton 3, a CUDA device of compute capability 8.0 on which a kernel can be
    built (Triton needs a C compiler), bfloat16, float16, or float32 that is multiplied
    in TF32 (without tensor cores cuBLAS is as fast), and K <= MAX_KEPT.
    """
    if triton is None or dtype not in DTYPES or not 1 <= kept <= MAX_KEPT:
        return False
    if INTERPRETED:
        return device.type == "cpu"
    if dtype == torch.float32 and matmul_precision() != "tf32":
        return False
    return device.type == "cuda" and _launches(device)


@functools.lru_cache(maxsize=None)
def _launches(device: torch.device) -> bool:
    """Whether the device is fit for the kernels, tried once with a tiny one."""
    if torch.version.cuda is None:
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    row = torch.zeros(1, 16, device=device)
    first = row[:, :1].long()
    try:
        linear_scores(row, row, None, first)
        rest_gradient_(row, first, row[:, 0], row[:, 0], row[:, :1])
        torch.cuda.synchronize(device)
    except Exception as error:
        warnings.warn(f"Triton kernels are off, torch is used: {error}", stacklevel=3)
        return False
    return True


def linear_scores(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    inverse_temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Logits of the kept classes, log-sum-exp of the rest; no logit is written.

    With z = hidden @ weight.T + bias (n,V):

        scores[i,k] = z[i, ids[i,k]]
        rest[i] = log sum_{v not in ids[i]} exp(inverse_temperature * z[i,v])

    Args:
        hidden: (n,J) rows of the joint network's hidden layer.
        weight: (V,J), of the dtype of `hidden`.
        bias: (V,) of any dtype, or None.
        ids: (n,K) int64 in [0,V); a class may occur several times in a row.
        inverse_temperature: > 0; scales the logits of the rest only.

    Returns:
        scores (n,K) and rest (n,), float32; rest is -inf where no class is left.
        float32 products follow torch's setting for matrix products (TF32 or not).

    Raises:
        ValueError: hidden and weight differ in dtype.
    """
    if hidden.dtype != weight.dtype:
        raise ValueError(
            f"weight: {weight.dtype}, but hidden is {hidden.dtype}; cast one of them"
        )
    hidden, weight = hidden.contiguous(), weight.contiguous()
    ids = ids.int().contiguous()
    (n, kept), (classes, width) = ids.shape, weight.shape
    scores = hidden.new_empty(n, kept, dtype=torch.float32)
    rest = hidden.new_empty(n, dtype=torch.float32)
    if n == 0:
        return scores, rest
    if INTERPRETED:  # its dot product takes bfloat16 for integers
        hidden, weight = hidden.float(), weight.float()
    # A row of Hopper's swizzled shared memory holds 128 bytes.
    block_j = 16 if INTERPRETED else 128 // hidden.element_size()
    with torch.cuda.device_of(hidden):
        _scores_kernel[(triton.cdiv(n * kept, 32),)](
            hidden, weight, bias, ids, scores, n * kept,
            J=width, K=kept, BLOCK_N=32, BLOCK_J=block_j,
        )  # fmt: skip
        _rest_kernel[lambda meta: (triton.cdiv(n, meta["BLOCK_N"]),)](
            hidden, weight, bias, ids, rest, n, inverse_temperature,
            V=classes, J=width, K=kept, BLOCK_J=block_j, PRECISION=matmul_precision(),
        )  # fmt: skip
    return scores, rest


def rest_gradient_(
    logits: Tensor,
    ids: Tensor,
    rest: Tensor,
    coefficient: Tensor,
    score_gradient: Tensor,
    inverse_temperature: float = 1.0,
) -> None:
    """Turn logits into their gradient, in place.

    A class v outside ids[i] gets coefficient[i] * exp(inverse_temperature * z[i,v] -
    rest[i]): with the gradient of rest times inverse_temperature as coefficient, that
    is what flows through `rest`. A class of ids[i] gets the sum of score_gradient[i,k]
    over the k that name it.

    Args:
        logits: (n,V) contiguous; float32, bfloat16 or float16. Overwritten.
        ids: (n,K) int64 in [0,V).
        rest: (n,) as `linear_scores` returns it.
        coefficient: (n,).
        score_gradient: (n,K).
        inverse_temperature: that of `rest`.

    Raises:
        ValueError: logits are not contiguous.
    """
    if not logits.is_contiguous():
        raise ValueError("logits: not contiguous; pass the chunk's own buffer")
    (n, classes), kept = logits.shape, ids.shape[1]
    if n == 0:
        return
    with torch.cuda.device_of(logits):
        _rest_gradient_kernel[(n,)](
            logits, ids.contiguous(), rest.contiguous(), coefficient.contiguous(),
            score_gradient.contiguous(), inverse_temperature,
            V=classes, K=kept, KEPT=triton.next_power_of_2(kept),
            BLOCK_V=min(2048, triton.next_power_of_2(classes)),
        )  # fmt: skip


def matmul_precision() -> str:
    """How float32 is multiplied: as torch multiplies it."""
    name, tf32 = tf32_setting()
    return "tf32" if getattr(torch.backends.cuda.matmul, name) == tf32 else "ieee"


def _rest_configs() -> list:
    """Tiles to try, once for each (V, J, K, dtypes).

    A tile of 128 x 256 reads the fewest bytes of L2. Two programs of 128 x 128 fit a
    multiprocessor at 128 registers per thread: one's exponentials run under the other's
    matrix product.
    """
    if INTERPRETED:
        return [triton.Config({"BLOCK_N": 16, "BLOCK_V": 32})]
    # nodes, classes, warps, stages of the pipeline, most registers of a thread
    tiles = [(128, 256, 8, 3, None), (128, 256, 8, 4, None), (128, 128, 8, 3, 128)]
    # float32 without TF32 needs more registers; small GPUs have less shared memory.
    tiles += [(128, 128, 8, 3, None), (64, 64, 4, 3, None)]
    return [
        triton.Config(
            {"BLOCK_N": n, "BLOCK_V": v},
            num_warps=warps,
            num_stages=stages,
            maxnreg=registers,
        )
        for n, v, warps, stages, registers in tiles
    ]


if triton is not None:
    # Loop bounds are constants: a training run has one V and one J, and the interpreter
    # of Triton 3.4 cannot loop to a run-time bound under NumPy 2.4.

    @triton.autotune(_rest_configs(), key=["V", "J", "K", "PRECISION"])
    @triton.jit(do_not_specialize=["n"])
    def _rest_kernel(
        hidden, weight, bias, ids, rest, n, inverse_temperature,
        V: tl.constexpr, J: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
        BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_J: tl.constexpr,
    ):  # fmt: skip
        """One program: BLOCK_N nodes, all V classes, online log-sum-exp in base 2."""
        LOG2_E: tl.constexpr = 1.4426950408889634
        scale = inverse_temperature * LOG2_E
        node = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        row = tl.minimum(node, n - 1).to(tl.int64)  # past the end: read the last again
        j = tl.arange(0, BLOCK_J)
        # Finite, so that a maximum of -inf never meets another in a difference.
        peak = tl.full((BLOCK_N,), -3.0e38, tl.float32)
        total = tl.zeros((BLOCK_N,), tl.float32)
        for first in range(0, V, BLOCK_V):
            v = first + tl.arange(0, BLOCK_V)
            column = tl.minimum(v, V - 1).to(tl.int64)
            a = hidden + row[:, None] * J + j[None, :]
            b = weight + column[None, :] * J + j[:, None]
            offset = tl.where(v < V, 0.0, -float("inf"))
            if bias is not None:
                offset += tl.load(bias + column).to(tl.float32)
            z = tl.zeros((BLOCK_N, BLOCK_V), tl.float32) + offset[None, :]
            for start in range(0, J, BLOCK_J):
                if J % BLOCK_J == 0:
                    x = tl.load(a + start)
                    w = tl.load(b + start)
                else:
                    x = tl.load(a + start, mask=(start + j < J)[None, :], other=0.0)
                    w = tl.load(b + start, mask=(start + j < J)[:, None], other=0.0)
                z = tl.dot(x, w, z, input_precision=PRECISION)
            # Bit b of word w: class first + 32 w + b is kept. One test for a logit,
            # however many are kept; a class before this tile has a negative word.
            named = tl.zeros((BLOCK_N, BLOCK_V // 32), tl.int32)
            for k in tl.static_range(K):
                place = (tl.load(ids + row * K + k) - first)[:, None]
                here = (place >> 5) == tl.arange(0, BLOCK_V // 32)[None, :]
                named |= tl.where(here, 1 << (place & 31), 0)
            bits = (named[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
            left = tl.reshape(bits, (BLOCK_N, BLOCK_V)) == 0
            z = tl.where(left, z, -float("inf"))
            higher = tl.maximum(peak, tl.max(z, 1) * scale)
            share = tl.exp2(z * scale - higher[:, None])
            total = total * tl.exp2(peak - higher) + tl.sum(share, 1)
            peak = higher
        tl.store(rest + node, (peak + tl.log2(total)) / LOG2_E, mask=node < n)

    @triton.jit(do_not_specialize=["pairs"])
    def _scores_kernel(
        hidden, weight, bias, ids, scores, pairs,
        J: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr,
    ):  # fmt: skip
        """One program: BLOCK_N pairs of a node and a kept class, a dot product each.

        Picking them out of the tiles of `_rest_kernel` would cost K sums per logit.
        """
        pair = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        kept = tl.load(ids + pair, mask=pair < pairs, other=0).to(tl.int64)
        row = tl.minimum(pair, pairs - 1) // K
        j = tl.arange(0, BLOCK_J)
        products = tl.zeros((BLOCK_N, BLOCK_J), tl.float32)
        for start in range(0, J, BLOCK_J):
            inside = (start + j < J)[None, :]
            a = hidden + row[:, None] * J + start + j[None, :]
            b = weight + kept[:, None] * J + start + j[None, :]
            x = tl.load(a, mask=inside, other=0.0).to(tl.float32)
            w = tl.load(b, mask=inside, other=0.0).to(tl.float32)
            products += x * w
        score = tl.sum(products, 1)
        if bias is not None:
            score += tl.load(bias + kept).to(tl.float32)
        tl.store(scores + pair, score, mask=pair < pairs)

    @triton.jit
    def _rest_gradient_kernel(
        logits, ids, rest, coefficient, score_gradient, inverse_temperature,
        V: tl.constexpr, K: tl.constexpr, KEPT: tl.constexpr, BLOCK_V: tl.constexpr,
    ):  # fmt: skip
        """One program: one node. All classes as if of the rest, then the kept ones."""
        LOG2_E: tl.constexpr = 1.4426950408889634
        row = tl.program_id(0).to(tl.int64)
        scale = inverse_temperature * LOG2_E
        log_rest = tl.load(rest + row).to(tl.float32) * LOG2_E
        factor = tl.load(coefficient + row).to(tl.float32)
        for first in range(0, V, BLOCK_V):
            v = first + tl.arange(0, BLOCK_V)
            at = logits + row * V + v
            z = tl.load(at, mask=v < V, other=0.0).to(tl.float32)
            gradient = factor * tl.exp2(z * scale - log_rest)
            tl.store(at, gradient.to(logits.dtype.element_ty), mask=v < V)
        tl.debug_barrier()  # other threads wrote there: the kept ones must come last
        k = tl.arange(0, KEPT)
        kept = tl.load(ids + row * K + k, mask=k < K, other=-1)
        own = tl.load(score_gradient + row * K + k, mask=k < K, other=0.0)
        same = kept[:, None] == kept[None, :]
        gradient = tl.sum(tl.where(same, own.to(tl.float32)[None, :], 0.0), 1)
        at = logits + row * V + kept
        tl.store(at, gradient.to(logits.dtype.element_ty), mask=k < K)
