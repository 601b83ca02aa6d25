"""The crash harness: a daemon that is killed again and again under load, and the judge of what its clients saw."""
