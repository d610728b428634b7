"""Floor 1: the world an agent acts in, and the words the rest of the house uses for it."""
