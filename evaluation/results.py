"""The README's table of results, made from the zoo: `python -m evaluation.results` writes it, and a test keeps it so."""

import json
from pathlib import Path
from typing import Any

from evaluation.rules import Score, rules_in_words, same_rules
from training.scores import points

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results -->\n", "<!-- /results -->"


def results(zoo: Path) -> str:
    """A row for each agent of the zoo, beside random play and the best that was played without looking, and their rules."""
    scores = [score for path in sorted(zoo.glob("*/scores.json")) for score in json.loads(path.read_text())]
    groups = same_rules(scores)
    lines = [
        "| agent | mean score | 95 % interval | games | without looking | random | trained on | commit |",
        f"|{'---|' * 8}",
    ]
    lines += [_row(score, group) for group in groups for score in group if score["kind"] == "agent"]
    rules = [f"- `{group[0]['env']}`: {rules_in_words(group[0]['protocol'])}." for group in groups]
    notes = [f"- {score['blind_note']}." for score in scores if score.get("blind_note")]
    return "\n".join([*lines, "", *rules, *notes, ""])


def _row(agent: Score, group: list[Score]) -> str:
    unseeing = [score for score in group if score["kind"] == "script" or score["run"] == f"blind-{agent['run']}"]
    random = [points(score["mean"]) for score in group if score["kind"] == "random"]
    best = max(unseeing, key=lambda score: float(score["mean"]), default=None)
    cells: list[Any] = [
        f"`{agent['run']}`",
        points(agent["mean"]),
        "none" if agent["ci95"] is None else " to ".join(map(points, agent["ci95"])),
        len(agent["episodes"]),
        f"{points(best['mean'])} ({best['kind']})" if best else "-",
        random[0] if random else "-",
        f"{agent['frames'] / 1e6:.3g}M frames",
        agent["commit"] or "-",
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
