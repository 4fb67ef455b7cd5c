"""Of which networks the bounds of a run are, and what that says, in words."""

from __future__ import annotations

from collections.abc import Iterator

from ..activations import get_activation
from ..errors import InputError
from ..penalties import get_penalty
from ..pricing.certificate import NETWORKS, beyond
from .summary import ConvexNumbers, RunSummary

__all__ = ["bound_heading", "bound_notes", "bounded_networks", "bounded_words"]

_KINDS = {
    "proved": "proved: {}, with any number of neurons, are at or above the bound of their layer.",
    "searched": (
        "searched: {}, with any number of neurons, are at or above the bound of their layer, if the search met the "
        "worst direction: evidence, not proof."
    ),
}
# Of summaries that don't say which.
_SOME_NETWORKS = "all networks of the kind that is trained"


def bounded_networks(summary: RunSummary, convex: ConvexNumbers) -> str | None:
    """Return of which networks the bound of a layer is: a key of ``certificate.NETWORKS``.

    Parameters
    ----------
    summary : RunSummary
    convex : ConvexNumbers
        Of the layer.

    Returns
    -------
    str or None
        From the settings where the layer doesn't say, as in the runs of older versions; None where they don't either.

    Examples
    --------
    >>> settings = {"penalty": "group", "activation": "relu", "pool_cells": 2}
    >>> older = RunSummary(settings=settings, data={"n_classes": 10})
    >>> bounded_networks(older, ConvexNumbers()), bounded_networks(RunSummary(), ConvexNumbers())
    ('separate', None)
    """
    if convex.networks in NETWORKS:
        return convex.networks
    try:
        settings, outputs = summary.settings, int(summary.data["n_classes"])
        pairs = int(settings["pool_cells"]) ** 2 * outputs
        return get_activation(settings["activation"]).networks_of(get_penalty(settings["penalty"]).separable, pairs)
    except (KeyError, TypeError, ValueError, InputError):
        return None


def bounded_words(networks: str | None) -> str:
    """Return the words of ``certificate.NETWORKS``, or those for networks that aren't known."""
    return NETWORKS[networks] if networks else _SOME_NETWORKS


def _certified(summary: RunSummary) -> Iterator[tuple[str, str | None]]:
    """Yield (kind, networks) of each bound over more than a layer's own gates."""
    for entry in summary.layers:
        if entry.convex.certificate in _KINDS:
            yield entry.convex.certificate, bounded_networks(summary, entry.convex)


def bound_heading(summary: RunSummary) -> str:
    """Return "bound over" and the networks that all bounds are of; of several, each note says which."""
    found = {networks for _, networks in _certified(summary)}
    return f"Bound over {bounded_words(found.pop())}" if len(found) == 1 else "Bound over networks"


def bound_notes(summary: RunSummary) -> list[str]:
    """Return what each kind of bound in a summary says: of which networks, how it is known, what is beyond it.

    Examples
    --------
    >>> convex = {"certificate": "proved", "networks": "all"}
    >>> bound_notes(RunSummary.from_json({"layers": [{"layer": 1, "convex": convex}]}))
    ['proved: all networks, with any number of neurons, are at or above the bound of their layer.']
    """
    found = dict.fromkeys(sorted(_certified(summary), key=lambda pair: list(_KINDS).index(pair[0])))
    notes = [_KINDS[kind].format(bounded_words(networks)) for kind, networks in found]
    others = dict.fromkeys(beyond(networks) for _, networks in found)
    notes += [f"{other[0].upper()}{other[1:]}." for other in others if other]
    if any("softplus" in entry.rivals for entry in summary.layers):
        notes.append("softplus: its objective is that of softplus neurons; no bound here says anything of it.")
    return notes
