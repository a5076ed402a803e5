"""Muon: a step of the same length along every direction of a matrix."""

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
FACTORS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration that Muon was published with


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of matrices [..., M, N] near one (0.7 to 1.2) by Newton and Schulz's iteration."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    result = matrices if wide else matrices.mT
    result = result / (result.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    first, second, third = FACTORS
    for _ in range(steps):
        square = result @ result.mT
        result = first * result + (second * square + third * square @ square) @ result
    return result if wide else result.mT


class Muon(torch.optim.Optimizer):
    """Momentum, then `orthogonalise`, all matrices of one shape at once and in their own precision.

    `torch.optim.Muon` does this one matrix after another in bfloat16, for which many CPUs have no instructions.

    Args:
        matrices: parameters of two dimensions.
        decay: of weights, times the learning rate.
    """

    def __init__(self, matrices: list[nn.Parameter], decay: float):
        super().__init__(matrices, {"lr": 0.0, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                momenta = [
                    self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                    for parameter in parameters
                ]
                for momentum, parameter in zip(momenta, parameters, strict=True):
                    momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                ahead = torch.stack(
                    [
                        parameter.grad.lerp(momentum, MOMENTUM)
                        for momentum, parameter in zip(momenta, parameters, strict=True)
                    ]
                )
                length = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(ahead), strict=True):
                    parameter.mul_(1 - group["lr"] * group["decay"]).sub_(update, alpha=length)
