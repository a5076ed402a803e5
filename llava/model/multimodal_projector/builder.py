"""The projector that a config names."""

import re

from torch import nn


def build_vision_projector(config) -> nn.Module:
    """Build the projector [.., mm_hidden_size] -> [.., hidden_size].

    Args:
        config: with `mm_projector_type` ("linear", "mlp2x_gelu", "mlp3x_gelu", ..., "identity"), `mm_hidden_size` and
            `hidden_size`.

    Raises:
        ValueError: for another type.
    """
    kind = getattr(config, "mm_projector_type", "linear")
    if kind == "identity":
        return nn.Identity()
    depth = 1 if kind == "linear" else int((re.fullmatch(r"mlp(\d+)x_gelu", kind) or [0, 0])[1])
    if not depth:
        raise ValueError(f"mm_projector_type: expected linear, mlp2x_gelu (or another depth) or identity, got {kind!r}")
    layers = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers) if depth > 1 else layers[0]
