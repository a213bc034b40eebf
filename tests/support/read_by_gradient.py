"""Where on a picture each token of it looks: read from a model's gradients and a picture's colours.

Every pixel of a made picture says where it is: red is its place from left to right, green from top
to bottom. The gradient of what enters the first decoder layer says which pixels of the model's own
input a token is made of. Neither knows of grids, tiles or orders.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

QUERY = "Why?"


def place_picture(width, height):
    """Return a picture whose red says x and whose green says y, as shares of 255; blue is full."""
    x = (np.arange(width) + 0.5) / width
    y = (np.arange(height) + 0.5) / height
    pixels = np.full((height, width, 3), 255.0)
    pixels[..., 0], pixels[..., 1] = 255 * x, 255 * y[:, None]
    return Image.fromarray(pixels.round().astype(np.uint8))


@dataclass(frozen=True)
class Look:
    """What one token looks at: `x`, `y` in 0 … 1, and which tile of the model's input it is of."""

    x: float
    y: float
    tile: int


def looks_of(model, layers, inputs, image_token_id, channels):
    """Return of each element a `Look` for each token of its picture; None where it looks nowhere.

    Args:
        layers: the decoder's layers.
        inputs: of the model, from pictures of `place_picture`, not normalised.
        channels: makes `pixel_values` into [tiles, 3, …].
    """
    pixels = inputs["pixel_values"].float().requires_grad_()
    held = {}

    def keep(module, args, kwargs):
        held["states"] = args[0] if args else kwargs["hidden_states"]
        raise StopIteration

    hook = layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        model(**{**inputs, "pixel_values": pixels})
    except StopIteration:
        pass
    finally:
        hook.remove()
    direction = torch.linspace(-1, 1, held["states"].shape[-1]).sin()
    values = held["states"] @ direction
    of_elements = [
        row[own] for row, own in zip(values, inputs["input_ids"] == image_token_id, strict=True)
    ]
    if len(pixels) == len(of_elements):
        return _side_by_side(of_elements, pixels, channels)
    return [[_looked(value, pixels, channels)[0] for value in own] for own in of_elements]


def _side_by_side(of_elements, pixels, channels):
    """Look at the n-th token of every element at once: elements do not depend on each other."""
    found = [[] for _ in of_elements]
    for number in range(max(map(len, of_elements))):
        those = [element for element, own in enumerate(of_elements) if number < len(own)]
        total = sum(of_elements[element][number] for element in those)
        looks = _looked(total, pixels, channels, one_by_one=True)
        for element in those:
            found[element].append(looks[element])
    return found


def _looked(value, pixels, channels, one_by_one=False):
    """Return the look of a value: at all pixels, or at those of each element."""
    (gradient,) = torch.autograd.grad(value, pixels, retain_graph=True)
    shown = pixels.detach()
    parts = (
        zip(shown.split(1), gradient.split(1), strict=True) if one_by_one else [(shown, gradient)]
    )
    return [_look(channels(part), channels(of_part).abs().sum(dim=1)) for part, of_part in parts]


def _look(shown, weight):
    # Padding is black.
    weight = weight * (shown[:, 2] > 0.9)
    total = weight.sum()
    if float(total) < 1e-12:
        return None
    x, y = (float((shown[:, channel] * weight).sum() / total) for channel in (0, 1))
    return Look(x, y, int(weight.flatten(1).sum(dim=1).argmax()))
