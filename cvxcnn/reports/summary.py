"""The numbers of a run, as summary.json has them: of each layer, of its block and of its rival trained in torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from ..core.text import brief
from ..drawing.style import LABELS
from ..errors import InputError

__all__ = [
    "SUMMARY_FILE",
    "UNJUDGED",
    "ConvexNumbers",
    "LayerSummary",
    "NonconvexNumbers",
    "Numbers",
    "RunSummary",
    "number",
]

SUMMARY_FILE = "summary.json"
# Trainings whose objective, if they have one, isn't that of the ReLU networks that a bound is of.
UNJUDGED = ("softplus", "kernel")

Self = TypeVar("Self", bound="Numbers")

# Of the values of a field, by its annotation; JSON has floats that are whole as ints.
_TYPES: dict[str, tuple[type, ...]] = {"float | None": (int, float), "int | None": (int,), "str | None": (str,)}
_IN_WORDS = {"float | None": "a number or null", "int | None": "an int or null", "str | None": "a string or null"}


def number(value: float | None) -> float:
    """Return a float, NaN for what is missing."""
    return math.nan if value is None else float(value)


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What was found out about one training of a layer; None is what is unknown, or not finite.

    Attributes
    ----------
    measures : mapping
        By name, what the metrics with a ``measure`` gave, and what versions of the package that know more have written.
    """

    measures: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the object for summary.json: fields in their order, then measures."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "measures"}
        optional = {f.name for f in fields(self) if f.metadata.get("optional")}
        found = {name: value for name, value in own.items() if value is not None or name not in optional}
        return {**found, **self.measures}

    @classmethod
    def from_json(cls: type[Self], content: Mapping[str, Any]) -> Self:
        """Return the numbers of an object in summary.json; those that older versions didn't write are None.

        Raises
        ------
        ValueError
            If it is no object, or a value isn't of its field's type; whoever reads a file says which it was.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"the numbers of a layer must be an object; got {content!r:.60}.")
        known = {f.name: str(f.type) for f in fields(cls) if f.name != "measures"}
        for name, kind in known.items():
            value = content.get(name)
            if value is not None and (not isinstance(value, _TYPES[kind]) or isinstance(value, bool)):
                raise ValueError(f"{name} of a layer must be {_IN_WORDS[kind]}; got {value!r:.60}.")
        measures = {name: value for name, value in content.items() if name not in known}
        return cls(**{name: content.get(name) for name in known}, measures=measures)


@dataclass(frozen=True, kw_only=True)
class ConvexNumbers(Numbers):
    """The numbers of a convex block: Eq. 1 and its bounds, the network, its accuracy.

    Examples
    --------
    >>> numbers = ConvexNumbers.from_json({"objective": 2.0, "n_neurons": 3})
    >>> numbers.objective, numbers.global_bound, numbers.to_json()["n_neurons"]
    (2.0, None, 3)
    """

    objective: float | None = None
    dual_bound: float | None = None
    relative_gap: float | None = None
    status: str | None = None
    solver: str | None = None
    n_neurons: int | None = None
    train_loss: float | None = None
    train_accuracy: float | None = None
    test_accuracy: float | None = None
    seconds: float | None = None
    global_bound: float | None = None
    global_gap: float | None = None
    certificate: str | None = None
    n_searched: int | None = None
    networks: str | None = None
    n_distinct: int | None = None
    expected_unseen: float | None = None


@dataclass(frozen=True, kw_only=True)
class NonconvexNumbers(Numbers):
    """The numbers of the same layer trained in another way, in torch most often.

    Attributes
    ----------
    only_convex_right, only_nonconvex_right : int or None
        Test images that one network alone gets right.
    dense_test_accuracy : float or None
        Of a rival whose neurons feed all cells and outputs, beside one whose neurons feed one; left out without one.
    optimizer, remark : str or None
        How it was trained, left out for Adam; and what there is to say of that, left out where there is nothing.
    """

    objective: float | None = None
    n_neurons: int | None = None
    train_accuracy: float | None = None
    test_accuracy: float | None = None
    seconds: float | None = None
    only_convex_right: int | None = None
    only_nonconvex_right: int | None = None
    dense_test_accuracy: float | None = field(default=None, metadata={"optional": True})
    optimizer: str | None = field(default=None, metadata={"optional": True})
    remark: str | None = field(default=None, metadata={"optional": True})


@dataclass(frozen=True)
class LayerSummary:
    """A finished layer.

    Attributes
    ----------
    layer : int
        From 1.
    reg : float or None
    convex : ConvexNumbers
    nonconvex : NonconvexNumbers or None
        Of the rival whose weights are kept; None if ordinary training was left out.
    rivals : mapping
        Of further rivals, by their names.
    """

    layer: int
    reg: float | None
    convex: ConvexNumbers
    nonconvex: NonconvexNumbers | None = None
    rivals: Mapping[str, NonconvexNumbers] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the object for summary.json."""
        rival = None if self.nonconvex is None else self.nonconvex.to_json()
        found = {"layer": self.layer, "reg": self.reg, "convex": self.convex.to_json(), "nonconvex": rival}
        others = {name: numbers.to_json() for name, numbers in self.rivals.items()}
        return {**found, "rivals": others} if others else found

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LayerSummary:
        """Return the layer of an object in summary.json.

        Raises
        ------
        ValueError
            If it is damaged.
        KeyError
            If it has no number or no convex block.

        Examples
        --------
        >>> LayerSummary.from_json({"layer": 1, "reg": 0.5, "convex": {"objective": 2.0}}).nonconvex is None
        True
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"a layer must be an object; got {content!r:.60}.")
        convex, rival = ConvexNumbers.from_json(content["convex"]), content.get("nonconvex")
        others = content.get("rivals") or {}
        if not isinstance(others, Mapping):
            raise ValueError(f"the rivals of a layer must be an object; got {others!r:.60}.")
        layer, reg = content["layer"], content.get("reg")
        if not isinstance(layer, int) or not (reg is None or isinstance(reg, (int, float))):
            raise ValueError(f"a layer has an int, and reg a number; got {layer!r:.60} and {reg!r:.60}.")
        return cls(
            layer, reg, convex, NonconvexNumbers.from_json(rival) if rival else None,
            {str(name): NonconvexNumbers.from_json(numbers) for name, numbers in others.items()},
        )  # fmt: skip


@dataclass(frozen=True)
class RunSummary:
    """What tables, figures and pages read of a run.

    Attributes
    ----------
    layers : tuple of LayerSummary
        Those that are finished.
    data, settings : mapping
        What summary.json says of the images and of the settings.
    version : str
        Of the package that wrote it.
    command, date, processor : str
        That repeats the run, when it ended, and on what it ran; empty in older files.
    """

    layers: tuple[LayerSummary, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    command: str = ""
    date: str = ""
    processor: str = ""

    @property
    def name(self) -> str:
        """What the images are called, as titles have room for it."""
        return brief(str(self.data.get("name", "data")))

    def rows(self) -> Iterator[tuple[int, str, Numbers]]:
        """Yield (layer, method, numbers) of what was trained, each convex block before its rivals."""
        for entry in self.layers:
            yield entry.layer, "convex", entry.convex
            if entry.nonconvex is not None:
                yield entry.layer, "nonconvex", entry.nonconvex
            for name, numbers in entry.rivals.items():
                yield entry.layer, name, numbers

    def labels(self) -> dict[str, str]:
        """Return what each training of the run is called, by its method, in the order of the rows.

        Examples
        --------
        >>> layer = {"layer": 1, "convex": {}, "nonconvex": {"objective": 2.0}}
        >>> RunSummary.from_json({"layers": [layer]}).labels()
        {'convex': 'convex', 'nonconvex': 'non-convex'}
        >>> RunSummary.from_json({"layers": [{**layer, "rivals": {"sgd": {"objective": 3.0}}}]}).labels()
        {'convex': 'convex', 'nonconvex': 'Adam', 'sgd': 'SGD'}
        """
        found = {method: LABELS.get(method, method) for _, method, _ in self.rows()}
        trained = next((entry.nonconvex.optimizer for entry in self.layers if entry.nonconvex), None)
        # Of several, each by its own name.
        if "nonconvex" in found and (trained or len(found) > 2):
            found["nonconvex"] = LABELS.get(trained or "adam", str(trained))
        return found

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RunSummary:
        """Return what is read of the content of summary.json, of this version's or of an older one's.

        Raises
        ------
        InputError
            If there is no list of layers.
        ValueError
            If a layer is damaged.
        KeyError
            If a layer has no number or no convex block.

        Examples
        --------
        >>> RunSummary.from_json({"layers": [], "data": {"name": "digits"}}).name
        'digits'
        """
        if not isinstance(content, Mapping) or not isinstance(content.get("layers"), list):
            raise InputError(
                'summary must be a dict with a list "layers", as in summary.json; '
                f"got {type(content).__name__} {content!r:.60}."
            )
        layers = tuple(map(LayerSummary.from_json, content["layers"]))
        data, settings = (dict(content.get(name) or {}) for name in ("data", "settings"))
        said = {name: str(content.get(name, "")) for name in ("version", "command", "date", "processor")}
        return cls(layers, data, settings, **said)
