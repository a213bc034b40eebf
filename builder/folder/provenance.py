"""What a dataset was made from, as its card may say it: model and benchmark, licences, citations.

Known are those whose terms were looked up; of all others the card says that it does not know.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava_amber_activations.formats.recipe import HF_PREFIX, Recipe, RecipeSource

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# https://huggingface.co/docs/huggingface_hub/guides/manage-cache
_CACHED_MODEL = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)[/\\]snapshots[/\\]")


@dataclass(frozen=True)
class Origin:
    """A model or a benchmark.

    Attributes:
        name: as people call it.
        licence: sentences about its terms.
        citation: BibTeX, or None where none is known.
        tags: of the card.
        is_known: whether its terms were looked up.
    """

    name: str
    licence: str
    citation: str | None = None
    tags: tuple[str, ...] = ()
    is_known: bool = False


_LLAVA_LICENCE = (
    "The weights of LLaVA-1.5 are under the Llama 2 Community License "
    "(https://ai.meta.com/llama/license/)."
)
_LLAVA_CITATION = """\
@inproceedings{liu2024improved,
  title     = {Improved Baselines with Visual Instruction Tuning},
  author    = {Liu, Haotian and Li, Chunyuan and Li, Yuheng and Lee, Yong Jae},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition
               (CVPR)},
  year      = {2024}
}"""
_LLAVA_TAGS = ("llava", "vision-language-model")

# By the model's id on the Hub, in lower case.
_MODELS = {
    f"llava-hf/llava-1.5-{size}-hf": Origin(
        f"llava-1.5-{size}-hf", _LLAVA_LICENCE, _LLAVA_CITATION, _LLAVA_TAGS, is_known=True
    )
    for size in ("7b", "13b")
}

# SHA-256 of AMBER's query files (https://github.com/junyangwang0410/AMBER, data/query). Their
# contents tell them, not their names: anyone may call a file query_all.json.
_AMBER_FILES = {
    "127680ae61f7d4a92d2f7f07a8deaec07f0689b194d2c7c0f41ead7bd2c5bcf5": "query_all.json",
    "1502887ac020f4bb7ea564af4e37bddcb030d61b78490d00f9da492a2307abb8": "query_discriminative.json",
    "35c0fe71290789c5eb198e9a3f5732533bcb35f1d963b57539aab5d1b41dd827": (
        "query_discriminative-attribute.json"
    ),
    "657cce3b3ccd02303998d7d27d1ce06bd210a7a55aa6c888b1b86d5a9dfd9849": (
        "query_discriminative-existence.json"
    ),
    "36e08860653a1562acb657c250604c3d4e26f8a5f99a376fd53c67f9242be20f": (
        "query_discriminative-relation.json"
    ),
    "b7e4c36596126ee36d2c3922638b7fa98743c26efda78fea2315f4425258d087": "query_generative.json",
}
_AMBER = Origin(
    "AMBER",
    "AMBER's queries and annotations are under Apache 2.0; its pictures come from other "
    "collections, whose terms hold for them.",
    """\
@article{wang2023amber,
  title   = {AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation},
  author  = {Wang, Junyang and Wang, Yuhang and Xu, Guohai and Zhang, Jing and Gu, Yukai and
             Jia, Haitao and Wang, Jiaqi and Xu, Haiyang and Yan, Ming and Zhang, Ji and
             Sang, Jitao},
  journal = {arXiv preprint arXiv:2311.07397},
  year    = {2023}
}""",
    ("amber",),
    is_known=True,
)


def public_recipe(recipe: Recipe) -> Recipe:
    """Return a recipe as it may be published: a path of somebody's machine becomes its last name.

    A model in the cache of `huggingface_hub` gets its id on the Hub back. What has no path in it
    stays as it is.
    """
    sources = None
    benchmark = _public_benchmark(recipe)
    if recipe.sources is not None:
        names = [_public_benchmark(_alone(recipe, source)) or "" for source in recipe.sources]
        sources = tuple(
            dataclasses.replace(source, benchmark=name)
            for source, name in zip(recipe.sources, names, strict=True)
        )
        benchmark = " + ".join(names)
    return dataclasses.replace(
        recipe, model=_public_model(recipe), benchmark=benchmark, sources=sources
    )


def _alone(recipe: Recipe, source: RecipeSource) -> Recipe:
    """Return the recipe of a capture of one of several sources."""
    return dataclasses.replace(
        recipe,
        benchmark=source.benchmark,
        queries_sha256=source.queries_sha256,
        dataset_revision=source.dataset_revision,
        sources=None,
    )


def _public_model(recipe: Recipe) -> str | None:
    model = recipe.model
    if model is None or (recipe.revision is not None and _HUB_ID.fullmatch(model)):
        return model
    cached = _CACHED_MODEL.search(model)
    return f"{cached['owner']}/{cached['name']}" if cached else _last_name(model)


def _public_benchmark(recipe: Recipe) -> str | None:
    benchmark = recipe.benchmark
    if benchmark is None:
        return None
    if not benchmark.startswith(HF_PREFIX):
        return _last_name(benchmark)
    return HF_PREFIX + (_hub_dataset(recipe) or _last_name(benchmark.removeprefix(HF_PREFIX)))


def _last_name(path: str) -> str:
    names = [name for name in re.split(r"[/\\]", path) if name not in ("", ".", "..", "~")]
    return names[-1] if names else "unnamed"


def _hub_dataset(recipe: Recipe) -> str | None:
    """Return the id of the dataset on the Hub that was captured, if it was one."""
    name = (recipe.benchmark or "").removeprefix(HF_PREFIX)
    is_on_hub = recipe.dataset_revision is None or _COMMIT.fullmatch(recipe.dataset_revision)
    return name if is_on_hub and _HUB_ID.fullmatch(name) and name[0] != "." else None


def model_of(recipe: Recipe) -> Origin:
    """Say what the model of a published recipe is."""
    model = recipe.model
    if model is None:
        return Origin("an unknown model", "Which model it is is not known, nor are its terms.")
    name = _last_name(model)
    if recipe.revision is None or not _HUB_ID.fullmatch(model):
        return Origin(
            name, f"The model, `{name}`, was read from a folder. Its licence is not known."
        )
    known = _MODELS.get(model.lower())
    if known is not None:
        return known
    return Origin(
        name,
        f"The model is `{model}`. Its licence is not known here: see "
        f"https://huggingface.co/{model}.",
    )


def benchmarks_of(recipe: Recipe) -> list[Origin]:
    """Say what the queries of a published recipe are, each benchmark once; none if it does not."""
    every = [recipe] if recipe.sources is None else [_alone(recipe, s) for s in recipe.sources]
    found = [origin for origin in map(_benchmark_of, every) if origin is not None]
    return list({origin.name: origin for origin in found}.values())


def said_of_list(name: str, values: Sequence[Any]) -> str:
    """Return what a list of a published recipe's JSON holds, in words."""
    if name == "sources":
        return "; ".join(
            f"{each['name']} ({each['benchmark']}, {each['n_samples']} samples)" for each in values
        )
    return ", ".join(map(str, values)) or "none"


def _benchmark_of(recipe: Recipe) -> Origin | None:
    if recipe.benchmark is None:
        return None
    if recipe.queries_sha256 in _AMBER_FILES:
        return _AMBER
    if recipe.benchmark.startswith(HF_PREFIX):
        name = recipe.benchmark.removeprefix(HF_PREFIX)
        hub = _hub_dataset(recipe)
        where = f": see https://huggingface.co/datasets/{hub}" if hub else ""
        return Origin(
            _last_name(name),
            f"Queries and pictures are from the dataset `{name}`. Its licence is not known "
            f"here{where}.",
        )
    unlike = ""
    if recipe.benchmark in _AMBER_FILES.values():
        unlike = " It has the name of a file of AMBER, and not that file's checksum."
    return Origin(
        recipe.benchmark,
        f"The queries are from a file named `{recipe.benchmark}`.{unlike} Its licence, and that of "
        "the pictures, are not known.",
    )
