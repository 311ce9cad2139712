"""Measuring what a selection keeps, and what it costs in answers."""
