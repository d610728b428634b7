"""Where the parts of a run lie: on which hosts and GPUs, with which shares of them, and in how much memory."""
