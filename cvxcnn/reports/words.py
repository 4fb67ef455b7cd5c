"""What a run shows, in plain words: which method won at each layer, by how much, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from scipy.stats import binomtest

from ..activations import ACTIVATIONS, Relu
from ..pricing.certificate import beyond, maxima
from ..program.program import relative_gap
from .bounds import bounded_words
from .summary import UNJUDGED, ConvexNumbers, LayerSummary, NonconvexNumbers, RunSummary, number

__all__ = ["accuracy_words", "capital", "certainty", "comparison", "headline", "percent", "wilson"]

# A difference in right answers is called one if chance alone gives it less often than this.
LEVEL = 0.05
CONVEX, ORDINARY = "convex training", "ordinary training"
# Rivals of the block beside the first one.
IN_WORDS = {
    "adam": "Adam",
    "sgd": "SGD",
    "two-phase": "two-phase training",
    "softplus": "two-phase training of softplus neurons, whose objective isn't that of ReLUs,",
    "kernel": "the infinitely wide network, by kernel ridge regression,",
}


def percent(share: float) -> str:
    """Return a share as per cents with two digits that count.

    Examples
    --------
    >>> percent(0.00689), percent(0.1234), percent(0.998), percent(2.5), percent(0.0)
    ('0.69 %', '12 %', '100 %', '250 %', '0 %')
    """
    value = 100 * share
    return f"{value:.0f} %" if abs(value) >= 99.5 else f"{value:.2g} %"


def at_most(share: float) -> str:
    """Return a share as per cents, rounded up to three digits that count, and to 0.001 % at least.

    Examples
    --------
    >>> at_most(0.0043101), at_most(0.0), at_most(0.1201), at_most(0.00431)
    ('0.432 %', '0.001 %', '12.1 %', '0.431 %')
    """
    value = max(100 * share, 1e-3)
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    # A hair of rounding isn't rounded up to a whole unit.
    return f"{math.ceil(value / unit - 1e-9) * unit:.3g} %" if value < 999 else f"{math.ceil(value)} %"


def _accuracy(share: float | None) -> str:
    return f"{100 * number(share):.1f} %" if math.isfinite(number(share)) else "unknown"


def _gain(entry: LayerSummary) -> float:
    """Return by which share the convex objective is below the other one; 0 where both read the same, NaN for none."""
    convex, rival = number(entry.convex.objective), number(entry.nonconvex.objective if entry.nonconvex else None)
    if format(convex, ".6g") == format(rival, ".6g"):
        return 0.0
    return (rival - convex) / abs(rival) if math.isfinite(convex - rival) and rival else math.nan


def comparable(summary: RunSummary) -> bool:
    """Return whether both methods minimise the same objective: a gated network's isn't that of a ReLU network."""
    return ACTIVATIONS.get(str(summary.settings.get("activation")), Relu).ordinary


def kind(summary: RunSummary) -> str:
    """Return what the networks of a run are called, by their activation."""
    return str(summary.settings.get("activation", "relu")).removesuffix("_relu")


def chance_of(rival: NonconvexNumbers) -> float:
    """Return how often chance would split the images that one method alone gets right at least as unevenly."""
    first, second = rival.only_convex_right, rival.only_nonconvex_right
    if first is None or second is None:
        return math.nan
    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def wilson(share: float | None, count: int | None) -> tuple[float, float] | None:
    """Return the 95 % interval of a share of ``count`` images (Wilson 1927, JASA 22); None without either.

    Examples
    --------
    >>> low, high = wilson(0.9, 100)
    >>> round(low, 4), round(high, 4)
    (0.8256, 0.9448)
    """
    if not count or not 0 <= number(share) <= 1:
        return None
    found = binomtest(round(number(share) * count), count).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def accuracy_words(share: float | None, count: int | None) -> str:
    """Return an accuracy in per cent, with its interval where the images are counted.

    Examples
    --------
    >>> accuracy_words(0.9, 100), accuracy_words(0.9, None), accuracy_words(None, 100)
    ('90.0 % [82.6, 94.5]', '90.0 %', 'unknown')
    """
    interval = wilson(share, count)
    between = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return f"{_accuracy(share)}{between}"


def headline(summary: RunSummary) -> str:
    """Return the result of a run in two to four sentences: who won, by how much, and how sure that is.

    Parameters
    ----------
    summary : RunSummary
    """
    layers = summary.layers
    both = [(entry, entry.nonconvex) for entry in layers if entry.nonconvex]
    if not both:
        alone = (
            f"{_count(len(layers), 'layer')} trained by convex optimisation, without ordinary training beside it, so "
            "there is no winner to name."
        )
        return " ".join(filter(None, (alone, _possible(layers), _last_accuracy(summary))))
    said = []
    if comparable(summary):
        said.append(_winners({entry.layer: _gain(entry) for entry, _ in both}))
    else:
        said.append(f"The two objectives are of different networks ({kind(summary)} and ReLU), so they name no winner.")
    said += [_possible(layers), _accuracies(both), _last_accuracy(summary)]
    return " ".join(filter(None, said))


def _possible(layers: Sequence[LayerSummary]) -> str:
    """Return how far below the convex objectives the best possible ones can be, where a bound says; or ""."""
    rooms = {
        entry.layer: relative_gap(number(entry.convex.objective), number(entry.convex.global_bound))
        for entry in layers
        if entry.convex.certificate in ("proved", "searched")
    }
    rooms = {layer: max(0.0, room) for layer, room in rooms.items() if math.isfinite(room)}
    if not rooms:
        return ""
    refuted = any(
        number(entry.nonconvex.objective) < number(entry.convex.global_bound) * (1 - 1e-9)
        for entry in layers
        if entry.nonconvex and entry.layer in rooms
    )
    low, high = at_most(min(rooms.values())), at_most(max(rooms.values()))
    kinds = {entry.convex.certificate for entry in layers if entry.layer in rooms}
    how = "proved" if kinds == {"proved"} else "searched, not proved"
    span = low if low == high else f"{low} to {high}"
    text = f"The best that such a layer could reach is at most {span} below the convex objective ({how})."
    return text + (" A layer's bound doesn't hold: see below." if refuted else "")


def _last_accuracy(summary: RunSummary) -> str:
    """Return the test accuracy of the last layer with its interval; "" where the images aren't counted."""
    count, last = summary.data.get("n_test"), summary.layers[-1]
    if not isinstance(count, int) or not math.isfinite(number(last.convex.test_accuracy)):
        return ""
    ours = accuracy_words(last.convex.test_accuracy, count)
    where = "" if len(summary.layers) == 1 else f" after layer {last.layer}"
    if last.nonconvex is None or last.nonconvex.test_accuracy is None:
        return f"It is right on {ours} of {count} test images{where}."
    theirs = accuracy_words(last.nonconvex.test_accuracy, count)
    if ours == theirs:
        return f"Both are right on {ours} of {count} test images{where}."
    return f"Right on {count} test images{where}: {ours} convex, {theirs} ordinary."


def _winners(gains: Mapping[int, float]) -> str:
    convex = {layer: gain for layer, gain in gains.items() if gain > 0}
    rival = {layer: -gain for layer, gain in gains.items() if gain < 0}
    count = len(gains)
    if not convex and not rival:
        return f"Both methods reached the same training objective at {_at(gains, count)}."
    parts = [
        f"{name} reached the lower training objective at {_at(won, count)}, by {_span(won.values())}"
        for name, won in ((CONVEX, convex), (ORDINARY, rival))
        if won
    ]
    return capital("; ".join(parts) + ".")


def _at(layers: Collection[int], count: int) -> str:
    names = [str(layer) for layer in layers]
    if count == 1:
        return "its only layer"
    if len(names) == count:
        return "both layers" if count == 2 else f"all {count} layers"
    return f"layer {names[0]}" if len(names) == 1 else f"layers {', '.join(names[:-1])} and {names[-1]}"


def _span(shares: Collection[float]) -> str:
    low, high = percent(min(shares)), percent(max(shares))
    return low if low == high else f"{low} to {high}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _accuracies(both: Sequence[tuple[LayerSummary, NonconvexNumbers]]) -> str:
    signs = {entry.layer: number(entry.convex.test_accuracy) - number(rival.test_accuracy) for entry, rival in both}
    if not any(signs.values()):
        return f"Test accuracy is the same at {_at(signs, len(signs))}."
    parts = [
        f"{words} at {_at(where, len(signs))}"
        for words, where in (
            ("higher with convex training", [layer for layer, sign in signs.items() if sign > 0]),
            ("higher with ordinary training", [layer for layer, sign in signs.items() if sign < 0]),
            ("the same", [layer for layer, sign in signs.items() if sign == 0]),
        )
        if where
    ]
    chances = {entry.layer: chance_of(rival) for entry, rival in both}
    beyond = [layer for layer, chance in chances.items() if chance < LEVEL]
    text = f"Test accuracy is {' and '.join(parts)}"
    if any(math.isnan(chance) for chance in chances.values()):
        return f"{text}."
    if not beyond:
        return f"{text}; the differences are no more than chance gives."
    return f"{text}; the difference is more than chance gives at {_at(beyond, len(signs))}."


def comparison(entry: LayerSummary, n_test: int, same_objective: bool = True, kind: str = "gated") -> list[str]:
    """Return sentences on a layer: the objectives, then the accuracies.

    Parameters
    ----------
    entry : LayerSummary
    n_test : int
        Test images.
    same_objective : bool
        See ``comparable``.
    kind : str
        What the networks of another objective are called.
    """
    convex, rival = entry.convex, entry.nonconvex
    reached = format(number(convex.objective), ".6g")
    others = [sentence for name, numbers in entry.rivals.items() for sentence in _other(name, numbers)]
    if rival is None:
        return [
            f"Convex training reached the training objective {reached} and {_accuracy(convex.test_accuracy)} "
            "test accuracy. Ordinary training was left out.",
            *others,
        ]
    other = format(number(rival.objective), ".6g")
    gain = _gain(entry)
    if not same_objective:
        first = f"Training objective {reached} for the {kind} network, {other} for the ReLU network: not comparable."
    elif not gain or math.isnan(gain):
        first = f"Both reached the training objective {reached}." if gain == 0 else "An objective is missing."
    else:
        winner, values = (CONVEX, (reached, other)) if gain > 0 else (ORDINARY, (other, reached))
        first = (
            f"{winner.capitalize()} won in the training objective: {percent(abs(gain))} lower "
            f"({values[0]} against {values[1]})."
        )
    return [first, _test_sentence(convex, rival, n_test), *_remark(rival), *others]


def _other(name: str, rival: NonconvexNumbers) -> list[str]:
    """Return what a further rival reached."""
    accuracy = f"{_accuracy(rival.test_accuracy)} test accuracy"
    objective = number(rival.objective)
    reached = f"the training objective {objective:.6g} and {accuracy}" if math.isfinite(objective) else accuracy
    return [f"{capital(IN_WORDS.get(name, name))} reached {reached}.", *_remark(rival)]


def capital(text: str) -> str:
    """Return a text with a capital letter; of what follows none changes, as of "SGD"."""
    return f"{text[0].upper()}{text[1:]}"


def _remark(rival: NonconvexNumbers) -> list[str]:
    return [rival.remark] if rival.remark else []


def _test_sentence(convex: ConvexNumbers, rival: NonconvexNumbers, n_test: int) -> str:
    scores = [number(part.test_accuracy) for part in (convex, rival)]
    if not all(map(math.isfinite, scores)):
        return "Test accuracy is missing."
    difference = round((scores[0] - scores[1]) * n_test)
    if not difference:
        text = f"Test accuracy: both {_accuracy(scores[0])} of {n_test} images."
    else:
        winner = CONVEX if difference > 0 else ORDINARY
        text = (
            f"Test accuracy: {_accuracy(scores[0])} with convex, {_accuracy(scores[1])} with ordinary training; "
            f"{winner} is right on {_count(abs(difference), 'image')} more of {n_test}."
        )
    chance, first, second = chance_of(rival), rival.only_convex_right, rival.only_nonconvex_right
    if first is None or second is None:
        return text
    if not first + second:
        return f"{text} They are the same images."
    text += f" Right with one method alone: {first} with convex, {second} with ordinary training"
    if not difference:
        return f"{text}."
    often = f"in {percent(chance)} of comparisons" if chance < 0.995 else "every time"
    verdict = "more than chance gives" if chance < LEVEL else "neither is shown to be better"
    return f"{text}. Chance alone gives as large a difference {often}: {verdict}."


def certainty(entry: LayerSummary, same_objective: bool = True, networks: str | None = None) -> list[str]:
    """Return sentences on how far from optimal a layer is, and how sure that is: no more than its certificate says.

    Parameters
    ----------
    entry : LayerSummary
    same_objective : bool
        Whether the ordinary network's objective can be held against the bound.
    networks : str, optional
        Of which networks the bound is, a key of ``certificate.NETWORKS``; that of the entry if it says.
    """
    convex = entry.convex
    objective, bound = number(convex.objective), number(convex.global_bound)
    own = _lower(objective, number(convex.dual_bound))
    said = [f"Over its own gates, the best network is {own} (proved)." if own else "No bound over its own gates."]
    room, kind = _lower(objective, bound), convex.certificate
    if not room or kind not in ("proved", "searched"):
        return [*said, "It was not compared with other gates: networks with other gates may be better by any amount."]
    networks = networks or convex.networks
    best = f"Of {bounded_words(networks)}, with any number of neurons, the best is {room}"
    if kind == "proved":
        said.append(f"{best} (proved).")
    else:
        said.append(
            f"{best}, unless a direction that the search from {convex.n_searched} starts missed is worse than "
            "those it found (searched: evidence, not proof)."
        )
        met = maxima(convex.n_distinct or 0, number(convex.expected_unseen))
        if met:
            said.append(f"The search met {met}.")
    other = beyond(networks)
    if other:
        said.append(f"{capital(other)}.")
    if same_objective:
        named = {ORDINARY: entry.nonconvex}
        named |= {IN_WORDS.get(name, name): numbers for name, numbers in entry.rivals.items() if name not in UNJUDGED}
        for name, rival in named.items():
            # A rival is trained as a network of the same kind.
            such = f"{name} of such a network" if other else name
            said += _by_the_bound(such, number(rival.objective if rival else None), bound, kind)
    return said


def _by_the_bound(name: str, value: float, bound: float, kind: str) -> list[str]:
    """Return how far from the best another training is by the same bound; nothing if it has no objective."""
    if not math.isfinite(value):
        return []
    if value >= bound - 1e-9 * abs(bound):
        return [f"By the same bound, {name} is at most {_above(value, bound)} the best."]
    below = f"{capital(name)} ended below this bound,"
    if kind == "searched":
        return [f"{below} so the search missed a worse direction, and the bound doesn't hold."]
    return [f"{below} which contradicts the proof. Please report it."]


def _lower(objective: float, bound: float) -> str:
    """Return how much lower than the objective anything above the bound can be, in words; "" for no bound."""
    if not math.isfinite(objective - bound):
        return ""
    return f"at most {at_most(max(0.0, relative_gap(objective, bound)))} lower"


def _above(objective: float, bound: float) -> str:
    return f"{at_most(max(0.0, relative_gap(objective, bound)))} of its objective above"
