"""The video holds every emulator frame in order, survives a kill, and says what it is."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from envs.contract import InputError
from evaluation.video import ACCENT, BARS_LEFT, BARS_TOP, PANEL_WIDTH, Moment, VideoWriter, draw_panel

REPOSITORY = Path(__file__).parents[2]
ACTIONS = ("NOOP", "FIRE", "UP", "DOWN", "UPFIRE", "DOWNFIRE")
BITS = 10  # a frame's number is painted into its picture as this many columns, black or white

Image = NDArray[np.uint8]


def numbered_frames(numbers: Sequence[int], height: int = 60, width: int = 80) -> Image:
    """(k, H, W, 3): pictures that say which frame they are."""
    columns = np.arange(width) * BITS // width
    bits = (np.asarray(numbers, int)[:, None] >> columns) & 1
    return np.broadcast_to((255 * bits)[:, None, :, None], (len(numbers), height, width, 3)).astype(np.uint8)


def number_of(picture: Image) -> int:
    """What `numbered_frames` painted, read from a decoded picture (H, W, 3)."""
    columns = (np.arange(BITS) + 0.5) * picture.shape[1] / BITS
    row = picture[picture.shape[0] // 2, columns.astype(int)].mean(-1)
    return int(sum(int(bright > 127) << bit for bit, bright in enumerate(row)))


def decode(path: Path) -> list[Image]:
    """The frames that were added to a video, without those that hold the last one after its end."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(np.uint8) for frame in container.decode(video=0)]
    card = path.with_suffix(".json")
    return frames[: -json.loads(card.read_text())["held"]] if card.exists() else frames


def add(writer: VideoWriter, frames: Image, **changes: Any) -> None:
    facts: dict[str, Any] = {"score": 12.0, "total_frames": 99, "action": 1, "value": 0.5, "probabilities": np.full(6, 1 / 6)}
    writer.add(frames, **{**facts, **changes})


def writer_of(path: Path, shape: tuple[int, int, int] = (60, 80, 3), **options: Any) -> VideoWriter:
    return VideoWriter(path, shape, options.pop("frames_per_second", 60.0), ACTIONS, "PPO Bowling-v0", **options)


def recorded(path: Path, frames: int = 9) -> Path:
    writer = writer_of(path)
    add(writer, numbered_frames(range(frames)))
    writer.close({"run": "here"})
    return path


def top_level_boxes(path: Path) -> list[str]:
    """The names of an MP4 file's outermost boxes, in order."""
    data, at, names = path.read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        names.append(data[at + 4 : at + 8].decode("ascii"))
        at += size
    return names


def test_every_frame_added_is_decoded_in_order(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "game.mp4")
    for step in range(50):
        k = 2 + step % 3
        add(writer, numbered_frames(range(writer.frames, writer.frames + k)))
    writer.close({})
    numbers = [number_of(frame[6:426, :560]) for frame in decode(tmp_path / "game.mp4")]
    assert numbers == list(range(writer.frames))
    assert len(numbers) > 140  # more than one group of pictures


def test_the_stream_is_what_browsers_play(tmp_path: Path) -> None:
    with av.open(str(recorded(tmp_path / "game.mp4"))) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.width % 2, stream.height % 2) == (0, 0)
        assert stream.average_rate == 60
        assert stream.frames == 9 + 60
        times = [frame.time for frame in container.decode(stream)]
    assert times == pytest.approx([index / 60 for index in range(69)])


@pytest.mark.parametrize("rate", [35.0, 50.0, 59.94])
def test_the_rate_is_the_games_own(tmp_path: Path, rate: float) -> None:
    writer = writer_of(tmp_path / "game.mp4", frames_per_second=rate)
    add(writer, numbered_frames(range(20)))
    writer.close({})
    with av.open(str(tmp_path / "game.mp4")) as container:
        assert float(container.streams.video[0].average_rate or 0) == pytest.approx(rate, abs=0.01)


def test_the_index_stands_in_front_after_close(tmp_path: Path) -> None:
    boxes = top_level_boxes(recorded(tmp_path / "game.mp4"))
    assert boxes.index("moov") < boxes.index("mdat")
    assert "moof" not in boxes


@pytest.mark.parametrize(
    "shape",
    [(210, 160, 3), (250, 160, 3), (120, 160, 3), (240, 320, 3), (400, 600, 3), (60, 80, 3), (33, 47, 3), (501, 333, 3)],
)
def test_any_screen_is_drawn_whole_beside_its_panel(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    height, width, _ = shape
    writer = writer_of(tmp_path / "game.mp4", shape)
    add(writer, numbered_frames([0b1011001110], height, width))
    writer.close({})
    (frame,) = decode(tmp_path / "game.mp4")
    assert (frame.shape[0] % 2, frame.shape[1] % 2) == (0, 0)
    picture = frame[:, :-PANEL_WIDTH]
    picture = picture[:, : picture.shape[1] // width * width]  # the rest fills the last block of 16 pixels
    assert number_of(picture) == 0b1011001110
    wide = picture.shape[1] / width == 2 * (picture.shape[0] // height)
    assert wide == (shape in {(210, 160, 3), (250, 160, 3)})  # an Atari's pixels are twice as wide as high


def test_colours_survive(tmp_path: Path) -> None:
    blocks = np.zeros((1, 60, 80, 3), np.uint8)
    blocks[0, :30, :40], blocks[0, :30, 40:], blocks[0, 30:, :40], blocks[0, 30:, 40:] = (
        (200, 30, 30),
        (30, 200, 30),
        (30, 30, 200),
        (170, 110, 40),
    )
    writer = writer_of(tmp_path / "game.mp4")
    add(writer, blocks)
    writer.close({})
    (frame,) = decode(tmp_path / "game.mp4")
    for (y, x), colour in {(100, 100): (200, 30, 30), (100, 400): (30, 200, 30), (300, 100): (30, 30, 200)}.items():
        np.testing.assert_allclose(frame[y, x].astype(int), colour, atol=12)


def test_pixels_stay_sharp(tmp_path: Path) -> None:
    halves = np.zeros((1, 60, 80, 3), np.uint8)
    halves[:, :, 40:] = 255
    writer = writer_of(tmp_path / "game.mp4")
    add(writer, halves)
    writer.close({})
    (frame,) = decode(tmp_path / "game.mp4")
    assert frame[200, 279].mean() < 60 < 195 < frame[200, 280].mean()  # each pixel is 7 wide


def test_a_smooth_picture_has_soft_edges_and_takes_fewer_bits(tmp_path: Path) -> None:
    halves = np.zeros((1, 60, 80, 3), np.uint8)
    halves[:, :, 40:] = 255
    writer = writer_of(tmp_path / "edge.mp4", smooth=True)
    add(writer, halves)
    writer.close({})
    (frame,) = decode(tmp_path / "edge.mp4")
    assert 60 < frame[200, 279].mean() < frame[200, 280].mean() < 195
    textures = np.random.default_rng(0).integers(60, 200, (20, 60, 80, 3), np.uint8)
    sizes = []
    for smooth in (False, True):
        writer = writer_of(tmp_path / "textures.mp4", smooth=smooth)
        add(writer, textures)
        writer.close({})
        sizes.append((tmp_path / "textures.mp4").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


def test_folders_are_made(tmp_path: Path) -> None:
    assert recorded(tmp_path / "videos" / "run" / "game.mp4").is_file()


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from evaluation.video import VideoWriter
writer = VideoWriter(Path(sys.argv[1]), (60, 80, 3), 60.0, ("A", "B"), "killed")
numbers = np.zeros((500, 60, 80, 3), np.uint8)  # so quiet that no key frame comes but those that are asked for
for step in range(100):
    writer.add(numbers[5 * step : 5 * step + 5], score=0.0, total_frames=0, action=0, value=None, probabilities=None)
print("500 frames", flush=True)
sys.stdin.read()
"""


def test_a_kill_leaves_what_was_played(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "game.mp4")]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "500 frames\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["game.partial.mp4"]
    assert len(decode(tmp_path / "game.partial.mp4")) >= 500 - 140  # at most one fragment (2 s) and the encoder's delay


def test_the_last_frame_is_there_for_a_second(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "game.mp4", frames_per_second=30.0)
    add(writer, numbered_frames(range(3)))
    writer.close({})
    with av.open(str(tmp_path / "game.mp4")) as container:
        shown = [(number_of(frame.to_ndarray(format="rgb24")[6:426, :560]), frame.time) for frame in container.decode(video=0)]
    assert [number for number, _ in shown] == [0, 1, 2] + [2] * 30
    assert shown[-1][1] == pytest.approx(32 / 30)


def test_recording_stops_at_max_frames_and_says_so(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "game.mp4", max_frames=10)
    for step in range(4):
        add(writer, numbered_frames(range(4 * step, 4 * step + 4)))
        assert writer.stopped == (step >= 2)
    writer.close({})
    assert [number_of(frame[6:426, :560]) for frame in decode(tmp_path / "game.mp4")] == list(range(10))
    card = json.loads((tmp_path / "game.json").read_text())
    assert (card["frames"], card["recording_stopped_at"]) == (10, 10)


def test_a_game_of_exactly_max_frames_was_recorded_whole(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "game.mp4", max_frames=8)
    add(writer, numbered_frames(range(8)))
    add(writer, numbered_frames([]))
    writer.close({})
    assert not writer.stopped
    assert json.loads((tmp_path / "game.json").read_text())["recording_stopped_at"] is None


def test_the_card_has_the_callers_facts_and_the_videos(tmp_path: Path) -> None:
    recorded(tmp_path / "game.mp4")
    assert json.loads((tmp_path / "game.json").read_text()) == {
        "run": "here",
        "frames": 9,
        "held": 60,
        "frames_per_second": 60.0,
        "recording_stopped_at": None,
        "codec": "h264",
    }


def test_an_earlier_video_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "game.mp4"
    path.write_bytes(b"earlier")
    writer = writer_of(path)
    add(writer, numbered_frames(range(3)))
    assert path.read_bytes() == b"earlier"
    writer.close({})
    assert len(decode(path)) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["game.json", "game.mp4"]


def test_a_card_that_is_no_json_leaves_the_earlier_video(tmp_path: Path) -> None:
    path = tmp_path / "game.mp4"
    path.write_bytes(b"earlier")
    writer = writer_of(path)
    add(writer, numbered_frames(range(3)))
    with pytest.raises(ValueError, match="JSON"):
        writer.close({"score": float("nan")})
    assert path.read_bytes() == b"earlier"


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "game.mp4")
    add(writer, numbered_frames([]))
    with pytest.raises(ValueError, match="no frames were added"):
        writer.close({})
    assert not (tmp_path / "game.mp4").exists()


@pytest.mark.parametrize(
    ("frames", "probabilities", "message"),
    [
        (np.zeros((2, 61, 80, 3), np.uint8), None, "expected frames"),
        (np.zeros((2, 60, 80, 3), np.float32), None, "expected frames"),
        (np.zeros((2, 60, 80, 3), np.uint8), np.ones(5), "expected 6 probabilities"),
    ],
)
def test_a_wrong_shape_is_named(tmp_path: Path, frames: Any, probabilities: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add(writer_of(tmp_path / "game.mp4"), frames, probabilities=probabilities)


def test_without_pyav_the_mend_is_named_and_nothing_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=f"{sys.executable} -m pip install av"):
        writer_of(tmp_path / "videos" / "game.mp4")
    assert not list(tmp_path.iterdir())


def panel_of(action_names: Sequence[str] = ACTIONS, **changes: Any) -> Image:
    moment = Moment(score=12.0, total_frames=345, action=1, value=0.5, probabilities=np.full(len(action_names), 0.0))
    panel = np.zeros((432, PANEL_WIDTH, 3), np.uint8)
    draw_panel(panel, moment._replace(**changes), action_names, "PPO Bowling-v0")
    return panel


@pytest.mark.parametrize(
    "change",
    [{"score": 13.0}, {"total_frames": 346}, {"action": 2}, {"value": 0.25}, {"value": None}, {"probabilities": None}],
)
def test_the_panel_shows_each_number(change: dict[str, Any]) -> None:
    assert (panel_of() != panel_of(**change)).any()


def test_the_taken_action_is_named() -> None:
    name = np.s_[96:112, 16:120]
    assert (panel_of()[name] != panel_of(action=2)[name]).any()


def test_a_bar_is_as_long_as_its_probability_and_the_taken_one_in_colour() -> None:
    panel = panel_of(probabilities=np.array([0.5, 0.25, 0.25, 0, 0, 0]))
    length = PANEL_WIDTH - 16 - BARS_LEFT
    background_of_bar = panel[BARS_TOP + 24 * 3 + 12, BARS_LEFT]
    filled = [(panel[BARS_TOP + 24 * row + 12, BARS_LEFT:] != background_of_bar).any(-1)[:length].sum() for row in range(6)]
    assert filled == [length // 2, length // 4, length // 4, 0, 0, 0]
    accented = [(panel[BARS_TOP + 24 * row + 12, BARS_LEFT:] == ACCENT).all(-1).sum() for row in range(6)]
    assert accented == [0, length // 4, 0, 0, 0, 0]


@pytest.mark.parametrize("actions", [2, 9, 18, 19, 40])
def test_rows_fit_into_the_panel_however_many_actions(actions: int) -> None:
    names = [f"ACTION {action}" for action in range(actions)]
    panel = panel_of(names, probabilities=np.ones(actions))
    bars = (panel[BARS_TOP:, BARS_LEFT : BARS_LEFT + 50] != panel[-1, -1]).any(-1).all(1)
    starts = int((np.diff(bars.astype(int), prepend=0) == 1).sum())
    assert starts == (actions if actions <= 18 else 17)  # the last row says how many are left out
    assert not bars[-1]


def test_the_longest_name_of_an_atari_action_is_written_whole() -> None:
    name = np.s_[96:112, 16:120]
    panels = [panel_of((last, *ACTIONS[1:]), action=0)[name] for last in ("DOWNRIGHTFIRE", "DOWNRIGHTFIRX")]
    assert (panels[0] != panels[1]).any()


def test_long_words_stay_inside_their_fields() -> None:
    names = ("A REMARKABLY LONG NAME OF AN ACTION THAT NEVER ENDS", *ACTIONS[1:])
    panel = panel_of(names, action=0, score=123456789012.0, probabilities=None)
    empty = panel[0, 0]
    assert (panel[BARS_TOP:, BARS_LEFT - 4 :] == empty).all()
    assert (panel[48:112, PANEL_WIDTH // 2 - 8 : PANEL_WIDTH // 2 - 2] == empty).all()
