"""Learn: the last stage of the flow. `sac.py` and `dqn.py` are the algorithms.

    labelled rollouts -> [replay] -> batch -> [SAC or DQN] -> policy

Letters: N environments, T steps of an episode, O observation and A action dimensions,
B rows of a batch.
"""

from vlmrm_exp.rl.run import Run, train

__all__ = ["Run", "train"]
