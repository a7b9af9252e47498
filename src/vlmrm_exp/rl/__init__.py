"""Learn: the last stage of the flow. `sac.py` and `dqn.py` are the algorithms.

    rollouts with rewards -> [replay] -> batch -> [SAC or DQN] -> policy

Letters: N environments, T steps of an episode, O observation and A action dimensions,
B transitions of a batch.
"""
