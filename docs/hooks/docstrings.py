"""A public name without a docstring fails the build: mkdocstrings would show an empty place."""

from __future__ import annotations

from collections.abc import Iterator

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

PACKAGE = "llava_amber_activations"


def on_pre_build(config: MkDocsConfig) -> None:
    """Refuse to build where a public name has no docstring."""
    loader = griffe.GriffeLoader(search_paths=["."])
    package = loader.load(PACKAGE)
    loader.resolve_aliases()
    if missing := sorted(undocumented(package)):
        raise PluginError(f"no docstring: {', '.join(missing)}")


def undocumented(package: griffe.Object) -> Iterator[str]:
    """Yield the paths of a package's public names, and of their public members, without one."""
    for name in package.exports or ():
        target = package[str(name)]
        yield from _undocumented(target.final_target if target.is_alias else target)


def _undocumented(item: griffe.Object | griffe.Alias) -> Iterator[str]:
    if not item.docstring:
        yield item.path
    if item.is_class:
        for name, member in item.members.items():
            # Fields are told of in their class's docstring.
            if not name.startswith("_") and (member.is_function or "property" in member.labels):
                yield from _undocumented(member)
