"""Readers of published data sets and of annotation tools, a file each."""
