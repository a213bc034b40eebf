"""A model without its language-model head, whose logits nobody needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class _HeadReachedError(Exception):
    """The pass has come to the head."""


class WithoutHead(nn.Module):
    """A model whose class does not keep its head apart: its passes end where the head begins.

    A pass that fills a cache, which is to be returned, goes on to its end.

    Args:
        whole: the model.
        head: its head, a module of it.
    """

    def __init__(self, whole: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.whole = whole
        self._head = [head]  # in a list: it is no module of this one's a second time

    @property
    def config(self) -> Any:
        """The model's config."""
        return self.whole.config

    @property
    def name(self) -> str:
        """Class name of the model."""
        return type(self.whole).__name__

    def forward(self, *, use_cache: bool = False, **inputs: torch.Tensor) -> Any:
        """Run the model; return None where the head was reached and no cache is wanted."""
        if use_cache:
            return self.whole(**inputs, use_cache=True)

        def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
            raise _HeadReachedError

        handle = self._head[0].register_forward_pre_hook(stop)
        try:
            return self.whole(**inputs, use_cache=False)
        except _HeadReachedError:
            return None
        finally:
            handle.remove()


def without_head(model: nn.Module) -> nn.Module:
    """Return the part of a transformers model that ends before its language-model head."""
    whole: Any = model
    body: nn.Module = whole.base_model
    if body is not model:
        return body
    head: nn.Module | None = whole.get_output_embeddings()
    return model if head is None else WithoutHead(model, head)
