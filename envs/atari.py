"""Atari 2600 games through ale-py's emulator, from screen images or from RAM.

The rules that an id stands for, where `-ram` after the game's name exchanges the picture for the console's 128 bytes:

| ids                               | sticky   | frame skip           | max-pool | no-ops   | cap                |
|-----------------------------------|----------|----------------------|----------|----------|--------------------|
| `ALE/<Game>-v5`                   | 0.25     | 4                    | last two | up to 30 | 108,000 frames     |
| `<Game>-v0`                       | 0.25     | drawn from {2, 3, 4} | no       | none     | 10,000 agent steps |
| `<Game>-v4`                       | 0        | drawn from {2, 3, 4} | no       | none     | 108,000 frames     |
| `<Game>NoFrameskip-v0` and `-v4`  | 0.25 / 0 | 4                    | last two | up to 30 | 108,000 frames     |

With a fixed skip the pixels, rewards and ends are those of Gymnasium's `AtariPreprocessing`; with a drawn skip, those of the
registered environment with its last frame resized.
"""

import base64
import dataclasses
import hashlib
import re
import zlib
from pathlib import Path
from typing import Any

import ale_py
import cv2
import gymnasium
import numpy as np
from ale_py import roms
from numpy.typing import NDArray

from envs.contract import GameDescription, GameProtocol, Outcome, ProtocolOptions, refuse_options

SIDE = 84  # pixels
_MOST = 2**20  # bytes of an emulator's copy, or of a screen's
MAX_FRAMES = 108_000  # half an hour of play at 60 frames a second
FRAMES_PER_SECOND = 60.0
FLAGS = ("sticky", "frame_skip", "full_action_space", "noop_max", "max_episode_frames")  # that change the rules
_INEXACT = ("qbert", "tetris")  # whose copies go on otherwise now and then, in ale-py 0.12.1
_CLOCK = -1  # the emulator's word for a seed taken from the clock

ID = re.compile(r"(?:(?P<namespace>ALE)/)?(?P<game>\w+?)(?P<ram>-ram)?(?P<unskipped>NoFrameskip)?-v(?P<version>[045])")


def rom_of(env_id: str) -> str | None:
    """The ROM's name (`ms_pacman`) for an id of the table (`MsPacman-v0`), from ale-py's registration; None for others."""
    match = ID.fullmatch(env_id)
    if (
        match is None
        or (match["version"] == "5") != (match["namespace"] == "ALE")
        or (match["version"] == "5" and match["unskipped"])
    ):
        return None
    spec = gymnasium.registry.get(f"ALE/{match['game']}-v5")
    return None if spec is None else str(spec.kwargs["game"])


def ids() -> list[str]:
    """Every id of the table above."""
    games = sorted(spec.name for spec in gymnasium.registry.values() if spec.namespace == "ALE" and spec.version == 5)
    forms = ("ALE/{}{}-v5", "{}{}-v0", "{}{}-v4", "{}{}NoFrameskip-v0", "{}{}NoFrameskip-v4")
    return [form.format(game, ram) for form in forms for game in games for ram in ("", "-ram")]


def protocol_of(env_id: str, options: ProtocolOptions) -> GameProtocol:
    """The rules that an id stands for, with the user's changes applied."""
    match = ID.fullmatch(env_id)
    rom = rom_of(env_id)
    assert match is not None and rom is not None, env_id
    drawn = match["version"] != "5" and not match["unskipped"]
    first_registered = drawn and match["version"] == "0"
    protocol = GameProtocol(
        env=env_id,
        observation="ram" if match["ram"] else "pixels",
        size=(128,) if match["ram"] else (1, SIDE, SIDE),
        colour=None if match["ram"] else "grey",
        sticky=0.0 if match["version"] == "4" else 0.25,
        action_set="full" if options.full_action_space else "minimal",
        fire_reset=False,
        episode_end="game over",
        max_episode_frames=None if first_registered else MAX_FRAMES,
        max_episode_steps=10_000 if first_registered else None,
        mode=None,
        difficulty=None,
        rom_md5=hashlib.md5(_rom_path(rom).read_bytes(), usedforsecurity=False).hexdigest(),
        backend=f"ale-py {ale_py.__version__}",
        frame_skip=(2, 4) if drawn else (4, 4),
        max_pool=not (drawn or match["ram"]),
        noop_max=0 if drawn else 30,
    )
    if options.max_episode_frames is not None:
        protocol = dataclasses.replace(protocol, max_episode_steps=None)
    changes = {name: getattr(options, name) for name in FLAGS if name != "full_action_space"}
    return dataclasses.replace(protocol, **{name: value for name, value in changes.items() if value is not None})


def _rom_path(rom: str | None) -> Path:
    path = roms.get_rom_path(rom) if rom else None
    assert path is not None, rom  # ale-py's wheel holds the ROM of every game that it registers
    return path


def ale_seeds(seed: int) -> tuple[int, int]:
    """Seeds of the generator beside the emulator and of the emulator itself, as Gymnasium derives them.

    But for the one seed that the emulator would take for "by the clock".
    """
    beside, emulator = np.random.SeedSequence(seed).generate_state(n_words=2)
    signed = int(emulator.astype(np.int32))
    return int(beside), signed if signed != _CLOCK else 0


class Screen:
    """A screen, and the small picture of it that `cv2.resize` with `INTER_AREA` makes, made anew only where the screen changed.

    Most of a game's screen stands still, and to make all of it small takes a sixth of a step. Of 210 rows the first five alone
    make the small picture's first two, the next five the next two, and so on: such bands become small by themselves, to the
    same bits. A screen of another height is one band.
    """

    def __init__(self, height: int, width: int) -> None:
        """Begin with a black one."""
        count = height // 5 if height * 2 == SIDE * 5 else 1  # 210 rows
        self.pixels = np.zeros((height, width), np.uint8)
        """(height, width), to be written to."""
        self._width, self._small = width, np.zeros((SIDE, SIDE), np.uint8)
        self._bands, self._small_bands = self.pixels.reshape(count, -1), self._small.reshape(count, -1)
        self._seen = self._bands.copy()
        self._words, self._seen_words = self._bands.view(np.uint64), self._seen.view(np.uint64)  # compared eight pixels at once

    def small(self) -> NDArray[np.uint8]:
        """(SIDE, SIDE), valid until the next call."""
        changed = (self._words != self._seen_words).any(1).nonzero()[0]
        if len(changed):
            bands, size = self._bands[changed], (SIDE, len(changed) * SIDE // len(self._bands))
            made = cv2.resize(bands.reshape(-1, self._width), size, interpolation=cv2.INTER_AREA)
            self._small_bands[changed] = made.reshape(len(changed), -1)
            self._seen[changed] = bands
        return self._small


class AtariGame:
    """One Atari game under a protocol."""

    flags = FLAGS
    own_engine = False

    @staticmethod
    def options_of(env_id: str) -> ProtocolOptions:
        """What the flags are for an id where they are not given."""
        rules = protocol_of(env_id, ProtocolOptions())
        return ProtocolOptions(rules.sticky, rules.frame_skip, False, rules.noop_max, rules.max_episode_frames)

    def __init__(self, env_id: str, options: ProtocolOptions) -> None:
        """Load the game's ROM into an emulator of its own."""
        refuse_options(env_id, options, self.flags)
        self.protocol = protocol_of(env_id, options)
        self._rom_path = _rom_path(rom_of(env_id))
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # before the first emulator, which would print a banner
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", self.protocol.sticky)
        self._ale.setInt("max_num_frames_per_episode", self.protocol.max_episode_frames or 0)
        self._seed(0)
        full = self.protocol.action_set == "full"
        self._actions = self._ale.getLegalActionSet() if full else self._ale.getMinimalActionSet()
        height, width = self._ale.getScreenDims()
        self.description = GameDescription(
            protocol=self.protocol,
            observation_shape=self.protocol.size,
            observation_dtype="uint8",
            extra_size=0,
            num_tokens=0,
            action_names=tuple(action.name for action in self._actions),
            screen_shape=(height, width, 3),
            frames_per_second=FRAMES_PER_SECOND,
        )
        # The step's last frame but one, and its last. A step cut short by an end leaves the older ones in place, `_last` pooled
        # with the `_previous` of its own step, as `AtariPreprocessing` does.
        self._screen = Screen(height, width)  # whose pixels `_last` is
        self._previous, self._last = np.zeros((height, width), np.uint8), self._screen.pixels
        self._recording = False
        self._frames: list[NDArray[np.uint8]] = []
        self._steps = self._lives = 0

    @staticmethod
    def clones(env_id: str) -> bool:
        """Whether copies of its state are exact."""
        return rom_of(env_id) not in _INEXACT

    def _seed(self, seed: int) -> None:
        beside, emulator = ale_seeds(seed)
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(beside)))
        self._ale.setInt("random_seed", emulator)
        self._ale.loadROM(self._rom_path)  # a seed is taken only here; this is the slow part (85 ms)

    def reset(self, seed: int | None, observation: NDArray[np.generic], extra: NDArray[np.float32]) -> None:
        """Open a game: seed where one is given, press reset, sit through the no-ops."""
        if seed is not None:
            self._seed(seed)
        self._ale.reset_game()
        noops = self._generator.integers(1, self.protocol.noop_max + 1) if self.protocol.noop_max else 0
        for _ in range(noops):
            self._ale.act(ale_py.Action.NOOP)
            if self._ale.game_over():
                self._ale.reset_game()
        self._steps = 0
        self._frames.clear()
        self._lives = self._ale.lives()
        self._previous.fill(0)
        if self.protocol.observation == "pixels":
            self._ale.getScreenGrayscale(self._last)
        self._observe(observation)

    def step(self, action: int, observation: NDArray[np.generic], extra: NDArray[np.float32]) -> Outcome:
        """Hold one action for the step's emulator frames, or until the game ends."""
        fewest, most = self.protocol.frame_skip
        skip = fewest if fewest == most else int(self._generator.integers(fewest, most + 1))
        reward, frames, over = 0, 0, False
        if skip == 1:
            self._previous.fill(0)  # there is no frame of this step to pool with
        self._frames.clear()
        while frames < skip and not over:
            reward += self._ale.act(self._actions[action])
            frames += 1
            over = self._ale.game_over()
            if self._recording:
                self._frames.append(self._ale.getScreenRGB())
            self._keep_frame(frames, skip, over)
        self._steps += 1
        self._observe(observation)
        lives, lives_before = self._ale.lives(), self._lives
        self._lives = lives
        terminated = self._ale.game_over(with_truncation=False)
        cut = self._ale.game_truncated() or self._steps == self.protocol.max_episode_steps
        return Outcome(reward, terminated, cut and not terminated, lives < lives_before, frames)

    def _keep_frame(self, frame: int, skip: int, over: bool) -> None:
        """Keep the grey screen where the observation needs it: the step's last two frames, or its very last."""
        if self.protocol.observation != "pixels":
            return
        if not self.protocol.max_pool:
            if frame == skip or over:
                self._ale.getScreenGrayscale(self._last)
        elif not over and frame == skip:
            self._ale.getScreenGrayscale(self._last)
        elif not over and frame == skip - 1:
            self._ale.getScreenGrayscale(self._previous)

    def _observe(self, observation: NDArray[np.generic]) -> None:
        if self.protocol.observation == "ram":
            observation[:] = self._ale.getRAM()
            return
        if self.protocol.max_pool:
            np.maximum(self._previous, self._last, out=self._last)
        observation[0] = self._screen.small()

    def clone(self) -> dict[str, Any]:
        """A copy of emulator and screens.

        A copy does not hold the action that a sticky step repeats. A reset forgets it, and so the game goes on after one.
        """
        state = self._ale.cloneState(include_rng=True)
        self._ale.reset_game()
        self._ale.restoreState(state)
        return {
            "emulator": _packed(state.serialize()),
            "screens": [_packed(self._previous.tobytes()), _packed(self._last.tobytes())],
            "generator": self._generator.bit_generator.state,
            "steps": self._steps,
            "lives": self._lives,
        }

    def restore(self, clone: dict[str, Any]) -> None:
        """Go on from a copy."""
        self._ale.reset_game()
        self._ale.restoreState(ale_py.ALEState(_unpacked(clone["emulator"])))
        for screen, packed in zip((self._previous, self._last), clone["screens"], strict=True):
            screen[:] = np.frombuffer(_unpacked(packed), np.uint8).reshape(screen.shape)
        self._generator.bit_generator.state = clone["generator"]
        self._steps, self._lives = clone["steps"], clone["lives"]

    def record(self) -> None:
        """Keep every emulator frame of a step from now on."""
        self._recording = True

    def last_frames(self) -> list[NDArray[np.uint8]]:
        """The emulator frames of the last step, each (210, 160, 3) RGB; none right after a reset."""
        return self._frames

    def close(self) -> None:
        """Nothing to give back: the emulator goes with the object."""


def _packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def _unpacked(text: str) -> bytes:
    inflate = zlib.decompressobj()
    data = inflate.decompress(base64.b64decode(text), _MOST)
    if not inflate.eof:
        raise ValueError(f"the copy of a game ends early, or not within {_MOST:,} bytes")
    return data
