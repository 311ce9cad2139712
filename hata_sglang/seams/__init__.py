"""Everything that touches SGLang, and nothing else does.

`plugin` registers with SGLang, `activation` turns the backend name ``hata`` into an inner
backend plus this package, `hooks` lists the patched places, `validate` says what cannot be
served, `refusing` how that reaches the caller, `pool` keeps the codes, `backend` decodes,
`cpu_preview` makes SGLang import on a machine without a CUDA driver, `versions` holds what differs
between SGLang releases.
"""
