"""Stands in for sgl_kernel's compiled library where it cannot be loaded; nothing calls into it."""
