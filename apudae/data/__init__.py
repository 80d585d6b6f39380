"""Images by name, and image files; pixels are float32 in [0, 1] unless it says otherwise.

- :func:`load`: ``data.load("mnist", "test")`` -> a :class:`Split`, images and labels
- :class:`Order`: in which order test images are asked
- :data:`SPLITS`, :data:`PROFILES`, :data:`TITLES`: the splits and sizes there are, and what a table
  calls a set
- :data:`CIFAR10_CLASSES`, :func:`imagenet_classes`: names of the classes
- :func:`sample_index`: where the bundled digits stand in MNIST
- :func:`list_folder`, :func:`list_imagenet`: files and labels of a folder, a :class:`Listing`
- :func:`load_folder`, :func:`read_image`: the pixels of listed files, or of one
- :func:`fingerprint`: SHA-256 of images, which says in a record what was measured
"""

from ..core.files import fingerprint
from .files import Listing, imagenet_classes, list_folder, list_imagenet, load_folder, read_image
from .sets import CIFAR10_CLASSES, PROFILES, SPLITS, TITLES, Order, Split, load, sample_index
