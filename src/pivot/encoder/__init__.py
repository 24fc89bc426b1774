"""Encoders: vision models on their own, with the tap through which their features are read."""

from pivot.encoder.torchvision import mend

mend()  # before anything imports transformers: its image processors import torchvision where it is installed

from pivot.encoder.encoder import Encoder, Features  # noqa: E402

__all__ = ["Encoder", "Features"]
