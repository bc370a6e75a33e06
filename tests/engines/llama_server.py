"""llama.cpp's own server in the engine's environment, until killed: ``python llama_server.py MODEL.gguf PORT NAME``."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    import xllamacpp

    path, port, name = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {name}
    params.hostnames = ["127.0.0.1"]
    params.port = int(port)
    params.n_ctx = 1024
    params.n_parallel = 2
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
