"""The built-in networks as ONNX files, from uint8 pixels to probabilities."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_jax.config import MODELS, parse_conv_stage
from mnist_jax.errors import InputError
from mnist_jax.models.networks import layer_names, split_params, usual_names
from mnist_jax.records.files import write_file
from mnist_jax.training.run_dir import TrainedRun

# No later operators are needed, and runtimes since 2022 can read these.
_OPSET, _IR_VERSION = 17, 8
_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh"}
_EPSILON = 1e-5  # of `nn.BatchNorm`


def write_onnx(run: TrainedRun, path: Path) -> None:
    """Writes a network as an ONNX file.

    Its input is `images [batch,H,W] uint8`, its output `probabilities
    [batch,classes] float32`, for any number of images. It computes in float32.

    Args:
        run: the run to export.
        path: the file.
    """
    if run.config.model not in MODELS:
        raise InputError(
            f"--format=onnx knows the layers of {', '.join(MODELS)} only, and "
            f"{run.config.model} is a custom network; give --format=stablehlo or "
            "--format=safetensors"
        )
    graph = _Graph(run)
    graph.add_network()
    write_file(path, graph.to_model(run).SerializeToString(deterministic=True))


def predict_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    """Returns the probabilities `[N,classes] float32` that ONNX Runtime computes.

    Args:
        path: file written by `write_onnx`.
        images: `[N,H,W] uint8`.
    """
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
        self.config, self.preprocess = run.config, run.preprocess
        self.shapes = run.shapes
        params, others = split_params(
            run.model, jax.device_get(run.params), self.shapes.image
        )
        stats = others.get("batch_stats", {})
        config = self.config, self.shapes
        names = zip(usual_names(*config), layer_names(*config), strict=True)
        self.layers = {
            usual: {**params[name], **stats.get(name, {})} for usual, name in names
        }
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """Adds a constant and returns its name."""
        self.constants[name] = np.ascontiguousarray(value, dtype)
        return name

    def add(self, op: str, *inputs: str, output: int = 0, **attributes: Any) -> str:
        """Adds a node and returns the name of one of its outputs.

        Args:
            op: ONNX operator.
            *inputs: names of its inputs.
            output: index of the output; those before it are not computed.
            **attributes: the operator's attributes.
        """
        from onnx import helper  # optional

        name = f"{op}_{len(self.nodes)}"
        outputs = [""] * output + [name]
        self.nodes.append(helper.make_node(op, inputs, outputs, name, **attributes))
        return name

    def add_network(self) -> None:
        """Adds all nodes, from `images` to `probabilities`."""
        from onnx import helper

        x = self.add_pixels("images")
        if self.config.model == "lstm":
            x = self.add_lstm(x)
        else:
            if self.config.model == "cnn":
                x = self.add_convolutions(x)
            x = self.add("Flatten", x, axis=1)
        x = self.add_dense(x)
        self.nodes.append(
            helper.make_node("Softmax", [x], ["probabilities"], "Softmax", axis=1)
        )

    def add_pixels(self, x: str) -> str:
        """Adds `scale_pixels` and the crop: `[N,H,W] uint8 -> float32`."""
        from onnx import TensorProto

        pixels, crop = self.preprocess.pixels, self.config.crop
        x = self.add("Cast", x, to=TensorProto.FLOAT)
        if pixels in ("scaled", "standardized"):
            x = self.add("Div", x, self.constant("pixels/scale", 255))
        if pixels == "standardized":
            x = self.add("Sub", x, self.constant("pixels/mean", self.preprocess.mean))
            x = self.add("Div", x, self.constant("pixels/std", self.preprocess.std))
        if pixels == "l2":
            norms = self.add("ReduceL2", x, axes=[1], keepdims=1)
            # Pixels are whole numbers, so a norm that is not 0 is at least 1.
            x = self.add("Div", x, self.add("Max", norms, self.constant("one", 1)))
        if crop:
            bounds = [
                self.constant(f"crop/{name}", value, np.int64)
                for name, value in (
                    ("starts", [crop] * 2),
                    ("ends", [side - crop for side in self.shapes.image]),
                    ("axes", [1, 2]),
                )
            ]
            x = self.add("Slice", x, *bounds)
        return x

    def add_convolutions(self, x: str) -> str:
        """Adds the convolution stages: `[N,H,W] -> [N,H,W,C]`."""
        x = self.add("Unsqueeze", x, self.constant("channel/axis", [1], np.int64))
        for index, stage in enumerate(map(parse_conv_stage, self.config.conv)):
            name = f"Conv_{index}"
            layer = self.layers[name]
            kernel = layer["kernel"].transpose(3, 2, 0, 1)  # [k,k,C,F] to [F,C,k,k]
            x = self.add(
                "Conv",
                x,
                self.constant(f"{name}/kernel", kernel),
                self.constant(f"{name}/bias", layer["bias"]),
                strides=[stage.strides] * 2,
                auto_pad="SAME_UPPER" if stage.padding == "SAME" else "VALID",
            )
            if stage.activation != "linear":
                x = self.add(_ACTIVATIONS[stage.activation], x)
            if stage.pool > 1:
                window = [stage.pool] * 2
                x = self.add("MaxPool", x, kernel_shape=window, strides=window)
            if stage.bn:
                name = f"BatchNorm_{index}"
                arrays = [
                    self.constant(f"{name}/{key}", self.layers[name][key])
                    for key in ("scale", "bias", "mean", "var")
                ]
                x = self.add("BatchNormalization", x, *arrays, epsilon=_EPSILON)
        return self.add("Transpose", x, perm=[0, 2, 3, 1])

    def add_lstm(self, x: str) -> str:
        """Adds the LSTM layers: `[N,H,W] -> [N,U]`, the last state of the last."""
        x = self.add("Transpose", x, perm=[1, 0, 2])  # the rows of all images in turn
        activation = _ACTIVATIONS[self.config.activation]
        last = len(self.config.lstm_units) - 1
        for index, units in enumerate(self.config.lstm_units):
            name = f"LSTMLayer_{index}"
            layer = {key: _order_gates(a) for key, a in self.layers[name].items()}
            # ONNX adds a bias to the inputs and another one to the state.
            bias = np.append(layer["bias"], np.zeros(4 * units))
            x = self.add(
                "LSTM",
                x,
                self.constant(f"{name}/kernel", layer["kernel"].T[None]),
                self.constant(
                    f"{name}/recurrent_kernel", layer["recurrent_kernel"].T[None]
                ),
                self.constant(f"{name}/bias", bias[None]),
                output=int(index == last),  # all states [T,1,N,U], or the last [1,N,U]
                hidden_size=units,
                activations=["Sigmoid", activation, activation],
            )
            axis = [int(index < last)]  # of the direction: there is only one
            x = self.add("Squeeze", x, self.constant(f"{name}/axis", axis, np.int64))
        return x

    def add_dense(self, x: str) -> str:
        """Adds the dense layers, with ReLU between them: `[N,D] -> [N,classes]`."""
        for index in range(len(self.config.hidden) + 1):
            name = f"Dense_{index}"
            arrays = [
                self.constant(f"{name}/{key}", self.layers[name][key])
                for key in ("kernel", "bias")
            ]
            x = self.add("Gemm", self.add("Relu", x) if index else x, *arrays)
        return x

    def to_model(self, run: TrainedRun) -> Any:
        """Returns the checked ONNX model, with the run's data and accuracy in it."""
        from onnx import TensorProto, checker, helper, numpy_helper

        images, probabilities = (
            helper.make_tensor_value_info(name, dtype, ["batch", *shape])
            for name, dtype, shape in (
                ("images", TensorProto.UINT8, self.shapes.image),
                ("probabilities", TensorProto.FLOAT, [self.shapes.classes]),
            )
        )
        constants = [
            numpy_helper.from_array(array, name)
            for name, array in self.constants.items()
        ]
        model = helper.make_model(
            helper.make_graph(
                self.nodes, self.config.name, [images], [probabilities], constants
            ),
            producer_name="mnist_jax",
            ir_version=_IR_VERSION,
            opset_imports=[helper.make_opsetid("", _OPSET)],
        )
        properties = {
            "classes": ",".join(run.class_names),
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
