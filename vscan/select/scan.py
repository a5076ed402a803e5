"""Which tokens stay: the global scan, the local scan, and the two together, on any h x w grid.

Everything is batched over views (images, crops, frames), in fp32, without a device sync: kept counts are plain ints.
Ties are broken in favour of the earlier token in raster order, always.
"""

import torch
from torch import Tensor

from .remembered import remembered

# VScan's window where it divides the grid (6 on LLaVA's 24 x 24), and what it falls back to elsewhere (16 x 16).
FALLBACK_WINDOW = 4


def top(scores: Tensor, num: int) -> Tensor:
    """Indices of the `num` largest scores in descending order, the earlier one first on ties: [..., N] -> [..., num].

    A stable sort, because topk leaves the order of equal scores open, and fp16 attention has many of them.
    """
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :num]


def window_sides(side: int, window: int) -> list[range]:
    """Cut one side of a grid into windows; the remainder joins the last one, a side below `window` is one window."""
    num = max(1, side // window)
    return [range(i * window, side if i == num - 1 else (i + 1) * window) for i in range(num)]


@remembered(maxsize=64)
def window_table(grid: tuple[int, int], window: int, device: torch.device) -> tuple[Tensor, tuple[int, ...]]:
    """The tokens of every window, row-major windows, raster order inside.

    Returns:
        A long table [num_windows, largest size] padded with -1, and the size of each window.
    """
    height, width = grid
    if height % window or width % window:
        window = FALLBACK_WINDOW
    windows = [
        [row * width + column for row in rows for column in columns]
        for rows in window_sides(height, window)
        for columns in window_sides(width, window)
    ]
    largest = max(map(len, windows))
    table = torch.tensor([tokens + [-1] * (largest - len(tokens)) for tokens in windows], device=device)
    return table, tuple(map(len, windows))


def local_scan(scores: Tensor, grid: tuple[int, int], num: int, window: int = 6) -> Tensor:
    """The best tokens of every window: x^l = U_w { x_j in window w : S_j >= tau_w } (VScan, section 4).

    Args:
        scores: [V, N] fp32, N = height * width.
        grid: (height, width) in tokens.
        num: tokens asked for; each window gives num // num_windows of them (floored as published).
        window: side of a window; where it does not divide both sides, windows of 4 are used and remainder rows and
            columns join the last window.

    Returns:
        Long indices [V, K], K <= num, window by window, each by descending score.
    """
    table, sizes = window_table(grid, window, scores.device)
    per_window = num // len(sizes)
    if per_window == 0:
        return scores.new_empty(scores.shape[0], 0, dtype=torch.long)
    in_windows = scores[:, table.clamp(min=0)].masked_fill(table < 0, -torch.inf)  # V W S
    best = top(in_windows, per_window)  # V W per_window
    picked = table.expand(scores.shape[0], -1, -1).gather(-1, best)
    if min(sizes) >= per_window:
        return picked.flatten(1)
    slots = [w * best.shape[-1] + i for w, size in enumerate(sizes) for i in range(min(size, per_window))]
    return picked.flatten(1)[:, slots]


def capped_local_scan(scores: Tensor, grid: tuple[int, int], num: int, window: int = 4) -> Tensor:
    """The best tokens of the whole view, of each window at most ceil(num / num_windows) (VScan on Qwen2.5-VL).

    Args:
        scores: [V, N] fp32, N = height * width.
        grid, window: as in `local_scan`.
        num: tokens to select; fewer come where the windows hold fewer under that cap.

    Returns:
        Long indices [V, K], K <= num, by descending score.
    """
    table, sizes = window_table(grid, window, scores.device)
    cap = -(-num // len(sizes))
    in_windows = scores[:, table.clamp(min=0)].masked_fill(table < 0, -torch.inf)  # V W S
    best = top(in_windows, cap)  # V W cap
    picked = table.expand(scores.shape[0], -1, -1).gather(-1, best).flatten(1)
    # Where a window is smaller than the cap, padding (-1) was picked: it goes to a column that is cut off.
    eligible = torch.full((scores.shape[0], scores.shape[1] + 1), -torch.inf, device=scores.device)
    eligible = eligible.scatter_(1, picked % (scores.shape[1] + 1), 0)[:, :-1]
    return top(scores + eligible, min(num, sum(min(size, cap) for size in sizes)))


def global_scan(scores: Tensor, excluded: Tensor, num: int) -> Tensor:
    """The best tokens of the whole view that are not excluded: x^g = { x_i : S_i >= tau } (VScan, section 4).

    Args:
        scores: [V, N] fp32.
        excluded: [V, K] long indices that are taken already.
        num: tokens to select, at most N - K.

    Returns:
        Long indices [V, num] by descending score.
    """
    return top(scores.scatter(1, excluded, -torch.inf), num)


def scan(
    local_scores: Tensor,
    global_scores: Tensor,
    grid: tuple[int, int],
    num: int,
    window: int = 6,
    global_share: float = 0.5,
    capped: bool = False,
) -> tuple[Tensor, Tensor]:
    """Local scan first, global scan over the rest; what windows floor away goes to the global scan.

    Args:
        local_scores, global_scores: [V, N] fp32, attention that the tokens get in a shallow and in a deep layer.
        num: tokens kept in all, at most N; the budget is met exactly.
        global_share: share of `num` that the global scan asks for.
        capped: the local scan is `capped_local_scan` instead of `local_scan`.

    Returns:
        Local indices [V, K] and global indices [V, num - K], both long.
    """
    # The small addend undoes the rounding of a decimal share: 1 - 0.9 is a little less than 0.1.
    num_local = int(num * (1 - global_share) + 1e-9)
    local = (capped_local_scan if capped else local_scan)(local_scores, grid, num_local, window)
    return local, global_scan(global_scores, local, num - local.shape[1])
