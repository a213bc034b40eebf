"""Train a cross-layer transcoder of one layer from a dataset folder.

python train_transcoder.py llava-amber-demo/dataset --layer 5 --n-targets 4

The layer is prepared once, by `datasets` in its own cache; every epoch then reads at the speed of
memory. Every eighth sample is held out; how much of its variance is explained is said at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch
from torch import nn

from llava_amber_activations import Activations, Statistics, activation_batches


class Transcoder(nn.Module):
    """Sparse features of `x`, and from them the MLP outputs of several layers.

    Attributes:
        encoder: [H] to [F].
        decoder: [n, F, H], one for each target.
    """

    def __init__(self, width: int, n_features: int, n_targets: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(width, n_features)
        self.decoder = nn.Parameter(torch.randn(n_targets, n_features, width) * n_features**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_targets, width))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the targets [B, n, H] that [B, H] gives, and the features [B, F]."""
        features = torch.relu(self.encoder(x))
        return torch.einsum("bf,nfh->bnh", features, self.decoder) + self.bias, features


class Normalised:
    """`x` and targets of one layer, with mean 0 and standard deviation 1 in every dimension."""

    def __init__(self, statistics: Statistics, layer: int, n_targets: int) -> None:
        targets = slice(layer + 1, layer + 1 + n_targets)
        self.x_mean, self.x_std = statistics.x_mean[layer], statistics.x_std[layer]
        self.width = len(self.x_mean)
        self.targets_mean = statistics.mlp_out_mean[targets]  # [n, H]
        self.targets_std = statistics.mlp_out_std[targets]

    def __call__(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `x` [B, H] and targets [B, n, H] in float32."""
        x = (batch["x"].float() - self.x_mean) / self.x_std.clamp_min(1e-6)
        targets = (batch["targets"].float() - self.targets_mean) / self.targets_std.clamp_min(1e-6)
        return x, targets


def train(
    model: nn.Module,
    batches: Iterable[dict[str, torch.Tensor]],
    normalised: Normalised,
    *,
    steps: int,
    sparsity: float = 1e-3,
    say: bool = True,
) -> None:
    """Train for so many steps, over as many epochs as they take, and say the loss ten times."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    step = 0
    while step < steps:
        for batch in batches:  # each time the next epoch, in another order
            x, targets = normalised(batch)
            found, features = model(x)
            loss = nn.functional.mse_loss(found, targets) + sparsity * features.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if say and (step % max(1, steps // 10) == 0 or step == steps - 1):
                print(f"step {step:4d}  loss {loss.item():.4f}")
            step += 1
            if step == steps:
                break


@torch.no_grad()
def explained_variance(
    model: nn.Module, batches: Iterable[dict[str, torch.Tensor]], normalised: Normalised
) -> float:
    """Return the share of the targets' variance that the model explains: 1 is all, 0 the mean's."""
    pairs = [normalised(batch) for batch in batches]
    targets = torch.cat([targets for _, targets in pairs])
    found = torch.cat([model(x)[0] for x, _ in pairs])
    left = (targets - found).square().sum()
    return 1 - float(left / (targets - targets.mean(dim=0)).square().sum())


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", help="dataset folder, or a dataset's id on the Hub")
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--n-targets", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--n-features", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", help="file for the trained weights")
    given = parser.parse_args()

    acts = Activations(given.source)
    layer = acts.dataset(given.layer, given.n_targets)
    samples = acts.samples["sample"].to_pylist()
    held_out = samples[::8]
    kept = sorted(set(samples) - set(held_out))
    batches = activation_batches(layer, given.batch_size, samples=kept, shuffle=True, seed=0)
    normalised = Normalised(acts.statistics, given.layer, given.n_targets)
    torch.manual_seed(0)
    model = Transcoder(normalised.width, given.n_features, given.n_targets)
    train(model, batches, normalised, steps=given.steps)
    unseen = activation_batches(layer, given.batch_size, samples=held_out)
    share = explained_variance(model, unseen, normalised)
    print(f"explained of {len(held_out)} samples held out: {share:.3f} of their variance")
    if given.output:
        torch.save(model.state_dict(), given.output)


if __name__ == "__main__":
    main()
