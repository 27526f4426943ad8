"""The built-in networks as ONNX files, from uint8 pixels to probabilities."""

from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax.config import MODELS
from mnist_jax.errors import InputError
from mnist_jax.models.layer_specs import plain_layers
from mnist_jax.records.files import write_file
from mnist_jax.training.run_dir import TrainedRun

# No later operators are needed, and runtimes since 2022 can read these.
_OPSET, _IR_VERSION = 17, 8


def write_onnx(run: TrainedRun, path: Path) -> None:
    """Writes a network as an ONNX file.

    Its input is `images [batch,H,W] uint8`, its output `probabilities
    [batch,classes] float32`, for any number of images. It computes in float32.
    """
    if run.config.model not in MODELS:
        raise InputError(
            f"--format=onnx knows the layers of {', '.join(MODELS)} only, and "
            f"{run.config.model} is a custom network; give --format=stablehlo or "
            "--format=safetensors"
        )
    graph = _Graph(run)
    x = graph.add_pixels("images")
    for layer in plain_layers(run.config, run.shapes, run.variables):
        x = graph.add_layer(x, **layer)
    graph.add("Softmax", x, name="probabilities", axis=1)
    write_file(path, graph.to_model().SerializeToString(deterministic=True))


def predict_onnx(path: Path, images: np.ndarray, run: TrainedRun) -> np.ndarray:
    """Returns what ONNX Runtime computes; see `Format` for the arguments."""
    import onnxruntime  # optional

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    [probabilities] = session.run(["probabilities"], {"images": images})
    return probabilities


class _Graph:
    """The nodes of a network and its constants, in the order of computation."""

    def __init__(self, run: TrainedRun) -> None:
        self.run = run
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(
        self, op: str, *inputs: Any, output: int = 0, name: str = "", **attributes: Any
    ) -> str:
        """Adds a node and returns the name of its output number `output`.

        Outputs before it are not computed. Inputs are names, or arrays, which become
        constants.
        """
        from onnx import helper, numpy_helper  # optional

        names = []
        for value in inputs:
            if not isinstance(value, str):
                constant = f"constant_{len(self.constants)}"
                array = np.ascontiguousarray(value)
                self.constants.append(numpy_helper.from_array(array, constant))
                value = constant
            names.append(value)
        name = name or f"{op}_{len(self.nodes)}"
        outputs = [""] * output + [name]
        self.nodes.append(helper.make_node(op, names, outputs, name, **attributes))
        return name

    def add_pixels(self, x: str) -> str:
        """Adds `Preprocess` and the crop: `[N,H,W] uint8` to `float32`."""
        from onnx import TensorProto

        pixels, mean, std = self.run.preprocess
        x = self.add("Cast", x, to=TensorProto.FLOAT)
        if pixels in ("scaled", "standardized"):
            x = self.add("Div", x, np.float32(255))
        if pixels == "standardized":
            x = self.add("Sub", x, np.float32(mean))
            x = self.add("Div", x, np.float32(std))
        if pixels == "l2":
            norms = self.add("ReduceL2", x, axes=[1], keepdims=1)
            # Pixels are whole numbers, so a norm that is not 0 is at least 1.
            x = self.add("Div", x, self.add("Max", norms, np.float32(1)))
        if crop := self.run.config.crop:
            ends = [side - crop for side in self.run.shapes.image]
            x = self.add("Slice", x, [crop] * 2, ends, [1, 2])  # starts, ends, axes
        if self.run.config.model == "cnn":  # its layers compute on [N,C,H,W]
            x = self.add("Unsqueeze", x, [1])
        return x

    def add_layer(self, x: str, kind: str, **layer: Any) -> str:
        """Adds one of `plain_layers`."""
        match kind:
            case "conv":
                kernel = layer["kernel"].transpose(3, 2, 0, 1)  # [F,C,k,k]
                strides = [layer["strides"]] * 2
                padding = "SAME_UPPER" if layer["padding"] == "SAME" else "VALID"
                inputs = x, kernel, layer["bias"]
                x = self.add("Conv", *inputs, strides=strides, auto_pad=padding)
            case "maxPool":
                window = [layer["size"]] * 2
                x = self.add("MaxPool", x, kernel_shape=window, strides=window)
            case "batchNorm":
                x = self.add("Mul", x, layer["scale"].reshape(-1, 1, 1))
                x = self.add("Add", x, layer["bias"].reshape(-1, 1, 1))
            case "flatten":
                if self.run.config.model == "cnn":
                    x = self.add("Transpose", x, perm=[0, 2, 3, 1])
                x = self.add("Flatten", x, axis=1)
            case "dense":
                x = self.add("Gemm", x, layer["kernel"], layer["bias"])
            case "lstm":
                return self.add_lstm(x, layer)
        activation = layer.get("activation", "linear")
        return x if activation == "linear" else self.add(activation.capitalize(), x)

    def add_lstm(self, x: str, layer: dict[str, Any]) -> str:
        """Adds an LSTM layer: `[N,T,D]` to `[N,T,U]`, or `[N,U]` for the last state."""
        names = "kernel", "recurrent_kernel", "bias"
        kernel, recurrent_kernel, bias = (_order_gates(layer[name]) for name in names)
        # ONNX adds a bias to the inputs and another one to the state.
        bias = np.append(bias, np.zeros_like(bias))
        activation, sequences = layer["activation"].capitalize(), layer["sequences"]
        x = self.add(
            "LSTM",
            self.add("Transpose", x, perm=[1, 0, 2]),
            *(array.T[None] for array in (kernel, recurrent_kernel, bias)),
            output=int(not sequences),  # all states [T,1,N,U], or the last one [1,N,U]
            hidden_size=len(recurrent_kernel),
            activations=["Sigmoid", activation, activation],
        )
        # The axis of the direction: there is only one.
        x = self.add("Squeeze", x, [int(sequences)])
        return self.add("Transpose", x, perm=[1, 0, 2]) if sequences else x

    def to_model(self) -> Any:
        """Returns the checked ONNX model, with the run's data and accuracy in it."""
        from onnx import TensorProto, checker, helper

        run = self.run
        images, probabilities = (
            helper.make_tensor_value_info(name, dtype, ["batch", *shape])
            for name, dtype, shape in (
                ("images", TensorProto.UINT8, run.shapes.image),
                ("probabilities", TensorProto.FLOAT, [run.shapes.classes]),
            )
        )
        model = helper.make_model(
            helper.make_graph(
                self.nodes, run.config.name, [images], [probabilities], self.constants
            ),
            producer_name="mnist_jax",
            ir_version=_IR_VERSION,
            opset_imports=[helper.make_opsetid("", _OPSET)],
        )
        properties = {
            "classes": ",".join(run.record.class_names),
            "dataset": run.record.dataset,
            "test_accuracy": f"{run.record.test_accuracy:.4f}",
        }
        helper.set_model_props(model, properties)
        checker.check_model(model, full_check=True)
        return model


def _order_gates(weights: np.ndarray) -> np.ndarray:
    """Orders the gates of weights `[...,4U]` as in ONNX: i, f, c, o to i, o, f, c."""
    i, f, c, o = np.split(weights, 4, axis=-1)
    return np.concatenate([i, o, f, c], axis=-1)
