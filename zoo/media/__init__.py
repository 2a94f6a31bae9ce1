"""Files and bytes to arrays, with limits: images and sounds, and the readers that plugins bring."""
