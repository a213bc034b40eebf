"""What the capture says of one family, and whether the vectors that it takes are the right ones."""

from __future__ import annotations

import os
import traceback
import warnings
from dataclasses import dataclass, replace

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from family.by_hand import LLAMA, NAMES, hear, worst
from family.exceptions import NO_IMAGE_TOKEN, NOTES
from family.inputs import Trial, of_text, with_pictures
from family.small import small_config
from torch import nn
from transformers import AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from capture.model.body import without_head
from capture.model.decoder import Decoder
from capture.model.structure.prove import CannotRunError, prove_decoder
from capture.model.taps import Taps
from llava_amber_activations.errors import ActivationsError

CHECKED, ACCEPTED, REFUSED, NOT_TRIED = "checked", "accepted", "refused", "not tried"
# More than this is a default that the rules made no smaller.
MOST_PARAMETERS = 60_000_000
# Largest relative error that rounding explains in float32, through four layers.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Verdict:
    """What came of a family.

    Attributes:
        family: its model type.
        architecture: the class.
        outcome: CHECKED, ACCEPTED, REFUSED or NOT_TRIED.
        worst: largest relative error of a vector, in float32, where values were compared.
        x, mlp_out: which module's input and output they are.
        why: why it was refused, or not tried, or its values not compared.
        note: what of its config was given, for it to be built.
    """

    family: str
    architecture: str
    outcome: str
    worst: float | None = None
    x: str = ""
    mlp_out: str = ""
    why: str = ""
    note: str = ""


def families() -> dict[str, str]:
    """Return the class of every family that this transformers loads as image-text-to-text."""
    names = AutoModelForImageTextToText._model_mapping._model_mapping
    return {family: each if isinstance(each, str) else each[0] for family, each in names.items()}


def lost(family: str, why: str) -> Verdict:
    """Return the verdict of a family whose process came to no end."""
    return Verdict(family, families()[family], NOT_TRIED, why=why, note=NOTES.get(family, ""))


def judge(family: str) -> Verdict:
    """Build a family's small model, have its decoder found, and compare what the taps gather."""
    found = _of_decoder(family)
    if family not in NO_IMAGE_TOKEN or found.outcome not in (CHECKED, ACCEPTED):
        return found
    why = "its config and processor name no image token"
    if found.outcome == CHECKED:
        why += f"; of its decoder, values were checked ({found.worst:.1e})"
    return replace(found, outcome=REFUSED, why=why)


def _of_decoder(family: str) -> Verdict:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start = lost(family, "")
    try:
        config = small_config(family)
        model = _built(config)
    except Exception as error:  # whatever it is, it is said
        return replace(start, why=f"no model is made of its config: {_said(error)}")
    body = without_head(model)
    try:
        decoder, trial = _proven(body, of_text(family), with_pictures(family, config))
        sites = decoder.sites("resid_mid")
    except ActivationsError as error:
        return replace(start, outcome=REFUSED, why=str(error))
    except Exception as error:
        return replace(start, outcome=REFUSED, why=f"an error of the search: {_said(error)}")
    accepted = replace(start, outcome=ACCEPTED, x=sites["x"], mlp_out=sites["mlp_out"])
    try:
        error_of = _compared(family, model, body, decoder, trial)
    except Exception as error:
        return replace(accepted, why=f"no values by hand: {_said(error)}")
    if error_of > ROUNDING:
        return replace(accepted, worst=error_of, why="its values are not those taken by hand")
    return replace(accepted, outcome=CHECKED, worst=error_of)


def _built(config: object) -> nn.Module:
    """Return a random model of a config, whose vectors' scales and shifts matter too."""
    kind = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"the small config still has {size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 and parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def _proven(body: nn.Module, of_words: Trial, pictured: Trial | None) -> tuple[Decoder, Trial]:
    """Find the decoder on a text, or else with a picture, as `capture` does."""
    try:
        return prove_decoder(body, next(of_words.alone())).decoder, of_words
    except ActivationsError as error:
        if pictured is None:
            raise
        without = error
    try:
        return prove_decoder(body, next(pictured.alone())).decoder, pictured
    except CannotRunError as error:
        raise without from error


@torch.inference_mode()
def _compared(
    family: str, model: nn.Module, body: nn.Module, decoder: Decoder, trial: Trial
) -> float:
    """Return the largest error of a vector that the taps gather in a batch with padding."""
    batch = trial.batch()
    rows = batch["attention_mask"].flatten().nonzero().flatten()
    with (
        Taps(decoder, "resid_mid", torch.float32) as taps,
        taps.aimed(rows, torch.device("cpu")) as gathered,
    ):
        body(**batch, use_cache=False)
    names, n_layers = NAMES.get(family, LLAMA), len(decoder.layers)
    errors = []
    lengths = [len(text) for text in trial.texts]
    for found, alone in zip(gathered.split(lengths, dim=1), trial.alone(), strict=True):
        heard = hear(model, names, alone)
        errors.append(heard.gap)
        for layer in range(n_layers):
            errors.append(worst(found[layer], heard.x[layer]))
            errors.append(worst(found[n_layers + layer], heard.mlp_out[layer]))
    return max(errors)


def _said(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return f"{text} ({last.filename.rpartition('/')[2]}, line {last.lineno})"
