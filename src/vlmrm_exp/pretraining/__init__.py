"""How the embedded models are made: draw states, caption, contrast, check."""
