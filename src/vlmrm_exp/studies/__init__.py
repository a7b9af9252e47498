"""Study rewards without training: states, their embeddings, a reward's quality."""
