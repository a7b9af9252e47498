"""Vision-language models as reward models for reinforcement learning (arXiv 2310.12921)."""
