"""One HTML page that says how good an agent is, beside what, under which rules, and lets one watch it play.

The page is a single file that opens offline: no script, no address outside it, plots as SVG, videos as data URIs. A content
security policy in its head forbids the browser to fetch anything else. Light or dark follows the system.

Every element is built by `tag`, which escapes each string that is not `Markup`, so that a name read from a file cannot become
HTML. Plots place things in percent of their width, so that one drawing fits a phone and a desktop with letters of one size.
"""

import base64
import html
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from evaluation.rules import Score, rules_in_words, same_rules, suites_in_words
from training.scores import points

Baseline = Mapping[str, Any]  # one of its `baselines`
Curve = Sequence[Mapping[str, float]]  # rows of metrics.jsonl

EMBEDDED_BYTES = 8_000_000  # a larger video is linked to instead
CURVE_POINTS = 400  # at most, a run: more cannot be told apart on a screen
CURVE_HEIGHT = 240  # pixels
ROW_HEIGHT = 40  # pixels, of one row of the score plot
JITTER = 9  # pixels, up and down, so that games of equal score do not cover each other
OTHER_RULES_SHOWN = 6  # scores under other rules that stand open; the rest unfolds
COLOURS = 6  # lines of a learning curve with a colour of their own

LABELS = {
    "env": "Environment",
    "observation": "Observation",
    "size": "Observation size",
    "colour": "Colour",
    "frame_skip": "Frame skip (emulator frames an action)",
    "max_pool": "Brighter of the last two frames",
    "sticky": "Sticky actions (probability)",
    "action_set": "Action set",
    "noop_max": "No-ops at the start (most, in frames)",
    "fire_reset": "FIRE pressed for the agent at the start",
    "episode_end": "A game ends at",
    "max_episode_frames": "Cut off after (emulator frames)",
    "max_episode_steps": "Cut off after (agent steps)",
    "mode": "Game mode",
    "difficulty": "Difficulty",
    "rom_md5": "ROM (MD5)",
    "backend": "Emulator",
    "score": "Score",
    "seed": "Seed",
    "frames": "Emulator frames",
    "frames_per_second": "Frames a second",
    "codec": "Codec",
}

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #fff; --ink: #1b1d22; --soft: #5d6470; --line: #dfe1e6;
  --ours: #2456c8; --other: #8a5a00; --warn: #fff3d6; --warn-ink: #5c3d00;
  --c0: #2456c8; --c1: #b4451f; --c2: #147a55; --c3: #8a3fa8; --c4: #8a6d00; --c5: #3a6f7f; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --card: #1c1f25; --ink: #eceef2; --soft: #a0a7b4;
  --line: #343944; --ours: #7ea6ff; --other: #e0ac4c; --warn: #3a2e12; --warn-ink: #f6dca2;
  --c0: #7ea6ff; --c1: #ff9a75; --c2: #63cfa4; --c3: #d69cf0; --c4: #e2c65a; --c5: #86c3d4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.35rem; margin: 3rem 0 .25rem; }
h3 { font-size: 1.05rem; margin: 2.25rem 0 .5rem; }
p { margin: .35rem 0; max-width: 46rem; }
.soft, figcaption, summary, caption { color: var(--soft); font-size: .9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; margin-top: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.25rem; }
.big { font-size: 2.6rem; font-weight: 650; line-height: 1.1; margin: .2rem 0 .4rem; font-variant-numeric: tabular-nums; }
.big small { font-size: 1rem; font-weight: 400; color: var(--soft); }
.warn { background: var(--warn); color: var(--warn-ink); border-radius: 8px; padding: .6rem .8rem; margin-top: .7rem; }
.row { display: grid; grid-template-columns: 15rem 1fr 11.5rem; column-gap: 1.25rem; align-items: center; }
.row .name { line-height: 1.25; padding: .2rem 0; font-size: .95rem; }
.row .name small { display: block; color: var(--soft); }
.row .number { font-variant-numeric: tabular-nums; text-align: right; font-size: .95rem; }
.row .number small { color: var(--soft); }
svg { display: block; overflow: visible; }
.track { grid-column: 2; width: 100%; }
.grid { stroke: var(--line); }
.dot { fill: var(--ours); opacity: .38; }
.interval { stroke: var(--ours); stroke-width: 6; opacity: .8; }
.mean { stroke: var(--ours); stroke-width: 3; }
.baseline { fill: var(--other); }
.scale { fill: var(--soft); font-size: 12px; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
.swatch { display: inline-block; width: .9rem; height: .25rem; border-radius: 2px; margin: 0 .4rem .2rem 0; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; }
thead th { white-space: nowrap; }
td.number, th.number { text-align: right; overflow-wrap: normal; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.long { min-width: 12rem; }
.facts { max-width: 46rem; }
.facts th { width: 45%; }
figure { margin: 1rem 0; }
video { display: block; width: 100%; max-width: 56rem; border-radius: 10px; background: #000; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; white-space: pre-wrap;
  font-size: .9rem; }
summary { cursor: pointer; padding: .6rem 0; }
@media (max-width: 44rem) { .row { grid-template-columns: 1fr auto; margin-top: .5rem; }
  .track { grid-column: 1 / -1; grid-row: 2; } .big { font-size: 2.2rem; } .facts th { width: 50%; }
  .stack thead { display: none; } .stack tr { display: block; border-bottom: 1px solid var(--line); padding: .6rem 0; }
  .stack td { display: grid; grid-template-columns: 9.5rem 1fr; border: 0; padding: .1rem 0; }
  .stack td.number { text-align: left; white-space: normal; } .stack td:empty { display: none; }
  .stack td::before { content: attr(data-label); color: var(--soft); }
  .stack td:first-child { display: block; font-weight: 600; } .stack td:first-child::before { content: none; } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src data: file: 'self'; base-uri 'none'; form-action 'none'"


class Markup(str):
    """Text that is HTML already; every other string is escaped when it enters a page."""

    __slots__ = ()


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """One HTML element.

    Args:
        name: of the element.
        *children: what is inside; a `Markup` stays as it is and anything else is escaped.
        **attributes: a trailing or inner `_` stands for what Python does not allow (`class_`, `stroke_width`); None and False
            leave an attribute out, True writes its bare name.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    return Markup(f"<{name}{written}>{_joined(children)}</{name}>")


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'


def _joined(children: Iterable[object]) -> Markup:
    return Markup("".join(child if isinstance(child, Markup) else html.escape(str(child)) for child in children))


def write_report(
    path: Path, scores: Sequence[Score], curves: Mapping[str, Curve], videos: Mapping[str, Sequence[Path]], command: str
) -> None:
    """Write the page whole: it is made aside and put in place at once. Its folder must exist.

    Args:
        path: the `.html` file.
        scores: as in `scores.json`; each may also have `kind` (`agent`, `random`, `blind replay`, `script`; `agent` is meant
            where it is missing) and `blind_note`, a sentence that is shown beside its score. Those under different rules get
            sections of their own.
        curves: rows of `metrics.jsonl` by run name, of which `frames` (emulator frames) and `score/mean_100` (points) are read.
        videos: `.mp4` files by run name, each with its `.json` card beside it where it has one. A file of at most 8 MB goes
            into the page, a larger one stays where it is and is linked to.
        command: what was typed.

    Raises:
        FileNotFoundError: a video is not there.
    """
    sections = [_section(group, curves, videos, path.parent) for group in same_rules(scores)]
    aside = path.with_name(f"{path.name}.new")
    aside.write_text(_page(scores, sections, command), encoding="utf-8")
    os.replace(aside, path)


def _page(scores: Sequence[Score], sections: Sequence[Markup], command: str) -> Markup:
    title = "Playfield evaluation: " + ", ".join(dict.fromkeys(str(score["env"]) for score in scores))
    head = _joined(
        [
            Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
            tag("title", title),
            tag("style", Markup(STYLE)),
        ]
    )
    wholes = [tag("p", line) for line in suites_in_words(scores)]
    body = [tag("h1", title), *wholes, *sections, tag("h2", "How this was made"), tag("pre", command)]
    return _joined([Markup("<!doctype html>\n"), tag("html", tag("head", head), tag("body", *body), lang="en"), Markup("\n")])


def _section(group: Sequence[Score], curves: Mapping[str, Curve], videos: Mapping[str, Sequence[Path]], folder: Path) -> Markup:
    runs = list(dict.fromkeys(str(score["run"]) for score in group))
    comparable, other = _baselines(group)
    parts = [
        tag("h2", group[0]["env"]),
        tag("p", rules_in_words(group[0]["protocol"]), class_="soft"),
        _headlines(group),
        _score_plot(group, comparable),
        _score_table(group),
        _comparable_table(comparable),
        _curve_section({run: curves[run] for run in runs if run in curves}, _agents(group)),
        *(_video_section(run, video, folder) for run in runs for video in videos.get(run, ())),
        _other_table(other),
        _origin_table(group),
        _protocol_table(group),
    ]
    return tag("section", *parts)


def _agents(group: Sequence[Score]) -> list[Score]:
    """What the page is about: the agents, or everything where nothing was trained."""
    return [score for score in group if _kind(score) == "agent"] or list(group)


def _kind(score: Score) -> str:
    return str(score.get("kind", "agent"))


# --- the headline ---------------------------------------------------------------------------------------------------


def _headlines(group: Sequence[Score]) -> Markup:
    return tag("div", *(_headline(score) for score in _agents(group)), class_="cards")


def _headline(score: Score) -> Markup:
    trained = f", {_short(score['frames'])} frames of training" if score["frames"] else ""
    parts = [
        tag("div", f"{score['run']} ({score['algorithm']}{trained})", class_="soft"),
        tag("p", _number(score["mean"]), " ", tag("small", "points a game"), class_="big"),
        tag("p", _interval_in_words(score)),
    ]
    if score["human_normalized"] is not None:
        human = f"Human-normalised {score['human_normalized']:.2f}: 0 is random play, 1 a human player, both as published."
        parts.append(tag("p", human, class_="soft"))
    if score.get("blind_note"):
        parts.append(tag("p", score["blind_note"], class_="warn"))
    return tag("div", *parts, class_="card")


def _interval_in_words(score: Score) -> str:
    games, distinct = len(score["episodes"]), score["distinct_games"]
    played = f"The mean of {games} {'game' if games == 1 else 'games'}{_cut_off(score['episodes'])}"
    if score["ci95"] is not None:
        low, high = score["ci95"]
        return f"{played}; its 95 % interval is {_number(low)} to {_number(high)}."
    if games == 1:
        return f"{played}, so no interval."
    if distinct < max(2, games / 2):
        return f"{played}; the same game was played again and again: {distinct} distinct of {games}, so no interval."
    return f"{played}; no interval is given."


def _cut_off(episodes: Sequence[Mapping[str, Any]]) -> str:
    cut = sum(not episode["terminated"] for episode in episodes)
    return f", {cut} of them cut off by the limit," if cut else ""


# --- scores ---------------------------------------------------------------------------------------------------------


class Axis(NamedTuple):
    """A linear scale from `low` to `high` that ends at round numbers, or the last data where they are far."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Iterable[float], most_ticks: int = 6) -> "Axis":
        """A scale that holds zero and every finite value."""
        finite = [0.0, *(value for value in values if math.isfinite(value))]
        low, high = min(finite), max(finite)
        if low == high:
            high = low + 1.0
        step = _round_step((high - low) / most_ticks)
        first, last = math.floor(low / step), math.ceil(high / step)
        return cls(first * step, last * step, tuple(index * step for index in range(first, last + 1)))

    def share(self, value: float) -> float:
        """Where a value lies, from 0 at `low` to 1 at `high`."""
        return (value - self.low) / (self.high - self.low)

    def percent(self, value: float) -> str:
        """The same as an SVG length."""
        return f"{100 * self.share(value):.2f}%"


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... (times any power of ten) that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= least)


def _score_plot(group: Sequence[Score], comparable: Sequence[Baseline]) -> Markup:
    """A row a score: its games as dots, its mean and its interval; then a row a baseline under the same rules."""
    games = [episode["return"] for score in group for episode in score["episodes"]]
    means = [score["mean"] for score in group]
    axis = Axis.over([*games, *means, *(baseline["score"] for baseline in comparable)])
    what = "A dot is a game, the upright line the mean, the bar its 95 % interval."
    if comparable:
        what += " A diamond is a baseline measured by others under the same rules."
    rows = [_score_row(score, axis) for score in group] + [_baseline_row(baseline, axis) for baseline in comparable]
    return _joined([tag("h3", "Scores"), tag("p", what, class_="soft"), tag("figure", *rows, _axis_row(axis))])


def _score_row(score: Score, axis: Axis) -> Markup:
    marks = [_game_dot(index, episode, axis) for index, episode in enumerate(score["episodes"])]
    middle = ROW_HEIGHT / 2
    if score["ci95"] is not None:
        low, high = (axis.percent(end) for end in score["ci95"])
        marks.append(tag("line", x1=low, x2=high, y1=middle, y2=middle, class_="interval"))
    mean = axis.percent(score["mean"])
    marks.append(tag("line", x1=mean, x2=mean, y1=middle - 12, y2=middle + 12, class_="mean"))
    number = [_number(score["mean"]), " ", tag("small", _interval(score["ci95"]))]
    return _row(score["run"], _kind(score), _track(axis, marks), number)


def _game_dot(index: int, episode: Mapping[str, Any], axis: Axis) -> Markup:
    spread = (index * 0.618_034) % 1 - 0.5  # multiples of the golden ratio fill the height evenly, the same at every call
    words = f"game {index}: {_number(episode['return'])} points, {episode['frames']:,} frames, seed {episode['seed']}"
    place = {"cx": axis.percent(episode["return"]), "cy": f"{ROW_HEIGHT / 2 + 2 * JITTER * spread:.1f}"}
    return tag("circle", tag("title", words), **place, r=3, class_="dot")


def _baseline_row(baseline: Baseline, axis: Axis) -> Markup:
    diamond = tag("path", d=f"M0 {ROW_HEIGHT / 2 - 6} l6 6 l-6 6 l-6 -6 z", class_="baseline")
    mark = tag("svg", diamond, x=axis.percent(baseline["score"]), overflow="visible")
    return _row(baseline["name"], _about_baseline(baseline), _track(axis, [mark]), [_number(baseline["score"])])


def _about_baseline(baseline: Baseline) -> str:
    words = [f"{_short(baseline['frames'])} frames" if baseline.get("frames") else "", baseline.get("score_kind") or ""]
    return ", ".join(["published", *(word for word in words if word)])


def _row(name: object, about: str, track: Markup, number: Sequence[object]) -> Markup:
    label = tag("div", name, tag("small", about), class_="name")
    return tag("div", label, track, tag("div", *number, class_="number"), class_="row")


def _track(axis: Axis, marks: Sequence[Markup]) -> Markup:
    lines = [tag("line", x1=axis.percent(tick), x2=axis.percent(tick), y1=0, y2="100%", class_="grid") for tick in axis.ticks]
    return tag("svg", *lines, *marks, class_="track", height=ROW_HEIGHT, role="img")


def _axis_row(axis: Axis) -> Markup:
    labels = [_scale_label(_number(tick), axis.percent(tick), 14, "middle") for tick in axis.ticks]
    return tag("div", tag("svg", *labels, class_="track", height=20), class_="row")


def _scale_label(text: str, x: str, y: float, anchor: str) -> Markup:
    return tag("text", text, x=x, y=y, text_anchor=anchor, class_="scale")


def _score_table(group: Sequence[Score]) -> Markup:
    statistics = ("#Mean", "#95 % interval", "#Median", "#Std", "#IQM", "#Games", "#Distinct", "#Human-normalised")
    words = "Points a game. IQM is the mean of the middle half of the games; games are distinct where score or length differs."
    return _table(words, ("Run", "Kind", *statistics), map(_score_cells, group))


def _score_cells(score: Score) -> list[object]:
    statistics = [_number(score[name]) for name in ("median", "std", "iqm")]
    human = "" if score["human_normalized"] is None else f"{score['human_normalized']:.2f}"
    counts = [len(score["episodes"]), score["distinct_games"], human]
    return [score["run"], _kind(score), _number(score["mean"]), _interval(score["ci95"]), *statistics, *counts]


def _origin_table(group: Sequence[Score]) -> Markup:
    columns = ("Run", "Kind", "Algorithm", "#Trained frames", "Policy", "Checkpoint", "Commit")
    return _joined([tag("h3", "Where these scores come from"), _table("", columns, map(_origin_cells, group))])


def _origin_cells(score: Score) -> list[object]:
    frames = f"{score['frames']:,}" if score["frames"] else ""
    checkpoint = score["checkpoint"] or ""
    return [score["run"], _kind(score), score["algorithm"], frames, score["policy"], checkpoint, _short_commit(score["commit"])]


def _short_commit(text: object) -> str:
    """A commit by its first 12 digits, anything else whole, nothing for None."""
    words = "" if text is None else str(text)
    return words[:12] if len(words) == 40 and set(words) <= set("0123456789abcdef") else words


# --- baselines ------------------------------------------------------------------------------------------------------


def _baselines(group: Sequence[Score]) -> tuple[list[Baseline], list[Baseline]]:
    """Those under our rules, and the others; each once, though several scores bring it."""
    found = {(b["name"], b["score"], b["source"], b["comparable"]): b for score in group for b in score["baselines"]}
    return [b for b in found.values() if b["comparable"]], [b for b in found.values() if not b["comparable"]]


def _comparable_table(baselines: Sequence[Baseline]) -> Markup:
    if not baselines:
        return tag("p", "No published score was found that was measured under these rules.", class_="soft")
    columns = ("Baseline", "#Score", "#Trained frames", "Rules", "Source")
    heading = tag("h3", "Baselines under the same rules")
    return _joined([heading, _table("Measured by others.", columns, (_baseline_cells(b) for b in baselines))])


def _other_table(baselines: Sequence[Baseline]) -> Markup:
    """Scores that say little about ours, in a table of their own."""
    if not baselines:
        return Markup()
    columns = ("Not comparable", "#Score", "#Trained frames", "What differs", "Rules", "Source")
    rows = [_other_cells(baseline) for baseline in baselines]
    words = "These were measured under other rules, so they do not say whether our agent is better or worse."
    parts = [tag("h3", "Scores under other rules: not comparable"), tag("p", words, class_="soft")]
    parts.append(_table("", columns, rows[:OTHER_RULES_SHOWN]))
    if rest := rows[OTHER_RULES_SHOWN:]:
        parts.append(tag("details", tag("summary", f"{len(rest)} more under other rules"), _table("", columns, rest)))
    return tag("div", *parts, class_="other")


def _baseline_cells(baseline: Baseline) -> list[object]:
    frames = f"{baseline['frames']:,}" if baseline.get("frames") else ""
    return [baseline["name"], _number(baseline["score"]), frames, baseline["protocol"], baseline["source"]]


def _other_cells(baseline: Baseline) -> list[object]:
    cells = _baseline_cells(baseline)
    return [*cells[:3], "; ".join(baseline.get("differences", ())), *cells[3:]]


def _table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table whose columns of numbers are those named with a `#` in front; on a phone each row becomes a list of its own."""
    names = [column.removeprefix("#") for column in columns]
    kinds = ["number" if column.startswith("#") else None for column in columns]
    head = [tag("th", name, class_=kind) for name, kind in zip(names, kinds, strict=True)]
    body = [
        tag("tr", *(tag("td", c, class_=kind or _long(c), data_label=n) for c, n, kind in zip(row, names, kinds, strict=True)))
        for row in rows
    ]
    above = [tag("caption", caption)] if caption else []
    return tag("table", *above, tag("thead", tag("tr", *head)), tag("tbody", *body), class_="stack")


def _long(cell: object) -> str | None:
    return "long" if len(str(cell)) > 28 else None


# --- the learning curve ---------------------------------------------------------------------------------------------


def _curve_section(curves: Mapping[str, Curve], agents: Sequence[Score]) -> Markup:
    lines = {run: _points(curve) for run, curve in curves.items()}
    lines = {run: points for run, points in lines.items() if points}
    if not lines:
        trained = any(score["frames"] for score in agents)
        return tag("p", "No learning curve: no finished training game was logged.", class_="soft") if trained else Markup()
    words = "Mean score of the last 100 training games over emulator frames, while learning (not the frozen agent)."
    return _joined([tag("h3", "Learning curve"), tag("p", words, class_="soft"), _legend(lines), _curve_plot(lines)])


def _points(curve: Curve) -> list[tuple[float, float]]:
    """(emulator frames, score) of the rows that have both, thinned evenly; the last stays."""
    rows = [(row.get("frames"), row.get("score/mean_100")) for row in curve]
    points = [(x, y) for x, y in rows if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]
    every = max(1, -(-len(points) // CURVE_POINTS))
    return points[::-1][::every][::-1]


def _legend(lines: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    entries = []
    for index, (run, line) in enumerate(lines.items()):
        swatch = tag("span", class_="swatch", style=f"background: {_colour(index)}")
        frames, score = line[-1]
        entries.append(tag("span", swatch, f"{run}: {_number(score)} after {_short(frames)} frames"))
    return tag("div", *entries, class_="legend soft")


def _curve_plot(lines: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    x_axis = Axis.over((x for points in lines.values() for x, _ in points), most_ticks=5)
    x_axis = x_axis._replace(high=max(x for points in lines.values() for x, _ in points) or 1.0)
    y_axis = Axis.over((y for points in lines.values() for _, y in points), most_ticks=5)
    paths = [_curve(points, x_axis, y_axis, _colour(index)) for index, points in enumerate(lines.values())]
    drawing = tag("svg", *paths, viewBox="0 0 1000 1000", preserveAspectRatio="none", width="100%", height=CURVE_HEIGHT)
    plot = tag("svg", _curve_grid(x_axis, y_axis), drawing, width="100%", height=CURVE_HEIGHT + 24, role="img")
    return tag("figure", plot)


def _curve(points: Sequence[tuple[float, float]], x_axis: Axis, y_axis: Axis, colour: str) -> Markup:
    """A line in a drawing of 1000 x 1000 that is stretched to the plot; a single point becomes a level stroke."""
    whole = points if len(points) > 1 else [(x_axis.low, points[0][1]), points[0]]
    placed = (f"{1000 * x_axis.share(x):.1f},{1000 * (1 - y_axis.share(y)):.1f}" for x, y in whole)
    return tag("polyline", points=" ".join(placed), class_="line", style=f"stroke: {colour}")


def _curve_grid(x_axis: Axis, y_axis: Axis) -> Markup:
    parts: list[Markup] = []
    for tick in y_axis.ticks:
        y = round(CURVE_HEIGHT * (1 - y_axis.share(tick)), 1)
        parts.append(tag("line", x1=0, x2="100%", y1=y, y2=y, class_="grid"))
        parts.append(_scale_label(_number(tick), "0", y - 4, "start"))
    ticks = [tick for tick in x_axis.ticks if tick <= x_axis.high]
    for tick in ticks:
        anchor = "start" if tick == ticks[0] else "end" if x_axis.share(tick) > 0.95 else "middle"
        parts.append(_scale_label(_short(tick), x_axis.percent(tick), CURVE_HEIGHT + 18, anchor))
    return _joined(parts)


def _colour(index: int) -> str:
    return f"var(--c{index % COLOURS})"


# --- videos and rules -----------------------------------------------------------------------------------------------


def _video_section(run: str, video: Path, folder: Path) -> Markup:
    size = video.stat().st_size
    relative = quote(Path(os.path.relpath(video.resolve(), folder.resolve())).as_posix())
    embedded = size <= EMBEDDED_BYTES
    source = f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode('ascii')}" if embedded else relative
    player = tag("video", src=source, controls=True, muted=True, playsinline=True, preload="metadata")
    parts = [tag("h3", f"A game of {run}"), player]
    if not embedded:
        words = f" ({size / 1e6:.1f} MB) lies beside this page: it is too large to be inside."
        parts.append(tag("p", tag("a", video.name, href=relative), words, class_="soft"))
    return tag("figure", *parts, _card(video.with_suffix(".json")))


def _card(path: Path) -> Markup:
    """What is known of a video: its card's plain facts, and that it does not show the whole game where it does not."""
    if not path.is_file():
        return Markup()
    card = json.loads(path.read_text(encoding="utf-8"))
    stopped = card.pop("recording_stopped_at", None)
    plain = {key: value for key, value in card.items() if isinstance(value, str | int | float)}
    notice = f"Recording stopped at {_number(stopped)} emulator frames; the game went on." if stopped else None
    return _joined([tag("p", notice, class_="warn") if notice else Markup(), _facts(plain)])


def _protocol_table(group: Sequence[Score]) -> Markup:
    fields = dict.fromkeys(field for score in group for field in score["protocol"])
    return _joined([tag("h3", "The rules of our games"), _facts({field: _field(field, group) for field in fields})])


def _field(field: str, group: Sequence[Score]) -> str:
    """A rule's value; where our scores differ in it, each value with the runs that have it."""
    runs: dict[str, list[str]] = {}
    for score in group:
        runs.setdefault(_rule(field, score["protocol"].get(field)), []).append(str(score["run"]))
    if len(runs) == 1:
        return next(iter(runs))
    return "; ".join(f"{value} ({', '.join(dict.fromkeys(names))})" for value, names in runs.items())


def _rule(field: str, value: object) -> str:
    if field == "frame_skip" and isinstance(value, Sequence):
        return _span(value)
    if isinstance(value, list | tuple):
        return " x ".join(str(part) for part in value)
    return _plain(value)


def _span(ends: Sequence[Any]) -> str:
    return str(ends[0]) if ends[0] == ends[-1] else f"{ends[0]} to {ends[-1]}"


def _facts(facts: Mapping[str, object]) -> Markup:
    rows = [
        tag("tr", tag("th", LABELS.get(key, key.replace("_", " ").capitalize()), scope="row"), tag("td", _plain(value, key)))
        for key, value in facts.items()
    ]
    return tag("table", tag("tbody", *rows), class_="facts")


# --- numbers in words -----------------------------------------------------------------------------------------------


def _plain(value: object, key: str = "") -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and "seed" not in key:
        return f"{int(value):,}" if float(value).is_integer() else f"{value:,}"
    return str(value)


def _number(value: float | None) -> str:
    """Points with as many decimals as help: none where whole, one from 10 on, two below."""
    if value is None or not math.isfinite(value):
        return "-"
    if float(value).is_integer():
        return f"{value:,.0f}"
    return points(value)


def _interval(ends: Sequence[float] | None) -> str:
    return "no interval" if ends is None else f"[{_number(ends[0])}, {_number(ends[1])}]"


def _short(count: float) -> str:
    """A count of frames in at most four letters or so: 900, 40k, 2.5M, 20B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"
