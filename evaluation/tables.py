"""The tables that `evaluate.py` prints, readable in 80 columns; the report has every figure."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evaluation.rules import (
    Score,
    by_references_of_other_rules,
    kind_of,
    rules_in_words,
    same_rules,
    suites_in_words,
    why_no_interval,
)
from training.progress import short
from training.scores import points

MOST_ROWS = 8  # published scores shown a table


def show(scores: Sequence[Score], console: Console) -> None:
    """Print what was measured under each set of rules, then what others reached, comparable and not."""
    for group in same_rules(scores):
        console.print(f"\n[bold]{escape(group[0]['env'])}[/bold]: {rules_in_words(group[0]['protocol'])}", highlight=False)
        console.print(_measured(group))
        for note in _notes(group):
            console.print(f"Note: {note}.", highlight=False, markup=False)
        for comparable in (True, False):
            rows = [row for row in group[0]["baselines"] if row["comparable"] is comparable]
            if rows:
                console.print(_published(rows, comparable))
    for line in suites_in_words(scores):
        console.print(f"\n{line}", highlight=False, markup=False)


def _measured(scores: Sequence[Score]) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("played by", overflow="fold", min_width=20)
    for name in ("mean (95 % interval)", "median", "human", "games"):
        table.add_column(name, justify="right", no_wrap=True)
    for score in scores:
        human = score["human_normalized"]
        cells = [points(score["mean"]) + _interval(score["ci95"]), points(score["median"])]
        policy = f" ({score['policy']})" if kind_of(score) == "agent" else ""
        table.add_row(
            escape(score["run"].removesuffix(f"-{score['env']}") + policy),
            *cells,
            "-" if human is None else f"{human:z.0%}",
            f"{len(score['episodes'])}",
        )
    return table


def _interval(ci95: Sequence[float] | None) -> str:
    return "" if ci95 is None else f" ({points(ci95[0])} to {points(ci95[1])})"


def _notes(scores: Sequence[Score]) -> list[str]:
    notes = [str(score["blind_note"]) for score in scores if score.get("blind_note")]
    for score in scores:
        games, distinct = len(score["episodes"]), score["distinct_games"]
        if score["ci95"] is None:
            notes.append(f"{score['run']}: {why_no_interval(score)}")
        elif distinct < games:
            notes.append(f"{score['run']}: {distinct} of {games} games are distinct")
    if any(map(by_references_of_other_rules, scores)):
        notes.append("human: by published scores of random and human play under other rules")
    return notes


def _published(rows: Sequence[dict[str, Any]], comparable: bool) -> Table:
    title = "Others, under the same rules" if comparable else "Others, under other rules: not comparable"
    style = "" if comparable else "dim"
    table = Table(box=box.SIMPLE, title=title, title_justify="left", title_style="bold", style=style)
    table.add_column("published", no_wrap=True, min_width=18, max_width=24, style=style)
    longest = max(len(points(row["score"])) for row in rows[:MOST_ROWS])
    table.add_column("score", justify="right", no_wrap=True, min_width=longest, style=style)
    if comparable:
        table.add_column("source", overflow="fold")
    else:
        table.add_column("differs in", no_wrap=True, overflow="ellipsis", style=style)
    for row in rows[:MOST_ROWS]:
        rules = ", ".join(difference.split()[0] for difference in row["differences"])
        name = f"{row['name']}, {short(row['frames'])}" if row.get("frames") else row["name"]
        table.add_row(*map(escape, (name, points(row["score"]), row["source"] if comparable else rules)))
    if len(rows) > MOST_ROWS:
        table.caption = f"{len(rows) - MOST_ROWS} more, and all sources, in the report"
    return table
