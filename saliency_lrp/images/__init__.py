"""From an image to the model's input and from the model's map back to the image."""

from .geometry import Geometry, as_batch, geometry_of, measure_geometry
from .picture import RawImage, is_window, load_image, normalize, windowed
from .preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    build_input,
    input_channels,
    preprocessing_of,
)

normalise = normalize  # the older spelling
