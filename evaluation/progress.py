"""What a person sees while games are played: a bar on a terminal, a line now and then elsewhere."""

from time import monotonic
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from evaluation.play import Episode
from training.progress import SECONDS_BETWEEN_LINES
from training.scores import points


class Progressing:
    """Counts games as they end; to be used in a `with` block."""

    def __init__(self, player: str, games: int, console: Console) -> None:
        """Show on `console` how many of its games a player has played, and what it scored in them."""
        self._player, self._games, self._console = player, games, console
        self._over, self._sum = 0, 0.0
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[mean]}"),
            TimeElapsedColumn(),
            console=console,
            expand=True,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(player, total=games, mean="")
        self._next_line = monotonic() + SECONDS_BETWEEN_LINES

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away."""
        self._bar.stop()

    def over(self, episode: Episode) -> None:
        """A game has ended."""
        self._over += 1
        self._sum += episode.score
        mean = f"mean {points(self._sum / self._over)}"
        self._bar.update(self._task, advance=1, mean=mean)
        if not self._console.is_terminal and self._over < self._games and monotonic() >= self._next_line:
            self._console.print(f"{self._player}: {self._over} of {self._games} games, {mean}", highlight=False, markup=False)
            self._next_line = monotonic() + SECONDS_BETWEEN_LINES
