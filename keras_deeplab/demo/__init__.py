"""A local web page on which models are tried on photographs and the webcam."""

from keras_deeplab.demo.app import make_app
from keras_deeplab.demo.choice import Choice, Settings, open_choice

__all__ = ["Choice", "Settings", "make_app", "open_choice"]
