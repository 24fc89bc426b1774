"""Encoders: vision models on their own, with the tap through which their features are read."""

from pivot.encoder.encoder import Encoder, Features

__all__ = ["Encoder", "Features"]
