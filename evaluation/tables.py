"""The tables that `evaluate.py` prints. Scores that are not comparable never stand in one column."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from evaluation.scores import Score

MOST_ROWS = 12  # published scores shown a table; the report has all


def show(scores: Sequence[Score], console: Console) -> None:
    """Print what was measured, then for each protocol what others reached, comparable and not."""
    for env in dict.fromkeys(score["env"] for score in scores):
        measured = [score for score in scores if score["env"] == env]
        console.print(_measured(env, measured))
        _note(measured, console)
        baselines = measured[0]["baselines"]
        for comparable in (True, False):
            rows = [row for row in baselines if row["comparable"] is comparable]
            if rows:
                console.print(_published(rows, comparable))


def _measured(env: str, scores: Sequence[Score]) -> Table:
    table = Table(title=f"{env}: {protocol_text(scores[0]['protocol'])}", title_justify="left", title_style="bold")
    for name in (
        "played by",
        "mean",
        "95 % interval",
        "median",
        "IQM",
        "std",
        "human-norm.",
        "games (distinct)",
        "trained",
        "policy",
    ):
        table.add_column(name, justify="left" if name in ("played by", "policy") else "right")
    for score in scores:
        table.add_row(
            score["run"],
            f"{score['mean']:.1f}",
            _interval(score["ci95"]),
            f"{score['median']:.1f}",
            f"{score['iqm']:.1f}",
            "-" if score["std"] is None else f"{score['std']:.1f}",
            "-" if score["human_normalized"] is None else f"{score['human_normalized']:.2f}",
            f"{len(score['episodes'])} ({score['distinct_games']})",
            f"{score['frames'] / 1e6:.3g}M" if score["frames"] else "-",
            score["policy"],
        )
    return table


def _note(scores: Sequence[Score], console: Console) -> None:
    for score in scores:
        if score.get("blind_note"):
            console.print(f"Note: {score['blind_note']}.", highlight=False)
        if score["ci95"] is None and len(score["episodes"]) > 1:
            distinct = f"{score['distinct_games']} of {len(score['episodes'])}"
            console.print(
                f"Note: {score['run']}: {distinct} games are distinct, so an interval over games says nothing.", highlight=False
            )


def _published(rows: Sequence[dict[str, Any]], comparable: bool) -> Table:
    title = "Comparable: the same rules" if comparable else "Not comparable: other rules decide these scores"
    table = Table(
        title=title, title_justify="left", title_style="bold" if comparable else "dim", style="" if comparable else "dim"
    )
    for name in ("published", "score", "trained", "differs in" if not comparable else "protocol", "source"):
        table.add_column(name, justify="right" if name in ("score", "trained") else "left", overflow="ellipsis", no_wrap=True)
    for row in rows[:MOST_ROWS]:
        frames = f"{row['frames'] / 1e6:.4g}M" if row["frames"] else "-"
        rules = row["protocol"] if comparable else "; ".join(row["differences"])
        table.add_row(row["name"], f"{row['score']:,.1f}", frames, rules, row["source"])
    if len(rows) > MOST_ROWS:
        table.caption = f"{len(rows) - MOST_ROWS} more in the report"
    return table


def _interval(ci95: Sequence[float] | None) -> str:
    return "-" if ci95 is None else f"{ci95[0]:.1f} to {ci95[1]:.1f}"


def protocol_text(protocol: dict[str, Any]) -> str:
    """A protocol in one line."""
    fewest, most = protocol["frame_skip"]
    skip = f"skip {fewest}" if fewest == most else f"skip {fewest}-{most}"
    cap = protocol["max_episode_frames"]
    steps = protocol["max_episode_steps"]
    limit = f"cap {cap:,} frames" if cap else f"cap {steps:,} steps" if steps else "no cap"
    return f"{protocol['observation']}, sticky {protocol['sticky']:g}, {skip}, up to {protocol['noop_max']} no-ops, {limit}"
