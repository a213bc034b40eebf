"""The options of `capture`, each with its help, which is its documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from capture.settings import (
    CHUNK_SAMPLES,
    CHUNK_SAMPLES_LAST,
    DEFAULT_MAX_NEW_TOKENS,
    MOST_WORKERS,
    NOT_GIVEN,
    PROMPT_TEMPLATES,
)
from llava_amber_activations.formats import recipe
from llava_amber_activations.formats.dtypes import DType

Model = Annotated[str, typer.Option(help="Model: an id on the Hub, or a folder.")]
Dataset = Annotated[
    list[str],
    typer.Option(
        help='Query file, [{"id": 1, "image": "1.jpg", "query": "…"}, …] or JSON lines of the '
        "same; or hf:NAME, a dataset. An entry without image is a text alone; one may have "
        'messages, turns of {"role", "content"}, in the place of query. Given several times, the '
        "samples are mixed in one store; the options of a dataset are then given once for all, or "
        f"once for each in the same order, {NOT_GIVEN} where one has none."
    ),
]
Weight = Annotated[
    list[float] | None,
    typer.Option(
        help="Share of each of several datasets. As many samples are taken as the shares allow "
        "without taking one twice, each dataset's in its own order, and any beginning of them has "
        "about these shares.",
        show_default="all samples of each",
    ),
]
OutputDir = Annotated[
    Path, typer.Option(help="Capture store to begin, to go on with, or to finish.")
]
ImageDir = Annotated[
    list[str] | None,
    typer.Option(
        help="Folder that holds the query file's pictures, which needs it if it names any.",
        show_default="none",
        metavar="<path>",
    ),
]
Split = Annotated[
    list[str] | None, typer.Option(help="With hf:NAME: the split.", show_default="the first")
]
ImageColumn = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Column of the pictures, or key of their names; {NOT_GIVEN} leaves them aside.",
        show_default="image, where there is one",
    ),
]
QueryColumn = Annotated[
    list[str] | None,
    typer.Option(
        help="Column or key of the queries: texts, or lists of turns.", show_default="query"
    ),
]
AnswerColumn = Annotated[
    list[str] | None,
    typer.Option(
        help="Column or key of answers, which the model is given to read after its prompt; of a "
        "list of several, the first.",
        show_default="none",
    ),
]
PromptTemplate = Annotated[
    list[str] | None,
    typer.Option(
        help="chat asks each query in a user's turn of the model's chat template; none gives it to "
        "the model as it is, for plain text.",
        show_default="chat",
        metavar=f"<{'|'.join(PROMPT_TEMPLATES)}>",
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        help="Text of the system's turn of every chat that has none of its own.",
        show_default="none",
    ),
]
NTargets = Annotated[
    int, typer.Option(min=1, help="MLP outputs that `build` gives each layer as targets.")
]
Layers = Annotated[
    str,
    typer.Option(
        help="Decoder layers whose vectors are kept, such as 0,5,10-15: a layer has targets in "
        "the data where they are kept as well."
    ),
]
Positions = Annotated[
    recipe.Positions,
    typer.Option(
        help="Which token positions of each sample are kept: the last of what is read, all, those "
        "of the picture, of the rest of the prompt (text), of the response that the model writes "
        "(generated), or of the answer that it is given (answer)."
    ),
]
XSite = Annotated[
    recipe.XSite,
    typer.Option(
        help="Where x is read: the stream that the MLP block reads (resid_mid), the stream "
        "that enters the layer (resid_pre), or what the MLP receives after its norm (mlp_in). "
        "Of resid_mid, mlp_in is computed when it is read.",
        # As they are written down, where the names of options have hyphens.
        metavar=f"<{'|'.join(recipe.X_SITES)}>",
    ),
]
Dtype = Annotated[
    DType | None,
    typer.Option(help="What the model computes in.", show_default="float16 on a GPU, else float32"),
]
StoreDtype = Annotated[
    DType | None, typer.Option(help="What is kept.", show_default="the same as --dtype")
]
SamplePositions = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Draw so many of those positions from each sample.",
        show_default="all of them",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Of that draw.")]
Always = Annotated[
    recipe.Always | None,
    typer.Option(
        help="Keep the last token of each sample beside them.", show_default="those alone"
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With --positions generated: most tokens of a response.",
        show_default=str(DEFAULT_MAX_NEW_TOKENS),
    ),
]
Logprobs = Annotated[
    bool,
    typer.Option(
        "--logprobs",
        help="Say of each kept token of an answer how likely the model found it: column logprob.",
    ),
]
Transcoders = Annotated[
    Path | None,
    typer.Option(
        help="Folder of trained transcoder_L*.pt, whose features are kept as well.",
        show_default="none",
    ),
]
Pool = Annotated[
    recipe.Pool, typer.Option(help="How a sample's features are pooled over its positions.")
]
BatchSize = Annotated[
    str,
    typer.Option(help="Samples in one forward pass; auto finds the most that fit."),
]
ReusePrefix = Annotated[
    bool | None,
    typer.Option(
        help="Compute what precedes the queries on one picture once.",
        show_default="where several queries share a picture and a trial shows that it changes "
        "nothing",
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Have torch compile the norms and the MLPs.")
]
NumWorkers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes that read pictures ahead.",
        show_default=f"0 on a CPU, else {MOST_WORKERS}",
    ),
]
MaxSamples = Annotated[
    int | None,
    typer.Option(min=1, help="Capture only the first so many samples.", show_default="all"),
]
ChunkSamples = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Samples in one file.",
        show_default=f"{CHUNK_SAMPLES_LAST} with --positions last, else {CHUNK_SAMPLES}",
    ),
]
OnError = Annotated[
    Literal["stop", "skip"],
    typer.Option(help="What an unreadable picture does: stop the run, or skip its sample."),
]
Revision = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of the model on the Hub.", show_default="main"),
]
DeviceMap = Annotated[
    Literal["auto"] | None,
    typer.Option(
        help="Deal a model that no single GPU holds out to all of them.",
        show_default="one device",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Go on where the disk has too little room.")]
