"""The model that somebody named: whether there is one, and what its config says, without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.parsing.typed_json import parse_json_object

_CONFIG_FILE = "config.json"
_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)

# A config leaves out what is as its class has it (transformers, LlamaConfig).
_LEFT_OUT = {"llama": {"num_hidden_layers": 32, "hidden_size": 4096}}


@dataclass(frozen=True)
class NamedModel:
    """What a model's config says of its language model; None where it does not.

    Attributes:
        n_layers, hidden_size: of the language model.
        image_tokens: tokens that one picture takes in a prompt, at least.
    """

    n_layers: int | None = None
    hidden_size: int | None = None
    image_tokens: int | None = None


def look_up_model(name: str, revision: str | None = None) -> NamedModel:
    """Check that a model's folder is there, or its id known to the Hub, and look at its config.

    A Hub that does not answer is left to the loading, which may find the model in the cache.

    Raises:
        ActivationsError: there is no such folder, or no such model on the Hub.
    """
    folder = Path(name)
    if folder.is_dir():
        config = folder / _CONFIG_FILE
        if not config.is_file():
            raise ActivationsError(
                f"cannot load the model {name}: the folder holds no {_CONFIG_FILE}. Give a folder "
                "that holds a vision-language model and its processor, or a model id of the Hub"
            )
        return _read_config(config)
    if folder.exists() or not _HUB_ID.fullmatch(name):
        raise ActivationsError(
            f"cannot load the model {name}: there is no such folder. Give a folder that holds a "
            "vision-language model and its processor, or a model id of the Hub"
        )
    return _look_up_on_hub(name, revision)


def _look_up_on_hub(name: str, revision: str | None) -> NamedModel:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        config = hf_hub_download(name, _CONFIG_FILE, revision=revision)
    except GatedRepoError:
        raise ActivationsError(
            f"cannot load the model {name}: the Hub gives it to those who have accepted its terms: "
            f"see {constants.ENDPOINT}/{name}, and log in with `hf auth login` or set HF_TOKEN"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ActivationsError(
            f"cannot load the model {name}: there is no such folder, and no such model on the Hub "
            "(or it is private, and you are not logged in: `hf auth login`)"
        ) from None
    except (OSError, HfHubHTTPError):
        return NamedModel()
    return _read_config(Path(config))


def _read_config(path: Path) -> NamedModel:
    try:
        config = parse_json_object(path.read_bytes(), path)
    except OSError:
        return NamedModel()
    text = config.get("text_config", config)
    if not isinstance(text, dict):
        return NamedModel()
    said = {**_LEFT_OUT.get(str(text.get("model_type")), {}), **text}
    return NamedModel(
        n_layers=_number(said.get("num_hidden_layers")),
        hidden_size=_number(said.get("hidden_size")),
        image_tokens=_number(config.get("image_seq_length")),
    )


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
