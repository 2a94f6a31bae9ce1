"""A stranger's plugin that brings a command, readers of media, a format of weights and checks of its own."""
