"""The built-in networks as ONNX files, from uint8 pixels to probabilities."""

from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn

from mnist_jax.config import MODELS, ConvStage
from mnist_jax.errors import InputError
from mnist_jax.models.layer_specs import LayerSpec, layer_arrays, layer_specs
from mnist_jax.models.layers import LSTMLayer
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
    graph = _Graph()
    specs = layer_specs(run.config, run.shapes)
    x, shape = graph.add_pixels("images", run), run.shapes.image
    for spec in specs:
        x = graph.add_layer(x, shape, spec, layer_arrays(run.variables, spec.name))
        if isinstance(spec.module, nn.Dense) and spec is not specs[-1]:
            x = graph.add("Relu", x)
        shape = spec.output_shape or ()
    graph.add("Softmax", x, name="probabilities", axis=1)
    model = graph.to_model(run)
    write_file(path, model.SerializeToString(deterministic=True))


def predict_onnx(path: Path, images: np.ndarray) -> np.ndarray:
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

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Adds a constant and returns its name."""
        from onnx import numpy_helper  # optional

        name = f"constant_{len(self.constants)}"
        array = np.ascontiguousarray(value, dtype)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add(
        self, op: str, *inputs: str, output: int = 0, name: str = "", **attributes: Any
    ) -> str:
        """Adds a node and returns the name of its output number `output`.

        Outputs before it are not computed.
        """
        from onnx import helper

        name = name or f"{op}_{len(self.nodes)}"
        outputs = [""] * output + [name]
        self.nodes.append(helper.make_node(op, inputs, outputs, name, **attributes))
        return name

    def add_pixels(self, x: str, run: TrainedRun) -> str:
        """Adds `Preprocess` and the crop: `[N,H,W] uint8 -> float32`."""
        from onnx import TensorProto

        pixels, crop = run.preprocess.pixels, run.config.crop
        x = self.add("Cast", x, to=TensorProto.FLOAT)
        if pixels in ("scaled", "standardized"):
            x = self.add("Div", x, self.constant(255))
        if pixels == "standardized":
            x = self.add("Sub", x, self.constant(run.preprocess.mean))
            x = self.add("Div", x, self.constant(run.preprocess.std))
        if pixels == "l2":
            norms = self.add("ReduceL2", x, axes=[1], keepdims=1)
            # Pixels are whole numbers, so a norm that is not 0 is at least 1.
            x = self.add("Div", x, self.add("Max", norms, self.constant(1)))
        if crop:
            ends = [side - crop for side in run.shapes.image]
            bounds = [crop] * 2, ends, [1, 2]  # starts, ends, axes
            x = self.add("Slice", x, *(self.constant(b, np.int64) for b in bounds))
        return x

    def add_layer(
        self, x: str, shape: tuple[int, ...], spec: LayerSpec, arrays: dict[str, Any]
    ) -> str:
        """Adds a layer; convolution stages compute on `[N,C,H,W]`.

        `shape` is that of the input `x` of one image.
        """
        match spec.module:
            case ConvStage() as stage:
                if len(shape) == 2:
                    x = self.add("Unsqueeze", x, self.constant([1], np.int64))
                x = self.add(
                    "Conv",
                    x,
                    self.constant(arrays["kernel"].transpose(3, 2, 0, 1)),  # [F,C,k,k]
                    self.constant(arrays["bias"]),
                    strides=[stage.strides] * 2,
                    auto_pad="SAME_UPPER" if stage.padding == "SAME" else "VALID",
                )
                if stage.activation != "linear":
                    x = self.add(stage.activation.capitalize(), x)
                if stage.pool > 1:
                    window = [stage.pool] * 2
                    x = self.add("MaxPool", x, kernel_shape=window, strides=window)
                return x
            case nn.BatchNorm(epsilon=epsilon):
                names = "scale", "bias", "mean", "var"
                constants = [self.constant(arrays[name]) for name in names]
                return self.add("BatchNormalization", x, *constants, epsilon=epsilon)
            case LSTMLayer() as layer:
                return self.add_lstm(x, layer, arrays)
            case _:
                if len(shape) == 3:
                    x = self.add("Transpose", x, perm=[0, 2, 3, 1])
                if len(shape) > 1:
                    x = self.add("Flatten", x, axis=1)
                constants = [self.constant(arrays[name]) for name in ("kernel", "bias")]
                return self.add("Gemm", x, *constants)

    def add_lstm(self, x: str, layer: LSTMLayer, arrays: dict[str, Any]) -> str:
        """Adds an LSTM layer: `[N,T,D]` to `[N,T,U]`, or `[N,U]` for the last state."""
        names = "kernel", "recurrent_kernel", "bias"
        kernel, recurrent_kernel, bias = (_order_gates(arrays[name]) for name in names)
        # ONNX adds a bias to the inputs and another one to the state.
        bias = np.append(bias, np.zeros_like(bias))
        activation, sequences = layer.activation.capitalize(), layer.return_sequences
        x = self.add(
            "LSTM",
            self.add("Transpose", x, perm=[1, 0, 2]),
            *(self.constant(a.T[None]) for a in (kernel, recurrent_kernel, bias)),
            output=int(not sequences),  # all states [T,1,N,U], or the last one [1,N,U]
            hidden_size=layer.units,
            activations=["Sigmoid", activation, activation],
        )
        axis = [int(sequences)]  # of the direction: there is only one
        x = self.add("Squeeze", x, self.constant(axis, np.int64))
        return self.add("Transpose", x, perm=[1, 0, 2]) if sequences else x

    def to_model(self, run: TrainedRun) -> Any:
        """Returns the checked ONNX model, with the run's data and accuracy in it."""
        from onnx import TensorProto, checker, helper

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
