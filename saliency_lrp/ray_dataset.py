"""Whole data sets on a Ray cluster, under the name that they had before there was a package for data sets."""

from .dataset.on_ray import explain_dataset_on_ray

__all__ = ["explain_dataset_on_ray"]
