"""From a snapshot to purified features, all of it or only what has changed since the last one."""
