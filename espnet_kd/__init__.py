"""Knowledge distillation for ESPnet2 speech recognition."""

__version__ = "0.1.0"
