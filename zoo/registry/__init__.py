"""Cards, manifests, settings, discovery, activation, isolation, hooks, lock, diagnosis. Nothing here imports torch."""
