"""A causal convolution and its gradients, by the products of _convolutions.py.

The gradient of the weights is a matrix product over time for each tap, in torch's own precision. Groups are as many products;
where they have fewer channels than a matrix instruction takes, the rest of it is zeros.
"""

from flowkern.kernels import _launch
from flowkern.kernels._convolutions import Launches, of_taps


def causal_conv1d(x, weight, bias, dilation, groups, precision):
    """y [batch, outputs, time]; all tensors contiguous, x [batch, inputs, time], weight [outputs, inputs / groups, taps]."""
    with _launch.on(x):
        return Launches(x, precision).products(x, weight, dilation=dilation, groups=groups, bias=bias)


def causal_conv1d_gradients(g_y, x, weight, dilation, groups, precision, of_x, of_weight, of_bias):
    """Of x, the weight and the bias, as far as they are asked for."""
    found = []
    if of_x:
        with _launch.on(x):
            found.append(Launches(x, precision).products(g_y, weight, True, dilation, groups))
    found += [of_taps(g_y, x, weight.shape[2], dilation, groups)] if of_weight else []
    return found + ([g_y.sum((0, 2))] if of_bias else [])
