"""Loading a LLaVA-type model with its processor, ready to be tapped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from capture.model.body import without_head
from capture.model.decoder import Decoder
from capture.model.norms import find_norms
from capture.model.structure.probe import probe
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.dtypes import torch_dtype
from llava_amber_activations.vectors.norms import Norms

# A tokenizer without a limit says 10³⁰.
_NO_LIMIT = 10**9


@dataclass(frozen=True)
class CaptureModel:
    """A model that has been loaded and checked.

    Attributes:
        whole: the model with its head, for generating responses.
        body: the model without its language-model head, whose logits nobody needs.
        processor: makes token ids and pixels from text and pictures.
        decoder: where the taps go.
        image_token_id: id of the tokens that the picture's patches take the place of.
        device: where inputs go.
        revision: commit of the model on the Hub, or None for a folder.
        norms: the norms that feed the MLPs; None where they are of no kind that is known.
    """

    whole: Any
    body: nn.Module
    processor: Any
    decoder: Decoder
    image_token_id: int
    device: torch.device
    revision: str | None
    norms: Norms | None = None

    def on_device(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Move a batch to the model's device, and its pixels to the model's dtype."""
        dtype = next(self.body.parameters()).dtype
        return {
            name: value.to(self.device, dtype if value.is_floating_point() else value.dtype)
            for name, value in inputs.items()
        }

    @property
    def pad_token_id(self) -> int:
        """Token that fills the shorter prompts of a batch, as the processor pads them."""
        pad: int = self.processor.tokenizer.pad_token_id
        return pad

    @property
    def context(self) -> int | None:
        """Most tokens that the language model was made for; None where nothing says so."""
        limit: int | None = getattr(
            self.whole.config.get_text_config(), "max_position_embeddings", None
        )
        limit = limit or self.processor.tokenizer.model_max_length
        return limit if limit is not None and limit < _NO_LIMIT else None

    @property
    def image_processor(self) -> str:
        """Class name of what makes the pixels."""
        return type(self.processor.image_processor).__name__


def default_dtype(device: torch.device) -> str:
    """float16 on a GPU, float32 on a CPU, which has no fast half precision."""
    return "float32" if device.type == "cpu" else "float16"


def load_model(
    name: str,
    *,
    dtype: str,
    device: torch.device,
    revision: str | None = None,
    device_map: str | None = None,
    shown: bool = True,
) -> CaptureModel:
    """Load `name` (a Hub id or a folder) and check that it can be captured.

    Args:
        device_map: "auto" deals the layers out to every device that this process sees, for a model
            that no single one holds; `device` is then where the first of them is.
        shown: whether this process says how long it takes.

    Raises:
        ActivationsError: it cannot be loaded, has no chat template, or its layers do not pass
            `capture.model.structure`.
    """
    with Progress(f"load {name}", shown=shown):
        processor, model = _from_pretrained(name, dtype, revision, device_map)
        return prepare_model(model, processor, None if device_map else device)


def _from_pretrained(
    name: str, dtype: str, revision: str | None, device_map: str | None
) -> tuple[Any, Any]:
    """Load the processor and the model of `name`, as they are.

    Raises:
        ActivationsError: either cannot be loaded.
    """
    try:
        processor = AutoProcessor.from_pretrained(name, revision=revision)
        model = AutoModelForImageTextToText.from_pretrained(
            name,
            revision=revision,
            dtype=torch_dtype(dtype),
            attn_implementation="sdpa",
            device_map=device_map,
        )
    except (OSError, ValueError, KeyError) as error:
        if constants.HF_HUB_OFFLINE and not Path(name).is_dir():
            raise ActivationsError(
                f"cannot load the model {name}: HF_HUB_OFFLINE is set, and the cache of this "
                f"machine ({constants.HF_HUB_CACHE}) does not hold it whole. Where there is a "
                f"connection, run `hf download {name}` with the same HF_HOME"
            ) from None
        reason = " ".join(str(error).split())
        raise ActivationsError(
            f"cannot load the model {name}: {reason}. Give a folder that holds a vision-language "
            "model and its processor, or a model id of the Hub"
        ) from None
    return processor, model


def prepare_model(model: Any, processor: Any, device: torch.device | None) -> CaptureModel:
    """Check a loaded model and move it to `device`; None leaves it where it is.

    Raises:
        ActivationsError: as `load_model`.
    """
    kind = type(model).__name__
    if not getattr(processor, "chat_template", None):
        raise ActivationsError(f"the processor of {kind} has no chat template to make prompts with")
    image_token_id = _image_token_id(model.config, processor)
    if image_token_id is None:
        raise ActivationsError(
            f"the config of {kind} names no image token: is it a LLaVA-type model?"
        )
    model.eval()
    if device is None:
        device = model.get_input_embeddings().weight.device
    else:
        model.to(device)
    body = without_head(model)
    proven = probe(body, processor, image_token_id, device)
    norms = find_norms(proven.decoder, proven.seen)
    revision = getattr(model.config, "_commit_hash", None)
    return CaptureModel(
        model, body, processor, proven.decoder, image_token_id, device, revision, norms
    )


def _image_token_id(config: Any, processor: Any) -> int | None:
    """Return the id of the pictures' tokens, under any name that transformers gives it."""
    ids = [getattr(config, name, None) for name in ("image_token_id", "image_token_index")]
    # The processor may be another model's: what it says is asked of models that read pictures.
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        ids.append(getattr(processor, "image_token_id", None))
    return next((token for token in ids if isinstance(token, int)), None)
