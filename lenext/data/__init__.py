"""From files to batches: sources -> samples -> decode -> cache -> transforms -> loader."""
