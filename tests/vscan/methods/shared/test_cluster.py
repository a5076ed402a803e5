"""Clusters by density peaks, by hand where ties decide; SparseVLM's tests compare them with a slow loop."""

import math
from unittest.mock import patch

import torch
from helpers import close
from hypothesis import given, settings
from hypothesis import strategies as st

from vscan.methods.shared import cluster
from vscan.methods.shared.cluster import cluster_means, density, density_peaks, distances_of

INF = torch.inf


def line(*points: float) -> torch.Tensor:
    """One item whose points lie on a line, where distances are differences."""
    return torch.tensor(points).view(1, -1, 1)


def clustered(points: torch.Tensor, num_clusters: int) -> tuple[list[int], list[int], list[float]]:
    """Centres, clusters and means of one item."""
    num_points = [points.shape[1]]
    centres, clusters = density_peaks(points, num_points, [num_clusters])
    means = cluster_means(points, num_points, clusters, num_clusters)
    return centres[0].tolist(), clusters[0].tolist(), means[0, :, 0].tolist()


def test_distances_are_symmetric_to_the_bit_and_what_points_have_in_common_costs_no_digits():
    points = torch.randn(2, 60, 40, generator=torch.Generator().manual_seed(0))
    shifted = points + 1000 * torch.randn(40, generator=torch.Generator().manual_seed(1))
    expected = (shifted.double().unsqueeze(1) - shifted.double().unsqueeze(2)).norm(dim=-1)
    found = distances_of(shifted)
    assert torch.equal(found, found.transpose(1, 2))
    assert not found.diagonal(dim1=1, dim2=2).any()
    close(found, expected.float(), 1e-6)


def test_density_is_a_mean_over_the_nearest_with_the_point_itself_among_them():
    distances = torch.tensor([[[0, 1, 3], [1, 0, 2], [3, 2, 0]], [[0, 5, INF], [5, 0, INF], [INF, INF, INF]]])
    found = density(distances, [2, 1])
    close(found[0], torch.tensor([-1 / 2, -1 / 2, -4 / 2]).exp(), 1e-6)
    assert found[1, :2].tolist() == [1, 1]
    close(density(distances[:1], [3])[0], torch.tensor([-10 / 3, -5 / 3, -13 / 3]).exp(), 1e-6)


def test_two_groups_are_two_clusters_and_of_equal_densities_the_first_leads():
    # All but the last have a neighbour at 1: equal densities, of which the first is furthest from a denser one.
    centres, clusters, means = clustered(line(0, 1, 2, 10, 11, 13), 2)
    assert (centres, clusters) == ([0, 3], [0, 0, 0, 1, 1, 1])
    close(torch.tensor(means), torch.tensor([1, 34 / 3]), 1e-6)
    centres, clusters, means = clustered(line(13, 11, 10, 2, 1, 0), 2)
    assert (centres, clusters) == ([1, 3], [0, 0, 0, 1, 1, 1])
    close(torch.tensor(means), torch.tensor([34 / 3, 1]), 1e-6)


def test_one_cluster_is_the_mean_of_all_around_the_first():
    centres, clusters, means = clustered(line(4, 1, 9), 1)
    assert (centres, clusters) == ([0], [0, 0, 0])
    assert means == [torch.tensor(14 / (3 + 1e-6)).item()]  # as published


def test_clusters_are_numbered_by_peaks_and_a_point_between_two_centres_goes_to_the_first():
    # Peaks: 9, 1 and 1 times exp(-1/2), 3 exp(-9/2), 4 exp(-8): far from all others is not enough.
    assert clustered(line(0, 1, 2, 5, 9), 2)[:2] == ([0, 1], [0, 1, 1, 1, 1])
    assert clustered(line(0, 4, 2), 2)[:2] == ([0, 1], [0, 1, 0])


def test_twins_are_centres_of_clusters_of_their_own():
    points = torch.ones(1, 4, 3)
    assert clustered(points, 3)[:2] == ([0, 1, 2], [0, 1, 2, 0])
    assert clustered(points, 4)[:2] == ([0, 1, 2, 3], [0, 1, 2, 3])


def test_distances_are_divided_by_the_root_of_the_width():
    points = torch.zeros(1, 2, 4)
    points[0, 1] = 3.0  # at 6, divided by 2
    seen = []

    def watched(distances: torch.Tensor, num_neighbours: list[int]) -> torch.Tensor:
        seen.append(distances)
        return density(distances, num_neighbours)

    with patch.object(cluster, "density", watched):
        density_peaks(points, [2], [2])
    assert seen[0].tolist() == [[[0, 3], [3, 0]]]
    assert math.isclose(density(seen[0], [2])[0, 0], math.exp(-4.5), rel_tol=1e-6)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=st.data(), batch=st.integers(1, 4), width=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_a_batch_equals_its_items_alone_whatever_lies_behind_them(data, batch, width, seed):
    num_points = data.draw(st.lists(st.integers(0, 30), min_size=batch, max_size=batch).filter(any))
    num_clusters = [data.draw(st.integers(min(num, 1), num)) for num in num_points]
    points = torch.randn(batch, max(num_points), width, generator=torch.Generator().manual_seed(seed))
    for item, num in enumerate(num_points):
        points[item, num:] = torch.nan
    centres, clusters = density_peaks(points, num_points, num_clusters)
    means = cluster_means(points, num_points, clusters, max(num_clusters))
    assert centres.shape == (batch, max(num_clusters))
    for item, (num, parts) in enumerate(zip(num_points, num_clusters, strict=True)):
        assert not means[item, parts:].any()
        if num:
            alone = points[item : item + 1, :num]
            centres_alone, clusters_alone = density_peaks(alone, [num], [parts])
            assert torch.equal(centres[item, :parts], centres_alone[0])
            assert torch.equal(clusters[item, :num], clusters_alone[0])
            assert sorted(set(clusters_alone[0].tolist())) == list(range(parts))
            close(means[item, :parts], cluster_means(alone, [num], clusters_alone, parts)[0], 1e-6)


def test_halves_are_averaged_in_full_precision():
    points = torch.full((1, 3000, 2), 1.0009765625, dtype=torch.float16)  # a sum in halves would stop at 2048
    means = cluster_means(points, [3000], torch.zeros(1, 3000, dtype=torch.long), 1)
    assert means.dtype == torch.float32
    close(means, torch.full((1, 1, 2), 1.0009765625), 1e-6)


def test_nothing_is_read():
    points = torch.empty(2, 40, 8, device="meta")
    centres, clusters = density_peaks(points, [40, 7], [5, 1])
    assert (centres.shape, clusters.shape) == ((2, 5), (2, 40))
    assert cluster_means(points, [40, 7], clusters, 5).shape == (2, 5, 8)
