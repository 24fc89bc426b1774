"""pivot: let a language model teach a vision encoder through preference training, take it out, show what changed."""

__version__ = "0.1.0"
