"""Everything that touches SGLang.

`launch` starts its server, `plugin` registers with SGLang, `activation` turns the backend name
``hata`` into an inner backend plus this package, `session` holds what one server was asked for,
`hooks` lists the patched places, `validate` says what cannot be served, `layers` looks at the
model's attention layers, `refusing` says how a refusal reaches the caller, `workspace` counts
memory beside the pool, `pool` keeps the codes, `model_process` and `recording` look at a model's
attention for training, `backend` decodes, `retype` gives objects of SGLang more methods,
`cpu_preview` makes SGLang import on a machine without a CUDA driver, `versions` holds what differs
between SGLang releases.
"""
