"""``dlc cache``: the compile cache, what is in it, and emptying it."""

from __future__ import annotations

import json
from typing import Any

import click

from dlc.cli import common


def summary() -> dict[str, Any]:
    """The place, the entries and the bytes of the compile cache, and its cap (0: it is off); JSON-able."""
    from dlc.cache import the_cache

    found = the_cache()
    entries = found.entries()
    size = sum(entry.size for entry in entries)
    return {"folder": str(found.folder), "entries": len(entries), "bytes": size, "limit": found.limit}


def summary_text(found: dict[str, Any]) -> str:
    """`summary` on one line."""
    if not found["limit"]:
        return f"{found['folder']} (turned off by DLC_CACHE_SIZE=0)"
    size, limit = common.size_text(found["bytes"]), common.size_text(found["limit"])
    return f"{found['folder']}: {_count(found['entries'])}, {size} of at most {limit}"


def _count(number: int) -> str:
    return f"{number} package{'' if number == 1 else 's'}"


@click.group(invoke_without_command=True, short_help="Show the compile cache, or clear it.")
@common.json_option
@click.pass_context
def cache(ctx: click.Context, as_json: bool) -> None:
    """Show where compiled packages are kept, how many there are and how large; `dlc cache clear` removes them."""
    if ctx.invoked_subcommand is None:
        found = summary()
        click.echo(json.dumps(found, indent=1) if as_json else summary_text(found))


@cache.command()
def clear() -> None:
    """Remove every compiled package from the cache."""
    from dlc.cache import the_cache

    found = the_cache()
    removed = found.clear()
    size = common.size_text(sum(entry.size for entry in removed))
    click.echo(f"removed {_count(len(removed))}, {size}, from {found.folder}")
