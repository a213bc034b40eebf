"""The commands that are killed and run out of room: what they read, and where they write."""

import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from fork_server import ForkServer
from loopback_hub import LoopbackHub

from builder.asked.handover_asked import HANDOVERS

REPO = "lab/killed"
TWO_RANKS = "capture, two processes"
PUSH = "push"
# To other trainers, by the name of their format.
HANDED_OVER = {f"export {format_}": format_ for format_ in HANDOVERS}
NAMES = (
    *("capture", TWO_RANKS, "build", "export layers", "export samples", *HANDED_OVER),
    *("import", PUSH),
)

SAY_DONE = ("import",)
ALREADY_THERE = "already holds something"


@dataclass(frozen=True)
class Commands:
    """Runs the commands on the files of `originals`.

    Attributes:
        root: of those files.
        server: which the commands are forked from.
        hub: that is pushed to.
    """

    root: Path
    server: ForkServer
    hub: LoopbackHub

    def arguments(self, name: str, base: Path) -> list[object]:
        """Return the arguments of a command that writes into `base` and nowhere else."""
        place, root = base / "place", self.root
        capture = [
            *("capture", "--model", root / "model", "--dataset", root / "queries.json"),
            *("--image-dir", root / "images", "--output-dir", place, "--positions", "all"),
            *("--n-targets", 2, "--transcoders", root / "transcoders"),
            *("--chunk-samples", 2, "--batch-size", 2),
        ]
        handed_over: dict[str, list[object]] = {
            name: ["export", root / "dataset", place, "--format", format_, "--chunk-rows", 64]
            for name, format_ in HANDED_OVER.items()
        }
        return {
            **handed_over,
            "capture": capture,
            TWO_RANKS: capture,
            "build": ["build", root / "store", place],
            "export layers": ["export", root / "dataset", place, "--format", "layers"],
            "export samples": ["export", root / "dataset", place, "--format", "samples"],
            "import": ["import", root / "pt-layers", place],
            PUSH: ["push", base / "pt", "--repo-id", REPO],
        }[name]

    def prepare(self, name: str, base: Path) -> None:
        """Make the folder that a command writes into, and for a push what it pushes."""
        base.mkdir(parents=True)
        if name == PUSH:
            shutil.copytree(self.root / "pt-layers", base / "pt")
            self.hub.store.repos.pop(("dataset", REPO), None)

    def start(self, name: str, base: Path, **options: object) -> list:
        """Start a command: one process, or two ranks of one launch."""
        ranks: list[dict[str, str]] = [{}]
        if name == TWO_RANKS:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_unused_port())}
            ranks = [
                {**address, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
                for rank in range(2)
            ]
        arguments = self.arguments(name, base)
        return [self.server.start(arguments, under=base, **options, **rank) for rank in ranks]

    def run(self, name: str, base: Path, **options: object) -> list:
        """Run a command to its end; how each of its processes ended."""
        return [run.wait() for run in self.start(name, base, **options)]

    def result(self, name: str, base: Path) -> dict[str, object]:
        """Return every path below `base`, hidden ones too, with its bytes; and the Hub's files."""
        found: dict[str, object] = {
            path.relative_to(base).as_posix(): path.read_bytes() if path.is_file() else None
            for path in sorted(base.rglob("*"))
        }
        repo = self.hub.store.repos.get(("dataset", REPO)) if name == PUSH else None
        for revision in ("main", *sorted(repo.tags)) if repo else ():
            files = repo.commit(revision).files
            found |= {f"{revision}:{path}": entry.oid for path, entry in files.items()}
        return found

    def finished(self, name: str, base: Path, wanted: dict[str, object]) -> str | None:
        """Run a command again; what is wrong with what comes of it, None if it is what is wanted.

        What was stopped after its last deed has nothing left to do: `import` says so by refusing.
        """
        for ended in self.run(name, base):
            if ended.status and not (name in SAY_DONE and ALREADY_THERE in ended.said):
                return f"the same command ended with {ended.status}: {ended.said[-2000:]}"
        return "; ".join(_differences(self.result(name, base), wanted)[:10]) or None


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _differences(found: dict[str, object], wanted: dict[str, object]) -> list[str]:
    """Name what two results do not share."""
    missing = [f"{path} is missing" for path in wanted.keys() - found.keys()]
    left = [f"{path} is left over" for path in found.keys() - wanted.keys()]
    other = [f"{path} differs" for path in found.keys() & wanted.keys()]
    other = [said for said in other if found[said[:-8]] != wanted[said[:-8]]]
    return sorted([*missing, *left, *other])
