"""Pictures and videos that people judge: what is shown, what they said, how they agree.

state set or runs -> [shown] -> pictures -> [page] -> key presses on disk [raters]
-> [agreement] -> label.csv, kappa
"""
