"""Other projects' loaders and trainers on our exports and batches, each with its own libraries.

    python tests/interop/run.py [PEER …] [--environments DIR] [--folder DIR]
    python tests/interop/run.py --lock PEER

A tiny data set is captured, built and exported by the commands of this project. For each peer
`try_PEER.py` is then run in an environment of its own, of the versions in constraints/PEER.txt. It
compares what the peer's loader gives with the capture store, bit for bit; it runs the code that
`export` printed, and the program of docs/examples; and it ends with 1 where a value differs or a
loss does not fall.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "support")]

# Found by the path above, which no installation has.
from checks import HOLDS  # noqa: E402
from data import export_for, make_data  # noqa: E402
from environments import PEERS, Peer, environment_of, lock  # noqa: E402


def main() -> None:
    options = _options()
    peers = [peer for peer in PEERS if peer.name in options.peers] or list(PEERS)
    if options.lock:
        for peer in peers:
            lock(peer, options.environments / f".venv-interop-{peer.name}")
        return
    not_run = [peer for peer in peers if peer.variable and not peer.source]
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        to_run = [peer for peer in peers if peer not in not_run]
        if to_run and not (folder / "dataset").is_dir():
            folder.mkdir(exist_ok=True)
            make_data(folder)
        for peer in to_run:
            python = environment_of(peer, options.environments / f".venv-interop-{peer.name}")
            if peer.exports:
                export_for(folder, peer.name)
            failed += [] if _passes(peer, python, folder) else [peer.name]
    for peer in not_run:
        print(
            f"{peer.name} was not run: pip does not know it. Say where it is, a folder or "
            f"something that pip installs, by {peer.variable}="
        )
    if failed:
        print(f"failed: {', '.join(failed)}")
    sys.exit(1 if failed or not_run else 0)


def _passes(peer: Peer, python: Path, folder: Path) -> bool:
    """Run a peer's script, with nothing of this project unless it is to read the data set."""
    source = peer.source if peer.source and Path(peer.source).is_dir() else None
    beside = [*([] if source is None else [source]), *([] if peer.exports else [REPOSITORY])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, beside))}
    print(f"{peer.name}:", flush=True)
    command = [python, peer.script, folder, *([REPOSITORY] if peer.exports else [])]
    done = subprocess.run(
        list(map(str, command)),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    for line in done.stdout.splitlines():
        if done.returncode or line.startswith(HOLDS):
            print(line, flush=True)
    return done.returncode == 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [peer.name for peer in PEERS]
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"{', '.join(names)}; all")
    parser.add_argument("--environments", type=Path, default=REPOSITORY, help="their place")
    parser.add_argument("--folder", type=Path, help="for the data, which then is kept")
    parser.add_argument("--lock", action="store_true", help="pin the versions anew instead")
    options = parser.parse_args()
    unknown = set(options.peers) - set(names)
    if unknown:
        parser.error(f"no peer is called {', '.join(sorted(unknown))}: {', '.join(names)}")
    return options


if __name__ == "__main__":
    main()
