"""``python -m hata_sglang.launch_server``: SGLang's server with sparse decoding.

Takes every flag of SGLang's own launcher, plus ``--hata-config FILE``, and makes ``hata`` the
attention backend. Without a model it serves the demo model with its shipped hash weights. On a
machine without a CUDA device it serves on the CPU.
"""

from hata_sglang.seams.launch import main

if __name__ == "__main__":
    main()
