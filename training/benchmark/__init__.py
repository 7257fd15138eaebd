"""Speed of training: `python -m training.benchmark`, see docs/speed.md."""
