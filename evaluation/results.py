"""The README's table of results, made from the zoo: `python -m evaluation.results` writes it, and a test keeps it so."""

import json
from pathlib import Path
from typing import Any

from evaluation.rules import Score, rules_in_words, same_rules

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results -->\n", "<!-- /results -->"


def results(zoo: Path) -> str:
    """A table for each set of rules under which entries of the zoo were evaluated, as Markdown."""
    scores = [score for path in sorted(zoo.glob("*/scores.json")) for score in json.loads(path.read_text())]
    return "\n".join(_section(group) for group in same_rules(scores))


def _section(group: list[Score]) -> str:
    lines = [f"`{group[0]['env']}` ({rules_in_words(group[0]['protocol'])}):", ""]
    lines += ["| played by | mean score | 95 % interval | games | trained on | commit |", "|---|---|---|---|---|---|"]
    lines += [_row(score) for score in sorted(group, key=lambda score: -float(score["mean"]))]
    notes = [f"{score['blind_note']}." for score in group if score.get("blind_note")]
    return "\n".join([*lines, "", *notes, ""] if notes else [*lines, ""])


def _row(score: Score) -> str:
    interval = "few distinct games" if score["ci95"] is None else "{:.1f} to {:.1f}".format(*score["ci95"])
    frames = f"{score['frames'] / 1e6:.3g}M frames" if score["frames"] and "blind" not in score["algorithm"] else "-"
    cells: list[Any] = [
        f"`{score['run']}`",
        f"{score['mean']:.1f}",
        interval,
        len(score["episodes"]),
        frames,
        score["commit"] or "-",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def with_results(readme: str, table: str) -> str:
    """The README's text with the table between its markers."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table}{END}{after}"


def main() -> None:
    """Write the table into the README."""
    readme = ROOT / "README.md"
    readme.write_text(with_results(readme.read_text(), results(ROOT / "zoo")))


if __name__ == "__main__":
    main()
