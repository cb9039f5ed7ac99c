"""ONNX graphs, written node by node with onnx's own helper, and the sessions of ONNX Runtime that run them.

`torch.onnx.export(dynamo=False)` is deprecated, and its successor needs two more packages and twenty seconds for these
few kinds of node.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

OPSET: Final = 13
"""The oldest with quantisation per channel, of December 2020; ONNX Runtime reads it since 1.7."""
IR_VERSION: Final = 7
"""The file format that came with that opset."""
THREADS: Final = 2
"""Threads of a session: as many as the hosts have cores."""


class Graph:
    """A graph in the making, from its one input on.

    Args:
        name: name of the input.
        dtype: type of its values.
        shape: its shape; a name stands for any size.

    Attributes:
        model: what has been made so far.
        last: name of the output of the node that was added last.
    """

    def __init__(self, name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> None:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        graph = helper.make_graph([], "emotion", [helper.make_tensor_value_info(name, kind, shape)], [])
        self.model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        self.last = name

    def add(
        self, kind: str, *constants: np.ndarray, inputs: Sequence[str] = (), name: str = "", **attributes: object
    ) -> str:
        """Add a node and return the name of its output.

        Args:
            kind: the operator, see https://onnx.ai/onnx/operators.
            constants: its last inputs.
            inputs: names of its first inputs; by default the output of the node that was added last.
            name: name of its output; by default one that says what it is.
            attributes: those of the operator.
        """
        name = name or f"{len(self.model.graph.node)}_{kind}"
        names = [f"{name}_{index}" for index in range(len(constants))]
        for value, key in zip(constants, names, strict=True):
            # One after the other into the model, so that no second copy of all weights takes memory.
            self.model.graph.initializer.append(numpy_helper.from_array(value, key))
        node = helper.make_node(kind, [*(inputs or [self.last]), *names], [name], name, **attributes)
        self.model.graph.node.append(node)
        self.last = name
        return name

    def give(self, **outputs: Sequence[int | str]) -> onnx.ModelProto:
        """The model, with these float32 outputs and their shapes."""
        for name, shape in outputs.items():
            self.model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return self.model


def session(network: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session that runs `network` on the CPU, from any number of threads at once."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    # Its plans for memory hold for one shape each, and levels of a pyramid come in all.
    options.enable_mem_pattern = False
    # Threads that wait for work in a loop take the core from whoever has some.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(network.SerializeToString(), options, providers=["CPUExecutionProvider"])
