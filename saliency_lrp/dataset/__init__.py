"""Whole data sets: relevance maps streamed to a Zarr store, in constant memory, resumable after a kill.

Items are explained in batches, and a batch is one chunk of every array, so that batches never touch each other's
files: a killed run goes on where it stopped, and several processes can share one store. The last thing written of a
batch is its chunk of ``status``; a batch without it is explained again, to the same bits.
"""

from .items import Items, Unreadable, images_in
from .job import Job, JobOptions, make_job
from .on_ray import explain_dataset_on_ray
from .run import DatasetSummary, explain_dataset, finish, rank_and_world
from .store import EXPLAINED, PENDING, SKIPPED, Store

__all__ = [
    "EXPLAINED",
    "PENDING",
    "SKIPPED",
    "DatasetSummary",
    "Items",
    "Job",
    "JobOptions",
    "Store",
    "Unreadable",
    "explain_dataset",
    "explain_dataset_on_ray",
    "finish",
    "images_in",
    "make_job",
    "rank_and_world",
]
