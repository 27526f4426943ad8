"""The timed networks in PyTorch, as its users write them: `[B,28,28] -> [B,10]`."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

Layers = list[nn.Module]


class Lambda(nn.Module):
    """A function without parameters as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Beside(nn.Module):
    """Layers beside a skip connection; by default, the sum of both."""

    def __init__(
        self,
        layers: Layers,
        skip: Layers | None = None,
        merge: Callable[[Tensor, Tensor], Tensor] = torch.add,
    ) -> None:
        super().__init__()
        self.layers, self.skip = nn.Sequential(*layers), nn.Sequential(*(skip or []))
        self.merge = merge

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(self.skip(x), self.layers(x))


class Position(nn.Module):
    """Adds a trained embedding to each patch."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(0.02 * torch.randn(patches, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.embedding


def _permute(*axes: int) -> nn.Module:
    return Lambda(lambda x: x.permute(axes))


def _mean(*axes: int) -> nn.Module:
    return Lambda(lambda x: x.mean(axes))


def _last_state(layer: nn.RNNBase) -> Layers:
    """Applies a recurrent layer to the rows of `[B,1,28,28]`."""
    rows = Lambda(lambda x: x[:, 0])
    return [rows, layer, Lambda(lambda outputs: outputs[0][:, -1])]


def _dense(width: int) -> Layers:
    return [nn.LazyLinear(width), nn.ReLU()]


def _mlp(hidden: int, width: int) -> Layers:
    gelu = nn.GELU(approximate="tanh")  # as Flax's
    return [nn.LazyLinear(hidden), gelu, nn.LazyLinear(width)]


def _conv(filters: int, size: int, *then: nn.Module, dilation: int = 1) -> Layers:
    conv = nn.LazyConv2d(filters, size, padding="same", dilation=dilation)
    return [conv, *then, nn.ReLU()]


def _conv_norm(filters: int, size: int, **options: int) -> Layers:
    conv = nn.LazyConv2d(filters, size, padding=size // 2, bias=False, **options)
    return [conv, nn.LazyBatchNorm2d()]


def _vgg_block(filters: int) -> Layers:
    convs = [_conv(filters, 3, nn.LazyBatchNorm2d()) for _ in range(2)]
    return [*convs[0], *convs[1], nn.AvgPool2d(2), nn.Dropout(0.1)]


def _residual(filters: int, stride: int) -> Layers:
    skip = _conv_norm(filters, 1, stride=stride) if stride > 1 else None
    first, second = _conv_norm(filters, 3, stride=stride), _conv_norm(filters, 3)
    return [Beside([*first, nn.ReLU(), *second], skip), nn.ReLU()]


def _separable(channels: int, filters: int) -> Layers:
    depthwise = _conv_norm(channels, 3, groups=channels)
    return [*depthwise, nn.ReLU6(), *_conv_norm(filters, 1), nn.ReLU6()]


def _convnext_block() -> nn.Module:
    conv = nn.LazyConv2d(32, 7, padding=3, groups=32)
    dense = _permute(0, 2, 3, 1), nn.LayerNorm(32), *_mlp(128, 32)
    return Beside([conv, *dense, _permute(0, 3, 1, 2)])


def _mixer_block() -> Layers:
    tokens = nn.LayerNorm(64), _permute(0, 2, 1), *_mlp(32, 16), _permute(0, 2, 1)
    return [Beside([*tokens]), Beside([nn.LayerNorm(64), *_mlp(128, 64)])]


def _transformer_block() -> nn.Module:
    gelu = nn.GELU(approximate="tanh")
    return nn.TransformerEncoderLayer(
        *(64, 4, 128, 0.0), activation=gelu, batch_first=True, norm_first=True
    )


def _patches(x: Tensor) -> Tensor:
    return x.reshape(-1, 4, 7, 4, 7).transpose(2, 3).reshape(-1, 16, 49)


# Each without the last dense layer. In the CNN, pooling before ReLU gives the same
# values for a quarter of the work.
NETWORKS: dict[str, Callable[[], Layers]] = {
    "mlp": lambda: [nn.Flatten(), *_dense(128), *_dense(128)],
    "lstm": lambda: [*_last_state(nn.LSTM(28, 128, 2, batch_first=True)), *_dense(32)],
    "cnn": lambda: [
        *(nn.LazyConv2d(32, 3), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.LazyConv2d(64, 3), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.LazyConv2d(64, 3), nn.ReLU(), nn.Flatten(), *_dense(64)),
    ],
    "examples/lenet.py:LeNet": lambda: [
        *(*_conv(16, 5, nn.MaxPool2d(2)), *_conv(32, 5, nn.MaxPool2d(2))),
        *(nn.Flatten(), *_dense(128)),
    ],
    "examples/nnx_cnn.py:CNN": lambda: [
        *(*_conv(16, 3, nn.MaxPool2d(2)), *_conv(32, 3, nn.MaxPool2d(2))),
        *(nn.Flatten(), nn.Dropout(0.2)),
    ],
    "examples/vgg.py:VGG": lambda: [*_vgg_block(16), *_vgg_block(32), nn.Flatten()],
    "examples/resnet.py:ResNet": lambda: [
        *(*_conv_norm(16, 3, stride=2), nn.ReLU()),
        *(*_residual(16, 1), *_residual(32, 2), _mean(2, 3)),
    ],
    "examples/mobilenet.py:MobileNet": lambda: [
        *(*_conv_norm(16, 3, stride=2), nn.ReLU6()),
        *(*_separable(16, 16), *_separable(16, 32), *_separable(32, 32)),
        _mean(2, 3),
    ],
    "examples/convnext.py:ConvNeXt": lambda: [
        *(nn.LazyConv2d(32, 4, stride=4), _permute(0, 2, 3, 1)),
        *(nn.LayerNorm(32), _permute(0, 3, 1, 2)),
        *(_convnext_block(), _convnext_block(), _mean(2, 3), nn.LayerNorm(32)),
    ],
    "examples/dilated.py:Dilated": lambda: [
        *(nn.LazyConv2d(16, 3, stride=2, padding=1), nn.ReLU()),
        *(layer for rate in (1, 2, 4) for layer in _conv(16, 3, dilation=rate)),
        nn.Flatten(),
    ],
    "examples/unet.py:UNet": lambda: [
        *_conv(8, 3),
        Beside(
            [
                Lambda(lambda x: pad(x, (0, 1, 0, 1))),  # SAME, as in Flax
                *(nn.LazyConv2d(16, 3, stride=2), nn.ReLU()),
                *(nn.LazyConvTranspose2d(8, 3, stride=2), nn.ReLU()),
                Lambda(lambda x: x[:, :, :28, :28]),
            ],
            merge=lambda x, y: torch.cat([x, y], 1),
        ),
        *_conv(8, 3, nn.MaxPool2d(4)),
        nn.Flatten(),
    ],
    "examples/mixer.py:Mixer": lambda: [
        *(Lambda(_patches), nn.LazyLinear(64)),
        *(layer for _ in range(4) for layer in _mixer_block()),
        *(nn.LayerNorm(64), _mean(1)),
    ],
    "examples/vit.py:ViT": lambda: [
        *(nn.LazyConv2d(64, 7, stride=7), nn.Flatten(2), _permute(0, 2, 1)),
        *(Position(16, 64), _transformer_block(), _transformer_block()),
        *(nn.LayerNorm(64), _mean(1)),
    ],
    "examples/lstm.py:LSTM": lambda: _last_state(nn.LSTM(28, 64, batch_first=True)),
    "examples/gru.py:GRU": lambda: _last_state(nn.GRU(28, 128, batch_first=True)),
}


def create_model(name: str) -> nn.Module:
    """Returns a network with PyTorch's default initialization."""
    with warnings.catch_warnings(action="ignore"), torch.no_grad():  # of lazy layers
        layers = NETWORKS[name]()
        model = nn.Sequential(nn.Unflatten(1, (1, 28)), *layers, nn.LazyLinear(10))
        model.eval()(torch.zeros(1, 28, 28))  # gives them their sizes
    return model.train()
