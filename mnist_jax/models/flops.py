"""Floating-point operations of a network by formula, from its config alone.

A product counts as two operations, its multiplications and its additions; bias,
activation, pooling, loss and optimizer, which are elementwise, are not counted.
"""

from mnist_jax.config import TrainConfig, parse_conv_stage

SIDE, CLASSES = 28, 10  # of an image, and of the output


def products_by_layer(config: TrainConfig) -> list[list[int]]:
    """Counts the multiply-adds of one image's forward pass, layer by layer.

    A convolution counts at every place of its output, also where pooling leaves a
    border row out, and an LSTM counts its state product at every row, also at the
    first, where the state is 0: work that a program finds it can leave out makes it
    faster, not the network smaller.

    Returns:
        For each layer, in the order of `models.layer_names`, one number per product:
        an LSTM has two, with its input and with its state, the other layers one.

    >>> products_by_layer(TrainConfig(model="lstm", lstm_units=(128,), hidden=()))
    [[401408, 1835008], [1280]]
    """
    layers = []
    if config.model == "lstm":
        width = SIDE
        for units in config.lstm_units:
            layers.append([SIDE * width * 4 * units, SIDE * units * 4 * units])
            width = units
    elif config.model == "cnn":
        side, channels = SIDE, 1
        for stage in map(parse_conv_stage, config.conv):
            reach = stage.kernel if stage.padding == "VALID" else 1
            side = (side - reach) // stage.strides + 1
            layers.append([side**2 * stage.kernel**2 * channels * stage.filters])
            side, channels = side // stage.pool, stage.filters
        width = side**2 * channels
    else:
        width = SIDE**2
    for units in (*config.hidden, CLASSES):
        layers.append([width * units])
        width = units
    return layers


def multiply_adds(config: TrainConfig) -> list[int]:
    """Returns the products of `products_by_layer` as one list.

    The first entry is the product with the image itself.

    >>> multiply_adds(TrainConfig(model="mlp", hidden=(128, 128)))
    [100352, 16384, 1280]
    """
    return [count for layer in products_by_layer(config) for count in layer]


def training_flops(config: TrainConfig) -> int:
    """Counts the operations of training on one image once.

    Each product has two gradients of its own size, so that training is three times the
    forward pass, less the gradient by the image, which nobody needs.

    >>> training_flops(TrainConfig(model="mlp", hidden=(128, 128)))
    507392
    """
    counts = multiply_adds(config)
    return 2 * (3 * sum(counts) - counts[0])
