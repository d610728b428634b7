"""Agent programs: they talk to an OpenAI-compatible endpoint, and every call is a turn of their episode."""
