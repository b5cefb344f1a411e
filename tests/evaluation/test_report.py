"""The report says what was measured, keeps what may not be compared apart, and trusts no string that it is given."""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evaluation import report
from evaluation.markup import Markup, tag
from evaluation.plots import Axis
from evaluation.report import write_report

HOSTILE = "\"'><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>&amp;"
VOID = {"meta", "br", "img", "input", "link", "source"}


class Node:
    """An element of a parsed page."""

    def __init__(self, name: str, attributes: dict[str, str | None], parent: "Node | None") -> None:
        self.name, self.attributes, self.parent = name, attributes, parent
        self.children: list[Node] = []
        self.own_text = ""

    def every(self) -> Iterator["Node"]:
        yield self
        for child in self.children:
            yield from child.every()

    def find(self, name: str = "", class_: str = "") -> list["Node"]:
        found = [node for node in self.every() if not name or node.name == name]
        return [node for node in found if not class_ or class_ in (node.attributes.get("class") or "").split()]

    @property
    def text(self) -> str:
        return " ".join(node.own_text for node in self.every() if node.name != "style" and node.own_text)


class Page(HTMLParser):
    """Parses a page into nodes and fails where its tags are not nested."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.root = self._at = Node("", {}, None)
        self.feed(source)
        self.close()
        assert self._at is self.root

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        node = Node(name, dict(attributes), self._at)
        self._at.children.append(node)
        if name not in VOID:
            self._at = node

    def handle_endtag(self, name: str) -> None:
        assert name == self._at.name
        assert self._at.parent is not None
        self._at = self._at.parent

    def handle_data(self, text: str) -> None:
        self._at.own_text += text


def protocol_of(**changes: Any) -> dict[str, Any]:
    rules = {"env": "Bowling-v0", "observation": "pixels", "size": [1, 84, 84], "frame_skip": [2, 4], "sticky": 0.25}
    limits = {"noop_max": 0, "episode_end": "game over", "max_episode_frames": None, "max_episode_steps": 10_000}
    return {**rules, **limits, "rom_md5": "c9b7", "backend": "ale-py 0.12.1", **changes}


def baseline_of(name: str, score: float, comparable: bool) -> dict[str, Any]:
    rules = "sticky 0.25" if comparable else "no sticky actions"
    facts = {"name": name, "score": score, "protocol": rules, "source": f"{name}'s paper", "comparable": comparable}
    return {**facts, "differences": [] if comparable else [rules]}


def score_of(run: str = "bowl-ppo-s1", **changes: Any) -> dict[str, Any]:
    episodes = [{"return": 40.0 + 10 * game, "frames": 8_000 + game, "seed": 7 + game, "terminated": True} for game in range(4)]
    protocol = changes.pop("protocol", protocol_of())
    trained = {
        "run": run,
        "algorithm": "ppo",
        "env": protocol["env"],
        "protocol": protocol,
        "policy": "sampled",
        "frames": 2_000_000,
    }
    origin = {"checkpoint": "checkpoints/000002000000", "commit": "0123456789abcdef" * 2 + "01234567"}
    statistics = {"mean": 55.0, "median": 56.5, "std": 12.9, "iqm": 55.0, "ci95": [45.0, 65.0], "distinct_games": 4}
    baselines = [baseline_of("Fair", 160.0, True), baseline_of("Unfair", 260.0, False)]
    return {
        **trained,
        **origin,
        "episodes": episodes,
        **statistics,
        "human_normalized": 0.23,
        "baselines": baselines,
        **changes,
    }


def page_of(tmp_path: Path, *scores: Mapping[str, Any], command: str = "python evaluate.py runs/x", **others: Any) -> Node:
    path = tmp_path / "report.html"
    write_report(path, scores, others.get("curves", {}), others.get("videos", {}), command)
    return Page(path.read_text(encoding="utf-8")).root


def video_of(folder: Path, name: str = "game.mp4", **card: Any) -> Path:
    video = folder / name
    video.write_bytes(b"\x00\x01a video" * 20)
    video.with_suffix(".json").write_text(json.dumps({"run": "bowl-ppo-s1", "score": 55.0, "seed": 1234567, **card}))
    return video


CURVE = [{"frames": 1e6 * i, "steps": 1.0, "score/mean_100": 10.0 * i, "loss/policy": 9e9} for i in range(1, 11)]


def assert_fetches_nothing(page: Node) -> None:
    for node in page.every():
        assert node.name not in {"script", "link", "iframe", "object", "embed", "base", "img", "form"}
        for name, value in node.attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "poster", "data", "action", "xlink:href"}:
                assert re.match(r"data:video/mp4;base64,|[\w./%-]+$", value or "")
            assert "url(" not in (value or "")
    assert all("url(" not in style.own_text and "@import" not in style.own_text for style in page.find("style"))


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    videos = {"bowl-ppo-s1": [video_of(tmp_path)]}
    page = page_of(tmp_path, score_of(), curves={"bowl-ppo-s1": CURVE}, videos=videos)
    assert_fetches_nothing(page)
    policies = [node.attributes["content"] or "" for node in page.find("meta") if "http-equiv" in node.attributes]
    assert policies[0].startswith("default-src 'none'")
    assert "http" not in policies[0]


def hostile(value: Any) -> Any:
    """The same shape with every string, keys of rules and facts too, replaced by an attack."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, dict):
        return {key: hostile(part) for key, part in value.items()}
    return [hostile(part) for part in value] if isinstance(value, list) else value


def test_hostile_strings_are_text(tmp_path: Path) -> None:
    score = {**hostile(score_of(blind_note="note")), "kind": "agent"}
    score["protocol"]["<b>field</b>"] = HOSTILE
    video = video_of(tmp_path, "a\"'<b>&.mp4", **{"<i>fact</i>": HOSTILE, "run": HOSTILE})
    page = page_of(tmp_path, score, curves={HOSTILE: CURVE}, videos={HOSTILE: [video]}, command=HOSTILE)
    assert_fetches_nothing(page)
    assert not [node for node in page.every() if node.name in {"b", "i"}]
    # title, h1, h2, two names of the run, note, command and each cell of the tables
    assert page.text.count(HOSTILE) > 20
    assert HOSTILE in page.find("title")[0].own_text
    assert page.find("pre")[0].own_text == HOSTILE


def test_what_is_not_comparable_stands_apart(tmp_path: Path) -> None:
    page = page_of(tmp_path, score_of())
    (other,) = page.find(class_="other")
    assert "Unfair" in other.text
    assert "not comparable" in other.find("h3")[0].text
    assert "Fair" not in [cell.text for cell in other.find("td")]
    assert "bowl-ppo-s1" not in other.text
    assert page.text.count("Unfair") == other.text.count("Unfair")
    rows = [row.find(class_="name")[0].text for row in page.find(class_="row") if row.find(class_="name")]
    assert [row.split()[0] for row in rows] == ["bowl-ppo-s1", "Fair"]


def test_baselines_that_several_scores_bring_are_shown_once(tmp_path: Path) -> None:
    page = page_of(tmp_path, score_of("a"), score_of("b"))
    (diamond,) = page.find(class_="baseline")
    assert diamond.parent is not None
    assert diamond.parent.attributes["x"] == "80.00%"  # 160 on 0..200
    assert len(page.find(class_="other")[0].find("tr")) == 2  # the head and one baseline


def test_many_scores_under_other_rules_unfold(tmp_path: Path) -> None:
    others = [baseline_of(f"Other {i}", 10.0 * i, False) for i in range(9)]
    page = page_of(tmp_path, score_of(baselines=others))
    (details,) = page.find("details")
    assert len(page.find(class_="other")[0].find("table")[0].find("tr")) == 7  # the head and six
    assert details.find("summary")[0].text == "3 more under other rules"
    assert [row.find("td")[0].text for row in details.find("tr")[1:]] == ["Other 6", "Other 7", "Other 8"]


def test_scores_under_different_rules_have_their_own_sections(tmp_path: Path) -> None:
    other_rules = score_of("sticky-less", protocol=protocol_of(sticky=0.0))
    page = page_of(tmp_path, score_of("a"), score_of("b"), other_rules)
    sections = page.find("section")
    assert len(sections) == 2
    assert "sticky-less" not in sections[0].text
    assert [name in sections[1].text for name in ("sticky-less", "b ppo")] == [True, False]


@pytest.mark.parametrize(
    "rule",
    [
        "observation",
        "extra",
        "level",
        "sticky",
        "episode_end",
        "noop_max",
        "max_episode_frames",
        "max_episode_steps",
        "mode",
        "difficulty",
    ],
)
def test_each_rule_keeps_scores_apart(tmp_path: Path, rule: str) -> None:
    page = page_of(tmp_path, score_of("a"), score_of("b", protocol=protocol_of(**{rule: ["77"] if rule == "extra" else 77})))
    assert len(page.find("section")) == 2


def test_a_rule_that_may_differ_is_shown_with_its_runs(tmp_path: Path) -> None:
    page = page_of(tmp_path, score_of("a"), score_of("b", protocol=protocol_of(frame_skip=[4, 4])))
    assert len(page.find("section")) == 1
    assert "2 to 4 (a); 4 (b)" in page.text


def test_the_interval_is_in_words_and_drawn(tmp_path: Path) -> None:
    page = page_of(tmp_path, score_of())
    assert "The mean of 4 games; its 95 % interval is 45 to 65." in page.text
    (interval,) = page.find(class_="interval")
    assert (interval.attributes["x1"], interval.attributes["x2"]) == ("22.50%", "32.50%")  # 45 and 65 on 0..200
    (mean,) = page.find(class_="mean")
    assert mean.attributes["x1"] == mean.attributes["x2"] == "27.50%"  # 55


@pytest.mark.parametrize(
    ("games", "distinct", "words"),
    [
        (12, 1, "1 of 12 games are distinct, too few for an interval"),
        (1, 1, "The mean of 1 game; 1 game is too few for an interval"),
        (4, 4, "The mean of 4 games; 4 games are too few for an interval"),
        (12, 12, "all games have one score, over which an interval says nothing"),
    ],
)
def test_without_an_interval_the_page_says_why(tmp_path: Path, games: int, distinct: int, words: str) -> None:
    episodes = (3 * score_of()["episodes"])[:games]
    score = score_of(ci95=None, distinct_games=distinct, episodes=episodes, std=None)
    page = page_of(tmp_path, score)
    assert words in page.text
    assert not page.find(class_="interval")


def test_games_that_were_cut_off_are_counted(tmp_path: Path) -> None:
    episodes = [{**episode, "terminated": episode["seed"] == 7} for episode in score_of()["episodes"]]
    assert (
        "The mean of 4 games, 3 of them cut off by the limit; its 95 % interval"
        in page_of(tmp_path, score_of(episodes=episodes)).text
    )


def test_every_game_is_a_dot_where_its_score_is(tmp_path: Path) -> None:
    dots = page_of(tmp_path, score_of()).find(class_="dot")
    assert [dot.attributes["cx"] for dot in dots] == ["20.00%", "25.00%", "30.00%", "35.00%"]  # 40, 50, 60, 70 on 0..200
    assert len({dot.attributes["cy"] for dot in dots}) == 4
    assert dots[1].text == "game 1: 50 points, 8,001 frames, seed 8"


def test_the_same_scores_give_the_same_page(tmp_path: Path) -> None:
    page_of(tmp_path, score_of(), curves={"bowl-ppo-s1": CURVE})
    first = (tmp_path / "report.html").read_bytes()
    page_of(tmp_path, score_of(), curves={"bowl-ppo-s1": CURVE})
    assert (tmp_path / "report.html").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_headline_is_the_agents(tmp_path: Path) -> None:
    random = score_of("random:Bowling-v0", kind="random", frames=0, mean=24.0)
    page = page_of(tmp_path, score_of(blind_note="A blind script comes close."), random)
    (card,) = page.find(class_="card")
    assert "bowl-ppo-s1 (ppo, 2M frames of training)" in card.text
    assert "A blind script comes close." in card.find(class_="warn")[0].text
    assert "0.23" in card.text


def test_where_nothing_was_trained_every_score_is_a_headline(tmp_path: Path) -> None:
    page = page_of(tmp_path, score_of("random:Bowling-v0", kind="random", frames=0, human_normalized=None))
    assert "random:Bowling-v0 (ppo)" in page.find(class_="card")[0].text
    assert "No learning curve" not in page.text
    assert "Human-normalised 0" not in page.text


def test_no_baselines_at_all(tmp_path: Path) -> None:
    page = page_of(tmp_path, score_of(baselines=[]))
    assert "No published score was found" in page.text
    assert not page.find(class_="other")


def test_the_curve_is_drawn_to_scale(tmp_path: Path) -> None:
    page = page_of(tmp_path, score_of(), curves={"bowl-ppo-s1": CURVE, "of another evaluation": CURVE})
    (line,) = page.find("polyline")
    points = (line.attributes["points"] or "").split()
    assert (len(points), points[0], points[4], points[-1]) == (10, "100.0,900.0", "500.0,500.0", "1000.0,0.0")
    assert "bowl-ppo-s1: 100 after 10M frames" in page.text


def test_the_curve_begins_where_its_mean_is_of_a_hundred_games(tmp_path: Path) -> None:
    curve = [{**row, "score/games": 30.0 * i} for i, row in enumerate(CURVE, 1)]  # 120 games behind the fourth row
    (line,) = page_of(tmp_path, score_of(), curves={"bowl-ppo-s1": curve}).find("polyline")
    assert len((line.attributes["points"] or "").split()) == 7
    (line,) = page_of(tmp_path, score_of(), curves={"bowl-ppo-s1": curve[:3]}).find("polyline")
    assert len((line.attributes["points"] or "").split()) == 3


def test_what_is_known_of_a_baseline_stands_beside_it(tmp_path: Path) -> None:
    known = {"std": 12.5, "seeds": 5, "score_kind": "training", "action_set": "full", "frames": 50_000_000}
    rows = page_of(
        tmp_path, score_of(baselines=[{**baseline_of("Fair", 160.0, True), **known}, baseline_of("Other", 1.0, True)])
    )
    cells = [[cell.text for cell in row.find("td")] for row in rows.find("tr")]
    assert ["Fair", "160", "12.5 (5)", "training", "full", "50,000,000", "sticky 0.25", "Fair's paper"] in cells
    assert ["Other", "1", "", "not stated", "not stated", "", "sticky 0.25", "Other's paper"] in cells


def test_zero_has_no_sign(tmp_path: Path) -> None:
    (section,) = page_of(tmp_path, score_of(human_normalized=-0.004, mean=-0.0)).find("section")
    assert "Human-normalised 0.00: " in section.text and "-0" not in section.text


def test_references_of_other_rules_are_said_to_be_so(tmp_path: Path) -> None:
    for comparable in (True, False):
        references = [baseline_of("random", 23.1, comparable), baseline_of("human", 160.7, comparable)]
        page = page_of(tmp_path, score_of(baselines=references))
        assert ("both as published, under other rules." in page.text) == (not comparable)


def test_each_run_has_its_line(tmp_path: Path) -> None:
    page = page_of(tmp_path, score_of("a"), score_of("b"), curves={"a": CURVE, "b": CURVE[:1]})
    styles = [line.attributes["style"] for line in page.find("polyline")]
    assert styles == ["stroke: var(--c0)", "stroke: var(--c1)"]


@pytest.mark.parametrize(
    "curve", [None, [], [{"frames": 1e6, "loss/policy": 0.1}], [{"frames": 1e6, "score/mean_100": float("nan")}]]
)
def test_a_missing_curve_is_said_to_be_missing(tmp_path: Path, curve: Any) -> None:
    page = page_of(tmp_path, score_of(), curves={} if curve is None else {"bowl-ppo-s1": curve})
    assert "No learning curve" in page.text
    assert not page.find("polyline")


def test_a_long_curve_is_thinned_and_keeps_its_end(tmp_path: Path) -> None:
    curve = [{"frames": float(i), "score/mean_100": 1.0 * i} for i in range(1, 10_002)]
    page = page_of(tmp_path, score_of(), curves={"bowl-ppo-s1": curve})
    (line,) = page.find("polyline")
    points = (line.attributes["points"] or "").split()
    assert 200 < len(points) <= 400
    assert page.find(class_="legend")[0].text.strip() == "bowl-ppo-s1: 10,001 after 10k frames"


def test_a_small_video_is_inside_and_a_large_one_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = video_of(tmp_path, "a game: 1.mp4")
    (player,) = page_of(tmp_path, score_of(), videos={"bowl-ppo-s1": [video]}).find("video")
    data = (player.attributes["src"] or "").removeprefix("data:video/mp4;base64,")
    assert base64.b64decode(data, validate=True) == video.read_bytes()
    monkeypatch.setattr(report, "EMBEDDED_BYTES", video.stat().st_size - 1)
    page = page_of(tmp_path, score_of(), videos={"bowl-ppo-s1": [video]})
    assert page.find("video")[0].attributes["src"] == page.find("a")[0].attributes["href"] == "a%20game%3A%201.mp4"


def test_the_video_comes_with_its_card(tmp_path: Path) -> None:
    video = video_of(tmp_path, recording_stopped_at=36_000, protocol={"env": "x"})
    (figure,) = [
        node for node in page_of(tmp_path, score_of(), videos={"bowl-ppo-s1": [video]}).find("figure") if node.find("video")
    ]
    assert "Recording stopped at 36,000 emulator frames" in figure.find(class_="warn")[0].text
    assert [cell.text for cell in figure.find("td")] == ["bowl-ppo-s1", "55", "1234567"]


def test_a_video_without_a_card_is_shown_and_a_missing_one_is_not_passed_over(tmp_path: Path) -> None:
    video = video_of(tmp_path)
    video.with_suffix(".json").unlink()
    assert page_of(tmp_path, score_of(), videos={"bowl-ppo-s1": [video]}).find("video")
    with pytest.raises(FileNotFoundError):
        page_of(tmp_path, score_of(), videos={"bowl-ppo-s1": [tmp_path / "none.mp4"]})


def test_rules_command_and_commit_are_there(tmp_path: Path) -> None:
    page = page_of(tmp_path, score_of(), command="python evaluate.py runs/x --seed 3")
    assert page.find("pre")[0].text == "python evaluate.py runs/x --seed 3"
    assert "0123456789ab" in page.text.split()  # the first twelve digits
    rules = {row.find("th")[0].text: row.find("td")[0].text for row in page.find(class_="facts")[-1].find("tr")}
    assert rules["Frame skip (emulator frames an action)"] == "2 to 4"
    assert rules["Observation size"] == "1 x 84 x 84"
    assert rules["Cut off after (emulator frames)"] == "none"
    assert rules["Cut off after (agent steps)"] == "10,000"


def test_an_element_escapes_all_but_markup() -> None:
    assert (
        tag("p", "<b>", Markup("<i></i>"), 3, class_='"', hidden=True, id=None)
        == '<p class="&quot;" hidden>&lt;b&gt;<i></i>3</p>'
    )


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([136.0, 24.0], (0, 50, 100, 150)),
        ([-21.0, 21.0], (-30, -20, -10, 0, 10, 20, 30)),
        ([0.3], (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)),
        ([0.0, float("nan")], (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
    ],
)
def test_axes_end_at_round_numbers(values: list[float], ticks: tuple[float, ...]) -> None:
    axis = Axis.over(values)
    assert axis.ticks == pytest.approx(ticks)
    assert (axis.share(axis.low), axis.share(axis.high)) == (0, 1)
    assert axis.low <= min(values) and max(values[:1]) <= axis.high
