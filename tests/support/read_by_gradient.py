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
    is_patch = inputs["input_ids"] == image_token_id
    direction = torch.linspace(-1, 1, held["states"].shape[-1]).sin()
    values = (held["states"] @ direction)[is_patch]
    shown = channels(pixels.detach())
    found = []
    for value in values:
        (gradient,) = torch.autograd.grad(value, pixels, retain_graph=True)
        found.append(_look(shown, channels(gradient).abs().sum(dim=1)))
    counts = is_patch.sum(dim=1).tolist()
    looks = iter(found)
    return [[next(looks) for _ in range(count)] for count in counts]


def _look(shown, weight):
    # Padding is black.
    weight = weight * (shown[:, 2] > 0.9)
    total = weight.sum()
    if float(total) < 1e-12:
        return None
    x, y = (float((shown[:, channel] * weight).sum() / total) for channel in (0, 1))
    return Look(x, y, int(weight.flatten(1).sum(dim=1).argmax()))
