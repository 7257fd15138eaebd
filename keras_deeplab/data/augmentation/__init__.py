"""Random changes of images with their label maps."""
