"""Whether modules are still those that were recorded: a graph reads weights where they lay, and runs no hooks."""

from collections.abc import Iterable
from operator import is_

from torch import Tensor, nn

from .buckets import Uncaptured

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Of modules from these packages what changes a result is weights and mode; others, such as adapters, may hold flags.
PLAIN = ("torch.", "transformers.", "vscan.", "llava.", "qwen.")


class Identity:
    """What a recording of some modules relies on. Asked of the host once a prompt: 0.3 ms of a CPU for 32
    decoder layers.

    Args:
        roots: modules; their own hooks count where `with_root_hooks`.

    Raises:
        Uncaptured: for modules that cannot be recorded, because they are spread, trained, or watched by hooks.
    """

    def __init__(self, roots: Iterable[nn.Module], with_root_hooks: bool):
        roots = list(roots)
        modules = [module for root in roots for module in root.modules()]
        hooked = modules if with_root_hooks else [module for module in modules if not any(module is r for r in roots)]
        self.vars = [vars(module) for module in modules]
        self.hooks = [vars(module)[name] for module in hooked for name in HOOKS]
        self.slots = [
            (vars(module)[kind], name)
            for module in modules
            for kind in ("_modules", "_parameters", "_buffers")
            for name in vars(module)[kind]
        ]
        self.flagged = [module for module in modules if not type(module).__module__.startswith(PLAIN)]
        if self._num_watching():
            raise Uncaptured("a hook watches a module of the model")
        if any("forward" in attributes for attributes in self.vars):
            raise Uncaptured("something replaced the forward of a module: the model is spread or offloaded")
        if any(attributes["training"] for attributes in self.vars):
            raise Uncaptured("the model is in training mode")
        self.there = [owner[name] for owner, name in self.slots]
        self.tensors = [part for part in self.there if isinstance(part, Tensor)]
        self.seen = self._seen()

    def _seen(self) -> tuple:
        return (
            [tensor.data_ptr() for tensor in self.tensors],
            self._num_watching(),
            sum("forward" in attributes for attributes in self.vars),
            sum(attributes["training"] for attributes in self.vars),
            [flags_of(module) for module in self.flagged],
        )

    def _num_watching(self) -> int:
        """Hooks, but for those of transformers, which do nothing where nobody asks for hidden states or attentions."""
        found = (hook for hooks in self.hooks if hooks for hook in hooks.values())
        return sum(not getattr(hook, "__module__", "").startswith("transformers.") for hook in found)

    def holds(self) -> bool:
        """Whether all of it is as it was."""
        there = [owner.get(name) for owner, name in self.slots]
        return all(map(is_, there, self.there)) and self._seen() == self.seen


def flags_of(module: nn.Module) -> dict[str, str]:
    """Plain values that a module holds, as text: of an adapter, whether it is merged, active, and how it is scaled."""
    plain, own = (bool, int, float, str, list, tuple, dict, set), nn.Module().__dict__
    return {name: repr(value) for name, value in vars(module).items() if type(value) in plain and name not in own}
