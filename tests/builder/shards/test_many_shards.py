"""Memory does not grow with the number of shards: their moments are merged as they finish."""

import time
import weakref

import pytest

from builder.build import build
from builder.import_pt import import_pt
from builder.shards import plan, write


class Watch:
    """How many moments were taken, and the most that were there at once."""

    def __init__(self):
        self.n_taken = self.alive = self.most = 0

    def take(self, moments):
        weakref.finalize(moments, self._gone)
        self.n_taken, self.alive = self.n_taken + 1, self.alive + 1
        self.most = max(self.most, self.alive)
        return moments

    def _gone(self):
        self.alive -= 1


@pytest.fixture
def watch(monkeypatch):
    watch = Watch()
    taken = write.vector_moments
    monkeypatch.setattr(write, "vector_moments", lambda *args: watch.take(taken(*args)))
    # One row group a shard, and one thread, or who is first to count is left to chance.
    monkeypatch.setattr(plan, "_USUAL_GROUP_ROWS", 8)
    monkeypatch.setattr(write, "_MOST_THREADS", 1)
    return watch


def test_build(all_store, tmp_path, monkeypatch, watch):
    """Also where shards are made faster than they are taken in."""

    class Slow(write.Progress):
        def update(self, *args, **kwargs):
            time.sleep(0.02)
            super().update(*args, **kwargs)

    monkeypatch.setattr(write, "Progress", Slow)
    manifest = build(all_store, tmp_path / "dataset", configs=["all_layers"], max_shard_size="1kB")
    n_shards = len(manifest.shards("all_layers", "train"))
    assert n_shards > 40 and watch.n_taken == 64 * n_shards
    assert watch.most <= 64 * 5


def test_import(write_layers, tmp_path, watch):
    write_layers(tmp_path / "pt", shapes=((8, 1, 8),) * 40)
    manifest = import_pt(tmp_path / "pt", tmp_path / "dataset", max_shard_size="1kB")
    assert len(manifest.shards("all_layers", "train")) == 40 and watch.n_taken == 6 * 40
    assert watch.most <= 6 * 4
