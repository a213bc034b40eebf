"""Train sparse autoencoders of several layers at once with SAELens, straight from a data set.

pip install llava-amber-activations 'sae-lens==6.54.*' 'transformer-lens<4'
python saelens_sae.py llava-amber-demo/dataset --layers 5 6 --batch-size 8

Nothing is exported: SAELens takes batches as `hook_batches` gives them, and each step trains every
layer on the same rows. Every eighth sample is held out; how much of its variance each autoencoder
explains is said at the end.
"""

from __future__ import annotations

import argparse

import torch
from sae_lens import LoggingConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.multi_sae_trainer import MultiSAETrainer

from llava_amber_activations import Activations

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def settings(steps: int, batch_size: int) -> SAETrainerConfig:
    """Return settings of a run that writes nothing and logs to nobody."""
    return SAETrainerConfig(
        total_training_samples=steps * batch_size,
        train_batch_size_samples=batch_size,
        device=DEVICE,
        lr=1e-3,
        lr_end=1e-4,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        lr_decay_steps=steps // 5,
        n_restart_cycles=1,
        adam_beta1=0.9,
        adam_beta2=0.999,
        autocast=False,
        # So many batches are kept in memory, of all layers, to measure their mean norms.
        n_batches_for_norm_estimate=20,
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )


@torch.no_grad()
def explained_variance(sae: TopKTrainingSAE, vectors: torch.Tensor) -> float:
    """Return the share of the variance of [rows, H] that it explains: 1 is all, 0 the mean's."""
    left = (vectors - sae.decode(sae.encode(vectors))).square().sum()
    return 1 - float(left / (vectors - vectors.mean(dim=0)).square().sum())


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", help="dataset folder, or a dataset's id on the Hub")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--n-features", type=int, default=256)
    parser.add_argument("--k", type=int, default=16, help="features of a row")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", help="folder for the trained autoencoders")
    given = parser.parse_args()

    acts = Activations(given.source)
    samples = acts.samples["sample"].to_pylist()
    held_out = samples[::8]
    # The first positions of a language model would rule the mean norm that SAELens scales by.
    options = {"mlp_out": False, "skip_first": True, "dtype": "float32", "device": DEVICE}
    batches = acts.hook_batches(
        given.layers,
        samples=sorted(set(samples) - set(held_out)),
        batch_size=given.batch_size,
        shuffle=True,
        drop_last=True,
        epochs=None,  # SAELens calls next(), and must never come to an end
        **options,
    )
    rows = iter(batches)
    hooks = dict(zip((f"layer_{layer}" for layer in given.layers), next(rows), strict=True))
    sae_cfg = TopKTrainingSAEConfig(
        d_in=acts.recipe.hidden_size,
        d_sae=given.n_features,
        k=given.k,
        device=DEVICE,
        normalize_activations="expected_average_only_in",
    )
    torch.manual_seed(0)
    saes = {name: TopKTrainingSAE(sae_cfg) for name in hooks}
    cfg = settings(given.steps, given.batch_size)
    saes = MultiSAETrainer(cfg, saes, hooks, rows).fit()

    unseen = list(acts.hook_batches(given.layers, samples=held_out, **options))
    for name, hook in hooks.items():
        share = explained_variance(saes[name], torch.cat([batch[hook] for batch in unseen]))
        print(f"explained by {name} of {len(held_out)} samples held out: {share:.3f} of x")
        if given.output:
            saes[name].save_inference_model(f"{given.output}/{name}")


if __name__ == "__main__":
    main()
