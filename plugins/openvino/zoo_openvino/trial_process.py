"""Compile a graph and run it: the script of `zoo_openvino.trial`. Arguments: graph, settings, inputs (npz), numbers of rows."""

import json
import sys
from contextlib import suppress
from importlib import import_module

import numpy as np


def main(graph: str, settings: str, file: str, batches: str) -> None:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # nothing is reported to the makers: see library.py
    with suppress(ImportError, ValueError, OSError):  # a crash is expected here, and its memory is of no use to anybody
        resource = import_module("resource")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    compiled = import_module("openvino").Core().compile_model(graph, "CPU", json.loads(settings))
    request = compiled.create_infer_request()
    with np.load(file) as archive:
        inputs = [archive[name] for name in archive.files]
    for rows in json.loads(batches):
        request.infer([np.concatenate([array] * rows)[:rows] for array in inputs])
    if not json.loads(batches):
        request.infer(inputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
