"""One episode or one conversation at a terminal: `milepost play` and `milepost talk`, without Ray and Redis."""
