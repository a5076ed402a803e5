"""Five questions about VScan's choices, each a list of cells that differ in one thing. Imports no torch.

layer      before which decoder layer to prune, at an equal average
split      which share of the tokens the global scan selects
shallow    from which vision layer the local scan reads
merge      merging or dropping
positions  renumbered or original positions after a reduction
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from vscan.config import ReductionConfig
from vscan.eval.cells import Cell
from vscan.flops import average_tokens, layer_schedule, tokens_per_layer, vscan_schedule

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
BUDGETS = (192, 128, 64)
DENSE, STAGE_1, TWO_STAGES = "dense", "stage 1 alone", "two stages"


@dataclass(frozen=True)
class Depths:
    """What a sweep has to know of a model.

    Args:
        num_layers, num_vision_layers: of the decoder and of the vision tower.
        num_tokens: visual tokens of a view.
        global_layer: VScan's deep vision layer on this model, 0 or more.
        prune_layer: the decoder layer before which it prunes.
    """

    num_layers: int
    num_vision_layers: int
    num_tokens: int
    global_layer: int
    prune_layer: int


@dataclass(frozen=True)
class Sweep:
    """Cells that differ in one thing.

    Args:
        axis: what is swept, with its unit.
        series: {name: [(swept value, cell), ...]}, a line of the picture each.
        references: {name: cell} that do not depend on the swept value; the dense model is the first.
        pairs: {series: the series that it is compared with, question by question}.
    """

    axis: str
    series: dict[str, list[tuple[float, Cell]]]
    references: dict[str, Cell]
    pairs: dict[str, str] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        """All of them, references first."""
        return [*self.references.values(), *(cell for line in self.series.values() for _, cell in line)]


def vscan_cell(label: str, tokens: int, depths: Depths, positions: str = "auto", **fields) -> Cell:
    """VScan's two stages at an average of `tokens`; ValueError where that cannot be met."""
    visual_tokens, layers = vscan_schedule(tokens, depths.num_layers, depths.prune_layer)
    return Cell(label, ReductionConfig("vscan", visual_tokens, layers, positions, fields), tokens)


def stage_1_cell(label: str, tokens: int, **fields) -> Cell:
    """VScan's first stage alone."""
    return Cell(label, ReductionConfig("vscan", tokens, fields=fields), tokens)


def layer_sweep(depths: Depths, tokens: int) -> Sweep:
    line = []
    for layer in range(1, depths.num_layers):
        early, late = layer_schedule(tokens, depths.num_layers, layer)
        average = average_tokens(tokens_per_layer(depths.num_layers, early, ((layer, late),)))
        config = ReductionConfig("vscan", early, ((layer, late),))
        line.append((layer, Cell(f"pruned before layer {layer}", config, average)))
    references = {DENSE: Cell(DENSE), STAGE_1: stage_1_cell(STAGE_1, tokens)}
    return Sweep("decoder layer before which tokens are pruned", {TWO_STAGES: line}, references)


def split_sweep(depths: Depths, tokens: int) -> Sweep:
    series = {
        TWO_STAGES: [(s, vscan_cell(f"global share {s:g}", tokens, depths, global_share=s)) for s in SHARES],
        STAGE_1: [(s, stage_1_cell(f"{STAGE_1}, global share {s:g}", tokens, global_share=s)) for s in SHARES],
    }
    return Sweep("share of the tokens that the global scan selects", series, {DENSE: Cell(DENSE)})


def shallow_sweep(depths: Depths, tokens: int) -> Sweep:
    layers = range(depths.global_layer)
    line = [(layer, vscan_cell(f"local layer {layer}", tokens, depths, local_layer=layer)) for layer in layers]
    axis = f"vision layer of the local scan (the global one reads layer {depths.global_layer})"
    return Sweep(axis, {TWO_STAGES: line}, {DENSE: Cell(DENSE)})


def merge_sweep(depths: Depths, tokens: int) -> Sweep:
    series = {
        name: [(budget, vscan_cell(name, budget, depths, merge=merge)) for budget in BUDGETS]
        for name, merge in (("merged", True), ("dropped", False))
    }
    axis = "visual tokens per image, average over the decoder's layers"
    return Sweep(axis, series, {DENSE: Cell(DENSE)}, {"merged": "dropped"})


def positions_sweep(depths: Depths, tokens: int) -> Sweep:
    series: dict[str, list[tuple[float, Cell]]] = {}
    for positions in ("compact", "original"):
        name = f"vscan {positions}"
        series[name] = [(budget, vscan_cell(name, budget, depths, positions)) for budget in BUDGETS]
        name = f"random {positions}"
        series[name] = [
            (budget, Cell(name, ReductionConfig("random", budget, positions=positions), budget)) for budget in BUDGETS
        ]
    pairs = {f"{method} compact": f"{method} original" for method in ("vscan", "random")}
    axis = "visual tokens per image, average over the decoder's layers"
    return Sweep(axis, series, {DENSE: Cell(DENSE)}, pairs)


SWEEPS: dict[str, Callable[[Depths, int], Sweep]] = {
    "layer": layer_sweep,
    "split": split_sweep,
    "shallow": shallow_sweep,
    "merge": merge_sweep,
    "positions": positions_sweep,
}


def build(name: str, depths: Depths, tokens: int) -> Sweep:
    """A sweep that fits a model.

    Args:
        name: a key of SWEEPS.
        tokens: the average of those that sweep something else; `merge` and `positions` have their own three.

    Raises:
        ValueError: for an average that cannot be met, or cells that need more tokens than a view has.
    """
    sweep = SWEEPS[name](depths, tokens)
    if not all(sweep.series.values()):
        raise ValueError(f"{name}: expected a model with something to sweep, got {depths}")
    for cell in sweep.cells:
        if cell.reduction is not None and cell.reduction.visual_tokens > depths.num_tokens:
            raise ValueError(
                f"{name}: {cell.name} tokens needs {cell.reduction.visual_tokens} tokens after the vision encoder, "
                f"but a view of this model has {depths.num_tokens}"
            )
    return sweep
