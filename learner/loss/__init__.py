"""The objective of an update: surrogates, corrections, entropy, critic."""
