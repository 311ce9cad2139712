"""The demo model, and one question to it."""
