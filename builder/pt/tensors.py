"""Tensors of `.pt` files of either layout: written, and taken as a dataset can hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.whole import written_whole
from llava_amber_activations.formats.arrow_vectors import Vectors
from llava_amber_activations.formats.dtypes import DType, torch_dtype
from llava_amber_activations.parsing.safe_pt import floats_of

# Names of files are asked for before torch is loaded, which takes a second.
if TYPE_CHECKING:
    import torch

# How a file is loaded: `load_pt`, which checks all of it first, or `map_pt`, if it was before.
Load = Callable[[Path], Any]


def save_pt(path: Path, value: Any) -> None:
    """Write a `.pt` file, whole or not at all."""
    import torch

    with written_whole(path) as partial, partial.open("wb") as file:
        torch.save(value, file)


def as_dtype(vectors: Vectors, dtype: torch.dtype, where: str) -> torch.Tensor:
    """Return vectors as a tensor of some dtype: themselves where they are of it and writable.

    Args:
        vectors: float16 or float32.
        where: they belong; the beginning of the error's sentence.

    Raises:
        ActivationsError: a number is beyond the largest of the dtype.
    """
    import torch

    from llava_amber_activations.vectors.finite import finite_rows

    # What Arrow holds is not to be written to.
    found = torch.from_numpy(vectors if vectors.flags.writeable else vectors.copy())
    if found.dtype == dtype:
        return found
    rounded = found.to(dtype)
    if dtype != torch.float32 and not finite_rows(rounded).all():
        raise ActivationsError(
            f"{where} has numbers beyond the largest of {str(dtype).removeprefix('torch.')}, "
            f"{torch.finfo(dtype).max:g}: give --dtype float32"
        )
    return rounded


def changed_meanwhile(path: Path) -> ActivationsError:
    """Return the error that says that a file is no longer as it was looked at."""
    return ActivationsError(
        f"{path} changed while it was imported: import again when nothing writes to it"
    )


def exact_floats(value: Any, path: Path, key: str) -> torch.Tensor:
    """Return a value of a loaded file as a tensor that a dataset holds without a change.

    Raises:
        ActivationsError: it is no tensor, empty, or of another dtype.
    """
    tensor = floats_of(value, path, key)
    if tensor.dtype not in map(torch_dtype, get_args(DType)):
        raise ActivationsError(
            f"{key} of {path} is {tensor.dtype}: a dataset holds float16, bfloat16 or float32; "
            "convert it first"
        )
    return tensor


def check_finite(tensor: torch.Tensor, path: Path, key: str, first_sample: int) -> None:
    """Check that a tensor of a file is finite, which reads all of it.

    Args:
        tensor: [samples, …].
        first_sample: number of the file's first sample in the folder.

    Raises:
        ActivationsError: it is not; the message names the first sample that is not.
    """
    from llava_amber_activations.vectors.finite import finite_rows

    finite = finite_rows(tensor)
    if not finite.all():
        row = int(finite.logical_not().nonzero()[0])
        raise ActivationsError(
            f"{key} of {path} has values that are not finite, in sample {first_sample + row} of "
            "the folder: they were lost before this file was written"
        )


def common_dtype(dtypes: Iterable[torch.dtype]) -> str:
    """Return the dtype that holds tensors of some dtypes exactly: theirs, where it is one."""
    found = set(dtypes)
    names = [name for name in get_args(DType) if {torch_dtype(name)} == found]
    return names[0] if names else "float32"


def equal_values(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors have one shape and the same values, be their dtypes two."""
    import torch

    if first.dtype != second.dtype:
        # Exact: float32 holds every value of the other two.
        return torch.equal(first.float(), second.float())
    return torch.equal(first, second)
