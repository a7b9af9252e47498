"""Vision-language models as reward models for RL (arXiv 2310.12921)."""
