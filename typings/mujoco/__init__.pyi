# MuJoCo's names come from compiled modules without types: let each be anything.
from typing import Any

def __getattr__(name: str) -> Any: ...
