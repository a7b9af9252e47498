"""Where a run's rewards are computed: in its process, or by workers beside it.

States travel to workers and rewards come back; a frame, most of a megabyte, never does.
Where states are rewarded each by itself, a worker's share is a multiple of the model's
`batch_size`, but for the last: a model that splits it into such batches gives the same
rewards whatever the number of workers. What workers are, and who takes the place of one
that ends, is `crew.py`.
"""

import pickle
from typing import Any

import numpy as np

from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.envs import VectorEnv
from vlmrm_exp.foreign import blaming
from vlmrm_exp.reward import (
    Episodes,
    RewardModel,
    class_of_run,
    make_model,
    reward_class,
    rewards_of,
)
from vlmrm_exp.reward.crew import Crew
from vlmrm_exp.reward.pool import Pool, Wait


def make_pool(config: Config, example: Episodes) -> Pool:
    """Build what rewards a run's states.

    `example` is a few states, rewarded at once, so that what is wrong shows before
    anything depends on it.

    Raises:
        ConfigError: as the model's constructor.
    """
    model, estimator = class_of_run(config), None
    if config.reward.query_share < 1 and not model.cheap:
        from vlmrm_exp.reward.learned import Estimator  # few runs need it

        assert example.states is not None
        estimator = Estimator(config, example.states.shape[-1])
    if model.cheap or config.compute.num_workers == 0:
        pool = Pool(config, make_model(config))
        pool.rewards(example)
    else:
        pool = Workers(config, example)
    pool.estimator = estimator
    return pool


def example_of(config: Config, envs: VectorEnv) -> Episodes:
    """What `make_pool` and `make_judge` try a model with: states of `envs`, as reset.

    Of two environments one step: a large model takes long on a CPU, and so would a
    hanging worker. Where the model wants several in a row, that many of the first one,
    in which nothing moves.
    """
    window = reward_class(config).window
    steps, count = (1, min(2, envs.num_envs)) if window == 1 else (window, 1)
    none = np.zeros((steps, count), np.float32)
    with blaming(envs, "in states"):
        states = np.repeat(envs.states()[None, :count], steps, axis=0)
    return Episodes(states=states, env_reward=none, online=none)


def make_judge(name: str, config: Config, example: Episodes) -> RewardModel:
    """A second opinion: in this process, since it looks at evaluations alone.

    Raises:
        ConfigError: as the model's constructor; the judge is named.
    """
    try:
        judge = make_model(config)
    except ConfigError as error:
        raise type(error)(f"judge.{name}: {error}") from error
    rewards_of(judge, example)
    return judge


class Workers(Pool):
    """Rewards them in workers; each gets a contiguous share."""

    def __init__(self, config: Config, example: Episodes) -> None:
        kind = reward_class(config)
        super().__init__(config, make_model(config) if kind.remembers else None)
        self._sent: int | None = 0  # the version that workers have
        self._axis = 0 if kind.window == 1 else 1  # along which work is shared out
        self._job: list[np.ndarray] | None = None  # the newest one's answers so far
        try:
            self._crew = Crew(config, example)
        except BaseException:
            super().close()
            raise

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, workers too."""
        super().load_state_dict(state)
        self._sent = None

    def _about(self) -> dict[str, Any]:
        return self._crew.about

    def close(self) -> None:
        """Stop the workers, and release what the model holds."""
        self._crew.close()
        super().close()

    def _submit(self, episodes: Episodes) -> Wait:
        # A worker that still wants to answer does not read: both ends would wait.
        if self._job is not None:
            self._finish(self._job)
        if self._learner is not None and self._learner.version != self._sent:
            self._sent = self._learner.version
            with blaming(self._learner, "in state_dict"):
                state = self._learner.state_dict()
                if not state:
                    raise ValueError("it is empty, so that workers would never learn")
                learned = pickle.dumps(state)
            self._crew.tell(learned)
        # A part for each worker: whole batches of states, or whole episodes.
        shape, size, count = episodes.shape, 1, len(self._crew.workers)
        if self._axis == 0:
            episodes, size = episodes.column(), self._crew.batch_size
        ends = even_ends(episodes.shape[self._axis], size, count)
        self._crew.ask(episodes.split(ends, self._axis))
        job = self._job = []

        def wait() -> np.ndarray:
            self._finish(job)
            return np.concatenate(job, axis=self._axis).reshape(shape)

        return wait

    def _finish(self, job: list[np.ndarray]) -> None:
        """Wait for a job's answers: of one that is not the newest, they are there."""
        # Kept between calls: Ctrl-C may come between two workers' answers.
        while len(job) < len(self._crew.workers):
            job.append(self._crew.receive(len(job)))


def even_ends(length: int, size: int, parts: int) -> np.ndarray:
    """Where to cut a length between parts, in whole batches of `size`.

    Next to the even places, or by equal counts of batches: where the largest part is
    smaller.
    """
    even = np.linspace(0, length, parts + 1)[1:-1] / size
    counts = np.linspace(0, -(-length // size), parts + 1)[1:-1]
    cuts = [np.minimum(x.round().astype(int) * size, length) for x in (even, counts)]
    return min(cuts, key=lambda cut: np.diff([0, *cut, length]).max())
