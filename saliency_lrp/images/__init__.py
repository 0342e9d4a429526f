"""From an image to the model's input and from the model's map back to the image; colours of maps."""

from .colours import (
    CLIP_PERCENTILE,
    SIGNED_COLOURS,
    UNSIGNED_COLOURS,
    backdrop,
    clip_value,
    is_signed,
    normalise,
    opacity,
)
from .geometry import Geometry, as_batch, geometry_of, measure_geometry
from .picture import RawImage, load_image
from .preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    build_input,
    input_channels,
    preprocessing_of,
)
