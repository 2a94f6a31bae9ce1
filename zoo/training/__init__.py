"""Training in one readable loop: what is trained is what has gradients, usually an adapter."""
