"""A folder for `sys.path`, not a package to import from (`hata_sglang.seams.cpu_preview`)."""
