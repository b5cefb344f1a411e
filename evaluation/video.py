"""Record a game as an H.264 video: every emulator frame, and beside the picture what the agent saw in it.

    ┌──────────────────────────┬────────────────┐
    │                          │ title          │
    │  the game's picture,     │ SCORE   FRAME  │   drawn anew once an agent step
    │  one emulator frame      │ ACTION  VALUE  │
    │  a video frame           │ NOOP  ▇▇▇▇     │   one row an action, the taken one in colour;
    │                          │ FIRE  ▇        │   the bars are its probability
    └──────────────────────────┴────────────────┘

The file is written as fragmented MP4 while the game is played, so a killed run leaves `<name>.partial.mp4` with all but its
last seconds. `VideoWriter.close` copies the packets into `<name>.mp4` with the index in front and puts `<name>.json` beside it.

PyAV (https://pyav.basswood-io.com) is imported in this module alone.
"""

import json
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from envs.contract import InputError, by_our_pip

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]  # red, green, blue

CODEC: Final = "libx264"
HOLD_SECONDS = 1  # the end of a game can be what it is about
KEYFRAME_SECONDS = 2.0  # a fragment is whole when the next key frame comes: what a kill can cost
# crf is the quality (0 best, 51 worst); without B-frames packets come in the order of time and the first has time 0.
ENCODER_OPTIONS = {"preset": "veryfast", "crf": "28", "bf": "0", "threads": "1"}
SMOOTH_CRF = "31"  # a minute of Doom's textures has 5 MB with it, and 15 MB sharp
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
BT709, BT601_MATRIX, LIMITED_RANGE = 1, 6, 1  # ITU-T H.273 codes; the matrix is the one of cv2.COLOR_RGB2YUV_I420

# H.264 spends its bits by blocks of 16 x 16 pixels. What changes at every step is drawn inside as few of them as it can be.
BLOCK = 16  # pixels
PICTURE_HEIGHT = 420  # pixels that a picture is enlarged to, as near as a whole factor comes
LEAST_HEIGHT = 27 * BLOCK  # pixels, of the video frame
PANEL_WIDTH = 16 * BLOCK  # pixels
MARGIN = BLOCK  # pixels
BARS_TOP, BARS_LEFT = 8 * BLOCK, 8 * BLOCK  # pixels from the panel's corner to the first action, and to its bar
ROW_HEIGHTS = (24, 16)  # pixels; the first that all actions fit into, or the last
SMALLEST_TEXT = 0.3  # font scale; a text that is still too wide loses its end

BACKGROUND: Colour = (18, 20, 26)
TRACK: Colour = (38, 42, 52)
MUTED: Colour = (146, 153, 168)
BRIGHT: Colour = (240, 242, 246)
BAR: Colour = (108, 118, 140)
ACCENT: Colour = (255, 190, 70)


class Moment(NamedTuple):
    """What the panel says of one agent step."""

    score: float
    """Points of the game so far."""
    total_frames: int
    """Emulator frames of the game so far."""
    action: int
    """Index into the action names."""
    value: float | None
    """The agent's estimate of its return; None where it has none."""
    probabilities: NDArray[np.floating] | None
    """(A,) how likely the agent was to take each action; None where it has no such numbers."""


class VideoWriter:
    """Writes one game; memory does not grow with its length."""

    def __init__(
        self,
        path: Path,
        screen_shape: tuple[int, int, int],
        frames_per_second: float,
        action_names: Sequence[str],
        title: str,
        max_frames: int = 36_000,
        smooth: bool = False,
    ) -> None:
        """Open `<name>.partial.mp4` beside `path`; folders are made, an earlier partial file is replaced.

        Args:
            path: the video that `close` will make, `<name>.mp4`.
            screen_shape: (H, W, 3) of the frames to come.
            frames_per_second: emulator frames in a second of the game; the video's rate.
            action_names: one name an action, in the order of the probabilities.
            title: the panel's first line.
            max_frames: emulator frames after which recording stops.
            smooth: enlarge as a photograph, with fewer bits, instead of keeping each pixel sharp.

        Raises:
            InputError: PyAV is not installed.
        """
        self._path, self._title, self._action_names = path, title, tuple(action_names)
        self._screen_shape, self._max_frames = screen_shape, max_frames
        self._rate = Fraction(frames_per_second).limit_denominator(1001)
        self._layout = _Layout.of(screen_shape, smooth)
        self._canvas = self._layout.blank()
        self._frames, self._stopped = 0, False
        self._container, self._stream = _open_encoder(self._partial, self._layout, self._rate)

    @property
    def stopped(self) -> bool:
        """Whether emulator frames beyond `max_frames` were left out."""
        return self._stopped

    @property
    def frames(self) -> int:
        """Emulator frames recorded so far."""
        return self._frames

    @property
    def _held(self) -> int:
        """Frames for which the last one is shown after the end."""
        return round(HOLD_SECONDS * self._rate)

    @property
    def _partial(self) -> Path:
        return self._path.with_name(f"{self._path.stem}.partial.mp4")

    def add(
        self,
        frames: Image,
        *,
        score: float,
        total_frames: int,
        action: int,
        value: float | None,
        probabilities: NDArray[np.floating] | None,
    ) -> None:
        """Write the emulator frames of one agent step.

        Args:
            frames: (k, H, W, 3) uint8 RGB; k = 0 writes nothing.
            score: points of the game after this step.
            total_frames: emulator frames of the game after this step.
            action: index of the action that was taken.
            value: the agent's estimate of its return, or None.
            probabilities: (A,) of the actions, or None.

        Raises:
            ValueError: the frames have another shape than the screen, or the probabilities another length than the actions.
        """
        self._check(frames, probabilities)
        kept = frames[: self._max_frames - self._frames]
        self._stopped |= len(kept) < len(frames)
        if len(kept) == 0:
            return
        moment = Moment(score, total_frames, action, value, probabilities)
        draw_panel(self._layout.panel_of(self._canvas), moment, self._action_names, self._title)
        for frame in kept:
            self._layout.draw_picture(self._canvas, frame)
            self._encode(self._frames)
            self._frames += 1

    def close(self, card: Mapping[str, Any]) -> None:
        """Finish the video: put `<name>.mp4` and its card `<name>.json` in place and remove the partial file.

        Args:
            card: what is known of the game, as JSON values. `frames`, `held` (frames for which the last is shown at the end),
                `frames_per_second`, `recording_stopped_at` (emulator frames, null if the whole game was recorded) and `codec`
                are added to it.

        Raises:
            ValueError: no frame was added, or the card is not JSON (NaN, say). The partial file stays.
        """
        if self._frames == 0:
            raise ValueError(f"no frames were added to {self._path}: a video needs at least one")
        text = json.dumps({**card, **self._facts()}, indent=2, allow_nan=False) + "\n"
        self._finish_encoding()
        _remux_with_faststart(self._partial, self._path)
        _write_whole(self._path.with_suffix(".json"), text)
        self._partial.unlink()

    def _facts(self) -> dict[str, Any]:
        return {
            "frames": self._frames,
            "held": self._held,
            "frames_per_second": float(self._rate),
            "recording_stopped_at": self._max_frames if self._stopped else None,
            "codec": "h264",
        }

    def _check(self, frames: Image, probabilities: NDArray[np.floating] | None) -> None:
        if frames.shape[1:] != self._screen_shape or frames.dtype != np.uint8:
            raise ValueError(f"expected frames (k, {self._screen_shape}) of uint8, got {frames.shape} of {frames.dtype}")
        if probabilities is not None and probabilities.shape != (len(self._action_names),):
            raise ValueError(f"expected {len(self._action_names)} probabilities, got the shape {probabilities.shape}")

    def _encode(self, index: int) -> None:
        self._container.mux(self._stream.encode(_video_frame(self._canvas, index, self._rate)))

    def _finish_encoding(self) -> None:
        for index in range(self._frames, self._frames + self._held):
            self._encode(index)
        self._container.mux(self._stream.encode(None))
        self._container.close()


class _Layout(NamedTuple):
    """Where the picture and the panel lie on the video frame, in pixels; width and height are even, as yuv420p wants them."""

    picture: tuple[int, int]  # (height, width) of the enlarged picture
    panel_left: int
    height: int
    width: int
    smooth: bool

    @classmethod
    def of(cls, screen_shape: tuple[int, int, int], smooth: bool = False) -> "_Layout":
        rows, columns, _ = screen_shape
        factor = max(1, round(PICTURE_HEIGHT / rows))
        picture = (rows * factor, columns * factor * _pixel_aspect(rows, columns))
        panel_left = _round_up(picture[1], BLOCK)
        return cls(picture, panel_left, _round_up(max(picture[0], LEAST_HEIGHT), 2), panel_left + PANEL_WIDTH, smooth)

    def blank(self) -> Image:
        return np.full((self.height, self.width, 3), BACKGROUND, np.uint8)

    def panel_of(self, canvas: Image) -> Image:
        return canvas[:, self.panel_left :]

    def draw_picture(self, canvas: Image, frame: Image) -> None:
        """Enlarge (H, W, 3) into the left of the canvas, in the middle of its height."""
        height, width = self.picture
        top = (self.height - height) // 2
        interpolation = cv2.INTER_LINEAR if self.smooth else cv2.INTER_NEAREST
        canvas[top : top + height, :width] = cv2.resize(frame, (width, height), interpolation=interpolation)


def _pixel_aspect(rows: int, columns: int) -> int:
    """A television draws the Atari's pixels (160 across, 210 or 250 down) about twice as wide as high; others are square."""
    return 2 if columns == 160 and rows in (210, 250) else 1


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def draw_panel(panel: Image, moment: Moment, action_names: Sequence[str], title: str) -> None:
    """Draw title, score, frame count, action, value and action probabilities over the whole panel.

    Args:
        panel: (H, W, 3) uint8 RGB, drawn in place.
        moment: the numbers of this agent step.
        action_names: one name an action.
        title: the first line.
    """
    panel[:] = BACKGROUND
    inner = panel.shape[1] - 2 * MARGIN
    half = inner // 2
    _draw_text(panel, title, (MARGIN, 24), 0.5, BRIGHT, inner)
    _draw_fact(panel, "SCORE", _number(moment.score), (MARGIN, 44, 70), 0.85)
    _draw_fact(panel, "FRAME", f"{moment.total_frames:,}", (MARGIN + half, 44, 61), 0.48)
    _draw_fact(panel, "ACTION", action_names[moment.action], (MARGIN, 91, 109), 0.48)
    if moment.value is not None:
        _draw_fact(panel, "VALUE", f"{moment.value:,.2f}", (MARGIN + half, 91, 109), 0.48)
    _draw_actions(panel[BARS_TOP:], moment, action_names)


def _number(score: float) -> str:
    return f"{score:,.0f}" if float(score).is_integer() else f"{score:,.2f}"


def _draw_fact(panel: Image, label: str, text: str, place: tuple[int, int, int], scale: float) -> None:
    """A small label with its value under it; `place` is left, and the base lines of the two."""
    left, label_bottom, bottom = place
    width = PANEL_WIDTH // 2 - MARGIN - 10
    _draw_text(panel, label, (left, label_bottom), 0.36, MUTED, width)
    _draw_text(panel, text, (left, bottom), scale, BRIGHT, width)


def _draw_actions(area: Image, moment: Moment, action_names: Sequence[str]) -> None:
    """One row an action, as many as fit; where actions have to be left out, the last row says how many."""
    room, actions = area.shape[0] - 8, len(action_names)
    height = next((height for height in ROW_HEIGHTS if height * actions <= room), ROW_HEIGHTS[-1])
    shown = actions if height * actions <= room else room // height - 1
    for action, name in enumerate(action_names[:shown]):
        _draw_action(area[action * height : (action + 1) * height], moment, action, name)
    if shown < actions:
        _draw_text(area, f"and {actions - shown} more", (MARGIN, (shown + 1) * height - 4), 0.36, MUTED, PANEL_WIDTH)


def _draw_action(row: Image, moment: Moment, action: int, name: str) -> None:
    """Mark the taken action, name it, and draw its probability as a part of the bar's whole length."""
    middle, right = row.shape[0] // 2, PANEL_WIDTH - MARGIN
    colour = ACCENT if action == moment.action else BAR
    _draw_text(row, name, (MARGIN, middle + 4), 0.4, MUTED, BARS_LEFT - MARGIN - 6)
    if action == moment.action:
        row[middle - 4 : middle + 4, MARGIN - 12 : MARGIN - 4] = ACCENT
    if moment.probabilities is not None:
        bar = row[middle - 4 : middle + 4, BARS_LEFT:right]
        bar[:] = TRACK
        bar[:, : round(float(moment.probabilities[action]) * bar.shape[1])] = colour


def _draw_text(image: Image, text: str, place: tuple[int, int], scale: float, colour: Colour, width: int) -> None:
    """Write on a base line (left, bottom), smaller or shorter where the text is wider than `width` pixels."""
    while scale > SMALLEST_TEXT and _text_width(text, scale) > width:
        scale -= 0.02
    while len(text) > 1 and _text_width(text, scale) > width:
        text = text.rstrip(".")[:-1] + ".."
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)


def _text_width(text: str, scale: float) -> int:
    return cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0]


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise InputError(by_our_pip("recording a video needs PyAV, which is not installed: pip install av")) from error
    return av


def _open_encoder(path: Path, layout: _Layout, rate: Fraction) -> tuple["OutputContainer", "VideoStream"]:
    av = _av()
    path.parent.mkdir(parents=True, exist_ok=True)
    container: OutputContainer = av.open(str(path), "w", format="mp4", options=FRAGMENTED)
    options = {**ENCODER_OPTIONS, "g": str(round(KEYFRAME_SECONDS * rate))}
    if layout.smooth:
        options["crf"] = SMOOTH_CRF
    stream: VideoStream = container.add_stream(CODEC, rate=rate, options=options)
    stream.width, stream.height, stream.pix_fmt = layout.width, layout.height, "yuv420p"
    context = stream.codec_context
    context.colorspace, context.color_range = BT601_MATRIX, LIMITED_RANGE
    context.color_primaries = context.color_trc = BT709
    return container, stream


def _video_frame(canvas: Image, index: int, rate: Fraction) -> "VideoFrame":
    """One frame of the stream, `index` frames after its start, from (H, W, 3) RGB."""
    yuv = cv2.cvtColor(canvas, cv2.COLOR_RGB2YUV_I420)  # (3 H / 2, W): the planes Y, U, V one under the other
    frame: VideoFrame = _av().VideoFrame.from_ndarray(yuv, format="yuv420p")
    frame.pts, frame.time_base = index, 1 / rate
    return frame


def _remux_with_faststart(source: Path, target: Path) -> None:
    """Copy the packets, not decoded, into a file whose index stands in front, and put it in place at once."""
    aside = target.with_name(f"{target.name}.new")
    av = _av()
    with av.open(str(source)) as recorded, av.open(str(aside), "w", format="mp4", options={"movflags": "faststart"}) as whole:
        stream = whole.add_stream_from_template(recorded.streams.video[0])
        for packet in recorded.demux(recorded.streams.video[0]):
            if packet.dts is not None:  # the last packet only says that there are no more
                packet.stream = stream
                whole.mux(packet)
    _put_in_place(aside, target)


def _write_whole(path: Path, text: str) -> None:
    aside = path.with_name(f"{path.name}.new")
    aside.write_text(text, encoding="utf-8")
    _put_in_place(aside, path)


def _put_in_place(aside: Path, path: Path) -> None:
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)
