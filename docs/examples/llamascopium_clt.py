"""Train a cross-layer transcoder of several layers with Llamascopium, straight from a data set.

pip install llava-amber-activations 'llamascopium==2.0.0b34' 'transformer-lens<4'
python llamascopium_clt.py llava-amber-demo/dataset --batch-size 8

Nothing is exported: Llamascopium's trainer takes batches as `hook_batches` gives them, for as many
epochs as they last (its `train_clt` reads files, for one epoch; `llava-amber export --format
llamascopium` writes them). Every eighth sample is held out; how much of the MLP outputs' variance
is explained there is said at the end, layer by layer.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from llamascopium import (
    CLTConfig,
    CrossLayerTranscoder,
    Initializer,
    InitializerConfig,
    Trainer,
    TrainerConfig,
)

from llava_amber_activations import ActivationBatches, Activations

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def named_for_it(batches: ActivationBatches) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches with what Llamascopium expects beside the vectors: tokens and a mask."""
    for batch in batches:
        tokens = batch["token_id"].long().to(DEVICE)
        yield {**batch, "tokens": tokens, "mask": torch.ones_like(tokens, dtype=torch.bool)}


@torch.no_grad()
def explained_variances(clt: CrossLayerTranscoder, batches: ActivationBatches) -> torch.Tensor:
    """Return of each layer the share of its MLP output's variance: 1 is all, 0 the mean's."""
    labels, found = [], []
    for batch in map(clt.normalize_activations, named_for_it(batches)):
        x, encoder_options, decoder_options = clt.prepare_input(batch)
        found.append(clt.decode(clt.encode(x, **encoder_options), **decoder_options))
        labels.append(clt.prepare_label(batch))
    label = torch.cat(labels, dim=1)  # [layers, rows, H]
    left = (label - torch.cat(found, dim=1)).square().sum(dim=(1, 2))
    return 1 - left / (label - label.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2))


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", help="dataset folder, or a dataset's id on the Hub")
    parser.add_argument("--layers", type=int, nargs="+", help="all of them, unless given")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument(
        "--expansion", type=int, default=8, help="features of a layer, by its width"
    )
    parser.add_argument("--k", type=int, default=16, help="features of a row, of each layer")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", default="clt", help="folder for the trained transcoder")
    given = parser.parse_args()

    acts = Activations(given.source)
    layers = given.layers or list(range(acts.recipe.n_layers))
    samples = acts.samples["sample"].to_pylist()
    held_out = samples[::8]
    options = {"rows": True, "skip_first": True, "dtype": "float32", "device": DEVICE}
    batches = acts.hook_batches(
        layers,
        samples=sorted(set(samples) - set(held_out)),
        batch_size=given.batch_size,
        shuffle=True,
        drop_last=True,
        epochs=None,
        **options,
    )
    stream = named_for_it(batches)
    hooks = [name for name in next(stream) if name.startswith("blocks.")]
    hooks_out = [name for name in hooks if name.endswith(".hook_mlp_out")]
    torch.manual_seed(0)
    cfg = CLTConfig(
        hook_points_in=[name for name in hooks if name not in hooks_out],
        hook_points_out=hooks_out,
        d_model=acts.recipe.hidden_size,
        expansion_factor=given.expansion,
        act_fn="topk",
        top_k=given.k,
        dtype=torch.float32,
        device=DEVICE,
    )
    # It measures the mean norms on the first batches, and scales every layer by them.
    initializer = Initializer(InitializerConfig(init_encoder_with_decoder_transpose=False))
    clt = initializer.initialize_sae_from_config(cfg, activation_stream=stream)
    trainer = TrainerConfig(
        total_training_tokens=given.steps * given.batch_size,
        initial_k=given.k,
        lr=2e-3,
        lr_warm_up_steps=1,
        amp_dtype=torch.float32,
        skip_metrics_calculation=True,
        n_checkpoints=0,
        exp_result_path=given.output,
    )
    Trainer(trainer).fit(clt, stream)

    shares = explained_variances(clt, acts.hook_batches(layers, samples=held_out, **options))
    for layer, share in zip(layers, shares.tolist(), strict=True):
        where = f"of {len(held_out)} samples held out"
        print(f"explained by layer_{layer} {where}: {share:.3f} of mlp_out")
    clt.cfg.save_hyperparameters(given.output)
    clt.save_pretrained(given.output)


if __name__ == "__main__":
    main()
