"""Every mention of a public name links to its page.

What stands in backticks, in the pages and in docstrings, is looked up among the public names of the library. It may be
bare, called or qualified: ``flash_attention``, ``flash_attention(q, k, v)``, ``masks.CausalMask()``, ``Mask.reach``. A bare name that is
also an argument of a public function, such as ``lengths``, stays what it is. The names of ``attention_xp.interop`` are those of
other people: a page on their code means ours, all other pages theirs.
"""

import inspect
import re
from functools import cache
from importlib import import_module
from typing import Any

from docutils import nodes
from interop_functions import functions
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

import attention_xp

SUBMODULES = ("biases", "cache", "distributed", "linear", "masks", "viz")
INTEROP = ("flash_attn", "flax", "jax", "keras", "onnx", "torch", "transformers")
THEIRS = re.compile(r"\b(?:Py)?[Tt]orch(?:'s|,)\s+$")  # before a name of torch, which is also one of ours
MENTION = re.compile(r"(?P<name>[A-Za-z_][\w.]*)(?P<call>\(.*\))?", re.DOTALL)


def public_names() -> dict[str, Any]:
    """Return the public objects outside of ``attention_xp.interop`` by their full names."""
    own = (name for name in attention_xp.__all__ if not name.startswith("__"))
    found = {f"attention_xp.{name}": getattr(attention_xp, name) for name in own}
    in_submodules: dict[str, Any] = {}
    for submodule in sorted(SUBMODULES, key=lambda name: name == "biases"):  # its `Region` is that of masks
        module = import_module(f"attention_xp.{submodule}")
        new = {name: getattr(module, name) for name in module.__all__}
        listed = [id(value) for value in in_submodules.values()]
        in_submodules |= {f"{module.__name__}.{name}": v for name, v in new.items() if id(v) not in listed}
    return found | in_submodules


def arguments(names: dict[str, Any]) -> set[str]:
    """Return the names of all arguments of public functions."""
    own = [inspect.signature(value).parameters for value in names.values() if inspect.isfunction(value)]
    return {name for found in own for name in found}


@cache
def arguments_of_others(framework: str) -> set[str]:
    """Return the names of all arguments of what ``attention_xp.interop`` has for a framework."""
    found = [function.args for function in functions(framework).values()]
    return {argument.arg for each in found for argument in (*each.args, *each.kwonlyargs)}


class LinkedNames(SphinxTransform):
    """Makes references of literals that are public names."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:  # noqa: ARG002
        """Replace what stands in backticks outside of titles, signatures and references."""
        for literal in list(self.document.findall(nodes.literal)):
            if not _is_inside(literal, nodes.title, nodes.reference, pending_xref):
                self.link(literal)

    def link(self, literal: nodes.literal) -> None:
        """Put a literal into a reference where its text is a public name that is not the subject of the page."""
        match = MENTION.fullmatch(literal.astext())
        target = match and self.target(match["name"], is_called=match["call"] is not None)
        if target and not _is_of_torch(literal) and not self.env.docname.endswith(f"/{target}"):
            reference = pending_xref(
                "", refdomain="py", reftype="obj", reftarget=target, refexplicit=True, refwarn=True,
                refdoc=self.env.docname,
            )  # fmt: skip
            literal.replace_self(reference)
            reference += literal

    def target(self, name: str, *, is_called: bool) -> str | None:
        """Return the full name of a public object, or ``None``."""
        known, ambiguous = self.app.linked_names  # type: ignore[attr-defined]
        bare = name.removeprefix("attention_xp.").rpartition(".")[2]
        page = self.env.docname.removeprefix("interop/")
        others_arguments = arguments_of_others(page) if page in INTEROP else set()
        if "." not in name and not is_called and bare in ambiguous | others_arguments:
            return None
        fitting = [full for full in known.get(bare, ()) if full == name or full.endswith(f".{name}")]
        owner, _, member = name.rpartition(".")
        if not fitting and hasattr(self.app.linked_classes.get(owner), member):  # type: ignore[attr-defined]
            return f"{self.target(owner, is_called=True)}.{member}"
        own = [full for full in fitting if full.startswith(f"attention_xp.interop.{page}.")]
        others = [full for full in fitting if "." in name or not full.startswith("attention_xp.interop.")]
        return (own or (others if len(others) == 1 else []) or [None])[0]


def _is_of_torch(literal: nodes.literal) -> bool:
    """Whether the words before a name say that torch's own is meant."""
    before = literal.parent[: literal.parent.index(literal)]
    return bool(before) and THEIRS.search(before[-1].astext()) is not None


def _is_inside(node: nodes.Node, *kinds: type[nodes.Node]) -> bool:
    while node.parent is not None:
        node = node.parent
        if isinstance(node, kinds):
            return True
    return False


def setup(app: Sphinx) -> dict[str, Any]:
    """Find the names once, and add the transform."""
    names = public_names()
    full_names = [*names, *interop_names()]
    known: dict[str, list[str]] = {}
    for full in full_names:
        known.setdefault(full.rpartition(".")[2], []).append(full)
    app.linked_names = known, arguments(names)  # type: ignore[attr-defined]
    classes = {name.rpartition(".")[2]: value for name, value in names.items() if isinstance(value, type)}
    app.linked_classes = classes  # type: ignore[attr-defined]
    app.add_transform(LinkedNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def interop_names() -> list[str]:
    """Return the full names of what speaks for other frameworks, which need not be installed."""
    return [f"attention_xp.interop.{framework}.{name}" for framework in INTEROP for name in functions(framework)]
