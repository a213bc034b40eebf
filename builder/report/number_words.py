"""Numbers and tokens in sentences."""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST_TOKEN = 24


def number(value: float) -> str:
    """Return a number with three figures that count: 0.0123, 4.57, 891, 12,300."""
    return f"{float(f'{value:.3g}'):,g}" if abs(value) < 1e6 else f"{value:.3g}"


def share(value: float) -> str:
    """Return a share as per cent: 93 %, 0.6 %."""
    percent = 100 * value
    if percent and abs(percent) < 0.05:
        return f"{percent:.1g} %"
    # Nearly all is not all.
    if 99 <= percent < 100:
        return f"{min(percent, 99.9):.1f} %"
    return f"{percent:.1f} %" if abs(percent) < 9.95 else f"{percent:.0f} %"


def in_list(parts: Sequence[str]) -> str:
    """Join parts as a sentence does."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def token_name(token: str) -> str:
    """Return a token's text as it can stand in a sentence."""
    shown = token.replace("\n", "⏎").replace("\t", "⇥")
    if len(shown) > _LONGEST_TOKEN:
        shown = shown[:_LONGEST_TOKEN] + "…"
    return f"“{shown}”"
