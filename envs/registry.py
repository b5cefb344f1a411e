"""From an environment id to the family that plays it. A family's game is imported only when one of its ids is asked for."""

import contextlib
import difflib
import importlib
import re

import gymnasium

from envs.contract import CloneableGame, Game, InputError, ProtocolOptions

FAMILIES = {
    "atari": "envs.atari:AtariGame",
    "doom": "envs.doom:DoomGame",
    "lab": "envs.lab:LabGame",
    "mini_world": "envs.mini_world:MiniWorldGame",
    "registered": "envs.registered:RegisteredGame",
}
_BY_PREFIX = {"Vizdoom": "doom", "doom/": "doom", "dmlab/": "lab", "dmlab30/": "lab", "MiniWorld-": "mini_world"}
_WORD = 3  # letters of what an id can be found by
_OWN_MODULES = ("ale_py", "gymnasium", "miniworld", "vizdoom", "vizdoom.gymnasium_wrapper")  # that a family imports itself


def family_of(env_id: str) -> str:
    """Name of the family that plays an id.

    Raises:
        InputError: no family knows the id; the message names the nearest ones that exist.
    """
    module, _, name = env_id.rpartition(":")
    own = _own_family(name)
    if own and module in _OWN_MODULES:
        raise InputError(f"{env_id!r}: this game is known without its module; write {name}")
    if own and not module and _knows(own, env_id):
        return own
    if module in ("random", "script"):
        raise InputError(f"{env_id!r} is a player for evaluate.py, not an environment; write {name}")
    if module or env_id in gymnasium.registry:
        return "registered"
    raise InputError(f"unknown environment {env_id!r}; {_nearest(env_id, _known_ids())}")


def _own_family(name: str) -> str | None:
    """The family that a name looks like, of those that are more than a registered id."""
    from envs import atari

    if atari.rom_of(name) is not None:
        return "atari"
    return next((family for prefix, family in _BY_PREFIX.items() if name.startswith(prefix)), None)


def brings_code(env_id: str) -> bool:
    """Whether an id names a module that is imported to play it, or a file that an engine reads."""
    if env_id.startswith("dmlab/"):
        from envs import lab

        return env_id not in lab.ids()
    return ":" in env_id or env_id.startswith("doom/")


def is_world(env_id: str) -> bool:
    """Whether an id is of a 3D world, seen through the player's eyes."""
    return _own_family(env_id) in _BY_PREFIX.values()


def sees_images(env_id: str) -> bool:
    """Whether agents see pictures, as far as an id says it: RAM is none, and of Gymnasium's other ids it is not known."""
    return is_world(env_id) or (_own_family(env_id) == "atari" and "-ram" not in env_id)


def is_slow(env_id: str) -> bool:
    """Whether a step on the CPU takes several times as long as acting for it: worlds that OpenGL draws."""
    return _own_family(env_id) in ("lab", "mini_world")


def _knows(family: str, env_id: str) -> bool:
    """Whether an id that looks like a family's is one.

    Raises:
        InputError: the family's package is missing, or the file that the id names.
    """
    if family == "doom":
        from envs import doom

        return bool(doom.config_file(env_id)) if env_id.startswith(doom.FILE_PREFIX) else env_id in doom.ids()
    if family == "mini_world":
        from envs import mini_world

        return env_id in mini_world.ids()
    if family == "lab":
        from envs import lab

        return lab.knows(env_id)
    return True


def _known_ids() -> list[str]:
    """Those of every family whose package is installed."""
    from envs import atari, doom, lab, mini_world

    known = [*atari.ids(), *lab.ids()]
    for family in (doom, mini_world):
        with contextlib.suppress(InputError):
            known += family.ids()
    return [*known, *gymnasium.registry]


def _nearest(env_id: str, known: list[str]) -> str:
    """The three that come nearest; of one Atari game first what was asked for in another form, then what the README teaches."""
    folded, by_folded = env_id.strip().lower(), {name.lower(): name for name in sorted(known, reverse=True)}
    matches = difflib.get_close_matches(folded, by_folded, n=3, cutoff=0.5)
    if not matches and len(folded) >= _WORD:
        matches = sorted((name for name in by_folded if folded in name), key=len)[:3]
    games = dict.fromkeys(map(_game, by_folded))
    nearest_game = difflib.get_close_matches(_game(folded), games, n=1, cutoff=0.8) or [_game(name) for name in matches[:1]]
    form = folded.removeprefix("ale/").removeprefix(_game(folded))  # -ram-v0, say

    def order(name: str) -> tuple[bool, bool, bool, int]:
        game = _game(name)
        taught = [f"{game}-v0", f"ale/{game}-v5", f"{game}-ram-v0"] if f"ale/{game}-v5" in by_folded else [name]
        other_form = name.removeprefix("ale/") != game + form
        return [game] != nearest_game, other_form, "-ram" in form and "-ram" not in name, [*taught, name].index(name)

    of_game = [name for name in by_folded if [_game(name)] == nearest_game]
    matches = sorted(dict.fromkeys([*matches, *of_game]), key=order)[:3]
    return f"nearest: {', '.join(by_folded[match] for match in matches)}" if matches else "no id comes near it"


def _game(folded: str) -> str:
    """What is played, of an id in small letters: `pong` of `ale/pong-ram-v5`."""
    return re.sub(r"^ale/|(-ram)?(noframeskip|deterministic)?(-v\d+)?$", "", folded)


def game_class(env_id: str) -> type[Game]:
    """The class of the family that plays an id.

    Raises:
        InputError: no family knows the id.
    """
    module, _, name = FAMILIES[family_of(env_id)].partition(":")
    kind: type[Game] = getattr(importlib.import_module(module), name)
    return kind


def clones(env_id: str) -> bool:
    """Whether the state of an id's games can be copied exactly."""
    kind = game_class(env_id)
    return issubclass(kind, CloneableGame) and kind.clones(env_id)


def tasks_of(env_id: str) -> tuple[str, ...]:
    """The ids that an id stands for: itself, or thirty for `dmlab30/all`. Slots of a run play them by turns."""
    if env_id == "dmlab30/all":
        from envs.lab_tasks import BY_ID

        return tuple(BY_ID)
    return (env_id,)


def make_game(env_id: str, options: ProtocolOptions) -> Game:
    """Make one game of any family.

    Raises:
        InputError: unknown id, or a game that no agent of ours can play.
    """
    return game_class(env_id)(env_id, options)
