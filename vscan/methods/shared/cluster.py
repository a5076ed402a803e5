"""Clusters of tokens by density peaks: around what has many close to it, far from what has more."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...select.remembered import numbers_on
from ...select.scan import top


def per_item(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Numbers of the host, one an item, on a device: long [B, 1]. Where all are the same, nothing is copied to it, and
    the host does not wait for the device."""
    if len(set(numbers)) == 1:
        return torch.full((len(numbers), 1), numbers[0], device=device)
    return numbers_on(tuple(numbers), device).unsqueeze(1)


def distances_of(points: Tensor) -> Tensor:
    """||x_i - x_j|| in fp32 by one matrix product: [B, Q, D] -> [B, Q, Q], exactly symmetric and 0 to oneself.

    Each other's nearest neighbours have equal densities, which rounding must not tell apart.
    """
    points = points.float()
    points = points - points[:, :1]  # what all have in common would cancel out with the digits behind it
    products = points @ points.transpose(1, 2)
    squares = products.diagonal(dim1=1, dim2=2)
    sums = products + products.transpose(1, 2)
    return (squares.unsqueeze(1) + squares.unsqueeze(2) - sums).clamp(min=0).sqrt()


def density(distances: Tensor, num_neighbours: Sequence[int]) -> Tensor:
    """rho_i = exp(-mean d_ij^2) over the nearest neighbours j of i, itself among them.

    Args:
        distances: [B, Q, Q] fp32, infinite where there is no point.
        num_neighbours: per item, no more than it has points.

    Returns:
        [B, Q] fp32.
    """
    nearest = distances.topk(max(num_neighbours), dim=-1, largest=False).values
    num = per_item(num_neighbours, distances.device)
    counts = (torch.arange(nearest.shape[-1], device=distances.device) < num).unsqueeze(1)
    return (-torch.where(counts, nearest.square(), 0).sum(dim=-1) / num.clamp(min=1)).exp()


def density_peaks(points: Tensor, num_points: Sequence[int], num_clusters: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Cluster points around those of high density that lie far from all of higher density.

    d_ij = ||x_i - x_j|| / sqrt(D); delta_i = min d_ij over all j with rho_j > rho_i, and the largest distance of the
    item where there are none. Centres are the points of largest delta * rho, clusters are numbered in that order, and
    a point goes to its nearest centre. Of points of equal density the earlier one counts as the denser.

    Args:
        points: [B, Q, D]; those of an item come first.
        num_points: per item, at most Q.
        num_clusters: per item, at most its points; each density is a mean over as many neighbours.

    Returns:
        Centres, long [B, C], of which an item's own come first, C the largest number; and the cluster of every point,
        long [B, Q]. What lies behind an item's own means nothing.
    """
    batch, width, size = points.shape
    index = torch.arange(width, device=points.device)
    there = index < per_item(num_points, points.device)
    between = there.unsqueeze(1) & there.unsqueeze(2)
    distances = distances_of(points) / size**0.5
    farthest = distances.masked_fill(~between, 0).amax(dim=(1, 2)).unsqueeze(1)
    distances = distances.masked_fill(~between, torch.inf)

    rho = density(distances, num_clusters)
    mine, others = rho.unsqueeze(2), rho.unsqueeze(1)
    denser = (others > mine) | ((others == mine) & (index < index.unsqueeze(1)))
    delta = distances.masked_fill(~denser, torch.inf).amin(dim=-1)
    peaks = torch.where(delta.isinf(), farthest, delta) * rho  # 0, and last, where there is no point
    centres = top(peaks, max(num_clusters))

    number = torch.arange(centres.shape[1], device=points.device)
    is_centre = number < per_item(num_clusters, points.device)
    to_centres = distances.gather(2, centres.unsqueeze(1).expand(-1, width, -1))
    clusters = to_centres.masked_fill(~is_centre.unsqueeze(1), torch.inf).argmin(dim=-1)
    # A centre is in its own cluster, also where a twin of it is another centre.
    clusters = torch.cat((clusters, clusters.new_zeros(batch, 1)), dim=1)
    return centres, clusters.scatter(1, centres.where(is_centre, width), number.expand(batch, -1))[:, :-1]


def cluster_means(points: Tensor, num_points: Sequence[int], clusters: Tensor, num_clusters: int) -> Tensor:
    """The mean of every cluster, as published: sum / (size + 1e-6), in fp32.

    Args:
        points: [B, Q, D]; those of an item come first.
        num_points: per item, at most Q.
        clusters: long [B, Q], in [0, num_clusters).

    Returns:
        [B, num_clusters, D] fp32; zeros where a cluster is empty.
    """
    index = torch.arange(points.shape[1], device=points.device)
    there = index < per_item(num_points, points.device)
    number = torch.arange(num_clusters, device=points.device).unsqueeze(1)
    members = ((clusters.unsqueeze(1) == number) & there.unsqueeze(1)).float()  # B C Q
    return members @ points.float().masked_fill(~there.unsqueeze(-1), 0) / (members.sum(dim=-1, keepdim=True) + 1e-6)
