"""At which sites the `x` of a source can be read: the one that it was captured at, or `mlp_in`.

Where it was captured at `resid_mid` and the folder holds the model's norms, `mlp_in` is computed
from it as it is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.dataset_folder import NORMS_FILE, REMEDY
from llava_amber_activations.formats.recipe import X_SITES, Recipe
from llava_amber_activations.parsing.checked_values import check_choice
from llava_amber_activations.sources.source import Source

if TYPE_CHECKING:
    from llava_amber_activations.vectors.norms import Norm, Norms

STREAM, MLP_INPUT = "resid_mid", "mlp_in"


def readable_sites(recipe: Recipe, *, has_norms: bool) -> tuple[str, ...]:
    """Return the sites that `x` can be read at, its own first; none where that is not known.

    Args:
        recipe: of a store or a dataset.
        has_norms: whether its norms lie beside it.
    """
    own = recipe.x_site
    if own is None:
        return ()
    return (STREAM, MLP_INPUT) if own == STREAM and has_norms else (own,)


def is_computed(source: Source, x_site: str | None) -> bool:
    """Whether `x` at a site is computed from what the source holds; None is its own site.

    Raises:
        ActivationsError: `x` cannot be had there.
    """
    check_choice("x_site", x_site, X_SITES)
    manifest = source.manifest
    own = manifest.recipe.x_site
    if x_site is None or x_site == own:
        return False
    if x_site in readable_sites(manifest.recipe, has_norms=NORMS_FILE in manifest.files):
        return True
    if own is None:
        why = "does not say at which site its x was read"
    elif (own, x_site) != (STREAM, MLP_INPUT):
        why = f"holds x at {own}, from which {x_site} cannot be computed"
    else:
        why = (
            f"holds x at {own}, and no {NORMS_FILE}, by which mlp_in is computed from it: it was "
            "captured before there was such a file, or of a model whose norm is of no known kind, "
            "or imported"
        )
    raise ActivationsError(f"{source.name} {why}. x_site={x_site} needs a capture of it")


def read_norms(source: Source) -> Norms:
    """Read the norms of a source whose manifest names them.

    Raises:
        ActivationsError: they are missing or damaged, or not of its recipe's model, or the Hub
            does not answer.
    """
    # The module loads torch, which asking what can be had does not need.
    from llava_amber_activations.store.norms_file import norms_of

    where = f"{NORMS_FILE} of {source.name}"
    try:
        content = source.read_bytes(NORMS_FILE)
    except FileNotFoundError:
        raise ActivationsError(f"{where} is missing: {REMEDY}") from None
    return norms_of(content, source.manifest.recipe, where, REMEDY)


def site_norms(source: Source, x_site: str | None) -> Norms | None:
    """Return the norms by which `x` at a site is computed; None where it is read as it is.

    Raises:
        ActivationsError: `x` cannot be had there, or as `read_norms`.
    """
    return read_norms(source) if is_computed(source, x_site) else None


def site_norm(source: Source, layer: int, x_site: str | None) -> Norm | None:
    """Return the norm by which a layer's `x` at a site is computed, as `site_norms` does."""
    norms = site_norms(source, x_site)
    return None if norms is None else norms.layer(layer)
