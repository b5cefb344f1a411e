"""The report's two plots, drawn as SVG: scores beside each other, and learning curves."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from evaluation.markup import Markup, interval, joined, number, tag
from evaluation.rules import Score, kind_of
from training.progress import short
from training.scores import WINDOW

ROW_HEIGHT = 40  # pixels, of one row of the score plot
JITTER = 9  # pixels, up and down, so that games of equal score do not cover each other
CURVE_POINTS = 400  # at most, a run: more cannot be told apart on a screen
CURVE_HEIGHT = 240  # pixels
COLOURS = 6  # lines of a learning curve with a colour of their own

Baseline = Mapping[str, Any]  # one of a score's `baselines`
Curve = Sequence[Mapping[str, float]]  # rows of `metrics.jsonl`


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


def score_plot(group: Sequence[Score], comparable: Sequence[Baseline]) -> Markup:
    """A row a score: its games as dots, its mean and its interval; then a row a baseline under the same rules."""
    games = [episode["return"] for score in group for episode in score["episodes"]]
    means = [score["mean"] for score in group]
    axis = Axis.over([*games, *means, *(baseline["score"] for baseline in comparable)])
    what = "A dot is a game, the upright line the mean, the bar its 95 % interval."
    if comparable:
        what += " A diamond is a baseline measured by others under the same rules."
    rows = [_score_row(score, axis) for score in group] + [_baseline_row(baseline, axis) for baseline in comparable]
    return joined([tag("h3", "Scores"), tag("p", what, class_="soft"), tag("figure", *rows, _axis_row(axis))])


def _score_row(score: Score, axis: Axis) -> Markup:
    marks = [_game_dot(index, episode, axis) for index, episode in enumerate(score["episodes"])]
    middle = ROW_HEIGHT / 2
    if score["ci95"] is not None:
        low, high = (axis.percent(end) for end in score["ci95"])
        marks.append(tag("line", x1=low, x2=high, y1=middle, y2=middle, class_="interval"))
    mean = axis.percent(score["mean"])
    marks.append(tag("line", x1=mean, x2=mean, y1=middle - 12, y2=middle + 12, class_="mean"))
    figure = [number(score["mean"]), " ", tag("small", interval(score["ci95"]))]
    return _row(score["run"], kind_of(score), _track(axis, marks), figure)


def _game_dot(index: int, episode: Mapping[str, Any], axis: Axis) -> Markup:
    spread = (index * 0.618_034) % 1 - 0.5  # multiples of the golden ratio fill the height evenly, the same at every call
    words = f"game {index}: {number(episode['return'])} points, {episode['frames']:,} frames, seed {episode['seed']}"
    place = {"cx": axis.percent(episode["return"]), "cy": f"{ROW_HEIGHT / 2 + 2 * JITTER * spread:.1f}"}
    return tag("circle", tag("title", words), **place, r=3, class_="dot")


def _baseline_row(baseline: Baseline, axis: Axis) -> Markup:
    diamond = tag("path", d=f"M0 {ROW_HEIGHT / 2 - 6} l6 6 l-6 6 l-6 -6 z", class_="baseline")
    mark = tag("svg", diamond, x=axis.percent(baseline["score"]), overflow="visible")
    return _row(baseline["name"], _about_baseline(baseline), _track(axis, [mark]), [number(baseline["score"])])


def _about_baseline(baseline: Baseline) -> str:
    words = [f"{short(baseline['frames'])} frames" if baseline.get("frames") else "", baseline.get("score_kind") or ""]
    return ", ".join(["published", *(word for word in words if word)])


def _row(name: object, about: str, track: Markup, figure: Sequence[object]) -> Markup:
    label = tag("div", name, tag("small", about), class_="name")
    return tag("div", label, track, tag("div", *figure, class_="number"), class_="row")


def _track(axis: Axis, marks: Sequence[Markup]) -> Markup:
    lines = [tag("line", x1=axis.percent(tick), x2=axis.percent(tick), y1=0, y2="100%", class_="grid") for tick in axis.ticks]
    return tag("svg", *lines, *marks, class_="track", height=ROW_HEIGHT, role="img")


def _axis_row(axis: Axis) -> Markup:
    labels = [_scale_label(number(tick), axis.percent(tick), 14, "middle") for tick in axis.ticks]
    unit = tag("div", tag("small", "points"), class_="number")
    return tag("div", tag("svg", *labels, class_="track", height=20), unit, class_="row")


def _scale_label(text: str, x: str, y: float, anchor: str) -> Markup:
    return tag("text", text, x=x, y=y, text_anchor=anchor, class_="scale")


def curve_section(curves: Mapping[str, Curve], agents: Sequence[Score]) -> Markup:
    """A line a run under its heading; a sentence where agents have none, and nothing where nothing was trained."""
    lines = {run: _points(curve) for run, curve in curves.items()}
    lines = {run: points for run, points in lines.items() if points}
    if not lines:
        trained = any(score["frames"] for score in agents)
        return tag("p", "No learning curve: no finished training game was logged.", class_="soft") if trained else Markup()
    words = (
        "Points a game, the mean of the last 100 training games, over emulator frames: while learning, not the frozen agent. "
        "It begins with the hundredth game, since the first to end are short ones; where there are fewer, with the first."
    )
    return joined([tag("h3", "Learning curve"), tag("p", words, class_="soft"), _legend(lines), _curve_plot(lines)])


def _points(curve: Curve) -> list[tuple[float, float]]:
    """(emulator frames, score) of the rows that have both, thinned evenly; the last stays."""
    whole = [row for row in curve if row.get("score/games", WINDOW) >= WINDOW]
    rows = [(row.get("frames"), row.get("score/mean_100")) for row in whole or curve]
    points = [(x, y) for x, y in rows if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]
    every = max(1, -(-len(points) // CURVE_POINTS))
    return points[::-1][::every][::-1]


def _legend(lines: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    entries = []
    for index, (run, line) in enumerate(lines.items()):
        swatch = tag("span", class_="swatch", style=f"background: {_colour(index)}")
        frames, score = line[-1]
        entries.append(tag("span", swatch, f"{run}: {number(score)} after {short(frames)} frames"))
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
        unit = " points" if tick == y_axis.ticks[-1] else ""
        parts.append(_scale_label(number(tick) + unit, "0", y - 4, "start"))
    ticks = [tick for tick in x_axis.ticks if tick <= x_axis.high]
    for tick in ticks:
        anchor = "start" if tick == ticks[0] else "end" if x_axis.share(tick) > 0.95 else "middle"
        unit = " frames" if tick == ticks[-1] else ""
        parts.append(_scale_label(short(tick) + unit, x_axis.percent(tick), CURVE_HEIGHT + 18, anchor))
    return joined(parts)


def _colour(index: int) -> str:
    return f"var(--c{index % COLOURS})"
