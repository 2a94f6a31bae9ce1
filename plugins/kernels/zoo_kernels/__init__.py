"""Number formats of linear layers as kernels of the zoo. The cards are in `zoo.toml`; importing this package costs nothing."""
