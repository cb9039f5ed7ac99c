"""A recogniser in a process of its own, warm: a line of file names in, a line of the boxes found in each of them out.

`benchmarks.others` starts one with each interpreter; fer's environment has nothing of this project but this file.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence

Look = Callable[[Sequence[str]], list[list[list[float]]]]
"""Names of pictures to the boxes in each, x, y, width and height."""


def ours() -> tuple[Look, str]:
    """This project, with as many pictures at a time as `emotion predict` looks at; and a line of versions."""
    from concurrent.futures import ThreadPoolExecutor

    import onnxruntime

    from emotion import EmotionPredictor

    predictor, pool = EmotionPredictor.from_checkpoint(), ThreadPoolExecutor(os.cpu_count())

    def look(files: Sequence[str]) -> list[list[list[float]]]:
        return [[list(face.box) for face in faces] for faces in pool.map(predictor.predict, files)]

    return look, f"ONNX Runtime {onnxruntime.__version__}"


def fer() -> tuple[Look, str]:
    """The package `fer` with its defaults, in a loop, as its documentation shows; and a line of versions."""
    import cv2
    import fer
    import tensorflow
    from fer.fer import FER

    detector = FER()

    def look(files: Sequence[str]) -> list[list[list[float]]]:
        found = (detector.detect_emotions(cv2.imread(file)) for file in files)
        return [[[float(value) for value in face["box"]] for face in faces] for faces in found]

    return look, f"fer {fer.__version__}, TensorFlow {tensorflow.__version__}, OpenCV {cv2.__version__}"


def main() -> None:
    """Answer line by line until the input ends, after a first line with the versions."""
    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    look, versions = {"ours": ours, "fer": fer}[sys.argv[1]]()
    print(json.dumps(versions), file=answers)
    for line in sys.stdin:
        print(json.dumps(look(json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
