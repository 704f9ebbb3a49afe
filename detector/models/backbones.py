"""The table of the backbones that params.yaml may name. To add one, add its entry.

This module does not import Keras, so that a parameter is checked against the table before Keras is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PublishedWeights:
    """Keras's ImageNet weights without the classifier.

    Attributes:
        place: the path of the file under `detector.models.weights.KERAS_STORAGE`.
        digest: its MD5 in hexadecimal or, where Keras publishes that one, its SHA-256 (64 digits).
    """

    place: str
    digest: str


@dataclass(frozen=True)
class Backbone:
    """A feature extractor of `keras.applications`.

    Attributes:
        keras_name: its function in `keras.applications`.
        scale: with `offset`, turns RGB 0..255 into the pixels that its ImageNet weights expect, pixel * scale +
            offset; one number, or one for each of red, green, blue.
        smallest: the smallest side of the image in pixels.
        last_conv: the layer with the maps of the last convolution, normalised and activated, which are pooled and
            used by Grad-CAM. A layer that Keras would number gets this name.
        imagenet: its published weights.
        bgr: whether the weights take blue first; scaled pixels are reversed.
        options: further arguments of the function.
    """

    keras_name: str
    scale: float | tuple[float, float, float]
    offset: float | tuple[float, float, float]
    smallest: int
    last_conv: str
    imagenet: PublishedWeights
    bgr: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, RGB 0..1
STANDARD_SCALE = tuple(1 / (255 * std) for std in STD)
STANDARD_OFFSET = tuple(-mean / std for mean, std in zip(MEAN, STD, strict=True))
UNSCALED = {"include_preprocessing": False}  # the network scales the pixels itself, in float32 at any precision


def _efficientnet(variant: str, md5: str) -> Backbone:
    """Tan and Le, 2019. Its own scaling has no switch; `detector.models.network` leaves it out."""
    place = f"keras-applications/efficientnet{variant}_notop.h5"
    return Backbone(
        keras_name=f"EfficientNet{variant.upper()}",
        scale=STANDARD_SCALE,
        offset=STANDARD_OFFSET,
        smallest=32,
        last_conv="top_activation",
        imagenet=PublishedWeights(place, md5),
    )


def _efficientnet_v2(variant: str, md5: str) -> Backbone:
    """Tan and Le, 2021: B0 to B3 take standardised pixels, S takes about -1..1."""
    place = f"tensorflow/keras-applications/efficientnet_v2/efficientnetv2-{variant}_notop.h5"
    return Backbone(
        keras_name=f"EfficientNetV2{variant.upper()}",
        scale=1 / 128 if variant == "s" else STANDARD_SCALE,
        offset=-1.0 if variant == "s" else STANDARD_OFFSET,
        smallest=32,
        last_conv="top_activation",
        imagenet=PublishedWeights(place, md5),
        options=UNSCALED,
    )


def _convnext(variant: str, sha256: str) -> Backbone:
    """Liu et al., 2022; no batch normalisation except in the head."""
    place = f"tensorflow/keras-applications/convnext/convnext_{variant}_notop.h5"
    return Backbone(
        keras_name=f"ConvNeXt{variant.capitalize()}",
        scale=STANDARD_SCALE,
        offset=STANDARD_OFFSET,
        smallest=32,
        last_conv="last_layernorm",
        imagenet=PublishedWeights(place, sha256),
        options=UNSCALED,
    )


def _mobilenet_v3(variant: str, md5: str) -> Backbone:
    """Howard et al., 2019."""
    place = f"tensorflow/keras-applications/mobilenet_v3/weights_mobilenet_v3_{variant}_224_1.0_float_no_top_v2.h5"
    return Backbone(
        keras_name=f"MobileNetV3{variant.capitalize()}",
        scale=1 / 127.5,
        offset=-1.0,
        smallest=32,
        last_conv="conv_1_act",
        imagenet=PublishedWeights(place, md5),
        options=UNSCALED,
    )


BACKBONES = {
    "xception": Backbone(  # Chollet, 2017
        keras_name="Xception",
        scale=1 / 127.5,
        offset=-1.0,
        smallest=71,
        last_conv="block14_sepconv2_act",
        imagenet=PublishedWeights(
            "tensorflow/keras-applications/xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "b0042744bf5b25fce3cb969f33bebb97",
        ),
    ),
    "efficientnet_b0": _efficientnet("b0", "50bc09e76180e00e4465e1a485ddc09d"),
    "efficientnet_b1": _efficientnet("b1", "74c4e6b3e1f6a1eea24c589628592432"),
    "efficientnet_b2": _efficientnet("b2", "111f8e2ac8aa800a7a99e3239f7bfb39"),
    "efficientnet_b3": _efficientnet("b3", "af6d107764bb5b1abb91932881670226"),
    "efficientnet_b4": _efficientnet("b4", "ebc24e6d6c33eaebbd558eafbeedf1ba"),
    "efficientnetv2_b0": _efficientnet_v2("b0", "893217f2bb855e2983157299931e43ff"),
    "efficientnetv2_b1": _efficientnet_v2("b1", "0e80663031ca32d657f9caa404b6ec37"),
    "efficientnetv2_b2": _efficientnet_v2("b2", "1dfe2e7a5d45b6632553a8961ea609eb"),
    "efficientnetv2_b3": _efficientnet_v2("b3", "f6abf7b5849ac99a89b50dd3fd532856"),
    "efficientnetv2_s": _efficientnet_v2("s", "af0682fb74e8c54910f2d4393339c070"),
    "convnext_tiny": _convnext("tiny", "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1"),
    "convnext_small": _convnext("small", "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab"),
    "resnet50": Backbone(  # He et al., 2016; weights from Caffe: mean subtracted, blue first
        keras_name="ResNet50",
        scale=1.0,
        offset=(-123.68, -116.779, -103.939),
        smallest=32,
        last_conv="conv5_block3_out",
        imagenet=PublishedWeights(
            "tensorflow/keras-applications/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "4d473c1dd8becc155b73f8504c6f6626",
        ),
        bgr=True,
    ),
    "mobilenetv3_small": _mobilenet_v3("small", "d3e8ec802a04aa4fc771ee12a9a9b836"),
    "mobilenetv3_large": _mobilenet_v3("large", "07fb09a5933dd0c8eaafa16978110389"),
}
