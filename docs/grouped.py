"""A griffe extension: parameters that a docstring names together keep their own defaults and annotations.

numpydoc lets one entry describe several parameters, ``reg, gap : float``; griffe gives all of them those of the first.
"""

from __future__ import annotations

from typing import Any

from griffe import Class, DocstringSectionParameters, Extension, Function, Module, Object


class GroupedParameters(Extension):
    """Correct each docstring once its package is loaded, and dataclasses have their parameters."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Go through all members of a package."""
        self.correct(pkg)

    def correct(self, obj: Object) -> None:
        """Correct a member, and those in it."""
        if isinstance(obj, (Class, Function)) and obj.docstring is not None:
            given = {parameter.name: parameter for parameter in obj.parameters}
            for section in obj.docstring.parsed:
                if isinstance(section, DocstringSectionParameters):
                    for described in section.value:
                        if described.name in given:
                            own = given[described.name]
                            described.default = own.default
                            # The same object: it was taken from a signature, not written in the docstring.
                            if any(described.annotation is other.annotation for other in given.values()):
                                described.annotation = own.annotation
        for member in obj.members.values():
            if isinstance(member, Object):
                self.correct(member)
