"""One HTML page that says how good an agent is, beside what, under which rules, and lets one watch it play.

The page is a single file that opens offline: no script, no address outside it, plots as SVG, videos as data URIs. A content
security policy in its head forbids the browser to fetch anything else. Light or dark follows the system.

Every element is built by `tag`, which escapes each string that is not `Markup`, so that a name read from a file cannot become
HTML. Plots place things in percent of their width, so that one drawing fits a phone and a desktop with letters of one size.
"""

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from evaluation.markup import Markup, interval, joined, number, tag
from evaluation.plots import Baseline, Curve, curve_section, score_plot
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

EMBEDDED_BYTES = 8_000_000  # a larger video is linked to instead
OTHER_RULES_SHOWN = 6  # scores under other rules that stand open; the rest unfolds

LABELS = {
    "env": "Environment",
    "observation": "Observation",
    "size": "Observation size",
    "colour": "Colour",
    "frame_skip": "Frame skip (emulator frames an action)",
    "max_pool": "Brighter of the last two frames",
    "sticky": "Sticky actions (probability)",
    "action_set": "Action set",
    "extra": "Seen beside it",
    "level": "Level",
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
    "game_frames": "Game (emulator frames)",
    "trained_frames": "Trained (emulator frames)",
    "frames": "Video (emulator frames)",
    "held": "Last frame held for (frames)",
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
td { overflow-wrap: break-word; }
td.long { min-width: 8rem; overflow-wrap: anywhere; }
.other { overflow-x: auto; }
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
    head = joined(
        [
            Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
            tag("title", title),
            tag("style", Markup(STYLE)),
        ]
    )
    wholes = [tag("p", line) for line in suites_in_words(scores)]
    body = [tag("h1", title), *wholes, *sections, tag("h2", "How this was made"), tag("pre", command)]
    return joined([Markup("<!doctype html>\n"), tag("html", tag("head", head), tag("body", *body), lang="en"), Markup("\n")])


def _section(group: Sequence[Score], curves: Mapping[str, Curve], videos: Mapping[str, Sequence[Path]], folder: Path) -> Markup:
    runs = list(dict.fromkeys(str(score["run"]) for score in group))
    comparable, other = _baselines(group)
    parts = [
        tag("h2", group[0]["env"]),
        tag("p", rules_in_words(group[0]["protocol"]), class_="soft"),
        _headlines(group),
        score_plot(group, comparable),
        _score_table(group),
        _comparable_table(comparable),
        curve_section({run: curves[run] for run in runs if run in curves}, _agents(group)),
        *(_video_section(run, video, folder) for run in runs for video in videos.get(run, ())),
        _other_table(other),
        _origin_table(group),
        _protocol_table(group),
    ]
    return tag("section", *parts)


def _agents(group: Sequence[Score]) -> list[Score]:
    """What the page is about: the agents, or everything where nothing was trained."""
    return [score for score in group if kind_of(score) == "agent"] or list(group)


# --- the headline ---------------------------------------------------------------------------------------------------


def _headlines(group: Sequence[Score]) -> Markup:
    return tag("div", *(_headline(score) for score in _agents(group)), class_="cards")


def _headline(score: Score) -> Markup:
    trained = f", {short(score['frames'])} frames of training" if score["frames"] else ""
    parts = [
        tag("div", f"{score['run']} ({score['algorithm']}{trained})", class_="soft"),
        tag("p", number(score["mean"]), " ", tag("small", "points a game"), class_="big"),
        tag("p", _interval_in_words(score)),
    ]
    if score["human_normalized"] is not None:
        rules = ", under other rules" if by_references_of_other_rules(score) else ""
        words = f"0 is random play, 1 a human player, both as published{rules}"
        human = f"Human-normalised {score['human_normalized']:z.2f}: {words}."
        parts.append(tag("p", human, class_="soft"))
    if score.get("blind_note"):
        parts.append(tag("p", score["blind_note"], class_="warn"))
    return tag("div", *parts, class_="card")


def _interval_in_words(score: Score) -> str:
    games = len(score["episodes"])
    played = f"The mean of {games} {'game' if games == 1 else 'games'}{_cut_off(score['episodes'])}"
    if score["ci95"] is not None:
        low, high = score["ci95"]
        return f"{played}; its 95 % interval is {number(low)} to {number(high)}."
    return f"{played}; {why_no_interval(score)}."


def _cut_off(episodes: Sequence[Mapping[str, Any]]) -> str:
    cut = sum(not episode["terminated"] for episode in episodes)
    return f", {cut} of them cut off by the limit" if cut else ""


# --- scores ---------------------------------------------------------------------------------------------------------


def _score_table(group: Sequence[Score]) -> Markup:
    statistics = ("#Mean", "#95 % interval", "#Median", "#Std", "#IQM", "#Games", "#Distinct", "#Human-normalised")
    words = (
        "Points a game. IQM is the mean of the middle half of the games. "
        "Games are distinct where what was played differs, or what it brought."
    )
    return _table(words, ("Run", "Kind", *statistics), map(_score_cells, group))


def _score_cells(score: Score) -> list[object]:
    statistics = [number(score[name]) for name in ("median", "std", "iqm")]
    human = "" if score["human_normalized"] is None else f"{score['human_normalized']:z.2f}"
    counts = [len(score["episodes"]), score["distinct_games"], human]
    return [score["run"], kind_of(score), number(score["mean"]), interval(score["ci95"]), *statistics, *counts]


def _origin_table(group: Sequence[Score]) -> Markup:
    columns = ("Run", "Kind", "Algorithm", "#Trained frames", "Policy", "Checkpoint", "Commit")
    return joined([tag("h3", "Where these scores come from"), _table("", columns, map(_origin_cells, group))])


def _origin_cells(score: Score) -> list[object]:
    frames = f"{score['frames']:,}" if score["frames"] else ""
    checkpoint = score["checkpoint"] or ""
    return [
        score["run"],
        kind_of(score),
        score["algorithm"],
        frames,
        score["policy"],
        checkpoint,
        _short_commit(score["commit"]),
    ]


def _short_commit(text: object) -> str:
    """A commit by its first 12 digits, anything else whole, nothing for None."""
    words = "" if text is None else str(text)
    return words[:12] if len(words) == 40 and set(words) <= set("0123456789abcdef") else words


# --- baselines ------------------------------------------------------------------------------------------------------


_BASELINE = ("Baseline", "#Score", "#Std (seeds)", "Kind", "Actions", "#Trained frames")


def _baselines(group: Sequence[Score]) -> tuple[list[Baseline], list[Baseline]]:
    """Those under our rules, and the others; each once, though several scores bring it."""
    found = {(b["name"], b["score"], b["source"], b["comparable"]): b for score in group for b in score["baselines"]}
    return [b for b in found.values() if b["comparable"]], [b for b in found.values() if not b["comparable"]]


def _comparable_table(baselines: Sequence[Baseline]) -> Markup:
    if not baselines:
        return tag("p", "No published score was found that was measured under these rules.", class_="soft")
    columns = (*_BASELINE, "Rules", "Source")
    heading = tag("h3", "Baselines under the same rules")
    return joined([heading, _table("Measured by others.", columns, (_baseline_cells(b) for b in baselines))])


def _other_table(baselines: Sequence[Baseline]) -> Markup:
    """Scores that say little about ours, in a table of their own."""
    if not baselines:
        return Markup()
    columns = (*_BASELINE, "What differs", "Rules", "Source")
    rows = [_other_cells(baseline) for baseline in baselines]
    words = "These were measured under other rules, so they do not say whether our agent is better or worse."
    parts = [tag("h3", "Scores under other rules: not comparable"), tag("p", words, class_="soft")]
    parts.append(_table("", columns, rows[:OTHER_RULES_SHOWN]))
    if rest := rows[OTHER_RULES_SHOWN:]:
        parts.append(tag("details", tag("summary", f"{len(rest)} more under other rules"), _table("", columns, rest)))
    return tag("div", *parts, class_="other")


def _baseline_cells(baseline: Baseline) -> list[object]:
    frames = f"{baseline['frames']:,}" if baseline.get("frames") else ""
    std, seeds = baseline.get("std"), baseline.get("seeds")
    spread = " ".join([*([] if std is None else [number(std)]), *([f"({seeds})"] if seeds else [])])
    words = [baseline.get(name) or "not stated" for name in ("score_kind", "action_set")]
    return [baseline["name"], number(baseline["score"]), spread, *words, frames, baseline["protocol"], baseline["source"]]


def _other_cells(baseline: Baseline) -> list[object]:
    cells = _baseline_cells(baseline)
    return [*cells[:-2], "; ".join(baseline.get("differences", ())), *cells[-2:]]


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
    notice = f"Recording stopped at {number(stopped)} emulator frames; the game went on." if stopped else None
    return joined([tag("p", notice, class_="warn") if notice else Markup(), _facts(plain)])


def _protocol_table(group: Sequence[Score]) -> Markup:
    fields = dict.fromkeys(field for score in group for field in score["protocol"])
    return joined([tag("h3", "The rules of our games"), _facts({field: _field(field, group) for field in fields})])


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
        return (" x " if field == "size" else ", ").join(str(part) for part in value) or "nothing"
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
