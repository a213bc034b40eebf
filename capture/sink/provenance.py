"""What decides the values of a capture, as its recipe says it."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from capture.model.load import CaptureModel
from capture.model.transcoders import checkpoints_sha256
from capture.passes.inputs import placeholder_chat, render_prompt
from capture.samples.benchmark import Benchmark
from capture.samples.chats import Chat
from capture.samples.queries import Query
from capture.settings import CaptureSettings
from capture.sink.chunk import extra_row_tensors
from capture.sink.settled import asked_fields, benchmark_fields
from llava_amber_activations.files.checksums import files_sha256
from llava_amber_activations.formats.columns import SOURCE
from llava_amber_activations.formats.layers import LayerWindow
from llava_amber_activations.formats.recipe import Recipe

_VERSIONS_THAT_DECIDE_VALUES = ("transformers", "tokenizers", "numpy", "pillow")
_WEIGHTS_AND_CONFIGS = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")


def make_recipe(
    settings: CaptureSettings,
    model: CaptureModel,
    dtype: str,
    benchmark: Benchmark,
    *,
    weights_sha256: str | None = None,
    reuse_prefix: bool = False,
) -> Recipe:
    """Write down everything that decides the values of a capture.

    Args:
        dtype: what the model computes in.
        benchmark: of the samples, in the order of the capture.
        weights_sha256: of a local model (`local_weights_sha256`).
        reuse_prefix: whether queries on one picture share its prefix.
    """
    n_layers = len(model.decoder.layers)
    LayerWindow(n_layers, settings.n_targets)
    return Recipe(
        **asked_fields(settings, n_layers),
        revision=model.revision,
        weights_sha256=weights_sha256,
        dtype=dtype,
        store_dtype=settings.store_dtype or dtype,
        transcoders_sha256=checkpoints_sha256(settings.transcoders),
        prompt=render_prompt(model.processor, _asked(benchmark.queries, settings.system)),
        n_layers=n_layers,
        hidden_size=model.decoder.hidden_size,
        **benchmark_fields(benchmark),
        image_processor=model.image_processor,
        device=device_names(parameter.device for parameter in model.whole.parameters()),
        reuse_prefix=reuse_prefix,
        sites=model.decoder.sites(settings.x_site),
        extra_columns=(
            *([] if benchmark.sources is None else [SOURCE]),
            *extra_row_tensors(model, settings),
        ),
        # torch's own version says which CUDA it was built for, where its package's does not.
        versions={
            "torch": str(torch.__version__),
            **{name: version(name) for name in _VERSIONS_THAT_DECIDE_VALUES},
        },
    )


def _asked(queries: Sequence[Query], system: str | None) -> Chat:
    """Return the chat whose prompt a recipe shows: with a picture where any sample has one."""
    asked = [query for query in queries if not query.is_raw]
    if not asked:
        return placeholder_chat(is_raw=True, has_picture=False)
    has_picture = any(query.image is not None for query in asked)
    return placeholder_chat(has_picture=has_picture, system=system)


def device_names(devices: Iterable[torch.device]) -> str:
    """Name the GPUs and CPUs among devices, each kind once: what rounds alike has one name."""
    return ", ".join(sorted({_device_name(device) for device in devices}))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    # CPUs of one name may stand in machines that let other instructions through.
    return f"{_cpu_name()} ({torch.backends.cpu.get_cpu_capability()})"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def local_weights_sha256(model: str) -> str | None:
    """Return one checksum of the weights and configs in a model's folder.

    None for a model of the Hub, whose commit says as much. Of the folder itself, not of what lies
    below it.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    paths = {path for pattern in _WEIGHTS_AND_CONFIGS for path in folder.glob(pattern)}
    return files_sha256(folder, (path for path in paths if path.is_file()))
