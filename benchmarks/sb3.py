"""stable-baselines3 beside ours: a process of its own that trains by turns, in which this project sets nothing."""

import multiprocessing
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from turns import Work

_WARM_UP = 2_048  # steps; after them its DQN learns


@contextmanager
def stable_baselines3(algorithm: str, env: str, num_envs: int, settings: dict[str, Any], device: str) -> Iterator[Work]:
    """stable-baselines3 in a process of its own, warm, and standing still but for a rollout and its update at a time.

    Raises:
        RuntimeError: it failed; its traceback.
    """
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_train, args=(algorithm, env, num_envs, settings, device, theirs))
    process.start()
    theirs.close()  # so that its end is seen

    def answer() -> int:
        steps: int | str = pipe.recv()
        if isinstance(steps, str):
            raise RuntimeError(steps)
        return steps

    def work() -> int:
        pipe.send("go on")
        return answer()

    try:
        answer()
        yield work
    finally:
        pipe.close()
        process.join()  # it ends after the update that it is in


class _NobodyAsksError(Exception):
    """The benchmark has ended."""


def _train(algorithm: str, env: str, num_envs: int, settings: dict[str, Any], device: str, pipe: Connection) -> None:
    """Train, its environments in processes of their own; after each rollout with its update say how long it was, and wait."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for file in (1, 2):
        os.dup2(nowhere, file)  # every process of the games would greet

    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack

    class Report(BaseCallback):
        """The first time that it is warm, and then between rollouts."""

        before = 0  # steps at the last report

        def _on_rollout_start(self) -> None:
            if self.num_timesteps <= _WARM_UP:
                return
            try:
                pipe.send(self.num_timesteps - self.before)
                pipe.recv()
            except (EOFError, ConnectionError) as gone:
                raise _NobodyAsksError from gone
            self.before = self.num_timesteps

        def _on_step(self) -> bool:
            return True

    def make_game(**options: Any) -> Any:
        import ale_py
        import gymnasium

        gymnasium.register_envs(ale_py)  # its processes know no Atari ids otherwise
        return gymnasium.make(env, **options)

    try:
        envs = VecFrameStack(make_atari_env(make_game, num_envs, seed=1, vec_env_cls=SubprocVecEnv), 4)
        try:
            model = getattr(stable_baselines3, algorithm.upper())("CnnPolicy", envs, seed=1, device=device, **settings)
            model.set_logger(Logger(None, []))  # the default is as silent, and leaves a folder behind
            model.learn(10**9, callback=Report())
        finally:
            envs.close()
    except _NobodyAsksError:
        pass
    except Exception:
        pipe.send(traceback.format_exc())
