"""The networks of `examples/` in PyTorch, as its users write them."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import pad


def _layers(*layers: nn.Module) -> nn.Sequential:
    """Returns the layers, after a channel axis for images `[B,28,28]`."""
    return nn.Sequential(nn.Unflatten(1, (1, 28)), *layers)


def lenet() -> nn.Module:
    """Two 5x5 convolutions with max pooling, then 128 units."""
    return _layers(
        *(nn.Conv2d(1, 16, 5, padding="same"), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(16, 32, 5, padding="same"), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(7 * 7 * 32, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def vgg() -> nn.Module:
    """Four 3x3 convolutions with batch normalization, average pooling and dropout."""

    def block(channels: int, filters: int) -> list[nn.Module]:
        convs = []
        for inputs in (channels, filters):
            conv = nn.Conv2d(inputs, filters, 3, padding="same")
            convs += [conv, nn.BatchNorm2d(filters), nn.ReLU()]
        return [*convs, nn.AvgPool2d(2), nn.Dropout(0.1)]

    head = nn.Flatten(), nn.Linear(7 * 7 * 32, 10)
    return _layers(*block(1, 16), *block(16, 32), *head)


def _conv_norm(channels: int, filters: int, size: int, **options: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, filters, size, padding=size // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(filters))


class Residual(nn.Module):
    """Two convolutions beside the identity, or beside a 1x1 convolution."""

    def __init__(self, channels: int, filters: int, strides: int) -> None:
        super().__init__()
        self.first = _conv_norm(channels, filters, 3, stride=strides)
        self.second = _conv_norm(filters, filters, 3)
        self.skip: nn.Module = nn.Identity()
        if strides > 1:
            self.skip = _conv_norm(channels, filters, 1, stride=strides)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(torch.relu(self.first(x)))
        return torch.relu(self.skip(x) + y)


class Mean(nn.Module):
    """The mean over all axes but the first and that of the features."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def resnet() -> nn.Module:
    """A residual block of 16 filters and one of 32."""
    return _layers(
        *(_conv_norm(1, 16, 3, stride=2), nn.ReLU()),
        *(Residual(16, 16, 1), Residual(16, 32, 2), Mean(), nn.Linear(32, 10)),
    )


def mobilenet() -> nn.Module:
    """Depthwise and 1x1 convolutions with batch normalization."""
    layers = [_conv_norm(1, 16, 3, stride=2), nn.ReLU6()]
    channels = 16
    for filters in (16, 32, 32):
        layers += [_conv_norm(channels, channels, 3, groups=channels), nn.ReLU6()]
        layers += [_conv_norm(channels, filters, 1), nn.ReLU6()]
        channels = filters
    return _layers(*layers, Mean(), nn.Linear(32, 10))


class ConvNeXtBlock(nn.Module):
    """A depthwise 7x7 convolution, layer normalization and two dense layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.dense = nn.Sequential(
            *(nn.LayerNorm(width), nn.Linear(width, 4 * width)),
            *(nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dense(self.conv(x).permute(0, 2, 3, 1))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Patches of 4x4 pixels, then two blocks of width 32."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 4, stride=4)
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.Sequential(ConvNeXtBlock(width), ConvNeXtBlock(width))
        self.head = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(images[:, None]).permute(0, 2, 3, 1))
        x = self.blocks(x.permute(0, 3, 1, 2)).mean((2, 3))
        return self.head(self.last(x))


class Mixer(nn.Module):
    """An MLP-Mixer: patches of 7x7 pixels, four blocks of width 64."""

    def __init__(self, width: int = 64, tokens: int = 16) -> None:
        super().__init__()

        def mlp(features: int) -> nn.Module:
            gelu = nn.GELU(approximate="tanh")
            wide = 2 * features
            return nn.Sequential(
                nn.Linear(features, wide), gelu, nn.Linear(wide, features)
            )

        self.embed = nn.Linear(49, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(9))
        self.mix_tokens = nn.ModuleList(mlp(tokens) for _ in range(4))
        self.mix_channels = nn.ModuleList(mlp(width) for _ in range(4))
        self.head = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.reshape(-1, 4, 7, 4, 7).transpose(2, 3).reshape(-1, 16, 49)
        x = self.embed(x)
        *norms, last = self.norms
        for index, (tokens, channels) in enumerate(
            zip(self.mix_tokens, self.mix_channels, strict=True)
        ):
            x = x + tokens(norms[2 * index](x).transpose(1, 2)).transpose(1, 2)
            x = x + channels(norms[2 * index + 1](x))
        return self.head(last(x).mean(1))


class ViT(nn.Module):
    """A vision transformer: patches of 7x7 pixels, two blocks of width 64."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 7, stride=7)
        self.position = nn.Parameter(0.02 * torch.randn(16, width))

        def block() -> nn.Module:
            return nn.TransformerEncoderLayer(
                *(width, 4, 2 * width, 0.0),
                activation=nn.GELU(approximate="tanh"),
                batch_first=True,
                norm_first=True,
            )

        self.blocks = nn.Sequential(block(), block())
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images[:, None]).flatten(2).transpose(1, 2) + self.position
        norm, dense = self.head
        return dense(norm(self.blocks(x)).mean(1))


class Recurrent(nn.Module):
    """A recurrent layer over the rows, and a dense layer on its last state."""

    def __init__(self, layer: nn.Module, units: int) -> None:
        super().__init__()
        self.layer, self.dense = layer, nn.Linear(units, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        states, _ = self.layer(images)
        return self.dense(states[:, -1])


def lstm() -> nn.Module:
    """An LSTM of 64 units."""
    return Recurrent(nn.LSTM(28, 64, batch_first=True), 64)


def gru() -> nn.Module:
    """A GRU of 128 units."""
    return Recurrent(nn.GRU(28, 128, batch_first=True), 128)


def cnn() -> nn.Module:
    """Two 3x3 convolutions with max pooling and dropout."""
    return _layers(
        *(nn.Conv2d(1, 16, 3, padding="same"), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding="same"), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(7 * 7 * 32, 10)),
    )


def dilated() -> nn.Module:
    """3x3 convolutions with dilations 1, 2 and 4."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()]
    for dilation in (1, 2, 4):
        conv = nn.Conv2d(16, 16, 3, padding="same", dilation=dilation)
        layers += [conv, nn.ReLU()]
    return _layers(*layers, nn.Flatten(), nn.Linear(14 * 14 * 16, 10))


class UNet(nn.Module):
    """A U-Net of one level."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding="same")
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2)
        self.up = nn.ConvTranspose2d(2 * width, width, 3, stride=2)
        self.last = nn.Conv2d(2 * width, width, 3, padding="same")
        self.head = nn.Sequential(
            nn.MaxPool2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(7 * 7 * width, 10)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(images[:, None]))
        y = torch.relu(self.down(pad(x, (0, 1, 0, 1))))  # SAME, as in Flax
        y = torch.relu(self.up(y)[:, :, :28, :28])
        return self.head(self.last(torch.cat([x, y], 1)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet.py:LeNet": lenet,
    "vgg.py:VGG": vgg,
    "resnet.py:ResNet": resnet,
    "mobilenet.py:MobileNet": mobilenet,
    "convnext.py:ConvNeXt": ConvNeXt,
    "mixer.py:Mixer": Mixer,
    "vit.py:ViT": ViT,
    "lstm.py:LSTM": lstm,
    "gru.py:GRU": gru,
    "nnx_cnn.py:CNN": cnn,
    "dilated.py:Dilated": dilated,
    "unet.py:UNet": UNet,
}
