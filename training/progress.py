"""What a person sees while a run trains: a bar on a terminal, a line now and then elsewhere."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from training.scores import WINDOW, points

_WIDE = 110  # columns that everything fits into
SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal
_SHARES = {"play": "time/environment", "act": "time/forward", "learn": "time/learning"}  # words for what time goes into
# From what share of the time on something else should be changed, and what.
_ADVICE = {
    "play": (0.5, "most of it was waiting for games: more CPU cores help"),
    "act": (0.5, "most of it was acting: more games at once share a forward pass, --num-envs"),
    "learn": (0.8, "most of it was learning: a GPU, smaller images (--image-size) or fewer passes (--epochs) help"),
}


class Display:
    """Shows each row of metrics."""

    def __init__(self, total_frames: int, console: Console) -> None:
        """Show on `console`."""
        self._total, self._console = total_frames, console
        self._bar = Progress(
            TextColumn("{task.fields[frames]} frames"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("[bold]{task.fields[score]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=total_frames, frames=short(0), speed="", score="")
        self._next_line = monotonic()
        self._rows: list[dict[str, float]] = []  # the shares of the time in each row

    @contextmanager
    def running(self, frames: int) -> Iterator[None]:
        """Show the bar inside the block, starting at `frames`."""
        with self._bar:
            self._bar.update(self._task, completed=frames, frames=short(frames))
            yield

    def show(self, row: Mapping[str, float]) -> None:
        """Show a row of metrics."""
        frames = int(row["frames"])
        narrow = self._console.is_terminal and self._console.width < _WIDE
        texts = {"frames": short(frames), "speed": speed_text(row, shares=not narrow), "score": score_text(row)}
        self._bar.update(self._task, completed=frames, frames=texts["frames"], speed=texts["speed"], score=texts["score"])
        self._rows.append({word: row.get(name, 0.0) for word, name in _SHARES.items()})
        over = frames >= self._total
        if not self._console.is_terminal and (over or monotonic() >= self._next_line):
            share = f"{min(frames / self._total, 1):4.0%}"
            parts = [f"{texts['frames']:>7} frames {share}", texts["speed"], self._left(row), texts["score"]]
            self._console.print("  ".join(filter(None, parts)), soft_wrap=True, highlight=False)
            self._next_line = monotonic() + SECONDS_BETWEEN_LINES

    def _left(self, row: Mapping[str, float]) -> str:
        """Hours, minutes and seconds to the end at the row's speed; nothing at the end, or where it has none."""
        frames, speed = self._total - row["frames"], row["speed/frames_per_second"]
        if frames <= 0 or not speed:
            return ""
        minutes, seconds = divmod(round(frames / speed), 60)
        return f"{minutes // 60:,}:{minutes % 60:02}:{seconds:02} left"

    def where_time_went(self) -> str:
        """The mean shares of the rows that were shown and, where one is large, what would make it smaller."""
        mean = {word: sum(row[word] for row in self._rows) / max(len(self._rows), 1) for word in _SHARES}
        advice = [f"; {text}" for word, (least, text) in _ADVICE.items() if mean[word] >= least]
        return ", ".join(f"{word} {share:.0%}" for word, share in mean.items()) + "".join(advice)


def speed_text(row: Mapping[str, float], *, shares: bool) -> str:
    """Frames a second and, where there is room, what share of the time went into games, acting and learning.

    Nothing of a row that no frame went into: a resumed run's, which begins with an update.
    """
    if not row["speed/frames_per_second"]:
        return ""
    where = ", ".join(f"{word} {row.get(name, 0):.0%}" for word, name in _SHARES.items())
    return f"{short(row['speed/frames_per_second'])}/s" + (f" ({where})" if shares else "")


def score_text(row: Mapping[str, float]) -> str:
    """Mean of the last 100 games, or of how many there are, and the best game; and games that were lost, where some were."""
    lost = f", {row['score/games_lost']:,.0f} games lost" if row["score/games_lost"] else ""
    if "score/mean_100" not in row:
        return f"no game over yet{lost}"
    games = row["score/games"]
    few = f" in {games:.0f} game{'s' if games > 1 else ''}" if games < WINDOW else ""
    return f"score {points(row['score/mean_100'])}{few}, best {points(row['score/best'])}{lost}"


def short(number: float) -> str:
    """`1.25M` for 1,250,000."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"
