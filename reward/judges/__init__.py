"""Scores that a language model gives: a pinned judge behind an OpenAI-compatible server. It is asked, never trusted."""
